//! Putting a storefront together.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use hybrid_core::{
    Clock, CollectionName, DataPolicy, DatasetName, Error, Files, IdSource, InferenceBackend, JobKind, Jobs,
    JudgmentSink, RecordStore, Result, SystemClock, SystemIds, TenantId, VectorIndex,
    task::{Chat, Classify, Embed, GenerateImage, Transcribe},
};

use super::{
    Storefront,
    audit::{Audit, AuditOptions, AuditSink},
    front::{Backend, Check, Front, Model, Offer, Ports},
    identity::Authenticator,
    quota::{Budget, QuotaOf, Quotas, TenantQuota},
};

const BUILD: &str = "build storefront";

/// Collects the ports of a [`Storefront`].
#[derive(Default)]
pub struct StorefrontBuilder {
    tenant: Option<TenantId>,
    authenticators: Vec<Arc<dyn Authenticator>>,
    quotas: Option<QuotaOf>,
    budget: Option<Arc<Budget>>,
    audit: Option<Audit>,
    trace_content: bool,
    policy: DataPolicy,
    clock: Option<Arc<dyn Clock>>,
    ids: Option<Arc<dyn IdSource>>,
    limits: StorefrontLimits,
    models: Vec<Model>,
    labels: Option<BTreeSet<String>>,
    judgments: Option<(Arc<dyn JudgmentSink>, DatasetName)>,
    jobs: Option<(Arc<dyn Jobs>, BTreeSet<JobKind>)>,
    files: Option<Files>,
    vectors: Option<(Arc<dyn VectorIndex>, Option<String>)>,
    records: Option<(Arc<dyn RecordStore>, BTreeSet<CollectionName>)>,
    checks: Vec<Check>,
}

/// What one request, and all of them together, may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorefrontLimits {
    /// The body of one request, in bytes. 1 MiB by default.
    pub body_bytes: usize,
    /// The form of one upload, in bytes: a recording with what is said about it. 26 MiB by default.
    pub upload_bytes: usize,
    /// Uploads whose forms are read at one time; more are answered 503 at once. 64 by default.
    pub uploads: usize,
    /// One file of `/v1/files`, in bytes. It is streamed: about 4 MiB of it are in memory. 512 MiB by default.
    pub file_bytes: u64,
    /// Files of one tenant; a few more where several are uploaded at once. 10000 by default.
    pub files: usize,
    /// Texts, judgments or images in one request. 256 by default.
    pub inputs: usize,
    /// From the end of a request's head to the beginning of its answer, the body's arrival included, but for files. 30 s by default.
    pub request_timeout: Duration,
    /// For a streamed answer or a file, from its request's beginning to its end. 10 min by default.
    pub stream_timeout: Duration,
    /// For a streamed answer or a file to go on, and for its client to read on. 30 s by default. [`Storefront::serve`] ends any connection whose client
    /// takes nothing of an answer for so long.
    pub stream_stall: Duration,
    /// The head of one request, in bytes, at least 8192. 64 KiB by default. Kept by [`Storefront::serve`].
    pub head_bytes: usize,
    /// For the head of a request to arrive, and so for a connection to idle between requests. 10 s by default.
    /// Kept by [`Storefront::serve`].
    pub header_read_timeout: Duration,
    /// Requests at work at one time; more are answered 503 at once. A request counts from when its body has arrived, so slow senders hold no
    /// place, but those of files do. 256 by default.
    pub requests: usize,
    /// Connections at one time; more wait in the listener's backlog. Before their requests count, senders can fill as much memory as
    /// [`body_bytes`](Self::body_bytes) on each of them and, where recordings are transcribed, [`upload_bytes`](Self::upload_bytes) on as many of
    /// them as there may be [`uploads`](Self::uploads). 1024 by default. Kept by [`Storefront::serve`].
    pub connections: usize,
}

impl Default for StorefrontLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1024 * 1024,
            upload_bytes: 26 * 1024 * 1024,
            uploads: 64,
            file_bytes: 512 * 1024 * 1024,
            files: 10_000,
            inputs: 256,
            request_timeout: Duration::from_secs(30),
            stream_timeout: Duration::from_secs(600),
            stream_stall: Duration::from_secs(30),
            head_bytes: 64 * 1024,
            header_read_timeout: Duration::from_secs(10),
            requests: 256,
            connections: 1024,
        }
    }
}

