//! One delivery, from its receipt to its ack or nack.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use hybrid_core::{
    ArtifactStoreExt, Cancellation, Delivery, Document, Error, ErrorKind, JobQueueExt, Key, MAX_DELAY,
    MAX_OBJECT_BYTES, Result, Timestamp,
};
use serde_json::Value;
use tokio::task::JoinHandle;
use tracing::{
    Instrument, Span,
    field::{Empty, debug},
};

use super::{
    JobContext,
    handler::AnyHandler,
    is_permanent,
    lease::{Lease, LeasedStore},
    run::Shared,
};
use crate::{
    backoff::seed_of,
    job::{Failure, Job, JobResult, Outcome, result_key},
};

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Succeeded,
    Failed,
    Retried,
    Dead,
    Repeated,
    Misfit,
    Lost,
    GivenBack,
}

/// What is left to do with the message.
enum Step {
    Ack(Ending),
    Nack(Duration, Ending),
    /// Nothing was wrong with it.
    Release,
    /// The message is no longer ours.
    Leave,
}

/// Why a call that is repeated until it succeeds was given up.
enum Halt {
    Lost,
    Stopped,
    Failed(Error),
}

pub(super) struct Attempt {
    pub(super) worker: Arc<Shared>,
    pub(super) delivery: Delivery,
    /// Raised when no more work is begun.
    pub(super) draining: Cancellation,
    /// Raised when running work is cancelled.
    pub(super) stop: Cancellation,
}

/// An attempt with the lease that it holds.
struct Held {
    attempt: Attempt,
    lease: Arc<Lease>,
}

impl Attempt {
    pub(super) async fn run(self) -> Ending {
        let Shared { queue, clock, options, .. } = &*self.worker;
        let lease = Lease::new(queue.clone(), clock.clone(), self.delivery.receipt.clone(), options.lease);
        let job = Job::decode(self.delivery.body.as_bytes()).map(Arc::new);
        let known = job.as_ref().ok();
        let span = tracing::info_span!(
            "job",
            message = %self.delivery.id.0,
            attempt = self.delivery.attempt,
            worker = %options.name,
            job = known.map(|job| display(job.id)),
            kind = known.map(|job| job.kind.as_str()),
            tenant = known.map(|job| job.tenant.as_str()),
            request = known.and_then(|job| job.request.as_ref()).map(|request| request.as_str()),
            trace = known.and_then(|job| job.trace.as_deref()),
            waited_ms = known.map(|job| clock.now().since(job.submitted).as_secs_f64() * 1e3),
            ending = Empty,
        );
        // A task of its own, so that a handler which computes between two awaits does not hold up the heartbeat.
        let _keeper = AbortOnDrop(tokio::spawn(lease.clone().keep().instrument(span.clone())));
        let held = Held { attempt: self, lease };
        async move {
            let step = match job {
                Ok(job) => held.job(job).await,
                Err(error) => held.misfit(&error),
            };
            let ending = held.settle(step).await;
            Span::current().record("ending", debug(ending));
            ending
        }
        .instrument(span)
        .await
    }
}

impl Held {
    async fn job(&self, job: Arc<Job>) -> Step {
        let Attempt { worker, draining, .. } = &self.attempt;
        // A duplicate of a job that runs here waits for its end, and then finds the result.
        let _claim = tokio::select! {
            biased;
            () = self.lease.lost().cancelled() => return Step::Leave,
            () = draining.cancelled() => return self.give_back(),
            claim = worker.running.claim(job.id) => claim,
        };
        let key = match result_key(&job.tenant, job.id) {
            Ok(key) => key,
            Err(error) => return self.misfit(&error),
        };
        match self.patiently(|| worker.store.exists(&key)).await {
            Ok(false) => {}
            Ok(true) => return Step::Ack(Ending::Repeated),
            Err(halt) => return self.halted(halt, &job),
        }
        if let Some(role) = &job.role
            && !worker.options.roles.contains(role)
        {
            return self.misfit(&Error::invalid("take job", "this worker has not the job's role").with("role", role));
        }
        let Some(handler) = worker.handlers.get(&job.kind) else {
            return self.misfit(
                &Error::unsupported("take job", "this worker does not know the job's kind").with("kind", &job.kind),
            );
        };
        let _lane = tokio::select! {
            biased;
            () = self.lease.lost().cancelled() => return Step::Leave,
            () = draining.cancelled() => return self.give_back(),
            lane = worker.lane(handler.resource()) => lane,
        };
        let started = worker.clock.now();
        tracing::info!("job begins");
        match self.execute(&job, handler.as_ref()).await {
            Err(step) => step,
            Ok(Ok(output)) => self.finish(&job, &key, started, Outcome::Success(output)).await,
            Ok(Err(error)) if is_permanent(error.kind()) => {
                tracing::warn!(%error, "job fails for good");
                self.finish(&job, &key, started, Outcome::Failure(Failure::new(&error))).await
            }
            Ok(Err(error)) => self.again(&job, &error),
        }
    }

