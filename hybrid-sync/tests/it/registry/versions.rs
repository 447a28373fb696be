use std::{fs, sync::Arc};

use hybrid_core::{ArtifactStore, Digest, ErrorKind, ManualClock, VersionRef, VersionSource};
use hybrid_sync::registry::{Registry, RegistryVersions, prune_cache};

use super::{
    channel::key,
    site::{FailingStore, Fault, Site, model, now},
};

fn versions(site: &Site, registry: &Registry) -> Arc<dyn VersionSource> {
    let clock = Arc::new(ManualClock::at(now()));
    Arc::new(RegistryVersions::new(registry.clone(), site.trust(), site.cache("cache")).with_clock(clock))
}

fn stable() -> VersionRef {
    "bakery".parse().unwrap()
}

#[tokio::test]
async fn a_version_is_brought_by_what_its_channel_names_and_by_its_digest() {
    let site = Site::new();
    let versions = versions(&site, &site.registry);
    assert_eq!(versions.bring(&stable()).await.unwrap_err().kind(), ErrorKind::NotFound);
    let one = site.release(1, None).await;
    let brought = versions.bring(&stable()).await.unwrap();
    assert_eq!((brought.digest, brought.manifest.version, &brought.manifest.model), (one, 1, &model()));
    assert_eq!(fs::read(brought.folder.join("label.txt")).unwrap(), b"label-1");
    let two = site.release(2, Some(one)).await;
    let newer = versions.bring(&stable()).await.unwrap();
    assert_eq!(newer.digest, two);
    assert_eq!(versions.bring(&VersionRef::Manifest(one)).await.unwrap().folder, brought.folder);
    let none = versions.bring(&VersionRef::Manifest(Digest::of(b"none"))).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");

    drop(newer);
    prune_cache(&site.cache("cache")).await.unwrap();
    assert!(brought.folder.is_dir(), "held");
    assert!(!site.cache("cache").join(two.to_string()).exists(), "no longer held");
}

#[tokio::test]
async fn a_channel_is_not_led_back_and_outlives_its_store() {
    let site = Site::new();
    let one = site.release(1, None).await;
    let two = site.release(2, Some(one)).await;
    versions(&site, &site.registry).bring(&stable()).await.unwrap();
    let away = site.over(FailingStore::new(site.store.clone(), 1, Fault::FailsOnce));
    assert_eq!(versions(&site, &away).bring(&stable()).await.unwrap().digest, two);
    site.store.delete(&key(2)).await.unwrap();
    let error = versions(&site, &site.registry).bring(&stable()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    assert_eq!(error.context("version"), Some("bakery/stable"));
}
