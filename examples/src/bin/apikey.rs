//! Makes an API key for a storefront: prints the record for the list of keys, and the key itself, which is kept nowhere, on standard error.

use std::time::Duration;

use clap::Parser;
use hybrid_cloud::storefront::{KeyRecord, NewKey, Scope};
use hybrid_core::{Clock, Error, Result, SystemClock, TenantId};

/// Makes an API key. Add the record on standard output to the list `{"format": "hybrid.api-keys/1", "keys": [record, …]}`.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Whose key it is.
    #[arg(long)]
    tenant: TenantId,
    /// Who within the tenant: a person or a program.
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    subject: String,
    /// What it may do, once for each scope; everything but tenant.admin where left out.
    #[arg(long = "scope")]
    scopes: Vec<Scope>,
    /// For how many days it holds; without end where left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    days: Option<u32>,
}

fn main() -> std::process::ExitCode {
    hybrid_examples::log::end(make())
}

fn make() -> Result<()> {
    let Args { tenant, subject, scopes, days } = Parser::parse();
    let now = SystemClock.now();
    let key = NewKey::generate(tenant, subject, now)?;
    let made = key.record().clone();
    let record = KeyRecord {
        scopes: if scopes.is_empty() { made.scopes } else { scopes.into_iter().collect() },
        expires: days.map(|days| now.plus(Duration::from_secs(u64::from(days) * 86_400))),
        ..made
    };
    let json = serde_json::to_string_pretty(&record)
        .map_err(|error| Error::internal("print record", "the record is no JSON").with_source(error))?;
    println!("{json}");
    eprintln!("{}", key.reveal());
    Ok(())
}
