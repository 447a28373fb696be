//! Fine-tunes a decoder on the bakery's judgments, and hands the adapter to every place that can serve it.
//!
//! ```text
//! cargo run --release -p hybrid-local --example fine_tune [BASE] [JUDGMENTS] [LEARNING_RATE]
//! ```
//!
//! BASE is a model's folder in Hugging Face layout. Without one a tiny decoder with random weights stands in, so that all can be seen without a
//! download: it learns to answer in the form of the labels, and no more. The example `small_model` makes one that has read something.
//! JUDGMENTS is a file of lines as `judgments_from_jsonl` reads them; without one it is the bakery's.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use hybrid_core::{
    CallContext, Judgment, RequestId, Result, SeededIds, ServedModel, TenantId, Timestamp,
    task::{ChatRequest, Sampling},
};
use hybrid_local::{AdapterFormat, DecoderLoader, DecoderTrainer, Device, LoraAdapter, judgments_from_jsonl};
use serde_json::json;

#[path = "parts/mod.rs"]
mod parts;

use parts::{MARKS, Sizes, bakery_judgments, io, train, write_base};

const BAKERY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/bakery/first.jsonl");

#[tokio::main]
async fn main() -> Result<()> {
    let work = std::env::temp_dir().join("hybrid-fine-tune");
    let _ = fs::remove_dir_all(&work);
    let mut arguments = std::env::args().skip(1);
    let mut settings = json!({"batch_size": 8, "lora_rank": 16, "lora_alpha": 32, "max_tokens": 512, "hold_out": 0.1});
    let base = match arguments.next() {
        Some(base) => base.into(),
        None => {
            // Random weights learn nothing at the rate that is good for a trained model.
            (settings["learning_rate"], settings["epochs"]) = (json!(3e-3), json!(6));
            let base = work.join("base");
            tiny_base(&base)?;
            base
        }
    };
    let ids = SeededIds::default();
    let judgments = match arguments.next() {
        Some(file) => {
            let path = Path::new(&file);
            let lines = fs::read(path).map_err(|error| io(path, error))?;
            judgments_from_jsonl(&file, lines, &ids, Timestamp::UNIX_EPOCH)?
        }
        None => bakery_judgments(BAKERY.as_ref(), &ids)?,
    };
    if let Some(rate) = arguments.next().and_then(|rate| rate.parse::<f64>().ok()) {
        settings["learning_rate"] = json!(rate);
    }
    let asked: Vec<ChatRequest> = judgments.iter().take(2).filter_map(request).collect();
    let trainer = DecoderTrainer::new(Device::cpu());
    let (_, candidate, folder) =
        train(&trainer, "decoder-lora", &base, judgments, &settings, &work.join("scratch")).await?;
    println!("\n{} of {} judgments", candidate.architecture, candidate.examples);
    candidate.metrics.iter().for_each(|(name, value)| println!("  {name} {value:.4}"));

    // One adapter, every place that serves it; each export is read back and compared before it is handed out.
    let adapter = LoraAdapter::open(&folder)?;
    println!("\nPeft: {}", folder.display());
    for (format, name) in
        [(AdapterFormat::Mlx, "mlx"), (AdapterFormat::Gguf, "gguf"), (AdapterFormat::Merged, "merged")]
    {
        let paths = adapter.export(&base, format, &work.join(name))?;
        println!("{format:?}: {}", paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "));
    }

    let backend = DecoderLoader::new(Device::cpu()).open(&work.join("merged"), ServedModel::named("bakery")).await?;
    let cx = CallContext::new(TenantId::single(), RequestId::next(&SeededIds::new(2)));
    let sampling = Sampling { max_tokens: Some(64), temperature: Some(0.0), ..Sampling::default() };
    println!();
    for request in asked {
        let (started, text) =
            (Instant::now(), request.messages.last().map(|message| message.text()).unwrap_or_default());
        let reply = backend.infer(&cx, ChatRequest { sampling: sampling.clone(), ..request }).await?;
        println!("{text:?} is answered {:?} in {:?}", reply.response.text(), started.elapsed());
    }
    Ok(())
}

/// What a judgment asked of the model.
fn request(judgment: &Judgment) -> Option<ChatRequest> {
    match judgment.input["text"].as_str() {
        Some(text) => Some(ChatRequest::user(text)),
        None => serde_json::from_value(judgment.input.clone()).ok(),
    }
}

/// Writes a decoder of bytes with random weights in Hugging Face layout.
fn tiny_base(folder: &Path) -> Result<()> {
    // Tokens are bytes, each written as the character that such tokenizers have for it.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256u32..;
    let symbol = |byte: u32| char::from_u32(if printable(byte) { byte } else { others.next().unwrap_or(byte) });
    let symbols: Vec<char> = (0..256).filter_map(symbol).collect();
    let tokens: BTreeMap<String, usize> =
        symbols.iter().enumerate().map(|(id, symbol)| (symbol.to_string(), id)).collect();
    let special = |(i, content): (usize, &str)| json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let specials: Vec<_> = MARKS.into_iter().enumerate().map(special).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": specials, "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": tokens, "merges": []},
    });
    let sizes = Sizes { hidden: 128, layers: 4, heads: 4, key_value_heads: 2, intermediate: 256, context: 1_024 };
    write_base(folder, &tokenizer.to_string(), [258, 257], sizes)
}
