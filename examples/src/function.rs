//! The storefront as a cloud function: it has no disk that lasts, and it runs only while it answers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use clap::{Parser, builder::BoolishValueParser};
use hybrid_cloud::storefront::{Answers, ApiKeys, CredentialSource, Storefront};
use hybrid_core::{
    ChannelName, Clock, DatasetName, Document, Error, IdSource, ModelName, Result, SystemClock, SystemIds, WriterId,
    task::ClassifyRequest,
};
use hybrid_local::{Device, TextClassifierLoader};
use hybrid_sync::{
    capture::{CaptureOptions, WriteThrough},
    live::{LiveModel, OnDemand},
    registry::{Floor, MemoryFloor, Namespace, PublicKey, Registry, Trust},
};
use url::Url;

use crate::{
    data::LABELS,
    locations::Locations,
    site::make_folder,
    telemetry::{TelemetryArgs, exporter},
};

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
    /// Let in whoever has one of these API keys: a document `{"format": "hybrid.api-keys/1", "keys": [record, …]}` of records that the command `apikey` makes.
    #[arg(long, env = "HYBRID_API_KEYS", default_value = "", hide_env_values = true)]
    pub api_keys: String,
    /// Without keys, let in anyone. Judgments are then not taken: whoever sends them decides what the next version learns.
    #[arg(long, env = "HYBRID_OPEN", value_parser = BoolishValueParser::new())]
    pub open: bool,
    /// Send answers as they come: for a function URL with the invoke mode RESPONSE_STREAM.
    #[arg(long, env = "HYBRID_STREAMED")]
    pub streamed: bool,
    /// Send traces and metrics to an OpenTelemetry collector, such as the one of an extension at http://localhost:4318, at the end of each answer.
    #[arg(long, env = "HYBRID_OTLP")]
    pub otlp: Option<Url>,
}

/// Serves until the service ends the process. Nothing is fetched before the first request needs it, but the version that a floor names.
///
/// # Errors
/// A variable that is missing or malformed, by name.
pub async fn run(args: Args) -> Result<()> {
    if args.api_keys.is_empty() && !args.open {
        let message = "everyone on the internet could come in; set HYBRID_API_KEYS to the list of those who may, or HYBRID_OPEN=true to let in anyone";
        return Err(Error::invalid("start function", message));
    }
    let telemetry = exporter::start("storefront", TelemetryArgs { otlp: args.otlp, metrics: None }).await?;
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

    let mut storefront = Storefront::builder().classify(args.model.as_str(), Arc::new(backend)).labels(LABELS);
    if !args.api_keys.is_empty() {
        let keys = ApiKeys::open(Arc::new(Given(args.api_keys)), Arc::clone(&clock)).await;
        let keys = keys.map_err(|error| error.with("variable", "HYBRID_API_KEYS"))?;
        // One sequence of segments for each instance, so that instances never meet.
        let writer = WriterId::new(format!("function-{}", ids.next_uuid()))?;
        let sink = WriteThrough::new(store, clock, writer, CaptureOptions::default());
        let dataset = DatasetName::new(args.model.as_str())?;
        storefront = storefront.authenticator(Arc::new(keys)).judgments(Arc::new(sink), dataset);
    }
    let storefront = storefront.build()?;
    let answers = if args.streamed { Answers::Streamed } else { Answers::Whole };
    let flushed = telemetry.clone();
    let served = storefront.serve_lambda(answers, move || {
        let telemetry = flushed.clone();
        async move { telemetry.flush().await }
    });
    let ended = served.await;
    telemetry.stop().await;
    ended
}

/// Credentials that the configuration gives: the same until the next deployment.
#[derive(Debug)]
struct Given(String);

#[async_trait]
impl CredentialSource for Given {
    async fn fetch(&self) -> Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }
}
