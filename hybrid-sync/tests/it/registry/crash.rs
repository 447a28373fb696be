//! Promises 1 to 3: what a crash, a lost answer and a race may do.

use std::sync::{Arc, LazyLock};

use hybrid_core::{ArtifactStoreExt, ChannelName, ErrorKind, Result, memory::MemoryStore};
use hybrid_sync::registry::{FetchOptions, Head, PublishOptions, Registry, Release};

use super::site::{DAY, FailingStore, Fault, Site, chunks, model, now};

fn files() -> [(&'static str, Vec<u8>); 2] {
    static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| chunks(4, 7));
    [("config.json", b"{}".to_vec()), ("model.safetensors", LARGE.clone())]
}

async fn publish_and_release(site: &Site, registry: &Registry) -> Result<Head> {
    let published =
        registry.publish(site.draft(1, &files()), &site.builder, PublishOptions::new("job-1", now())).await?;
    let release =
        Release { manifest: published.manifest, incumbent: None, why: "better".to_owned(), nonce: "job-1".to_owned() };
    registry.channel(&model(), &ChannelName::stable()).append(release, &site.release, now(), 90 * DAY).await
}

/// What a storefront can see is nothing or a whole version; how many statements there are.
async fn check_visible(site: &Site, cache: &str) -> usize {
    let history = site.channel().history(&site.trust().releases).await.unwrap();
    for head in &history {
        site.fetch(head.statement.manifest, cache).await.unwrap();
    }
    history.len()
}

#[tokio::test]
async fn promise_1_at_any_crash_point_a_channel_names_only_a_complete_version() {
    let mut site = Site::new();
    let digest = publish_and_release(&site, &site.registry).await.unwrap().statement.manifest;
    for fault in [Fault::DiesBefore, Fault::DiesAfter] {
        for at in 1.. {
            site = site.emptied();
            let failing = FailingStore::new(site.store.clone(), at, fault);
            let crashed = publish_and_release(&site, &site.over(failing.clone())).await;
            let visible = check_visible(&site, &format!("crash-{fault:?}-{at}")).await;
            if failing.operations() < at {
                assert!(crashed.is_ok() && visible == 1 && at > 8);
                break;
            }
            assert!(crashed.is_err());
            assert!(visible <= 1);
            // The job is delivered again, to a healthy process.
            let again = publish_and_release(&site, &site.registry).await.unwrap();
            assert_eq!((again.statement.manifest, again.statement.seq), (digest, 1), "{fault:?} at {at}");
            assert_eq!(check_visible(&site, &format!("again-{fault:?}-{at}")).await, 1);
        }
    }
}

#[tokio::test]
async fn promise_1_a_fetch_that_crashes_anywhere_leaves_nothing_visible_and_goes_on() {
    let site = Site::new();
    let head = publish_and_release(&site, &site.registry).await.unwrap();
    let manifest = head.statement.manifest;
    for at in 1.. {
        let failing = FailingStore::new(site.store.clone(), at, Fault::DiesBefore);
        let cache = site.cache(&format!("cache-{at}"));
        let options = FetchOptions { parallelism: 1, ..FetchOptions::default() };
        let crashed = site.over(failing.clone()).fetch(manifest, &site.trust(), &cache, options).await;
        if failing.operations() < at {
            assert!(crashed.is_ok() && at > 5);
            break;
        }
        assert!(crashed.is_err());
        assert!(!cache.join(manifest.to_string()).exists());
        let fetched = site.fetch(manifest, &format!("cache-{at}")).await.unwrap();
        assert_eq!(std::fs::read(fetched.folder.join("model.safetensors")).unwrap(), files()[1].1);
    }
}

#[tokio::test]
async fn promise_2_of_16_publishers_at_one_number_exactly_one_wins() {
    let site = Arc::new(Site::new());
    let first = site.release(1, None).await;
    let mut candidates = Vec::new();
    for version in 2..18 {
        candidates
            .push(site.publish(site.draft(version, &[("label.txt", vec![version as u8])])).await.unwrap().manifest);
    }
    let start = Arc::new(tokio::sync::Barrier::new(candidates.len()));
    let mut racers = tokio::task::JoinSet::new();
    for manifest in candidates {
        let (site, start) = (Arc::clone(&site), Arc::clone(&start));
        racers.spawn(async move {
            start.wait().await;
            site.append(manifest, Some(first)).await
        });
    }
    let results = racers.join_all().await;
    let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1);
    assert!(
        results.iter().filter_map(|result| result.as_ref().err()).all(|error| error.kind() == ErrorKind::AlreadyExists)
    );
    let history = site.channel().history(&site.trust().releases).await.unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(&history[1], winners[0]);
}

#[tokio::test]
async fn promises_2_and_3_an_ambiguous_answer_at_any_operation_is_resolved() {
    let mut site = Site::new();
    for fault in [Fault::FailsOnce, Fault::LandsUnheard, Fault::LandsAsConflict, Fault::FalseConflict] {
        for at in 1.. {
            site = site.emptied();
            let failing = FailingStore::new(site.store.clone(), at, fault);
            let head = publish_and_release(&site, &site.over(failing.clone())).await;
            assert!(head.is_ok(), "{fault:?} at {at}: {head:?}");
            assert_eq!(check_visible(&site, &format!("{fault:?}-{at}")).await, 1);
            if failing.operations() < at {
                break;
            }
        }
    }
}

#[tokio::test]
async fn promise_2_the_nonce_tells_an_own_statement_from_another_writers() {
    let site = Site::new();
    let first = site.release(1, None).await;
    let second = site.publish(site.draft(2, &[("label.txt", vec![2])])).await.unwrap().manifest;
    let own = site.append(second, Some(first)).await.unwrap();
    assert_eq!(site.append(second, Some(first)).await.unwrap(), own, "a retry finds what it has appended");
    let release =
        Release { manifest: second, incumbent: Some(first), why: String::new(), nonce: "another writer".to_owned() };
    let error = site.channel().append(release, &site.release, now(), DAY).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    // A third statement does not hide it.
    site.append(first, Some(second)).await.unwrap();
    assert_eq!(site.append(second, Some(first)).await.unwrap(), own);
}

#[tokio::test]
async fn promise_3_a_conflict_with_nothing_stored_is_never_reported_as_lost() {
    let site = Site::new();
    let failing = FailingStore::new(MemoryStore::default(), 1, Fault::FalseConflicts);
    let error = publish_and_release(&site, &site.over(failing)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn the_order_is_blobs_then_signature_then_manifest() {
    let site = Site::new();
    let digest = publish_and_release(&site, &site.registry).await.unwrap().statement.manifest;
    let mut seen_manifest_last = false;
    for at in 1..20 {
        let store = MemoryStore::default();
        let failing = FailingStore::new(store.clone(), at, Fault::DiesBefore);
        let _ = publish_and_release(&site, &site.over(failing)).await;
        let manifest = store.exists(&format!("manifests/{digest}").parse().unwrap()).await.unwrap();
        let bundle = store.exists(&format!("manifests/{digest}.sigstore.json").parse().unwrap()).await.unwrap();
        assert!(!manifest || bundle);
        if bundle && !manifest {
            seen_manifest_last = true;
            assert!(store.list_all("blobs/").await.unwrap().len() > 1);
        }
    }
    assert!(seen_manifest_last);
}
