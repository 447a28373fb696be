//! Brings models of one's own to Bedrock: see `hybrid_examples::bedrock`.

use clap::Parser;
use hybrid_examples::{bedrock, log};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    log::end(bedrock::run(Parser::parse()).await)
}
