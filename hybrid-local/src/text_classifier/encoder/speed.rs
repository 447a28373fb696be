//! How fast an encoder of MiniLM's size is beside the reference implementation: run by hand.
//!
//! ```text
//! HYBRID_PEERS=$(benches/peers/install) cargo test -p hybrid-local --lib -- --ignored --nocapture beside_the_reference
//! ```

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
    time::Instant,
};

use super::{
    learner::{BertLearner, BertMethod},
    settings::{BertSettings, Mode},
};
use crate::{
    Device,
    encoder::{Base, EncoderConfig, HeadActivation},
    ops::Operators,
    peers::Peers,
    random::Random,
    text_classifier::{
        examples::Examples,
        settings::Settings,
        tensors::{Array, Tensors},
        training::{Learner, StepAt},
    },
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const ROUNDS: usize = 5;
const TEXTS: usize = 32;

fn base() -> Base {
    let config = EncoderConfig {
        family: "bert".to_owned(),
        vocabulary: 30_522,
        hidden: 384,
        layers: 6,
        heads: 12,
        intermediate: 1_536,
        positions: 512,
        first_position: 0,
        token_types: 2,
        norm_epsilon: 1e-12,
        head_activation: HeadActivation::Tanh,
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let scale = f32::from(u8::from(name.ends_with("norm.weight")));
        let mut values = Random::of(1, &name, [0, 0]).normal(shape.iter().product(), 0.02);
        values.iter_mut().for_each(|value| *value += scale);
        (name, Array::f32(shape, values))
    };
    let tensors: Tensors = config.tensors().into_iter().map(tensor).collect();
    let tokenizer = std::fs::read(Path::new(FIXTURES).join("bert/bert/tokenizer.json")).unwrap();
    Base { config, tensors, tokenizer, digests: BTreeMap::new() }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Reads texts and takes steps, in turns with the reference; says how many texts a second.
#[test]
#[ignore = "a measurement"]
fn texts_a_second_beside_the_reference_implementation() {
    let peers = Peers::find().expect("HYBRID_PEERS names no Python");
    let (base, device) = (base(), Device::cpu());
    let settings = |mode| {
        let values = [("dropout".to_owned(), 0.into())].into();
        BertSettings::read(&Settings::new(&values), mode, 1).unwrap()
    };
    let (full, lora) = (settings(Mode::Full), settings(Mode::Lora));
    for tokens in [32, 128] {
        let (mut full, mut lora) = (full.clone(), lora.clone());
        (full.max_tokens, lora.max_tokens) = (Some(tokens), Some(tokens));
        let examples = Examples {
            labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
            texts: (0..TEXTS).map(|i| format!("{i} {}", "the cake ".repeat(tokens))).collect(),
            targets: (0..TEXTS).map(|i| i % 3).collect(),
        };
        let methods = [&full, &lora].map(|settings| BertMethod::new(&examples, &base, settings, &device).unwrap());
        let begin = |method, operators| BertLearner::begin(method, 0, operators).unwrap();
        let mut learners = [
            ("full, fused", begin(&methods[0], Operators::Fused)),
            ("full, composed", begin(&methods[0], Operators::Composed)),
            ("lora, fused", begin(&methods[1], Operators::Fused)),
        ];
        let mut peer = peers
            .command()
            .arg(Path::new(FIXTURES).join("speed_bert.py"))
            .args([TEXTS, tokens].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, mut output) = (peer.stdin.take().unwrap(), BufReader::new(peer.stdout.take().unwrap()).lines());
        let mut theirs = |what: &str| -> f64 {
            writeln!(input, "{what}").unwrap();
            output.next().unwrap().unwrap().parse().unwrap()
        };
        let batch: Vec<_> = (0..TEXTS).collect();
        let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for round in 0..=ROUNDS {
            // The first round warms up.
            let mut note = |what: String, seconds: f64| {
                if round > 0 {
                    times.entry(what).or_default().push(seconds);
                }
            };
            for (name, learner) in &mut learners {
                let start = Instant::now();
                learner.logits(&batch).unwrap();
                note(format!("read, {name}"), start.elapsed().as_secs_f64());
                let start = Instant::now();
                learner.step(&batch, StepAt { phase: 0, step: round, planned: 100 }).unwrap();
                note(format!("step, {name}"), start.elapsed().as_secs_f64());
            }
            for what in ["read", "step"] {
                note(format!("{what}, torch"), theirs(what));
            }
        }
        drop(input);
        peer.wait().unwrap();
        println!("{TEXTS} texts of {tokens} tokens, medians of {ROUNDS}:");
        for (what, times) in &mut times {
            println!(
                "  {what:24} {:8.1} texts a second, best {:8.1}",
                TEXTS as f64 / median(times),
                TEXTS as f64 / times[0]
            );
        }
    }
}
