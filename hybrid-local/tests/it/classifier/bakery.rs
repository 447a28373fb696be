//! How well classifiers judge the bakery's golden set: n-grams beside a real encoder. Run by hand.
//!
//! ```text
//! HYBRID_PEERS=$(benches/peers/install) cargo test -p hybrid-local --test it -- --ignored --nocapture bakerys_golden_set
//! ```

use std::{fs, path::Path, time::Instant};

use hybrid_core::{BaseModel, Judgment, JudgmentId, SeededIds, TrainPlan};
use hybrid_local::evaluation::GoldenSet;
use serde_json::{Value, json};

use super::{Site, ask, judgment, plan};
use crate::peers::Peers;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/bakery");

/// The messages of some of the bakery's files as the head baker decided them.
fn decided(files: &[&str]) -> Vec<Judgment> {
    let ids = SeededIds::default();
    let read = |file: &&str| fs::read_to_string(Path::new(DATA).join(format!("{file}.jsonl"))).unwrap();
    let lines: Vec<Value> = files
        .iter()
        .flat_map(|file| read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect();
    let one =
        |line: &Value| judgment(JudgmentId::next(&ids), json!({"text": line["text"]}), json!({"label": line["label"]}));
    lines.iter().map(one).collect()
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[tokio::test]
#[ignore = "a measurement with a real model that takes minutes"]
async fn a_real_encoder_beside_n_grams_on_the_bakerys_golden_set() {
    let base = Peers::find().expect("HYBRID_PEERS names no Python").minilm();
    let bytes = fs::read(Path::new(DATA).join("golden.jsonl")).unwrap();
    let golden = GoldenSet::from_jsonl("golden", bytes).unwrap();
    let text = |value: &Value, field: &str| value[field].as_str().unwrap().to_owned();
    let inputs: Vec<String> = golden.cases().iter().map(|case| text(&case.input, "text")).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    println!(
        "| judgments | method | right of {} | loss of the labels | seconds to train |\n|---|---|---|---|---|",
        inputs.len()
    );
    for files in [&["first"][..], &["first", "more"], &["first", "more", "honest"]] {
        for (method, settings) in [
            ("hashed-text", json!({})),
            ("bert-lora", json!({"pooling": "mean", "max_tokens": 128})),
            ("bert-full", json!({"pooling": "mean", "max_tokens": 128, "epochs": 10})),
        ] {
            let site = Site::with(decided(files)).await;
            let base = (method != "hashed-text").then(|| BaseModel::Folder(base.clone()));
            let plan = TrainPlan { base, ..plan(method, site.dataset.clone(), settings) };
            let started = Instant::now();
            let candidate = site.train(&plan).await.unwrap();
            let seconds = started.elapsed().as_secs_f64();
            let backend = site.load(&plan, &candidate).await.unwrap();
            let results = ask(&*backend, &inputs).await;
            let (mut right, mut loss) = (0, 0.0);
            for (case, result) in golden.cases().iter().zip(&results) {
                let label = text(&case.expected, "label");
                let share = result.scores.iter().find(|score| score.label == label).map_or(0.0, |score| score.score);
                loss -= f64::from(share.max(1e-9)).ln() / inputs.len() as f64;
                right += usize::from(result.label == label);
            }
            let share = 100.0 * right as f64 / inputs.len() as f64;
            println!("| {} | {method} | {right} ({share:.1} %) | {loss:.3} | {seconds:.0} |", candidate.examples);
            // Eight labels by guessing are one in eight.
            assert!(right * 2 > inputs.len(), "{method}: {right}");
        }
    }
}
