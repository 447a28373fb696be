//! What the examples share: a decoder that has learnt nothing yet, and a run of the trainer.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{
    ArtifactStore, BaseModel, Cancellation, Candidate, CandidateOutput, DatasetRef, Document, Error, IdSource,
    Judgment, JudgmentId, ProgressEvent, ProgressFn, Result, Segment, SystemClock, TenantId, Timestamp, TrainPlan,
    TrainRun, Trainer, WriterId, memory::MemoryStore, segment_key,
};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};

/// Writes a conversation: each message between two marks.
const TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";
/// The marks.
pub(crate) const MARKS: [&str; 2] = ["<|start|>", "<|end|>"];

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) context: usize,
}

pub(crate) fn io(path: &Path, error: std::io::Error) -> Error {
    Error::internal("run example", "the file system refused").with("path", path.display()).with_source(error)
}

/// Writes a decoder of the Llama family with random weights in Hugging Face layout, with a tokenizer of so many tokens, of which the one
/// numbered `end` ends a text.
pub(crate) fn write_base(folder: &Path, tokenizer: &str, [vocabulary, end]: [usize; 2], sizes: Sizes) -> Result<()> {
    let Sizes { hidden, layers, heads, key_value_heads, intermediate, context } = sizes;
    fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| io(&path, error))
    };
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": end,
        "torch_dtype": "float32",
    });
    write("config.json", &config.to_string())?;
    write("tokenizer_config.json", &json!({"eos_token": MARKS[1], "chat_template": TEMPLATE}).to_string())?;
    write("tokenizer.json", tokenizer)?;

    let keys = hidden / heads * key_value_heads;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let shapes: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[hidden]),
            ("post_attention_layernorm", &[hidden]),
            ("self_attn.q_proj", &[hidden, hidden]),
            ("self_attn.k_proj", &[keys, hidden]),
            ("self_attn.v_proj", &[keys, hidden]),
            ("self_attn.o_proj", &[hidden, hidden]),
            ("mlp.gate_proj", &[intermediate, hidden]),
            ("mlp.up_proj", &[intermediate, hidden]),
            ("mlp.down_proj", &[hidden, intermediate]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec())));
    }
    let mut draw = draws();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        // What is added to a layer's input is the smaller the more layers there are, as GPT-2's was.
        let onto_input = name.contains("o_proj") || name.contains("down_proj");
        let deviation = 0.03 / if onto_input { (2.0 * layers as f32).sqrt() } else { 1.0 };
        let value = |draw: f32| if shape.len() == 1 { 1.0 } else { deviation * draw };
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|_| value(draw()).to_le_bytes()).collect();
        data.push((name, shape, bytes));
    }
    let views = data.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let path = folder.join("model.safetensors");
    let written = views
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| serialize_to_file(views, Some([("format".to_owned(), "pt".to_owned())].into()), &path));
    written.map_err(|error| Error::internal("run example", "the weights cannot be written").with_source(error))
}

/// Numbers of mean 0 and deviation 1, nearly normal: each the sum of twelve uniform ones, drawn by Knuth's MMIX generator.
fn draws() -> impl FnMut() -> f32 {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    move || (0..12).map(|_| uniform()).sum()
}

/// A line of JSON of `file`.
pub(crate) fn json_lines(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).map_err(|error| io(file, error))?;
    let row = |line: &str| {
        serde_json::from_str(line).map_err(|error| {
            Error::invalid("run example", "a line is no JSON").with("path", file.display()).with_source(error)
        })
    };
    text.lines().map(row).collect()
}

/// The judgments in a file of the bakery's, as a storefront would have captured them: what was asked, and what the head baker decided.
pub(crate) fn bakery_judgments(file: &Path, ids: &dyn IdSource) -> Result<Vec<Judgment>> {
    let judgment = |row: &Value| {
        Judgment::new(
            JudgmentId::next(ids),
            "classify",
            json!({"text": row["text"]}),
            json!({"label": row["label"]}),
            Timestamp::UNIX_EPOCH,
        )
    };
    Ok(json_lines(file)?.iter().map(judgment).collect())
}

/// Trains on judgments, and says how far it is. Gives the plan, the candidate and the folder of its files, which is below `scratch`.
pub(crate) async fn train(
    trainer: &dyn Trainer,
    method: &str,
    base: &Path,
    judgments: Vec<Judgment>,
    settings: &Value,
    scratch: &Path,
) -> Result<(TrainPlan, Candidate, PathBuf)> {
    fs::create_dir_all(scratch).map_err(|error| io(scratch, error))?;
    let store = Arc::new(MemoryStore::default());
    let (tenant, name) = (TenantId::single(), "example".parse()?);
    for (number, judgments) in judgments.chunks(500).enumerate() {
        let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("example")?, number as u64)?;
        store.create(&key, Segment { judgments: judgments.to_vec() }.encode()?).await?;
    }
    let plan = TrainPlan {
        model: "bakery".parse()?,
        method: method.to_owned(),
        base: Some(BaseModel::Folder(base.to_owned())),
        dataset: DatasetRef::fix(&*store, &tenant, &name).await?,
        hyperparameters: settings.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        seed: 1,
    };
    let run = TrainRun {
        store,
        scratch: scratch.to_owned(),
        progress: Arc::new(ProgressFn(|event: ProgressEvent| {
            println!("{:>5} of {} {}: {}", event.done, event.total.unwrap_or_default(), event.unit, event.message);
        })),
        cancel: Cancellation::new(),
        clock: Arc::new(SystemClock),
    };
    let candidate = trainer.train(&plan, &run).await?;
    let folder = match &candidate.output {
        CandidateOutput::Files(files) => files.first().and_then(|file| file.path.parent()).map(Path::to_owned),
        _ => None,
    };
    let folder = folder.ok_or_else(|| Error::internal("run example", "the candidate has no files"))?;
    Ok((plan, candidate, folder))
}
