//! Gradients beside finite differences, and training beside the reference implementation.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{
    Tensor, Var,
    quantized::{GgmlDType, QTensor},
};
use hybrid_core::{ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    base::Trainable,
    learner::{Gradients, Learner, initial},
    lessons::{Lesson, Sequence},
    settings::{DPO, FULL, LORA, TrainSettings, tests::settings},
};
use crate::{
    Device,
    decoder::{
        adapter::{Matrices, Module},
        files::{ModelFiles, Stored, Weights},
        network::Network,
    },
    ops::packed::Packed,
    peers::{self, Peers},
    random::Random,
    tensors::Array,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn open(name: &str) -> ModelFiles {
    ModelFiles::open(&Path::new(FIXTURES).join("decoder").join(name)).unwrap()
}

fn network(files: &ModelFiles, weights: &dyn Weights) -> Network {
    Network::read(files.config.clone(), weights, Device::cpu().tensors()).unwrap()
}

/// Lessons of one sequence, or of two.
fn lessons(vocabulary: usize, sequences: usize) -> Vec<Lesson> {
    let lesson = |number: u64| {
        let mut random = Random::of(11, "lesson", [number, 0]);
        let mut sequence = || {
            let length = 6 + (random.uniform() * 20.0) as usize;
            let tokens = (0..length).map(|_| (random.uniform() * vocabulary as f64) as u32).collect();
            Sequence { tokens, learnt: (0..length).map(|i| i > length / 3).collect() }
        };
        Lesson { sequences: (0..sequences).map(|_| sequence()).collect() }
    };
    (0..3).map(lesson).collect()
}

fn gradients(learner: &Learner<'_>) -> (f64, Gradients) {
    let mut gradients = Gradients::new();
    let count = learner.count(&[0, 1, 2]);
    let measure = learner.learn(&[0, 1, 2], count, [0, 0], &mut gradients).unwrap();
    (measure.mean(), gradients)
}

/// Compares the gradient of every kind of parameter, along a random direction, with what a small step that way changes.
fn check_gradients(learner: &mut Learner<'_>, name: &str, kinds: usize) {
    let (loss, gradients) = gradients(learner);
    assert!((learner.measure(&[0, 1, 2]).unwrap().mean() - loss).abs() < 1e-5, "{name}");
    let values = learner.values().unwrap();
    // One of each kind: the names differ in the layer's number alone.
    let kind = |name: &str| name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".");
    let mut seen = BTreeSet::new();
    for parameter in values.keys().rev().filter(|parameter| seen.insert(kind(parameter))) {
        let gradient = gradients[parameter].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Mostly along the gradient, so that there is something to see, but not quite.
        let size = (gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / gradient.len() as f64).sqrt();
        let noise = Random::of(5, parameter, [0, 0]).normal(gradient.len(), size);
        let direction: Vec<f32> = gradient.iter().zip(noise).map(|(g, noise)| g + noise).collect();
        let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let step = 4e-3 / along;
        let mut at = |step: f64| {
            let mut values = values.clone();
            let Array { shape, .. } = &values[parameter];
            let old = values[parameter].floats().unwrap().iter().zip(&direction);
            let moved = old.map(|(value, d)| (f64::from(*value) + step * f64::from(*d)) as f32).collect();
            values.insert(parameter.clone(), Array::f32(shape.clone(), moved));
            learner.set_values(values).unwrap();
            learner.measure(&[0, 1, 2]).unwrap().mean()
        };
        let (there, back) = (at(step), at(-step));
        let found = (there - back) / (2.0 * step);
        assert!((found / along - 1.0).abs() < 0.02, "{name}, {parameter}: {found} by steps, {along} by the way back");
    }
    learner.set_values(values).unwrap();
    assert_eq!(seen.len(), kinds, "{name}: {seen:?}");
}

#[test]
fn gradients_of_all_weights_are_those_of_finite_differences() {
    let settings = settings(FULL, &json!({})).unwrap();
    for (name, kinds) in
        [("llama", 11), ("llama-bias", 19), ("qwen2", 15), ("qwen3", 13), ("gemma2", 13), ("gemma3", 15), ("phi3", 12)]
    {
        let ModelFiles { config, weights, .. } = open(name);
        let weights = Trainable::new(weights);
        let network = Network::read(config.clone(), &weights, Device::cpu().tensors()).unwrap();
        let lessons = lessons(config.vocabulary, 1);
        let mut learner = Learner::of_network(&network, &config, &settings, &lessons, weights.variables()).unwrap();
        check_gradients(&mut learner, name, kinds);
    }
}

