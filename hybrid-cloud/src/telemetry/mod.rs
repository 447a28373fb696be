//! Traces and metrics of a storefront or a kitchen: over OTLP, and in Prometheus' text format.
//!
//! The crate family tells of itself through `tracing` alone. [`Telemetry`] is one more layer of the application's subscriber: it turns the spans
//! `request`, `call` and `job` into exported spans and into measurements, under the names of OpenTelemetry's semantic conventions ([`SCHEMA_URL`]). A
//! kitchen installs it just as a storefront does; neither is configured for it.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use hybrid_cloud::telemetry::Telemetry;
//! use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};
//!
//! # async fn run() -> hybrid_core::Result<()> {
//! let telemetry = Telemetry::builder("bakery-storefront").otlp("http://127.0.0.1:4318").prometheus().start()?;
//! tracing_subscriber::registry().with(telemetry.layer()).init();
//!
//! // … serve …
//!
//! telemetry.shutdown(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Filters belong to the layers that print, with `with_filter`: one that stands before all layers takes the spans from this one too.
//!
//! # Spans
//! | span | exported as | kind | attributes |
//! |---|---|---|---|
//! | `request` | `POST /v1/classify` | server | `http.request.method`, `http.route`, `http.response.status_code`, `error.type`, `hybrid.request.id`, `hybrid.tenant`, `hybrid.code`, `hybrid.quota` |
//! | `call` of a model | `chat <model>` | client; internal for a model in this process | `gen_ai.operation.name`, `gen_ai.provider.name`, `gen_ai.request.model`, `gen_ai.response.model`, `gen_ai.usage.*`, `gen_ai.response.time_to_first_chunk`, `error.type`, `hybrid.cost`, `hybrid.currency`, `hybrid.model.version` |
//! | `call` of anything else | `jobs`, `judgments` | internal | `error.type`, `hybrid.request.id`, `hybrid.tenant` |
//! | `job` | `process <kind>` | consumer | `messaging.message.id`, `hybrid.job.*`, `hybrid.request.id`, `hybrid.tenant` |
//!
//! A caller's `traceparent` is continued; the call's goes on to backends and, with a job, through the queue to the worker and into the result. Whether
//! a trace is exported is decided here, by its id and the share, on every machine alike; the flag with which a caller samples counts for nothing. A caller
//! that chooses its traces' ids by this rule can still choose ones that are exported, or none: rely on metrics, which count every call.
//!
//! # Metrics
//! | metric | unit | by |
//! |---|---|---|
//! | `http.server.request.duration` | s | method, route, status, `error.type`, tenant |
//! | `http.server.active_requests` | | method |
//! | `gen_ai.client.operation.duration` | s | operation, provider, models asked and answering, `error.type`, tenant |
//! | `gen_ai.client.token.usage` | tokens | the same, `gen_ai.token.type` |
//! | `gen_ai.server.time_to_first_token`, `gen_ai.server.time_per_output_token` | s | the same; streamed answers alone |
//! | `hybrid.call.cost` | of the currency | the same, `hybrid.currency` |
//! | `hybrid.quota.refusals` | | `hybrid.quota`, tenant |
//! | `hybrid.audit.unaudited` | | |
//! | `hybrid.job.duration`, `hybrid.job.wait` | s | `hybrid.job.kind`, `hybrid.job.ending`, tenant |
//! | `hybrid.model.version`, `hybrid.model.swaps`, `hybrid.model.refresh_failures` | | `hybrid.model.name`, `hybrid.model.channel` |
//!
//! Labels come from what is configured (routes, models, tenants, kinds), never from what customers write. The tenant is one of them, unless
//! [`without_tenants`](TelemetryBuilder::without_tenants) says otherwise; a metric has at most [`series`](TelemetryBuilder::series) series, and what is
//! beyond is counted under `otel.metric.overflow`.
//!
//! # What customers write
//! Is in no span and no metric. Only what the tables name is exported, no message of an error, no text of an event: those stay in the log, where errors
//! [withhold](hybrid_core::Error#what-others-said) what a backend's server said, since that may quote a prompt. A storefront with `trace_content` tells what
//! was asked and answered, in the span of the call, and what servers said, in the log. Other crates' events of the level `TRACE` are their own affair: those of
//! the AWS SDK hold whole requests and answers.
//!
//! # What it may cost
//! Spans and measurements are handed to threads of the exporter's own. A collector that is slow, away or hanging delays no request and fails none:
//! what does not fit into the exporter's queue is dropped, and the log says so.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::future::{Either, select};
use hybrid_core::{Clock, Error, Result, SystemClock};
use opentelemetry::{InstrumentationScope, metrics::MeterProvider, trace::TracerProvider};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream},
    trace::{Sampler, SdkTracerProvider},
};
use tokio::sync::oneshot;
use tracing::Subscriber;
use tracing_subscriber::{Layer, registry::LookupSpan};