    /// Runs the handler; answers with its outcome, or with what to do where the outcome does not count.
    async fn execute(&self, job: &Arc<Job>, handler: &dyn AnyHandler) -> Result<Result<Value>, Step> {
        let Attempt { worker, delivery, stop, .. } = &self.attempt;
        let cancel = self.lease.lost().child_token();
        let context = JobContext {
            job: job.clone(),
            attempt: delivery.attempt,
            last_attempt: delivery.is_last(),
            cancel: cancel.clone(),
            progress: (worker.progress)(job),
            store: Arc::new(LeasedStore { inner: worker.store.clone(), lease: self.lease.clone() }),
            clock: worker.clock.clone(),
        };
        // A handler that has panicked is not used again: its future is dropped, and what it shares is behind its own locks.
        let work = AssertUnwindSafe(handler.run(&context, job.payload.clone())).catch_unwind();
        let mut work = std::pin::pin!(work);
        let outcome = tokio::select! {
            biased;
            () = self.lease.lost().cancelled() => None,
            () = stop.cancelled() => None,
            outcome = &mut work => Some(outcome),
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                cancel.cancel();
                let outcome = tokio::select! {
                    biased;
                    outcome = &mut work => Some(outcome),
                    () = worker.clock.sleep(worker.options.cancel_grace) => None,
                };
                match outcome {
                    // It was done when it was told to stop.
                    Some(Ok(Ok(output))) => Ok(Ok(output)),
                    // Whatever a cancelled handler complains of, the job is as good as before.
                    _ => {
                        return Err(if self.lease.check().is_err() { Step::Leave } else { self.give_back() });
                    }
                }
            }
        };
        if self.lease.check().is_err() {
            return Err(Step::Leave);
        }
        Ok(outcome.unwrap_or_else(|panic| {
            Err(Error::internal("run job", "the handler panicked").quote("panic", panic_text(&*panic)))
        }))
    }

    /// Writes the result, the last thing that the job writes.
    async fn finish(&self, job: &Job, key: &Key, started: Timestamp, outcome: Outcome) -> Step {
        let Shared { store, clock, options, .. } = &*self.attempt.worker;
        let mut result = JobResult {
            job: job.id,
            kind: job.kind.clone(),
            outcome,
            worker: options.name.clone(),
            started,
            finished: clock.now(),
            attempts: self.attempt.delivery.attempt,
            request: job.request.clone(),
            trace: job.trace.clone(),
        };
        let encoded = result.encode().and_then(|bytes| {
            if bytes.len() <= MAX_OBJECT_BYTES {
                return Ok(bytes);
            }
            let error = Error::too_large(
                "write job result",
                "the output is over the limit; write it to the store and name its key",
            )
            .with("size", bytes.len())
            .with("limit", MAX_OBJECT_BYTES);
            result.outcome = Outcome::Failure(Failure::new(&error));
            result.encode()
        });
        let bytes = match encoded {
            Ok(bytes) => bytes,
            Err(error) => return self.again(job, &error),
        };
        let written = self.patiently(|| async {
            // The queue's word where it answers; our own clock where it does not.
            if self.lease.renew().await.is_err() {
                self.lease.check()?;
            }
            match store.create(key, bytes.clone()).await {
                // Another holder's, or ours from a try whose answer was lost.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => match store.get(key).await {
                    Ok(found) => Ok(found == bytes),
                    Err(missing) if missing.kind() == ErrorKind::NotFound => Err(Error::unavailable(
                        "write job result",
                        "the store says that the result exists and has none",
                    )
                    .with_source(error)),
                    Err(error) => Err(error),
                },
                created => created.map(|()| true),
            }
        });
        match written.await {
            Ok(false) => Step::Ack(Ending::Repeated),
            Ok(true) if matches!(result.outcome, Outcome::Success(_)) => Step::Ack(Ending::Succeeded),
            Ok(true) => Step::Ack(Ending::Failed),
            Err(halt) => self.halted(halt, job),
        }
    }

    /// Repeats a call while it fails for a time only and the lease lasts.
    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, Halt>
    where
        F: Future<Output = Result<T>>,
    {
        let Shared { clock, options, .. } = &*self.attempt.worker;
        let seed = seed_of(options.seed, self.attempt.delivery.id.0.as_bytes());
        let mut failures = 0;
        loop {
            let error = tokio::select! {
                biased;
                () = self.lease.lost().cancelled() => return Err(Halt::Lost),
                answer = call() => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) if error.kind() == ErrorKind::LeaseLost => return Err(Halt::Lost),
                    Err(error) if error.is_temporary() => error,
                    Err(error) => return Err(Halt::Failed(error)),
                },
            };
            failures += 1;
            let wait = options.offline.wait(seed, failures).max(error.retry_after().unwrap_or_default());
            tracing::warn!(%error, failures, ?wait, "not reached; trying again while the lease lasts");
            tokio::select! {
                biased;
                () = self.lease.lost().cancelled() => return Err(Halt::Lost),
                () = self.attempt.stop.cancelled() => return Err(Halt::Stopped),
                () = clock.sleep(wait) => {}
            }
        }
    }

    fn halted(&self, halt: Halt, job: &Job) -> Step {
        match halt {
            Halt::Lost => Step::Leave,
            Halt::Stopped => self.give_back(),
            Halt::Failed(error) => self.again(job, &error),
        }
    }

    fn again(&self, job: &Job, error: &Error) -> Step {
        let Attempt { worker, delivery, .. } = &self.attempt;
        if delivery.is_last() {
            tracing::error!(%error, "the last delivery has failed; the job goes to the dead letters");
            return Step::Nack(Duration::ZERO, Ending::Dead);
        }
        let seed = seed_of(worker.options.seed, job.id.as_uuid().as_bytes());
        let wait = worker
            .options
            .retry
            .wait(seed, delivery.attempt)
            .max(error.retry_after().unwrap_or_default())
            .min(MAX_DELAY);
        tracing::warn!(%error, ?wait, "job failed; it comes again");
        Step::Nack(wait, Ending::Retried)
    }

    fn misfit(&self, error: &Error) -> Step {
        let Attempt { worker, delivery, .. } = &self.attempt;
        let seed = seed_of(worker.options.seed, delivery.id.0.as_bytes());
        // On the last delivery there is nobody to wait for.
        let wait = if delivery.is_last() { Duration::ZERO } else { worker.options.retry.wait(seed, delivery.attempt) };
        tracing::warn!(%error, ?wait, last = delivery.is_last(), "not a job for this worker; it is given back");
        Step::Nack(wait, Ending::Misfit)
    }

    fn give_back(&self) -> Step {
        tracing::info!("the worker stops; the job is given back");
        Step::Release
    }

    async fn settle(&self, step: Step) -> Ending {
        let queue = &self.attempt.worker.queue;
        let receipt = &self.lease.receipt;
        match step {
            Step::Leave => {
                tracing::warn!("the lease was lost; nothing more is done for this delivery");
                Ending::Lost
            }
            Step::Ack(ending) => {
                match self.patiently(|| queue.ack_one(receipt)).await {
                    Ok(()) => tracing::info!(?ending, "job ends"),
                    // The result stands; a redelivery finds it.
                    Err(Halt::Failed(error)) => {
                        tracing::warn!(%error, ?ending, "job ends, but its message could not be acked")
                    }
                    Err(Halt::Lost | Halt::Stopped) => {
                        tracing::warn!(?ending, "job ends, but its message was not acked in time")
                    }
                }
                ending
            }
            Step::Nack(wait, ending) => {
                self.send_back(queue.nack_one(receipt, wait)).await;
                ending
            }
            Step::Release => {
                self.send_back(queue.release_one(receipt)).await;
                Ending::GivenBack
            }
        }
    }

    async fn send_back(&self, call: impl Future<Output = Result<()>>) {
        let Shared { clock, options, .. } = &*self.attempt.worker;
        let sent_back = tokio::select! {
            answer = call => answer,
            () = clock.sleep(options.cancel_grace) => Err(Error::timeout("give message back", "the queue does not answer")),
        };
        if let Err(error) = sent_back {
            tracing::warn!(%error, "the message could not be given back; it comes again when the lease ends");
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("not a text")
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
