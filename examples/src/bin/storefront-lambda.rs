//! The storefront as a cloud function: see `hybrid_examples::function`.

use clap::Parser;

// A function has one or two processors and one request at a time.
#[tokio::main(flavor = "current_thread")]
async fn main() -> hybrid_core::Result<()> {
    hybrid_examples::function::run(Parser::parse()).await
}
