//! Adapters on chosen rows, and the pass that training takes.

use std::collections::BTreeMap;

use super::*;
use crate::{
    decoder::{
        adapter::{Adapter, LoraConfig, Matrices, Module, Pair, Place, Worn},
        config::DecoderConfig,
        network::Sequences,
    },
    random::Random,
    tensors::Array,
};

/// Matrices of which neither is zero, on every module.
pub(crate) fn matrices(base: &DecoderConfig, seed: u64) -> Matrices {
    let config =
        LoraConfig { rank: 3, alpha: 6.0, rank_stabilized: false, dropout: 0.0, modules: Module::ALL.to_vec() };
    let mut pairs = BTreeMap::new();
    for layer in 0..base.layers() {
        for module in Module::ALL {
            let [output, input] = module.shape(base);
            let mut random = Random::of(seed, module.path(), [layer as u64, 0]);
            let mut matrix = |shape: [usize; 2]| Array::f32(shape, random.normal(shape[0] * shape[1], 0.2));
            pairs.insert(Place { layer, module }, Pair { a: matrix([3, input]), b: matrix([output, 3]) });
        }
    }
    Matrices { config, pairs }
}

fn alone(network: &Network, tokens: &[u32], adapter: Option<&Adapter>) -> Vec<Vec<f32>> {
    network.forward(&mut [Part { tokens, cache: &mut network.cache(128), wanted: Wanted::All, adapter }]).unwrap()
}

#[test]
fn each_sequence_wears_its_own_adapter_beside_the_others() {
    let files = ModelFiles::open(&fixture("qwen3")).unwrap();
    let network = network(&files);
    let tokens = Expected::read(&fixture("qwen3")).tokens;
    let adapters = [1, 2].map(|seed| Adapter::on(&matrices(&files.config, seed), Device::cpu().tensors()).unwrap());
    let worn = [None, Some(&adapters[0]), Some(&adapters[1]), None];
    let expected: Vec<_> = worn.iter().flat_map(|adapter| alone(&network, &tokens[..9], *adapter)).collect();
    let mut caches: Vec<_> = worn.iter().map(|_| network.cache(16)).collect();
    let parts = worn.iter().zip(&mut caches);
    let part = |(adapter, cache): (&Option<_>, _)| Part {
        tokens: &tokens[..9],
        cache,
        wanted: Wanted::All,
        adapter: *adapter,
    };
    let together = network.forward(&mut parts.map(part).collect::<Vec<_>>()).unwrap();
    for (row, (ours, theirs)) in together.iter().zip(&expected).enumerate() {
        assert_near(ours, theirs, 1e-4, &format!("row {row}"));
    }
    let difference = expected[0].iter().zip(&expected[9]).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
    assert!(difference > 0.1, "the adapter changes nothing: {difference}");
    let zero = expected[9].iter().zip(&expected[18]).all(|(one, other)| one == other);
    assert!(!zero, "both adapters are one");
}

#[test]
fn the_pass_without_a_cache_reads_as_the_one_with_it() {
    for name in FAMILIES {
        let files = ModelFiles::open(&fixture(name)).unwrap();
        let network = network(&files);
        let tokens = Expected::read(&fixture(name)).tokens;
        let adapter = Adapter::on(&matrices(&files.config, 3), Device::cpu().tensors()).unwrap();
        let sequences = [&tokens[..], &tokens[5..9], &tokens[20..]];
        let expected: Vec<_> = sequences.iter().flat_map(|tokens| alone(&network, tokens, Some(&adapter))).collect();
        let whole = Sequences::new(sequences, &files.config.windows, Device::cpu().tensors()).unwrap();
        let worn = vec![Worn { rows: 0..whole.tokens().len(), adapter: &adapter, dropout: None }];
        let pass = network.pass(&whole, worn).unwrap();
        let mut x = network.enter(&whole).unwrap();
        for at in 0..files.config.layers() {
            x = network.through(at, x, &pass).unwrap();
        }
        let logits = network.leave(&x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logits.len(), expected.len());
        for (row, (ours, theirs)) in logits.iter().zip(&expected).enumerate() {
            assert_near(ours, theirs, 1e-4, &format!("{name}, row {row}"));
        }
    }
}