/// Matrices of which neither is zero.
fn matrices(files: &ModelFiles, settings: &TrainSettings) -> Matrices {
    let mut matrices = initial(settings.lora.as_ref().unwrap(), &files.config, 3);
    for (place, pair) in &mut matrices.pairs {
        let count = pair.b.shape.iter().product();
        pair.b = Array::f32(pair.b.shape.clone(), Random::of(4, &place.to_string(), [0, 0]).normal(count, 0.1));
    }
    matrices
}

#[test]
fn gradients_of_matrices_are_those_of_finite_differences() {
    for (method, sequences) in [(LORA, 1), (DPO, 2)] {
        let settings = settings(method, &json!({"lora_rank": 3})).unwrap();
        for name in ["llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3"] {
            let files = open(name);
            let lessons = lessons(files.config.vocabulary, sequences);
            let network = network(&files, &*files.weights);
            let start = matrices(&files, &settings);
            let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
            check_gradients(&mut learner, &format!("{method}, {name}"), 2 * Module::ALL.len());
        }
    }
}

#[test]
fn gradients_on_tapes_are_those_of_the_tensor_library() {
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let compare = |learner: &mut Learner<'_>, what: &str| {
        assert!(learner.taped, "{what}");
        let (loss, ours) = gradients(learner);
        let ours: BTreeMap<_, _> = ours.iter().map(|(name, gradient)| (name.clone(), flat(gradient))).collect();
        // On memory that was used before, which has the gradients found now.
        let (again, same) = gradients(learner);
        assert_eq!(loss, again, "{what}");
        assert!(same.iter().all(|(name, gradient)| flat(gradient) == ours[name]), "{what}");
        learner.taped = false;
        let (expected, theirs) = gradients(learner);
        assert!((loss - expected).abs() < 1e-5 * expected.abs(), "{what}: {loss} {expected}");
        assert!(ours.keys().eq(theirs.keys()), "{what}");
        for (name, theirs) in &theirs {
            let theirs = flat(theirs);
            let size = theirs.iter().map(|value| value.abs()).fold(0.0, f32::max);
            for (ours, theirs) in ours[name].iter().zip(&theirs) {
                assert!((ours - theirs).abs() <= 1e-4 * size, "{what}, {name}: {ours} {theirs}");
            }
        }
    };
    for (name, sequences) in [("llama-bias", 1), ("qwen2", 1), ("qwen3", 2), ("gemma3", 1), ("phi3", 1), ("mistral", 2)]
    {
        let files = open(name);
        let lessons = lessons(files.config.vocabulary, sequences);
        let values = json!({"lora_rank": 3, "lora_dropout": 0.3});
        let settings_of_matrices = settings(if sequences == 2 { DPO } else { LORA }, &values).unwrap();
        let plain = network(&files, &*files.weights);
        let start = matrices(&files, &settings_of_matrices);
        let mut learner = Learner::of_matrices(&plain, &files.config, &settings_of_matrices, &lessons, &start).unwrap();
        compare(&mut learner, &format!("{name}, matrices"));
        if sequences == 1 {
            let settings = settings(FULL, &json!({})).unwrap();
            let weights = Trainable::new(open(name).weights);
            let trained = network(&files, &weights);
            let mut learner =
                Learner::of_network(&trained, &files.config, &settings, &lessons, weights.variables()).unwrap();
            compare(&mut learner, &format!("{name}, all weights"));
        }
    }
}

#[test]
fn a_text_of_one_answer_behind_one_token_is_learnt_and_its_queries_are_proven_by_the_next() {
    let files = open("llama");
    let network = network(&files, &*files.weights);
    let lesson = |length: usize| {
        let tokens = (0..length as u32).map(|token| token + 7).collect();
        Lesson { sequences: vec![Sequence { tokens, learnt: (0..length).map(|i| i > 0).collect() }] }
    };
    let lessons = [lesson(2), lesson(9)];
    for method in [LORA, FULL] {
        let settings = settings(method, &json!({})).unwrap();
        let lora = settings.lora.as_ref().map(|lora| initial(lora, &files.config, 3));
        let weights = Trainable::new(open("llama").weights);
        let whole = Network::read(files.config.clone(), &weights, Device::cpu().tensors()).unwrap();
        let mut learner = match &lora {
            Some(start) => Learner::of_matrices(&network, &files.config, &settings, &lessons, start).unwrap(),
            None => Learner::of_network(&whole, &files.config, &settings, &lessons, weights.variables()).unwrap(),
        };
        for (step, batch) in [[0], [0], [1], [0], [1]].into_iter().enumerate() {
            learner.step(&[batch.to_vec()], step, 10).unwrap();
        }
    }
}

