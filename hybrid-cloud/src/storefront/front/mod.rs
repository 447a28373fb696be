//! What a storefront holds, out of its handlers' reach: they get to models and sinks through [`Admitted`] alone, which knows the tenant.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::HeaderMap;
use hybrid_core::{
    Cancellation, Clock, CollectionName, DataPolicy, DatasetName, Files, IdSource, JobKind, Jobs, JudgmentSink,
    RecordStore, Result, TenantId, Timestamp, VectorIndex,
};
use tokio::sync::{Semaphore, SemaphorePermit};

mod admitted;
mod call;
mod files;
mod identify;
mod offer;
mod records;
mod sending;
#[cfg(test)]
mod tests;
mod told;
mod vectors;

pub(super) use admitted::Admitted;
pub(super) use call::ENTRY_WAIT;
pub(super) use files::Uploading;
pub(super) use identify::{Identified, Refused};
pub use offer::Offer;
pub(super) use offer::{Backend, Model, Served};
pub(super) use sending::Sending;
pub(super) use vectors::Writing;

use super::{
    StorefrontLimits,
    audit::Audit,
    identity::{Authenticator, Principal},
    quota::Quotas,
};

/// A storefront's ports. The field is private, and so out of the handlers' reach, on purpose.
#[derive(Debug)]
pub(super) struct Front {
    ports: Ports,
    slots: Arc<Semaphore>,
    uploads: Semaphore,
    opened: Timestamp,
    draining: Cancellation,
    /// Calls of which no entry could be kept.
    unaudited: AtomicU64,
    /// Who everybody is where nobody is asked.
    anyone: Arc<Principal>,
}

/// What the builder collected.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) tenant: TenantId,
    pub(super) quotas: Option<Quotas>,
    pub(super) audit: Option<Audit>,
    /// Whether `tracing` is told what is asked and answered.
    pub(super) trace_content: bool,
    pub(super) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(super) policy: DataPolicy,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) limits: StorefrontLimits,
    pub(super) models: Vec<Model>,
    pub(super) labels: Option<BTreeSet<String>>,
    pub(super) judgments: Option<(Arc<dyn JudgmentSink>, DatasetName)>,
    pub(super) jobs: Option<(Arc<dyn Jobs>, BTreeSet<JobKind>)>,
    pub(super) files: Option<Files>,
    /// The index, and the name of the model that embeds texts for it.
    pub(super) vectors: Option<(Arc<dyn VectorIndex>, Option<String>)>,
    /// The store, and the collections of it that customers use.
    pub(super) records: Option<(Arc<dyn RecordStore>, BTreeSet<CollectionName>)>,
    pub(super) checks: Vec<Check>,
}

/// A named condition of readiness.
pub(super) struct Check {
    pub(super) name: String,
    pub(super) holds: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Front {
    pub(super) fn new(ports: Ports) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(ports.limits.requests.min(Semaphore::MAX_PERMITS))),
            uploads: Semaphore::new(ports.limits.uploads.min(Semaphore::MAX_PERMITS)),
            opened: ports.clock.now(),
            draining: Cancellation::new(),
            unaudited: AtomicU64::new(0),
            anyone: Arc::new(Principal::new(ports.tenant.clone(), "anyone")),
            ports,
        }
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.ports.clock
    }

    pub(super) fn ids(&self) -> &dyn IdSource {
        &*self.ports.ids
    }

    pub(super) fn limits(&self) -> &StorefrontLimits {
        &self.ports.limits
    }

    /// Whether there is a model of the task, for whomever.
    pub(super) fn serves<T: Served>(&self) -> bool {
        self.ports.models.iter().any(|model| T::unwrap(&model.backend).is_some())
    }

    pub(super) fn takes_judgments(&self) -> bool {
        self.ports.judgments.is_some()
    }

    pub(super) fn takes_jobs(&self) -> bool {
        self.ports.jobs.is_some()
    }

    pub(super) fn keeps_files(&self) -> bool {
        self.ports.files.is_some()
    }

    pub(super) fn keeps_vectors(&self) -> bool {
        self.ports.vectors.is_some()
    }

    pub(super) fn keeps_records(&self) -> bool {
        self.ports.records.is_some()
    }

    pub(super) fn links_files(&self) -> bool {
        self.ports.files.as_ref().is_some_and(Files::gives_links)
    }

    /// The place of an upload that is read into memory, unless there are as many already as there may be.
    pub(super) fn upload(&self) -> Option<SemaphorePermit<'_>> {
        self.uploads.try_acquire().ok()
    }

    pub(super) fn drain(&self) {
        self.draining.cancel();
    }

    /// Why requests should not come here; nothing where they should.
    pub(super) fn unready(&self) -> Vec<String> {
        let failing = self
            .ports
            .checks
            .iter()
            .filter_map(|check| (check.holds)().err().map(|error| format!("{}: {}", check.name, error.message())));
        let draining = self.draining.is_cancelled().then(|| "the storefront is shutting down".to_owned());
        draining.into_iter().chain(failing).collect()
    }

    /// Whether audit entries hold what was asked and answered.
    fn audits_content(&self) -> bool {
        self.ports.audit.as_ref().is_some_and(|audit| audit.options.content)
    }

    /// Whether `tracing` is told what was asked and answered.
    pub(super) fn traces_content(&self) -> bool {
        self.ports.trace_content
    }

    /// Whether anyone is told what was asked and answered.
    fn keeps_content(&self) -> bool {
        self.audits_content() || self.ports.trace_content
    }

    fn count_unaudited(&self) {
        self.unaudited.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unaudited(&self) -> u64 {
        self.unaudited.load(Ordering::Relaxed)
    }

    /// Counts a request of somebody's, unless they have had too many.
    pub(super) fn count(&self, identified: &Identified) -> Result<(), Refused> {
        self.ports.quotas.as_ref().map_or(Ok(()), |quotas| quotas.request(&identified.principal().tenant))
    }

    /// Who sends a request with these headers.
    pub(super) async fn identify(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Identified, Refused> {
        identify::identify(self, headers, query).await
    }
}
