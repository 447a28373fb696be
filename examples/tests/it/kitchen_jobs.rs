//! The kitchen's kinds of jobs: handlers as a worker runs them, and programs that are killed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use hybrid_core::{
    ArtifactStoreExt, Cancellation, ChannelName, DatasetRef, Document, ErrorKind, FileId, Files, JobKind, Judgment,
    JudgmentId, Key, ModelName, NewFile, ProgressEvent, ProgressFn, SeededIds, Segment, SystemClock, SystemIds,
    TenantId, Timestamp, VectorIndex, VectorSchema, Verdict, WriterId, segment_key, vector::Metric,
};
use hybrid_examples::{
    evaluate_job::{EvaluateHandler, EvaluateJob},
    judging::store_golden,
    kitchen::KitchenEvent,
    locations::Locations,
    quantize_job::{QuantizeHandler, QuantizeJob},
    serving::Channels,
    site::Site,
    train_job::{Chosen, TrainHandler, TrainJob, TrainOutcome},
};
use hybrid_local::{
    DeviceChoice, SqliteVectorIndex, SqliteVectorOptions,
    evaluation::Report,
    plan_set::{PlanTable, PlanVariant},
    quantize::{Mix, QualityBudget},
};
use hybrid_sync::{
    batch::Enriched,
    job::{self, Job},
    registry::{Namespace, Registry},
    worker::{JobContext, JobHandler},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::app::{PATIENCE, until};

const DEVICE: DeviceChoice = DeviceChoice::Cpu;

/// Tiny models with random weights.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hybrid-local/tests/fixtures").join(name)
}

async fn open(folder: &Path) -> Site {
    Site::open(&Locations::folder(folder)).await.unwrap()
}

/// A job of one id wherever it is ordered, about a file if there is a text; it is not sent yet.
async fn job(site: &Site, kind: &str, payload: impl Serialize, text: Option<&str>) -> Job {
    let (ids, tenant) = (SeededIds::new(7), TenantId::single());
    let kind = JobKind::new(kind).unwrap();
    let mut job = Job::new(&ids, &*site.clock(), tenant.clone(), kind, payload).unwrap();
    if let Some(text) = text {
        let mut upload = site.files().upload(&tenant, FileId::next(&SystemIds::default()));
        upload.write(text.to_owned().into()).await.unwrap();
        job.input = Some(upload.finish(NewFile::new("rows.jsonl", "batch")).await.unwrap().id);
    }
    job
}

/// What a worker gives a handler, and all the progress that it reports.
fn context(site: &Site, job: &Job) -> (JobContext, Arc<Mutex<Vec<ProgressEvent>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let cx = JobContext {
        job: Arc::new(job.clone()),
        attempt: 1,
        last_attempt: false,
        cancel: Cancellation::new(),
        progress: Arc::new(ProgressFn(move |event| told.lock().unwrap().push(event))),
        store: site.store(),
        clock: site.clock(),
    };
    (cx, seen)
}

/// Short messages of three kinds.
fn messages(count: usize) -> Vec<(String, &'static str)> {
    const KINDS: [(&str, [&str; 4]); 3] = [
        ("order", ["ten rolls, please", "a rye loaf, please", "can I get a cake", "I would like buns"]),
        ("hours", ["when do you open", "are you closed now", "open on Sunday?", "is it open at noon"]),
        ("complaint", ["the loaf was burnt", "the cake was late", "never again, I am upset", "the rolls were cold"]),
    ];
    (0..count).map(|i| (format!("{} ({i})", KINDS[i % 3].1[i / 3 % 4]), KINDS[i % 3].0)).collect()
}

