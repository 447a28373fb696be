//! Whether and when a failed call is made again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hybrid_core::{CallContext, Error, ErrorKind, IdSource, Result};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::failure::Failure;

/// When and how often a failed call is made again. The waits grow twofold from `base` to `cap`, and each is drawn evenly between nothing and that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a call is tried that is throttled or finds the service away, the first time included.
    pub tries: u32,
    /// The bound of the first wait.
    pub base: Duration,
    /// The bound that no wait exceeds.
    pub cap: Duration,
    /// How often a call is tried while an imported model is loaded, the first time included.
    pub cold_tries: u32,
    /// The bound of the first wait for a model that is loaded. Such waits are drawn from the upper half, since loading takes its time.
    pub cold_base: Duration,
    /// The bound that no wait for a model that is loaded exceeds.
    pub cold_cap: Duration,
}

impl Default for RetryPolicy {
    /// 3 tries with up to 0.5 s, 1 s, … 20 s between them; 5 tries with up to 10 s, 20 s, … 60 s between them for a model that is loaded.
    fn default() -> Self {
        Self {
            tries: 3,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(20),
            cold_tries: 5,
            cold_base: Duration::from_secs(10),
            cold_cap: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// Every call is tried once.
    pub fn never() -> Self {
        Self { tries: 1, cold_tries: 1, ..Self::default() }
    }
}

/// Why a failure may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// The provider gives little hope and the call costs: one more time.
    Once,
    /// Too many calls.
    Throttled,
    /// The service or the way to it is away.
    Transient,
    /// An imported model is being loaded.
    Cold,
}

/// The retries of one model: calls beside each other share what they may spend.
#[derive(Debug)]
pub(super) struct Retrier {
    policy: RetryPolicy,
    /// Retries that may still be made while nothing succeeds, so that many callers do not hammer a service that is down.
    budget: Mutex<u32>,
    jitter: Mutex<ChaCha8Rng>,
}

/// As the SDKs' standard mode has it: a retry takes 5 of 500, a success gives 1 back.
const BUDGET: u32 = 500;
const RETRY_COST: u32 = 5;

impl Retrier {
    pub(super) fn new(policy: RetryPolicy, ids: &dyn IdSource) -> Self {
        let seed = ids.next_uuid().as_u128();
        // The lower half of a UUIDv7 is random; the upper is time.
        let jitter = ChaCha8Rng::seed_from_u64(seed as u64);
        Self { policy, budget: Mutex::new(BUDGET), jitter: Mutex::new(jitter) }
    }

