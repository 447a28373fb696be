//! Promises 4 and 5: rollback, forks and freezing.

use std::{sync::Arc, time::Duration};

use hybrid_core::{ArtifactStore, ArtifactStoreExt, ErrorKind, Key, ManualClock, Verdict};
use hybrid_sync::registry::{ChannelReader, FileFloor, FileSigner, Floor, FloorStore, MemoryFloor, Release};

use super::site::{DAY, Site, model, now};

pub(super) fn key(seq: u64) -> Key {
    format!("channels/bakery/stable/{seq:020}").parse().unwrap()
}

async fn reader(site: &Site, floor: Arc<dyn FloorStore>, clock: &ManualClock) -> ChannelReader {
    ChannelReader::open(site.channel(), &site.trust(), floor, Arc::new(clock.clone())).await.unwrap()
}

async fn look_error(reader: &mut ChannelReader) -> hybrid_core::Error {
    let floor = reader.floor().cloned();
    let error = reader.look().await.unwrap_err();
    assert_eq!(reader.floor(), floor.as_ref(), "an error moves no floor");
    error
}

#[tokio::test]
async fn a_reader_follows_the_channel_one_statement_after_the_other() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let mut reader = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    assert_eq!(look_error(&mut reader).await.kind(), ErrorKind::NotFound);
    let one = site.release(1, None).await;
    assert_eq!(reader.look().await.unwrap().floor.manifest, one);
    assert_eq!(reader.look().await.unwrap().news, None);
    let two = site.release(2, Some(one)).await;
    let back = site.append(one, Some(two)).await.unwrap();
    let look = reader.look().await.unwrap();
    assert_eq!(
        (look.floor.seq, look.floor.manifest),
        (3, one),
        "rolling back is a new number that names an old version"
    );
    assert_eq!(look.news, Some(back));
}

#[tokio::test]
async fn promise_4_a_number_below_the_floor_is_refused() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let path = site.cache("floor.json");
    let one = site.release(1, None).await;
    site.release(2, Some(one)).await;
    reader(&site, Arc::new(FileFloor::new(&path)), &clock).await.look().await.unwrap();
    site.store.delete(&key(2)).await.unwrap();
    // Another process, later: the floor is on the disk.
    let error = look_error(&mut reader(&site, Arc::new(FileFloor::new(&path)), &clock).await).await;
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert_eq!(error.context("seq"), Some("2"));
    // A reader without a disk takes its floor from configuration.
    let floor = FileFloor::new(&path).load().unwrap().unwrap();
    let pinned = Arc::new(MemoryFloor::pinned(Floor { expires: None, serving: None, ..floor }));
    assert_eq!(look_error(&mut reader(&site, pinned, &clock).await).await.kind(), ErrorKind::Untrusted);
}

#[tokio::test]
async fn promise_4_another_statement_at_a_seen_number_is_refused() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let mut reader = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    reader.look().await.unwrap();
    let genuine = site.store.get(&key(1)).await.unwrap();
    site.store.delete(&key(1)).await.unwrap();
    let release = Release {
        manifest: one,
        incumbent: None,
        why: "signed by the genuine key".to_owned(),
        nonce: "other".to_owned(),
    };
    site.channel().append(release, &site.release, now(), DAY).await.unwrap();
    assert_eq!(look_error(&mut reader).await.kind(), ErrorKind::Untrusted);
    site.store.corrupt(&key(1), genuine);
    reader.look().await.unwrap();
}

#[tokio::test]
async fn promise_4_a_broken_chain_or_a_gap_is_refused() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let two = site.release(2, Some(one)).await;
    let second = site.store.get(&key(2)).await.unwrap();
    let third = site.append(one, Some(two)).await.unwrap();
    let mut warm = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    // Genuine statements of another history of the same channel.
    let other = Site { store: Default::default(), ..Site::new() };
    let other = Site {
        builder: FileSigner::from_pem(&pem(&site, "builder")).unwrap(),
        release: FileSigner::from_pem(&pem(&site, "release")).unwrap(),
        ..other.emptied()
    };
    let first = other.release(7, None).await;
    other.release(8, Some(first)).await;
    let foreign = other.store.get(&key(2)).await.unwrap();

    site.store.corrupt(&key(2), foreign);
    let error = look_error(&mut warm).await;
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    site.store.corrupt(&key(2), second);
    warm.look().await.unwrap();

    site.append(two, Some(one)).await.unwrap();
    site.store.delete(&key(2)).await.unwrap();
    let mut cold = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    let error = look_error(&mut cold).await;
    assert_eq!((error.kind(), error.context("seq")), (ErrorKind::Untrusted, Some("2")));
    assert_eq!(third.statement.seq, 3);
}

