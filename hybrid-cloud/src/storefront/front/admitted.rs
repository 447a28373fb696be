//! The way from a handler to everything that belongs to somebody.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use futures_util::future::join_all;
use hybrid_core::{
    BoxStream, DatasetName, Error, Event, FileId, InferenceBackend, JobId, JobKind, JobOrder, JobStatus, Judgment,
    Monotonic, Reply, RequestId, Result, Timestamp,
};
use serde_json::{Value, json};
use tracing::Instrument;

use super::{
    Front, Identified, Model, Served,
    call::{Call, Purpose, kept},
};
use crate::storefront::{audit::AuditedModel, edge::Edge, error::ApiError, identity::Principal, quota::Estimate};

/// A request that was let in, with whose it is. There is no other way to a model or a sink, and none of its answers depends on another tenant.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(super) front: Arc<Front>,
    pub(super) principal: Arc<Principal>,
    pub(super) edge: Edge,
}

impl FromRequestParts<Arc<Front>> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, front: &Arc<Front>) -> Result<Self, ApiError> {
        let (identified, edge) = (parts.extensions.get::<Identified>(), parts.extensions.get::<Edge>());
        let (Some(identified), Some(edge)) = (identified, edge) else {
            return Err(Error::internal("admit request", "the request came past the edge").into());
        };
        Ok(Self { front: Arc::clone(front), principal: Arc::clone(identified.principal()), edge: edge.clone() })
    }
}

/// A model of one task that the caller may use.
#[derive(Debug)]
pub(crate) struct ModelFor<'a, T: Served> {
    model: &'a Model,
    pub(super) backend: &'a Arc<dyn InferenceBackend<T>>,
}

impl<T: Served> ModelFor<'_, T> {
    /// The name under which customers ask for it.
    pub(crate) fn id(&self) -> &str {
        self.model.id()
    }
}

impl Admitted {
    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    pub(crate) fn front(&self) -> &Front {
        &self.front
    }

    /// The id that answer, logs and jobs share.
    pub(crate) fn request(&self) -> &RequestId {
        &self.edge.request
    }

    /// When the answer must have begun.
    pub(crate) fn deadline(&self) -> Monotonic {
        self.edge.deadline
    }

    /// When the storefront began to offer what it offers.
    pub(crate) fn opened(&self) -> Timestamp {
        self.front.opened
    }

    /// The models that the caller may see, in the order in which they were given to the builder.
    pub(crate) fn models(&self) -> impl Iterator<Item = &Model> {
        self.front.ports.models.iter().filter(|model| model.offer.is_for(&self.principal.tenant))
    }

    /// The model called `id`. One that is offered to others alone is as unknown as one that does not exist.
    pub(crate) fn find(&self, id: &str) -> Result<&Model, ApiError> {
        self.models().find(|model| model.id() == id).ok_or_else(|| ApiError::unknown_model(id))
    }

