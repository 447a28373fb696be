use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Clock, Event, InferenceBackend, Monotonic, Reply, Result, Task,
};
use tokio::sync::Mutex;

use super::LiveModel;

/// A live model that looks at its channel when requests come, for a process that only runs while it answers, such as a cloud function.
///
/// - The first request waits until a version is in service: the cold start. If none can be had, it fails with the reason and the next one tries
///   again; so does every request until there is one.
/// - After that no request waits for the channel: the first one after each interval has it looked at beside its own answer.
///
/// A process that runs all the time has no cold start if it spawns [`LiveModel::run`] instead.
#[derive(Clone, Debug)]
pub struct OnDemand<T: Task> {
    live: LiveModel<T>,
    clock: Arc<dyn Clock>,
    interval: Duration,
    looked: Arc<Mutex<Option<Monotonic>>>,
}

impl<T: Task> OnDemand<T> {
    /// Looks at `live`'s channel at most every `interval` of `clock`.
    pub fn new(live: LiveModel<T>, clock: Arc<dyn Clock>, interval: Duration) -> Self {
        Self { live, clock, interval, looked: Arc::default() }
    }

    async fn ready(&self, cx: &CallContext) -> Result<()> {
        if self.live.shared.current.load().is_none() {
            // Requests that come together wait for one look.
            let mut looked = cx.run("load model", async { Ok(self.looked.lock().await) }).await?;
            if self.live.shared.current.load().is_none() {
                cx.run("load model", self.live.refresh()).await?;
                *looked = Some(self.clock.monotonic());
            }
            return Ok(());
        }
        // Whoever holds the lock is looking now.
        let Ok(looked) = Arc::clone(&self.looked).try_lock_owned() else { return Ok(()) };
        let now = self.clock.monotonic();
        if looked.is_some_and(|looked| now.since(looked) < self.interval) {
            return Ok(());
        }
        let (live, mut looked) = (self.live.clone(), looked);
        tokio::spawn(async move {
            if let Err(error) = live.refresh().await {
                tracing::warn!(%error, "the channel could not be looked at; the version in service stays");
            }
            *looked = Some(now);
        });
        Ok(())
    }
}

#[async_trait]
impl<T: Task> InferenceBackend<T> for OnDemand<T> {
    fn profile(&self) -> Arc<BackendProfile> {
        self.live.profile()
    }

    async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>> {
        T::validate(&request)?;
        self.ready(cx).await?;
        self.live.infer(cx, request).await
    }

    async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>> {
        T::validate(&request)?;
        self.ready(cx).await?;
        self.live.stream(cx, request).await
    }
}
