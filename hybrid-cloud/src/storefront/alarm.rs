//! Deadlines that mostly move on before they are reached: of the next head on a connection, of the next piece of an answer.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hybrid_core::{BoxFuture, Clock, Monotonic};
use hyper::rt::{Sleep, Timer};

/// Waits for one deadline at a time.
///
/// A sleep of the clock may wake another thread whenever it is set or dropped. So one that is set stays set for the deadlines after: it ends too
/// early for them, and only then is another set.
pub(super) struct Alarm {
    clock: Arc<dyn Clock>,
    set: Option<(Monotonic, BoxFuture<'static, ()>)>,
}

impl Alarm {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, set: None }
    }

    /// Ends at `deadline`. Dropping it leaves the alarm ready for another.
    pub(super) fn until(&mut self, deadline: Monotonic) -> impl Future<Output = ()> + Send + Unpin {
        poll_fn(move |cx| self.poll_until(cx, deadline))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Monotonic) -> Poll<()> {
        loop {
            let (at, sleep) = match &mut self.set {
                Some(set) if set.0 <= deadline => set,
                other => {
                    let sleep = self.clock.sleep(deadline.since(self.clock.monotonic()));
                    other.insert((deadline, sleep))
                }
            };
            ready!(sleep.as_mut().poll(cx));
            // An earlier deadline's sleep ends on the way; this one's own is the end, whatever the clock says.
            let is_over = *at == deadline;
            self.set = None;
            if is_over {
                return Poll::Ready(());
            }
        }
    }
}

/// The injected clock as hyper wants it, for one connection, which waits for one thing at a time.
#[derive(Clone)]
pub(super) struct ClockTimer {
    clock: Arc<dyn Clock>,
    /// Any instant will do: hyper only compares and subtracts what this timer gave it.
    origin: (Instant, Monotonic),
    alarm: Arc<Mutex<Alarm>>,
}

impl ClockTimer {
    pub(super) fn new(clock: &Arc<dyn Clock>) -> Self {
        let (clock, alarm) = (Arc::clone(clock), Alarm::new(Arc::clone(clock)));
        Self { origin: (Instant::now(), clock.monotonic()), clock, alarm: Arc::new(Mutex::new(alarm)) }
    }
}

impl Timer for ClockTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(ClockSleep { alarm: Arc::clone(&self.alarm), deadline: self.clock.monotonic().plus(duration) })
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }

    fn now(&self) -> Instant {
        let (instant, start) = self.origin;
        instant + self.clock.monotonic().since(start)
    }
}

struct ClockSleep {
    alarm: Arc<Mutex<Alarm>>,
    deadline: Monotonic,
}

impl Future for ClockSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner).poll_until(cx, self.deadline)
    }
}

impl Sleep for ClockSleep {}

impl fmt::Debug for ClockTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockTimer").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClockSleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockSleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use hybrid_core::ManualClock;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timer(clock: &ManualClock) -> ClockTimer {
        ClockTimer::new(&(Arc::new(clock.clone()) as _))
    }

    #[test]
    fn deadlines_one_after_the_other_share_a_sleep_and_each_is_kept_to() {
        let clock = ManualClock::default();
        let timer = timer(&clock);
        for _ in 0..5 {
            let mut waits = timer.sleep(10 * SECOND);
            assert!(waits.as_mut().now_or_never().is_none());
            clock.advance(SECOND);
        }
        assert_eq!(clock.sleepers(), 1, "five deadlines were set and dropped");
        // The sleep of the first ends at 10 s; the last deadline is at 15 s.
        let mut waits = timer.sleep_until(timer.now() + 10 * SECOND);
        clock.advance(6 * SECOND);
        assert!(waits.as_mut().now_or_never().is_none());
        clock.advance(3 * SECOND);
        assert!(waits.as_mut().now_or_never().is_none());
        clock.advance(SECOND);
        assert!(waits.as_mut().now_or_never().is_some());
        assert_eq!(clock.sleepers(), 0);
    }

    #[test]
    fn a_sleep_that_ends_too_late_is_not_waited_for() {
        let clock = ManualClock::default();
        let timer = timer(&clock);
        assert!(timer.sleep(100 * SECOND).as_mut().now_or_never().is_none());
        let mut soon = timer.sleep(SECOND);
        assert!(soon.as_mut().now_or_never().is_none());
        clock.advance(SECOND);
        assert!(soon.as_mut().now_or_never().is_some());
    }
}
