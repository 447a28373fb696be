//! The storefront as a program: see `hybrid_examples::storefront`.

use hybrid_examples::{log, storefront, telemetry::observed};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::end(observed("storefront", storefront::run).await)
}
