//! Sets of plans: trained one after the other, compared, resumed between and within plans.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use hybrid_core::{
    BaseModel, Candidate, Document, ErrorKind, ProgressEvent, ProgressFn, Result, Timestamp, TrainPlan, TrainRun,
    Trainer, TrainerProfile,
    task::{Chat, Classify},
};
use hybrid_local::{
    DecoderLoader, DecoderTrainer, Device, TextClassifierLoader, TextClassifierTrainer,
    evaluation::{ChatLabelScorer, Contender, Evaluator, EvaluatorOptions, GoldenSet, LabelScorer, Report},
    plan_set::{Judged, NamedPlan, PlanOutcome, PlanSet, PlanTable, PlanVariant, TrainedPlan, Trials},
};
use serde_json::json;

use crate::{
    classifier::{Site, bert::bert_plan, judgments, messages, plan},
    decoder::{context, fixture},
};

/// Judgments, and other messages of the same kinds as a golden set.
async fn site() -> (Site, GoldenSet) {
    let all = messages(96);
    let golden: String = all[48..]
        .iter()
        .map(|(text, label)| json!({"input": {"text": text}, "expected": {"label": label}}).to_string() + "\n")
        .collect();
    (Site::with(judgments(&all[..48])).await, GoldenSet::from_jsonl("messages", golden).unwrap())
}

fn named(name: &str, plan: TrainPlan) -> NamedPlan {
    NamedPlan { name: name.to_owned(), plan }
}

/// Plans of n-grams, which differ in their size.
fn sizes(site: &Site) -> Vec<NamedPlan> {
    let of = |(name, dimension): (&str, u32)| {
        let settings = json!({"dimension": dimension, "epochs": 4, "folds": 2, "char_max": 3, "checkpoint_steps": 3});
        named(name, plan("hashed-text", site.dataset.clone(), settings))
    };
    [("small", 2), ("middle", 8), ("large", 16)].map(of).into()
}

async fn report(trained: &TrainedPlan, golden: &GoldenSet) -> Report {
    let options = EvaluatorOptions { candidates: 4, ..EvaluatorOptions::default() };
    let (cx, progress) = (context(), &hybrid_core::NoProgress);
    let requirements = trained.candidate.requirements.clone();
    match &*trained.candidate.task {
        "classify" => {
            let loader = TextClassifierLoader::new(Device::cpu());
            let backend = trained.load::<Classify>(&loader, 1, Timestamp::UNIX_EPOCH).await.unwrap();
            let contender = Contender { backend: &*backend, requirements };
            Evaluator::new(LabelScorer, options).unwrap().evaluate(&cx, golden, contender, None, progress).await
        }
        _ => {
            let loader = DecoderLoader::new(Device::cpu());
            let backend = trained.load::<Chat>(&loader, 1, Timestamp::UNIX_EPOCH).await.unwrap();
            let contender = Contender { backend: &*backend, requirements };
            Evaluator::new(ChatLabelScorer, options).unwrap().evaluate(&cx, golden, contender, None, progress).await
        }
    }
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_of_several_trainers_are_compared_on_one_golden_set_and_the_best_is_named() {
    let (site, golden) = site().await;
    let settings = json!({"epochs": 30, "folds": 2, "char_max": 3});
    let mut decoder =
        plan("decoder-full", site.dataset.clone(), json!({"max_steps": 2, "batch_size": 4, "hold_out": 0}));
    decoder.base = Some(BaseModel::Folder(fixture("llama")));
    let mut lost = decoder.clone();
    lost.base = Some(BaseModel::Folder("/nowhere".into()));
    let encoder = json!({"epochs": 1, "batch_size": 16});
    let plans = [
        named("lost", lost),
        named("decoder", decoder),
        named("encoder", bert_plan("bert-lora", "bert", site.dataset.clone(), encoder)),
        named("n-grams", plan("hashed-text", site.dataset.clone(), settings)),
    ];
    let set = PlanSet::new([
        Arc::new(TextClassifierTrainer::new(Device::cpu())) as Arc<dyn Trainer>,
        Arc::new(DecoderTrainer::new(Device::cpu())),
    ]);
    let stages = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&stages);
    let progress = ProgressFn(move |event: ProgressEvent| seen.lock().unwrap().push(event.stage));
    let run = TrainRun { progress: Arc::new(progress), ..site.run() };
    let Trials { trained, failed } = set.train(&plans, &run).await.unwrap();
    let names: Vec<_> = trained.iter().map(|trained| &*trained.name).collect();
    assert_eq!((names, &*failed[0].name), (vec!["decoder", "encoder", "n-grams"], "lost"));
    let mut stages = stages.lock().unwrap().clone();
    stages.dedup();
    assert_eq!(stages, ["train decoder (2 of 4)", "train encoder (3 of 4)", "train n-grams (4 of 4)"]);

    let mut reports = Vec::new();
    for trained in &trained {
        reports.push(report(trained, &golden).await);
    }
    let judged = |barred: Option<&str>| {
        let barred = barred.map(str::to_owned);
        let of = |(trained, report)| Judged { trained, report, barred: barred.clone() };
        PlanTable::of(&trained.iter().zip(&reports).map(of).collect::<Vec<_>>(), &failed).unwrap()
    };
    let table = judged(None);
    let order: Vec<_> = table.rows.iter().map(|row| &*row.name).collect();
    assert_eq!((table.best(), order[0], order[3]), (Some("n-grams"), "n-grams", "lost"));
    let score = |row: usize| table.rows[row].figures().unwrap().verdict.candidate.value;
    assert!(score(0) > 0.8 && score(0) > score(1) && score(1) >= score(2), "{table:?}");
    assert!(matches!(&table.rows[3].outcome, PlanOutcome::Failed(why) if why.contains("/nowhere")), "{table:?}");
    assert_eq!(PlanTable::decode(&table.encode().unwrap()).unwrap(), table);
    let page = table.to_markdown();
    assert!(page.contains("the best is n-grams") && page.contains("| lost | decoder-full | failed |"), "{page}");
    assert_eq!(judged(Some("of another task")).best(), None);
}

