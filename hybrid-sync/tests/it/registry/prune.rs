//! The cache on a reader's disk stays bounded, and nobody loses what is needed.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use hybrid_core::{ChannelName, Digest, ErrorKind};
use hybrid_sync::{
    live::Refresh,
    registry::{FetchOptions, FileSigner, Namespace, Registry, Trust, held_versions, hold_versions, prune_cache},
};

use super::{
    live::{Storefront, label},
    site::{FailingStore, Site, noise},
};

/// The digests that any name in the cache begins with.
fn digests(cache: &Path) -> BTreeSet<Digest> {
    let names = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.get(..64)?.parse().ok()).collect()
}

async fn publish(site: &Site, version: u64) -> Digest {
    let files = [("model.bin", noise(200_000, version))];
    site.publish(site.draft(version, &files)).await.unwrap().manifest
}

#[tokio::test]
async fn the_version_in_service_and_the_one_before_stay_and_no_other() {
    let front = Storefront::new();
    let live = front.live().await;
    let (cache, mut before) = (front.site.cache("cache"), None);
    for version in 1..=5 {
        let manifest = front.site.release(version, before).await;
        live.refresh().await.unwrap();
        assert_eq!(digests(&cache), before.into_iter().chain([manifest]).collect(), "version {version}");
        before = Some(manifest);
    }
    let versions: Vec<_> = front.site.channel().history(&front.site.trust().releases).await.unwrap();
    let [.., four, five] = &versions[..] else { panic!() };
    let (four, five) = (four.statement.manifest, five.statement.manifest);
    // The way back needs no store.
    front.site.append(four, Some(five)).await.unwrap();
    assert!(matches!(live.refresh().await.unwrap(), Refresh::Swapped { version: 4, bytes_moved: 0, .. }));
    assert_eq!(digests(&cache), BTreeSet::from([four, five]));
    // A restart remembers which one was before.
    drop(live);
    let live = front.live().await;
    live.refresh().await.unwrap();
    assert_eq!((label(&live).await.as_str(), digests(&cache)), ("label-4", BTreeSet::from([four, five])));
}

#[tokio::test]
async fn versions_that_do_not_load_do_not_pile_up() {
    let front = Storefront::new();
    let live = front.live().await;
    let cache = front.site.cache("cache");
    let one = front.site.release(1, None).await;
    live.refresh().await.unwrap();
    let mut incumbent = one;
    for version in 2..=6 {
        incumbent = front.release_label(version, &format!("{:01$}", 0, version as usize), Some(incumbent)).await;
        let damaged = front.site.store.clone();
        let blob = front.site.registry.manifest(incumbent).await.unwrap().files[0].chunks[0].blob.clone();
        damaged.corrupt(&blob, "damaged".into());
        live.refresh().await.unwrap_err();
        let found = digests(&cache);
        assert!(found.contains(&one) && found.contains(&incumbent) && found.len() <= 3, "{found:?}");
        assert_eq!(label(&live).await, "label-1");
    }
}

#[tokio::test]
async fn what_somebody_reads_stays_until_it_is_let_go() {
    let site = Site::new();
    let (one, two) = (publish(&site, 1).await, publish(&site, 2).await);
    let cache = site.cache("cache");
    let reading = site.fetch(one, "cache").await.unwrap();
    let also = reading.in_use.clone();
    drop(site.fetch(two, "cache").await.unwrap());
    let pruned = prune_cache(&cache).await.unwrap();
    assert_eq!(pruned.versions, BTreeSet::from([two]));
    assert!(pruned.bytes > 200_000, "{pruned:?}");
    drop(reading);
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::new());
    drop(also);
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::from([one]));
    assert_eq!(digests(&cache), BTreeSet::new());
    // What is gone is fetched again.
    assert_eq!(site.fetch(one, "cache").await.unwrap().bytes_moved, 200_000);
}