mod content;
mod fields;
mod layer;
mod metrics;
mod otlp;
mod prometheus;
mod semconv;
mod trace;

pub use prometheus::PrometheusMetrics;
pub use semconv::SCHEMA_URL;
pub use trace::traceparent;

use layer::TelemetryLayer;
use metrics::Instruments;
use otlp::Otlp;

const START: &str = "start telemetry";

/// Exports what an application tells of itself. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Telemetry {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
    prometheus: Option<PrometheusMetrics>,
    clock: Arc<dyn Clock>,
    tenants: bool,
    targets: Vec<String>,
    stopped: Arc<AtomicBool>,
}

/// Says where telemetry goes.
pub struct TelemetryBuilder {
    service: String,
    endpoint: Option<String>,
    headers: HashMap<String, String>,
    prometheus: bool,
    clock: Arc<dyn Clock>,
    sample: f64,
    series: usize,
    interval: Duration,
    tenants: bool,
    targets: Vec<String>,
}

impl Telemetry {
    /// Telemetry of a service: the name under which collectors list it. `OTEL_RESOURCE_ATTRIBUTES` adds to what is said of it, or says otherwise.
    pub fn builder(service: impl Into<String>) -> TelemetryBuilder {
        TelemetryBuilder {
            service: service.into(),
            endpoint: None,
            headers: HashMap::new(),
            prometheus: false,
            clock: Arc::new(SystemClock),
            sample: 1.0,
            series: 2000,
            interval: Duration::from_secs(60),
            tenants: true,
            targets: Vec::new(),
        }
    }

    /// The layer to install. One for each process: a second one would count everything twice.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static + use<S>
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    {
        let scope = InstrumentationScope::builder("hybrid")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(SCHEMA_URL)
            .build();
        let layer = TelemetryLayer {
            tracer: self.traces.tracer_with_scope(scope.clone()),
            instruments: Instruments::new(&self.metrics.meter_with_scope(scope), self.tenants),
            clock: Arc::clone(&self.clock),
        };
        layer.filtered(self.targets.clone())
    }

    /// The metrics for Prometheus, where the builder was told to [keep them](TelemetryBuilder::prometheus).
    pub fn prometheus(&self) -> Option<&PrometheusMetrics> {
        self.prometheus.as_ref()
    }

    /// Sends what has ended and been counted so far; waits at most `limit`.
    ///
    /// # Errors
    /// [`Timeout`](hybrid_core::ErrorKind::Timeout), or [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if the collector did not take it.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let flush = |traces: SdkTracerProvider, metrics: SdkMeterProvider| {
            let (traces, metrics) = (traces.force_flush(), metrics.force_flush());
            traces.and(metrics)
        };
        self.aside("flush telemetry", limit, flush).await
    }

    /// Sends what there is and stops; waits at most `limit`. What comes after it is lost. To be called before the process ends: nothing is sent on drop.
    ///
    /// # Errors
    /// As [`flush`](Self::flush). A second time there is nothing to send.
    pub async fn shutdown(&self, limit: Duration) -> Result<()> {
        if self.stopped.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let stop = move |traces: SdkTracerProvider, metrics: SdkMeterProvider| {
            let flushed = traces.force_flush();
            let (traces, metrics) = (traces.shutdown_with_timeout(limit), metrics.shutdown_with_timeout(limit));
            flushed.and(traces).and(metrics)
        };
        self.aside("stop telemetry", limit, stop).await
    }

    /// Runs what blocks on a thread of its own.
    async fn aside(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl FnOnce(SdkTracerProvider, SdkMeterProvider) -> std::result::Result<(), OTelSdkError> + Send + 'static,
    ) -> Result<()> {
        let (done, ended) = oneshot::channel();
        let (traces, metrics) = (self.traces.clone(), self.metrics.clone());
        let spawned = thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            let _ = done.send(work(traces, metrics));
        });
        spawned.map_err(|error| Error::internal(operation, "no thread can be started").with_source(error))?;
        let failed = || Error::unavailable(operation, "not everything was sent");
        match select(ended, self.clock.sleep(limit)).await {
            Either::Left((Ok(Ok(())), _)) => Ok(()),
            Either::Left((Ok(Err(error)), _)) => Err(failed().with_source(error)),
            Either::Left((Err(_), _)) => Err(failed()),
            Either::Right(_) => {
                Err(Error::timeout(operation, "the collector does not take it")
                    .with("limit", format_args!("{limit:?}")))
            }
        }
    }
}