    /// The model called `id` if it does the task, or the first that does where none is named.
    pub(crate) fn model<T: Served>(&self, id: Option<&str>) -> Result<ModelFor<'_, T>, ApiError> {
        let Some(id) = id else {
            let of_task = |model| Some(ModelFor { model, backend: T::unwrap(&model.backend)? });
            return self.models().find_map(of_task).ok_or_else(|| ApiError::no_model(T::NAME));
        };
        let model = self.find(id)?;
        let backend = T::unwrap(&model.backend).ok_or_else(|| ApiError::wrong_task(id, model.task(), T::NAME))?;
        Ok(ModelFor { model, backend })
    }

    /// Asks a model, within the caller's limits, data policy and time; cancels when dropped.
    pub(crate) async fn infer<T: Served>(
        &self,
        model: &ModelFor<'_, T>,
        request: T::Request,
    ) -> Result<Reply<T>, ApiError> {
        let call = Call::begin(self, self.purpose(model, &request, false)?).await?;
        self.ask(call, model, request).await
    }

    /// Asks a model in the course of `whole`, which has the place for both: as a call of its own in every other way.
    pub(super) async fn infer_within<T: Served>(
        &self,
        whole: &Call,
        model: &ModelFor<'_, T>,
        request: T::Request,
    ) -> Result<Reply<T>, ApiError> {
        let call = whole.part(self, self.purpose(model, &request, false)?).await?;
        self.ask(call, model, request).await
    }

    async fn ask<T: Served>(
        &self,
        mut call: Call,
        model: &ModelFor<'_, T>,
        request: T::Request,
    ) -> Result<Reply<T>, ApiError> {
        match call.cx.run(T::NAME, model.backend.infer(&call.cx, request)).instrument(call.span()).await {
            Ok(reply) => {
                let answered = self.front.keeps_content().then(|| kept(&reply.response)).flatten();
                call.done(Some(&reply.meta), answered).await?;
                Ok(reply)
            }
            Err(error) => {
                call.fail(&error, false).await;
                Err(error.into())
            }
        }
    }

    /// Asks a model for its answer piece by piece. The request's time is for the beginning of the stream; the stream itself may take
    /// [`stream_timeout`](crate::storefront::StorefrontLimits::stream_timeout). Dropping the stream cancels the call.
    pub(crate) async fn stream<T: Served>(
        &self,
        model: &ModelFor<'_, T>,
        request: T::Request,
    ) -> Result<BoxStream<'static, Result<Event<T>>>, ApiError> {
        let mut call = Call::begin(self, self.purpose(model, &request, true)?).await?;
        let opening = call.cx.clone();
        let late = self.front.limits().stream_timeout;
        call.cx.deadline = Some(self.front.clock().monotonic().plus(late));
        match opening.run(T::NAME, model.backend.stream(&call.cx, request)).instrument(call.span()).await {
            Ok(events) => {
                call.begun().await?;
                Ok(call.watch(events, self.edge.deadline))
            }
            Err(error) => {
                call.fail(&error, false).await;
                Err(error.into())
            }
        }
    }

    fn purpose<T: Served>(
        &self,
        model: &ModelFor<'_, T>,
        request: &T::Request,
        streamed: bool,
    ) -> Result<Purpose, ApiError> {
        let profile = model.backend.profile();
        // A price that does not work out is the operator's mistake, not the customer's.
        let estimate = Estimate::of::<T>(request, &profile).map_err(|error| {
            Error::internal("estimate cost", "the price does not work out").with("model", model.id()).with_source(error)
        })?;
        let audited = AuditedModel {
            offered: model.id().to_owned(),
            backend: profile.name.clone(),
            served: profile.model.clone(),
        };
        let asked = self.front.keeps_content().then(|| kept(request)).flatten();
        let locality = Some(profile.locality.clone());
        Ok(Purpose { action: T::NAME, model: Some(audited), estimate, streamed, locality, asked })
    }

    /// The labels that judgments may have; `None` for any.
    pub(crate) fn labels(&self) -> Option<&std::collections::BTreeSet<String>> {
        self.front.ports.labels.as_ref()
    }

    /// The dataset that judgments go to, below the caller's tenant.
    pub(crate) fn dataset(&self) -> Result<&DatasetName, ApiError> {
        self.front.ports.judgments.as_ref().map(|(_, dataset)| dataset).ok_or_else(ApiError::not_found)
    }

    /// Records all judgments at once under the caller's tenant, so that a sink that commits groups needs one commit. One outcome for each.
    pub(crate) async fn record(&self, judgments: Vec<Judgment>) -> Result<Vec<Result<()>>, ApiError> {
        let (sink, dataset) = self.front.ports.judgments.as_ref().ok_or_else(ApiError::not_found)?;
        let asked = self.front.keeps_content().then(|| kept(&judgments)).flatten();
        let mut call = Call::begin(self, Purpose::without_model("judgments", asked)).await?;
        let recordings = judgments.into_iter().map(|judgment| sink.record(&self.principal.tenant, dataset, judgment));
        let recorded = call.cx.run("record judgments", async { Ok(join_all(recordings).await) });
        let recorded = recorded.instrument(call.span()).await;
        match recorded.as_ref().map(|results| results.iter().find_map(|result| result.as_ref().err())) {
            Ok(None) => call.done(None, None).await?,
            Ok(Some(error)) | Err(error) => call.fail(error, false).await,
        }
        Ok(recorded?)
    }

    /// The kind called `kind`, if it may be ordered.
    pub(crate) fn job_kind(&self, kind: &str) -> Result<JobKind, ApiError> {
        let (_, kinds) = self.front.ports.jobs.as_ref().ok_or_else(ApiError::not_found)?;
        kinds.iter().find(|known| known.as_str() == kind).cloned().ok_or_else(|| ApiError::unknown_kind(kind, kinds))
    }

    /// Orders work for the caller's tenant.
    pub(crate) async fn submit_job(
        &self,
        kind: JobKind,
        payload: Value,
        input: Option<FileId>,
        key: Option<RequestId>,
    ) -> Result<JobId, ApiError> {
        let (jobs, _) = self.front.ports.jobs.as_ref().ok_or_else(ApiError::not_found)?;
        let asked = self.front.keeps_content().then(|| kept(&(&kind, &payload, input))).flatten();
        let call = Call::begin(self, Purpose::without_model("jobs", asked)).await?;
        let (policy, request) = (call.cx.policy.clone(), Some(call.cx.request.clone()));
        let (tenant, trace) = (self.principal.tenant.clone(), call.cx.trace.clone());
        let order = JobOrder { tenant, kind, payload, input, policy, key, request, trace };
        self.end(call, "submit job", jobs.submit(order)).await
    }

    /// How a job of the caller's tenant stands.
    pub(crate) async fn job_status(&self, id: JobId) -> Result<Option<JobStatus>, ApiError> {
        let (jobs, _) = self.front.ports.jobs.as_ref().ok_or_else(ApiError::not_found)?;
        let asked = self.told(|| json!({ "id": id }));
        self.brief("jobs.read", asked, "read job", jobs.status(&self.principal.tenant, id)).await
    }

    /// Begins a call that moves a file or an export: it counts among the tenant's streams, and has the time of one.
    pub(super) async fn moving(&self, action: &'static str, asked: Option<Value>) -> Result<Call, ApiError> {
        let purpose = Purpose { streamed: true, ..Purpose::without_model(action, asked) };
        let mut call = Call::begin(self, purpose).await?;
        call.cx.deadline = Some(self.front.clock().monotonic().plus(self.front.limits().stream_timeout));
        Ok(call)
    }

    /// What is asked, where anyone is told.
    pub(super) fn told(&self, asked: impl FnOnce() -> Value) -> Option<Value> {
        self.front.keeps_content().then(asked)
    }

    /// Something that asks no model and ends soon.
    pub(super) async fn brief<T>(
        &self,
        action: &'static str,
        asked: Option<Value>,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T, ApiError> {
        self.end(Call::begin(self, Purpose::without_model(action, asked)).await?, operation, work).await
    }

    /// Does what a call is for, and ends it.
    pub(super) async fn end<T>(
        &self,
        mut call: Call,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T, ApiError> {
        let outcome = call.cx.run(operation, work).instrument(call.span()).await;
        match &outcome {
            Ok(_) => call.done(None, None).await?,
            Err(error) => call.fail(error, false).await,
        }
        Ok(outcome?)
    }
}