#[tokio::test]
async fn what_a_holder_has_written_down_stays_though_it_does_not_run() {
    let site = Site::new();
    let (one, two, three) = (publish(&site, 1).await, publish(&site, 2).await, publish(&site, 3).await);
    let cache = site.cache("cache");
    hold_versions(&cache, "shop.stable", &[two, one]).await.unwrap();
    for manifest in [one, two, three] {
        site.fetch(manifest, "cache").await.unwrap();
    }
    hold_versions(&cache, "shop.canary", &[three]).await.unwrap();
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::new());
    assert_eq!(held_versions(&cache, "shop.stable").await.unwrap(), [two, one]);
    assert_eq!(held_versions(&cache, "unknown").await.unwrap(), []);
    hold_versions(&cache, "shop.stable", &[two]).await.unwrap();
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::from([one]));

    // A list that cannot be read may name anything.
    let list = cache.join("shop.canary.held.json");
    let sound = fs::read(&list).unwrap();
    for damaged in [&b"{"[..], br#"{"format":"hybrid.held-versions/9","versions":[]}"#] {
        fs::write(&list, damaged).unwrap();
        let error = prune_cache(&cache).await.unwrap_err();
        assert_eq!(error.context("path"), list.to_str(), "{error}");
    }
    fs::write(&list, sound).unwrap();
    assert_eq!(digests(&cache), BTreeSet::from([two, three]));
    for bad in ["", "../evil", "a/b", "a\\b"] {
        let error = hold_versions(&cache, bad, &[one]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
}

#[tokio::test]
async fn two_models_on_one_cache_keep_each_others_versions() {
    let front = Storefront::new();
    let cache = front.site.cache("cache");
    let one = front.site.release(1, None).await;
    let stable = front.live().await;
    stable.refresh().await.unwrap();
    // A stopped storefront is in no lock, only in its list.
    drop(stable);
    let canary = ChannelName::new("canary").unwrap();
    let live = hybrid_sync::live::LiveModel::builder(
        front.site.registry.clone(),
        super::site::model(),
        canary.clone(),
        front.site.trust(),
        front.loader.clone() as _,
        &cache,
    )
    .clock(Arc::new(front.clock.clone()))
    .build()
    .await
    .unwrap();
    let channel = front.site.registry.channel(&super::site::model(), &canary);
    let mut incumbent = None;
    for version in 2..=5 {
        let draft = front.site.draft(version, &[("label.txt", format!("label-{version}").into_bytes())]);
        let manifest = front.site.publish(draft).await.unwrap().manifest;
        let release = hybrid_sync::registry::Release {
            manifest,
            incumbent,
            why: String::new(),
            nonce: format!("canary-{version}"),
        };
        let day = super::site::DAY;
        channel.append(release, &front.site.release, super::site::now(), day).await.unwrap();
        live.refresh().await.unwrap();
        incumbent = Some(manifest);
    }
    assert_eq!(digests(&cache).len(), 3);
    let away = Registry::new(FailingStore::away(), Namespace::root());
    let stable = front.open(away, false).await;
    assert_eq!(label(&stable).await, "label-1");
    assert_eq!(stable.status().serving.unwrap().manifest, one);
}

#[tokio::test]
async fn what_a_crash_left_goes_and_what_is_not_the_caches_stays() {
    let site = Site::new();
    let (one, two) = (publish(&site, 1).await, publish(&site, 2).await);
    let cache = site.cache("cache");
    drop(site.fetch(one, "cache").await.unwrap());
    // A process died while it fetched, another after it took a version's name, a third in the middle of removing one.
    let partial = cache.join(format!("{two}.partial"));
    fs::create_dir_all(partial.join("sub")).unwrap();
    fs::write(partial.join("sub/model.bin"), "half").unwrap();
    for left in [format!("{one}.pruned"), format!("{two}.partial.pruned")] {
        fs::create_dir(cache.join(&left)).unwrap();
        fs::write(cache.join(left).join("model.bin"), "left").unwrap();
    }
    fs::write(cache.join("notes.txt"), "mine").unwrap();
    fs::create_dir(cache.join("folder.partial")).unwrap();
    fs::create_dir(cache.join(format!("{one}.mine"))).unwrap();
    let pruned = prune_cache(&cache).await.unwrap();
    assert_eq!(pruned.versions, BTreeSet::from([one, two]));
    assert!(cache.join("notes.txt").exists() && cache.join("folder.partial").exists());
    assert!(cache.join(format!("{one}.mine")).exists());
    fs::remove_dir(cache.join(format!("{one}.mine"))).unwrap();
    assert_eq!(digests(&cache), BTreeSet::new());

    #[cfg(unix)]
    {
        let outside = site.cache("outside");
        fs::create_dir_all(outside.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, cache.join(one.to_string())).unwrap();
        prune_cache(&cache).await.unwrap();
        assert!(outside.join("kept").exists());
        assert!(fs::symlink_metadata(cache.join(one.to_string())).unwrap().is_symlink());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fetching_and_pruning_at_once_never_meet_in_one_version() {
    let site = Arc::new(Site::new());
    let mut versions = Vec::new();
    for version in 1..=3 {
        versions.push(publish(&site, version).await);
    }
    let mut fetchers = tokio::task::JoinSet::new();
    for fetcher in 0..3 {
        let (site, versions) = (Arc::clone(&site), versions.clone());
        fetchers.spawn(async move {
            for round in 0..20 {
                let version = (fetcher + round) % 3;
                let fetched = site.fetch(versions[version], "cache").await.unwrap();
                for _ in 0..4 {
                    let bytes = fs::read(fetched.folder.join("model.bin")).unwrap();
                    assert_eq!(bytes, noise(200_000, version as u64 + 1));
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let mut removed = 0;
    while !fetchers.is_empty() {
        removed += prune_cache(&site.cache("cache")).await.unwrap().versions.len();
        while let Some(ended) = fetchers.try_join_next() {
            ended.unwrap();
        }
    }
    assert!(removed > 0);
}

const CHILD_FOLDER: &str = "HYBRID_TEST_PRUNE_FOLDER";
const CHILD_VERSION: &str = "HYBRID_TEST_PRUNE_VERSION";

/// The other process of the test below: takes a version from the cache into use and waits to be killed.
#[tokio::test]
async fn other_process() {
    let (Ok(folder), Ok(version)) = (std::env::var(CHILD_FOLDER), std::env::var(CHILD_VERSION)) else { return };
    let builder = FileSigner::open_or_generate(&Path::new(&folder).join("builder.pem")).unwrap();
    let trust = Trust { builders: vec![builder.public_key().clone()], releases: Vec::new() };
    let registry = Registry::new(FailingStore::away(), Namespace::root());
    let cache = Path::new(&folder).join("cache");
    let _held = registry.fetch(version.parse().unwrap(), &trust, &cache, FetchOptions::default()).await.unwrap();
    println!("in use");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[tokio::test]
async fn a_version_that_another_process_uses_stays_until_that_process_dies() {
    let site = Site::new();
    let one = publish(&site, 1).await;
    drop(site.fetch(one, "cache").await.unwrap());
    let cache = site.cache("cache");
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::prune::other_process", "--nocapture"])
        .env(CHILD_FOLDER, site.folder.path())
        .env(CHILD_VERSION, one.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said =
        BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap).find(|line| line.contains("in use"));
    assert!(said.is_some(), "the other process did not come so far");
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::new());
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(prune_cache(&cache).await.unwrap().versions, BTreeSet::from([one]));
}
