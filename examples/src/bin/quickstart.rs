//! The quickstart as a program: see `hybrid_examples::quickstart`.

use clap::{Parser, Subcommand};
use hybrid_examples::{kitchen, log, quickstart};

#[derive(Debug, Parser)]
#[command(version, about = "Shows the whole loop on one machine")]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    quickstart: quickstart::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs as the kitchen: the quickstart starts itself a second time with this.
    #[command(hide = true)]
    Kitchen(kitchen::Args),
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    log::start();
    let cli = Cli::parse();
    log::end(match cli.command {
        Some(Command::Kitchen(args)) => kitchen::run(args).await,
        None => quickstart::run_and_print(cli.quickstart).await,
    })
}