/// A training on messages: `variants` in the place of the default plan.
async fn training(site: &Site, variants: Value) -> TrainJob {
    let (store, tenant, model) = (site.store(), TenantId::single(), ModelName::new("bakery").unwrap());
    let name = model.as_str().parse().unwrap();
    let ids = SeededIds::default();
    let judgment = |(text, label): (String, &str)| {
        Judgment::new(
            JudgmentId::next(&ids),
            "classify",
            json!({ "text": text }),
            json!({ "label": label }),
            Timestamp::UNIX_EPOCH,
        )
    };
    let judgments = messages(60).into_iter().map(judgment).collect();
    let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("test").unwrap(), 0).unwrap();
    store.create_same(&key, Segment { judgments }.encode().unwrap()).await.unwrap();
    let dataset = DatasetRef::fix(&*store, &tenant, &name).await.unwrap();
    let golden: String = messages(96)[60..]
        .iter()
        .map(|(text, label)| json!({"input": {"text": text}, "expected": {"label": label}}).to_string() + "\n")
        .collect();
    let file = site.root().join("golden.jsonl");
    std::fs::write(&file, golden).unwrap();
    let golden = store_golden(&*store, &tenant, &file).await.unwrap();
    let variants: Vec<PlanVariant> = serde_json::from_value(variants).unwrap();
    TrainJob { variants, ..TrainJob::new(model, 1, dataset, golden) }
}