fn pem(site: &Site, name: &str) -> String {
    std::fs::read_to_string(site.folder.path().join(format!("{name}.pem"))).unwrap()
}

#[tokio::test]
async fn promise_4_a_statement_of_another_channel_number_or_model_is_refused() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let two = site.release(2, Some(one)).await;
    let canary = site.registry.channel(&model(), &hybrid_core::ChannelName::new("canary").unwrap());
    let release = Release { manifest: two, incumbent: None, why: String::new(), nonce: "c".to_owned() };
    canary.append(release, &site.release, now(), DAY).await.unwrap();
    let foreign = site.store.get(&"channels/bakery/canary/00000000000000000001".parse().unwrap()).await.unwrap();
    let second = site.store.get(&key(2)).await.unwrap();
    for forged in [foreign, second] {
        site.store.corrupt(&key(1), forged);
        site.store.delete(&key(2)).await.unwrap();
        let error = look_error(&mut reader(&site, Arc::new(MemoryFloor::default()), &clock).await).await;
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    }
}

#[tokio::test]
async fn promise_5_expiry_blocks_new_versions_and_never_the_accepted_one() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let mut follower = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    assert!(!follower.look().await.unwrap().stale);
    clock.advance(91 * DAY);
    let look = follower.look().await.unwrap();
    assert!(look.stale && look.floor.manifest == one, "the accepted version stays");

    let two = site.release(2, Some(one)).await;
    let error = look_error(&mut follower).await;
    assert_eq!((error.kind(), error.context("seq")), (ErrorKind::Untrusted, Some("2")));
    assert_eq!(
        look_error(&mut reader(&site, Arc::new(MemoryFloor::default()), &clock).await).await.kind(),
        ErrorKind::Untrusted
    );

    site.channel().renew("renewal-1", &site.release, now().plus(91 * DAY), 90 * DAY).await.unwrap();
    let look = follower.look().await.unwrap();
    assert_eq!((look.floor.manifest, look.floor.seq, look.stale), (two, 3, false));
}

#[tokio::test]
async fn promise_5_a_late_renewal_of_the_accepted_version_is_taken_and_stale() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let mut reader = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    reader.look().await.unwrap();
    site.channel().renew("renewal-1", &site.release, now(), DAY).await.unwrap();
    clock.advance(2 * DAY);
    let look = reader.look().await.unwrap();
    assert_eq!((look.floor.seq, look.floor.manifest, look.stale), (2, one, true));
}

#[tokio::test]
async fn promise_5_the_latest_time_seen_never_moves_back() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let path = site.cache("floor.json");
    site.release(1, None).await;
    reader(&site, Arc::new(FileFloor::new(&path)), &clock).await.look().await.unwrap();
    clock.advance(91 * DAY);
    let mut late = reader(&site, Arc::new(FileFloor::new(&path)), &clock).await;
    assert!(late.look().await.unwrap().stale);
    // The clock is set back, and the process starts anew.
    clock.jump_wall(-100 * 86_400 * 1_000_000);
    let mut back = reader(&site, Arc::new(FileFloor::new(&path)), &clock).await;
    assert!(back.look().await.unwrap().stale);
    assert!(back.now() >= now().plus(90 * DAY));
}

