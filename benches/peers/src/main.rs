//! Carries messages through `apalis-sqlite` and says how long that took.
//!
//! `hybrid-bench-peers '{"folder":"/tmp/x","messages":2000,"callers":16,"per_send":1,"batch":100,"connections":1}'` prints `{"seconds":…}`.
//!
//! The peer is used as its documentation shows it: `push` to send, and a worker with a polling strategy to receive and acknowledge. Where that leaves a
//! choice, the faster one is taken: a worker that does not mark tasks as running, one that is woken by the senders and does not wait for its interval.

use std::{
    error::Error,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use apalis_core::{
    backend::{TaskSink, ext::BackendExt, ext::poll_strategy::Strategy},
    error::BoxDynError,
    task::data::Data,
    worker::{builder::WorkerBuilder, context::WorkerContext},
};
use apalis_sqlite::{Config, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteStorage};
use futures::channel::mpsc;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// One measurement.
#[derive(Deserialize)]
struct Plan {
    /// Where the database goes: an empty folder.
    folder: String,
    messages: u64,
    /// Senders at once; the worker handles as many tasks at once as it has fetched.
    callers: usize,
    /// Messages that a sender hands over in one call.
    per_send: usize,
    /// Tasks that the worker fetches at once.
    batch: usize,
    /// Connections of the pool.
    connections: u32,
}

#[derive(Serialize)]
struct Measured {
    seconds: f64,
}

/// The same text as the other side sends.
#[derive(Debug, Deserialize, Serialize)]
struct Message {
    number: u64,
    text: String,
}

/// `{"number":1234567,"text":"…"}` of 200 bytes.
fn message(number: u64) -> Message {
    Message { number: 1_000_000 + number, text: "x".repeat(172) }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let plan = std::env::args().nth(1).ok_or("expected one argument: the plan as JSON")?;
    let plan: Plan = serde_json::from_str(&plan)?;
    let pool = open(&plan).await?;
    let elapsed = carry(&plan, &pool).await?;
    let (done,): (i64,) = sqlx::query_as("SELECT count(*) FROM Jobs WHERE status = 'Done' AND length(job) = 200")
        .fetch_one(&pool)
        .await?;
    if done != i64::try_from(plan.messages)? {
        return Err(format!("{done} of {} messages are done", plan.messages).into());
    }
    println!("{}", serde_json::to_string(&Measured { seconds: elapsed.as_secs_f64() })?);
    Ok(())
}

/// A pool whose every connection makes each commit durable, which is read back. `SqliteStorage::setup` is not used: it turns fsync off.
async fn open(plan: &Plan) -> Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(Path::new(&plan.folder).join("apalis.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // The other settings of `setup`.
        .pragma("temp_store", "memory")
        .pragma("cache_size", "64000")
        .pragma("journal_size_limit", "67108864");
    let pool = SqlitePoolOptions::new()
        .max_connections(plan.connections)
        .after_connect(|connection, _| {
            Box::pin(async move {
                let (synchronous,): (i64,) = sqlx::query_as("PRAGMA synchronous").fetch_one(&mut *connection).await?;
                let (journal,): (String,) = sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
                if (synchronous, &*journal) != (2, "wal") {
                    let why =
                        format!("a commit would not be durable: synchronous={synchronous}, journal_mode={journal}");
                    return Err(sqlx::Error::Io(io::Error::other(why)));
                }
                Ok(())
            })
        })
        .connect_with(options)
        .await?;
    SqliteStorage::migrations().run(&pool).await?;
    Ok(pool)
}

/// Sends, receives and acknowledges all messages; senders and worker run side by side.
async fn carry(plan: &Plan, pool: &SqlitePool) -> Result<Duration> {
    let config = Config::default().queue("bench").batch_size(plan.batch).lock_tasks(false);
    let storage = SqliteStorage::<Message>::new(pool).with_config(config);
    // A word to the worker may wait; more of them would say the same. One that comes while the worker looks may be missed, hence the interval.
    let (wake, woken) = mpsc::channel::<()>(0);
    let strategy = Strategy::new().stream(woken).interval(Duration::from_millis(1));
    let left = Data::new(Arc::new(AtomicU64::new(plan.messages)));
    let worker =
        WorkerBuilder::new("bench").backend(storage.clone().poll_with_strategy(strategy)).layer(left).build(handle);

    let started = Instant::now();
    let worker = tokio::spawn(worker.run());
    let senders = (0..plan.callers).map(|caller| {
        let (mut storage, mut wake, per_send) = (storage.clone(), wake.clone(), plan.per_send);
        let share: Vec<u64> = (0..plan.messages).skip(caller).step_by(plan.callers).collect();
        tokio::spawn(async move {
            for numbers in share.chunks(per_send) {
                match numbers {
                    [number] => storage.push(message(*number)).await?,
                    _ => storage.push_bulk(numbers.iter().copied().map(message).collect()).await?,
                }
                let _ = wake.try_send(());
            }
            Result::Ok(())
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await??;
    }
    worker.await??;
    Ok(started.elapsed())
}

/// Handles one message; the last one stops the worker, which acknowledges what is open and ends.
async fn handle(
    message: Message,
    left: Data<Arc<AtomicU64>>,
    worker: WorkerContext,
) -> std::result::Result<(), BoxDynError> {
    std::hint::black_box(&message.text);
    if left.fetch_sub(1, Ordering::Relaxed) == 1 {
        worker.stop()?;
    }
    Ok(())
}
