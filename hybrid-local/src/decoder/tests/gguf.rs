//! GGUF files beside the folders that they were made of, and beside llama.cpp.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use hybrid_core::Result;
use safetensors::SafeTensors;
use serde_json::json;

use super::{super::files::Weights, *};
use crate::decoder::{
    config::{DecoderConfig, Family},
    rope::Scaling,
    tokens::Tokens,
};

const TEXTS: [&str; 6] = [
    "ten rolls, 1234 Brötchen!",
    "<|im_start|>user\n I'm  here\n\n",
    "<think>a</think> B\u{308}ö",
    "\t漢字 🥐",
    "<|user|>\n when do you <s> open<|end|>\n<|assistant|>\n",
    "<bos><start_of_turn>user\n wann?  <end_of_turn>\n",
];

/// A model whose tensors can be written as blocks.
pub(super) struct Source {
    pub(super) config: DecoderConfig,
    /// By the names of Hugging Face's files.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// The name of the fixture whose tokenizer it has.
    tokenizer: &'static str,
}

impl Source {
    /// A fixture; of the families whose GGUF files have no windows, seeing everything.
    pub(super) fn fixture(name: &'static str) -> Self {
        let mut config = ModelFiles::open(&fixture(name)).unwrap().config;
        if !matches!(config.family, Family::Gemma2 | Family::Gemma3 | Family::Phi3) {
            config.windows.fill(None);
        }
        // GGUF files do not say it.
        config.query_scale = (config.head_size as f64).powf(-0.5);
        let bytes = fs::read(fixture(name).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| {
            let view = file.tensor(name).unwrap();
            let halves = view.data().as_chunks().0.iter();
            let values: Vec<f32> = halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect();
            Tensor::from_vec(values, view.shape(), &Device::Cpu).unwrap()
        };
        let tensors = file.names().into_iter().map(|name| (name.to_owned(), tensor(name))).collect();
        Self { config, tensors, tokenizer: name }
    }

    /// A model with rows long enough for blocks of 256 numbers.
    fn wide() -> Self {
        let mut source = Self::fixture("qwen3");
        let config = &mut source.config;
        (config.hidden, config.intermediate, config.head_size) = (256, 512, 64);
        (config.rotary_size, config.query_scale) = (64, 0.125);
        let (hidden, wide, size) = (256, 512, 64);
        let (queries, keys) = (config.query_size(), config.key_value_size());
        let mut state = 1u64;
        for (name, tensor) in &mut source.tensors {
            let shape = match name.rsplit('.').nth(1).unwrap() {
                "embed_tokens" => vec![tensor.dim(0).unwrap(), hidden],
                "q_proj" => vec![queries, hidden],
                "k_proj" | "v_proj" => vec![keys, hidden],
                "o_proj" => vec![hidden, queries],
                "gate_proj" | "up_proj" => vec![wide, hidden],
                "down_proj" => vec![hidden, wide],
                "q_norm" | "k_norm" => vec![size],
                _ => vec![hidden],
            };
            let mut draw = || {
                // xorshift64, Marsaglia 2003; the sum of four draws is near enough to a normal one.
                let mut next = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 40) as f32 / (1 << 24) as f32 - 0.5
                };
                (next() + next() + next() + next()) * if shape.len() == 1 { 0.2 } else { 0.12 }
                    + if shape.len() == 1 { 1.0 } else { 0.0 }
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw()).collect();
            *tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        }
        source
    }

    fn architecture(&self) -> &'static str {
        match self.config.family {
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::Llama | Family::Mistral => "llama",
            Family::Phi3 => "phi3",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    fn metadata(&self) -> BTreeMap<String, Value> {
        let (config, architecture) = (&self.config, self.architecture());
        let number = |value: usize| Value::U32(value as u32);
        let text = |text: &str| Value::String(text.to_owned());
        let mut all: BTreeMap<String, Value> = [
            ("context_length", number(config.context)),
            ("embedding_length", number(config.hidden)),
            ("block_count", number(config.layers())),
            ("feed_forward_length", number(config.intermediate)),
            ("attention.head_count", number(config.heads)),
            ("attention.head_count_kv", number(config.key_value_heads)),
            ("attention.key_length", number(config.head_size)),
            ("attention.value_length", number(config.head_size)),
            ("attention.layer_norm_rms_epsilon", Value::F32(config.norm_epsilon as f32)),
            ("rope.freq_base", Value::F32(config.rope.theta as f32)),
            ("rope.dimension_count", number(config.rotary_size)),
        ]
        .map(|(key, value)| (format!("{architecture}.{key}"), value))
        .into();
        if let Some(window) = config.windows[0] {
            all.insert(format!("{architecture}.attention.sliding_window"), number(window));
        }
        if config.family == Family::Gemma3 {
            let layers = config.windows.iter().position(Option::is_none).unwrap() + 1;
            all.insert("gemma3.attention.sliding_window_pattern".to_owned(), number(layers));
        }
        for (name, cap) in [("attn", config.score_cap), ("final", config.logit_cap)] {
            let key = format!("{architecture}.{name}_logit_softcapping");
            all.extend(cap.map(|cap| (key, Value::F32(cap as f32))));
        }
        match &config.rope.scaling {
            Scaling::Long { original_context, attention_factor, .. } => {
                let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
                all.insert(key("original_context_length"), number(*original_context));
                all.insert(key("attn_factor"), Value::F32(*attention_factor as f32));
            }
            Scaling::Linear { factor } => {
                all.insert(format!("{architecture}.rope.scaling.type"), text("linear"));
                all.insert(format!("{architecture}.rope.scaling.factor"), Value::F32(*factor as f32));
            }
            Scaling::Yarn { factor, original_context, .. } => {
                all.insert(format!("{architecture}.rope.scaling.type"), text("yarn"));
                all.insert(format!("{architecture}.rope.scaling.factor"), Value::F32(*factor as f32));
                let original = format!("{architecture}.rope.scaling.original_context_length");
                all.insert(original, number(*original_context));
            }
            _ => {}
        }
        all.insert("general.architecture".to_owned(), text(architecture));
        // llama.cpp looks for the family of a tokenizer there.
        all.insert("general.name".to_owned(), text(if architecture == "phi3" { "phi-3 tiny" } else { "tiny" }));

        let bytes = fs::read(fixture(self.tokenizer).join("tokenizer.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let vocabulary = file["model"]["vocab"].as_object().unwrap();
        let mut tokens: BTreeMap<u64, (String, i32)> =
            vocabulary.iter().map(|(token, id)| (id.as_u64().unwrap(), (token.clone(), 1))).collect();
        for added in file["added_tokens"].as_array().unwrap() {
            let kind = if added["special"].as_bool().unwrap() { 3 } else { 4 };
            tokens.insert(added["id"].as_u64().unwrap(), (added["content"].as_str().unwrap().to_owned(), kind));
        }
        let merges = file["model"]["merges"].as_array().unwrap().iter();
        let merges = merges.map(|pair| text(&format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())));
        let pieces = file["model"]["byte_fallback"] == true;
        if pieces {
            for (token, kind) in tokens.values_mut() {
                *kind = match token.as_str() {
                    "<unk>" => 2,
                    token if token.starts_with("<0x") => 6,
                    _ => *kind,
                };
            }
            // The earlier a piece, the better.
            let scores = tokens.iter().map(|(id, (_, kind))| if *kind == 1 { -(*id as f32) } else { 0.0 });
            let prefixed = file["normalizer"]["type"] == "Sequence";
            all.insert("tokenizer.ggml.scores".to_owned(), Value::Array(scores.map(Value::F32).collect()));
            all.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(prefixed));
            let unknown = tokens.iter().find(|(_, (_, kind))| *kind == 2).unwrap().0;
            all.insert("tokenizer.ggml.unknown_token_id".to_owned(), number(*unknown as usize));
        }
        let pre = if self.architecture() == "llama" { "llama-bpe" } else { "qwen2" };
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(fixture(self.tokenizer).join("config.json")).unwrap()).unwrap();
        all.extend(
            [
                ("model", text(if pieces { "llama" } else { "gpt2" })),
                ("pre", text(if pieces { "default" } else { pre })),
                ("tokens", Value::Array(tokens.values().map(|(token, _)| text(token)).collect())),
                ("token_type", Value::Array(tokens.values().map(|(_, kind)| Value::I32(*kind)).collect())),
                ("merges", Value::Array(merges.collect())),
                ("eos_token_id", number(config["eos_token_id"].as_u64().unwrap() as usize)),
            ]
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
            .into_iter()
            .filter(|(key, _)| !pieces || key != "tokenizer.ggml.merges"),
        );
        all.insert("tokenizer.chat_template".to_owned(), text("{{ messages[0].content }}"));
        all
    }

    /// The tensors by the names and in the order of a GGUF file.
    fn blocks(&self, kind: GgmlDType) -> Vec<(String, QTensor)> {
        let names = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers.", "blk."),
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("self_attn.qkv_proj", "attn_qkv"),
            ("mlp.gate_up_proj", "ffn_up"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
            ("post_attention_layernorm", if self.config.post_norms { "post_attention_norm" } else { "ffn_norm" }),
        ];
        let size = self.config.head_size;
        let mut blocks = Vec::new();
        for (name, tensor) in &self.tensors {
            let mut tensor = tensor.clone();
            if self.architecture() == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
                let shape = tensor.dims().to_vec();
                let rest: usize = shape[1..].iter().product();
                let heads = tensor.reshape((shape[0] / size, 2, size / 2, rest)).unwrap();
                tensor = heads.transpose(1, 2).unwrap().contiguous().unwrap().reshape(shape).unwrap();
            }
            let theirs = names.iter().fold(name.clone(), |name, (ours, theirs)| name.replace(ours, theirs));
            if theirs.ends_with("norm.weight") {
                tensor = (tensor + f64::from(self.config.norm_offset)).unwrap();
            }
            let kind = if tensor.rank() == 1 { GgmlDType::F32 } else { kind };
            blocks.push((theirs, QTensor::quantize(&tensor, kind).unwrap()));
        }
        if let Scaling::Llama3 { .. } = self.config.rope.scaling {
            let mut plain = self.config.rope.clone();
            plain.scaling = Scaling::None;
            let pairs = plain.frequencies(size / 2, 1).into_iter().zip(self.config.rope.frequencies(size / 2, 1));
            let divisors: Vec<f32> = pairs.map(|(plain, scaled)| plain / scaled).collect();
            let divisors = Tensor::from_vec(divisors, size / 2, &Device::Cpu).unwrap();
            blocks.push(("rope_freqs.weight".to_owned(), QTensor::quantize(&divisors, GgmlDType::F32).unwrap()));
        }
        if let Scaling::Long { short, long, .. } = &self.config.rope.scaling {
            for (name, divisors) in [("short", short), ("long", long)] {
                let divisors = Tensor::from_vec(divisors.clone(), divisors.len(), &Device::Cpu).unwrap();
                let divisors = QTensor::quantize(&divisors, GgmlDType::F32).unwrap();
                blocks.push((format!("rope_factors_{name}.weight"), divisors));
            }
        }
        blocks
    }

    pub(super) fn write(&self, path: &Path, kind: GgmlDType, changes: impl Fn(&mut BTreeMap<String, Value>)) {
        let (mut metadata, blocks) = (self.metadata(), self.blocks(kind));
        changes(&mut metadata);
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let blocks: Vec<_> = blocks.iter().map(|(name, block)| (name.as_str(), block)).collect();
        let mut file = BufWriter::new(File::create(path).unwrap());
        gguf_file::write(&mut file, &metadata, &blocks).unwrap();
        file.flush().unwrap();
    }
}

