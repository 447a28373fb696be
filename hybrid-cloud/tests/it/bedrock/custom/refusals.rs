//! What Bedrock would refuse is refused before any call, with the way out.

use std::{fs, path::Path, sync::Arc};

use hybrid_cloud::bedrock::custom::{
    BedrockTrainer, BedrockTrainerOptions, ImportRun, ModelImport, ModelImportOptions, Serving,
};
use hybrid_core::{BaseModel, DatasetRef, Digest, ErrorKind, ModelName, Staging, TrainPlan, Trainer};
use serde_json::{Value, json};

use super::{
    Bench, NOVA_MICRO, ROLE, Watched,
    import::{version, weights},
    key,
};
use crate::bedrock::rig;

/// A version that `spoil` makes unfit is refused with an error of this kind that has all these words.
async fn refused(bench: &Bench, kind: ErrorKind, words: &[&str], spoil: impl FnOnce(&Path)) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("version");
    version(&folder);
    spoil(&folder);
    let import = bench.import();
    let model = ModelName::new("bakery").unwrap();
    let error = import.import(&model, Digest::of(b"v"), &folder, &ImportRun::default()).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert_eq!(import.check(&folder).await.unwrap_err().to_string(), text);
    assert_eq!((bench.server.calls(), bench.staging.take_puts().len()), (0, 0), "{text}");
}

fn set(folder: &Path, file: &str, field: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
}

fn remove(folder: &Path, file: &str) {
    fs::remove_file(folder.join(file)).unwrap();
}

fn model(folder: &Path, tensors: &[(&str, &str, u64)]) {
    weights(&folder.join("model.safetensors"), tensors);
}

