//! Adapters on chosen rows, and the pass that training takes.

use std::collections::BTreeMap;

use super::*;
use crate::{
    decoder::{
        adapter::{Adapter, AdapterFormat, LoraAdapter, LoraConfig, Matrices, Module, Pair, Place, Worn},
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
        let whole = Sequences::new(sequences);
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

/// The logits of a model with an adapter, or of one into which it has been worked.
fn logits_of(path: &Path, adapter: Option<&Matrices>) -> Vec<Vec<f32>> {
    let files = ModelFiles::open(path).unwrap();
    let network = network(&files);
    let adapter = adapter.map(|matrices| Adapter::on(matrices, Device::cpu().tensors()).unwrap());
    alone(&network, &(3..43).collect::<Vec<_>>(), adapter.as_ref())
}

fn assert_all_near(ours: &[Vec<f32>], theirs: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (row, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_near(ours, theirs, tolerance, &format!("{what}, row {row}"));
    }
}

#[test]
fn an_adapter_reads_the_same_from_every_format() {
    for name in ["llama", "mistral", "qwen2", "qwen3"] {
        let base = fixture(name);
        let config = ModelFiles::open(&base).unwrap().config;
        let mut original = matrices(&config, 4);
        (original.config.rank_stabilized, original.config.alpha) = (true, 2.0);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("ours")).unwrap();
        original.write_peft(&at("ours"), None).unwrap();
        let adapter = LoraAdapter::open(&at("ours")).unwrap();
        assert_eq!((adapter.rank(), adapter.scale()), (3, 2.0 / 3f64.sqrt()));
        let expected = logits_of(&base, Some(&original));
        for (format, folder) in [(AdapterFormat::Peft, "peft"), (AdapterFormat::Mlx, "mlx")] {
            adapter.export(&base, format, &at(folder)).unwrap();
            let read = Matrices::open(&at(folder)).unwrap();
            assert_eq!(read.pairs, original.pairs);
            assert_all_near(&logits_of(&base, Some(&read)), &expected, 1e-5, &format!("{name} {format:?}"));
        }
        assert_eq!(adapter.export(&base, AdapterFormat::Gguf, &at("gguf")).unwrap(), [at("gguf").join("adapter.gguf")]);
        adapter.export(&base, AdapterFormat::Merged, &at("merged")).unwrap();
        // The base's numbers are halves, and so are those of the model that was made of it.
        assert_all_near(&logits_of(&at("merged"), None), &expected, 0.03, &format!("{name} merged"));
    }
}

/// Writes the model with other values, and reads them.
fn check_replaced(base: &Path, files: &ModelFiles, to: &Path) {
    let values = changed(files);
    crate::decoder::adapter::replace(base, &files.config, to, values.clone()).unwrap();
    let read = ModelFiles::open(to).unwrap();
    for (name, array) in &values {
        let tensor = read.weights.take(name, &array.shape, &candle_core::Device::Cpu).unwrap();
        let tensor = tensor.dense(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), array.floats().unwrap(), "{name}");
    }
}

/// Other values of all of a model's tensors, by the names of Hugging Face's files.
fn changed(files: &ModelFiles) -> crate::tensors::Tensors {
    let of = |spec: crate::decoder::tensors::TensorSpec| {
        let cpu = candle_core::Device::Cpu;
        let old = files.weights.take(&spec.name, &spec.shape, &cpu).unwrap().dense(&cpu).unwrap();
        let old = old.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let draws = Random::of(9, &spec.name, [0, 0]).normal(old.len(), 0.05);
        // Halves, as the files have them.
        let new = old.iter().zip(draws).map(|(old, draw)| half::f16::from_f32(old + draw).to_f32()).collect();
        (spec.name, Array::f32(spec.shape, new))
    };
    crate::decoder::tensors::tensors(&files.config).into_iter().map(of).collect()
}

#[test]
fn layers_that_lie_in_one_matrix_of_the_files_are_changed_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = fixture("phi3");
    let files = ModelFiles::open(&base).unwrap();
    let original = matrices(&files.config, 4);
    for name in ["ours", "other", "less"] {
        fs::create_dir(at(name)).unwrap();
    }
    original.write_peft(&at("ours"), None).unwrap();
    LoraAdapter::open(&at("ours")).unwrap().export(&base, AdapterFormat::Merged, &at("merged")).unwrap();
    let expected = logits_of(&base, Some(&original));
    assert_all_near(&logits_of(&at("merged"), None), &expected, 0.03, "merged");
    // An adapter of one of the layers alone leaves the others as they are.
    let mut one = original.clone();
    one.pairs.retain(|place, _| place.module == Module::Value);
    one.write_peft(&at("less"), None).unwrap();
    LoraAdapter::open(&at("less")).unwrap().export(&base, AdapterFormat::Merged, &at("merged-less")).unwrap();
    assert_all_near(&logits_of(&at("merged-less"), None), &logits_of(&base, Some(&one)), 0.03, "one layer");

    check_replaced(&base, &files, &at("other"));
}

