//! What is taken out.

use hybrid_core::ErrorKind;

use super::*;
use crate::peers::{self, Peers};

#[test]
fn a_layer_that_changes_nothing_is_found_and_taken_out_without_a_loss() {
    let scratch = tempfile::tempdir().unwrap();
    let text = "can I get a rye loaf and zwölf Brötchen on Sunday at noon, please? ".repeat(6);
    for (name, idle) in [("qwen3", 1), ("gemma3", 2), ("llama-bias", 0)] {
        let folder = wide(name, 4);
        // Neither its attention nor its feed-forward adds anything.
        silence(folder.path(), |tensor| {
            let own = tensor.contains(&format!("layers.{idle}."));
            own && ["o_proj", "down_proj", "post_attention_layernorm", "post_feedforward_layernorm"]
                .iter()
                .any(|part| tensor.contains(part) && !(name != "gemma3" && part.contains("layernorm")))
        });
        let pruner = LayerPruner::new(crate::Device::cpu()).with_context(100);
        let influences = pruner.influences(folder.path(), &text, &NoProgress, &Cancellation::new()).unwrap();
        assert_eq!(influences.least(1), [idle].into(), "{name}: {influences:?}");
        assert!(influences.0[idle] < 1e-5 && influences.0.iter().filter(|turned| **turned < 1e-3).count() == 1);

        let target = scratch.path().join(name);
        super::super::prune::without_layers(folder.path(), &target, &influences.least(1)).unwrap();
        let pruned = ModelFiles::open(&target).unwrap().config;
        assert_eq!(pruned.layers(), 3, "{name}");
        let mut windows = ModelFiles::open(folder.path()).unwrap().config.windows;
        windows.remove(idle);
        assert_eq!(pruned.windows, windows, "{name}");
        let paths = [folder.path().to_owned(), target.clone()];
        let comparison = Comparison::new(crate::Device::cpu()).with_context(100);
        let report = comparison.compare(&paths, &text, &NoProgress, &Cancellation::new()).unwrap();
        assert!(report.max_divergence < 1e-6 && report.bytes < report.original_bytes, "{name}: {report:?}");
        assert!(!scratch.path().join(format!("{name}.part")).exists());

        // Another layer is missed.
        let other = scratch.path().join(format!("{name}-other"));
        super::super::prune::without_layers(folder.path(), &other, &[3].into()).unwrap();
        let paths = [folder.path().to_owned(), other];
        let report = comparison.compare(&paths, &text, &NoProgress, &Cancellation::new()).unwrap();
        assert!(report.mean_divergence > 1e-3, "{name}: {report:?}");
        let again = super::super::prune::without_layers(folder.path(), &target, &[0].into()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        for layers in [vec![], vec![4], vec![0, 1, 2, 3]] {
            let error = super::super::prune::without_layers(
                folder.path(),
                &scratch.path().join("new"),
                &layers.into_iter().collect(),
            );
            assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}

/// Fills columns of matrices with zeros, in a model of halves.
fn silence_columns(folder: &Path, chosen: impl Fn(&str, usize) -> bool) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let (shape, mut values) = (view.shape().to_vec(), view.data().to_vec());
            for (i, value) in values.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                if shape.len() == 2 && chosen(name, i % shape[1]) {
                    *value = [0; 2];
                }
            }
            (name.to_owned(), shape, values)
        })
        .collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &path).unwrap();
}

