//! The tensors that a decoder has, from its configuration alone.

use super::{adapter::Module, config::DecoderConfig};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The table of embeddings, which may be the output layer too.
    Embeddings,
    Output,
    Query,
    Key,
    Value,
    /// The three before in one matrix, as some families' files have them.
    Heads,
    AttentionOutput,
    Gate,
    Up,
    Down,
    Norm,
    Bias,
}

/// A tensor by the name that Hugging Face's files give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The number of its layer, if it is in one.
    pub(crate) layer: Option<usize>,
    pub(crate) shape: Vec<usize>,
}

impl TensorSpec {
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().map(|size| *size as u64).product()
    }
}

/// All tensors of a decoder.
pub(crate) fn tensors(config: &DecoderConfig) -> Vec<TensorSpec> {
    let (hidden, size) = (config.hidden, config.head_size);
    let whole = |name: &str, role, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        role,
        layer: None,
        shape: shape.to_vec(),
    };
    let mut all = vec![whole("model.embed_tokens.weight", Role::Embeddings, &[config.vocabulary, hidden])];
    for layer in 0..config.layers() {
        let mut add = |part: &str, kind: &str, role, shape: &[usize]| {
            let name = format!("model.layers.{layer}.{part}.{kind}");
            all.push(TensorSpec { name, role, layer: Some(layer), shape: shape.to_vec() });
        };
        let behind = ["pre_feedforward_layernorm", "post_feedforward_layernorm"];
        let behind = behind.into_iter().filter(|_| config.post_norms);
        for norm in ["input_layernorm", "post_attention_layernorm"].into_iter().chain(behind) {
            add(norm, "weight", Role::Norm, &[hidden]);
        }
        if config.head_norms {
            for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                add(norm, "weight", Role::Norm, &[size]);
            }
        }
        for module in Module::ALL {
            let (role, biased) = match module {
                Module::Query => (Role::Query, config.attention_bias),
                Module::Key => (Role::Key, config.attention_bias),
                Module::Value => (Role::Value, config.attention_bias),
                Module::Output => (Role::AttentionOutput, config.output_bias),
                Module::Gate => (Role::Gate, config.feed_forward_bias),
                Module::Up => (Role::Up, config.feed_forward_bias),
                Module::Down => (Role::Down, config.feed_forward_bias),
            };
            let shape = module.shape(config);
            add(module.path(), "weight", role, &shape);
            if biased {
                add(module.path(), "bias", Role::Bias, &shape[..1]);
            }
        }
    }
    all.push(whole("model.norm.weight", Role::Norm, &[hidden]));
    if !config.tied {
        all.push(whole("lm_head.weight", Role::Output, &[config.vocabulary, hidden]));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Mutex};

    use candle_core::Device;
    use hybrid_core::Result;

    use super::*;
    use crate::decoder::{
        files::{ModelFiles, Stored, Weights},
        network::Network,
    };

    /// Weights that write down what is asked of them.
    #[derive(Debug)]
    struct Asked(Box<dyn Weights>, Mutex<Vec<(String, Vec<usize>)>>);

    impl Weights for Asked {
        fn bytes(&self, name: &str) -> u64 {
            self.0.bytes(name)
        }

        fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored> {
            self.1.lock().unwrap().push((name.to_owned(), shape.to_vec()));
            self.0.take(name, shape, device)
        }
    }

    #[test]
    fn the_network_reads_what_a_configuration_says_that_it_has() {
        let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder"));
        let folders = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path());
        for folder in folders.filter(|path| path.join("config.json").is_file()) {
            let ModelFiles { config, weights, .. } = ModelFiles::open(&folder).unwrap();
            let asked = Asked(weights, Mutex::default());
            Network::read(config.clone(), &asked, &Device::Cpu).unwrap();
            let mut asked = asked.1.into_inner().unwrap();
            let mut told: Vec<_> = tensors(&config).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
            asked.sort();
            told.sort();
            assert_eq!(asked, told, "{}", folder.display());
        }
    }
}
