//! The storefront as a program: see `hybrid_examples::storefront`.

use hybrid_examples::{storefront, telemetry::observed};

#[tokio::main]
async fn main() -> hybrid_core::Result<()> {
    observed("storefront", storefront::run).await
}
