//! What `tracing` is told of a call.

use hybrid_core::{CallContext, ErrorKind, Locality, Monotonic, ReplyMeta};
use serde_json::Value;
use tracing::{Span, field::Empty};

use super::call::Purpose;

/// The most characters of what was asked or answered that go into a span.
const CONTENT_CHARS: usize = 64 * 1024;

/// The span of a call, from its beginning to its end.
#[derive(Debug)]
pub(super) struct Told {
    span: Span,
    started: Monotonic,
    ended: bool,
}

impl Told {
    pub(super) fn of(purpose: &Purpose, started: Monotonic) -> Self {
        let model = purpose.model.as_ref();
        let span = tracing::info_span!(
            "call",
            operation = purpose.action,
            model = model.map(|model| model.offered.as_str()),
            backend = model.map(|model| model.backend.as_str()),
            in_process = purpose.locality.as_ref().map(|locality| *locality == Locality::Device),
            streamed = model.map(|_| purpose.streamed),
            served = Empty,
            version = Empty,
            input_tokens = Empty,
            output_tokens = Empty,
            cache_read_tokens = Empty,
            cache_write_tokens = Empty,
            reasoning_tokens = Empty,
            cost = Empty,
            currency = Empty,
            first_ms = Empty,
            error = Empty,
        );
        Self { span, started, ended: false }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn asked(&self, asked: &Value) {
        tracing::debug!(name: "content", parent: &self.span, input = shown(asked), "asked");
    }

    pub(super) fn answered(&self, answered: &Value) {
        tracing::debug!(name: "content", parent: &self.span, output = shown(answered), "answered");
    }

    /// The first piece of a streamed answer has come.
    pub(super) fn first(&self, cx: &CallContext) {
        self.span.record("first_ms", cx.clock.monotonic().since(self.started).as_secs_f64() * 1e3);
    }

    pub(super) fn done(&mut self, meta: Option<&ReplyMeta>) {
        self.ended = true;
        let Some(ReplyMeta { backend, model, usage, cost, locality: _, elapsed: _, notes: _ }) = meta else { return };
        let some = |count: u64| (count > 0).then_some(count);
        self.span
            .record("backend", backend.as_str())
            .record("served", model.name.as_str())
            .record("version", model.version)
            .record("input_tokens", some(usage.total_input_tokens()))
            .record("output_tokens", some(usage.output_tokens))
            .record("cache_read_tokens", some(usage.cache_read_tokens))
            .record("cache_write_tokens", some(usage.cache_write_tokens))
            .record("reasoning_tokens", some(usage.reasoning_tokens));
        if let Some(cost) = cost {
            // Money is exact everywhere else; a dashboard wants a number.
            self.span.record("cost", cost.pico as f64 / 1e12);
            self.span.record("currency", tracing::field::display(cost.currency));
        }
    }

    /// The kind alone: what an error says may quote what a customer wrote.
    pub(super) fn failed(&mut self, kind: ErrorKind) {
        self.ended = true;
        self.span.record("error", tracing::field::debug(kind));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.ended {
            self.span.record("error", "Cut");
        }
    }
}

fn shown(value: &Value) -> String {
    crate::storefront::error::shorten(value.to_string(), CONTENT_CHARS)
}
