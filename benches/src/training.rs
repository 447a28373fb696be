//! Training of a decoder on the processor beside torch and PEFT: each side a process of its own, which takes a step when it is asked.

use std::{
    fs,
    io::stdin,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use hybrid_core::{
    ArtifactStore, BaseModel, Cancellation, DatasetRef, Document, ProgressEvent, ProgressFn, SeededIds, Segment,
    SystemClock, TenantId, Timestamp, TrainPlan, TrainRun, Trainer, WriterId, memory::MemoryStore, segment_key,
};
use hybrid_local::{DecoderTrainer, Device, judgments_from_jsonl};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    must, noise, runtime, scratch,
    side::{Side, peak_mib},
};

/// What is trained: matrices beside the weights, or the weights.
pub const KINDS: [&str; 2] = ["lora", "full"];
/// What the program is called with to be our side.
pub const SIDE: &str = "--side";
/// Steps that our side takes at most.
const STEPS: usize = 100;

/// The sizes of a model with heads of 64, and of a step.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Sizes {
    /// Texts of a step.
    pub texts: usize,
    /// Tokens of a text.
    pub tokens: usize,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Columns of a row between layers.
    pub hidden: usize,
    /// Columns within the feed-forward.
    pub intermediate: usize,
    /// How many layers there are.
    pub layers: usize,
    /// Heads of each layer.
    pub heads: usize,
    /// Rank of the matrices.
    pub rank: usize,
}

impl Sizes {
    /// A model of 29.5 million numbers, and steps of four texts of 128 tokens.
    pub const SMALL: Self = Self {
        texts: 4,
        tokens: 128,
        vocabulary: 8_192,
        hidden: 512,
        intermediate: 1_376,
        layers: 8,
        heads: 8,
        rank: 16,
    };
}

/// What a step gives.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Step {
    /// Tokens a second.
    pub tokens: f64,
    /// The most memory that the process has had, MiB.
    pub peak_mib: f64,
}

/// Our side, as a process.
pub fn ours(kind: &str, sizes: Sizes, threads: usize) -> Side<Step> {
    let mut command = Command::new(must(std::env::current_exe()));
    command.arg(SIDE).arg(kind).arg(must(serde_json::to_string(&sizes)));
    Side::start(command.env("RAYON_NUM_THREADS", threads.to_string()))
}

/// torch and PEFT.
pub fn peer(python: &Path, kind: &str, sizes: Sizes, threads: usize) -> Side<Step> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/torch_training.py");
    let mut command = Command::new(python);
    command.arg(script).arg(kind).arg(must(serde_json::to_string(&sizes))).arg(threads.to_string());
    Side::start(&mut command)
}

/// Is our side: a trainer whose run waits after each step for the next line of input, and is cancelled when there is none.
pub fn run(kind: &str, sizes: Sizes) {
    let folder = scratch();
    let base = folder.path().join("base");
    write_model(&base, sizes);
    let runtime = runtime();
    let store = Arc::new(MemoryStore::default());
    let dataset = runtime.block_on(texts(&store, sizes));
    let (rank, method) = (sizes.rank, format!("decoder-{kind}"));
    let mut settings = json!({
        "batch_size": sizes.texts, "max_steps": STEPS, "epochs": STEPS, "hold_out": 0.0, "checkpoint_steps": 1_000_000,
        "learning_rate": 1e-4,
    });
    if kind == "lora" {
        settings["lora_rank"] = json!(rank);
        settings["lora_alpha"] = json!(2 * rank);
    }
    let plan = TrainPlan {
        model: must("measured".parse()),
        method,
        base: Some(BaseModel::Folder(base)),
        dataset,
        hyperparameters: settings.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        seed: 1,
    };
    let cancel = Cancellation::new();
    let (begun, stop) = (Mutex::new(None::<Instant>), cancel.clone());
    // Progress is reported after each of so few steps, on the thread that trains.
    let progress = move |_: ProgressEvent| {
        let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = *begun {
            let tokens = (sizes.texts * sizes.tokens) as f64 / begun.elapsed().as_secs_f64();
            println!("{}", must(serde_json::to_string(&Step { tokens, peak_mib: peak_mib() })));
        }
        if stdin().lines().next().is_none() {
            stop.cancel();
        }
        *begun = Some(Instant::now());
    };
    let run = TrainRun {
        store,
        scratch: folder.path().join("scratch"),
        progress: Arc::new(ProgressFn(progress)),
        cancel,
        clock: Arc::new(SystemClock),
    };
    must(fs::create_dir_all(&run.scratch));
    let ended = runtime.block_on(DecoderTrainer::new(Device::cpu()).train(&plan, &run));
    if let Err(error) = ended
        && !run.cancel.is_cancelled()
    {
        panic!("{error}");
    }
}

