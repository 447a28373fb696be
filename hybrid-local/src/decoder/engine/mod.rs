//! Many requests on one network: continuous batching.
//!
//! One thread owns the network. Between two passes it lets in the requests that have come, as many as there is memory for, and lets go of those
//! that nobody waits for any more; every pass then reads one token of each answer that is being written and some of the prompts that are
//! not read yet, all in the same products. What was read stays for the next turn of the conversation while there is room.

mod kept;
mod requests;
mod scheduler;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, mpsc},
    thread,
};

use hybrid_core::{Error, Result};

pub(super) use self::requests::{Job, Numbered};
use self::scheduler::Scheduler;
use super::{codec::Codec, network::Network};

const OPERATION: &str = "chat";

/// The thread that answers. It ends once this handle is gone and all that was asked is answered.
#[derive(Debug)]
pub(super) struct Engine {
    jobs: mpsc::Sender<Job>,
}

impl Engine {
    /// An engine whose caches hold at most `capacity` tokens together, at least as many as the context has.
    ///
    /// # Errors
    /// `Internal` if the system gives no thread.
    pub(super) fn start(network: Network, codec: Arc<Codec>, capacity: usize) -> Result<Self> {
        let (jobs, coming) = mpsc::channel();
        let scheduler = Scheduler::new(network, codec, capacity);
        let work = move || run(scheduler, &coming);
        thread::Builder::new()
            .name("decoder".to_owned())
            .spawn(work)
            .map_err(|error| Error::internal("load decoder", "the system gives no thread").with_source(error))?;
        Ok(Self { jobs })
    }

    /// Queues a request; the answer goes to its [`events`](Job::events).
    ///
    /// # Errors
    /// `Internal` if the thread is no more.
    pub(super) fn submit(&self, job: Job) -> Result<()> {
        let closed = |_| Error::internal(OPERATION, "the model's thread has failed; load the model again");
        self.jobs.send(job).map_err(closed)
    }
}

fn run(mut scheduler: Scheduler, coming: &mpsc::Receiver<Job>) {
    loop {
        if scheduler.is_idle() {
            match coming.recv() {
                Ok(job) => scheduler.add(job),
                Err(mpsc::RecvError) => return,
            }
        }
        coming.try_iter().for_each(|job| scheduler.add(job));
        scheduler.step();
    }
}