impl StorefrontBuilder {
    /// Offers `backend` at `POST /v1/classify` under a name, to everyone or [to some](Offer::only_for). The first one that the caller may see answers
    /// requests that name no model.
    #[must_use]
    pub fn classify(mut self, model: impl Into<Offer>, backend: Arc<dyn InferenceBackend<Classify>>) -> Self {
        self.models.push(Model::new(model.into(), backend));
        self
    }

    /// Offers `backend` at `POST /v1/chat/completions` and `POST /v1/responses`, otherwise as [`classify`](Self::classify).
    #[must_use]
    pub fn chat(mut self, model: impl Into<Offer>, backend: Arc<dyn InferenceBackend<Chat>>) -> Self {
        self.models.push(Model::new(model.into(), backend));
        self
    }

    /// Offers `backend` at `POST /v1/embeddings`, otherwise as [`classify`](Self::classify).
    #[must_use]
    pub fn embed(mut self, model: impl Into<Offer>, backend: Arc<dyn InferenceBackend<Embed>>) -> Self {
        self.models.push(Model::new(model.into(), backend));
        self
    }

    /// Offers `backend` at `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`, otherwise as [`classify`](Self::classify).
    #[must_use]
    pub fn transcribe(mut self, model: impl Into<Offer>, backend: Arc<dyn InferenceBackend<Transcribe>>) -> Self {
        self.models.push(Model::new(model.into(), backend));
        self
    }

    /// Offers `backend` at `POST /v1/images/generations`, otherwise as [`classify`](Self::classify).
    #[must_use]
    pub fn images(mut self, model: impl Into<Offer>, backend: Arc<dyn InferenceBackend<GenerateImage>>) -> Self {
        self.models.push(Model::new(model.into(), backend));
        self
    }

