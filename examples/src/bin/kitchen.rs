//! The kitchen as a program: see `hybrid_examples::kitchen`.

use hybrid_examples::{kitchen, log, telemetry::observed};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::end(observed("kitchen", kitchen::run).await)
}
