//! Looks after dead letters: see `hybrid_examples::dead`.

use clap::Parser;
use hybrid_examples::{dead, log};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    log::end(dead::run(Parser::parse()).await)
}
