//! How fast a decoder of 29.5 million weights learns beside the reference implementation: run by hand.
//!
//! ```text
//! HYBRID_TRANSFORMERS=…/bin/python cargo test --release -p hybrid-local --lib -- --ignored --nocapture tokens_a_second_of_training
//! ```
//!
//! `HYBRID_SPEED` names what is measured, `lora` or `full`; without `HYBRID_TRANSFORMERS` ours is measured alone, and so is its memory.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use candle_core::Tensor;
use hybrid_core::Result;
use serde_json::json;

use super::{
    base::Trainable,
    learner::{Learner, initial},
    lessons::{Lesson, Sequence},
    settings::{FULL, LORA, tests::settings},
};
use crate::{
    Device,
    decoder::{
        config::{DecoderConfig, tiny},
        files::{Stored, Weights},
        network::Network,
    },
    random::Random,
};

const ROUNDS: usize = 7;
const TEXTS: usize = 4;
const TOKENS: usize = 128;

/// Random weights.
#[derive(Debug)]
struct Drawn;

impl Weights for Drawn {
    fn bytes(&self, _name: &str) -> u64 {
        0
    }

    fn take(&self, name: &str, shape: &[usize], device: &candle_core::Device) -> Result<Stored> {
        let count = shape.iter().product();
        let values = match name.ends_with("norm.weight") {
            true => vec![1f32; count],
            false => Random::of(1, name, [0, 0]).normal(count, 0.02),
        };
        Ok(Stored::Dense(Tensor::from_vec(values, shape, device).unwrap()))
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The most that this process has had in memory, in MiB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or_default() / 1024.0
}

#[test]
#[ignore = "a measurement"]
fn tokens_a_second_of_training_beside_the_reference_implementation() {
    let what = std::env::var("HYBRID_SPEED").unwrap_or_else(|_| "lora".to_owned());
    let config = DecoderConfig {
        vocabulary: 8_192,
        hidden: 512,
        heads: 8,
        key_value_heads: 8,
        head_size: 64,
        rotary_size: 64,
        query_scale: 0.125,
        intermediate: 1_376,
        context: 2_048,
        windows: vec![None; 8],
        tied: true,
        ..tiny()
    };
    let mut random = Random::of(2, "tokens", [0, 0]);
    let sequence = Sequence {
        tokens: (0..TOKENS).map(|_| (random.uniform() * 8_192.0) as u32).collect(),
        learnt: vec![true; TOKENS],
    };
    let lessons = vec![Lesson { sequences: vec![sequence] }; TEXTS];
    let batches = [(0..TEXTS).collect::<Vec<_>>()];
    let device = Device::cpu();
    let values = if what == "lora" { json!({"lora_rank": 16, "lora_alpha": 32}) } else { json!({}) };
    let settings = settings(if what == "lora" { LORA } else { FULL }, &values).unwrap();
    let weights = Trainable::new(Box::new(Drawn));
    let network = match &settings.lora {
        Some(_) => Network::read(config.clone(), &Drawn, device.tensors()).unwrap(),
        None => Network::read(config.clone(), &weights, device.tensors()).unwrap(),
    };
    let mut learner = match &settings.lora {
        Some(lora) => {
            let start = initial(lora, &config, 1);
            Learner::of_matrices(&network, &config, &settings, &lessons, &start).unwrap()
        }
        None => Learner::of_network(&network, &config, &settings, &lessons, weights.variables()).unwrap(),
    };
    let mut peer = std::env::var_os("HYBRID_TRANSFORMERS").map(|python| {
        let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/speed_training.py"));
        let mut peer = Command::new(python)
            .arg(script)
            .args([TEXTS, TOKENS].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (peer.stdin.take().unwrap(), BufReader::new(peer.stdout.take().unwrap()).lines());
        (peer, input, output)
    });
    let mut theirs = |what: &str| -> Option<f64> {
        let (_, input, output) = peer.as_mut()?;
        writeln!(input, "{what}").unwrap();
        output.next().unwrap().unwrap().parse().ok()
    };
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        learner.step(&batches, round, 100).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let other = theirs(&what);
        // The first round warms up.
        if round > 0 {
            ours.push(seconds);
            others.extend(other);
        }
    }
    let tokens = (TEXTS * TOKENS) as f64;
    println!("{what}: {TEXTS} texts of {TOKENS} tokens, medians of {ROUNDS}:");
    println!(
        "  ours  {:7.0} tokens a second, best {:7.0}, {:6.0} MiB",
        tokens / median(&mut ours),
        tokens / ours[0],
        memory()
    );
    if let Some(memory) = theirs("memory") {
        println!(
            "  torch {:7.0} tokens a second, best {:7.0}, {memory:6.0} MiB",
            tokens / median(&mut others),
            tokens / others[0]
        );
    }
    if let Some((mut peer, input, _)) = peer {
        drop(input);
        peer.wait().unwrap();
    }
}