impl TelemetryBuilder {
    /// Sends traces and metrics to a collector: the base of its OTLP/HTTP address, such as `http://127.0.0.1:4318`. Protobuf goes to `/v1/traces` and
    /// `/v1/metrics` below it. The headers in `OTEL_EXPORTER_OTLP_HEADERS` are sent too.
    #[must_use]
    pub fn otlp(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sends a header with each export, such as a collector's key.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Keeps metrics for [`Telemetry::prometheus`].
    #[must_use]
    pub fn prometheus(mut self) -> Self {
        self.prometheus = true;
        self
    }

    /// The share of traces that is exported, from 0 to 1; all by default. It goes by the trace's id, so storefront and kitchen export the same ones.
    /// Metrics count everything.
    #[must_use]
    pub fn sample(mut self, share: f64) -> Self {
        self.sample = share;
        self
    }

    /// How many series a metric may have; 2000 by default. It wants at least tenants × routes × statuses.
    #[must_use]
    pub fn series(mut self, limit: usize) -> Self {
        self.series = limit;
        self
    }

    /// How often metrics go to the collector; every 60 s by default.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Counts all tenants together. Spans still say whose they are.
    #[must_use]
    pub fn without_tenants(mut self) -> Self {
        self.tenants = false;
        self
    }

    /// Exports the application's own spans too, of the level `INFO` and above, whose target is `module` or below it. They are exported as they are:
    /// what is recorded in them is the application's affair.
    #[must_use]
    pub fn also(mut self, module: impl Into<String>) -> Self {
        self.targets.push(module.into());
        self
    }

    /// The clock of durations; the machine's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Starts the exporter's threads, where there is a collector. It need not be there yet.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for an address that is none, a share that is none, or no series.
    pub fn start(self) -> Result<Telemetry> {
        let Self { service, endpoint, headers, prometheus, clock, sample, series, interval, tenants, targets } = self;
        if !(0.0..=1.0).contains(&sample) {
            return Err(Error::invalid(START, "the share of traces must be from 0 to 1").with("sample", sample));
        }
        if series == 0 {
            return Err(Error::invalid(START, "a metric must be allowed at least one series").with("series", series));
        }
        let resource = Resource::builder_empty()
            .with_service_name(service)
            .with_detectors(&[
                Box::new(opentelemetry_sdk::resource::EnvResourceDetector::new()),
                Box::new(opentelemetry_sdk::resource::TelemetryResourceDetector),
            ])
            .build();
        let limited = move |_: &Instrument| Stream::builder().with_cardinality_limit(series).build().ok();
        let mut traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::TraceIdRatioBased(sample));
        let mut metrics = SdkMeterProvider::builder().with_resource(resource).with_view(limited);
        if let Some(endpoint) = endpoint {
            let (spans, measurements) = Otlp { endpoint, headers }.exporters()?;
            traces = traces.with_batch_exporter(spans);
            metrics = metrics.with_reader(PeriodicReader::builder(measurements).with_interval(interval).build());
        }
        let prometheus = prometheus.then(::prometheus::Registry::new);
        if let Some(registry) = &prometheus {
            let reader = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
                .map_err(|error| Error::internal(START, "Prometheus' reader cannot be set up").with_source(error))?;
            metrics = metrics.with_reader(reader);
        }
        Ok(Telemetry {
            traces: traces.build(),
            metrics: metrics.build(),
            prometheus: prometheus.map(PrometheusMetrics),
            clock,
            tenants,
            targets,
            stopped: Arc::default(),
        })
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("prometheus", &self.prometheus.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for TelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may be secrets.
        f.debug_struct("TelemetryBuilder").field("service", &self.service).finish_non_exhaustive()
    }
}
