use std::sync::Arc;

use hybrid_core::{Clock, Monotonic};
use opentelemetry::{
    Context as OtelContext,
    trace::{Span as _, SpanBuilder, SpanContext, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::{SdkTracer, Span as OtelSpan};
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter, span};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use super::{fields::Fields, metrics::Instruments, semconv::Kind, trace};

/// Our crates, whose spans have conventional names.
const CRATES: [&str; 4] = ["hybrid_core", "hybrid_cloud", "hybrid_local", "hybrid_sync"];
const SPANS: [&str; 3] = ["request", "call", "job"];
/// What was asked or answered; sent only by a storefront that was told to.
const CONTENT: &str = "content";
const EVENTS: [&str; 4] = [CONTENT, "swapped", "refresh failed", "unaudited"];

/// What a span of the application inherits from the one around it, as far as it does not say it itself.
const INHERITED: [&str; 2] = ["tenant", "request_id"];

/// Turns spans into exported spans and measurements. It takes what it knows by name, and nothing else leaves.
pub(super) struct TelemetryLayer {
    pub(super) tracer: SdkTracer,
    pub(super) instruments: Instruments,
    pub(super) clock: Arc<dyn Clock>,
}

/// A span that has not ended, in its extensions.
pub(super) struct Open {
    kind: Kind,
    opened: Monotonic,
    fields: Fields,
    span: OtelSpan,
}

impl Open {
    pub(super) fn context(&self) -> &SpanContext {
        self.span.span_context()
    }
}

impl TelemetryLayer {
    /// The layer with its filter: spans and events that it has no use for cost it nothing.
    pub(super) fn filtered<S>(self, targets: Vec<String>) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    {
        let filter = filter_fn(move |metadata| wanted(metadata, &targets)).with_max_level_hint(LevelFilter::DEBUG);
        self.with_filter(filter)
    }
}

fn wanted(metadata: &Metadata<'_>, targets: &[String]) -> bool {
    match (our_crate(metadata), metadata.is_span()) {
        (Some(_), true) => SPANS.contains(&metadata.name()),
        (Some(_), false) => EVENTS.contains(&metadata.name()),
        (None, is_span) => {
            is_span && *metadata.level() <= Level::INFO && targets.iter().any(|module| is_below(metadata, module))
        }
    }
}

fn our_crate(metadata: &Metadata<'_>) -> Option<&'static str> {
    CRATES.into_iter().find(|name| is_below(metadata, name))
}

fn is_below(metadata: &Metadata<'_>, module: &str) -> bool {
    metadata.target().strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl<S> Layer<S> for TelemetryLayer
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        let Some(span) = cx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = around(&span, |open| {
            fields.inherit(&open.fields, &INHERITED);
            open.span.span_context().clone()
        });
        // A caller's trace goes on where none of ours is open.
        let parent = parent.or_else(|| fields.text("trace").and_then(trace::read));
        let parent = parent.map(|parent| OtelContext::new().with_remote_span_context(parent)).unwrap_or_default();

        let metadata = attributes.metadata();
        let kind = Kind::of(our_crate(metadata), metadata.name(), &fields);
        let builder = SpanBuilder::from_name(metadata.name()).with_kind(kind.span_kind(&fields));
        let started = self.tracer.build_with_context(builder, &parent);
        self.instruments.begun(kind, &fields);
        span.extensions_mut().insert(Open { kind, opened: self.clock.monotonic(), fields, span: started });
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        let Some(span) = cx.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if event.metadata().name() != CONTENT {
            return self.instruments.event(event.metadata().name(), &fields);
        }
        let Some(span) = cx.event_span(event) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            open.fields.inherit(&fields, &["input", "output"]);
        }
    }

    fn on_close(&self, id: span::Id, cx: Context<'_, S>) {
        // Taken out first: what follows may log, and must hold no lock of the registry.
        let open = cx.span(&id).and_then(|span| span.extensions_mut().remove::<Open>());
        let Some(Open { kind, opened, fields, mut span }) = open else { return };
        self.instruments.ended(kind, &fields, self.clock.monotonic().since(opened));
        if span.is_recording() {
            if let Some(name) = kind.span_name(&fields) {
                span.update_name(name);
            }
            if kind.failed(&fields) {
                // What went wrong may quote what a customer wrote: it is in the log, under the same ids.
                span.set_status(Status::error(""));
            }
            span.set_attributes(kind.attributes(fields));
        }
        span.end();
    }
}

/// Reads the nearest exported span around this one.
fn around<S, T>(span: &SpanRef<'_, S>, read: impl FnOnce(&Open) -> T) -> Option<T>
where
    S: for<'lookup> LookupSpan<'lookup>,
{
    let outer = span.scope().skip(1).find(|outer| outer.extensions().get::<Open>().is_some())?;
    let extensions = outer.extensions();
    extensions.get::<Open>().map(read)
}
