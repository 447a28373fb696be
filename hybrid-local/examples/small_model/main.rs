//! Trains a small language model on this project's own documentation, and says what fine-tuning, fewer bits and pruning do to it.
//!
//! ```text
//! cargo run --release -p hybrid-local --example small_model [FOLDER] [STEPS]
//! ```
//!
//! It stands in for published weights where none are at hand: a decoder of the Llama family that starts from random numbers and reads for some
//! minutes. All figures are of texts that it has not learnt from. What they say of larger models is the direction, not the size: a model this small
//! has fewer numbers to spare. FOLDER keeps what is made, and a model that lies there is not trained again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use hybrid_core::{
    CallContext, Cancellation, Candidate, Digest, Document, Lineage, Manifest, ModelLoader, NoProgress, RequestId,
    Result, SeededIds, ServedModel, TenantId, Timestamp, TrainPlan, Trainer,
    task::{ChatRequest, ClassifyRequest, Sampling},
};
use hybrid_local::{
    DecoderLoader, DecoderTrainer, Device, TextClassifierLoader, TextClassifierTrainer,
    quantize::{Comparison, LayerPruner, Mix, QualityReport, Quantizer, WidthPruner},
};
use serde_json::json;

mod corpus;
#[path = "../parts/mod.rs"]
mod parts;

use corpus::{Corpus, bakery, golden};
use parts::{MARKS, Sizes, bakery_judgments, io, train, write_base};

const VOCABULARY: usize = 2_048;
/// 3.5 million numbers. Rows are whole blocks of 256, as the mixes want them.
const SIZES: Sizes = Sizes { hidden: 256, layers: 5, heads: 4, key_value_heads: 2, intermediate: 512, context: 512 };
/// Of 2,048 tokens each.
const STEPS: usize = 500;
/// Held-out texts are judged in windows of so many tokens.
const WINDOW: usize = 256;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let work = arguments.next().map_or_else(|| std::env::temp_dir().join("hybrid-small-model"), PathBuf::from);
    let steps = arguments.next().and_then(|steps| steps.to_str()?.parse().ok()).unwrap_or(STEPS);
    let device = Device::cpu();
    let trainer = DecoderTrainer::new(device.clone());
    let corpus = Corpus::read()?;
    let unseen = corpus.held_out.concat();

    let (base, model) = (work.join("base"), work.join("model"));
    if !model.join("config.json").is_file() {
        let tokenizer = corpus.tokenizer(VOCABULARY)?;
        let end = tokenizer.token_to_id(MARKS[1]).unwrap_or_default() as usize;
        let text = tokenizer.to_string(false).map_err(|error| {
            hybrid_core::Error::internal("write tokenizer", "the library failed").with_source(error)
        })?;
        write_base(&base, &text, [VOCABULARY, end], SIZES)?;
        let settings = json!({
            "epochs": 100, "max_steps": steps, "batch_size": 8, "packing": true, "max_tokens": 256, "learning_rate": 3e-3,
            "weight_decay": 0.1, "warm_up": 0.04, "hold_out": 0.02, "evaluate_steps": (steps / 8).max(1), "patience": 0, "long": "cut",
        });
        let judgments = corpus.judgments()?;
        println!("{} texts to learn, {} held out", judgments.len(), corpus.held_out.len());
        let started = Instant::now();
        let (_, candidate, folder) =
            train(&trainer, "decoder-full", &base, judgments, &settings, &work.join("scratch/model")).await?;
        println!("trained in {:?}: {:?}", started.elapsed(), candidate.metrics);
        fs::rename(&folder, &model).map_err(|error| io(&model, error))?;
    }

    println!(
        "\n| | size | perplexity | likeliest token the same | divergence, mean | 99th percentile |\n|---|---|---|---|---|---|"
    );
    let report = compare(&device, &model, &base, &unseen).await?;
    row("before training", &report);
    let mut first = true;
    for mix in [Mix::F16, Mix::Q8_0, Mix::Q6K, Mix::Q5KM, Mix::Q4KM, Mix::Q4_0] {
        let file = work.join(format!("{mix}.gguf"));
        let _ = fs::remove_file(&file);
        Quantizer::new(mix).run(&model, &file, Arc::new(NoProgress), Cancellation::new()).await?;
        let report = compare(&device, &model, &file, &unseen).await?;
        if std::mem::take(&mut first) {
            row(
                "trained",
                &QualityReport {
                    perplexity: report.original_perplexity,
                    bytes: report.original_bytes,
                    agreement: 1.0,
                    mean_divergence: 0.0,
                    p99_divergence: 0.0,
                    ..report.clone()
                },
            );
        }
        row(&mix.to_string(), &report);
    }

    // What a layer matters is measured on what the model has learnt from, not on what it is judged by.
    let pruner = LayerPruner::new(device.clone()).with_context(WINDOW);
    let sample = corpus.learnt[..60].concat();
    let influences = pruner.measure(&model, &sample, Arc::new(NoProgress), Cancellation::new()).await?;
    let target = work.join("pruned");
    let _ = fs::remove_dir_all(&target);
    let least = influences.least(1);
    pruner.remove(&model, &target, least.clone()).await?;
    row(&format!("without layer {}", numbers(&least)), &compare(&device, &model, &target, &unseen).await?);
    let pruner = WidthPruner::new(device.clone());
    let importances = pruner.measure(&model, &sample, Arc::new(NoProgress), Cancellation::new()).await?;
    for (name, groups, channels) in [("without half of the heads", 1, 0), ("without half of the channels", 0, 256)] {
        let target = work.join(if groups > 0 { "fewer-heads" } else { "narrow" });
        let _ = fs::remove_dir_all(&target);
        pruner.remove(&model, &target, importances.least(groups, channels)).await?;
        row(name, &compare(&device, &model, &target, &unseen).await?);
    }

    fine_tune(&trainer, &device, &model, &work).await
}

