//! What the handlers share.

use std::{collections::BTreeSet, fmt, sync::Arc};

use hybrid_core::{
    CallContext, Cancellation, Clock, DataPolicy, DatasetName, IdSource, InferenceBackend, JudgmentSink, Result,
    TenantId, Timestamp, task::Classify,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{StorefrontLimits, edge::Edge, error::ApiError};

#[derive(Debug)]
pub(super) struct Front {
    pub(super) tenant: TenantId,
    pub(super) policy: DataPolicy,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) limits: StorefrontLimits,
    pub(super) models: Vec<Model>,
    pub(super) labels: Option<BTreeSet<String>>,
    pub(super) judgments: Option<(Arc<dyn JudgmentSink>, DatasetName)>,
    pub(super) checks: Vec<Check>,
    pub(super) draining: Cancellation,
    pub(super) slots: Arc<Semaphore>,
    pub(super) opened: Timestamp,
}

/// A model under the name by which customers ask for it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) id: String,
    pub(super) backend: Arc<dyn InferenceBackend<Classify>>,
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

/// A call that was let in. Dropping it, as happens when the client disconnects, cancels what runs under it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) cx: CallContext,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.cx.cancel.cancel();
    }
}

impl Front {
    /// Lets a call in whose body has arrived, unless too many are in already.
    pub(super) fn admit(&self, edge: &Edge) -> Result<Call, ApiError> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| ApiError::overloaded())?;
        let cx = CallContext {
            tenant: self.tenant.clone(),
            request: edge.request.clone(),
            policy: self.policy.clone(),
            deadline: Some(edge.deadline),
            cancel: Cancellation::new(),
            trace: edge.trace.clone(),
            clock: Arc::clone(&self.clock),
        };
        Ok(Call { cx, _slot: slot })
    }

    /// The model called `id`, or the first where none is named.
    pub(super) fn model(&self, id: Option<&str>) -> Result<&Model, ApiError> {
        match id {
            None => self.models.first(),
            Some(id) => self.models.iter().find(|model| model.id == id),
        }
        .ok_or_else(|| ApiError::unknown_model(id.unwrap_or_default()))
    }
}
