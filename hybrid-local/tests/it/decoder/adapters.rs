//! One model served as itself and with adapters.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use hybrid_core::{ErrorKind, ModelLoader, ServedModel, conformance::inference, task::Chat};
use hybrid_local::{DecoderLoader, DecoderModel, Device};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{Serving, ask, fixture, manifest, short};

const HIDDEN: usize = 64;

/// An adapter as PEFT leaves it, on the queries of the first layer.
pub(crate) fn write_adapter(folder: &Path, factor: f32) {
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"], "bias": "none"});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let values = |seed: usize| -> Vec<u8> {
        let value = |i: usize| ((i * 37 + seed) % 19) as f32 / 19.0 - 0.5;
        (0..2 * HIDDEN).flat_map(|i| (factor * value(i)).to_le_bytes()).collect()
    };
    let sides = [("A", [2, HIDDEN], values(3)), ("B", [HIDDEN, 2], values(8))];
    let tensors: BTreeMap<String, TensorView<'_>> = sides
        .iter()
        .map(|(side, shape, bytes)| {
            let name = format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight");
            (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        })
        .collect();
    fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(&tensors, None).unwrap()).unwrap();
}

async fn model() -> DecoderModel {
    DecoderLoader::new(Device::cpu()).with_streams(2).open_model(&fixture("qwen2")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_on_one_model_answer_each_in_its_own_way_side_by_side() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let model = model().await;
    let plain = model.backend(ServedModel::named("plain"));
    let mut backends = vec![Arc::clone(&plain)];
    for (folder, factor) in folders.iter().zip([6.0, 9.0]) {
        write_adapter(folder.path(), factor);
        backends.push(model.adapter(folder.path(), ServedModel::named(format!("by {factor}"))).await.unwrap());
    }
    let request = || short("ten rolls", 30);
    let replies = futures_util::future::join_all(backends.iter().map(|backend| ask(&**backend, request()))).await;
    let texts: Vec<String> = replies.iter().map(|reply| reply.response.text()).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!(replies[2].meta.model.name, "by 9");
    for (backend, text) in backends.iter().zip(&texts) {
        assert_eq!(&ask(&**backend, request()).await.response.text(), text);
    }
    // The last holder of the model need not be the model.
    let worn = backends.pop().unwrap();
    drop((model, plain, backends));
    assert_eq!(&ask(&*worn, request()).await.response.text(), &texts[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_keep_the_inference_contract() {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), 2.0);
    let backend = model().await.adapter(folder.path(), ServedModel::named("bakery")).await.unwrap();
    inference::run(&Serving(backend)).await.assert();
}

#[tokio::test]
async fn an_adapter_is_loaded_by_its_manifest_and_refused_where_it_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), 2.0);
    let loader: Arc<dyn ModelLoader<Chat>> = Arc::new(model().await);
    let (mut manifest, digest) = manifest();
    let error = loader.load(&manifest, digest, folder.path()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("architecture")), (ErrorKind::Unsupported, Some("decoder/1")));
    manifest.architecture = "decoder-adapter/1".to_owned();
    let backend = loader.load(&manifest, digest, folder.path()).await.unwrap();
    assert_eq!(backend.profile().model.version, Some(3));

    let path = folder.path().join("adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"r\":2", "\"r\":3")).unwrap();
    let error = loader.load(&manifest, digest, folder.path()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("manifest")), (ErrorKind::Corrupt, Some(&*digest.to_string())), "{error}");
    fs::remove_file(&path).unwrap();
    let error = loader.load(&manifest, digest, folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