/// Fine-tunes on the bakery's judgments, and counts how many of the golden messages get the right label: written out by the model, and as
/// classified by a head on it.
async fn fine_tune(trainer: &dyn Trainer, device: &Device, model: &Path, work: &Path) -> Result<()> {
    let ids = SeededIds::default();
    let mut judgments = bakery_judgments(&bakery("first.jsonl"), &ids)?;
    judgments.extend(bakery_judgments(&bakery("more.jsonl"), &ids)?);
    let settings = json!({
        "epochs": 3, "batch_size": 16, "lora_rank": 16, "lora_alpha": 32, "learning_rate": 3e-3, "max_tokens": 512, "hold_out": 0.1,
        "output": "merged",
    });
    let (_, _, folder) =
        train(trainer, "decoder-lora", model, judgments.clone(), &settings, &work.join("scratch/bakery")).await?;
    let settings = json!({
        "epochs": 3, "batch_size": 16, "lora_rank": 16, "lora_alpha": 32, "learning_rate": 3e-3, "head_learning_rate": 1e-2,
    });
    let heads = TextClassifierTrainer::new(device.clone());
    let (plan, candidate, head) =
        train(&heads, "decoder-head-lora", model, judgments, &settings, &work.join("scratch/head")).await?;

    println!("\n| | right of {} golden messages |\n|---|---|", golden()?.len());
    let row = |name: &str, share: f64| println!("| {name} | {:.1} % |", 100.0 * share);
    row("the trained model, asked for the label", accuracy(device, model).await?);
    row("after LoRA, asked for the label", accuracy(device, &folder).await?);
    let manifest = manifest(plan, &candidate);
    let digest = Digest::of(&manifest.encode()?);
    let backend = TextClassifierLoader::new(device.clone()).load(&manifest, digest, &head).await?;
    let cases = golden()?;
    let cx = CallContext::new(TenantId::single(), RequestId::next(&SeededIds::new(4)));
    let texts = cases.iter().map(|(text, _)| text.clone());
    let reply = backend.infer(&cx, ClassifyRequest::many(texts)).await?;
    let right = reply.response.results.iter().zip(&cases).filter(|(result, (_, label))| result.label == *label);
    row("after LoRA with a head", right.count() as f64 / cases.len() as f64);
    for name in ["valid_accuracy", "ece", "ece_uncalibrated"] {
        println!("  of the head {name} {:.4}", candidate.metrics[name]);
    }
    Ok(())
}

/// What a publisher would write of a candidate.
fn manifest(plan: TrainPlan, candidate: &Candidate) -> Manifest {
    Manifest {
        model: plan.model.clone(),
        version: 1,
        task: candidate.task.clone(),
        architecture: candidate.architecture.clone(),
        created: Timestamp::UNIX_EPOCH,
        files: Vec::new(),
        requirements: candidate.requirements.clone(),
        lineage: Lineage {
            dataset: plan.dataset.digest(),
            plan,
            examples: candidate.examples,
            trainer: "example".to_owned(),
            device: candidate.device.clone(),
        },
        verdict: None,
        metadata: BTreeMap::new(),
    }
}

async fn compare(device: &Device, original: &Path, candidate: &Path, text: &str) -> Result<QualityReport> {
    let comparison = Comparison::new(device.clone()).with_context(WINDOW);
    comparison.run(original, candidate, text, Arc::new(NoProgress), Cancellation::new()).await
}

fn row(name: &str, report: &QualityReport) {
    println!(
        "| {name} | {:.2} MiB | {:.2} | {:.1} % | {:.5} | {:.4} |",
        report.bytes as f64 / f64::from(1 << 20),
        report.perplexity,
        100.0 * report.agreement,
        report.mean_divergence,
        report.p99_divergence,
    );
}

fn numbers(layers: &BTreeSet<usize>) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// The share of golden messages that the model answers with the right label and nothing else.
async fn accuracy(device: &Device, model: &Path) -> Result<f64> {
    let backend =
        DecoderLoader::new(device.clone()).with_context(512).open(model, ServedModel::named("bakery")).await?;
    let ids = SeededIds::new(3);
    let sampling = Sampling { max_tokens: Some(12), temperature: Some(0.0), ..Sampling::default() };
    let cases = golden()?;
    let mut right = 0;
    for (text, label) in &cases {
        let cx = CallContext::new(TenantId::single(), RequestId::next(&ids));
        let request = ChatRequest { sampling: sampling.clone(), ..ChatRequest::user(text) };
        right += usize::from(backend.infer(&cx, request).await?.response.text().trim() == label);
    }
    Ok(right as f64 / cases.len() as f64)
}