#[test]
fn layers_that_are_worked_out_anew_have_the_same_gradients() {
    let files = open("qwen3");
    let lessons = lessons(files.config.vocabulary, 1);
    let network = network(&files, &*files.weights);
    // With dropout, which has to fall on the same numbers.
    let of = |recompute: bool| {
        let settings = settings(LORA, &json!({"lora_dropout": 0.3, "recompute": recompute})).unwrap();
        let start = matrices(&files, &settings);
        let learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
        let (loss, gradients) = gradients(&learner);
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (loss, gradients.iter().map(|(name, gradient)| (name.clone(), flat(gradient))).collect::<BTreeMap<_, _>>())
    };
    assert_eq!(of(false), of(true));
}

/// What a model's linear layers are kept as: blocks, or the numbers that those blocks are.
#[derive(Clone, Copy, Debug)]
enum Form {
    Dense,
    Packed,
    Quantized,
}

#[derive(Debug)]
struct Blocks {
    weights: Box<dyn Weights>,
    form: Form,
}

impl Weights for Blocks {
    fn bytes(&self, name: &str) -> u64 {
        self.weights.bytes(name)
    }

    fn take(&self, name: &str, shape: &[usize], device: &candle_core::Device) -> Result<Stored> {
        let tensor = self.weights.take(name, shape, device)?.dense(device)?;
        if !name.contains("_proj.weight") {
            return Ok(Stored::Dense(tensor));
        }
        let blocks = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
        Ok(match self.form {
            Form::Dense => Stored::Dense(blocks.dequantize(device).unwrap()),
            Form::Packed => {
                let packed = Packed::pack(GgmlDType::Q8_0, &blocks.data().unwrap(), shape[0], shape[1]);
                Stored::Packed(packed.unwrap().into())
            }
            Form::Quantized => Stored::Quantized(blocks.into()),
        })
    }
}

