//! Decoders with a head beside the reference implementation, and their gradients beside finite differences.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use serde_json::{Value, json};

use super::*;
use crate::{
    decoder::headed::{HeadBase, HeadLora, Hung, SCORE, read_head},
    learning::settings::Settings,
    random::Random,
    tensors::{Tensors, decode},
};

const LABELS: usize = 3;

/// Compares what a head makes of texts, together and each by itself, with what the reference made of them.
fn check_parity(folder: &Path, name: &str, peer: &str) {
    let path = folder.join(format!("{name}.safetensors"));
    let mut theirs = decode(&fs::read(&path).unwrap(), &path).unwrap().0;
    let head: Tensors = [(SCORE.to_owned(), theirs.remove(SCORE).unwrap())].into();
    let mut texts = Vec::new();
    for i in 0.. {
        let Some(tokens) = theirs.remove(&format!("tokens.{i}")) else { break };
        let length = tokens.shape[0];
        let tokens = crate::tensors::take_u32(&mut [("t".to_owned(), tokens)].into(), "t", &[length]).unwrap();
        texts.push((tokens, theirs[&format!("logits.{i}")].floats().unwrap().to_vec()));
    }
    assert_eq!(texts.len(), 4);
    // The family turns positions in another way in texts that are longer than it was first made for.
    let (short, long): (Vec<_>, Vec<_>) =
        texts.into_iter().partition(|(tokens, _)| name != "phi3" || tokens.len() <= 32);
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (texts, limit) in [(short, if name == "phi3" { 32 } else { 128 }), (long, 128)] {
        let (base, _) = HeadBase::open(&fixture(name), limit).unwrap();
        let network = base.network(&Device::cpu()).unwrap();
        let bytes = crate::tensors::encode(&head, None).unwrap();
        let head = read_head(&bytes, &path, [LABELS, base.hidden()], &Device::cpu()).unwrap();
        let logits = |texts: &[&[u32]]| network.logits(texts, &head, None, None).unwrap().to_vec2::<f32>().unwrap();
        let all: Vec<&[u32]> = texts.iter().map(|(tokens, _)| tokens.as_slice()).collect();
        let together = if all.is_empty() { Vec::new() } else { logits(&all) };
        for ((tokens, theirs), ours) in texts.iter().zip(&together) {
            found.extend_from_slice(ours);
            expected.extend_from_slice(theirs);
            assert_near(&logits(&[tokens])[0], ours, 1e-5, &format!("{name}, {} tokens alone", tokens.len()));
        }
    }
    let worst = peers::worst(&found, &expected);
    peers::row(&format!("decoder {name} with a head: logits of texts together"), peer, worst, 1e-4);
}

#[test]
fn heads_are_those_of_the_reference_implementation() {
    for name in FAMILIES {
        check_parity(&Path::new(FIXTURES).with_file_name("heads"), name, "transformers, kept");
    }
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn heads_are_those_of_the_reference_implementation_on_texts_that_it_draws_now() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    peers.run("make_heads.py", [Path::new(FIXTURES), folder.path(), Path::new("7")]);
    for name in FAMILIES {
        check_parity(folder.path(), name, "transformers");
    }
}

/// The loss of a few texts by a head, and its gradients by name.
fn loss(
    network: &crate::decoder::headed::Headed,
    hung: Option<&Hung>,
    variables: &BTreeMap<String, Var>,
) -> (f64, BTreeMap<String, Tensor>) {
    let texts: [&[u32]; 3] = [&[5, 9, 40, 3], &[7, 7, 12, 80, 33, 21, 9], &[60, 4]];
    let logits = network.logits(&texts, variables["head"].as_tensor(), hung, None).unwrap();
    let loss = (logits.sqr().unwrap().sum_all().unwrap() * 0.1).unwrap();
    let gradients = loss.backward().unwrap();
    let found = variables.iter().filter_map(|(name, var)| Some((name.clone(), gradients.get(var)?.clone())));
    (f64::from(loss.to_scalar::<f32>().unwrap()), found.collect())
}

#[test]
fn gradients_through_a_head_are_those_of_finite_differences() {
    let device = Device::cpu();
    for name in ["llama", "qwen3", "gemma3", "phi3"] {
        let (base, _) = HeadBase::open(&fixture(name), 64).unwrap();
        let values: BTreeMap<String, Value> = [("lora_rank".to_owned(), json!(3))].into();
        let lora = HeadLora::read(&Settings::new(&values)).unwrap();
        for whole in [true, false] {
            let (network, hung, mut variables) = if whole {
                let (network, variables) = base.trainable(&device).unwrap();
                (network, None, variables)
            } else {
                let (hung, variables) = base.matrices(&lora, 3, &device).unwrap();
                // Neither matrix zero.
                for (name, var) in variables.iter().filter(|(name, _)| name.ends_with("lora_b")) {
                    let draws = Random::of(4, name, [0, 0]).normal(var.elem_count(), 0.1);
                    var.set(&Tensor::from_vec(draws, var.shape(), var.device()).unwrap()).unwrap();
                }
                (base.network(&device).unwrap(), Some(hung), variables)
            };
            let head = Random::of(5, "head", [0, 0]).normal(LABELS * base.hidden(), 0.2);
            let head = Tensor::from_vec(head, (LABELS, base.hidden()), device.tensors()).unwrap();
            variables.insert("head".to_owned(), Var::from_tensor(&head).unwrap());
            let (_, gradients) = loss(&network, hung.as_ref(), &variables);
            // Every parameter but an output layer that nobody asks for has one.
            assert_eq!(gradients.len(), variables.len(), "{name}");
            for (parameter, gradient) in gradients.iter().filter(|(name, _)| !name.contains("layers.0")) {
                let var = &variables[parameter];
                let old = var.as_tensor().copy().unwrap();
                let along = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
                assert!(along > 0.0, "{name} {parameter}");
                let at = |step: f64| {
                    var.set(&(&old + (gradient * step).unwrap()).unwrap()).unwrap();
                    loss(&network, hung.as_ref(), &variables).0
                };
                let step = 2e-3 / along;
                let found = (at(step) - at(-step)) / (2.0 * step);
                var.set(&old).unwrap();
                assert!(
                    (found / along - 1.0).abs() < 0.03,
                    "{name} {parameter}: {found} by steps, {along} by the way back"
                );
            }
        }
    }
}
