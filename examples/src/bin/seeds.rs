//! How sure the quickstart's story is: its four trainings over many seeds and resampled splits of the judgments, on the golden set that no
//! training file contains.
//!
//! ```sh
//! cargo run --release -p hybrid-examples --bin seeds
//! ```
//!
//! For each seed the 780 honest judgments are dealt anew into 120 for version 1, 600 more for version 2 and 60 left over. Then, each against
//! version 2: the 150 wrong ones are added, and the 60 honest ones are added. The golden set is only ever judged on.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use clap::Parser;
use hybrid_core::{
    ArtifactStore, CallContext, Cancellation, DatasetName, DatasetRef, Digest, Document, Error, InferenceBackend,
    ModelName, NoProgress, RequestId, Result, Segment, SystemClock, TenantId, Timestamp, TrainPlan, TrainRun, Trainer,
    Verdict, WriterId, memory::MemoryStore, segment_key, task::Classify,
};
use hybrid_examples::data::Decided;
use hybrid_local::{
    Device, TextClassifierLoader, TextClassifierTrainer,
    evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet, Report},
    plan_set::{NamedPlan, PlanSet},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Parser)]
#[command(version, about = "The quickstart's trainings over many seeds and resampled splits")]
struct Args {
    /// How many seeds, from 1.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The folder of the bakery's messages.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data/bakery"))]
    data: PathBuf,
}

/// A version and what is known of it.
struct Version {
    weights: Digest,
    backend: Arc<dyn InferenceBackend<Classify>>,
}

struct Lab {
    trainer: PlanSet,
    loader: TextClassifierLoader,
    golden: GoldenSet,
    evaluator: Evaluator<hybrid_local::evaluation::LabelScorer>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let read = |name: &str| Decided::read(&args.data.join(name));
    let honest: Vec<Decided> = [read("first.jsonl")?, read("more.jsonl")?, read("honest.jsonl")?].concat();
    let wrong = read("wrong.jsonl")?;
    let golden = std::fs::read(args.data.join("golden.jsonl"))
        .map_err(|error| Error::invalid("read golden set", "the file cannot be read").with_source(error))?;
    let device = Device::cpu();
    let lab = Lab {
        trainer: PlanSet::new([Arc::new(TextClassifierTrainer::new(device.clone())) as Arc<dyn Trainer>]),
        loader: TextClassifierLoader::new(device),
        golden: GoldenSet::from_jsonl("golden", golden)?,
        evaluator: Evaluator::classify(EvaluatorOptions::default())?,
    };

    println!("| seed | version 1 | version 2 | p | verdict | + wrong | verdict | + honest | verdict |");
    println!("|---:|---:|---:|---:|---|---:|---|---:|---|");
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=args.seeds {
        let mut dealt = honest.clone();
        dealt.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let (first, known, all) = (&dealt[..120], &dealt[..720], &dealt[..]);
        let taught_wrong = [known, &wrong].concat();
        let (v1, r1) = lab.version(seed, 1, first, None).await?;
        let (v2, r2) = lab.version(seed, 2, known, Some(&v1)).await?;
        let (_, bad) = lab.version(seed, 3, &taught_wrong, Some(&v2)).await?;
        let (_, good) = lab.version(seed, 4, all, Some(&v2)).await?;
        let percent = |report: &Report| format!("{:.1} %", report.candidate.score.value * 100.0);
        let p = r2.comparison.as_ref().map_or(1.0, |comparison| comparison.p);
        println!(
            "| {seed} | {} | {} | {p:.1e} | {} | {} | {} | {} | {} |",
            percent(&r1),
            percent(&r2),
            word(&r2),
            percent(&bad),
            word(&bad),
            percent(&good),
            word(&good)
        );
        *counts.entry("version 1 promoted").or_default() += u64::from(word(&r1) == "promote");
        *counts.entry("version 2 promoted").or_default() += u64::from(word(&r2) == "promote");
        *counts.entry("wrong batch refused").or_default() += u64::from(word(&bad) == "refuse");
        *counts.entry("honest batch refused").or_default() += u64::from(word(&good) == "refuse");
    }
    println!();
    counts.iter().for_each(|(what, count)| println!("{what}: {count} of {}", args.seeds));
    Ok(())
}

fn word(report: &Report) -> &'static str {
    match report.verdict {
        Verdict::Promote => "promote",
        Verdict::Refuse(_) => "refuse",
        _ => "hold",
    }
}

impl Lab {
    /// Trains a version on `decided` and judges it against `incumbent`.
    async fn version(
        &self,
        seed: u64,
        number: u64,
        decided: &[Decided],
        incumbent: Option<&Version>,
    ) -> Result<(Version, Report)> {
        let store: Arc<dyn ArtifactStore> = Arc::new(MemoryStore::default());
        let (tenant, name) = (TenantId::single(), DatasetName::new("bakery")?);
        let judgments = decided.iter().map(|one| one.judgment(Timestamp::UNIX_EPOCH)).collect();
        let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("seeds")?, 1)?;
        store.create(&key, Segment { judgments }.encode()?).await?;
        let plan = TrainPlan {
            model: ModelName::new("bakery")?,
            method: "hashed-text".to_owned(),
            base: None,
            dataset: DatasetRef::fix(&*store, &tenant, &name).await?,
            hyperparameters: BTreeMap::new(),
            seed,
        };
        let scratch = tempfile::tempdir()
            .map_err(|error| Error::internal("make scratch folder", "the system refused").with_source(error))?;
        let clock = Arc::new(SystemClock);
        let run = TrainRun {
            store,
            scratch: scratch.path().to_owned(),
            progress: Arc::new(NoProgress),
            cancel: Cancellation::new(),
            clock,
        };
        let trials = self.trainer.train(&[NamedPlan { name: "seed".to_owned(), plan }], &run).await?;
        let trained = trials.trained.first();
        let trained = trained.ok_or_else(|| Error::internal("train version", "the plan came to nothing"))?;
        let backend = trained.load(&self.loader, number, Timestamp::UNIX_EPOCH).await?;
        let cx = CallContext::new(tenant, format!("seed-{seed}-{number}").parse::<RequestId>()?);
        let against = incumbent.map(|version| (version.weights, &*version.backend));
        let report =
            self.evaluator.evaluate(&cx, &self.golden, Contender::new(&*backend), against, &NoProgress).await?;
        Ok((Version { weights: trained.weights, backend }, report))
    }
}
