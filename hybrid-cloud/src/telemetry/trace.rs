//! W3C Trace Context, level 1: the `traceparent` value.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_subscriber::{Registry, registry::LookupSpan};

use super::layer::Open;

/// The W3C `traceparent` under which work for `span` goes on elsewhere: for [`JobOrder::trace`](hybrid_core::JobOrder::trace) and calls of other services.
/// `None` where no [`Telemetry`](super::Telemetry) takes the span.
pub fn traceparent(span: &Span) -> Option<String> {
    let of_ours = |(id, dispatch): (&tracing::Id, &tracing::Dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.extensions().get::<Open>().map(|open| write(open.context()))
    };
    span.with_subscriber(of_ours).flatten()
}

fn write(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8() & 1)
}

/// The context of another process's span.
pub(super) fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let widths = version == "00" && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let digits = traceparent.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    if !widths || !digits || parts.next().is_some() {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_it_is_written_and_nothing_else_is_one() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(write(&read(good).unwrap()), good);
        let zero = "0".repeat(32);
        for bad in [
            "",
            "00",
            &format!("{good}-00"),
            &good.replacen("00", "01", 1),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &zero),
            &good.replace("b7ad", "b7a"),
            &good.replace("b7ad", "xyzz"),
            &good.replace("b7ad", "+7ad"),
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
