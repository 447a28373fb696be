//! Keeps a version in service whose release has expired: see `hybrid_examples::renewal`.

use clap::Parser;
use hybrid_examples::{log, renewal};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    log::end(renewal::run(Parser::parse()).await)
}