/// Texts of as many tokens as are wanted, their end among them: a byte is a token.
async fn texts(store: &MemoryStore, sizes: Sizes) -> DatasetRef {
    let text = |seed: usize| -> String {
        let letters = noise(sizes.tokens - 1, seed as u64 + 1);
        letters.iter().map(|byte| char::from(b'a' + byte % 26)).collect()
    };
    let lines: String = (0..sizes.texts).map(|seed| json!({"text": text(seed)}).to_string() + "\n").collect();
    let judgments = must(judgments_from_jsonl("texts", lines, &SeededIds::default(), Timestamp::UNIX_EPOCH));
    let (tenant, name) = (TenantId::single(), must("texts".parse()));
    let key = must(segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &must(WriterId::new("bench")), 0));
    must(store.create(&key, must(Segment { judgments }.encode())).await);
    must(DatasetRef::fix(store, &tenant, &name).await)
}

/// Writes a model of random weights that knows bytes, an end and nothing more, in Hugging Face layout.
fn write_model(folder: &Path, sizes: Sizes) {
    let Sizes { vocabulary, hidden, intermediate, layers, heads, .. } = sizes;
    must(fs::create_dir_all(folder));
    let write = |name: &str, text: Value| must(fs::write(folder.join(name), text.to_string()));
    write(
        "config.json",
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "eos_token_id": 256, "torch_dtype": "float32",
        }),
    );
    write("tokenizer_config.json", json!({"eos_token": "<|end|>"}));
    // Each byte is written as the character that such tokenizers have for it.
    let mut others = 256u32..;
    let symbol = |byte: u32| match byte {
        33..=126 | 161..=172 | 174..=255 => byte,
        _ => others.next().unwrap_or(byte),
    };
    let symbols: Vec<char> = (0..256).map(symbol).filter_map(char::from_u32).collect();
    let tokens: Map<String, Value> = symbols.iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    write(
        "tokenizer.json",
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{
                "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }],
            "pre_tokenizer": bytes, "decoder": bytes, "model": {"type": "BPE", "vocab": tokens, "merges": []},
        }),
    );

    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let wide = [("gate_proj", [intermediate, hidden]), ("up_proj", [intermediate, hidden])];
        let feed = wide.into_iter().chain([("down_proj", [hidden, intermediate])]);
        let feed = feed.map(|(name, shape)| (format!("mlp.{name}"), shape.to_vec()));
        let attention = ["q", "k", "v", "o"].map(|name| (format!("self_attn.{name}_proj"), vec![hidden, hidden]));
        let norms = ["input_layernorm", "post_attention_layernorm"].map(|name| (name.to_owned(), vec![hidden]));
        let all = feed.chain(attention).chain(norms);
        shapes.extend(all.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    // Uniform, with the deviation that the peer begins with.
    let value = |bytes: &[u8]| {
        let share = f32::from(u16::from_le_bytes([bytes[0], bytes[1]])) / f32::from(u16::MAX) - 0.5;
        share * 0.02 * 12f32.sqrt()
    };
    let filled = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
        let count = shape.iter().product::<usize>();
        let bytes: Vec<u8> = match shape.len() {
            1 => std::iter::repeat_n(1f32, count).flat_map(f32::to_le_bytes).collect(),
            _ => noise(2 * count, number as u64 + 1).chunks_exact(2).flat_map(|two| value(two).to_le_bytes()).collect(),
        };
        (name, shape, bytes)
    };
    let tensors: Vec<_> = shapes.into_iter().enumerate().map(filled).collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, must(TensorView::new(Dtype::F32, shape.clone(), bytes))));
    must(safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")));
}