#[tokio::test]
async fn missing_files_are_named() {
    use ErrorKind::NotFound;
    let bench = Bench::open().await;
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        refused(&bench, NotFound, &[file, "as Transformers saves it"], |folder| remove(folder, file)).await;
    }
    refused(&bench, NotFound, &["model.safetensors", "Safetensors"], |folder| remove(folder, "model.safetensors"))
        .await;
    refused(&bench, NotFound, &["cannot be read"], |folder| fs::remove_dir_all(folder).unwrap()).await;
    refused(&bench, NotFound, &["tokenizer.model", "SentencePiece"], |folder| {
        set(folder, "tokenizer_config.json", "tokenizer_class", "LlamaTokenizer".into());
    })
    .await;
    refused(&bench, NotFound, &["model.safetensors.index.json", "no index"], |folder| {
        weights(&folder.join("model-00002-of-00002.safetensors"), &[("b", "BF16", 2)]);
    })
    .await;
    refused(&bench, NotFound, &["model-00002-of-00002.safetensors", "index names"], |folder| {
        let map = json!({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}});
        fs::write(folder.join("model.safetensors.index.json"), map.to_string()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn weights_in_another_form_are_refused_with_the_way_to_convert_them() {
    use ErrorKind::Unsupported;
    let bench = Bench::open().await;
    for (file, words) in [
        ("model.gguf", ["GGUF", "Hugging Face layout"]),
        ("pytorch_model.bin", ["pickled", "convert"]),
        ("adapter_model.safetensors", ["adapter alone", "merge"]),
    ] {
        refused(&bench, Unsupported, &words, |folder| {
            fs::rename(folder.join("model.safetensors"), folder.join(file)).unwrap();
        })
        .await;
    }
    refused(&bench, Unsupported, &["adapter's", "merge", "q_proj"], |folder| {
        model(folder, &[("base_model.model.q_proj.lora_A.weight", "F32", 8)]);
    })
    .await;
}

#[tokio::test]
async fn what_the_model_is_decides() {
    use ErrorKind::{TooLarge, Unsupported};
    let bench = Bench::open().await;
    let architecture = |folder: &Path, name: &str| set(folder, "config.json", "architectures", json!([name]));
    refused(&bench, Unsupported, &["GemmaForCausalLM", "known: MistralForCausalLM"], |folder| {
        architecture(folder, "GemmaForCausalLM");
    })
    .await;
    refused(&bench, Unsupported, &["no embedding models"], |folder| architecture(folder, "Qwen2Model")).await;
    refused(&bench, TooLarge, &["context: 262144", "limit: 131072", "max_position_embeddings"], |folder| {
        set(folder, "config.json", "max_position_embeddings", json!(262_144));
    })
    .await;
    refused(&bench, Unsupported, &["awq", "dequantize"], |folder| {
        set(folder, "config.json", "quantization_config", json!({"quant_method": "awq"}));
    })
    .await;
    refused(&bench, Unsupported, &["BertTokenizer", "PreTrainedTokenizerFast"], |folder| {
        set(folder, "tokenizer_config.json", "tokenizer_class", "BertTokenizer".into());
    })
    .await;
}

#[tokio::test]
async fn tensors_are_looked_at_before_they_are_uploaded() {
    use ErrorKind::{Corrupt, TooLarge, Unsupported};
    let bench = Bench::open().await;
    for dtype in ["I8", "U8", "F8_E4M3", "F64"] {
        refused(&bench, Unsupported, &["lm_head", dtype, "BF16"], |folder| {
            model(folder, &[("embed", "F16", 8), ("lm_head", dtype, 8)]);
        })
        .await;
    }
    refused(&bench, TooLarge, &["limit: 200000000000", "16 bits"], |folder| {
        model(folder, &[("embed", "BF16", 200_000_000_000)]);
    })
    .await;
    refused(&bench, TooLarge, &["limit: 100000000000", "Qwen2VL"], |folder| {
        set(folder, "config.json", "architectures", json!(["Qwen2VLForConditionalGeneration"]));
        model(folder, &[("embed", "BF16", 100_000_000_000)]);
    })
    .await;
    let cut = |folder: &Path, size| {
        let file = fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).unwrap();
        file.set_len(size).unwrap();
    };
    for size in [0, 7, 8, 20] {
        refused(&bench, Corrupt, &["cut short", "export them again"], |folder| cut(folder, size)).await;
    }
    refused(&bench, Corrupt, &["cut short", "expected"], |folder| {
        let size = fs::metadata(folder.join("model.safetensors")).unwrap().len();
        cut(folder, size - 1);
    })
    .await;
    refused(&bench, Corrupt, &["Safetensors format"], |folder| {
        fs::write(folder.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    })
    .await;
    refused(&bench, Corrupt, &["lm_head", "the index names"], |folder| {
        let map =
            json!({"weight_map": {"model.embed_tokens.weight": "model.safetensors", "lm_head": "model.safetensors"}});
        fs::write(folder.join("model.safetensors.index.json"), map.to_string()).unwrap();
    })
    .await;
    refused(&bench, Corrupt, &["config.json", "not JSON"], |folder| {
        fs::write(folder.join("config.json"), "{").unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_version_in_shards_is_let_through() {
    let bench = Bench::open().await;
    let scratch = tempfile::tempdir().unwrap();
    version(scratch.path());
    remove(scratch.path(), "model.safetensors");
    weights(&scratch.path().join("model-00001-of-00002.safetensors"), &[("a", "BF16", 2), ("b", "F32", 4)]);
    weights(&scratch.path().join("model-00002-of-00002.safetensors"), &[("c", "F16", 2)]);
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let map = json!({"weight_map": {"a": one, "b": one, "c": two}});
    fs::write(scratch.path().join("model.safetensors.index.json"), map.to_string()).unwrap();
    bench.import().check(scratch.path()).await.unwrap();
}

#[tokio::test]
async fn what_bedrock_cannot_reach_is_refused_at_once() {
    let bench = Bench::open().await;
    let config = rig::config(bench.server.url());
    let staging = || Arc::clone(&bench.staging) as Arc<dyn Staging>;
    let elsewhere: Arc<dyn Staging> = Arc::new(Watched::at(staging(), "/srv/staging/m/"));
    let trainer = |staging, role: &str| {
        BedrockTrainer::new(&config, staging, BedrockTrainerOptions::new(role, key("m"))).map(drop).unwrap_err()
    };
    let error = trainer(Arc::clone(&elsewhere), ROLE);
    assert!(error.to_string().contains("S3 alone") && error.to_string().contains("/srv/staging"), "{error}");
    for role in
        ["", "admin", "arn:aws:iam::123456789012:user/ada", "arn:aws:s3:::bucket/role/x", "arn:aws:iam::1:role/"]
    {
        let error = trainer(staging(), role);
        assert!(error.to_string().contains("ARN of a role"), "{error}");
    }
    let import = |staging, options| ModelImport::new(&config, staging, options).map(drop).unwrap_err();
    assert!(import(elsewhere, ModelImportOptions::new(ROLE, key("m"))).to_string().contains("S3 alone"));
    let mut options = ModelImportOptions::new(ROLE, key("m"));
    options.regions = vec!["eu-central-1".to_owned()];
    let error = import(staging(), options);
    assert_eq!((error.kind(), error.context("region")), (ErrorKind::Unsupported, Some("us-east-1")), "{error}");
}

#[tokio::test]
async fn a_base_that_cannot_be_called_on_demand_is_refused_before_anything_is_ordered() {
    const CLAUDE: &str = "anthropic.claude-3-haiku-20240307-v1:0:200k";
    let bench = Bench::open().await;
    let with = |base: &str, trainer: &BedrockTrainer| {
        let base = Some(BaseModel::Provider(base.to_owned()));
        let plan = TrainPlan { base, ..no_plan() };
        trainer.check(&plan).map_err(|error| (error.kind(), error.to_string()))
    };
    let trainer = bench.trainer();
    assert_eq!(with(NOVA_MICRO, &trainer), Ok(()));
    let (kind, text) = with(CLAUDE, &trainer).unwrap_err();
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("Serving::Nothing") && text.contains("amazon.nova-micro"), "{text}");
    let mut plan = bench.plan(2).await;
    plan.base = Some(BaseModel::Provider(CLAUDE.to_owned()));
    assert_eq!(trainer.train(&plan, &bench.run()).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!((bench.server.calls(), bench.staging.take_puts().len()), (0, 0));

    let elsewhere = bench.trainer_with(|options| {
        options.on_demand.insert("amazon.nova-micro".to_owned(), vec!["us-west-2".to_owned()]);
    });
    let (_, text) = with(NOVA_MICRO, &elsewhere).unwrap_err();
    assert!(text.contains("region: us-east-1") && text.contains("known: us-west-2"), "{text}");
    let later = bench.trainer_with(|options| {
        options.on_demand.insert("anthropic.claude-3-haiku".to_owned(), vec!["us-east-1".to_owned()]);
    });
    assert_eq!(with(CLAUDE, &later), Ok(()));
    let only = bench.trainer_with(|options| options.serving = Serving::Nothing);
    assert_eq!(with(CLAUDE, &only), Ok(()));
}

fn no_plan() -> TrainPlan {
    TrainPlan {
        model: "bakery".parse().unwrap(),
        method: "bedrock-fine-tuning".to_owned(),
        base: None,
        dataset: DatasetRef { name: "chats".parse().unwrap(), segments: vec![] },
        hyperparameters: Default::default(),
        seed: 1,
    }
}
