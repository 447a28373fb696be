use std::sync::Arc;

use hybrid_core::{ErrorKind, FileName, TenantId};
use hybrid_sync::registry::{FetchOptions, Namespace, PublishOptions, Registry};

use super::site::{FailingStore, Site, noise, now, tensors};

fn layers(changed: &[usize]) -> Vec<u8> {
    let layers: Vec<_> = (0..100_usize)
        .map(|i| {
            let size = if i.is_multiple_of(2) { 400_000 } else { 2_000 };
            (format!("layer.{i:03}"), noise(size, i as u64 + if changed.contains(&i) { 1000 } else { 0 }))
        })
        .collect();
    tensors(&layers)
}

#[tokio::test]
async fn the_same_content_published_again_uploads_no_blob_and_asks_the_store_about_none() {
    let site = Site::new();
    let files = [("model.safetensors", layers(&[])), ("config.json", b"{}".to_vec())];
    let first = site.publish(site.draft(1, &files)).await.unwrap();
    assert_eq!(first.bytes_moved, first.bytes_total);

    let counting = FailingStore::counting(site.store.clone());
    let mut again = site.draft(2, &files);
    again.base = Some(first.manifest);
    let second =
        site.over(counting.clone()).publish(again, &site.builder, PublishOptions::new("job-2", now())).await.unwrap();
    assert_eq!((second.blobs_uploaded, second.bytes_moved), (0, 0));
    assert_eq!(second.blobs_reused, first.blobs_uploaded);
    assert_ne!(second.manifest, first.manifest);
    // The base's manifest is read; signature and manifest are created.
    assert_eq!(counting.operations(), 3);

    let retried = site.publish(site.draft(1, &files)).await.unwrap();
    assert_eq!((retried.manifest, retried.blobs_uploaded), (first.manifest, 0), "the same publication again");
}

#[tokio::test]
async fn a_change_moves_at_most_1_01_times_the_changed_tensors_and_the_header() {
    let site = Site::new();
    let first = site.publish(site.draft(1, &[("model.safetensors", layers(&[]))])).await.unwrap();
    let mut draft = site.draft(2, &[("model.safetensors", layers(&[10, 40, 41]))]);
    draft.base = Some(first.manifest);
    let second = site.publish(draft).await.unwrap();
    let changed = 802_000;
    let header = u64::from_le_bytes(layers(&[])[..8].try_into().unwrap()) + 8;
    assert!(second.bytes_moved >= changed);
    assert!(second.bytes_moved as f64 <= 1.01 * changed as f64 + header as f64, "{}", second.bytes_moved);
}

#[tokio::test]
async fn a_chunk_that_occurs_twice_is_uploaded_once() {
    let site = Site::new();
    let bytes = noise(50_000, 1);
    let published = site.publish(site.draft(1, &[("a.bin", bytes.clone()), ("b.bin", bytes)])).await.unwrap();
    assert_eq!((published.blobs_uploaded, published.blobs_reused, published.bytes_moved), (1, 1, 50_000));
    assert_eq!(site.fetch(published.manifest, "cache").await.unwrap().manifest.files.len(), 2);
}

#[tokio::test]
async fn an_empty_file_and_a_file_of_many_chunks_come_back_whole() {
    let site = Site::new();
    let large = noise(9 << 20, 3);
    let published =
        site.publish(site.draft(1, &[("empty", Vec::new()), ("sub/large.bin", large.clone())])).await.unwrap();
    let fetched = site.fetch(published.manifest, "cache").await.unwrap();
    assert_eq!(std::fs::read(fetched.folder.join("empty")).unwrap(), b"");
    assert_eq!(std::fs::read(fetched.folder.join("sub/large.bin")).unwrap(), large);
    assert_eq!(fetched.bytes_moved, large.len() as u64);
    assert!(fetched.manifest.files[1].chunks.len() > 2);
}

#[tokio::test]
async fn a_draft_that_could_not_be_loaded_is_refused_before_anything_is_uploaded() {
    let site = Site::new();
    let check = async |draft| {
        let error = site.publish(draft).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    check(site.draft(1, &[])).await;
    check(site.draft(2, &[("manifest.json", vec![1])])).await;
    check(site.draft(3, &[("MODEL.sig", vec![1])])).await;
    check(site.draft(4, &[(".gitattributes", vec![1])])).await;
    let mut other = site.draft(5, &[("a", vec![1])]);
    other.lineage.dataset = hybrid_core::Digest::of(b"another");
    check(other).await;
    let mut clash = site.draft(6, &[("a", vec![1])]);
    let mut upper = clash.files[0].clone();
    upper.name = FileName::new("A").unwrap();
    clash.files.push(upper);
    check(clash).await;
    assert!(site.keys().await.is_empty());
    let mut missing = site.draft(7, &[("a", vec![1])]);
    missing.files[0].path.push("nowhere");
    assert!(site.publish(missing).await.is_err());
}

#[tokio::test]
async fn a_cancelled_publication_ends_and_a_retry_completes_it() {
    let site = Site::new();
    let files = [("model.safetensors", layers(&[]))];
    let options = PublishOptions::new("job-1", now());
    options.cancel.cancel();
    let error = site.registry.publish(site.draft(1, &files), &site.builder, options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(site.publish(site.draft(1, &files)).await.is_ok());
}

#[tokio::test]
async fn progress_moves_forward_and_ends_with_all_bytes() {
    let site = Site::new();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let mut options = PublishOptions::new("job-1", now());
    options.progress = Arc::new(hybrid_core::ProgressFn(move |event| sink.lock().unwrap().push(event)));
    let draft = site.draft(1, &[("model.bin", noise(5 << 20, 1))]);
    // As a worker does it: on a task of its own.
    let publication = tokio::spawn(async move { site.registry.publish(draft, &site.builder, options).await });
    publication.await.unwrap().unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted_by_key(|event| event.done));
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total), (5 << 20, Some(5 << 20)));
}

#[tokio::test]
async fn a_tenants_models_lie_below_the_tenant_and_share_nothing_with_others() {
    let site = Site::new();
    let tenant = |name: &str| {
        let namespace = Namespace::tenant(&TenantId::new(name).unwrap());
        Registry::new(Arc::new(site.store.clone()), namespace)
    };
    let draft = || site.draft(1, &[("label.txt", b"one".to_vec())]);
    let one = tenant("one").publish(draft(), &site.builder, PublishOptions::new("job-1", now())).await.unwrap();
    assert!(site.keys().await.iter().all(|key| key.as_str().starts_with("t/one/")));
    let (trust, cache) = (site.trust(), site.cache("cache"));
    let stranger = tenant("two").fetch(one.manifest, &trust, &cache, FetchOptions::default()).await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::NotFound);
    tenant("one").fetch(one.manifest, &trust, &cache, FetchOptions::default()).await.unwrap();
}
