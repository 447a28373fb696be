//! Ordering a training: what is to be learnt is fixed here, so that the kitchen's answer depends on nothing that happens later.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Parser;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, DatasetName, DatasetRef, Error, ErrorKind, JobKind, Key, ModelName, Result,
    SystemIds, TenantId,
};
use hybrid_sync::job::{self, Job};

use crate::{
    aside::set_aside,
    locations::Locations,
    log::say,
    site::Site,
    train_job::{GoldenRef, TrainJob, store_golden},
};

/// Orders a training over all judgments so far. A kitchen carries it out whenever it is there.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// The model to train, and the dataset of its judgments.
    #[arg(long, default_value = "bakery")]
    pub model: ModelName,
    /// The golden set that the new version is judged on: JSON Lines of text and label, none of them among the judgments.
    #[arg(long)]
    pub golden: PathBuf,
}

/// Orders a training and says which job it is.
///
/// # Errors
/// As [`training`], and those of the golden set.
pub async fn run(args: Args) -> Result<()> {
    let site = Site::open(&args.locations).await?;
    let golden = store_golden(&*site.store(), &TenantId::single(), &args.golden).await?;
    let (job, TrainJob { plan, version, .. }) = training(&site, args.model, golden).await?;
    say(
        std::io::stdout(),
        format_args!(
            "job {} trains version {version} of {} on {} segments of judgments; its result will be t/{}/jobs/{}/result in the bucket",
            job.id,
            plan.model,
            plan.dataset.segments.len(),
            job.tenant,
            job.id
        ),
    );
    Ok(())
}

/// Sends a training job over all judgments that lie in the bucket now, but those that were set aside.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there are no judgments; those of bucket and queue.
pub async fn training(site: &Site, model: ModelName, golden: GoldenRef) -> Result<(Job, TrainJob)> {
    let (store, tenant, ids) = (site.store(), TenantId::single(), SystemIds::default());
    let aside = set_aside(&*store, &tenant, &model).await?;
    let mut dataset = DatasetRef::fix(&*store, &tenant, &DatasetName::new(model.as_str())?).await?;
    dataset.segments.retain(|segment| !aside.contains(&segment.key));
    if dataset.segments.is_empty() {
        let message = "there are no judgments to learn from; send some to the storefront, which carries them to the bucket within seconds";
        return Err(Error::not_found("order training", message).with("dataset", dataset.name));
    }
    let version = claim_version(&*store, &tenant, &model).await?;
    let order = TrainJob::new(model, version, dataset, golden);
    let job = Job::new(&ids, &*site.clock(), tenant, JobKind::new("train")?, &order)?;
    job::submit(&*site.queue().await?.jobs, &*store, &job).await?;
    Ok((job, order))
}

/// Takes the next version number of a model. Who creates its object has it, so no two jobs have the same; one that comes to nothing leaves a gap.
async fn claim_version(store: &dyn ArtifactStore, tenant: &TenantId, model: &ModelName) -> Result<u64> {
    let prefix = format!("t/{tenant}/versions/{model}/");
    let taken = store.list_all(&prefix).await?;
    let numbers = taken.iter().filter_map(|meta| meta.key.as_str().strip_prefix(&prefix)?.parse::<u64>().ok());
    let mut version = numbers.max().unwrap_or_default() + 1;
    loop {
        match store.create(&Key::new(format!("{prefix}{version:020}"))?, Bytes::new()).await {
            Ok(()) => return Ok(version),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => version += 1,
            Err(error) => return Err(error),
        }
    }
}
