//! Orders work from the kitchen: see `hybrid_examples::order`.

use clap::Parser;
use hybrid_examples::{log, order};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    log::end(order::run(Parser::parse()).await)
}