#[test]
fn heads_and_channels_that_change_nothing_are_found_and_taken_out_without_a_loss() {
    let scratch = tempfile::tempdir().unwrap();
    let text = "can I get a rye loaf and zwölf Brötchen on Sunday at noon, please? ".repeat(6);
    for name in ["qwen3", "phi3", "llama-bias", "gemma3"] {
        // Files of this family fuse matrices, which a made one does not.
        let folder = if name == "phi3" { copied(name) } else { wide(name, 2) };
        let config = ModelFiles::open(folder.path()).unwrap().config;
        let group = config.query_size() / config.key_value_heads;
        // Other parts in each layer.
        let idle = |layer: usize, channel: usize| channel % 64 == 3 + 5 * layer;
        silence_columns(folder.path(), |tensor, column| {
            let layer = usize::from(tensor.contains("layers.1."));
            tensor.contains("o_proj") && column / group == 1 - layer
                || tensor.contains("down_proj") && idle(layer, column)
        });
        let pruner = WidthPruner::new(crate::Device::cpu()).with_context(100);
        let importances = pruner.importances(folder.path(), &text, &NoProgress, &Cancellation::new()).unwrap();
        let channels = (0..config.intermediate).filter(|channel| idle(0, *channel)).count();
        let removal = importances.least(1, channels);
        for layer in 0..2 {
            assert_eq!(removal.groups[layer], [1 - layer].into(), "{name}: {:?}", importances.groups);
            assert!(removal.channels[layer].iter().all(|channel| idle(layer, *channel)), "{name}, layer {layer}");
            let groups = &importances.groups[layer];
            // A norm after attention takes out how large its one part is.
            let least = if config.post_norms { 0.0 } else { 1e-4 };
            assert!(groups[layer] > least && groups[1 - layer] == 0.0, "{name}, layer {layer}: {groups:?}");
        }
        let target = scratch.path().join(name);
        super::super::prune::without_width(folder.path(), &target, &removal).unwrap();
        let pruned = ModelFiles::open(&target).unwrap().config;
        assert_eq!((pruned.key_value_heads, pruned.heads), (config.key_value_heads - 1, config.heads / 2), "{name}");
        assert_eq!((pruned.intermediate, pruned.head_size), (config.intermediate - channels, config.head_size));
        let comparison = Comparison::new(crate::Device::cpu()).with_context(100);
        let compare = |target: &Path| {
            let paths = [folder.path().to_owned(), target.to_owned()];
            comparison.compare(&paths, &text, &NoProgress, &Cancellation::new()).unwrap()
        };
        let report = compare(&target);
        assert!(report.max_divergence < 1e-6 && report.bytes < report.original_bytes, "{name}: {report:?}");
        // Others are missed.
        let other = scratch.path().join(format!("{name}-other"));
        let mut wrong = removal.clone();
        wrong.groups.reverse();
        super::super::prune::without_width(folder.path(), &other, &wrong).unwrap();
        assert!(compare(&other).mean_divergence > 1e-3, "{name}");
        for refused in [
            Removal::default(),
            importances.least(0, 0),
            importances.least(2, 0),
            importances.least(0, config.intermediate),
            Removal { groups: vec![[0].into(), [].into()], ..removal.clone() },
            Removal { groups: vec![[9].into(), [9].into()], ..removal },
        ] {
            let error = super::super::prune::without_width(folder.path(), &scratch.path().join("new"), &refused);
            assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput, "{refused:?}");
        }
    }
}

#[test]
fn files_and_folders_that_cannot_be_narrowed_are_refused_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = copied("llama");
    let removal = |layers: usize| Removal { groups: vec![[0].into(); layers], channels: vec![[].into(); layers] };
    let narrowed = |folder: &Path| {
        let layers = ModelFiles::open(folder).unwrap().config.layers();
        super::super::prune::without_width(folder, &scratch.path().join("new"), &removal(layers)).unwrap_err()
    };
    // A configuration that says more than there is.
    change(folder.path(), |config| {
        config["intermediate_size"] = json!(config["intermediate_size"].as_u64().unwrap() + 8);
    });
    let error = narrowed(folder.path());
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(error.context("tensor"), Some("model.layers.0.mlp.gate_proj.weight"), "{error}");
    assert_ne!(error.context("found"), error.context("expected"), "{error}");

    // Halves in a GGUF file could be read, but not written anew.
    let inside = scratch.path().join("inside");
    fs::create_dir(&inside).unwrap();
    make(Mix::F16, &fixture("llama"), &inside.join("tiny.gguf")).unwrap();
    for model in [inside.join("tiny.gguf"), inside] {
        assert_eq!(narrowed(&model).kind(), ErrorKind::Unsupported);
        let pruner = WidthPruner::new(crate::Device::cpu());
        let error = pruner.importances(&model, "x", &NoProgress, &Cancellation::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert!(!scratch.path().join("new").exists() && !scratch.path().join("new.part").exists());
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[test]
fn the_reference_implementation_reads_a_narrower_model_the_same() {
    let Some(peers) = Peers::find() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let text = "can I get a rye loaf and zwölf Brötchen on Sunday at noon, please? ".repeat(6);
    for name in ["llama", "qwen2", "qwen3", "gemma3", "phi3"] {
        let pruner = WidthPruner::new(crate::Device::cpu());
        let importances = pruner.importances(&fixture(name), &text, &NoProgress, &Cancellation::new()).unwrap();
        let target = scratch.path().join(name);
        // Its configuration's check of Phi 3 takes the size of a head from the number of heads, whatever `head_dim` says.
        let groups = usize::from(name != "phi3");
        super::super::prune::without_width(&fixture(name), &target, &importances.least(groups, 24)).unwrap();
        let tokens: Vec<u32> = (3..43).collect();
        let written = peers.run("peft_logits.py", [target.as_os_str(), "-".as_ref(), format!("{tokens:?}").as_ref()]);
        let theirs: Vec<Vec<f32>> = serde_json::from_slice(&written).unwrap();
        let off = crate::decoder::tests::distance(&logits(&target, &tokens), &theirs);
        peers::row(&format!("decoder {name}: our narrower folder, as a share"), "transformers", off, 1e-4);
    }
}

/// Fills tensors with what makes their layer add nothing: zeros, and minus one where one is added to a norm's scale.
fn silence(folder: &Path, chosen: impl Fn(&str) -> bool) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let silent = if name.contains("layernorm") { f16::NEG_ONE } else { f16::ZERO };
            let values = match chosen(name) {
                true => silent.to_le_bytes().repeat(view.data().len() / 2),
                false => view.data().to_vec(),
            };
            (name.to_owned(), view.shape().to_vec(), values)
        })
        .collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &path).unwrap();
}