    /// Runs `attempt` until it succeeds, may not be tried again, or the context ends it. The failure that is left says after how many tries, and is in
    /// doubt if any of them was: a later refusal does not undo what an earlier try may have cost.
    pub(super) async fn run<R, F>(
        &self,
        cx: &CallContext,
        operation: &'static str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<R>
    where
        F: Future<Output = std::result::Result<R, Failure>>,
    {
        let mut tries = 0;
        let mut in_doubt = false;
        let told = |error: Error, in_doubt: bool| if in_doubt { error.in_doubt() } else { error };
        loop {
            tries += 1;
            let tried = cx.run(operation, async { Ok(attempt().await) }).await;
            let failure = match tried.map_err(|error| told(error, in_doubt))? {
                Ok(answer) => {
                    self.succeeded();
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            in_doubt |= failure.in_doubt || failure.kind == ErrorKind::Timeout;
            let wait = self.wait(&failure, tries);
            let in_time =
                |wait: &Duration| cx.deadline.is_none_or(|deadline| deadline.since(cx.clock.monotonic()) > *wait);
            match wait.filter(in_time) {
                Some(wait) => {
                    let sleep = cx.clock.sleep(wait);
                    let waited = cx.run(operation, async {
                        sleep.await;
                        Ok(())
                    });
                    waited.await.map_err(|error| told(error, in_doubt))?;
                }
                None => return Err(told(failure.into_error(operation).with("tries", tries), in_doubt)),
            }
        }
    }

    /// How long to wait before the try after this many, if there is to be one.
    fn wait(&self, failure: &Failure, tries: u32) -> Option<Duration> {
        let RetryPolicy { tries: usual, base, cap, cold_tries, cold_base, cold_cap } = self.policy;
        let (limit, base, cap, least) = match failure.retry {
            Retry::Never => return None,
            Retry::Once => (usual.min(2), base, cap, 0.0),
            Retry::Throttled | Retry::Transient => (usual, base, cap, 0.0),
            Retry::Cold => (cold_tries, cold_base, cold_cap, 0.5),
        };
        if tries >= limit || !self.afford() {
            return None;
        }
        let bound = base.saturating_mul(1_u32.checked_shl(tries - 1).unwrap_or(u32::MAX)).min(cap);
        let wait = bound.mul_f64(least + (1.0 - least) * self.share());
        Some(wait.max(failure.retry_after.unwrap_or_default()))
    }

    fn afford(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let left = budget.checked_sub(RETRY_COST);
        *budget = left.unwrap_or(*budget);
        left.is_some()
    }

    fn succeeded(&self) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = (*budget + 1).min(BUDGET);
    }

    /// A number from 0 up to 1.
    fn share(&self) -> f64 {
        let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
        f64::from(jitter.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::SeededIds;

    use super::*;

    fn waits(seed: u64, retry: Retry, tries: std::ops::Range<u32>) -> Vec<Option<Duration>> {
        let retrier = Retrier::new(RetryPolicy::default(), &SeededIds::new(seed));
        tries.map(|tries| retrier.wait(&Failure { retry, ..Failure::corrupt("test") }, tries)).collect()
    }

    #[test]
    fn waits_are_drawn_from_the_whole_of_a_growing_range() {
        let firsts: Vec<_> = (0..200).map(|seed| waits(seed, Retry::Throttled, 1..2)[0].unwrap()).collect();
        assert!(firsts.iter().all(|wait| *wait < Duration::from_millis(500)));
        assert!(firsts.iter().any(|wait| *wait < Duration::from_millis(50)), "full jitter begins at nothing");
        assert!(firsts.iter().any(|wait| *wait > Duration::from_millis(450)));
        let seconds: Vec<_> = (0..200).map(|seed| waits(seed, Retry::Transient, 2..3)[0].unwrap()).collect();
        assert!(seconds.iter().any(|wait| *wait > Duration::from_millis(900)));
        assert_eq!(waits(7, Retry::Throttled, 1..3), waits(7, Retry::Throttled, 1..3), "the seed decides");
    }

    #[test]
    fn tries_end() {
        assert_eq!(waits(1, Retry::Never, 1..2), [None]);
        assert!(matches!(waits(1, Retry::Once, 1..3)[..], [Some(_), None]));
        assert!(matches!(waits(1, Retry::Transient, 1..4)[..], [Some(_), Some(_), None]));
        assert!(matches!(waits(1, Retry::Cold, 1..6)[..], [Some(_), Some(_), Some(_), Some(_), None]));
    }

    #[test]
    fn a_model_that_is_loaded_is_given_time() {
        let waits: Vec<_> = waits(3, Retry::Cold, 1..5).into_iter().flatten().collect();
        for (wait, bound) in waits.iter().zip([10, 20, 40, 60]) {
            assert!((bound as f64 / 2.0..=bound as f64).contains(&wait.as_secs_f64()), "{wait:?} of {bound} s");
        }
    }

    #[test]
    fn a_service_that_is_down_is_not_hammered_for_ever() {
        let retrier = Retrier::new(RetryPolicy::default(), &SeededIds::default());
        let away = Failure { retry: Retry::Transient, ..Failure::corrupt("test") };
        let retries = (0..1000).filter(|_| retrier.wait(&away, 1).is_some()).count();
        assert_eq!(retries, 100);
        for _ in 0..RETRY_COST {
            retrier.succeeded();
        }
        assert!(retrier.wait(&away, 1).is_some());
        assert!(retrier.wait(&away, 1).is_none());
    }

    #[test]
    fn the_service_may_ask_for_more_time() {
        let retrier = Retrier::new(RetryPolicy::default(), &SeededIds::default());
        let retry_after = Some(Duration::from_secs(33));
        let asked = Failure { retry: Retry::Throttled, retry_after, ..Failure::corrupt("test") };
        assert_eq!(retrier.wait(&asked, 1), retry_after);
    }
}
