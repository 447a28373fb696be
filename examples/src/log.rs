//! What programs say beside their results: log lines and the last error, on standard error, so that standard output stays for results.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use hybrid_core::Result;
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

/// Ends a program: an error is told in one line, with what another side said of it. Log lines have that [withheld](hybrid_core::Error#what-others-said).
pub fn end(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(std::io::stderr(), format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line. A reader that has gone, such as `head`, is no reason to stop.
pub fn say(mut to: impl Write, line: impl std::fmt::Display) {
    let _ = writeln!(to, "{line}");
}
