//! Time and ids as injected ports: nothing in the crate family asks the machine for either.

mod timer;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt::{self, Debug},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{Error, Result, id::serde_as_text, inference::BoxFuture};

/// A point in wall-clock time, UTC, to the microsecond; written as RFC 3339.
///
/// ```
/// use hybrid_core::Timestamp;
///
/// let t: Timestamp = "2026-03-01T09:30:00Z".parse().unwrap();
/// assert_eq!(t.to_string(), "2026-03-01T09:30:00Z");
/// assert_eq!(t.date(), "2026-03-01");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// The time `micros` microseconds after the Unix epoch, at most at the end of the year 9999.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(jiff::Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        }))
    }

    /// Microseconds since the Unix epoch.
    pub fn unix_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// The date in UTC as `yyyy-mm-dd`.
    pub fn date(self) -> String {
        self.0.strftime("%Y-%m-%d").to_string()
    }

    /// This time plus `duration`, at most the end of the year 9999.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_unix_micros(self.unix_micros().saturating_add(micros))
    }

    /// The time since `earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.unix_micros().saturating_sub(earlier.unix_micros()).try_into().unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let time: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| {
            Error::invalid("parse timestamp", "expected RFC 3339, such as 2026-03-01T09:30:00Z")
                .with("found", format_args!("{text:?}"))
                .with_source(error)
        })?;
        Ok(Self::from_unix_micros(time.as_microsecond()))
    }
}

serde_as_text!(Timestamp);

/// A point on a clock that never jumps, as the time since an origin that is the same for one [`Clock`] only.
///
/// Leases and deadlines are points on this clock; they never leave the machine, and one that is
/// kept in a file is worth nothing after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// The point `elapsed` after the clock's origin.
    pub fn from_origin(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// This point plus `duration`.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// The time since `earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The clock port.
///
/// # Behavior
/// - [`monotonic`](Self::monotonic) never goes back, and goes on while the machine sleeps, so that a lease runs out over a closed lid.
/// - [`now`](Self::now) may jump either way. Nothing that must be right rests on it.
/// - [`sleep`](Self::sleep) ends no sooner than the monotonic clock has moved by the duration.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall-clock time.
    fn now(&self) -> Timestamp;
    /// The monotonic time.
    fn monotonic(&self) -> Monotonic;
    /// Waits. Dropping the future ends the wait.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_micros(jiff::Timestamp::now().as_microsecond())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(monotonic_with_suspend())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(timer::Sleep::until(self.monotonic().plus(duration)))
    }
}

/// `std::time::Instant` stands still during suspend on Linux and macOS; these clocks do not.
#[cfg(unix)]
fn monotonic_with_suspend() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let time = clock_gettime(CLOCK);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(not(unix))]
fn monotonic_with_suspend() -> Duration {
    static ORIGIN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    ORIGIN.elapsed()
}

/// A clock that moves only when told: for tests that drive time.
///
/// ```
/// use std::time::Duration;
/// use hybrid_core::{Clock, ManualClock};
///
/// let clock = ManualClock::default();
/// let before = clock.monotonic();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.monotonic().since(before), Duration::from_secs(5));
/// ```
#[derive(Clone, Default)]
pub struct ManualClock(Arc<Mutex<Manual>>);

#[derive(Default)]
struct Manual {
    elapsed: Duration,
    wall_offset_micros: i64,
    sleepers: BinaryHeap<Reverse<Sleeper>>,
    next_sleeper: u64,
}

struct Sleeper {
    until: Duration,
    order: u64,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        (self.until, self.order) == (other.until, other.order)
    }
}
impl Eq for Sleeper {}
impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.until, self.order).cmp(&(other.until, other.order))
    }
}

impl ManualClock {
    /// A clock whose wall time starts at `now`.
    pub fn at(now: Timestamp) -> Self {
        let clock = Self::default();
        clock.lock().wall_offset_micros = now.unix_micros();
        clock
    }

