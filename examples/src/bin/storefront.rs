//! The storefront as a program: see `hybrid_examples::storefront`.

use clap::Parser;

#[tokio::main]
async fn main() -> hybrid_core::Result<()> {
    hybrid_examples::log::start();
    hybrid_examples::storefront::run(Parser::parse()).await
}