/// Three sizes, of which the smallest can hardly learn anything.
fn sizes() -> Value {
    let settings = |epochs: u32, dimension: u32| json!({"epochs": epochs, "dimension": dimension, "char_max": 3});
    json!([
        {"name": "small", "method": "hashed-text", "hyperparameters": settings(1, 1)},
        {"name": "middle", "method": "hashed-text", "hyperparameters": settings(40, 8)},
        {"name": "large", "method": "hashed-text", "hyperparameters": settings(150, 32)},
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_set_of_plans_the_best_is_published_with_the_table_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let site = open(folder.path()).await;
    let channels = Channels::open(&site).unwrap();
    let mut variants = sizes();
    let decoder = json!({"name": "decoder", "method": "decoder-full", "base": {"folder": fixture("decoder/llama")},
        "hyperparameters": {"max_steps": 1, "hold_out": 0, "long": "skip"}});
    let lost = json!({"name": "lost", "method": "bert-lora", "base": {"folder": "/nowhere"}});
    variants.as_array_mut().unwrap().extend([decoder, lost]);
    let order = training(&site, variants).await;
    let job = job(&site, "train", &order, None).await;
    let handler = TrainHandler::open(&site, &channels, DEVICE).unwrap();
    let (cx, seen) = context(&site, &job);
    let outcome = handler.run(&cx, order.clone()).await.unwrap();
    assert_eq!(outcome.verdict.verdict, Verdict::Promote, "{outcome:?}");
    let stages: Vec<String> = seen.lock().unwrap().iter().map(|event| event.stage.clone()).collect();
    assert!(
        ["train small (1 of 5)", "train decoder (4 of 5)", "evaluate small", "publish"]
            .iter()
            .all(|stage| stages.iter().any(|it| it == stage)),
        "{stages:?}"
    );

    let Chosen { plan, table } = outcome.chosen.clone().unwrap();
    let read = PlanTable::decode(&site.store().get(&table).await.unwrap()).unwrap();
    assert_eq!((read.best(), read.rows.len()), (Some(&*plan), 5));
    assert!(plan == "middle" || plan == "large", "{read:?}");
    let row = |name: &str| read.rows.iter().find(|row| row.name == name).unwrap();
    let barred = row("decoder").figures().unwrap().barred.as_ref().unwrap();
    assert!(barred.contains("chat") && row("lost").figures().is_none(), "{read:?}");
    let people = Key::new(table.as_str().replace(".json", ".md")).unwrap();
    assert_eq!(site.store().get(&people).await.unwrap(), read.to_markdown());

    let manifest = Registry::new(site.store(), Namespace::root()).manifest(outcome.manifest.unwrap()).await.unwrap();
    assert_eq!((&manifest.metadata["plan"], &manifest.metadata["plans"]), (&plan, &table.to_string()));
    let chosen = order.variants.iter().find(|variant| variant.name == plan).unwrap();
    assert_eq!(manifest.lineage.plan, chosen.of(&order.plan).plan);
    // An attempt that finds it released says the same.
    let again = handler.run(&cx, order.clone()).await.unwrap();
    assert_eq!(again, TrainOutcome { train_seconds: 0.0, bytes_moved: 0, ..outcome.clone() });

    // What is in service is judged again as it was judged before.
    let evaluate = EvaluateJob {
        model: order.plan.model.clone(),
        channel: ChannelName::stable(),
        candidate: None,
        golden: order.golden.clone(),
    };
    let ordered = self::job(&site, "evaluate", &evaluate, None).await;
    let (cx, seen) = context(&site, &ordered);
    let evaluator = EvaluateHandler::open(&site, &channels, DEVICE).unwrap();
    let judged = evaluator.run(&cx, evaluate.clone()).await.unwrap();
    assert_eq!((Some(judged.manifest), judged.verdict.candidate), (outcome.manifest, outcome.verdict.candidate));
    assert_eq!(seen.lock().unwrap().last().unwrap().stage, "evaluate");
    // The report that an earlier attempt has written is the one that counts.
    let mut report = Report::decode(&site.store().get(&judged.report).await.unwrap()).unwrap();
    report.verdict = Verdict::Refuse("it was measured otherwise".to_owned());
    site.store().delete(&judged.report).await.unwrap();
    site.store().create(&judged.report, report.encode().unwrap()).await.unwrap();
    let again = evaluator.run(&cx, evaluate.clone()).await.unwrap();
    assert_eq!((&again.report, again.verdict), (&judged.report, report.record()));
    let unknown = EvaluateJob { model: ModelName::new("florist").unwrap(), ..evaluate };
    let error = evaluator.run(&cx, unknown).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("in service"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_made_smaller_once_and_one_that_lost_too_much_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let site = open(folder.path()).await;
    let handler = QuantizeHandler::open(&site, DEVICE).unwrap();
    let base = site.kitchen().join("bases/tiny");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(fixture("decoder/llama-bias")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
    }
    let text = "can I get a rye loaf and zwölf Brötchen on Sunday at noon, please? ".repeat(6);
    let small = QuantizeJob { model: "tiny".parse().unwrap(), mix: Mix::Q8_0, budget: QualityBudget::default() };
    let ordered = job(&site, "quantize", &small, Some(&text)).await;
    let (cx, seen) = context(&site, &ordered);
    let outcome = handler.run(&cx, small.clone()).await.unwrap();
    let report = outcome.report.clone().unwrap();
    assert_eq!(outcome.made.bytes, std::fs::metadata(site.kitchen().join(&outcome.file)).unwrap().len());
    assert!(report.mean_divergence > 0.0 && report.bytes == outcome.made.bytes && outcome.serving.total() > 0);
    let stages = |seen: &Mutex<Vec<ProgressEvent>>| {
        let mut stages: Vec<_> = seen.lock().unwrap().drain(..).map(|event| event.stage).collect();
        stages.dedup();
        stages
    };
    assert_eq!(stages(&seen), ["quantize", "compare"]);
    // An attempt that was killed after the file was whole does not make it again.
    assert_eq!(handler.run(&cx, small.clone()).await.unwrap(), outcome);
    assert_eq!(stages(&seen), ["compare"]);

    let strict = QualityBudget { mean_divergence: Some(1e-9), ..QualityBudget::default() };
    let tight = QualityBudget { bytes: Some(10), ..QualityBudget::default() };
    let cases = [
        (QuantizeJob { budget: strict.clone(), ..small.clone() }, Some(text.as_str()), "mean_divergence"),
        (QuantizeJob { budget: strict, ..small.clone() }, None, "input file"),
        (QuantizeJob { budget: tight, ..small.clone() }, None, "bytes"),
        (QuantizeJob { model: "nothing".parse().unwrap(), ..small.clone() }, None, "bases"),
    ];
    for (payload, text, named) in cases {
        let ordered =
            Job { id: hybrid_core::JobId::next(&SystemIds::default()), ..job(&site, "quantize", &payload, text).await };
        let error = handler.run(&context(&site, &ordered).0, payload).await.unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(named), "{named}: {error}");
    }
    assert_eq!(std::fs::read_dir(site.kitchen().join("quantized")).unwrap().count(), 1);
}

/// A kitchen as a process that tells what happens.
struct Kitchen {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    kinds: Vec<String>,
    lacking: Vec<String>,
}

impl Kitchen {
    async fn start(site: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kitchen"));
        command.args(["--events", "--until-input-ends", "--device", "cpu", "--lease-ms", "3000", "--site"]).arg(site);
        command.args(arguments).kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut kitchen = Self { child, lines, kinds: Vec::new(), lacking: Vec::new() };
        let Some(KitchenEvent::Ready { kinds, lacking, .. }) = kitchen.event().await else { panic!("it is not ready") };
        (kitchen.kinds, kitchen.lacking) = (kinds, lacking);
        kitchen
    }

    async fn event(&mut self) -> Option<KitchenEvent> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("it says nothing").unwrap();
        line.map(|line| serde_json::from_str(&line).unwrap())
    }

    /// Reads on until its progress is such.
    async fn progresses(&mut self, is: impl Fn(&ProgressEvent) -> bool) {
        loop {
            match self.event().await.expect("it ended") {
                KitchenEvent::Progress(event) if is(&event) => return,
                _ => {}
            }
        }
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Lets it end, and answers with all the progress that it made.
    async fn finish(mut self) -> Vec<ProgressEvent> {
        drop(self.child.stdin.take());
        let mut made = Vec::new();
        while let Some(event) = self.event().await {
            if let KitchenEvent::Progress(event) = event {
                made.push(event);
            }
        }
        assert!(self.child.wait().await.unwrap().success());
        made
    }
}

async fn send(site: &Site, job: &Job) {
    job::submit(&*site.queue().await.unwrap().jobs, &*site.store(), job).await.unwrap();
}

/// Waits until the one job on the queue waits for its next delivery.
async fn given_back(site: &Site) {
    let queue = site.queue().await.unwrap().jobs;
    until("somebody has had it", async || (queue.depth().await.unwrap().delayed > 0).then_some(())).await;
}

async fn output<T: serde::de::DeserializeOwned>(site: &Site, job: &Job) -> T {
    let (store, clock) = (site.store(), SystemClock);
    let waited = job::wait_for_result(&*store, &job.tenant, job.id, &clock, Duration::from_millis(20));
    tokio::time::timeout(PATIENCE, waited).await.expect("no result").unwrap().output().unwrap()
}

async fn is_done(site: &Site, job: &Job) -> bool {
    job::read_result(&*site.store(), &job.tenant, job.id).await.unwrap().is_some()
}

async fn lines(site: &Site, file: &str) -> Vec<String> {
    let (files, tenant) = (Files::new(site.store(), site.clock()), TenantId::single());
    let file = files.get(&tenant, file.strip_prefix("file-").unwrap().parse().unwrap()).await.unwrap().unwrap();
    let parts: Vec<_> = futures_util::TryStreamExt::try_collect(files.read(&tenant, &file)).await.unwrap();
    String::from_utf8(parts.concat()).unwrap().lines().map(str::to_owned).collect()
}

/// A chat model of random weights, as an argument.
fn chat() -> String {
    format!("file:{}", fixture("decoder/llama").display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kitchen_killed_within_an_enrichment_goes_on_at_the_row_where_it_was() {
    let (calm, wild) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chat = chat();
    let arguments = ["--chat", &*chat, "--chat-context", "128"];
    let rows: String = (0..160).map(|n| json!({"n": n, "text": "two loaves"}).to_string() + "\n").collect();
    let payload = json!({"prompt": "{{n}} {{text}}?", "schema": {"type": "string", "maxLength": 12}, "tries": 1,
        "sampling": {"max_tokens": 16, "temperature": 0}});
    let [calm, wild] = [open(calm.path()).await, open(wild.path()).await];
    let [first, mut second] =
        [job(&calm, "enrich", &payload, Some(&rows)).await, job(&wild, "enrich", &payload, Some(&rows)).await];
    // The id of the answers' file is made of both.
    second.submitted = first.submitted;
    assert_eq!(first.id, second.id);

    send(&calm, &first).await;
    let kitchen = Kitchen::start(calm.root(), &arguments).await;
    let expected: Enriched = output(&calm, &first).await;
    let made = kitchen.finish().await;
    assert!(made.iter().any(|event| event.stage == "enrich" && event.done == 160 && event.total == Some(160)));

    send(&wild, &second).await;
    let mut kitchen = Kitchen::start(wild.root(), &arguments).await;
    kitchen.progresses(|event| event.stage == "enrich" && event.done >= 32).await;
    kitchen.kill().await;
    assert!(!is_done(&wild, &second).await, "it was done before it could be killed");
    let mut steps = wild.store().list_all(&format!("t/default/jobs/{}/steps/", second.id)).await.unwrap();
    steps.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
    let mut before = Vec::new();
    for step in &steps {
        before.extend(wild.store().get(&step.key).await.unwrap());
    }
    assert!(steps.len() >= 2);

    let kitchen = Kitchen::start(wild.root(), &arguments).await;
    let found: Enriched = output(&wild, &second).await;
    kitchen.finish().await;
    assert_eq!((found.rows, found.failed, &found.output_file_id), (160, expected.failed, &expected.output_file_id));
    let (calm, wild) = (lines(&calm, &expected.output_file_id).await, lines(&wild, &found.output_file_id).await);
    // What was answered before is not asked again, and the rest is answered as it would have been. Only what was spared by a cache may differ.
    let before = String::from_utf8(before).unwrap();
    assert!(before.lines().zip(&wild).all(|(before, after)| before == after) && before.lines().count() >= 32);
    let answers = |lines: &[String]| -> Vec<Value> {
        let answer = |line: &String| {
            let mut answer: Value = serde_json::from_str(line).unwrap();
            answer.as_object_mut().unwrap().remove("usage");
            answer
        };
        lines.iter().map(answer).collect()
    };
    assert_eq!(answers(&wild), answers(&calm));
    assert!(answers(&wild).iter().enumerate().all(|(n, answer)| answer["input"]["n"] == json!(n)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kitchen_killed_between_two_plans_trains_no_finished_one_again() {
    let (calm, wild) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [calm, wild] = [open(calm.path()).await, open(wild.path()).await];
    let mut outcomes = Vec::new();
    for (site, kills) in [(&calm, 0), (&wild, 2)] {
        let order = training(site, sizes()).await;
        let job = job(site, "train", &order, None).await;
        send(site, &job).await;
        for stage in ["train middle (2 of 3)", "train large (3 of 3)"].iter().take(kills) {
            let mut kitchen = Kitchen::start(site.root(), &[]).await;
            kitchen.progresses(|event| event.stage == *stage).await;
            kitchen.kill().await;
            assert!(!is_done(site, &job).await, "it was done before it could be killed");
        }
        let kitchen = Kitchen::start(site.root(), &[]).await;
        let outcome: TrainOutcome = output(site, &job).await;
        let trained =
            |event: &ProgressEvent| event.stage.starts_with("train ") && event.message != "was trained before";
        let mut made: Vec<String> =
            kitchen.finish().await.into_iter().filter(trained).map(|event| event.stage).collect();
        made.dedup();
        match kills {
            0 => assert_eq!(made.len(), 3, "{made:?}"),
            _ => assert!(made.iter().all(|stage| stage == "train large (3 of 3)"), "{made:?}"),
        }
        let table = &outcome.chosen.as_ref().unwrap().table;
        let table = PlanTable::decode(&site.store().get(table).await.unwrap()).unwrap();
        let rows: Vec<_> =
            table.rows.iter().map(|row| (row.name.clone(), row.figures().unwrap().verdict.clone())).collect();
        outcomes.push((outcome.chosen, outcome.weights, outcome.verdict, rows));
    }
    assert_eq!(outcomes[0], outcomes[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ordered_by_hand_is_done_and_what_the_kitchen_lacks_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let site = open(folder.path()).await;
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let rows = file("rows.jsonl", "{\"text\": \"ten rolls\"}\n{\"text\": \"when do you open?\"}\n");
    let schema = file("schema.json", r#"{"enum": ["yes", "no"]}"#);
    let index = file("index.json", r#"{"dimension": 32, "metric": "cosine", "fields": {}}"#);
    let answers = folder.path().join("answers.jsonl").display().to_string();
    let order = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order"));
        let command = command.arg("--site").arg(folder.path()).args(arguments).stdin(Stdio::null());
        let done = tokio::time::timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap();
        let (said, errors) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        (done.status.success().then(|| serde_json::from_str::<Value>(&said).unwrap_or_default()), errors)
    };

    // What can never be written is refused before anything is ordered.
    let nowhere = folder.path().join("nowhere/answers.jsonl").display().to_string();
    let embed = ["embed", &rows, "--text", "{{text}}"];
    let label = ["label", rows.as_str()];
    for (output, work, said) in [(&answers, &embed[..], "leaves no file"), (&nowhere, &label, "nowhere/answers.jsonl")]
    {
        let (refused, errors) = order(&[&["--output", output], work].concat()).await;
        assert!(refused.is_none() && errors.contains(said), "{errors}");
    }
    assert_eq!(site.queue().await.unwrap().jobs.depth().await.unwrap().ready, 0);

    // Without models there are none of these: a kitchen says which flag it would need, and leaves their jobs to one that has it.
    let payload = json!({ "prompt": "{{text}}", "schema": { "enum": ["yes", "no"] }, "sampling": { "max_tokens": 8 } });
    let left = job(&site, "enrich", payload, Some("{\"text\": \"ten rolls\"}\n")).await;
    send(&site, &left).await;
    let kitchen = Kitchen::start(folder.path(), &[]).await;
    assert_eq!(kitchen.kinds, ["train", "evaluate", "label", "quantize"]);
    let needs = |kind: &str| kitchen.lacking.iter().find(|said| said.starts_with(kind)).map(String::as_str);
    assert_eq!(needs("enrich"), Some("enrich, which needs a chat model: start it with --chat"));
    assert_eq!(needs("embed"), Some("embed, which needs an embedder and an index: start it with --embed and --index"));
    given_back(&site).await;
    assert!(kitchen.finish().await.is_empty());

    let (chat, embed) = (chat(), format!("file:{}", fixture("bert/bert").display()));
    let flags = ["--chat", &chat, "--chat-context", "256", "--embed", &embed, "--index", &index];
    let kitchen = Kitchen::start(folder.path(), &flags).await;
    assert_eq!(kitchen.kinds, ["train", "evaluate", "label", "enrich", "summarise", "embed", "quantize"]);
    let enrich =
        ["--output", &answers, "enrich", &rows, "--prompt", "{{text}}", "--schema", &schema, "--max-tokens", "8"];
    let (enriched, errors) = order(&enrich).await;
    assert_eq!(enriched.expect(&errors)["rows"], json!(2));
    assert_eq!(std::fs::read_to_string(&answers).unwrap().lines().count(), 2);
    let summarise =
        ["--wait", "summarise", &rows, "--text", "{{text}}", "--instruction", "What is asked?", "--max-tokens", "8"];
    let (summarised, errors) = order(&summarise).await;
    assert_eq!(summarised.expect(&errors)["requests"], json!(1));
    let (embedded, errors) = order(&["--wait", "embed", &rows, "--text", "{{text}}", "--key", "{{text}}"]).await;
    assert_eq!(embedded.expect(&errors)["failed"], json!(0));
    let taken: Enriched = output(&site, &left).await;
    assert_eq!(taken.rows, 1);
    let (refused, errors) = order(&["--wait", "quantize", "nothing"]).await;
    assert!(refused.is_none() && errors.contains("no such model"), "{errors}");
    let (refused, errors) = order(&["embed", &rows, "--text", "{{text"]).await;
    assert!(refused.is_none() && errors.contains("not closed"), "{errors}");
    let stages: Vec<_> = kitchen.finish().await.into_iter().map(|event| event.stage).collect();
    for stage in ["enrich", "summarise level 0", "embed"] {
        assert!(stages.iter().any(|it| it == stage), "{stages:?}");
    }
    let schema = VectorSchema::new(32, Metric::Cosine).unwrap();
    let path = site.kitchen().join("vectors.db");
    let vectors = SqliteVectorIndex::open(path, schema, SqliteVectorOptions::default()).unwrap();
    assert_eq!(vectors.count(&TenantId::single()).await.unwrap(), 2);
}
