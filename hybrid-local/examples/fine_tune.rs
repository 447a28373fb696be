//! Fine-tunes a decoder on the bakery's judgments, and hands the adapter to every place that can serve it.
//!
//! ```text
//! cargo run --release -p hybrid-local --example fine_tune [BASE]
//! ```
//!
//! BASE is a model's folder in Hugging Face layout. Without one a tiny decoder with random weights stands in, so that all can be seen without a
//! download: it learns to answer in the form of the labels, and no more.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use hybrid_core::{
    ArtifactStore, BaseModel, CallContext, Cancellation, CandidateOutput, DatasetRef, Document, Error, IdSource,
    Judgment, JudgmentId, ProgressFn, RequestId, Result, SeededIds, Segment, ServedModel, SystemClock, TenantId,
    Timestamp, TrainPlan, TrainRun, Trainer, WriterId,
    memory::MemoryStore,
    segment_key,
    task::{ChatRequest, Sampling},
};
use hybrid_local::{AdapterFormat, DecoderLoader, DecoderTrainer, Device, LoraAdapter};
use serde_json::{Value, json};

const JUDGMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/bakery/first.jsonl");

#[tokio::main]
async fn main() -> Result<()> {
    let work = std::env::temp_dir().join("hybrid-fine-tune");
    let _ = fs::remove_dir_all(&work);
    let scratch = work.join("scratch");
    fs::create_dir_all(&scratch).map_err(|error| io(&scratch, error))?;
    let base = match std::env::args_os().nth(1) {
        Some(base) => PathBuf::from(base),
        None => tiny_base(&work.join("base"))?,
    };

    // The judgments, as a storefront would have captured them: what was asked, and what the head baker decided.
    let store = Arc::new(MemoryStore::default());
    let dataset = dataset(&*store, &read_judgments(&SeededIds::default())?).await?;
    let settings = json!({
        "epochs": 6, "batch_size": 8, "lora_rank": 16, "lora_alpha": 32, "learning_rate": 3e-3, "max_tokens": 512, "hold_out": 0.1,
    });
    let plan = TrainPlan {
        model: "bakery".parse()?,
        method: "decoder-lora".to_owned(),
        base: Some(BaseModel::Folder(base.clone())),
        dataset,
        hyperparameters: settings.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        seed: 1,
    };
    let run = TrainRun {
        store,
        scratch,
        progress: Arc::new(ProgressFn(|event: hybrid_core::ProgressEvent| {
            println!("{:>4} of {} {}: {}", event.done, event.total.unwrap_or_default(), event.unit, event.message);
        })),
        cancel: Cancellation::new(),
        clock: Arc::new(SystemClock),
    };
    let candidate = DecoderTrainer::new(Device::cpu()).train(&plan, &run).await?;
    println!("\n{} of {} judgments", candidate.architecture, candidate.examples);
    candidate.metrics.iter().for_each(|(name, value)| println!("  {name} {value:.4}"));

    // One adapter, every place that serves it; each export is read back and compared before it is handed out.
    let CandidateOutput::Files(files) = &candidate.output else { return Ok(()) };
    let folder = files.first().and_then(|file| file.path.parent()).unwrap_or(&work);
    let adapter = LoraAdapter::open(folder)?;
    println!("\nPEFT: {}", folder.display());
    for (format, name) in
        [(AdapterFormat::Mlx, "mlx"), (AdapterFormat::Gguf, "gguf"), (AdapterFormat::Merged, "merged")]
    {
        let paths = adapter.export(&base, format, &work.join(name))?;
        println!("{format:?}: {}", paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "));
    }

    let backend = DecoderLoader::new(Device::cpu()).open(&work.join("merged"), ServedModel::named("bakery")).await?;
    let cx = CallContext::new(TenantId::single(), RequestId::next(&SeededIds::new(2)));
    let sampling = Sampling { max_tokens: Some(12), ..Sampling::default() };
    for text in ["Ten rolls for Saturday, please.", "Wann macht ihr auf?"] {
        let started = Instant::now();
        let reply = backend.infer(&cx, ChatRequest { sampling: sampling.clone(), ..ChatRequest::user(text) }).await?;
        println!("{text:?} is answered {:?} in {:?}", reply.response.text(), started.elapsed());
    }
    Ok(())
}

fn io(path: &Path, error: std::io::Error) -> Error {
    Error::internal("fine-tune", "the file system refused").with("path", path.display()).with_source(error)
}

fn read_judgments(ids: &dyn IdSource) -> Result<Vec<Judgment>> {
    let path = Path::new(JUDGMENTS);
    let text = fs::read_to_string(path).map_err(|error| io(path, error))?;
    let judgment = |line: &str| {
        let row: Value = serde_json::from_str(line).map_err(|error| {
            Error::invalid("fine-tune", "a line is no JSON").with("path", path.display()).with_source(error)
        })?;
        Ok(Judgment {
            id: JudgmentId::next(ids),
            task: "classify".to_owned(),
            input: json!({"text": row["text"]}),
            decision: json!({"label": row["label"]}),
            answer: None,
            model: None,
            request: None,
            by: None,
            at: Timestamp::UNIX_EPOCH,
            tags: BTreeMap::new(),
        })
    };
    text.lines().map(judgment).collect()
}

async fn dataset(store: &dyn ArtifactStore, judgments: &[Judgment]) -> Result<DatasetRef> {
    let (tenant, name) = (TenantId::single(), "bakery".parse()?);
    let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("example")?, 0)?;
    store.create(&key, Segment { judgments: judgments.to_vec() }.encode()?).await?;
    DatasetRef::fix(store, &tenant, &name).await
}

