//! Models of a registry, and of the hub's cache without the hub.

use std::{fs, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{Error, ErrorKind, LocalVersion, Result, ServedModel, VersionRef, VersionSource};
use hybrid_local::{DecoderLoader, Device, HubCache, ModelResolver, ModelSource};

use super::fixture;
use crate::decoder::manifest;

/// A registry that has one version, in a folder.
#[derive(Debug)]
struct OneVersion {
    folder: PathBuf,
    held: Arc<()>,
}

#[async_trait]
impl VersionSource for OneVersion {
    async fn bring(&self, which: &VersionRef) -> Result<LocalVersion> {
        let (manifest, digest) = manifest();
        let stable = VersionRef::Channel(manifest.model.clone(), hybrid_core::ChannelName::stable());
        if *which != stable && *which != VersionRef::Manifest(digest) {
            return Err(Error::not_found("bring version", "no such version").with("version", which));
        }
        Ok(LocalVersion { folder: self.folder.clone(), digest, manifest, in_use: Arc::clone(&self.held) as _ })
    }
}

#[tokio::test]
async fn a_version_is_held_until_its_files_have_been_read() {
    let registry = Arc::new(OneVersion { folder: fixture("qwen3"), held: Arc::default() });
    let held = Arc::clone(&registry.held);
    let models = ModelResolver::local().with_versions(registry);
    let (manifest, digest) = manifest();
    for text in [format!("registry:{}", manifest.model), format!("registry:{digest}")] {
        let source: ModelSource = text.parse().unwrap();
        let model = models.resolve(&source).await.unwrap();
        assert_eq!(model.version().map(|version| version.digest), Some(digest));
        assert_eq!(Arc::strong_count(&held), 3);
        DecoderLoader::new(Device::cpu()).open(model.path(), ServedModel::named("tiny")).await.unwrap();
        drop(model);
        assert_eq!(Arc::strong_count(&held), 2, "let go");
    }
    let unknown = models.resolve(&"registry:other".parse().unwrap()).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let none = ModelResolver::local().resolve(&"registry:bakery".parse().unwrap()).await.unwrap_err();
    assert!(none.kind() == ErrorKind::Unsupported && none.to_string().contains("bakery/stable"), "{none}");
}

#[tokio::test]
async fn paths_are_taken_as_they_are_and_the_hubs_models_from_its_cache() {
    let folder = tempfile::tempdir().unwrap();
    let models = ModelResolver::local().with_cache(HubCache::at(folder.path()));
    let resolve = async |text: &str| models.resolve(&text.parse::<ModelSource>().unwrap()).await;
    assert_eq!(resolve(fixture("qwen3").to_str().unwrap()).await.unwrap().path(), fixture("qwen3"));
    assert_eq!(resolve("/nonesuch").await.unwrap_err().kind(), ErrorKind::NotFound);
    let error = resolve("hf:org/tiny").await.unwrap_err();
    assert_eq!(error.context("command"), Some("hf download org/tiny --revision main"), "{error}");
    let snapshot = folder.path().join("models--org--tiny/snapshots").join("0".repeat(40));
    fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(fixture("qwen3").join(name), snapshot.join(name)).unwrap();
    }
    let commit = format!("hf:org/tiny@{}", "0".repeat(40));
    assert_eq!(resolve(&commit).await.unwrap().path(), snapshot);
}
