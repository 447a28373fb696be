//! A full disk and missing rights: a clear error that names the path, and nothing lost.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use futures_util::future::join_all;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, JobQueue, JobQueueExt, NewMessage, Outbox, ReceiveOptions, Result,
};
use hybrid_local::{FolderStore, SqliteOutbox, SqliteQueue, SqliteQueueOptions};

use super::{
    child::Child,
    key, set_mode,
    small_disk::{SmallDisk, skip},
};

/// Calls until the disk is full, checks the error, and answers with what succeeded.
async fn until_full<T>(path: &Path, mut call: impl AsyncFnMut(usize) -> Result<T>) -> Vec<T> {
    let mut done = Vec::new();
    loop {
        match call(done.len()).await {
            Ok(answer) => done.push(answer),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                assert!(error.to_string().contains(path.to_str().unwrap()), "the path is not named: {error}");
                assert!(done.len() >= 3, "full after {} calls", done.len());
                return done;
            }
        }
        assert!(done.len() < 1_000, "the disk never fills");
    }
}

#[tokio::test]
async fn a_full_disk_leaves_a_store_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(scratch.path(), 1) else { return };
    let path = scratch.path().join("store");
    let store = FolderStore::open(&path).unwrap();
    let bytes = vec![7; 100_000];
    let name = |i: usize| key(&format!("objects/{i}"));
    let created = until_full(&path, async |i| store.create(&name(i), bytes.clone().into()).await).await.len();

    let listed = store.list_all("").await.unwrap();
    assert_eq!(listed.len(), created, "{listed:?}");
    for meta in &listed {
        assert_eq!(store.get(&meta.key).await.unwrap(), bytes);
    }
    let own: Vec<_> = fs::read_dir(path.join(".hybrid~tmp")).unwrap().map(|folder| folder.unwrap().path()).collect();
    assert_eq!(own.len(), 1);
    assert_eq!(fs::read_dir(&own[0]).unwrap().count(), 0, "a temporary file is left");

    store.delete(&name(0)).await.unwrap();
    store.create(&name(created), bytes.clone().into()).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_loses_no_message() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(scratch.path(), 1) else { return };
    let ballast = scratch.path().join("ballast");
    fs::write(&ballast, vec![0; 600_000]).unwrap();
    let path = scratch.path().join("queue");
    let queue = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
    let body = |i: usize| format!("{i} {}", "x".repeat(20_000));
    let sent = until_full(&path, async |i| queue.send_one(NewMessage::new(body(i))).await).await;
    assert_eq!(queue.depth().await.unwrap().ready, sent.len() as u64);

    fs::remove_file(&ballast).unwrap();
    queue.send_one(NewMessage::new(body(sent.len()))).await.unwrap();
    for i in 0..=sent.len() {
        let found = queue.receive(ReceiveOptions { max: 1, ..ReceiveOptions::default() }).await.unwrap();
        assert_eq!(found[0].body, body(i));
        queue.ack_one(&found[0].receipt).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_does_not_fit_leaves_those_beside_it_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(scratch.path(), 1) else { return };
    let queue = SqliteQueue::open(scratch.path().join("queue"), SqliteQueueOptions::default()).unwrap();
    let bodies = ["small".to_owned(), "x".repeat(1_000_000), "tiny".to_owned()];
    let answers = join_all(bodies.map(|body| queue.send_one(NewMessage::new(body)))).await;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().map(drop).map_err(|error| error.kind())).collect();
    assert_eq!(kinds, [Ok(()), Err(ErrorKind::StorageFull), Ok(())]);
    let found = queue.receive(ReceiveOptions::default()).await.unwrap();
    assert_eq!(found.iter().map(|delivery| &*delivery.body).collect::<Vec<_>>(), ["small", "tiny"]);
}

#[tokio::test]
async fn a_full_disk_loses_no_record() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(scratch.path(), 1) else { return };
    let ballast = scratch.path().join("ballast");
    fs::write(&ballast, vec![0; 600_000]).unwrap();
    let path = scratch.path().join("outbox");
    let outbox = SqliteOutbox::open(&path).unwrap();
    let appended = until_full(&path, async |i| outbox.append(vec![i as u8; 20_000].into()).await).await;
    let pending = outbox.pending(0, usize::MAX).await.unwrap();
    assert_eq!(pending.iter().map(|(number, _)| *number).collect::<Vec<_>>(), appended);
    assert!(pending.iter().enumerate().all(|(i, (_, record))| *record == vec![i as u8; 20_000]));
    fs::remove_file(&ballast).unwrap();
    let next = outbox.append("more".into()).await.unwrap();
    assert!(next > *appended.last().unwrap());
}

#[test]
fn missing_rights_are_told_with_the_path() {
    let scratch = tempfile::tempdir().unwrap();
    set_mode(scratch.path(), 0o755);
    for name in ["unreadable", "read-only"] {
        fs::create_dir(scratch.path().join(name)).unwrap();
    }
    fs::write(scratch.path().join("read-only/kept"), "kept").unwrap();
    drop(SqliteQueue::open(scratch.path().join("queue"), SqliteQueueOptions::default()).unwrap());
    set_mode(&scratch.path().join("queue"), 0o000);
    set_mode(&scratch.path().join("unreadable"), 0o000);
    set_mode(&scratch.path().join("read-only"), 0o555);

    // Rights do not bind the superuser, who can become somebody else; others are bound as they are.
    let is_root = fs::metadata(scratch.path()).unwrap().uid() == 0;
    let child = if is_root {
        Child::start_as_nobody("stranger", scratch.path())
    } else {
        Some(Child::start("stranger", scratch.path(), 0))
    };
    let Some(child) = child else {
        return skip("the test binary lies where a user without rights cannot run it");
    };
    let told = child.hear_all();
    for name in ["unreadable", "read-only", "queue"] {
        set_mode(&scratch.path().join(name), 0o755);
    }
    let expected = [
        ("unreadable", "unreadable"),
        ("unmakeable", "read-only/new"),
        ("read-only", "read-only"),
        ("queue in a read-only folder", "read-only/queue"),
        ("queue of another", "queue"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((what, path), told) in expected.into_iter().zip(told) {
        assert!(told.starts_with(&format!("{what}: PermissionDenied: ")), "{told}");
        assert!(told.contains(scratch.path().join(path).to_str().unwrap()), "the path is not named: {told}");
    }
}
