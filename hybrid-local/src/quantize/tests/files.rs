//! What is in the files.

use std::sync::{Arc, Mutex};

use hybrid_core::{ErrorKind, ProgressEvent, ProgressFn};

use super::*;
use crate::{
    decoder::tests::distance,
    peers::{self, Peers},
};

#[test]
fn a_file_in_half_precision_gives_what_its_folder_gives() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("tiny.gguf");
    for name in FAMILIES {
        let made = make(Mix::F16, &fixture(name), &file).unwrap();
        assert_eq!((made.bytes, made.left_out.len()), (fs::metadata(&file).unwrap().len(), 0));
        assert!(made.fallbacks.is_empty(), "{:?}", made.fallbacks);
        let (source, copy) = (ModelFiles::open(&fixture(name)).unwrap(), ModelFiles::open(&file).unwrap());
        // Files of other families have no windows.
        let windowed = matches!(name, "gemma2" | "gemma3" | "phi3");
        let narrowest = source.config.windows.iter().flatten().min().copied().filter(|_| !windowed);
        assert_eq!(copy.config.windows == source.config.windows, narrowest.is_none(), "{name}");
        assert_eq!(copy.config.context, narrowest.unwrap_or(source.config.context), "{name}");
        assert_eq!(made.notes.len(), usize::from(narrowest.is_some()), "{name}: {:?}", made.notes);
        assert_eq!((copy.defaults.ends, copy.templates.default), (source.defaults.ends, source.templates.default));
        let tokens: Vec<u32> = (3..3 + narrowest.unwrap_or(60) as u32).collect();
        let off = distance(&logits(&file, &tokens), &logits(&fixture(name), &tokens));
        // Of this family a factor goes into the queries, which half precision rounds.
        assert!(off < if name == "gemma2" { 2e-3 } else { 1e-5 }, "{name}: {off}");
    }
}

#[test]
fn fewer_bits_take_less_room_and_cost_more() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("qwen3", 3);
    let tokens: Vec<u32> = (3..43).collect();
    let whole = logits(folder.path(), &tokens);
    let weights = |path: &Path| -> Vec<Vec<f32>> {
        let files = ModelFiles::open(path).unwrap();
        let cpu = candle_core::Device::Cpu;
        let all = tensors(&files.config).into_iter().map(|spec| {
            let stored = files.weights.take(&spec.name, &spec.shape, &cpu).unwrap();
            stored.dense(&cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        });
        all.collect()
    };
    let exact = weights(folder.path());
    let mut last = (u64::MAX, 0.0);
    // Products take their inputs to whole numbers of eight bits, and random weights make much of little.
    for (mix, most, off_by) in [
        (Mix::F16, 1e-7, 1e-5),
        (Mix::Q8_0, 0.006, 0.2),
        (Mix::Q6K, 0.03, 0.25),
        (Mix::Q5KM, 0.05, 0.3),
        (Mix::Q4KM, 0.09, 0.4),
    ] {
        let file = scratch.path().join(format!("{mix}.gguf"));
        let made = make(mix, folder.path(), &file).unwrap();
        let (lost, off) = (distance(&weights(&file), &exact), distance(&logits(&file, &tokens), &whole));
        eprintln!("{mix}: {} bytes, weights {lost:.4} off, logits {off:.4} off, {:?}", made.bytes, made.formats);
        assert!(lost < most && lost >= last.1 && made.bytes < last.0, "{mix}: {lost}, {} bytes", made.bytes);
        assert!(off < off_by && made.fallbacks.is_empty(), "{mix}: {off}");
        last = (made.bytes, lost);
    }
    let formats = make(Mix::Q4KM, folder.path(), &scratch.path().join("again.gguf")).unwrap().formats;
    assert_eq!(formats.keys().map(String::as_str).collect::<Vec<_>>(), ["F32", "Q4_K", "Q6_K"]);
}

#[test]
fn rows_that_are_no_whole_blocks_are_told() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("tiny.gguf");
    let made = make(Mix::Q4KM, &fixture("llama-bias"), &file).unwrap();
    let queries = made.fallbacks.iter().find(|fallback| fallback.tensor == "blk.0.attn_q.weight").unwrap();
    assert_eq!((queries.columns, &*queries.wanted, &*queries.used), (64, "Q4_K", "Q5_0"));
    let output = made.fallbacks.iter().find(|fallback| fallback.tensor == "output.weight").unwrap();
    assert_eq!((&*output.wanted, &*output.used), ("Q6_K", "Q8_0"));
    let tokens: Vec<u32> = (3..43).collect();
    let off = distance(&logits(&file, &tokens), &logits(&fixture("llama-bias"), &tokens));
    assert!(off < 0.2, "{off}");
}

