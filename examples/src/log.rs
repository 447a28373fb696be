//! Log lines on standard error, so that standard output stays for results.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt};

/// Starts logging: warnings and errors, or what `RUST_LOG` asks for.
pub fn start() {
    tracing_subscriber::registry().with(lines()).init();
}

/// The same as a layer. The filter is its own, so that it takes nothing from other layers.
pub fn lines<S>() -> impl Layer<S>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter)
}
