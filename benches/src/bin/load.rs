//! Puts a storefront under load with faults on the wire, prints what it promised and what was found, and fails where the two differ.
//!
//! ```sh
//! cargo run --release -p hybrid-benches --bin load -- --minutes 10
//! ```
//!
//! See [`hybrid_benches::load`].

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use hybrid_benches::load::{self, Plan, servers::Places, storefront};

#[derive(Debug, Parser)]
#[command(version, about = "Puts a storefront under load with faults on the wire")]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// How long clients ask.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many there are.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Requests a second that all of them begin together.
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// How often the queue is cut off.
    #[arg(long, default_value_t = 2)]
    cuts: u32,
    /// For how many seconds each time.
    #[arg(long, default_value_t = 30)]
    cut_seconds: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs as the storefront: the load starts itself a second time with this.
    #[command(hide = true)]
    Storefront(Places),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, minutes, clients, rate, cuts, cut_seconds } = Cli::parse();
    if let Some(Command::Storefront(places)) = command {
        storefront::serve(places).await;
        return ExitCode::SUCCESS;
    }
    let (lasts, cut_for) = (Duration::from_secs_f64(minutes * 60.0), Duration::from_secs(cut_seconds));
    let report = load::run(Plan { lasts, clients, rate, cuts, cut_for, ..Plan::default() }).await;
    println!("{report}");
    if report.is_kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
