//! The network and the templates beside the reference implementation, and files beside each other.

pub(in crate::decoder) mod adapters;
mod constrained;
mod damage;
mod gguf;
#[cfg(feature = "classifier")]
mod heads;

use std::{
    fs,
    path::{Path, PathBuf},
};

use hybrid_core::ErrorKind;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::{
    files::ModelFiles,
    network::{Cache, Network, Part, Wanted},
    template::{Conversation, Sources, Templates},
};
use crate::{
    Device,
    peers::{self, Peers},
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder");
const FAMILIES: [&str; 8] = ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn network(files: &ModelFiles) -> Network {
    Network::read(files.config.clone(), &*files.weights, Device::cpu().tensors()).unwrap()
}

/// What the reference made of a prompt.
struct Expected {
    tokens: Vec<u32>,
    /// Those of the last tokens.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    /// Of a model of two lengths, those of the first tokens, read as a short text.
    short: Option<Vec<Vec<f32>>>,
}

impl Expected {
    fn read(folder: &Path) -> Self {
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<u32> {
            file.tensor(name).unwrap().data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
        };
        let rows = |name: &str| -> Option<Vec<Vec<f32>>> {
            let rows = file.tensor(name).ok()?;
            let values: Vec<f32> = rows.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Some(values.chunks_exact(rows.shape()[1]).map(<[f32]>::to_vec).collect())
        };
        Self { tokens: words("tokens"), logits: rows("logits").unwrap(), greedy: words("greedy"), short: rows("short") }
    }
}

fn read(network: &Network, tokens: &[u32], cache: &mut Cache, wanted: Wanted) -> Vec<Vec<f32>> {
    network.forward(&mut [Part { tokens, cache, wanted, adapter: None }]).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len() as u32).max_by(|one, other| logits[*one as usize].total_cmp(&logits[*other as usize])).unwrap()
}

/// How far ours are from theirs, as a share of how far theirs are from zero.
pub(crate) fn distance(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = || ours.iter().flatten().zip(theirs.iter().flatten());
    let off: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / pairs().map(|(_, b)| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    let worst = peers::worst(ours, theirs);
    assert!(worst < tolerance.into(), "{what}: {worst}");
}

/// Compares logits of a prompt, read at once and in portions, and the tokens that follow it.
fn check_parity(folder: &Path, peer: &str) {
    let expected = Expected::read(folder);
    let mut files = ModelFiles::open(folder).unwrap();
    let network = network(&files);
    let first = expected.tokens.len() - expected.logits.len();
    let name = folder.file_name().unwrap().to_string_lossy();
    let mut worst = 0f64;
    for portion in [expected.tokens.len(), 7, 1] {
        let mut cache = network.cache(128);
        let portions = expected.tokens.chunks(portion);
        let logits: Vec<_> = portions.flat_map(|tokens| read(&network, tokens, &mut cache, Wanted::All)).collect();
        let off = peers::worst(logits[first..].iter().flatten(), expected.logits.iter().flatten());
        assert!(off < 1e-3, "{name}, {portion} at a time: {off}");
        worst = worst.max(off);
        let mut token = best(&logits[logits.len() - 1]);
        let mut greedy = vec![token];
        while greedy.len() < expected.greedy.len() {
            token = best(&read(&network, &[token], &mut cache, Wanted::Last)[0]);
            greedy.push(token);
        }
        assert_eq!(greedy, expected.greedy, "{name}, {portion} at a time");
    }
    if let Some(short) = expected.short {
        files.config.context = 32;
        let network = self::network(&files);
        let ours = read(&network, &expected.tokens[..short.len()], &mut network.cache(32), Wanted::All);
        let off = peers::worst(ours.iter().flatten(), short.iter().flatten());
        assert!(off < 1e-3, "{name}, a short text: {off}");
        worst = worst.max(off);
    }
    let what =
        format!("decoder {name}: logits, at once and in portions, and the same {} tokens", expected.greedy.len());
    peers::row(&what, peer, worst, 1e-3);
}

#[test]
fn logits_and_greedy_tokens_are_those_of_the_reference_implementation() {
    FAMILIES.iter().for_each(|name| check_parity(&fixture(name), "transformers, kept"));
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn models_that_the_reference_implementation_writes_now_give_the_same() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    peers.run("make_decoder.py", [folder.path(), Path::new("77")]);
    FAMILIES.iter().for_each(|name| check_parity(&folder.path().join(name), "transformers"));
    check_templates(folder.path());
}

/// The model with its weights in bfloat16.
fn in_bfloat16(model: &Path, to: &Path) {
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(model.join(name), to.join(name)).unwrap();
    }
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let narrow = |bytes: &[u8]| -> Vec<u8> {
        let halves = bytes.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32());
        halves.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
    };
    let tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), narrow(view.data())))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