/// Writes a decoder of bytes with random weights in Hugging Face layout.
fn tiny_base(folder: &Path) -> Result<PathBuf> {
    const TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";
    let (hidden, layers, wide, vocabulary) = (128, 4, 256, 258);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|error| io(&path, error))
    };
    fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "eos_token_id": 257, "torch_dtype": "float32",
    });
    write("config.json", config.to_string().as_bytes())?;
    write("tokenizer_config.json", json!({"eos_token": "<|end|>", "chat_template": TEMPLATE}).to_string().as_bytes())?;
    // Tokens are bytes, each written as the character that such tokenizers have for it.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256u32..;
    let symbol = |byte: u32| char::from_u32(if printable(byte) { byte } else { others.next().unwrap_or(byte) });
    let symbols: Vec<char> = (0..256).filter_map(symbol).collect();
    let tokens: BTreeMap<String, usize> =
        symbols.iter().enumerate().map(|(id, symbol)| (symbol.to_string(), id)).collect();
    let special = |(id, content)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let specials = [(256, "<|start|>"), (257, "<|end|>")].map(special);
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": specials, "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": tokens, "merges": []},
    });
    write("tokenizer.json", tokenizer.to_string().as_bytes())?;

    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(name, &[hidden]);
        }
        for name in ["self_attn.q_proj", "self_attn.o_proj"] {
            add(name, &[hidden, hidden]);
        }
        for name in ["self_attn.k_proj", "self_attn.v_proj"] {
            add(name, &[hidden / 2, hidden]);
        }
        for name in ["mlp.gate_proj", "mlp.up_proj"] {
            add(name, &[wide, hidden]);
        }
        add("mlp.down_proj", &[hidden, wide]);
    }
    let (mut header, mut data, mut state) = (serde_json::Map::new(), Vec::new(), 1u64);
    for (name, shape) in tensors {
        let from = data.len();
        let spread = if shape.len() == 1 { 0.0 } else { 0.2 };
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
            data.extend((f32::from(u8::from(spread == 0.0)) + spread * share).to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    write("model.safetensors", &file)?;
    Ok(folder.to_owned())
}
