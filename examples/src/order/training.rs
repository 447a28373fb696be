//! Ordering a training: what is to be learnt is fixed here, so that the kitchen's answer depends on nothing that happens later.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Parser;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, DatasetName, DatasetRef, Error, ErrorKind, JobKind, Key, ModelName, Result,
    SystemIds, TenantId,
};
use hybrid_local::plan_set::PlanVariant;
use hybrid_sync::job::{self, Job};

use super::read_json;
use crate::{
    aside::set_aside,
    judging::{GoldenRef, store_golden},
    locations::Locations,
    log::say,
    site::Site,
    train_job::TrainJob,
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
    /// A file with a set of plans in the place of the default one, of which the best is published with the table of all:
    /// [{"name": "small", "method": "hashed-text", "hyperparameters": {"dimension": 8}}, …].
    #[arg(long, value_name = "FILE")]
    pub plans: Option<PathBuf>,
}

/// Orders a training and says which job it is.
///
/// # Errors
/// As [`submit`], and those of the golden set and the file of plans.
pub async fn run(args: Args) -> Result<()> {
    let site = Site::open(&args.locations).await?;
    let golden = store_golden(&*site.store(), &TenantId::single(), &args.golden).await?;
    let variants = args.plans.as_deref().map_or_else(|| Ok(Vec::new()), read_json)?;
    let (job, TrainJob { plan, variants, version, .. }) = submit(&site, args.model, golden, variants).await?;
    let of = match variants.len() {
        0 => String::new(),
        plans => format!(" by the best of {plans} plans"),
    };
    say(
        std::io::stdout(),
        format_args!(
            "job {} trains version {version} of {}{of} on {} segments of judgments; its result will be t/{}/jobs/{}/result in the bucket",
            job.id,
            plan.model,
            plan.dataset.segments.len(),
            job.tenant,
            job.id
        ),
    );
    Ok(())
}

/// Sends a training job by the default plan, or by a set of `variants`, over all judgments that lie in the bucket now, but those that were set aside.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there are no judgments; those of bucket and queue.
pub async fn submit(
    site: &Site,
    model: ModelName,
    golden: GoldenRef,
    variants: Vec<PlanVariant>,
) -> Result<(Job, TrainJob)> {
    let (store, tenant, ids) = (site.store(), TenantId::single(), SystemIds::default());
    let aside = set_aside(&*store, &tenant, &model).await?;
    let mut dataset = DatasetRef::fix(&*store, &tenant, &DatasetName::new(model.as_str())?).await?;
    dataset.segments.retain(|segment| !aside.contains(&segment.key));
    if dataset.segments.is_empty() {
        let message = "there are no judgments to learn from; send some to the storefront, which carries them to the bucket within seconds";
        return Err(Error::not_found("order training", message).with("dataset", dataset.name));
    }
    let version = claim_version(&*store, &tenant, &model).await?;
    let order = TrainJob { variants, ..TrainJob::new(model, version, dataset, golden) };
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
