//! Jobs whose deliveries are used up: told in the bucket, sent back to the queue, or given up.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Cancellation, Clock, DeadLetter, DeadLetters, Document, Error, ErrorKind, JobId,
    Key, ListOptions, MessageId, Result, TenantId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Failure, Job, JobResult, Outcome, result_key};

/// How many letters are looked at together.
const PAGE: usize = 1_000;

/// Looks after the dead letters of a queue of jobs.
///
/// A job without a result cannot be told from one that waits. So whoever runs [`run`](Self::run) beside a worker, where the dead letters can be read, tells
/// in the bucket which jobs are dead; [`status`](hybrid_core::Jobs::status) then says that they stand still. A person finds out why, and sends them
/// [back](Self::redrive) or [gives them up](Self::give_up).
///
/// # In the bucket
/// A job's deaths and returns are a numbered sequence of documents at `t/<tenant>/jobs/<id>/dead/<number, 20 digits>`, of which the last one counts. Who
/// creates the next number first has said it.
#[derive(Clone)]
pub struct DeadJobs {
    letters: Arc<dyn DeadLetters>,
    store: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
}

/// A dead letter, and what it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadJob {
    /// The letter.
    pub letter: DeadLetter,
    /// The job, where the letter is one.
    pub job: Option<Job>,
}

/// What [`DeadJobs::tell`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Jobs that are told to be dead and were not before.
    pub dead: u64,
    /// Letters of jobs that have their result, which were purged: the result was written, and its message could not be acked in time.
    pub done: u64,
}

/// One entry of a job's sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    job: JobId,
    at: Timestamp,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Its deliveries are used up.
    Dead,
    /// It is on the queue again.
    Redriven,
}

impl Document for Note {
    const FORMAT: &'static str = "hybrid.dead-job";
    const MAJOR: u32 = 1;
}

impl DeadJobs {
    /// Looks after `letters`, whose jobs have their results in `store`.
    pub fn new(letters: Arc<dyn DeadLetters>, store: Arc<dyn ArtifactStore>, clock: Arc<dyn Clock>) -> Self {
        Self { letters, store, clock }
    }

    /// All dead letters, oldest first.
    ///
    /// # Errors
    /// Those of the queue.
    pub async fn list(&self) -> Result<Vec<DeadJob>> {
        let mut found: Vec<DeadJob> = Vec::new();
        loop {
            let letters = self.letters.list(PAGE, found.last().map(|last| &last.letter.id)).await?;
            let last = letters.len() < PAGE;
            found.extend(letters.into_iter().map(|letter| {
                let job = Job::decode(letter.body.as_bytes()).ok();
                DeadJob { letter, job }
            }));
            if last {
                return Ok(found);
            }
        }
    }

    /// Tells in the bucket which jobs are dead, and purges the letters of those that have their result. Doing it again changes nothing.
    ///
    /// # Errors
    /// Those of queue and bucket, the first of them: what could be told is told.
    pub async fn tell(&self) -> Result<Told> {
        let (mut told, mut done, mut failure) = (Told::default(), Vec::new(), None);
        for DeadJob { letter, job } in self.list().await? {
            let Some(job) = job else {
                tracing::warn!(message = %letter.id.0, "a dead letter is no job");
                continue;
            };
            match self.look(&job).await {
                Ok(Standing::Done) => done.push(letter.id),
                Ok(Standing::Told) => {}
                Ok(Standing::News) => {
                    tracing::error!(job = %job.id, kind = %job.kind, tenant = %job.tenant, message = %letter.id.0, "a job has used up its deliveries; look why, then redrive it or give it up");
                    told.dead += 1;
                }
                Err(error) => {
                    failure.get_or_insert(error.with("job", job.id));
                }
            }
        }
        told.done = self.letters.purge(&done).await?;
        failure.map_or(Ok(told), Err)
    }

