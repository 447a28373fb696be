//! What an app tells of itself: lines on standard error, and traces and metrics where it is told to send them.

use std::net::SocketAddr;

use clap::Parser;
use hybrid_core::Result;
use url::Url;

/// Where telemetry goes; nowhere by default.
#[derive(Clone, Debug, Default, Parser)]
pub struct TelemetryArgs {
    /// Send traces and metrics to an OpenTelemetry collector, such as http://127.0.0.1:4318.
    #[arg(long, env = "HYBRID_OTLP")]
    pub otlp: Option<Url>,
    /// Show metrics to Prometheus at this address, which customers must not reach, such as 127.0.0.1:9464.
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
}

#[derive(Parser)]
#[command(version)]
struct Observed<A: clap::Args> {
    #[command(flatten)]
    app: A,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Runs an app with the arguments of the command line, and sends what it has told before it ends.
///
/// # Errors
/// The app's own, and what keeps telemetry from starting.
pub async fn observed<A: clap::Args>(service: &str, app: impl AsyncFnOnce(A) -> Result<()>) -> Result<()> {
    let Observed { app: args, telemetry } = Observed::<A>::parse();
    let telemetry = exporter::start(service, telemetry).await?;
    let ended = app(args).await;
    telemetry.stop().await;
    ended
}

#[cfg(feature = "telemetry")]
pub(crate) mod exporter {
    use std::time::Duration;

    use hybrid_cloud::telemetry::Telemetry;
    use hybrid_core::{Cancellation, Error, Result};
    use tokio::net::TcpListener;
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

    use super::TelemetryArgs;
    use crate::log;

    /// How long the end waits for the collector.
    const LAST_EXPORT: Duration = Duration::from_secs(5);

    /// How long an answer's end waits for the collector.
    #[cfg(feature = "lambda")]
    const EACH_EXPORT: Duration = Duration::from_secs(1);

    #[derive(Clone)]
    pub(crate) struct Exporter {
        telemetry: Telemetry,
        stop: Cancellation,
    }

    pub(crate) async fn start(service: &str, TelemetryArgs { otlp, metrics }: TelemetryArgs) -> Result<Exporter> {
        let mut builder = Telemetry::builder(service);
        if let Some(collector) = otlp {
            builder = builder.otlp(collector);
        }
        if metrics.is_some() {
            builder = builder.prometheus();
        }
        let telemetry = builder.start()?;
        tracing_subscriber::registry().with(log::lines()).with(telemetry.layer()).init();
        let stop = Cancellation::new();
        if let (Some(address), Some(scraped)) = (metrics, telemetry.prometheus().cloned()) {
            let listener = TcpListener::bind(address).await.map_err(|error| {
                Error::unavailable("show metrics", "the address cannot be listened on; choose another with --metrics")
                    .with("address", address)
                    .with_source(error)
            })?;
            let stopped = stop.clone().cancelled_owned();
            tokio::spawn(async move { scraped.serve(listener, stopped).await });
        }
        Ok(Exporter { telemetry, stop })
    }

    impl Exporter {
        /// Sends what there is, if the collector takes it soon; what it does not take is tried again with what comes.
        #[cfg(feature = "lambda")]
        pub(crate) async fn flush(&self) {
            if let Err(error) = self.telemetry.flush(EACH_EXPORT).await {
                tracing::warn!(%error, "telemetry was not sent in time");
            }
        }

        pub(crate) async fn stop(self) {
            self.stop.cancel();
            if let Err(error) = self.telemetry.shutdown(LAST_EXPORT).await {
                tracing::warn!(%error, "the last telemetry was not sent");
            }
        }
    }
}

#[cfg(not(feature = "telemetry"))]
pub(crate) mod exporter {
    use hybrid_core::{Error, ErrorKind, Result};

    use super::TelemetryArgs;
    use crate::log;

    #[derive(Clone)]
    pub(crate) struct Exporter;

    pub(crate) async fn start(_: &str, TelemetryArgs { otlp, metrics }: TelemetryArgs) -> Result<Exporter> {
        if otlp.is_some() || metrics.is_some() {
            let message = "this program is built without telemetry; build it with --features telemetry";
            return Err(Error::new(ErrorKind::Unsupported, "start telemetry", message));
        }
        log::start();
        Ok(Exporter)
    }

    impl Exporter {
        #[cfg(feature = "lambda")]
        pub(crate) async fn flush(&self) {}

        pub(crate) async fn stop(self) {}
    }
}
