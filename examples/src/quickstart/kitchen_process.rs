//! The kitchen as a process of its own: started, listened to, and started again when it dies.

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use hybrid_core::{Error, ErrorKind, Result};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::kitchen::KitchenEvent;

/// A running kitchen.
#[derive(Debug)]
pub struct KitchenProcess {
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
    state: watch::Receiver<State>,
}

/// What is known about the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Whether it has said that it is ready.
    pub ready: bool,
    /// How often it died and was started again.
    pub restarts: u32,
}

/// Takes what the kitchen reports.
pub type Listener = Arc<dyn Fn(KitchenEvent) + Send + Sync>;

impl KitchenProcess {
    /// Starts this program's `kitchen` command with `arguments`, and starts it again whenever it dies.
    pub fn start(arguments: Vec<String>, listener: Listener) -> Self {
        let stop = CancellationToken::new();
        let (changed, state) = watch::channel(State::default());
        let task = tokio::spawn(supervise(arguments, listener, stop.clone(), changed));
        Self { stop, task, state }
    }

    /// Waits until the kitchen is ready.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if it could not be started.
    pub async fn ready(&mut self) -> Result<()> {
        self.state.wait_for(|state| state.ready).await.map(drop).map_err(|_| {
            Error::internal("start kitchen", "the kitchen process ended before it was ready; see its messages above")
        })
    }

    /// How often the kitchen died and was started again.
    pub fn restarts(&self) -> u32 {
        self.state.borrow().restarts
    }

    /// Ends when the kitchen cannot be kept running, or can do nothing before somebody frees space; says why. After that there is nothing to [stop](Self::stop).
    pub async fn failed(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            _ => Error::internal("run kitchen", "the supervisor ended early"),
        }
    }

    /// Asks the kitchen to finish what it does, and waits for its end.
    ///
    /// # Errors
    /// Why it could not be kept running.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task
            .await
            .map_err(|error| Error::internal("stop kitchen", "the supervisor ended early").with_source(error))?
    }
}

async fn supervise(
    arguments: Vec<String>,
    listener: Listener,
    stop: CancellationToken,
    changed: watch::Sender<State>,
) -> Result<()> {
    let mut deaths_before_ready = 0;
    loop {
        let mut child = spawn(&arguments)?;
        let output =
            child.stdout.take().ok_or_else(|| Error::internal("start kitchen", "the process has no output"))?;
        let mut lines = BufReader::new(output).lines();
        let mut was_ready = false;
        let status = loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => match serde_json::from_str(&line) {
                        Ok(event) => {
                            match &event {
                                KitchenEvent::Ready { .. } => {
                                    was_ready = true;
                                    changed.send_modify(|state| state.ready = true);
                                }
                                KitchenEvent::Failed { error, disk_full: true } => {
                                    let message = "the disk is full; free space and start again, it goes on where it was";
                                    return Err(Error::new(ErrorKind::StorageFull, "run kitchen", message)
                                        .with("kitchen", error));
                                }
                                _ => {}
                            }
                            listener(event);
                        }
                        Err(error) => tracing::warn!(%error, line, "the kitchen said something unknown"),
                    },
                    // The output is closed: the process has ended or is about to.
                    Ok(None) | Err(_) => break child.wait().await,
                },
                () = stop.cancelled() => {
                    // Closing its input asks the kitchen to drain; it is killed only if it does not.
                    drop(child.stdin.take());
                    if tokio::time::timeout(Duration::from_secs(20), child.wait()).await.is_err() {
                        let _ = child.kill().await;
                    }
                    return Ok(());
                }
            }
        };
        deaths_before_ready = if was_ready { 0 } else { deaths_before_ready + 1 };
        if deaths_before_ready == 3 {
            return Err(Error::internal("start kitchen", "the process died three times before it was ready"));
        }
        tracing::warn!(?status, "the kitchen died; starting it again");
        changed.send_modify(|state| {
            state.ready = false;
            state.restarts += 1;
        });
    }
}

fn spawn(arguments: &[String]) -> Result<Child> {
    let program: PathBuf = std::env::current_exe()
        .map_err(|error| Error::internal("start kitchen", "this program's own path is not known").with_source(error))?;
    Command::new(&program)
        .arg("kitchen")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Error::internal("start kitchen", "the process cannot start")
                .with("program", program.display())
                .with_source(error)
        })
}