#[test]
fn a_model_that_sees_pictures_is_changed_under_its_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = at("base");
    for name in ["base", "ours", "other"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::copy(fixture("gemma3").join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("gemma3").join("config.json")).unwrap()).unwrap();
    let config = serde_json::json!({"model_type": "gemma3", "text_config": config});
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(fixture("gemma3").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor));
    safetensors::serialize_to_file(renamed, None, &base.join("model.safetensors")).unwrap();

    let files = ModelFiles::open(&base).unwrap();
    let original = matrices(&files.config, 4);
    original.write_peft(&at("ours"), None).unwrap();
    LoraAdapter::open(&at("ours")).unwrap().export(&base, AdapterFormat::Merged, &at("merged")).unwrap();
    assert_all_near(&logits_of(&at("merged"), None), &logits_of(&base, Some(&original)), 0.03, "merged");
    check_replaced(&base, &files, &at("other"));
}

#[test]
fn an_adapter_of_another_model_or_with_more_than_matrices_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (llama, qwen3) = (fixture("llama"), fixture("qwen3"));
    let config = ModelFiles::open(&llama).unwrap().config;
    let original = matrices(&config, 4);
    fs::create_dir(at("good")).unwrap();
    original.write_peft(&at("good"), None).unwrap();
    let adapter = LoraAdapter::open(&at("good")).unwrap();
    let error = adapter.export(&qwen3, AdapterFormat::Peft, &at("other")).unwrap_err();
    assert_eq!(
        (error.kind(), error.context("place")),
        (ErrorKind::InvalidInput, Some("layers.0.self_attn.q_proj")),
        "{error}"
    );
    let few = DecoderConfig { windows: vec![None], ..config };
    assert_eq!(original.check(&few).unwrap_err().context("layers"), Some("1"));

    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(at("good").join("adapter_config.json")).unwrap()).unwrap();
    let tensors = fs::read(at("good").join("adapter_model.safetensors")).unwrap();
    let write = |config: &serde_json::Value, tensors: &[u8]| {
        fs::create_dir_all(at("bad")).unwrap();
        fs::write(at("bad").join("adapter_config.json"), config.to_string()).unwrap();
        fs::write(at("bad").join("adapter_model.safetensors"), tensors).unwrap();
        LoraAdapter::open(&at("bad"))
    };
    assert_eq!(write(&config, &tensors).unwrap(), adapter);
    for (key, value) in [
        ("use_dora", serde_json::json!(true)),
        ("peft_type", "IA3".into()),
        ("bias", "all".into()),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("rank_pattern", serde_json::json!({"q_proj": 9})),
        ("init_lora_weights", "pissa".into()),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        let error = write(&changed, &tensors).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}: {error}");
    }
    for (key, value) in [("r", 5.into()), ("lora_alpha", serde_json::json!(-1)), ("r", 0.into())] {
        let mut changed = config.clone();
        changed[key] = value;
        assert_eq!(write(&changed, &tensors).unwrap_err().kind(), ErrorKind::Corrupt, "{key}");
    }
    for end in [0, 7, 100, tensors.len() / 2, tensors.len() - 1] {
        assert_eq!(write(&config, &tensors[..end]).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {end}");
    }
    // A vocabulary of its own, a layer that is not known, and one matrix alone.
    let read = crate::tensors::decode(&tensors, Path::new("x")).unwrap().0;
    for (name, kind) in [
        ("base_model.model.lm_head.weight", ErrorKind::Unsupported),
        ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight", ErrorKind::Unsupported),
        ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", ErrorKind::Corrupt),
    ] {
        let mut more = read.clone();
        more.insert(name.to_owned(), Array::f32([3, 64], vec![0.0; 192]));
        let error = write(&config, &crate::tensors::encode(&more, None).unwrap()).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
    fs::remove_file(at("bad").join("adapter_model.safetensors")).unwrap();
    assert_eq!(LoraAdapter::open(&at("bad")).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn the_reference_implementation_reads_our_adapters_and_merged_models_the_same() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["llama", "qwen3", "phi3"] {
        let base = fixture(name);
        let files = ModelFiles::open(&base).unwrap();
        let original = matrices(&files.config, 4);
        fs::create_dir_all(at(name)).unwrap();
        original.write_peft(&at(name), None).unwrap();
        let merged = at(&format!("{name}-merged"));
        LoraAdapter::open(&at(name)).unwrap().export(&base, AdapterFormat::Merged, &merged).unwrap();
        let tokens = format!("{:?}", (3..43).collect::<Vec<u32>>());
        let reference = |model: &Path, adapter: &str| -> Vec<Vec<f32>> {
            let written = peers.run("peft_logits.py", [model.as_os_str(), adapter.as_ref(), tokens.as_ref()]);
            serde_json::from_slice(&written).unwrap()
        };
        if name != "phi3" {
            let theirs = reference(&base, &at(name).display().to_string());
            row(&format!("decoder {name}: our adapter"), "PEFT", &logits_of(&base, Some(&original)), &theirs, 1e-3);
        }
        let (ours, theirs) = (logits_of(&merged, None), reference(&merged, "-"));
        row(&format!("decoder {name}: our merged folder"), "transformers", &ours, &theirs, 1e-3);
        // As training of all weights leaves a model.
        let trained = at(&format!("{name}-trained"));
        fs::create_dir_all(&trained).unwrap();
        crate::decoder::adapter::replace(&base, &files.config, &trained, changed(&files)).unwrap();
        let (ours, theirs) = (logits_of(&trained, None), reference(&trained, "-"));
        row(&format!("decoder {name}: our folder of all weights"), "transformers", &ours, &theirs, 1e-3);
    }
}

fn row(what: &str, peer: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>], most: f64) {
    peers::row(what, peer, peers::worst(ours.iter().flatten(), theirs.iter().flatten()), most);
}

/// The model with its positions as configurations had them before transformers 5, which mlx-lm reads of most families alone.
fn in_older_words(model: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let path = to.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let rope = config["rope_parameters"].clone();
    config["rope_theta"] = rope["rope_theta"].clone();
    config["rope_scaling"] = if rope["rope_type"] == "default" { serde_json::Value::Null } else { rope };
    fs::write(&path, config.to_string()).unwrap();
    to.to_owned()
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn mlx_lm_hangs_our_adapters_on_its_models() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["llama", "mistral", "qwen2", "qwen3"] {
        let base = fixture(name);
        let files = ModelFiles::open(&base).unwrap();
        let original = matrices(&files.config, 4);
        fs::create_dir_all(at(name)).unwrap();
        original.write_peft(&at(name), None).unwrap();
        let mlx = at(&format!("{name}-mlx"));
        LoraAdapter::open(&at(name)).unwrap().export(&base, AdapterFormat::Mlx, &mlx).unwrap();
        let base = in_older_words(&base, &at(&format!("{name}-base")));
        // It knows no windows of some of the families: a text within the narrowest.
        let tokens: Vec<u32> = (3..13).collect();
        let theirs = |adapter: &Path| -> Vec<Vec<f32>> {
            let tokens = format!("{tokens:?}");
            let written = peers.run("mlx_logits.py", [base.as_os_str(), adapter.as_ref(), tokens.as_ref()]);
            serde_json::from_slice(&written).unwrap()
        };
        let network = network(&files);
        let adapter = Adapter::on(&original, Device::cpu().tensors()).unwrap();
        let (ours, theirs_bare) = (alone(&network, &tokens, None), theirs(Path::new("-")));
        row(&format!("decoder {name}: logits"), "mlx-lm", &ours, &theirs_bare, 1e-3);
        let ours = alone(&network, &tokens, Some(&adapter));
        row(&format!("decoder {name}: our adapter"), "mlx-lm", &ours, &theirs(&mlx), 1e-3);
    }
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn llama_cpp_hangs_our_adapters_on_its_models() {
    let Some(peers) = Peers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    for name in ["llama", "mistral", "qwen2", "qwen3"] {
        let source = gguf::Source::fixture(name);
        source.write(&path, candle_core::quantized::GgmlDType::F32, |_| {});
        let original = matrices(&source.config, 4);
        let peft = folder.path().join("peft");
        fs::create_dir_all(&peft).unwrap();
        original.write_peft(&peft, None).unwrap();
        let files = LoraAdapter::open(&peft).unwrap().export(&path, AdapterFormat::Gguf, folder.path()).unwrap();
        let tokens: Vec<u32> = (3..43).collect();
        let question = serde_json::json!({"path": path, "tokens": tokens, "texts": [], "adapter": files[0]});
        let theirs = peers.ask("llama_logits.py", &question);
        let theirs: Vec<Vec<f32>> = serde_json::from_value(theirs["logits"].clone()).unwrap();
        row(&format!("decoder {name}: our adapter"), "llama.cpp", &logits_of(&path, Some(&original)), &theirs, 2e-3);
    }
}