/// Tensors widened after they were read.
#[derive(Debug)]
struct Widened(Box<dyn Weights>);

impl Weights for Widened {
    fn bytes(&self, name: &str) -> u64 {
        self.0.bytes(name)
    }

    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<super::super::files::Stored> {
        Ok(super::super::files::Stored::Dense(self.0.take(name, shape, device)?.dense(device)?))
    }
}

fn logits(network: &Network, tokens: &[u32]) -> Vec<Vec<f32>> {
    read(network, tokens, &mut network.cache(128), Wanted::All)
}

#[test]
fn a_file_gives_what_the_folder_gives_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let (source, path) = (Source::fixture(name), folder.path().join("tiny.gguf"));
        source.write(&path, GgmlDType::F32, |_| {});
        let whole = ModelFiles::open(&fixture(name)).unwrap();
        let theirs = Network::read(source.config.clone(), &*whole.weights, &Device::Cpu).unwrap();
        let ours = ModelFiles::open(folder.path()).unwrap();
        let tokens = Expected::read(&fixture(name)).tokens;
        let off = distance(&logits(&network(&ours), &tokens), &logits(&theirs, &tokens));
        assert!(off < 1e-5, "{name}: {off}");
        assert_eq!(ours.defaults.ends, whole.defaults.ends);
        let [ours, theirs] = [ours.tokenizer, whole.tokenizer].map(|tokens| Tokens::new(tokens, 1_000).unwrap());
        for text in TEXTS {
            let tokens = ours.encode(text).unwrap();
            assert_eq!(tokens, theirs.encode(text).unwrap(), "{name}: {text:?}");
            assert_eq!(ours.decode(&tokens).unwrap(), theirs.decode(&tokens).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn blocks_give_nearly_what_their_numbers_give_in_single_precision() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("tiny.gguf");
    let (narrow, wide) = (Source::fixture("llama"), Source::wide());
    // Products take their inputs to whole numbers of eight bits, and random weights make much of little; a wrong block is off by one.
    for (source, kind) in [
        (&narrow, GgmlDType::F16),
        (&narrow, GgmlDType::Q8_0),
        (&narrow, GgmlDType::Q4_0),
        (&wide, GgmlDType::Q8_0),
        (&wide, GgmlDType::Q4_0),
        (&wide, GgmlDType::Q4K),
        (&wide, GgmlDType::Q5K),
        (&wide, GgmlDType::Q6K),
    ] {
        source.write(&path, kind, |_| {});
        let files = ModelFiles::open(&path).unwrap();
        let tokens: Vec<u32> = (3..43).collect();
        let ours = logits(&network(&files), &tokens);
        let bytes = Network::bytes(&files.config, &*files.weights);
        let widened = Network::read(files.config, &Widened(files.weights), &Device::Cpu).unwrap();
        let off = distance(&ours, &logits(&widened, &tokens));
        eprintln!("{kind:?}: {off:.5} off, {bytes} bytes");
        assert!(off < 0.08, "{kind:?}: {off}");
        let single: usize = source.tensors.values().map(|tensor| 4 * tensor.elem_count()).sum();
        assert!(kind == GgmlDType::F16 || bytes < single as u64 * 2 / 3, "{kind:?}: {bytes} of {single}");
    }
}

#[test]
fn what_the_way_back_unpacks_whole_is_the_tensor_librarys_blocks_alone() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("tiny.gguf");
    let source = Source::fixture("llama");
    let unpacked = |kind: GgmlDType| {
        source.write(&path, kind, |_| {});
        let files = ModelFiles::open(&path).unwrap();
        Network::unpacked_bytes(&files.config, &*files.weights, &Device::Cpu)
    };
    assert_eq!([GgmlDType::F16, GgmlDType::Q8_0].map(unpacked), [0, 0]);
    let largest = source.config.vocabulary * source.config.hidden;
    assert_eq!(unpacked(GgmlDType::Q5_0), 4 * largest as u64);
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn llama_cpp_reads_the_same_of_a_file() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let narrow = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
        .map(|name| (Source::fixture(name), vec![GgmlDType::F32, GgmlDType::Q8_0, GgmlDType::Q4_0]));
    let narrow = narrow.map(|(mut source, kinds)| {
        // llama.cpp lets this family see everything.
        if source.config.family == Family::Phi3 {
            source.config.windows.fill(None);
        }
        (source, kinds)
    });
    let wide = (Source::wide(), vec![GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K]);
    for (source, kinds) in narrow.into_iter().chain([wide]) {
        for kind in kinds {
            source.write(&path, kind, |_| {});
            let files = ModelFiles::open(&path).unwrap();
            let tokens: Vec<u32> = (3..43).collect();
            let ours = logits(&network(&files), &tokens);
            let answer = peers.ask("llama_logits.py", &json!({"path": path, "tokens": tokens, "texts": TEXTS}));
            let theirs: Vec<Vec<f32>> = serde_json::from_value(answer["logits"].clone()).unwrap();
            let widened = Network::read(files.config, &Widened(files.weights), &Device::Cpu).unwrap();
            let exact = logits(&widened, &tokens);
            let [off, own, peer] = [(&ours, &theirs), (&ours, &exact), (&theirs, &exact)].map(|(a, b)| distance(a, b));
            let name = source.tokenizer;
            let what = format!("decoder {name} from GGUF: logits of {kind:?}");
            if kind == GgmlDType::F32 {
                // llama.cpp looks GELU up in a table of half precision.
                let most = if source.config.family.is_gemma() { 1e-3 } else { 2e-4 };
                peers::row(&format!("{what}, as a share"), "llama.cpp", off, most);
            } else {
                // Both take inputs of products to eight bits, each in its own way. What counts is how far that leads from the file's numbers;
                // a wrong block would lead far away.
                assert!(peer < 0.05, "{name} {kind:?}: {own}, {peer}, {off}");
                let what = format!("{what} from the file's numbers, as a share; llama.cpp's are {peer:.1e} off");
                peers::row(&what, "the file", own, 1.1 * peer + 0.002);
            }
            let tokenizer = Tokens::new(files.tokenizer, 1_000).unwrap();
            // llama.cpp composes no characters, as the tokenizer of Qwen's own does.
            for (text, theirs) in
                TEXTS.iter().zip(answer["texts"].as_array().unwrap()).filter(|(text, _)| !text.contains('\u{308}'))
            {
                assert_eq!(json!(tokenizer.encode(text).unwrap()), *theirs, "{name}: {text:?}");
            }
        }
    }
}