    /// Asks `authenticator` who a request comes from; several are asked in the order given. From then on nobody comes in without credentials, but
    /// to the probes.
    ///
    /// A storefront without one has a single tenant and lets everyone in who can reach it: for a listener on loopback, behind a gateway that
    /// authenticates, and for tests.
    #[must_use]
    pub fn authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticators.push(authenticator);
        self
    }

    /// Takes judgments at `POST /v1/judgments` for the dataset named.
    #[must_use]
    pub fn judgments(mut self, sink: Arc<dyn JudgmentSink>, dataset: DatasetName) -> Self {
        self.judgments = Some((sink, dataset));
        self
    }

    /// Takes orders for work of these kinds at `POST /v1/jobs`, and shows at `GET /v1/jobs/{id}` how they stand. A kind that customers may not order,
    /// such as training, is simply not named.
    #[must_use]
    pub fn jobs(mut self, jobs: Arc<dyn Jobs>, kinds: impl IntoIterator<Item = JobKind>) -> Self {
        self.jobs = Some((jobs, kinds.into_iter().collect()));
        self
    }

    /// Keeps customers' files at `/v1/files`, and lets [jobs](Self::jobs) name them; where they have [links](Files::with_links), customers may carry them to
    /// and from the bucket themselves. Somebody has to [sweep](Files::sweep) what expires.
    #[must_use]
    pub fn files(mut self, files: Files) -> Self {
        self.files = Some(files);
        self
    }

    /// Keeps customers' documents in `index` at `/v1/vectors` and finds the nearest of them. Texts are embedded by the model that is [offered](Self::embed)
    /// as `embedder`; without one, documents and queries come with their vectors.
    ///
    /// The vectors of two models cannot be compared, nor those of two versions of one: give the index a model that stays.
    #[must_use]
    pub fn vectors(mut self, index: Arc<dyn VectorIndex>, embedder: Option<&str>) -> Self {
        self.vectors = Some((index, embedder.map(str::to_owned)));
        self
    }

    /// Keeps customers' records in `store` at `/v1/records`, in these collections. Others that the store has are the application's own; whoever may take
    /// or remove all of a tenant's records does so with those too.
    #[must_use]
    pub fn records(
        mut self,
        store: Arc<dyn RecordStore>,
        collections: impl IntoIterator<Item = CollectionName>,
    ) -> Self {
        self.records = Some((store, collections.into_iter().collect()));
        self
    }

    /// Takes judgments with these labels alone. Without this every label that is not blank is taken, a misspelt one too.
    #[must_use]
    pub fn labels(mut self, labels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// Limits what each tenant may use. `of` is asked at each request, so what it says may change; it must not block.
    #[must_use]
    pub fn quotas(mut self, of: impl Fn(&TenantId) -> TenantQuota + Send + Sync + 'static) -> Self {
        self.quotas = Some(Box::new(of));
        self
    }

    /// Holds the [`money_per_day`](TenantQuota::money_per_day) of the [quotas](Self::quotas). A quota of money without a budget refuses every call
    /// that has a price.
    #[must_use]
    pub fn budget(mut self, budget: Arc<Budget>) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Keeps an entry of each call in `sink`: who did what with which model version, how it went, and what it cost.
    #[must_use]
    pub fn audit(mut self, sink: Arc<dyn AuditSink>, options: AuditOptions) -> Self {
        self.audit = Some(Audit { sink, options });
        self
    }

    /// Tells `tracing` what customers ask and what they are answered, in an event `content` of the level `DEBUG` in each call's span: for telemetry that
    /// may hold it, and for logs that print so much. Without this it is in no span and no event.
    #[must_use]
    pub fn trace_content(mut self) -> Self {
        self.trace_content = true;
        self
    }

    /// Whose requests these are where there is no [authenticator](Self::authenticator) to say so; [`TenantId::single`] by default.
    #[must_use]
    pub fn tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// Where the customers' data may go; anywhere by default.
    #[must_use]
    pub fn policy(mut self, policy: DataPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The clock of deadlines and time stamps; the machine's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Where ids of requests and judgments come from; the machine's clock and random numbers by default.
    #[must_use]
    pub fn ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = Some(ids);
        self
    }

    /// The limits.
    #[must_use]
    pub fn limits(mut self, limits: StorefrontLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Answers `/readyz` with 503 while `holds` fails, such as while a backend has no model yet. `holds` is called for each probe and must not block.
    /// The probe sees `name` and the error's message, not its context and cause.
    #[must_use]
    pub fn ready_when(
        mut self,
        name: impl Into<String>,
        holds: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push(Check { name: name.into(), holds: Box::new(holds) });
        self
    }

    /// The storefront.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names what is missing, malformed, given twice, or a limit of zero.
    pub fn build(self) -> Result<Storefront> {
        let Self {
            tenant,
            authenticators,
            quotas,
            budget,
            audit,
            trace_content,
            policy,
            clock,
            ids,
            limits,
            models,
            labels,
            judgments,
            jobs,
            files,
            vectors,
            records,
            checks,
        } = self;
        check_models(&models)?;
        let keeps_nothing = judgments.is_none() && files.is_none() && vectors.is_none() && records.is_none();
        if models.is_empty() && jobs.is_none() && keeps_nothing {
            return Err(Error::invalid(
                BUILD,
                "there is nothing to offer; give a model, or a place for judgments, jobs, files, documents or records",
            ));
        }
        if let Some((_, Some(embedder))) = &vectors
            && !models.iter().any(|model| model.id() == embedder && matches!(model.backend(), Backend::Embed(_)))
        {
            let message = "no model that embeds is offered under the name that the index was given";
            return Err(Error::invalid(BUILD, message).with("model", embedder));
        }
        if labels.as_ref().is_some_and(|labels| labels.is_empty() || labels.iter().any(|label| label.trim().is_empty()))
        {
            return Err(Error::invalid(
                BUILD,
                "the labels must be at least one and none blank; leave them out to take every label",
            ));
        }
        check_limits(&limits)?;
        if tenant.is_some() && !authenticators.is_empty() {
            return Err(Error::invalid(
                BUILD,
                "the tenant comes from the credentials where there is an authenticator; leave the tenant out",
            ));
        }
        let clock = clock.unwrap_or_else(|| Arc::new(SystemClock));
        let ports = Ports {
            audit,
            trace_content,
            quotas: quotas.map(|of| Quotas::new(of, budget, Arc::clone(&clock))),
            tenant: tenant.unwrap_or_else(TenantId::single),
            authenticators,
            policy,
            ids: ids.unwrap_or_else(|| Arc::new(SystemIds::new(Arc::clone(&clock)))),
            clock,
            limits,
            models,
            labels,
            judgments,
            jobs,
            files,
            vectors,
            records,
            checks,
        };
        Ok(Storefront { front: Arc::new(Front::new(ports)) })
    }
}

impl fmt::Debug for StorefrontBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorefrontBuilder").field("models", &self.models).finish_non_exhaustive()
    }
}

