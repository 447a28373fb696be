use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use hybrid_core::{ChannelName, Clock, IdSource, ModelLoader, ModelName, Result, SystemClock, SystemIds, Task};
use tokio::sync::{Mutex, broadcast, watch};

use super::{LiveModel, LiveStatus, Shared, idle_profile, refresh::Follower};
use crate::registry::{ChannelReader, FileFloor, FloorStore, Registry, Trust, held_versions};

/// Sets up a [`LiveModel`].
#[derive(Debug)]
pub struct LiveModelBuilder<T: Task> {
    registry: Registry,
    model: ModelName,
    channel: ChannelName,
    trust: Trust,
    loader: Arc<dyn ModelLoader<T>>,
    cache: PathBuf,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    poll_interval: Duration,
    warm_up: Option<T::Request>,
    require_fresh: bool,
    floor: Option<Arc<dyn FloorStore>>,
}

impl<T: Task> LiveModel<T> {
    /// A live model of `channel` of `model`, whose versions `loader` loads from folders below `cache`.
    pub fn builder(
        registry: Registry,
        model: ModelName,
        channel: ChannelName,
        trust: Trust,
        loader: Arc<dyn ModelLoader<T>>,
        cache: impl Into<PathBuf>,
    ) -> LiveModelBuilder<T> {
        LiveModelBuilder {
            registry,
            model,
            channel,
            trust,
            loader,
            cache: cache.into(),
            clock: Arc::new(SystemClock),
            ids: Arc::new(SystemIds::default()),
            poll_interval: Duration::from_secs(30),
            warm_up: None,
            require_fresh: false,
            floor: None,
        }
    }
}

impl<T: Task> LiveModelBuilder<T> {
    /// The clock of polling, expiry and timings; the machine's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Where the ids of warm-up requests come from; the machine's random numbers by default.
    #[must_use]
    pub fn ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }

    /// How often [`LiveModel::run`] looks at the channel; every 30 s by default.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// A request that each version must answer before it is put in service.
    #[must_use]
    pub fn warm_up(mut self, request: T::Request) -> Self {
        self.warm_up = Some(request);
        self
    }

    /// Refuses requests while the channel is stale, where availability counts less than knowing that the version is the one released.
    #[must_use]
    pub fn require_fresh(mut self, require: bool) -> Self {
        self.require_fresh = require;
        self
    }

    /// Where the floor is kept; by default the file `<model>.<channel>.floor.json` in the cache folder.
    #[must_use]
    pub fn floor(mut self, floor: Arc<dyn FloorStore>) -> Self {
        self.floor = Some(floor);
        self
    }

    /// Builds it and, where the floor names a version that was in service, puts that in service from the cache.
    ///
    /// # Errors
    /// Those of the cache folder and the floor. A version that cannot be restored is no error: it is the status's last error.
    pub async fn build(self) -> Result<LiveModel<T>> {
        let Self {
            registry,
            model,
            channel,
            trust,
            loader,
            cache,
            clock,
            ids,
            poll_interval,
            warm_up,
            require_fresh,
            floor,
        } = self;
        let floor = match floor {
            Some(floor) => floor,
            None => {
                let folder = cache.clone();
                crate::registry::prepare_cache(folder).await?;
                Arc::new(FileFloor::new(cache.join(format!("{model}.{channel}.floor.json"))))
            }
        };
        let holder = format!("{model}.{channel}");
        let held = match held_versions(&cache, &holder).await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(%error, "a list of versions to keep is lost; the cache is pruned once it is written anew");
                Vec::new()
            }
        };
        let reader = ChannelReader::open(registry.channel(&model, &channel), &trust, floor, Arc::clone(&clock)).await?;
        let seed = ids.next_uuid().as_u64_pair().1;
        let follower = Follower {
            registry,
            reader,
            trust,
            loader,
            cache,
            ids,
            clock: Arc::clone(&clock),
            warm_up,
            poll_interval,
            failed: HashMap::new(),
            holder,
            held,
            unpruned: true,
        };
        let shared = Arc::new(Shared {
            idle: Arc::new(idle_profile(&model)),
            model,
            channel,
            clock,
            poll_interval,
            require_fresh,
            current: ArcSwapOption::empty(),
            expires: AtomicI64::new(i64::MAX),
            latest: AtomicI64::new(i64::MIN),
            follower: Mutex::new(follower),
            events: broadcast::Sender::new(64),
            status: watch::Sender::new(LiveStatus::default()),
            seed,
        });
        let mut follower = shared.follower.lock().await;
        let restored = follower.restore(&shared).await;
        shared.note_outcome(&follower, restored.err().map(|error| error.to_string()));
        drop(follower);
        Ok(LiveModel { shared })
    }
}
