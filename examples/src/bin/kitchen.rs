//! The kitchen as a program: see `hybrid_examples::kitchen`.

use clap::Parser;

#[tokio::main]
async fn main() -> hybrid_core::Result<()> {
    hybrid_examples::log::start();
    hybrid_examples::kitchen::run(Parser::parse()).await
}
