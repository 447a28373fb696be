//! The network beside the reference implementation, and its gradients beside finite differences.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use super::{
    learner::{BertLearner, BertMethod},
    network::Network,
    settings::{BertSettings, Mode},
};
use crate::{
    Device,
    encoder::{Base, Batch, Encoder, Marks, Pooling, Tokens, on_device},
    ops::Operators,
    peers::{self, Peers},
    random::Random,
    text_classifier::{
        examples::Examples,
        settings::Settings,
        tensors::{self, Array, Tensors, Values, take_f32, take_u32},
        training::{Learner, StepAt},
    },
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bert");
const FAMILIES: [&str; 4] = ["bert", "roberta", "xlm-roberta", "distilbert"];

fn file(path: &Path) -> Tensors {
    tensors::decode(&std::fs::read(path).unwrap(), path).unwrap().0
}

/// Compares what we make of the texts with what the reference made of them, padded.
fn check_parity(folder: &Path, name: &str, peer: &str) {
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
    let folder = folder.join(name);
    let base = Base::read(&folder, None).unwrap();
    let tokens =
        Tokens::read(&base.tokenizer, base.config.vocabulary, base.config.max_tokens(), Marks::Needed).unwrap();
    let encoded: Vec<_> = texts.iter().map(|text| tokens.encode(text).unwrap().ids).collect();

    let mut expected = file(&folder.join("expected.safetensors"));
    let longest = encoded.iter().map(Vec::len).max().unwrap();
    let hidden = base.config.hidden;
    let ids = take_u32(&mut expected, "ids", &[texts.len(), longest]).unwrap();
    let lengths = take_u32(&mut expected, "lengths", &[texts.len()]).unwrap();
    for (i, encoded) in encoded.iter().enumerate() {
        assert_eq!(encoded[..], ids[i * longest..][..lengths[i] as usize], "{name}: tokens of {:?}", texts[i]);
    }
    let their_hidden = take_f32(&mut expected, "hidden", &[texts.len(), longest, hidden]).unwrap();
    let their_logits = take_f32(&mut expected, "logits", &[texts.len(), 3]).unwrap();

    // The reference's own last layer, which training would replace.
    let mut whole = file(&folder.join("model.safetensors"));
    let prefix = ["classifier.out_proj", "classifier"].into_iter();
    let prefix = prefix.into_iter().find(|prefix| whole.contains_key(&format!("{prefix}.weight"))).unwrap();
    let mut all = base.tensors.clone();
    for (part, shape) in [("weight", vec![3, hidden]), ("bias", vec![3])] {
        let values = take_f32(&mut whole, &format!("{prefix}.{part}"), &shape).unwrap();
        all.insert(format!("head.out.{part}"), Array { shape, values: Values::F32(values) });
    }
    let device = Device::cpu();
    for operators in [Operators::Fused, Operators::Composed] {
        let network =
            Network::of(&base.config, Pooling::Cls, None, operators, |name| on_device(&all, name, &device)).unwrap();
        let ids: Vec<_> = encoded.iter().map(Vec::as_slice).collect();
        let batch = Batch::of(&ids, base.config.first_position, device.tensors()).unwrap();
        let encoder = Encoder::of(&base.config, None, operators, |name| on_device(&all, name, &device)).unwrap();
        let ours = encoder.hidden(&batch, &mut None).unwrap().to_vec2::<f32>().unwrap();
        let theirs = (0..texts.len())
            .flat_map(|text| (0..lengths[text] as usize).map(move |token| (text * longest + token) * hidden))
            .map(|from| &their_hidden[from..from + hidden]);
        let off = peers::worst(ours.iter().flatten(), theirs.flatten());
        peers::row(&format!("encoder {name}: hidden states, {operators:?}"), peer, off, 1e-4);
        let ours = network.logits(&batch, None).unwrap().to_vec2::<f32>().unwrap();
        let off = peers::worst(ours.iter().flatten(), &their_logits);
        peers::row(&format!("encoder {name}: logits, {operators:?}"), peer, off, 1e-4);
    }
}

#[test]
fn hidden_states_and_logits_are_those_of_the_reference_implementation() {
    FAMILIES.iter().for_each(|name| check_parity(Path::new(FIXTURES), name, "transformers, kept"));
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn models_that_the_reference_implementation_writes_now_give_the_same() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    peers.run("make_bert.py", [folder.path(), Path::new("77")]);
    FAMILIES.iter().for_each(|name| check_parity(folder.path(), name, "transformers"));
}

fn examples() -> Examples {
    let texts = ["please reserve a cake", "when do you open today?", "you burnt the cake", "ten rolls"];
    Examples {
        labels: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
        texts: texts.map(str::to_owned).to_vec(),
        targets: vec![0, 1, 2, 0],
    }
}

/// Checks every parameter's gradient against differences of the loss, along the gradient and along a direction at random.
fn check_gradients(family: &str, mode: Mode, operators: Operators, settings: serde_json::Value) {
    let values: BTreeMap<_, _> = serde_json::from_value(settings).unwrap();
    let settings = BertSettings::read(&Settings::new(&values), mode, 5).unwrap();
    let (examples, device) = (examples(), Device::cpu());
    let base = Base::read(&Path::new(FIXTURES).join(family), None).unwrap();
    let method = BertMethod::new(&examples, &base, &settings, &device).unwrap();
    let learner = BertLearner::begin(&method, 0, operators).unwrap();
    let batch = [0, 1, 2, 3];
    // With B at zero nothing would be seen of A.
    for (name, parameter) in &learner.parameters {
        if name.ends_with("lora_b") || name.starts_with("head.out") {
            let values = Random::of(5, name, [0, 0]).normal(parameter.value.elem_count(), 0.3);
            let values = Tensor::from_vec(values, parameter.value.shape(), device.tensors()).unwrap();
            parameter.value.set(&values).unwrap();
        }
    }
    let gradients = learner.loss(&batch, None).unwrap().backward().unwrap();
    let loss = || f64::from(learner.loss(&batch, None).unwrap().to_scalar::<f32>().unwrap());
    let mut kinds = 0;
    for (name, parameter) in &learner.parameters {
        let at = parameter.value.as_tensor().copy().unwrap();
        let found = gradients.get(&parameter.value).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient: Vec<f32> = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let length = gradient.iter().map(|x| x * x).sum::<f32>().sqrt();
        let random = Random::of(6, name, [0, 0]).normal(gradient.len(), 1.0 / (gradient.len() as f64).sqrt());
        let along: Vec<f32> = gradient.iter().map(|x| x / length.max(1e-12)).collect();
        for (what, direction) in [("along the gradient", along), ("at random", random)] {
            let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let moved = |by: f64| {
                let step = Tensor::from_slice(&direction, at.shape(), device.tensors()).unwrap();
                parameter.value.set(&(&at + (step * by).unwrap()).unwrap()).unwrap();
                loss()
            };
            // Small enough for the curvature, large enough for single precision.
            let step = 4e-3;
            let found = (moved(step) - moved(-step)) / (2.0 * step);
            parameter.value.set(&at).unwrap();
            let error = (found - expected).abs();
            assert!(error < 3e-4 + 0.02 * expected.abs(), "{family} {name} {what}: {found}, expected {expected}");
        }
        if name.ends_with("key.bias") {
            assert!(length < 1e-4, "{name}: {length}");
        } else {
            assert!(length > 1e-4, "{name}: nothing to check, {length}");
            kinds += 1;
        }
    }
    assert_eq!(kinds + if mode == Mode::Full { 2 } else { 0 }, learner.parameters.len());
}

#[test]
fn gradients_of_every_parameter_are_those_that_finite_differences_say() {
    let all = serde_json::json!({"lora_rank": 3, "lora_targets": ["query", "key", "value", "output"]});
    for operators in [Operators::Fused, Operators::Composed] {
        check_gradients("bert", Mode::Full, operators, serde_json::json!({}));
        check_gradients("bert", Mode::Lora, operators, all.clone());
    }
    check_gradients("roberta", Mode::Full, Operators::Fused, serde_json::json!({"pooling": "mean"}));
    check_gradients("distilbert", Mode::Full, Operators::Fused, serde_json::json!({}));
}

#[test]
fn a_parameter_that_the_loss_does_not_reach_is_named_at_the_first_step() {
    let values = BTreeMap::new();
    let settings = BertSettings::read(&Settings::new(&values), Mode::Full, 5).unwrap();
    let (examples, device) = (examples(), Device::cpu());
    let base = Base::read(&Path::new(FIXTURES).join("bert"), None).unwrap();
    let method = BertMethod::new(&examples, &base, &settings, &device).unwrap();
    let at = |step| StepAt { phase: 0, step, planned: 10 };
    BertLearner::begin(&method, 0, Operators::Fused).unwrap().step(&[0, 1], at(0)).unwrap();

    let mut learner = BertLearner::begin(&method, 0, Operators::Fused).unwrap();
    let cut_off = "layers.1.value.weight";
    learner.network = Network::of(&base.config, Pooling::Cls, None, Operators::Fused, |name| {
        let value = learner.parameters[name].value.as_tensor();
        Ok(if name == cut_off { value.detach() } else { value.clone() })
    })
    .unwrap();
    let error = learner.step(&[0, 1], at(0)).unwrap_err();
    assert_eq!(error.context("parameter"), Some(cut_off), "{error}");
}