    /// [Tells](Self::tell) now and every `interval` until `stop` is raised: for a task of its own. What fails is tried again.
    pub async fn run(&self, interval: Duration, stop: Cancellation) {
        loop {
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                looked = self.tell() => looked,
            };
            if let Err(error) = looked {
                tracing::warn!(%error, "not all dead letters could be looked at");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.clock.sleep(interval) => {}
            }
        }
    }

    /// Sends letters back to the queue, their deliveries counted from one again; answers with how many went back. Ids that are not here are passed over.
    ///
    /// # Errors
    /// Those of queue and bucket. A job that is back on the queue and could not be told to be is told the next time, or has its result before.
    pub async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        let (letters, jobs) = self.named(ids).await?;
        let back = self.letters.redrive(&letters).await?;
        for (job, _) in jobs.into_values() {
            self.say(&job, State::Redriven).await?;
        }
        Ok(back)
    }

    /// Ends jobs: each gets a failure as its result, unless it has a result, and its letter is purged. A letter that is no job is purged. Answers with how
    /// many letters were.
    ///
    /// # Errors
    /// Those of queue and bucket; what was not ended keeps its letter.
    pub async fn give_up(&self, ids: &[MessageId]) -> Result<u64> {
        let (letters, jobs) = self.named(ids).await?;
        for (job, letter) in jobs.values() {
            let failure = Error::new(ErrorKind::ResourceExhausted, "run job", "its deliveries are used up");
            let now = self.clock.now();
            let result = JobResult {
                job: job.id,
                kind: job.kind.clone(),
                outcome: Outcome::Failure(Failure::new(&failure.with("deliveries", letter.attempts))),
                worker: "given up".to_owned(),
                started: now,
                finished: now,
                attempts: letter.attempts,
                request: job.request.clone(),
                trace: job.trace.clone(),
            };
            match self.store.create(&result_key(&job.tenant, job.id)?, result.encode()?).await {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.with("job", job.id)),
                _ => tracing::warn!(job = %job.id, kind = %job.kind, tenant = %job.tenant, "a job is given up"),
            }
        }
        self.letters.purge(&letters).await
    }

    /// Of the letters named those that are seen now, and the jobs among them. Another who looks may hide a letter for a moment, and what was not seen must not be
    /// done with: nothing has been said of its job.
    async fn named(&self, ids: &[MessageId]) -> Result<(Vec<MessageId>, BTreeMap<JobId, (Job, DeadLetter)>)> {
        let wanted = |dead: &DeadJob| ids.contains(&dead.letter.id);
        let found: Vec<_> = self.list().await?.into_iter().filter(wanted).collect();
        let letters = found.iter().map(|dead| dead.letter.id.clone()).collect();
        let jobs = found.into_iter().filter_map(|DeadJob { letter, job }| job.map(|job| (job.id, (job, letter))));
        Ok((letters, jobs.collect()))
    }

    async fn look(&self, job: &Job) -> Result<Standing> {
        if self.store.exists(&result_key(&job.tenant, job.id)?).await? {
            return Ok(Standing::Done);
        }
        Ok(if self.say(job, State::Dead).await? { Standing::News } else { Standing::Told })
    }

    /// Makes `state` the last that is said of a job; answers whether it was not before.
    async fn say(&self, job: &Job, state: State) -> Result<bool> {
        loop {
            let last = last_note(&*self.store, &job.tenant, job.id).await?;
            if last.as_ref().is_some_and(|(_, note)| note.state == state) {
                return Ok(false);
            }
            let number = last.map_or(1, |(number, _)| number + 1);
            let note = Note { job: job.id, at: self.clock.now(), state };
            let key = Key::new(format!("{}{number:020}", notes(&job.tenant, job.id)))?;
            match self.store.create(&key, note.encode()?).await {
                Ok(()) => return Ok(true),
                // Another has said something meanwhile.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Debug for DeadJobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadJobs").field("letters", &self.letters).finish_non_exhaustive()
    }
}

enum Standing {
    /// It has its result.
    Done,
    /// That it is dead is known.
    Told,
    /// That it is dead was not known.
    News,
}

/// Since when a job without a result stands still, if it does.
pub(super) async fn stalled(store: &dyn ArtifactStore, tenant: &TenantId, id: JobId) -> Result<Option<Timestamp>> {
    let last = last_note(store, tenant, id).await?;
    Ok(last.and_then(|(_, note)| (note.state == State::Dead).then_some(note.at)))
}

fn notes(tenant: &TenantId, id: JobId) -> String {
    format!("t/{tenant}/jobs/{id}/dead/")
}

async fn last_note(store: &dyn ArtifactStore, tenant: &TenantId, id: JobId) -> Result<Option<(u64, Note)>> {
    let prefix = notes(tenant, id);
    let mut last = None;
    let mut objects = store.list(&prefix, ListOptions::default());
    while let Some(object) = objects.try_next().await? {
        last = Some(object.key);
    }
    let Some(key) = last else { return Ok(None) };
    let number = key.as_str().strip_prefix(&prefix).and_then(|number| number.parse().ok());
    let number =
        number.ok_or_else(|| Error::corrupt("read job status", "this is no note of a death").with("key", &key))?;
    let note = Note::decode(&store.get(&key).await?).map_err(|error| error.with("key", &key))?;
    if note.job != id {
        return Err(Error::corrupt("read job status", "the note is of another job").with("key", &key));
    }
    Ok(Some((number, note)))
}
