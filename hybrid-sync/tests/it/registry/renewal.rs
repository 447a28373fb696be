//! Statements are signed again before they expire, and never an old one.

use std::sync::Arc;

use hybrid_core::{ArtifactStore, Cancellation, ChannelName, ErrorKind, ManualClock, ModelName};
use hybrid_sync::registry::{ChannelReader, FileFloor, FileSigner, Floor, FloorStore, MemoryFloor, Renewer, Trust};

use super::site::{DAY, Site, model, now};

async fn renewer(site: &Site, floor: Arc<dyn FloorStore>, clock: &ManualClock) -> Renewer {
    let reader = ChannelReader::open(site.channel(), &site.trust(), floor, Arc::new(clock.clone())).await.unwrap();
    Renewer::new(reader, Arc::new(FileSigner::open_or_generate(&site.cache("release.pem")).unwrap()), 90 * DAY)
}

async fn newest(site: &Site) -> (u64, u64) {
    let head = site.channel().head(&site.trust().releases).await.unwrap().unwrap();
    (head.statement.seq, head.statement.expires.since(now()).as_secs() / DAY.as_secs())
}

#[tokio::test]
async fn a_statement_is_renewed_once_half_of_its_time_is_over_and_holds_in_full_again() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let one = site.release(1, None).await;
    let mut renewer = renewer(&site, Arc::new(MemoryFloor::default()), &clock).await;
    clock.advance(44 * DAY);
    assert_eq!(renewer.look().await.unwrap(), None);
    clock.advance(DAY);
    let head = renewer.look().await.unwrap().unwrap();
    assert_eq!((head.statement.seq, head.statement.manifest), (2, one));
    assert_eq!(newest(&site).await, (2, 135));
    assert_eq!(renewer.look().await.unwrap(), None, "once is enough");
    // Idle for a year: the storefront that starts then finds a statement that holds.
    for _ in 0..8 {
        clock.advance(45 * DAY);
        renewer.look().await.unwrap().unwrap();
    }
    let floor = Arc::new(MemoryFloor::default());
    let mut storefront =
        ChannelReader::open(site.channel(), &site.trust(), floor, Arc::new(clock.clone())).await.unwrap();
    let look = storefront.look().await.unwrap();
    assert_eq!((look.floor.manifest, look.floor.seq, look.stale), (one, 10, false));
}

#[tokio::test]
async fn a_floor_from_configuration_renews_as_well() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    let floor = Arc::new(MemoryFloor::default());
    renewer(&site, Arc::clone(&floor) as _, &clock).await.look().await.unwrap();
    let seen = floor.load().unwrap().unwrap();
    let pinned = Arc::new(MemoryFloor::pinned(Floor { expires: None, serving: None, ..seen }));
    clock.advance(60 * DAY);
    renewer(&site, pinned, &clock).await.look().await.unwrap().unwrap();
    assert_eq!(newest(&site).await, (2, 150));
}

#[tokio::test]
async fn an_old_version_is_not_signed_anew_when_the_bucket_was_rolled_back() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    let path = site.cache("renewal.json");
    let one = site.release(1, None).await;
    site.release(2, Some(one)).await;
    renewer(&site, Arc::new(FileFloor::new(&path)), &clock).await.look().await.unwrap();
    site.store.delete(&"channels/bakery/stable/00000000000000000002".parse().unwrap()).await.unwrap();
    clock.advance(60 * DAY);
    let error = renewer(&site, Arc::new(FileFloor::new(&path)), &clock).await.look().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert_eq!(newest(&site).await, (1, 90), "nothing was appended");
}

#[tokio::test]
async fn two_kitchens_renew_once() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    let mut first = renewer(&site, Arc::new(MemoryFloor::default()), &clock).await;
    let mut second = renewer(&site, Arc::new(MemoryFloor::default()), &clock).await;
    clock.advance(50 * DAY);
    let (first, second) = tokio::join!(first.look(), second.look());
    let renewed: Vec<_> = [first.unwrap(), second.unwrap()].into_iter().flatten().map(|head| head.digest).collect();
    assert!(!renewed.is_empty() && renewed.iter().all(|digest| *digest == renewed[0]), "{renewed:?}");
    assert_eq!(newest(&site).await, (2, 140));
}

#[tokio::test]
async fn a_channel_of_another_key_is_left_alone() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    let other = FileSigner::generate(&site.cache("other.pem")).unwrap();
    let trust = Trust { releases: vec![other.public_key().clone()], ..Trust::default() };
    let floor = Arc::new(MemoryFloor::default());
    let reader = ChannelReader::open(site.channel(), &trust, floor, Arc::new(clock.clone())).await.unwrap();
    clock.advance(60 * DAY);
    let error = Renewer::new(reader, Arc::new(other), 90 * DAY).look().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert_eq!(newest(&site).await, (1, 90));
}

#[tokio::test]
async fn a_running_renewer_looks_at_once_and_ends_when_asked() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    clock.advance(60 * DAY);
    let renewer = renewer(&site, Arc::new(MemoryFloor::default()), &clock).await;
    let stop = Cancellation::new();
    let run = tokio::spawn(renewer.run(Arc::new(clock.clone()), stop.clone()));
    while newest(&site).await.0 < 2 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    run.await.unwrap();
}

#[tokio::test]
async fn the_registry_names_its_channels() {
    let site = Site::new();
    assert!(site.registry.channels().await.unwrap().is_empty());
    let one = site.release(1, None).await;
    site.release(2, Some(one)).await;
    site.store.create(&"channels/no.name/at/all".parse().unwrap(), bytes::Bytes::new()).await.unwrap();
    site.store.create(&"channels/stray".parse().unwrap(), bytes::Bytes::new()).await.unwrap();
    let channels = site.registry.channels().await.unwrap();
    let names: Vec<(&ModelName, &ChannelName)> =
        channels.iter().map(|channel| (channel.model(), channel.name())).collect();
    assert_eq!(names, [(&model(), &ChannelName::stable())]);
}

#[tokio::test]
async fn a_rotated_key_renews_what_the_old_one_signed() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    let new = FileSigner::generate(&site.cache("rotated.pem")).unwrap();
    let mut trust = site.trust();
    trust.releases.push(new.public_key().clone());
    let floor = Arc::new(MemoryFloor::default());
    let reader = ChannelReader::open(site.channel(), &trust, floor, Arc::new(clock.clone())).await.unwrap();
    clock.advance(60 * DAY);
    let head = Renewer::new(reader, Arc::new(new), 90 * DAY).look().await.unwrap().unwrap();
    assert_eq!(head.statement.seq, 2);
    assert_eq!(site.channel().head(&trust.releases).await.unwrap().unwrap(), head);
}

#[tokio::test]
async fn a_key_that_readers_do_not_trust_signs_nothing() {
    let (site, clock) = (Site::new(), ManualClock::at(now()));
    site.release(1, None).await;
    let stranger = FileSigner::generate(&site.cache("stranger.pem")).unwrap();
    let floor = Arc::new(MemoryFloor::default());
    // A channel whose writers know the old key: what they accept is not what readers accept.
    let channel = site.channel().with_release_keys(site.trust().releases);
    let reader = ChannelReader::open(channel, &site.trust(), floor, Arc::new(clock.clone())).await.unwrap();
    clock.advance(60 * DAY);
    let error = Renewer::new(reader, Arc::new(stranger), 90 * DAY).look().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert!(error.to_string().contains("add it to the trust"), "{error}");
    assert_eq!(newest(&site).await, (1, 90), "nothing was appended");
}