#[tokio::test]
async fn a_clock_that_once_jumped_ahead_bars_no_later_release() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let path = site.cache("floor.json");
    let one = site.release(1, None).await;
    let mut reader_then = reader(&site, Arc::new(FileFloor::new(&path)), &clock).await;
    reader_then.look().await.unwrap();
    clock.jump_wall(700 * 86_400 * 1_000_000);
    assert!(reader_then.look().await.unwrap().stale);
    clock.jump_wall(-700 * 86_400 * 1_000_000);
    clock.advance(DAY);

    let manifest = site.publish(site.draft(2, &[("label.txt", vec![2])])).await.unwrap().manifest;
    let release = Release { manifest, incumbent: Some(one), why: String::new(), nonce: "two".to_owned() };
    site.channel().append(release, &site.release, now().plus(DAY), 90 * DAY).await.unwrap();
    let mut restarted = reader(&site, Arc::new(FileFloor::new(&path)), &clock).await;
    for reader in [&mut reader_then, &mut restarted] {
        let look = reader.look().await.unwrap();
        assert_eq!((look.floor.manifest, look.stale), (manifest, false));
    }
}

#[tokio::test]
async fn promise_5_a_statement_from_the_future_is_refused_and_names_the_clocks() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let manifest = site.publish(site.draft(1, &[("label.txt", vec![1])])).await.unwrap().manifest;
    let release = Release { manifest, incumbent: None, why: String::new(), nonce: "n".to_owned() };
    let issued = now().plus(Duration::from_secs(3600));
    site.channel().append(release, &site.release, issued, DAY).await.unwrap();
    let mut reader = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    let error = look_error(&mut reader).await;
    assert_eq!((error.kind(), error.context("issued")), (ErrorKind::Untrusted, Some(issued.to_string().as_str())));
    clock.advance(Duration::from_secs(3000));
    reader.look().await.unwrap();
}

#[tokio::test]
async fn a_damaged_floor_file_is_an_error_and_not_a_fresh_start() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let path = site.cache("floor.json");
    std::fs::write(&path, "{").unwrap();
    let floor = Arc::new(FileFloor::new(&path));
    let error = ChannelReader::open(site.channel(), &site.trust(), floor, Arc::new(clock)).await.unwrap_err();
    assert_eq!(error.context("path"), path.to_str());
}

#[tokio::test]
async fn a_decision_against_another_incumbent_is_refused_to_be_judged_again() {
    let site = Site::new();
    let one = site.release(1, None).await;
    let two = site.release(2, Some(one)).await;
    let three = site.publish(site.draft(3, &[("label.txt", vec![3])])).await.unwrap().manifest;
    for stale in [None, Some(one)] {
        assert_eq!(site.append(three, stale).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
    site.append(three, Some(two)).await.unwrap();
}

#[tokio::test]
async fn a_version_that_is_missing_refused_or_another_models_is_not_released() {
    let site = Site::new();
    let nowhere = hybrid_core::Digest::of(b"nowhere");
    assert_eq!(site.append(nowhere, None).await.unwrap_err().kind(), ErrorKind::NotFound);
    let mut worse = site.draft(1, &[("label.txt", vec![1])]);
    worse.verdict.verdict = Verdict::Refuse("worse".to_owned());
    let worse = site.publish(worse).await.unwrap().manifest;
    assert_eq!(site.append(worse, None).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    let mut other = site.draft(2, &[("label.txt", vec![1])]);
    other.model = hybrid_core::ModelName::new("butcher").unwrap();
    other.lineage.plan.model = other.model.clone();
    let other = site.publish(other).await.unwrap().manifest;
    assert_eq!(site.append(other, None).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(site.channel().renew("n", &site.release, now(), DAY).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_new_release_key_continues_a_channel_that_names_the_old_one() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let mut warm = reader(&site, Arc::new(MemoryFloor::default()), &clock).await;
    warm.look().await.unwrap();
    let new = FileSigner::generate(&site.cache("new.pem")).unwrap();
    let stranger = site.channel().renew("n", &new, now(), DAY).await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Untrusted, "an unknown key does not build on what it cannot verify");
    let channel = site.channel().with_release_keys([site.release.public_key().clone()]);
    channel.renew("n", &new, now(), DAY).await.unwrap();
    let trust = hybrid_sync::registry::Trust { releases: vec![new.public_key().clone()], ..site.trust() };
    let mut cold =
        ChannelReader::open(site.channel(), &trust, Arc::new(MemoryFloor::default()), Arc::new(clock)).await.unwrap();
    assert_eq!(cold.look().await.unwrap().floor.manifest, one);
    assert_eq!(look_error(&mut warm).await.kind(), ErrorKind::Untrusted);
}
