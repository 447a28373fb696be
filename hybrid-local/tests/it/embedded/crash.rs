//! kill -9 at random moments loses nothing that was acknowledged and leaves nothing half-visible.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Clock, JobQueue, ListOptions, ManualClock, Monotonic, Outbox, ReceiveOptions,
    SystemClock,
};
use hybrid_local::{FolderStore, SqliteOutbox, SqliteQueue, SqliteQueueOptions};

use super::{Random, child::Child, content, temporary_files};

const MOMENTS: u64 = 20;

/// Starts a process in the role, kills it at a moment chosen by `seed`, and answers with all that it said before.
fn killed(role: &str, path: &Path, seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let mut child = Child::start(role, path, seed);
    let mut said = Vec::new();
    for _ in 0..=random.below(25) {
        said.push(child.hear().expect("it goes on for ever"));
    }
    // Somewhere within the next operations.
    let moment = Instant::now() + Duration::from_micros(random.below(4_000));
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    child.kill();
    said.extend(child.hear_all());
    said
}

#[tokio::test]
async fn a_killed_creator_loses_no_object_and_leaves_none_torn() {
    let scratch = tempfile::tempdir().unwrap();
    let mut created = BTreeSet::new();
    for seed in 0..MOMENTS {
        created.extend(killed("creator", scratch.path(), seed));
        let store = FolderStore::open(scratch.path()).unwrap();
        assert_eq!(temporary_files(scratch.path()), 0, "the sweep left something of the dead");
        let listed: Vec<_> = store.list("", ListOptions::default()).try_collect().await.unwrap();
        for meta in &listed {
            assert!(
                store.get(&meta.key).await.unwrap() == content(meta.key.as_str()),
                "{} is torn after moment {seed}",
                meta.key
            );
        }
        let listed: BTreeSet<_> = listed.into_iter().map(|meta| meta.key.to_string()).collect();
        let lost: Vec<_> = created.difference(&listed).collect();
        assert!(lost.is_empty(), "moment {seed} lost {lost:?}");
    }
    assert!(created.len() > 100, "only {} objects were created", created.len());
}

fn check_integrity(path: &Path) {
    let db = rusqlite::Connection::open(path).unwrap();
    let found: String = db.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(found, "ok", "{}", path.display());
}

/// A clock on which every lease of a process that is dead now has ended.
fn tomorrow() -> Arc<dyn Clock> {
    let clock = ManualClock::default();
    clock.advance(SystemClock.monotonic().since(Monotonic::default()) + Duration::from_secs(86_400));
    Arc::new(clock)
}

#[tokio::test]
async fn a_killed_worker_loses_no_message_and_brings_none_back() {
    let scratch = tempfile::tempdir().unwrap();
    let mut survivors = 0;
    for seed in 0..MOMENTS {
        let path = scratch.path().join(format!("queue-{seed}"));
        let said = killed("sender", &path, seed);
        let of = |verb: &str| -> BTreeMap<String, String> {
            let lines = said.iter().filter_map(|line| line.strip_prefix(verb));
            lines
                .map(|rest| {
                    rest.split_once(' ').map_or((rest.into(), String::new()), |(id, body)| (id.into(), body.into()))
                })
                .collect()
        };
        let (sent, acking, acked) = (of("sent "), of("acking "), of("acked "));

        check_integrity(&path);
        let options = SqliteQueueOptions { max_deliveries: 1_000, clock: tomorrow(), ..SqliteQueueOptions::default() };
        let queue = SqliteQueue::open(&path, options).unwrap();
        let mut left = BTreeMap::new();
        loop {
            let found = queue.receive(ReceiveOptions { max: 100, ..ReceiveOptions::default() }).await.unwrap();
            if found.is_empty() {
                break;
            }
            left.extend(found.into_iter().map(|delivery| (delivery.id.0, delivery.body)));
        }
        for (id, body) in &sent {
            match left.get(id) {
                Some(found) => assert_eq!(found, body, "message {id} at moment {seed}"),
                None => assert!(acking.contains_key(id), "moment {seed} lost message {id}"),
            }
        }
        for id in acked.keys() {
            assert!(!left.contains_key(id), "moment {seed} brought back message {id}");
        }
        survivors += left.len();
    }
    assert!(survivors > 20, "only {survivors} messages were left to check");
}

#[tokio::test]
async fn a_killed_appender_loses_no_record_and_no_number_is_used_again() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("outbox");
    let mut used = BTreeSet::new();
    for seed in 0..MOMENTS / 2 {
        let lines = killed("appender", &path, seed);
        let appended: Vec<(u64, &str)> = lines
            .iter()
            .filter_map(|line| line.split_once(' '))
            .map(|(n, record)| (n.parse().unwrap(), record))
            .collect();
        check_integrity(&path);
        let outbox = SqliteOutbox::open(&path).unwrap();
        let pending: BTreeMap<_, _> = outbox.pending(0, usize::MAX).await.unwrap().into_iter().collect();
        for (number, record) in appended {
            match pending.get(&number) {
                Some(found) => assert!(*found == content(record), "record {number} is torn"),
                None => panic!("moment {seed} lost record {number}"),
            }
        }
        for number in pending.keys() {
            assert!(used.insert(*number), "number {number} was used again");
        }
        // From here only the counter knows the numbers.
        outbox.remove(&pending.into_keys().collect::<Vec<_>>()).await.unwrap();
    }
    assert!(used.len() > 20, "only {} records were appended", used.len());
}
