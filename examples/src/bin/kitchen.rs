//! The kitchen as a program: see `hybrid_examples::kitchen`.

use hybrid_examples::{kitchen, telemetry::observed};

#[tokio::main]
async fn main() -> hybrid_core::Result<()> {
    observed("kitchen", kitchen::run).await
}
