use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use hybrid_core::{
    CallContext, Error, InferenceBackend, Money, Progress, ProgressEvent, Reply, Result, ServedModel, Task,
};

use super::{
    GoldenCase,
    scorer::{Answer, Scorer},
};

/// All that one version answered to a golden set.
#[derive(Debug)]
pub(super) struct Answers {
    /// The model that answered, the same in every reply.
    pub(super) model: ServedModel,
    /// One for each case, in order.
    pub(super) answers: Vec<Answer>,
    /// The 95th percentile of the time of a request, where each had one case.
    pub(super) latency_p95: Option<Duration>,
    /// The sum of what the replies cost; `None` if none had a cost.
    pub(super) cost: Option<Money>,
    /// Replies without a cost from a backend that has a price, or beside replies that have one.
    pub(super) unpriced: u64,
    /// How many replies had a note, by its code.
    pub(super) notes: BTreeMap<String, u64>,
}

/// A version to be asked.
#[derive(Debug)]
pub(super) struct Asked<'a, T: Task, S: Scorer<T>> {
    pub(super) role: &'static str,
    pub(super) backend: &'a dyn InferenceBackend<T>,
    pub(super) scorer: &'a S,
    pub(super) golden: &'a [GoldenCase],
    pub(super) cases: &'a [S::Case],
    pub(super) batch: usize,
    pub(super) concurrency: usize,
    pub(super) timed: bool,
}

/// Counts cases over both versions.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    pub(super) progress: &'a dyn Progress,
    pub(super) done: u64,
    pub(super) total: u64,
}

impl Tally<'_> {
    fn add(&mut self, cases: usize, role: &'static str) {
        self.done += cases as u64;
        self.progress.report(ProgressEvent::new("evaluate", self.done, self.total, "cases").with_message(role));
    }
}

impl<T: Task, S: Scorer<T>> Asked<'_, T, S> {
    /// Asks every case and gives all answers, or the first failure in order of the cases.
    pub(super) async fn answer(&self, cx: &CallContext, tally: &mut Tally<'_>) -> Result<Answers> {
        let profile = self.backend.profile();
        let (batch, concurrency) = match self.timed {
            true => (1, 1),
            false => (
                self.batch.min(self.scorer.max_batch()).min(profile.limits.batch.unwrap_or(usize::MAX)).max(1),
                self.concurrency,
            ),
        };
        // Made before they are polled: a closure that borrows would not be general enough for the caller's `Send` future.
        let calls: Vec<_> = (0..self.cases.len()).step_by(batch).map(|first| self.ask(cx, first, batch)).collect();
        let mut replies = stream::iter(calls).buffered(concurrency);

        let mut model: Option<ServedModel> = None;
        let (mut answers, mut latencies, mut notes) =
            (Vec::with_capacity(self.cases.len()), Vec::new(), BTreeMap::new());
        let (mut cost, mut without_cost) = (None::<Money>, 0);
        while let Some(reply) = replies.next().await {
            let (reply, elapsed) = reply?;
            let first = answers.len();
            let count = batch.min(self.cases.len() - first);
            let named = |error: Error| self.name(error, first, count);
            let known = model.get_or_insert_with(|| reply.meta.model.clone());
            if *known != reply.meta.model {
                return Err(named(
                    Error::unavailable(
                        "evaluate",
                        "two models answered one evaluation; try again when the backend has settled",
                    )
                    .with("first", format_args!("{known:?}"))
                    .with("then", format_args!("{:?}", reply.meta.model)),
                ));
            }
            let batch_answers = self.scorer.answers(reply.response).map_err(named)?;
            if batch_answers.len() != count {
                return Err(named(
                    Error::corrupt("evaluate", "the reply has another number of answers than the request had cases")
                        .with("answers", batch_answers.len())
                        .with("asked", count),
                ));
            }
            answers.extend(batch_answers);
            latencies.push(elapsed);
            for note in reply.meta.notes {
                *notes.entry(note.code).or_insert(0) += 1;
            }
            match (reply.meta.cost, cost) {
                (Some(more), Some(sum)) => cost = Some(sum.plus(more).map_err(named)?),
                (Some(more), None) => cost = Some(more),
                (None, _) => without_cost += 1,
            }
            tally.add(count, self.role);
        }
        let unpriced = if cost.is_some() || profile.price.is_some() { without_cost } else { 0 };
        let latency_p95 = self.timed.then(|| p95(latencies));
        Ok(Answers {
            model: model.unwrap_or_else(|| profile.model.clone()),
            answers,
            latency_p95,
            cost,
            unpriced,
            notes,
        })
    }

    async fn ask(&self, cx: &CallContext, first: usize, batch: usize) -> Result<(Reply<T>, Duration)> {
        let cases: Vec<_> = self.cases.iter().skip(first).take(batch).collect();
        let request = self.scorer.request(&cases);
        let start = cx.clock.monotonic();
        let reply = cx
            .run("evaluate", self.backend.infer(cx, request))
            .await
            .map_err(|error| self.name(error, first, cases.len()))?;
        Ok((reply, cx.clock.monotonic().since(start)))
    }

    /// The failure of a request, with whose it was and which cases it had. It stays as temporary as it was.
    fn name(&self, error: Error, first: usize, count: usize) -> Error {
        let case = |index: usize| {
            self.golden.get(index).map_or_else(String::new, |case| format!("{} on line {}", case.id, case.line))
        };
        let cases = match count {
            1 => case(first),
            _ => format!("{} to {}", case(first), case(first + count.saturating_sub(1))),
        };
        let mut named = Error::new(error.kind(), "evaluate", format!("the {} failed; nothing was judged", self.role))
            .with("backend", &self.backend.profile().name)
            .with("case", cases);
        if let Some(wait) = error.retry_after() {
            named = named.with_retry_after(wait);
        }
        named.with_source(error)
    }
}

/// The 95th percentile by nearest rank: the least time that at least 95 % of the requests kept to.
fn p95(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort();
    let rank = (latencies.len() * 95).div_ceil(100);
    latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_95th_percentile_is_the_nearest_rank() {
        let millis = |n: u64| (1..=n).rev().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(p95(millis(100)), Duration::from_millis(95));
        assert_eq!(p95(millis(20)), Duration::from_millis(19));
        assert_eq!(p95(millis(10)), Duration::from_millis(10));
        assert_eq!(p95(millis(1)), Duration::from_millis(1));
    }
}
