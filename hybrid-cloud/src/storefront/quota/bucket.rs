//! A token bucket in whole numbers.
//!
//! `governor` counts what is taken and cannot take anything back, which settling needs; so these few lines instead.

use std::time::Duration;

use hybrid_core::Monotonic;

const MINUTE: i128 = 60_000_000_000;

/// So much a minute, all of it at once after a quiet minute. In units of one token times one nanosecond of a minute, so that nothing is rounded.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// What is missing from a full bucket; more than a bucket where it is overdrawn.
    missing: i128,
    at: Monotonic,
}

impl Bucket {
    /// Takes `count` of `per_minute`, or says how long until that many will be there.
    pub(super) fn take(&mut self, now: Monotonic, per_minute: u64, count: u64) -> Result<(), Duration> {
        self.refill(now, per_minute);
        let (full, taken) = (units(per_minute), units(count));
        let short = self.missing + taken - full;
        if short <= 0 {
            self.missing += taken;
            return Ok(());
        }
        // Rounded up, so that whoever waits so long is not early. A limit of zero lets nothing through at all.
        let wait = (short + i128::from(per_minute) - 1).checked_div(i128::from(per_minute)).unwrap_or(MINUTE * 60);
        Err(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// `used` were used where `taken` had been taken.
    pub(super) fn settle(&mut self, now: Monotonic, per_minute: u64, taken: u64, used: u64) {
        self.refill(now, per_minute);
        // What has flowed in meanwhile is lost where the bucket had been full again: it never holds more than a minute's worth.
        self.missing = (self.missing + units(used) - units(taken)).max(0);
    }

    /// Whether it is as good as a new one.
    pub(super) fn is_full(&mut self, now: Monotonic, per_minute: u64) -> bool {
        self.refill(now, per_minute);
        self.missing == 0
    }

    fn refill(&mut self, now: Monotonic, per_minute: u64) {
        let elapsed = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX);
        self.missing = (self.missing - elapsed.saturating_mul(per_minute.into())).max(0);
        self.at = self.at.max(now);
    }
}

fn units(count: u64) -> i128 {
    i128::from(count) * MINUTE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn a_minute_gives_its_number_and_says_when_there_is_more() {
        let mut bucket = Bucket::default();
        for _ in 0..60 {
            assert_eq!(bucket.take(at(0), 60, 1), Ok(()));
        }
        assert_eq!(bucket.take(at(0), 60, 1), Err(Duration::from_secs(1)));
        assert_eq!(bucket.take(at(999), 60, 1), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(at(1000), 60, 1), Ok(()));
        assert_eq!(bucket.take(at(1000), 60, 2), Err(Duration::from_secs(2)));
        // However long it is quiet, no more than a minute's worth comes together.
        assert_eq!(bucket.take(at(1_000_000), 60, 60), Ok(()));
        assert!(bucket.take(at(1_000_000), 60, 1).is_err());
        assert!(Bucket::default().take(at(0), 0, 1).is_err());
    }

    #[test]
    fn whoever_waits_as_told_is_let_in_and_nobody_a_moment_sooner() {
        for per_minute in [1, 7, 59, 61, 1_000_003] {
            let mut bucket = Bucket::default();
            bucket.take(at(0), per_minute, per_minute).unwrap();
            let wait = bucket.take(at(0), per_minute, 1).unwrap_err();
            let early = Monotonic::from_origin(wait.saturating_sub(Duration::from_nanos(1)));
            assert!(bucket.take(early, per_minute, 1).is_err(), "{per_minute}");
            assert_eq!(bucket.take(Monotonic::from_origin(wait), per_minute, 1), Ok(()), "{per_minute}");
        }
    }

    #[test]
    fn what_was_not_used_comes_back_and_what_was_used_beyond_is_owed() {
        let mut bucket = Bucket::default();
        bucket.take(at(0), 100, 80).unwrap();
        bucket.settle(at(0), 100, 80, 30);
        bucket.take(at(0), 100, 70).unwrap();
        bucket.settle(at(0), 100, 70, 170);
        assert_eq!(bucket.take(at(0), 100, 50), Err(Duration::from_secs(90)));
        assert_eq!(bucket.take(at(90_000), 100, 50), Ok(()));
        // Time that goes back gives nothing.
        assert!(bucket.take(at(10), 100, 50).is_err());
    }
}
