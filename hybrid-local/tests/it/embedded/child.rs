//! Other processes: this test binary started again, in a role.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, JobQueue, JobQueueExt, NewMessage, Outbox, ReceiveOptions,
};
use hybrid_local::{FolderStore, SqliteOutbox, SqliteQueue, SqliteQueueOptions};

use super::{Random, content, key};

const ROLE: &str = "HYBRID_TEST_ROLE";
const PATH: &str = "HYBRID_TEST_PATH";
const SEED: &str = "HYBRID_TEST_SEED";
/// The user and group `nobody`.
const NOBODY: u32 = 65_534;

/// A process in a role, killed with SIGKILL when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    output: BufReader<ChildStdout>,
}

impl Child {
    pub(crate) fn start(role: &str, path: &Path, seed: u64) -> Self {
        Self::spawn(&mut Self::command(role, path, seed)).unwrap()
    }

    /// The same without any rights; none if that is not possible here.
    pub(crate) fn start_as_nobody(role: &str, path: &Path) -> Option<Self> {
        Self::spawn(Self::command(role, path, 0).uid(NOBODY).gid(NOBODY)).ok()
    }

    fn command(role: &str, path: &Path, seed: u64) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "embedded::child::plays_its_role", "--nocapture"]);
        command.env(ROLE, role).env(PATH, path).env(SEED, seed.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn spawn(command: &mut Command) -> std::io::Result<Self> {
        let mut process = command.spawn()?;
        let output = BufReader::new(process.stdout.take().unwrap());
        Ok(Self { process, output })
    }

    /// The next thing it says; none at its end.
    pub(crate) fn hear(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            // What was not said to the end does not count.
            if !line.ends_with('\n') {
                return None;
            }
            if let Some(said) = line.trim_end().strip_prefix('@') {
                return Some(said.to_owned());
            }
        }
    }

    pub(crate) fn hear_all(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    /// Lets it go on from where it waits.
    pub(crate) fn go(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Begins a line of its own, whatever the test harness has printed.
    out.write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn wait_for_go() {
    say("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Does nothing unless this process was started in a role.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = std::env::var(PATH).unwrap();
    let path = Path::new(&path);
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "creator" => create_for_ever(path, seed).await,
            "racer" => race(path, seed).await,
            "sender" => send_and_ack_for_ever(path, seed).await,
            "worker" => work(path).await,
            "one message" => send_one(path).await,
            "appender" => append_for_ever(path).await,
            "stranger" => meet_closed_doors(path).await,
            other => panic!("no such role: {other}"),
        }
    });
}

async fn create_for_ever(path: &Path, seed: u64) {
    let store = FolderStore::open(path).unwrap();
    for round in 0_u64.. {
        join_all((0..4).map(|lane| {
            let store = &store;
            async move {
                let name = format!("objects/{seed}/{round}/{lane}");
                store.create(&key(&name), content(&name).into()).await.unwrap();
                say(&name);
            }
        }))
        .await;
    }
}

async fn race(path: &Path, seed: u64) {
    let store = FolderStore::open(path).unwrap();
    wait_for_go();
    for round in 0..20 {
        let name = format!("race/{round}");
        match store.create(&key(&name), seed.to_string().into()).await {
            Ok(()) => say(&format!("{name} {seed}")),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
        }
        // A loser can read the winner's object at once.
        assert!(!store.get(&key(&name)).await.unwrap().is_empty());
    }
}

async fn send_and_ack_for_ever(path: &Path, seed: u64) {
    let options = SqliteQueueOptions { max_deliveries: 1_000, ..SqliteQueueOptions::default() };
    let queue = SqliteQueue::open(path, options).unwrap();
    let mut random = Random::new(seed);
    for round in 0_u64.. {
        let messages: Vec<_> = (0..=random.below(3))
            .map(|i| NewMessage::new(format!("{seed}/{round}/{i} {}", "x".repeat(2_000))))
            .collect();
        for (message, id) in messages.iter().zip(queue.send(messages.clone()).await.unwrap()) {
            say(&format!("sent {} {}", id.unwrap().0, message.body));
        }
        let max = 1 + random.below(4) as usize;
        for delivery in
            queue.receive(ReceiveOptions { max, wait: Duration::ZERO, lease: Duration::from_secs(60) }).await.unwrap()
        {
            match random.below(3) {
                0 => queue.nack_one(&delivery.receipt, Duration::ZERO).await.unwrap(),
                _ => {
                    say(&format!("acking {}", delivery.id.0));
                    queue.ack_one(&delivery.receipt).await.unwrap();
                    say(&format!("acked {}", delivery.id.0));
                }
            }
        }
    }
}

async fn work(path: &Path) {
    let queue = SqliteQueue::open(path, SqliteQueueOptions::default()).unwrap();
    wait_for_go();
    loop {
        let deliveries = queue.receive(ReceiveOptions { max: 3, ..ReceiveOptions::default() }).await.unwrap();
        if deliveries.is_empty() {
            break;
        }
        for delivery in deliveries {
            assert_eq!(delivery.attempt, 1);
            queue.ack_one(&delivery.receipt).await.unwrap();
            say(&delivery.body);
        }
    }
}

async fn send_one(path: &Path) {
    let queue = SqliteQueue::open(path, SqliteQueueOptions::default()).unwrap();
    wait_for_go();
    queue.send_one(NewMessage::new("from elsewhere")).await.unwrap();
}

async fn append_for_ever(path: &Path) {
    let outbox = Arc::new(SqliteOutbox::open(path).unwrap());
    for round in 0_u64.. {
        join_all((0..3).map(|lane| {
            let outbox = Arc::clone(&outbox);
            async move {
                let record = format!("{round}/{lane}");
                let number = outbox.append(content(&record).into()).await.unwrap();
                say(&format!("{number} {record}"));
            }
        }))
        .await;
    }
}

/// What a user without rights is told: one line a door.
async fn meet_closed_doors(path: &Path) {
    let told = |what: &str, error: hybrid_core::Error| say(&format!("{what}: {error:?}"));
    told("unreadable", FolderStore::open(path.join("unreadable")).unwrap_err());
    told("unmakeable", FolderStore::open(path.join("read-only/new/store")).unwrap_err());
    let store = FolderStore::open(path.join("read-only")).unwrap();
    assert_eq!(store.list_all("").await.unwrap().len(), 1);
    assert_eq!(store.get(&key("kept")).await.unwrap(), "kept");
    told("read-only", store.create(&key("new"), "new".into()).await.unwrap_err());
    let open = |name: &str| SqliteQueue::open(path.join(name), SqliteQueueOptions::default());
    told("queue in a read-only folder", open("read-only/queue").unwrap_err());
    told("queue of another", open("queue").unwrap_err());
}
