//! One thread that wakes whoever sleeps by the machine's clock.
//!
//! Most sleeps are limits that are never reached: they are set and dropped again within microseconds. So to set one that ends after the thread's next
//! look, and to drop any, wakes nobody: it is an entry in a table, under a lock.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use super::{Clock, Monotonic, SystemClock};

/// The longest that the thread does not look: its own wait stands still while the machine sleeps, and the clock does not.
const LOOK: Duration = Duration::from_secs(60);

/// Ends at a point of the machine's monotonic clock.
pub(super) struct Sleep {
    until: Monotonic,
    /// The entry's number, and who it wakes.
    set: Option<(u64, Waker)>,
}

impl Sleep {
    pub(super) fn until(until: Monotonic) -> Self {
        Self { until, set: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if SystemClock.monotonic() >= self.until {
            return Poll::Ready(());
        }
        match &self.set {
            Some((_, waker)) if waker.will_wake(cx.waker()) => {}
            set => {
                let number = Timer::get().set(self.until, set.as_ref().map(|(number, _)| *number), cx.waker().clone());
                self.set = Some((number, cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((number, _)) = &self.set {
            Timer::get().lock().sleepers.remove(&(self.until, *number));
        }
    }
}

#[derive(Default)]
struct Timer {
    state: Mutex<State>,
    sooner: Condvar,
}

#[derive(Default)]
struct State {
    sleepers: BTreeMap<(Monotonic, u64), Waker>,
    next_number: u64,
    /// When the thread looks by itself; `None` while it waits to be told.
    looks: Option<Monotonic>,
}

impl Timer {
    fn get() -> &'static Self {
        static TIMER: OnceLock<Timer> = OnceLock::new();
        static THREAD: OnceLock<()> = OnceLock::new();
        let timer = TIMER.get_or_init(Self::default);
        THREAD.get_or_init(|| {
            // Without threads nothing here would ever time out; to stop is better than to wait for good.
            #[allow(clippy::expect_used)]
            thread::Builder::new()
                .name("hybrid-clock".to_owned())
                .spawn(|| timer.run())
                .map(drop)
                .expect("the operating system gives a thread");
        });
        timer
    }

    /// Makes an entry, or has one wake another; answers with its number.
    fn set(&self, until: Monotonic, number: Option<u64>, waker: Waker) -> u64 {
        let mut state = self.lock();
        let number = number.unwrap_or(state.next_number);
        state.next_number = state.next_number.max(number + 1);
        state.sleepers.insert((until, number), waker);
        if state.looks.is_none_or(|looks| until < looks) {
            // Whoever comes before the thread has looked need not wake it again.
            state.looks = Some(until);
            drop(state);
            self.sooner.notify_one();
        }
        number
    }

    fn run(&self) -> ! {
        let mut state = self.lock();
        loop {
            let now = SystemClock.monotonic();
            let mut due = Vec::new();
            while let Some(first) = state.sleepers.first_entry().filter(|first| first.key().0 <= now) {
                due.push(first.remove());
            }
            if !due.is_empty() {
                drop(state);
                due.into_iter().for_each(Waker::wake);
                state = self.lock();
                continue;
            }
            let wait = state.sleepers.first_key_value().map(|(first, _)| first.0.since(now).min(LOOK));
            state.looks = wait.map(|wait| now.plus(wait));
            state = match wait {
                Some(wait) => {
                    self.sooner.wait_timeout(state, wait).map_or_else(|e| e.into_inner().0, |(state, _)| state)
                }
                None => self.sooner.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use futures_util::{FutureExt, future::join_all};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn sleep(duration: Duration) -> Sleep {
        Sleep::until(SystemClock.monotonic().plus(duration))
    }

    #[tokio::test]
    async fn sleeps_end_in_the_order_of_their_ends_however_they_were_set() {
        let ended = Mutex::new(Vec::new());
        let one = |millis| {
            let sleep = sleep(Duration::from_millis(millis));
            let ended = &ended;
            async move {
                sleep.await;
                ended.lock().unwrap().push(millis);
            }
        };
        let mut long = sleep(LONG);
        assert!((&mut long).now_or_never().is_none());
        join_all([60, 20, 40, 1].map(one)).await;
        assert_eq!(*ended.lock().unwrap(), [1, 20, 40, 60]);
        assert!((&mut long).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_sleep_that_is_dropped_leaves_nothing_behind_and_takes_nobody_with_it() {
        let mut first = sleep(LONG);
        assert!((&mut first).now_or_never().is_none());
        let key = (first.until, first.set.as_ref().unwrap().0);
        assert!(Timer::get().lock().sleepers.contains_key(&key));
        let soon = sleep(Duration::from_millis(5));
        drop(first);
        assert!(!Timer::get().lock().sleepers.contains_key(&key));
        soon.await;
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn whoever_polled_last_is_woken() {
        let (before, after) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut sleeping = sleep(Duration::from_millis(30));
        for count in [&before, &after] {
            let waker = Waker::from(Arc::clone(count));
            assert!(Pin::new(&mut sleeping).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        // Set later for the same time and more, so its turn comes later.
        sleep(Duration::from_millis(31)).await;
        assert_eq!((before.0.load(Ordering::SeqCst), after.0.load(Ordering::SeqCst)), (0, 1));
    }

    #[test]
    fn sleeps_from_many_threads_all_end() {
        thread::scope(|scope| {
            for thread in 0..8_u64 {
                scope.spawn(move || {
                    let sleeps = (0..200).map(|i| sleep(Duration::from_micros((i * 37 + thread * 11) % 3000)));
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(join_all(sleeps.collect::<Vec<_>>()));
                });
            }
        });
    }
}
