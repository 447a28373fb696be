//! A storefront under load, with faults on the wire, and what it promised under it.
//!
//! Two hundred clients ask a storefront that runs as a process of its own: chats that stream from a scripted server, classifications by a live model that
//! swaps every five seconds, judgments, and jobs for a kitchen. A proxy cuts the queue off, twice for thirty seconds; another makes the bucket answer one
//! request in twenty with 503. In the end the [`report`](report::Report) says what was promised and what was found:
//!
//! - every answer is a 2xx, and every stream is whole to the last word;
//! - every judgment that was acknowledged is in the bucket, every job that was taken has its result, and every call is in the audit;
//! - the storefront's memory does not grow.

pub mod clients;
pub mod report;
pub mod rss;
pub mod servers;
pub mod storefront;
pub mod verify;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{must, scratch};
use clients::Tally;
use report::Report;
use rss::Sampler;
use servers::Servers;

/// How a load is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How long clients ask.
    pub lasts: Duration,
    /// How many there are, each with a connection of its own.
    pub clients: usize,
    /// Requests a second that all of them begin together. It is below what two cores can do, so that latencies say something.
    pub rate: f64,
    /// How often the queue is cut off, evenly over the time.
    pub cuts: u32,
    /// For how long each time.
    pub cut_for: Duration,
    /// The share of the bucket's answers that are 503.
    pub share_of_503: f64,
    /// How often another version goes into service.
    pub swap_every: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            lasts: Duration::from_secs(600),
            clients: 200,
            rate: 60.0,
            cuts: 2,
            cut_for: Duration::from_secs(30),
            share_of_503: 0.05,
            swap_every: Duration::from_secs(5),
        }
    }
}

/// Runs the load and looks at what is left.
pub async fn run(plan: Plan) -> Report {
    let folder = scratch();
    let servers = Servers::start(&plan, folder.path()).await;
    let mut storefront = storefront::Process::start(&servers.arguments());
    let kitchen = servers.open_kitchen();
    let releasing = tokio::spawn(servers.releasing(plan.swap_every));
    storefront.until_ready().await;

    let tally = Arc::<Tally>::default();
    let sampler = Sampler::start(storefront.id());
    let cutting = tokio::spawn(servers.cutting(plan.clone()));
    clients::ask(&plan, storefront.address(), &tally).await;
    let memory = sampler.stop();
    must(cutting.await);
    releasing.abort();

    let stopped = storefront.stop().await;
    let verified = verify::verify(&servers, &tally, folder.path()).await;
    kitchen.stop().await;
    Report { plan, tally, memory, verified, stopped, faults: servers.faults() }
}

/// Waits until `condition` gives something, at most `limit`.
pub(crate) async fn until<T>(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < limit, "{what} took more than {limit:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
