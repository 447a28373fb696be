//! Whether everything that was promised is there.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use hybrid_cloud::storefront::{verify_bucket, verify_folder};
use hybrid_core::{ArtifactStore, DatasetRef, JobId, JudgmentId, TenantId, WriterId};
use hybrid_sync::job::read_result;
use serde_json::Value;

use super::{
    clients::Tally,
    servers::Servers,
    storefront::{WRITER, dataset},
    until,
};
use crate::must;

/// How long no further result may come before the rest counts as lost: longer than any lease and any back-off here.
const PATIENCE: Duration = Duration::from_secs(90);

/// What was found in the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Judgments that were acknowledged and are not there.
    pub lost_judgments: Vec<JudgmentId>,
    /// Jobs that were taken and have no result, or another than they must have.
    pub lost_jobs: Vec<JobId>,
    /// How long after the last answer the last result was there.
    pub caught_up: Duration,
    /// Entries of the audit on the storefront's disk.
    pub audited: u64,
    /// The same in the bucket.
    pub shipped: u64,
}

/// Looks, without a proxy in between. The storefront has ended; the kitchen goes on until all results are there, or nothing comes any more.
pub async fn verify(servers: &Servers, tally: &Tally, folder: &Path) -> Verified {
    let (store, tenant) = (servers.direct_store().await, TenantId::single());
    let (jobs, judgments) = {
        let seen = tally.seen();
        (seen.jobs.clone(), seen.judgments.clone())
    };
    let begun = Instant::now();
    let (mut waiting, mut lost_jobs, mut last) = (jobs.clone(), Vec::new(), begun);
    until(Duration::from_secs(900), "the jobs", async || {
        while let Some((id, expected)) = waiting.first_key_value() {
            let Some(result) = must(read_result(&*store, &tenant, *id).await) else {
                return (last.elapsed() > PATIENCE).then_some(());
            };
            if result.output::<Value>().ok().as_ref() != Some(expected) {
                lost_jobs.push(*id);
            }
            waiting.pop_first();
            last = Instant::now();
        }
        Some(())
    })
    .await;
    lost_jobs.extend(waiting.into_keys());
    let caught_up = begun.elapsed();
    let kept = kept(&*store, &tenant).await;
    let audit = folder.join("storefront").join("audit");
    let (audited, shipped) =
        (must(verify_folder(&audit)), must(verify_bucket(&*store, &must(WriterId::new(WRITER))).await));
    Verified {
        lost_judgments: judgments.difference(&kept).copied().collect(),
        lost_jobs,
        caught_up,
        audited: audited.entries,
        shipped: shipped.entries,
    }
}

async fn kept(store: &dyn ArtifactStore, tenant: &TenantId) -> BTreeSet<JudgmentId> {
    let dataset = must(DatasetRef::fix(store, tenant, &dataset()).await);
    must(dataset.read(store).await).into_iter().map(|judgment| judgment.id).collect()
}