    /// Moves both clocks forward and wakes the sleepers whose time has come, earliest first.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.lock();
        state.elapsed += duration;
        while state.sleepers.peek().is_some_and(|sleeper| sleeper.0.until <= state.elapsed) {
            if let Some(Reverse(sleeper)) = state.sleepers.pop() {
                // A sleeper that was dropped meanwhile has nobody to wake.
                let _ = sleeper.wake.send(());
            }
        }
    }

    /// Makes the wall clock jump by `micros` microseconds; the monotonic clock does not move.
    pub fn jump_wall(&self, micros: i64) {
        let mut state = self.lock();
        state.wall_offset_micros = state.wall_offset_micros.saturating_add(micros);
    }

    /// How many sleepers wait: lets a test know that a task has gone to sleep before it moves time.
    pub fn sleepers(&self) -> usize {
        self.lock().sleepers.iter().filter(|sleeper| !sleeper.0.wake.is_closed()).count()
    }

    /// How long until the first of them wakes.
    pub fn next_wake(&self) -> Option<Duration> {
        let state = self.lock();
        let waiting = state.sleepers.iter().filter(|sleeper| !sleeper.0.wake.is_closed());
        waiting.map(|sleeper| sleeper.0.until).min().map(|until| until.saturating_sub(state.elapsed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Manual> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock").field("elapsed", &self.lock().elapsed).finish_non_exhaustive()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let state = self.lock();
        Timestamp::from_unix_micros(state.wall_offset_micros).plus(state.elapsed)
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.lock().elapsed)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if duration.is_zero() {
            return Box::pin(async {});
        }
        let (wake, woken) = oneshot::channel();
        let mut state = self.lock();
        let (until, order) = (state.elapsed + duration, state.next_sleeper);
        state.next_sleeper += 1;
        state.sleepers.push(Reverse(Sleeper { until, order, wake }));
        Box::pin(async move {
            // The sender lives in the clock; if the clock is gone, time has ended.
            let _ = woken.await;
        })
    }
}

/// Where ids come from.
pub trait IdSource: Debug + Send + Sync + 'static {
    /// A fresh UUIDv7 (RFC 9562): ordered by time to the millisecond.
    fn next_uuid(&self) -> Uuid;
}

/// Ids from a clock and the operating system's random numbers.
#[derive(Debug)]
pub struct SystemIds {
    clock: Arc<dyn Clock>,
}

impl SystemIds {
    /// Ids whose time comes from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

impl Default for SystemIds {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock))
    }
}

impl IdSource for SystemIds {
    fn next_uuid(&self) -> Uuid {
        let mut random = [0; 10];
        // An operating system without random numbers cannot run this software at all; a repeated id would be worse than a stop.
        #[allow(clippy::expect_used)]
        getrandom::fill(&mut random).expect("the operating system gives random numbers");
        uuid_v7(self.clock.now(), random)
    }
}

/// Ids that are the same in each run: for tests.
#[derive(Debug, Default)]
pub struct SeededIds {
    next: std::sync::atomic::AtomicU64,
}

impl SeededIds {
    /// Ids that count up from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { next: seed.into() }
    }
}

impl IdSource for SeededIds {
    fn next_uuid(&self) -> Uuid {
        let count = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&count.to_be_bytes());
        uuid_v7(Timestamp::UNIX_EPOCH, random)
    }
}

fn uuid_v7(now: Timestamp, random: [u8; 10]) -> Uuid {
    let millis = u64::try_from(now.unix_micros() / 1000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339_in_utc() {
        let time: Timestamp = "2026-03-01T10:30:00.123456+01:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-03-01T09:30:00.123456Z");
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert_eq!(Timestamp::from_unix_micros(i64::MAX).plus(Duration::MAX), Timestamp::from_unix_micros(i64::MAX));
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_sleepers_in_order_and_only_when_moved() {
        let clock = ManualClock::default();
        let short = clock.sleep(Duration::from_secs(1));
        let mut long = clock.sleep(Duration::from_secs(2));
        clock.advance(Duration::from_secs(1));
        short.await;
        assert!(futures_util::poll!(&mut long).is_pending());
        clock.advance(Duration::from_secs(1));
        long.await;
    }

    #[tokio::test]
    async fn a_wall_clock_jump_leaves_the_monotonic_clock_alone() {
        let clock = ManualClock::at("2026-03-01T00:00:00Z".parse().unwrap());
        let before = clock.monotonic();
        clock.jump_wall(-86_400_000_000);
        assert_eq!(clock.now().to_string(), "2026-02-28T00:00:00Z");
        assert_eq!(clock.monotonic(), before);
    }

    #[tokio::test]
    async fn the_system_clock_sleeps_for_the_time_asked() {
        let before = SystemClock.monotonic();
        SystemClock.sleep(Duration::from_millis(5)).await;
        assert!(SystemClock.monotonic().since(before) >= Duration::from_millis(5));
    }

    #[test]
    fn ids_are_version_7_and_differ() {
        let ids = SystemIds::default();
        let (a, b) = (ids.next_uuid(), ids.next_uuid());
        assert_eq!(a.get_version_num(), 7);
        assert_ne!(a, b);
        assert_eq!(SeededIds::new(4).next_uuid(), SeededIds::new(4).next_uuid());
    }
}