#[test]
fn what_cannot_be_made_is_told_by_name_and_leaves_no_file() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("tiny.gguf");
    let refused = |folder: &Path, kind: ErrorKind, named: &str| {
        let error = make(Mix::Q8_0, folder, &file).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
        assert!(!file.exists());
    };
    let tokenizer = |folder: &Path, change: &dyn Fn(&mut Value)| {
        let path = folder.join("tokenizer.json");
        let mut all: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut all);
        fs::write(path, all.to_string()).unwrap();
    };
    refused(Path::new("/nowhere"), ErrorKind::NotFound, "nowhere");
    let folder = wide("qwen2", 2);
    tokenizer(folder.path(), &|all| all["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\s+"));
    refused(folder.path(), ErrorKind::Unsupported, "pre_tokenizer");
    let folder = wide("qwen2", 2);
    // The name of the splitting says that texts are composed, and this tokenizer does not.
    tokenizer(folder.path(), &|all| all["normalizer"] = Value::Null);
    refused(folder.path(), ErrorKind::Unsupported, r"Bro\u{308}tchen");
    let folder = wide("qwen2", 2);
    change(folder.path(), |config| config["num_hidden_layers"] = json!(3));
    refused(folder.path(), ErrorKind::Corrupt, "model.layers.2");
    let folder = wide("qwen2", 2);
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&f16::NAN.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    refused(folder.path(), ErrorKind::Corrupt, "finite");
    fs::write(&path, &bytes[..end / 2]).unwrap();
    refused(folder.path(), ErrorKind::Corrupt, "model.safetensors");
}

#[test]
fn progress_moves_forward_to_the_size_of_the_file() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("qwen3", 2);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress = ProgressFn(move |event: ProgressEvent| sink.lock().unwrap().push((event.done, event.total)));
    let made = Quantizer::new(Mix::Q4_0)
        .write(folder.path(), &scratch.path().join("tiny.gguf"), &progress, &Cancellation::new())
        .unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > 20);
    assert_eq!(*seen.last().unwrap(), (made.bytes, Some(made.bytes)));
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn llama_cpp_reads_the_same_of_a_file() {
    let Some(peers) = Peers::find() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let texts = ["ten rolls, 1234 Brötchen!", "<|im_start|>user\n I'm  here\n\n", "\t漢字 🥐"];
    let wide = ["llama-bias", "qwen2", "qwen3"].map(|name| (name, wide(name, 3)));
    let narrow = FAMILIES.map(|name| (name.to_owned(), fixture(name), vec![Mix::F16, Mix::Q8_0, Mix::Q4KM]));
    let wide = wide.iter().map(|(name, folder)| {
        (format!("{name}, wider"), folder.path().to_owned(), vec![Mix::Q8_0, Mix::Q6K, Mix::Q5KM, Mix::Q4KM, Mix::Q4_0])
    });
    for (name, folder, mixes) in narrow.into_iter().chain(wide) {
        for mix in mixes {
            let file = scratch.path().join("tiny.gguf");
            make(mix, &folder, &file).unwrap();
            let files = ModelFiles::open(&file).unwrap();
            let tokens: Vec<u32> = (3..3 + files.config.context.min(16) as u32).collect();
            let ours = logits(&file, &tokens);
            let answer = peers.ask("llama_logits.py", &json!({"path": file, "tokens": tokens, "texts": texts}));
            let theirs: Vec<Vec<f32>> = serde_json::from_value(answer["logits"].clone()).unwrap();
            let off = distance(&ours, &theirs);
            // Sums in another order differ in the last bit, and then here and there one of the whole numbers that products take their inputs
            // to, of which random weights make much. A wrong block, row or format is off by one.
            let most = if mix == Mix::F16 { 2e-3 } else { 0.15 };
            peers::row(&format!("quantizer {name} {mix}: logits, as a share"), "llama.cpp", off, most);
            for (text, theirs) in texts.iter().zip(answer["texts"].as_array().unwrap()) {
                let encoding = files.tokenizer.encode_fast(*text, false).unwrap();
                assert_eq!(json!(encoding.get_ids()), *theirs, "{name}: {text:?}");
            }
        }
    }
}
