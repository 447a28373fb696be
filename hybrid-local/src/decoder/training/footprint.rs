//! What runs take in memory beside what is estimated for them: run by hand, as it takes whole processes.
//!
//! ```text
//! cargo test --release -p hybrid-local --lib -- --ignored --nocapture what_is_estimated_is_what_a_run_takes
//! ```

use std::process::Command;

use candle_core::Tensor;
use hybrid_core::{Hasher, Result};
use serde_json::json;

use super::{
    base::Trainable,
    learner::{Learner, initial},
    lessons::{Lesson, Sequence},
    memory::{Demand, needed},
    settings::{FULL, LORA, tests::settings},
};
use crate::{
    Device,
    decoder::{
        config::{DecoderConfig, tiny},
        files::{Stored, Weights},
        network::Network,
        tensors::{TensorSpec, tensors},
    },
    learning::checkpoint::Checkpoint,
    random::Random,
};

/// Which case a process is.
const CASE: &str = "HYBRID_FOOTPRINT";
/// The method, columns and layers, tokens of each of four texts, and whether layers are worked out anew.
const CASES: [(&str, usize, usize, usize, bool); 6] = [
    (LORA, 512, 8, 128, false),
    (FULL, 512, 8, 128, false),
    (LORA, 768, 12, 256, false),
    (FULL, 768, 12, 256, false),
    (LORA, 768, 12, 256, true),
    (FULL, 768, 12, 256, true),
];

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

/// The most that this process has had in memory, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
}

#[test]
#[ignore = "a process of the next test"]
fn a_run() {
    let Some(case) = std::env::var(CASE).ok().and_then(|case| case.parse::<usize>().ok()) else { return };
    let (method, hidden, layers, tokens, recompute) = CASES[case];
    let config = DecoderConfig {
        vocabulary: 8_192,
        hidden,
        heads: hidden / 64,
        key_value_heads: hidden / 64,
        head_size: 64,
        rotary_size: 64,
        query_scale: 0.125,
        intermediate: hidden * 8 / 3,
        context: 2_048,
        windows: vec![None; layers],
        tied: true,
        ..tiny()
    };
    let mut random = Random::of(2, "tokens", [0, 0]);
    let tokens: Vec<u32> = (0..tokens).map(|_| (random.uniform() * 8_192.0) as u32).collect();
    let learnt = vec![true; tokens.len()];
    let lessons = vec![Lesson { sequences: vec![Sequence { tokens, learnt }] }; 4];
    let device = Device::cpu();
    let mut values = json!({"recompute": recompute, "hold_out": 0.0});
    if method == LORA {
        values["lora_rank"] = json!(16);
    }
    let settings = settings(method, &values).unwrap();
    let weights = Trainable::new(Box::new(Drawn));
    let network = match &settings.lora {
        Some(_) => Network::read(config.clone(), &Drawn, device.tensors()).unwrap(),
        None => Network::read(config.clone(), &weights, device.tensors()).unwrap(),
    };
    let start = settings.lora.as_ref().map(|lora| initial(lora, &config, 1));
    let base = tensors(&config).iter().map(|spec: &TensorSpec| 4 * spec.elements()).sum::<u64>();
    let rows = lessons.iter().map(|lesson| lesson.tokens() as u64).sum();
    let demand = Demand {
        base,
        unpacked: 0,
        trained: start.as_ref().map_or(base / 4, |start| start.numbers()),
        rows,
        longest: rows / 4,
        taped: Network::is_taped(&config, device.tensors()),
    };
    let mut learner = match &start {
        Some(start) => Learner::of_matrices(&network, &config, &settings, &lessons, start).unwrap(),
        None => Learner::of_network(&network, &config, &settings, &lessons, weights.variables()).unwrap(),
    };
    for step in 0..2 {
        learner.step(&[vec![0, 1, 2, 3]], step, 10).unwrap();
    }
    let stepped = peak().unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::new(folder.path(), Hasher::new().finish()).save(2, &learner.state().unwrap()).unwrap();
    println!("peaks {} {} {}", needed(&config, &settings, demand), stepped, peak().unwrap_or_default());
}

#[test]
#[ignore = "measures the memory of whole processes"]
fn what_is_estimated_is_what_a_run_takes() {
    for (case, (method, hidden, layers, tokens, recompute)) in CASES.iter().enumerate() {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["decoder::training::footprint::a_run", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CASE, case.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        let Some(figures) = text.lines().find_map(|line| line.split_once("peaks ").map(|(_, rest)| rest)) else {
            panic!("{text}{}", String::from_utf8_lossy(&run.stderr));
        };
        let figures: Vec<f64> = figures.split(' ').map(|figure| figure.parse::<f64>().unwrap() / 1_048_576.0).collect();
        let (estimated, stepped, saved) = (figures[0], figures[1], figures[2]);
        eprintln!(
            "{method}, {layers} layers of {hidden}, 4 x {tokens} tokens, recompute {recompute}: {estimated:.0} MiB estimated, {stepped:.0} with two steps, {saved:.0} with a checkpoint"
        );
        // Where the system does not tell, nothing is compared.
        assert!(saved == 0.0 || (0.75..=1.0).contains(&(saved / estimated)), "{saved} of {estimated} MiB");
    }
}
