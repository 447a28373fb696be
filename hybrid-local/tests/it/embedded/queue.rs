//! What a queue in a file promises beyond the port.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    Clock, Delivery, Depth, ErrorKind, JobQueue, JobQueueExt, ManualClock, NewMessage, ReceiveOptions, Result,
    Timestamp,
    conformance::queue::{self, QueueHarness, QueueUnderTest},
};
use hybrid_local::{SqliteQueue, SqliteQueueOptions};

use super::child::Child;

#[derive(Debug)]
struct InFiles {
    scratch: tempfile::TempDir,
    clock: ManualClock,
    made: AtomicUsize,
}

#[async_trait]
impl QueueHarness for InFiles {
    async fn queue(&self, max_deliveries: u32) -> Result<QueueUnderTest> {
        let path = self.scratch.path().join(self.made.fetch_add(1, Ordering::SeqCst).to_string());
        let queue = Arc::new(SqliteQueue::open(path, with(&self.clock, max_deliveries))?);
        Ok(QueueUnderTest { queue: Arc::clone(&queue) as Arc<dyn JobQueue>, dead_letters: Some(queue) })
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_keeps_the_contract_of_a_queue() {
    let harness =
        InFiles { scratch: tempfile::tempdir().unwrap(), clock: ManualClock::default(), made: AtomicUsize::new(0) };
    queue::run(&harness).await.assert();
}

fn with(clock: &ManualClock, max_deliveries: u32) -> SqliteQueueOptions {
    SqliteQueueOptions { max_deliveries, clock: Arc::new(clock.clone()), ..SqliteQueueOptions::default() }
}

fn clock_at(seconds: u64) -> ManualClock {
    let clock = ManualClock::at("2026-03-01T00:00:00Z".parse().unwrap());
    clock.advance(Duration::from_secs(seconds));
    clock
}

async fn take(queue: &SqliteQueue, lease: u64) -> Vec<Delivery> {
    queue.receive(ReceiveOptions { max: 100, wait: Duration::ZERO, lease: Duration::from_secs(lease) }).await.unwrap()
}

#[tokio::test]
async fn a_restart_of_the_process_keeps_leases_and_delays() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let clock = clock_at(1_000);
    let queue = SqliteQueue::open(&path, with(&clock, 5)).unwrap();
    queue.send_one(NewMessage::new("leased")).await.unwrap();
    let leased = take(&queue, 60).await;
    queue.send_one(NewMessage { delay: Duration::from_secs(30), ..NewMessage::new("delayed") }).await.unwrap();
    drop(queue);

    let queue = SqliteQueue::open(&path, with(&clock, 5)).unwrap();
    assert_eq!(queue.depth().await.unwrap(), Depth { ready: 0, leased: 1, delayed: 1 });
    assert_eq!(take(&queue, 60).await, []);
    queue.ack_one(&leased[0].receipt).await.unwrap();
    clock.advance(Duration::from_secs(30));
    assert_eq!(take(&queue, 60).await[0].body, "delayed");
}

#[tokio::test]
async fn a_restart_of_the_machine_ends_leases_and_loses_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    // A machine that has run for a year, and one that has run for ten seconds.
    let old = SqliteQueue::open(&path, with(&clock_at(31_536_000), 2)).unwrap();
    for body in ["leased", "delayed", "ready", "used up"] {
        let delay = Duration::from_secs(if body == "delayed" { 100 } else { 0 });
        old.send_one(NewMessage { delay, ..NewMessage::new(body) }).await.unwrap();
    }
    let first = take(&old, 3_600).await;
    let receipt = |body: &str| first.iter().find(|delivery| delivery.body == body).unwrap().receipt.clone();
    old.nack_one(&receipt("used up"), Duration::ZERO).await.unwrap();
    assert_eq!(take(&old, 3_600).await[0].body, "used up");
    old.nack_one(&receipt("ready"), Duration::ZERO).await.unwrap();
    drop(old);