#[test]
fn matrices_that_stay_in_bfloat16_take_half_the_memory_and_say_nearly_the_same() {
    for name in ["qwen3", "gemma3", "phi3"] {
        let folder = tempfile::tempdir().unwrap();
        in_bfloat16(&fixture(name), folder.path());
        let [wide, narrow] = [false, true].map(|narrow| {
            let files = ModelFiles::open(folder.path()).unwrap();
            if narrow { files.narrow() } else { files }
        });
        let [all, left] = [&wide, &narrow].map(|files| Network::bytes(&files.config, &*files.weights));
        assert!(left > all / 2 && left < all * 11 / 20, "{name}: {left} of {all}");
        let tokens: Vec<u32> = (3..43).collect();
        let [wide, narrow] = [wide, narrow].map(|files| {
            let network = network(&files);
            read(&network, &tokens, &mut network.cache(128), Wanted::All)
        });
        let off = distance(&narrow, &wide);
        assert!((1e-5..0.02).contains(&off), "{name}: {off}");
    }
}

#[test]
fn sequences_side_by_side_are_read_as_each_alone() {
    let expected = Expected::read(&fixture("qwen3"));
    let network = network(&ModelFiles::open(&fixture("qwen3")).unwrap());
    let (mut one, mut other) = (network.cache(128), network.cache(128));
    read(&network, &expected.tokens[..20], &mut one, Wanted::None);
    let parts = &mut [
        Part { tokens: &expected.tokens[20..], cache: &mut one, wanted: Wanted::Last, adapter: None },
        Part { tokens: &[], cache: &mut network.cache(8), wanted: Wanted::Last, adapter: None },
        Part { tokens: &expected.tokens[..9], cache: &mut other, wanted: Wanted::All, adapter: None },
    ];
    let logits = network.forward(parts).unwrap();
    assert_eq!((logits.len(), one.len(), other.len()), (10, 40, 9));
    assert_near(&logits[0], &expected.logits[39], 1e-3, "the longer");
    for (ours, theirs) in logits[1..].iter().zip(&expected.logits) {
        assert_near(ours, theirs, 1e-3, "the shorter");
    }
    one.truncate(20);
    let again = read(&network, &expected.tokens[20..], &mut one, Wanted::Last);
    assert_near(&again[0], &expected.logits[39], 1e-3, "after it was cut");
    assert!(
        network
            .forward(&mut [Part { tokens: &[1; 9], cache: &mut network.cache(8), wanted: Wanted::None, adapter: None }])
            .is_err()
    );
}

#[derive(Deserialize)]
struct Cases {
    templates: std::collections::BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<serde_json::Value>,
    tools: Vec<Tool>,
    thinking: Option<bool>,
    text: Option<String>,
    refusal: Option<String>,
}

/// The order of keys is part of what templates write.
#[derive(Deserialize, serde::Serialize)]
struct Tool {
    r#type: String,
    function: Function,
}

#[derive(Deserialize, serde::Serialize)]
struct Function {
    name: String,
    description: String,
    parameters: serde_json::Value,
}

fn check_templates(folder: &Path) {
    let Cases { templates, cases } = serde_json::from_slice(&fs::read(folder.join("templates.json")).unwrap()).unwrap();
    for (i, case) in cases.into_iter().enumerate() {
        let text = Some(templates[&case.template].clone());
        let tokens =
            [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        let compiled = Templates::compile(Sources { default: text, tool_use: None, tokens: tokens.into() }).unwrap();
        let value = |value: &serde_json::Value| minijinja::Value::from(minijinja::value::Serde(value));
        let filled = compiled.fill(Conversation {
            messages: case.messages.iter().map(value).collect(),
            tools: case.tools.iter().map(|tool| minijinja::Value::from(minijinja::value::Serde(tool))).collect(),
            thinking: case.thinking,
            now: "2026-11-21T10:00:00Z".parse().unwrap(),
        });
        match (filled, case.text, case.refusal) {
            (Ok(ours), Some(theirs), _) => assert_eq!(ours, theirs, "{} {i}", case.template),
            (Err(error), None, Some(theirs)) => {
                assert_eq!((error.kind(), error.context("reason")), (ErrorKind::InvalidInput, Some(&*theirs)), "{i}");
            }
            (ours, theirs, refusal) => panic!("{} {i}: {ours:?}, {theirs:?}, {refusal:?}", case.template),
        }
    }
}

#[test]
fn conversations_are_written_as_the_reference_implementation_writes_them() {
    check_templates(Path::new(FIXTURES));
}
