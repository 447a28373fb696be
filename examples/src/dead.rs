//! Dead letters: jobs that have failed as often as they may, for a person to look at.

use clap::{Parser, Subcommand};
use hybrid_core::{Error, ErrorKind, MessageId, Result};
use hybrid_sync::job::DeadJobs;

use crate::{locations::Locations, log::say, site::Site};

/// Looks after jobs that have used up their deliveries.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Lists them, oldest first, one a line: the message's id, the job's id, kind and tenant, and when it was sent.
    List,
    /// Sends jobs back to the queue, for as many deliveries as a new one has.
    Redrive(Chosen),
    /// Ends jobs: whoever ordered them is told that they failed.
    GiveUp(Chosen),
}

/// Which of them.
#[derive(Clone, Debug, clap::Args)]
pub struct Chosen {
    /// Messages' ids.
    #[arg(required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All that there are now.
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
}

/// Lists dead letters, sends them back or gives them up.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for a queue that has no dead letters, [`NotFound`](ErrorKind::NotFound) if some of the ids are not among them; those of
/// queue and bucket.
pub async fn run(args: Args) -> Result<()> {
    let site = Site::open(&args.locations).await?;
    let dead = jobs(&site).await?.ok_or_else(|| {
        let message = "the queue keeps no dead letters; give it a redrive policy";
        Error::new(ErrorKind::Unsupported, "look after dead letters", message)
    })?;
    match args.action {
        Action::List => {
            for found in dead.list().await? {
                let (id, sent) = (&found.letter.id.0, found.letter.sent);
                match &found.job {
                    Some(job) => {
                        say(std::io::stdout(), format_args!("{id}  {}  {}  {}  {sent}", job.id, job.kind, job.tenant))
                    }
                    None => say(std::io::stdout(), format_args!("{id}  no job  {sent}")),
                }
            }
            Ok(())
        }
        Action::Redrive(chosen) => {
            let ids = chosen.ids(&dead).await?;
            ended("went back to the queue", dead.redrive(&ids).await?, ids.len())
        }
        Action::GiveUp(chosen) => {
            let ids = chosen.ids(&dead).await?;
            ended("were given up", dead.give_up(&ids).await?, ids.len())
        }
    }
}

/// The dead jobs of a site, if its queue shows them.
///
/// # Errors
/// Those of the queue.
pub async fn jobs(site: &Site) -> Result<Option<DeadJobs>> {
    let letters = site.queue().await?.dead;
    Ok(letters.map(|letters| DeadJobs::new(letters, site.store(), site.clock())))
}

impl Chosen {
    async fn ids(self, dead: &DeadJobs) -> Result<Vec<MessageId>> {
        if self.all {
            return Ok(dead.list().await?.into_iter().map(|found| found.letter.id).collect());
        }
        Ok(self.ids.into_iter().map(MessageId).collect())
    }
}

fn ended(how: &str, count: u64, asked: usize) -> Result<()> {
    say(std::io::stdout(), format_args!("{count} of {asked} {how}"));
    if count < asked as u64 {
        let missing = "some of the ids are not among the dead letters; list them";
        return Err(Error::not_found("look after dead letters", missing).with("asked", asked).with("found", count));
    }
    Ok(())
}