    let clock = clock_at(10);
    let queue = SqliteQueue::open(&path, with(&clock, 2)).unwrap();
    assert_eq!(queue.ack_one(&receipt("leased")).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(hybrid_core::DeadLetters::list(&queue, 10, None).await.unwrap()[0].body, "used up");
    assert_eq!(queue.depth().await.unwrap(), Depth { ready: 2, leased: 0, delayed: 1 });
    let bodies: BTreeSet<_> =
        take(&queue, 60).await.into_iter().map(|delivery| (delivery.body, delivery.attempt)).collect();
    assert_eq!(bodies, BTreeSet::from([("leased".into(), 2), ("ready".into(), 2)]));
    // How long the machine was off is not known, so the delay begins again.
    clock.advance(Duration::from_secs(99));
    assert!(!take(&queue, 60).await.iter().any(|delivery| delivery.body == "delayed"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(take(&queue, 60).await[0].body, "delayed");
}

#[tokio::test]
async fn a_restarted_machine_that_has_run_longer_waits_at_most_the_lease() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let old = SqliteQueue::open(&path, with(&clock_at(100), 5)).unwrap();
    old.send_one(NewMessage::new("leased")).await.unwrap();
    take(&old, 60).await;
    drop(old);
    let clock = clock_at(120);
    let queue = SqliteQueue::open(&path, with(&clock, 5)).unwrap();
    assert_eq!(take(&queue, 60).await, []);
    clock.advance(Duration::from_secs(40));
    assert_eq!(take(&queue, 60).await[0].attempt, 2);
}

#[tokio::test]
async fn a_wall_clock_that_jumps_moves_no_lease_and_no_delay() {
    const YEAR: i64 = 365 * 86_400 * 1_000_000;
    let scratch = tempfile::tempdir().unwrap();
    let clock = clock_at(0);
    let queue = SqliteQueue::open(scratch.path().join("queue"), with(&clock, 5)).unwrap();
    for (jump, year) in [(YEAR, "2027"), (-2 * YEAR, "2025")] {
        queue.send_one(NewMessage::new("leased")).await.unwrap();
        let leased = take(&queue, 60).await;
        queue.send_one(NewMessage { delay: Duration::from_secs(60), ..NewMessage::new("delayed") }).await.unwrap();
        clock.jump_wall(jump);
        assert_eq!(take(&queue, 60).await, []);
        queue.send_one(NewMessage::new("now")).await.unwrap();
        let now = take(&queue, 120).await;
        assert!(now[0].sent.date().starts_with(year), "{}", now[0].sent);
        queue.ack_one(&leased[0].receipt).await.unwrap();
        queue.ack_one(&now[0].receipt).await.unwrap();
        clock.advance(Duration::from_secs(60));
        let delayed = take(&queue, 60).await;
        assert_eq!(delayed[0].body, "delayed");
        queue.ack_one(&delayed[0].receipt).await.unwrap();
    }
}

#[tokio::test]
async fn a_receive_dropped_on_the_way_gives_back_what_it_leased() {
    let scratch = tempfile::tempdir().unwrap();
    let queue = SqliteQueue::open(scratch.path().join("queue"), with(&clock_at(0), 1)).unwrap();
    queue.send_one(NewMessage::new("one chance")).await.unwrap();
    for _ in 0..20 {
        let mut receive = Box::pin(queue.receive(ReceiveOptions::default()));
        if let std::task::Poll::Ready(answer) = futures_util::poll!(&mut receive) {
            // The other thread was faster than this one: nothing was on the way.
            queue.ack_one(&answer.unwrap()[0].receipt).await.unwrap();
            queue.send_one(NewMessage::new("one chance")).await.unwrap();
            continue;
        }
        // Calls are answered in order, so now the lease is committed and its answer waits for a receiver that does not come.
        assert_eq!(queue.depth().await.unwrap(), Depth { leased: 1, ..Depth::default() });
        drop(receive);
    }
    let attempts = take(&queue, 60).await.into_iter().map(|delivery| delivery.attempt).collect::<Vec<_>>();
    assert_eq!(attempts, [1], "the only delivery was used up by those that nobody got");
}

#[tokio::test]
async fn processes_share_a_queue_and_each_message_goes_to_one() {
    const MESSAGES: usize = 300;
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let queue = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
    let mut workers: Vec<_> = (0..4).map(|seed| Child::start("worker", &path, seed)).collect();
    workers.iter_mut().for_each(|worker| assert_eq!(worker.hear().as_deref(), Some("ready")));
    let messages = (0..MESSAGES).map(|i| NewMessage::new(format!("job {i}"))).collect();
    assert!(queue.send(messages).await.unwrap().iter().all(Result::is_ok));
    workers.iter_mut().for_each(Child::go);
    let shares: Vec<_> = workers.into_iter().map(Child::hear_all).collect();
    let done: Vec<_> = shares.iter().flatten().collect();
    let distinct: BTreeSet<_> = done.iter().collect();
    assert_eq!((done.len(), distinct.len()), (MESSAGES, MESSAGES));
    assert_eq!(queue.depth().await.unwrap(), Depth::default());
}

#[tokio::test]
async fn a_waiting_receive_sees_what_another_process_sends() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let queue = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
    let mut sender = Child::start("one message", &path, 0);
    assert_eq!(sender.hear().as_deref(), Some("ready"));
    let mut receive =
        Box::pin(queue.receive(ReceiveOptions { wait: Duration::from_secs(60), ..ReceiveOptions::default() }));
    assert!(futures_util::poll!(&mut receive).is_pending());
    sender.go();
    assert_eq!(receive.await.unwrap()[0].body, "from elsewhere");
}

#[tokio::test]
async fn a_lower_limit_of_deliveries_holds_from_the_next_opening() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let clock = clock_at(0);
    let queue = SqliteQueue::open(&path, with(&clock, 5)).unwrap();
    queue.send_one(NewMessage::new("tried twice")).await.unwrap();
    for _ in 0..2 {
        let found = take(&queue, 60).await;
        queue.nack_one(&found[0].receipt, Duration::ZERO).await.unwrap();
    }
    drop(queue);
    let queue = SqliteQueue::open(&path, with(&clock, 2)).unwrap();
    assert_eq!(take(&queue, 60).await, []);
    let dead = hybrid_core::DeadLetters::list(&queue, 10, None).await.unwrap();
    assert_eq!((dead.len(), dead[0].attempts), (1, 2));
}