fn check_models(models: &[Model]) -> Result<()> {
    for (i, model) in models.iter().enumerate() {
        let Offer { name: id, tenants } = &model.offer;
        if !(1..=128).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(BUILD, "a model's name must be 1 to 128 visible ASCII characters")
                .with("found", format_args!("{id:?}")));
        }
        if tenants.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(Error::invalid(BUILD, "a model is offered to nobody").with("model", id));
        }
        if models.iter().take(i).any(|other| other.offer.collides_with(&model.offer)) {
            return Err(Error::invalid(BUILD, "two models have one name for one tenant").with("model", id));
        }
    }
    Ok(())
}

fn check_limits(limits: &StorefrontLimits) -> Result<()> {
    let StorefrontLimits {
        body_bytes,
        upload_bytes,
        uploads,
        file_bytes,
        files,
        inputs,
        request_timeout,
        stream_timeout,
        stream_stall,
        head_bytes,
        header_read_timeout,
        requests,
        connections,
    } = limits;
    if *head_bytes < 8192 {
        return Err(Error::invalid(BUILD, "head_bytes must be at least 8192").with("found", head_bytes));
    }
    let zero = [
        ("body_bytes", *body_bytes == 0),
        ("upload_bytes", *upload_bytes == 0),
        ("uploads", *uploads == 0),
        ("file_bytes", *file_bytes == 0),
        ("files", *files == 0),
        ("inputs", *inputs == 0),
        ("request_timeout", request_timeout.is_zero()),
        ("stream_timeout", stream_timeout.is_zero()),
        ("stream_stall", stream_stall.is_zero()),
        ("header_read_timeout", header_read_timeout.is_zero()),
        ("requests", *requests == 0),
        ("connections", *connections == 0),
    ];
    match zero.into_iter().find(|(_, zero)| *zero) {
        Some((name, _)) => Err(Error::invalid(BUILD, "a limit of zero would refuse every request").with("limit", name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::memory::ScriptedBackend;

    use super::*;

    fn with_model(name: &str) -> StorefrontBuilder {
        Storefront::builder().classify(name, Arc::new(ScriptedBackend::new("scripted", [])))
    }

    #[test]
    fn a_storefront_that_could_not_serve_is_refused_by_name() {
        let refused = |builder: StorefrontBuilder| builder.build().unwrap_err().to_string();
        assert!(with_model("m").build().is_ok());
        assert!(refused(Storefront::builder()).contains("nothing to offer"));
        assert!(refused(with_model("a b")).contains("\"a b\""));
        assert!(refused(with_model("")).contains("1 to 128"));
        assert!(
            refused(with_model("m").classify("m", Arc::new(ScriptedBackend::new("other", [])))).contains("model: m")
        );
        assert!(refused(with_model("m").labels([""; 0])).contains("labels"));
        let schema = hybrid_core::VectorSchema::new(2, hybrid_core::vector::Metric::Cosine).unwrap();
        let index = Arc::new(hybrid_core::memory::MemoryVectorIndex::new(schema));
        assert!(with_model("m").vectors(index.clone(), None).build().is_ok());
        assert!(refused(with_model("m").vectors(index, Some("m"))).contains("model: m"), "it does not embed");
        let limits = StorefrontLimits { connections: 0, ..StorefrontLimits::default() };
        assert!(refused(with_model("m").limits(limits)).contains("limit: connections"));
    }
}