/// The trainer of n-grams, which remembers what it began, and is stopped as it begins its so many-th plan.
#[derive(Debug)]
struct Stopped {
    inner: TextClassifierTrainer,
    begun: Mutex<Vec<u64>>,
    at: usize,
}

impl Stopped {
    fn at(at: usize) -> Arc<Self> {
        Arc::new(Self { inner: TextClassifierTrainer::new(Device::cpu()), begun: Mutex::default(), at })
    }

    fn dimensions(&self) -> Vec<u64> {
        self.begun.lock().unwrap().clone()
    }
}

#[async_trait]
impl Trainer for Stopped {
    fn profile(&self) -> TrainerProfile {
        self.inner.profile()
    }

    fn check(&self, plan: &TrainPlan) -> Result<()> {
        self.inner.check(plan)
    }

    async fn train(&self, plan: &TrainPlan, run: &TrainRun) -> Result<Candidate> {
        let count = {
            let mut begun = self.begun.lock().unwrap();
            begun.push(plan.hyperparameters.get("dimension").and_then(serde_json::Value::as_u64).unwrap_or_default());
            begun.len()
        };
        if count == self.at {
            run.cancel.cancel();
        }
        self.inner.train(plan, run).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_finished_is_not_trained_again_and_ends_the_same() {
    let (site, _) = site().await;
    let plans = sizes(&site);
    let whole = tempfile::tempdir().unwrap();
    let run = |scratch: &Path| TrainRun { scratch: scratch.to_owned(), ..site.run() };
    let set = |trainer: &Arc<Stopped>| PlanSet::new([Arc::clone(trainer) as Arc<dyn Trainer>]);
    let expected = set(&Stopped::at(0)).train(&plans, &run(whole.path())).await.unwrap().trained;

    let (folder, first) = (site.folder.path(), Stopped::at(2));
    let stopped = set(&first).train(&plans, &run(folder)).await.unwrap_err();
    assert_eq!((stopped.kind(), first.dimensions()), (ErrorKind::Cancelled, vec![2, 8]));
    let second = Stopped::at(0);
    let found = set(&second).train(&plans, &run(folder)).await.unwrap().trained;
    assert_eq!(second.dimensions(), [8, 16]);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((&found.name, found.weights, found.bytes), (&expected.name, expected.weights, expected.bytes));
        assert_eq!(found.candidate.examples, expected.candidate.examples);
    }
    let third = Stopped::at(0);
    assert_eq!(set(&third).train(&plans, &run(folder)).await.unwrap().trained, found);
    assert!(third.dimensions().is_empty());

    // What has changed since, is gone or cannot be read is trained anew, and so is another plan under the same name.
    let files = |name: &str| folder.join("plans").join(name);
    let mut weights = std::fs::read(files("small").join("candidate/model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(files("small").join("candidate/model.safetensors"), weights).unwrap();
    std::fs::write(files("middle").join("finished.json"), "{").unwrap();
    let mut other = plans.clone();
    other[2].plan.seed = 9;
    let fourth = Stopped::at(0);
    let again = set(&fourth).train(&other, &run(folder)).await.unwrap().trained;
    assert_eq!(fourth.dimensions(), [2, 8, 16]);
    assert_eq!([again[0].weights, again[1].weights], [expected[0].weights, expected[1].weights]);
    assert_ne!(again[2].weights, expected[2].weights);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_can_never_succeed_is_refused_before_any_work() {
    let (site, _) = site().await;
    let trainer = Stopped::at(0);
    let set = PlanSet::new([Arc::clone(&trainer) as Arc<dyn Trainer>]);
    let change = |change: &dyn Fn(&mut NamedPlan)| {
        let mut plans = sizes(&site);
        change(&mut plans[1]);
        plans
    };
    let cases = [
        (Vec::new(), "no plan"),
        (change(&|it| it.name = "Small".to_owned()), "Small"),
        (change(&|it| it.name = "../x".to_owned()), "slash"),
        (change(&|it| it.name = "a:b".to_owned()), "a:b"),
        (change(&|it| it.plan.method = "guess".to_owned()), "hashed-text"),
        (change(&|it| it.plan.model = "other".parse().unwrap()), "other"),
        (change(&|it| drop(it.plan.hyperparameters.insert("dimension".to_owned(), json!(0)))), "middle"),
    ];
    for (plans, said) in cases {
        let error = set.train(&plans, &site.run()).await.unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(said), "{said}: {error}");
    }
    assert!(trainer.dimensions().is_empty());

    // Where no plan comes to anything, the first one's failure is the set's.
    let lost = |name: &str| {
        let mut plan = plan("bert-lora", site.dataset.clone(), json!({}));
        plan.base = Some(BaseModel::Folder(format!("/nowhere/{name}").into()));
        named(name, plan)
    };
    let error = set.train(&[lost("one"), lost("two")], &site.run()).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/one"), "{error}");
}

#[test]
fn a_variant_has_the_model_and_the_dataset_of_its_plan_and_nothing_unknown() {
    let variant: PlanVariant = serde_json::from_value(json!({"name": "a", "method": "hashed-text"})).unwrap();
    let shared = TrainPlan {
        model: "messages".parse().unwrap(),
        method: "bert-lora".to_owned(),
        base: Some(BaseModel::Hub("a/b".to_owned())),
        dataset: hybrid_core::DatasetRef { name: "messages".parse().unwrap(), segments: vec![] },
        hyperparameters: [("epochs".to_owned(), json!(1))].into(),
        seed: 5,
    };
    let NamedPlan { name, plan } = variant.of(&shared);
    let expected =
        TrainPlan { method: "hashed-text".to_owned(), base: None, hyperparameters: [].into(), ..shared.clone() };
    assert_eq!((&*name, &plan), ("a", &expected));
    for bad in [json!({"name": "a"}), json!({"name": "a", "method": "x", "epochs": 3})] {
        assert!(serde_json::from_value::<PlanVariant>(bad).is_err());
    }
}
