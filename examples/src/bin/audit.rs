//! Verifies a storefront's audit log: that no entry is missing, changed or out of place. Names the first broken link where there is one.

use std::path::PathBuf;

use clap::Parser;
use hybrid_cloud::storefront::{Verified, verify_bucket, verify_folder};
use hybrid_core::{Error, Result, WriterId};
use hybrid_examples::locations::Locations;

/// Verifies an audit log, in a folder or in the bucket.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The folder of a storefront's own log.
    #[arg(long, conflicts_with = "writer", required_unless_present = "writer")]
    folder: Option<PathBuf>,
    /// Whose sealed segments in the bucket.
    #[arg(long)]
    writer: Option<WriterId>,
    #[command(flatten)]
    locations: Locations,
    /// How many entries there were at least, as noted before: a chain alone cannot show that its end was cut off.
    #[arg(long)]
    at_least: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    hybrid_examples::log::end(verify().await)
}

async fn verify() -> Result<()> {
    let Args { folder, writer, locations, at_least } = Parser::parse();
    let verified = match (folder, writer) {
        (Some(folder), _) => verify_folder(&folder)?,
        (None, Some(writer)) => verify_bucket(&*locations.open_store().await?, &writer).await?,
        (None, None) => return Err(Error::invalid("verify audit log", "name a folder or a writer")),
    };
    let Verified { writer, segments, entries, head, torn, .. } = verified;
    if at_least.is_some_and(|least| entries < least) {
        return Err(Error::corrupt("verify audit log", "entries are missing at its end")
            .with("entries", entries)
            .with("head", head));
    }
    println!("{entries} entries in {segments} segments by {writer} are whole; the last line's digest is {head}");
    if torn > 0 {
        println!("{torn} bytes after it are an entry that a crash left half-written, or one that is being written");
    }
    Ok(())
}
