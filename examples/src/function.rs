//! The storefront as a cloud function: it has no disk that lasts, and it runs only while it answers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use hybrid_cloud::storefront::{Answers, Storefront};
use hybrid_core::{
    ChannelName, Clock, DatasetName, Document, IdSource, ModelName, Result, SystemClock, SystemIds, WriterId,
    task::ClassifyRequest,
};
use hybrid_local::{Device, TextClassifierLoader};
use hybrid_sync::{
    capture::{CaptureOptions, WriteThrough},
    live::{LiveModel, OnDemand},
    registry::{Floor, MemoryFloor, Namespace, PublicKey, Registry, Trust},
};
use url::Url;

use crate::{data::LABELS, locations::Locations, site::make_folder};

/// Serves a model as a function. Everything is configured by the environment.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// Where the model's files go: the part of a function's disk that may be written to.
    #[arg(long, env = "HYBRID_SITE", default_value = "/tmp/hybrid")]
    pub site: PathBuf,
    /// The bucket.
    #[arg(long, env = "HYBRID_ARTIFACTS")]
    pub artifacts: Url,
    /// The model to serve, and the dataset that judgments go to.
    #[arg(long, env = "HYBRID_MODEL", default_value = "bakery")]
    pub model: ModelName,
    /// The public key of who builds versions, as PEM.
    #[arg(long, env = "HYBRID_BUILDER_KEY")]
    pub builder_key: String,
    /// The public key of who releases them, as PEM.
    #[arg(long, env = "HYBRID_RELEASE_KEY")]
    pub release_key: String,
    /// The lowest release that a cold start accepts: the floor document that a storefront with a disk keeps beside its models. Empty for any.
    #[arg(long, env = "HYBRID_FLOOR", default_value = "")]
    pub floor: String,
    /// Send answers as they come: for a function URL with the invoke mode RESPONSE_STREAM.
    #[arg(long, env = "HYBRID_STREAMED")]
    pub streamed: bool,
}

/// Serves until the service ends the process. Nothing is fetched before the first request needs it, but the version that a floor names.
///
/// # Errors
/// A variable that is missing or malformed, by name.
pub async fn run(args: Args) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ids = SystemIds::new(Arc::clone(&clock));
    make_folder(&args.site)?;
    let locations = Locations { site: args.site.clone(), artifacts: Some(args.artifacts), queue: None };
    let store = locations.open_store().await?;
    let trust = Trust {
        builders: vec![PublicKey::from_pem(&args.builder_key)?],
        releases: vec![PublicKey::from_pem(&args.release_key)?],
    };
    let floor = match args.floor.as_str() {
        "" => MemoryFloor::default(),
        document => MemoryFloor::pinned(Floor::decode(document.as_bytes())?),
    };
    let loader = Arc::new(TextClassifierLoader::new(Device::cpu()));
    let registry = Registry::new(Arc::clone(&store), Namespace::root());
    let live = LiveModel::builder(
        registry,
        args.model.clone(),
        ChannelName::stable(),
        trust,
        loader,
        args.site.join("models"),
    )
    .floor(Arc::new(floor))
    .warm_up(ClassifyRequest::one("Are you open?"))
    .build()
    .await?;
    let backend = OnDemand::new(live, Arc::clone(&clock), Duration::from_secs(60));

    // One sequence of segments for each instance, so that instances never meet.
    let writer = WriterId::new(format!("function-{}", ids.next_uuid()))?;
    let sink = WriteThrough::new(store, clock, writer, CaptureOptions::default());
    let storefront = Storefront::builder()
        .classify(args.model.as_str(), Arc::new(backend))
        .judgments(Arc::new(sink), DatasetName::new(args.model.as_str())?)
        .labels(LABELS)
        .build()?;
    storefront.serve_lambda(if args.streamed { Answers::Streamed } else { Answers::Whole }).await
}
