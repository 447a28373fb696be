//! A disk that refuses at the worst moment.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use futures_util::FutureExt;
use hybrid_core::{Timestamp, memory::MemoryStore};
use tempfile::TempDir;

use super::{super::*, fault::REFUSED, *};

fn writer() -> WriterId {
    WriterId::new("shop-1").unwrap()
}

/// A segment in which one large entry has no room for another.
fn resume(folder: &Path) -> Segment {
    let options = AuditLogOptions { segment_bytes: 1024, ..AuditLogOptions::default() };
    Segment::resume(folder, &writer(), &options).unwrap()
}

fn refuse(steps: &[Step]) {
    REFUSED.set(steps.to_vec());
}

/// Hands large entries to the segment together; answers with which of them were kept.
fn append(segment: &mut Segment, count: usize) -> Vec<bool> {
    let entry = format!(r#""{}""#, "x".repeat(700));
    let (orders, kept): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (done, kept) = oneshot::channel();
            (Order::Append(entry.clone(), done), kept)
        })
        .unzip();
    segment.carry_out(orders);
    kept.into_iter().map(|kept| kept.now_or_never().unwrap().unwrap().is_ok()).collect()
}

#[track_caller]
fn holds(folder: &Path, segments: usize, entries: u64) {
    let verified = verify_folder(folder).unwrap();
    assert_eq!((verified.segments, verified.entries), (segments, entries));
}

#[test]
fn a_fresh_segment_whose_first_entry_is_refused_is_not_begun_again_over_itself() {
    let folder = TempDir::new().unwrap();
    let mut segment = resume(folder.path());
    assert_eq!(append(&mut segment, 1), [true]);
    segment.next().unwrap();
    refuse(&[Step::Write]);
    assert_eq!(append(&mut segment, 2), [false, true]);
    holds(folder.path(), 2, 2);
    assert_eq!(append(&mut segment, 1), [true]);
    drop(segment);
    assert_eq!(append(&mut resume(folder.path()), 1), [true]);
    holds(folder.path(), 4, 4);
}

#[test]
fn a_segment_whose_name_may_not_outlive_a_crash_is_taken_back_and_the_one_before_grows_on() {
    let folder = TempDir::new().unwrap();
    let mut segment = resume(folder.path());
    refuse(&[Step::Name]);
    assert_eq!(append(&mut segment, 2), [true, true]);
    holds(folder.path(), 1, 2);
    assert_eq!(append(&mut segment, 1), [true]);
    holds(folder.path(), 2, 3);
}

#[test]
fn a_segment_that_cannot_be_taken_back_ends_the_log_until_it_is_opened_again() {
    let folder = TempDir::new().unwrap();
    let mut segment = resume(folder.path());
    refuse(&[Step::Name, Step::Unname]);
    // One is before it, and nothing may come after that.
    assert_eq!(append(&mut segment, 3), [true, false, false]);
    segment.next().unwrap_err();
    holds(folder.path(), 2, 1);
    drop(segment);
    assert_eq!(append(&mut resume(folder.path()), 1), [true]);
    holds(folder.path(), 2, 2);
}

#[tokio::test]
async fn a_write_that_cannot_be_taken_back_ends_the_log_and_its_file_is_not_shipped() {
    let (folder, store) = (TempDir::new().unwrap(), MemoryStore::default());
    // Whoever comes writes: the test, to whose thread the disk refuses.
    let options = AuditLogOptions { sync: false, ..AuditLogOptions::default() };
    let open = || AuditLog::open(folder.path(), writer(), options.clone()).unwrap();
    let entry = || AuditEntry {
        at: Timestamp::UNIX_EPOCH,
        tenant: TenantId::single(),
        subject: "anna".to_owned(),
        credential: None,
        request: "r-1".parse().unwrap(),
        action: "classify".to_owned(),
        model: None,
        outcome: Outcome::Done,
        usage: None,
        cost: None,
        notes: Vec::new(),
        content: None,
    };
    let log = open();
    log.append(entry()).await.unwrap();
    log.seal().await.unwrap();
    log.append(entry()).await.unwrap();
    refuse(&[Step::Write, Step::Cut]);
    log.append(entry()).await.unwrap_err();
    log.seal().await.unwrap_err();
    log.append(entry()).await.unwrap_err();
    assert_eq!(log.ship(&store).await.unwrap(), 1, "what was sealed before is good");
    drop(log);
    let log = open();
    log.append(entry()).await.unwrap();
    log.seal().await.unwrap();
    assert_eq!(log.ship(&store).await.unwrap(), 1);
    // The refused entry was whole when the log was opened again, and is kept: nobody was told that it is not there.
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, 4);
}