#[tokio::test]
async fn times_are_the_clocks_own() {
    let scratch = tempfile::tempdir().unwrap();
    let clock = clock_at(5);
    let queue = SqliteQueue::open(scratch.path().join("queue"), with(&clock, 1)).unwrap();
    queue.send_one(NewMessage::new("x")).await.unwrap();
    let sent: Timestamp = "2026-03-01T00:00:05Z".parse().unwrap();
    assert_eq!(take(&queue, 60).await[0].sent, sent);
    clock.advance(Duration::from_secs(60));
    let dead = hybrid_core::DeadLetters::list(&queue, 1, None).await.unwrap();
    assert_eq!((dead[0].sent, dead[0].died), (sent, Some(clock.now())));
}

#[test]
fn files_that_are_no_queue_are_refused_by_name_and_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |name: &str, expected: ErrorKind| {
        let path = scratch.path().join(name);
        let before = fs::read(&path).ok();
        let error = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "the path is not named: {error}");
        assert!(fs::read(&path).ok() == before, "{name} was changed");
    };
    fs::write(scratch.path().join("text"), "not a database ".repeat(100)).unwrap();
    check("text", ErrorKind::Corrupt);
    fs::create_dir(scratch.path().join("folder")).unwrap();
    check("folder", ErrorKind::InvalidInput);
    check("text/below", ErrorKind::InvalidInput);
    let database = |name: &str, statements: &str| {
        rusqlite::Connection::open(scratch.path().join(name)).unwrap().execute_batch(statements).unwrap();
    };
    database("foreign", "CREATE TABLE cakes (name TEXT)");
    check("foreign", ErrorKind::InvalidInput);

    let queue = SqliteQueue::open(scratch.path().join("queue"), SqliteQueueOptions::default()).unwrap();
    let newer = scratch.path().join("newer");
    database("queue", &format!("VACUUM INTO '{}'", newer.display()));
    database("newer", "PRAGMA user_version = 99");
    drop(queue);
    check("newer", ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_damaged_file_is_told_as_corrupt() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("queue");
    let queue = SqliteQueue::open(&path, SqliteQueueOptions::default()).unwrap();
    let messages = (0..200).map(|i| NewMessage::new(format!("{i} {}", "x".repeat(500)))).collect();
    queue.send(messages).await.unwrap();
    // A copy has everything in the file itself, not in its log.
    let (original, path) = (path, scratch.path().join("copy"));
    rusqlite::Connection::open(original).unwrap().execute("VACUUM INTO ?1", [path.to_str()]).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0x55);
    fs::write(&path, bytes).unwrap();
    let error = match SqliteQueue::open(&path, SqliteQueueOptions::default()) {
        Ok(queue) => queue.receive(ReceiveOptions::default()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}