#[test]
fn the_way_back_through_a_quantized_base_is_the_one_through_its_numbers() {
    let files = open("llama");
    let lessons = lessons(files.config.vocabulary, 1);
    let settings = settings(LORA, &json!({})).unwrap();
    let of = |form: Form| {
        let network = network(&files, &Blocks { weights: open("llama").weights, form });
        let start = matrices(&files, &settings);
        let learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
        gradients(&learner)
    };
    let (expected, theirs) = of(Form::Dense);
    for form in [Form::Packed, Form::Quantized] {
        let (loss, ours) = of(form);
        assert!((loss / expected - 1.0).abs() < 0.01, "{form:?}: {loss} {expected}");
        // The products take the rows to blocks of whole numbers, so they agree in direction and size, not digit by digit.
        for (name, theirs) in &theirs {
            let dot =
                |a: &Tensor, b: &Tensor| f64::from((a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            let ours = &ours[name];
            let (across, size) = (dot(ours, theirs), (dot(ours, ours), dot(theirs, theirs)));
            let cosine = across / (size.0 * size.1).sqrt();
            assert!(cosine > 0.98 && (size.0 / size.1 - 1.0).abs() < 0.2, "{form:?}, {name}: {cosine}, {size:?}");
        }
    }
}

#[test]
fn a_parameter_that_the_loss_does_not_reach_is_named_and_numbers_that_are_none_are_refused() {
    let files = open("llama");
    let lessons = lessons(files.config.vocabulary, 1);
    let full = settings(FULL, &json!({})).unwrap();
    let weights = Trainable::new(open("llama").weights);
    let network_of_all = network(&files, &weights);
    let mut parameters = weights.variables();
    parameters.insert("nobody".to_owned(), Var::new(&[1f32], Device::cpu().tensors()).unwrap());
    let mut learner = Learner::of_network(&network_of_all, &files.config, &full, &lessons, parameters).unwrap();
    let error = learner.step(&[vec![0]], 0, 10).unwrap_err();
    assert_eq!((error.kind(), error.context("parameter")), (ErrorKind::Internal, Some("nobody")), "{error}");

    let settings = settings(LORA, &json!({})).unwrap();
    let network = network(&files, &*files.weights);
    let mut start = initial(settings.lora.as_ref().unwrap(), &files.config, 3);
    // While B is zero nothing reaches A, and that is no fault; if A is zero too, nothing will ever be learnt.
    let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
    for step in 0..2 {
        learner.step(&[vec![0]], step, 10).unwrap();
    }
    let place = *start.pairs.keys().next().unwrap();
    let a = &mut start.pairs.get_mut(&place).unwrap().a;
    let (shape, count) = (a.shape.clone(), a.shape.iter().product());
    *a = Array::f32(shape.clone(), vec![0.0; count]);
    let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
    let error = learner.step(&[vec![0]], 0, 10).unwrap_err();
    assert_eq!(error.context("parameter"), Some(&*format!("{place}.lora_b")), "{error}");

    start.pairs.get_mut(&place).unwrap().a = Array::f32(shape, vec![f32::MAX; count]);
    let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
    let error = learner.step(&[vec![0]], 4, 10).unwrap_err();
    assert!(error.message().contains("not finite"), "{error}");
}

/// What the reference implementation made of training.
#[derive(Deserialize)]
struct Curves {
    rates: BTreeMap<String, f64>,
    decay: f64,
    beta: f64,
    lessons: Vec<Sequence>,
    pairs: Vec<Vec<Sequence>>,
    steps: Vec<Vec<usize>>,
    sft: Vec<f64>,
    dpo: Vec<f64>,
}

fn check_curves(folder: &Path, peer: &str) {
    for name in ["llama", "qwen3"] {
        let folder = folder.join(name);
        let curves: Curves = serde_json::from_slice(&std::fs::read(folder.join("curves.json")).unwrap()).unwrap();
        let start = Matrices::open(&folder).unwrap();
        let files = open(name);
        start.check(&files.config).unwrap();
        let network = network(&files, &*files.weights);
        let sft: Vec<_> = curves.lessons.iter().map(|lesson| Lesson { sequences: vec![lesson.clone()] }).collect();
        let dpo: Vec<_> = curves.pairs.iter().map(|pair| Lesson { sequences: pair.clone() }).collect();
        for (method, key, lessons, expected) in [(LORA, "sft", sft, curves.sft), (DPO, "dpo", dpo, curves.dpo)] {
            let mut values = json!({
                "lora_rank": start.config.rank, "lora_alpha": start.config.alpha,
                "lora_rank_stabilized": start.config.rank_stabilized, "learning_rate": curves.rates[key],
                "weight_decay": curves.decay, "schedule": "linear", "warm_up": 0.1,
            });
            if method == DPO {
                values["beta"] = json!(curves.beta);
            }
            // A step's lessons together, and in two batches whose gradients are added up.
            for size in [4, 2] {
                let settings: TrainSettings = settings(method, &values).unwrap();
                let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
                let mut worst = 0f64;
                for (step, (lessons, expected)) in curves.steps.iter().zip(&expected).enumerate() {
                    let batches: Vec<_> = lessons.chunks(size).map(<[usize]>::to_vec).collect();
                    let loss = learner.step(&batches, step, curves.steps.len()).unwrap().mean();
                    worst = worst.max((loss / expected - 1.0).abs());
                    assert!((loss / expected - 1.0).abs() < 1e-3, "{name}, {method}, step {step}: {loss}, {expected}");
                }
                let what = format!("training {name}: {method}, {size} lessons at a time, loss of 20 steps, as a share");
                peers::row(&what, peer, worst, 1e-3);
            }
        }
    }
}

#[test]
fn twenty_steps_follow_the_reference_implementation() {
    check_curves(&Path::new(FIXTURES).join("training"), "PEFT, kept");
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn twenty_steps_follow_the_reference_implementation_on_lessons_that_it_makes_now() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    peers.run("make_training.py", [&Path::new(FIXTURES).join("decoder"), folder.path(), Path::new("78")]);
    check_curves(folder.path(), "PEFT");
}

#[test]
fn preferences_begin_at_the_logarithm_of_two() {
    let files = open("qwen2");
    let lessons = lessons(files.config.vocabulary, 2);
    let network = network(&files, &*files.weights);
    let settings = settings(DPO, &Value::Object(Default::default())).unwrap();
    let start = initial(settings.lora.as_ref().unwrap(), &files.config, 3);
    let mut learner = Learner::of_matrices(&network, &files.config, &settings, &lessons, &start).unwrap();
    let before = learner.measure(&[0, 1, 2]).unwrap();
    assert!((before.mean() - 2f64.ln()).abs() < 1e-5 && before.count == 3.0, "{before:?}");
    for step in 0..12 {
        learner.step(&[vec![0, 1, 2]], step, 1_000).unwrap();
    }
    let after = learner.measure(&[0, 1, 2]).unwrap();
    assert!(after.mean() < before.mean() && after.preferred == 3.0, "{after:?}");
}
