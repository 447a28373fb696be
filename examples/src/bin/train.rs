//! Orders a training: see `hybrid_examples::order::training`.

use clap::Parser;
use hybrid_examples::{log, order};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    log::end(order::training::run(Parser::parse()).await)
}
