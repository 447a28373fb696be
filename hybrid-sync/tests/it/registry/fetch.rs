use std::fs;

use hybrid_core::{ArtifactStoreExt, ErrorKind};
use hybrid_sync::registry::{FetchOptions, verify_folder};

use super::site::{FailingStore, Fault, Site, noise, tensors};

fn layers(seed: u64) -> Vec<u8> {
    tensors(
        &(0..20).map(|i| (format!("t{i:02}"), noise(200_000, if i == 3 { seed } else { 100 + i }))).collect::<Vec<_>>(),
    )
}

#[tokio::test]
async fn a_second_version_moves_only_what_the_machine_lacks() {
    let site = Site::new();
    let first = site.publish(site.draft(1, &[("model.safetensors", layers(1))])).await.unwrap();
    let mut draft = site.draft(2, &[("model.safetensors", layers(2))]);
    draft.base = Some(first.manifest);
    let second = site.publish(draft).await.unwrap();
    let one = site.fetch(first.manifest, "cache").await.unwrap();
    assert_eq!((one.bytes_moved, one.bytes_reused), (first.bytes_total, 0));
    let two = site.fetch(second.manifest, "cache").await.unwrap();
    assert_eq!(fs::read(two.folder.join("model.safetensors")).unwrap(), layers(2));
    assert_eq!(two.bytes_moved, second.bytes_moved);
    assert_eq!(two.bytes_moved + two.bytes_reused, second.bytes_total);
}

#[tokio::test]
async fn what_was_fetched_once_verifies_again_without_a_store() {
    let site = Site::new();
    let manifest = site.release(1, None).await;
    let fetched = site.fetch(manifest, "cache").await.unwrap();
    let away = site.over(FailingStore::away());
    let offline = away.fetch(manifest, &site.trust(), &site.cache("cache"), FetchOptions::default()).await.unwrap();
    assert_eq!((offline.bytes_moved, &offline.folder, &offline.manifest), (0, &fetched.folder, &fetched.manifest));
    let error = away.fetch(manifest, &site.trust(), &site.cache("other"), FetchOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains(&manifest.to_string()), "{error}");
}

#[tokio::test]
async fn a_damaged_version_is_repaired_chunk_by_chunk() {
    let site = Site::new();
    let published = site.publish(site.draft(1, &[("model.safetensors", layers(1))])).await.unwrap();
    let folder = site.fetch(published.manifest, "cache").await.unwrap().folder;
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let offline = site
        .over(FailingStore::away())
        .fetch(published.manifest, &site.trust(), &site.cache("cache"), FetchOptions::default())
        .await;
    assert!(offline.is_err(), "a damaged version is not served");
    let repaired = site.fetch(published.manifest, "cache").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), layers(1));
    assert_eq!(repaired.bytes_moved, 200_000);

    // An extra file, a missing one and a truncated one are damage too.
    fs::write(folder.join("extra.py"), "import os").unwrap();
    site.fetch(published.manifest, "cache").await.unwrap();
    assert!(!folder.join("extra.py").exists());
    fs::remove_file(folder.join("model.sig")).unwrap();
    site.fetch(published.manifest, "cache").await.unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    site.fetch(published.manifest, "cache").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), layers(1));
}

#[tokio::test]
async fn a_damaged_object_is_named_and_once_it_is_sound_no_other_is_read_again() {
    let site = Site::new();
    let published = site.publish(site.draft(1, &[("model.safetensors", layers(1))])).await.unwrap();
    let chunk = site.registry.manifest(published.manifest).await.unwrap().files[0].chunks[7].clone();
    let sound = site.store.get(&chunk.blob).await.unwrap();
    let mut damaged = sound.to_vec();
    damaged[0] ^= 1;
    site.store.corrupt(&chunk.blob, damaged.into());
    let error = site.fetch(published.manifest, "cache").await.unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::Corrupt, Some(chunk.blob.as_str())), "{error}");
    assert!(!site.cache("cache").join(published.manifest.to_string()).exists());
    site.store.corrupt(&chunk.blob, sound);
    let fetched = site.fetch(published.manifest, "cache").await.unwrap();
    assert_eq!(fetched.bytes_moved, chunk.size);
    assert_eq!(fs::read(fetched.folder.join("model.safetensors")).unwrap(), layers(1));
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_where_it_was() {
    let site = Site::new();
    let published = site.publish(site.draft(1, &[("model.safetensors", layers(1))])).await.unwrap();
    let failing = FailingStore::new(site.store.clone(), 14, Fault::DiesBefore);
    let options = FetchOptions { parallelism: 1, ..FetchOptions::default() };
    site.over(failing).fetch(published.manifest, &site.trust(), &site.cache("cache"), options).await.unwrap_err();
    let fetched = site.fetch(published.manifest, "cache").await.unwrap();
    // Of the first eleven chunks at most the few on their way to the disk are read again.
    assert!(fetched.bytes_reused >= 5 * 200_000, "{}", fetched.bytes_reused);
    assert_eq!(fs::read(fetched.folder.join("model.safetensors")).unwrap(), layers(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_of_one_version_at_once_move_it_once() {
    let site = std::sync::Arc::new(Site::new());
    let published = site.publish(site.draft(1, &[("model.safetensors", layers(1))])).await.unwrap();
    let mut fetches = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let site = std::sync::Arc::clone(&site);
        fetches.spawn(async move { site.fetch(published.manifest, "cache").await.unwrap().bytes_moved });
    }
    assert_eq!(fetches.join_all().await.into_iter().sum::<u64>(), published.bytes_total);
}

#[tokio::test]
async fn a_fetched_folder_is_a_signed_model_of_its_own() {
    let site = Site::new();
    let manifest = site.release(1, None).await;
    let folder = site.fetch(manifest, "cache").await.unwrap().folder;
    let verified = verify_folder(&folder, &folder.join("model.sig"), &site.trust().builders).await.unwrap();
    assert_eq!(verified.name, "bakery-1");
    let names: Vec<_> = verified.files.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["label.txt", "manifest.json"]);
    fs::write(folder.join("extra"), "").unwrap();
    let error = verify_folder(&folder, &folder.join("model.sig"), &site.trust().builders).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted);
}

#[tokio::test]
async fn a_cancelled_fetch_ends_and_leaves_nothing_visible() {
    let site = Site::new();
    let manifest = site.release(1, None).await;
    let options = FetchOptions::default();
    options.cancel.cancel();
    let error = site.registry.fetch(manifest, &site.trust(), &site.cache("cache"), options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!site.cache("cache").join(manifest.to_string()).exists());
}
