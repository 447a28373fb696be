//! What is counted, from the spans and events that the crate family tells of itself.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

use super::{
    fields::Fields,
    semconv::{self, Kind},
};

/// The conventions' bounds for a request's seconds.
const HTTP_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// A job takes a millisecond or a night.
const JOB_SECONDS: [f64; 14] =
    [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10_800.0, 21_600.0, 43_200.0];

#[derive(Debug)]
pub(super) struct Instruments {
    /// Whether series are told apart by tenant.
    tenants: bool,
    requests: Histogram<f64>,
    active: UpDownCounter<i64>,
    refusals: Counter<u64>,
    calls: Histogram<f64>,
    tokens: Histogram<u64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    cost: Counter<f64>,
    unaudited: Counter<u64>,
    jobs: Histogram<f64>,
    waits: Histogram<f64>,
    version: Gauge<u64>,
    swaps: Counter<u64>,
    stale: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter, tenants: bool) -> Self {
        let seconds = |name: &'static str, what: &'static str, bounds: Vec<f64>| {
            meter.f64_histogram(name).with_unit("s").with_description(what).with_boundaries(bounds).build()
        };
        let count = |name: &'static str, unit: &'static str, what: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        // Doubling from 10 ms to 81.92 s, and by four from one token to 67 million, as the conventions say.
        let call_seconds = (0..14).map(|doubling| 0.01 * f64::from(1 << doubling)).collect();
        let tokens = (0..14).map(|doubling| f64::from(1 << (2 * doubling))).collect();
        Self {
            tenants,
            requests: seconds(
                "http.server.request.duration",
                "From a request's head to the end of its answer.",
                HTTP_SECONDS.to_vec(),
            ),
            active: meter
                .i64_up_down_counter("http.server.active_requests")
                .with_unit("{request}")
                .with_description("Requests at work.")
                .build(),
            refusals: count("hybrid.quota.refusals", "{request}", "Requests that a quota refused."),
            calls: seconds("gen_ai.client.operation.duration", "Calls of models, streams to their end.", call_seconds),
            tokens: meter
                .u64_histogram("gen_ai.client.token.usage")
                .with_unit("{token}")
                .with_description("Tokens that a call read and wrote.")
                .with_boundaries(tokens)
                .build(),
            first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "From a call's beginning to the first piece of a streamed answer.",
                FIRST_TOKEN.to_vec(),
            ),
            per_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Between a streamed answer's first token and its last, for each token after the first.",
                PER_TOKEN.to_vec(),
            ),
            cost: meter
                .f64_counter("hybrid.call.cost")
                .with_description("What calls of models cost, in units of the currency.")
                .build(),
            unaudited: count("hybrid.audit.unaudited", "{call}", "Calls of which no audit entry could be kept."),
            jobs: seconds("hybrid.job.duration", "A worker's work on one delivery of a job.", JOB_SECONDS.to_vec()),
            waits: seconds("hybrid.job.wait", "From a job's order to the start of a delivery.", JOB_SECONDS.to_vec()),
            version: meter.u64_gauge("hybrid.model.version").with_description("The version in service.").build(),
            swaps: count("hybrid.model.swaps", "{swap}", "Versions that came into service."),
            stale: count("hybrid.model.refresh_failures", "{refresh}", "Refreshes after which the old version stayed."),
        }
    }

    pub(super) fn begun(&self, kind: Kind, fields: &Fields) {
        if kind == Kind::Request {
            self.active.add(1, &semconv::active_labels(fields));
        }
    }

    pub(super) fn ended(&self, kind: Kind, fields: &Fields, took: Duration) {
        match kind {
            Kind::Request => self.request(fields, took),
            Kind::Model => self.model(fields, took),
            Kind::Job => self.job(fields, took),
            Kind::Action | Kind::Other => {}
        }
    }

    /// An event by its name.
    pub(super) fn event(&self, name: &str, fields: &Fields) {
        let model = || {
            let labels = [("model", semconv::MODEL), ("channel", semconv::CHANNEL)];
            labels.iter().filter_map(|(field, name)| semconv::label(fields, field, name)).collect::<Vec<_>>()
        };
        match name {
            "unaudited" => self.unaudited.add(1, &[]),
            "swapped" => {
                self.swaps.add(1, &model());
                let version = fields.integer("version").and_then(|version| u64::try_from(version).ok());
                version.into_iter().for_each(|version| self.version.record(version, &model()));
            }
            "refresh failed" => self.stale.add(1, &model()),
            _ => {}
        }
    }

    fn request(&self, fields: &Fields, took: Duration) {
        self.active.add(-1, &semconv::active_labels(fields));
        let labels = self.of_tenant(semconv::request_labels(fields), fields);
        self.requests.record(took.as_secs_f64(), &labels);
        if let Some(quota) = semconv::label(fields, "quota", semconv::QUOTA) {
            self.refusals.add(1, &self.of_tenant(vec![quota], fields));
        }
    }

    fn model(&self, fields: &Fields, took: Duration) {
        let labels = self.of_tenant(semconv::model_labels(fields), fields);
        let took = took.as_secs_f64();
        self.calls.record(took, &labels);
        for (kind, field) in [("input", "input_tokens"), ("output", "output_tokens")] {
            if let Some(tokens) = fields.integer(field).and_then(|tokens| u64::try_from(tokens).ok()) {
                let mut labels = labels.clone();
                labels.push(KeyValue::new(semconv::TOKEN_TYPE, kind));
                self.tokens.record(tokens, &labels);
            }
        }
        if let Some(first) = fields.number("first_ms").map(|first| first / 1e3) {
            self.first_token.record(first, &labels);
            if let Some(tokens) = fields.number("output_tokens").filter(|tokens| *tokens > 1.0) {
                self.per_token.record((took - first).max(0.0) / (tokens - 1.0), &labels);
            }
        }
        if let Some(cost) = fields.number("cost").filter(|cost| *cost > 0.0) {
            let mut labels = labels;
            labels.extend(semconv::label(fields, "currency", semconv::CURRENCY));
            self.cost.add(cost, &labels);
        }
    }

    fn job(&self, fields: &Fields, took: Duration) {
        let named = [("kind", semconv::JOB_KIND), ("ending", semconv::JOB_ENDING)];
        let labels = named.iter().filter_map(|(field, name)| semconv::label(fields, field, name)).collect();
        let labels = self.of_tenant(labels, fields);
        self.jobs.record(took.as_secs_f64(), &labels);
        if let Some(waited) = fields.number("waited_ms") {
            self.waits.record(waited / 1e3, &labels);
        }
    }

    fn of_tenant(&self, mut labels: Vec<KeyValue>, fields: &Fields) -> Vec<KeyValue> {
        if self.tenants {
            labels.extend(semconv::label(fields, "tenant", semconv::TENANT));
        }
        labels
    }
}
