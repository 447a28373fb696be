use std::{collections::HashMap, thread, time::Duration};

use hybrid_core::{Error, Result};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use reqwest::{Url, blocking::Client, redirect::Policy};

use super::START;

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a collector is.
pub(super) struct Otlp {
    pub(super) endpoint: String,
    pub(super) headers: HashMap<String, String>,
}

impl Otlp {
    pub(super) fn exporters(&self) -> Result<(SpanExporter, MetricExporter)> {
        let base = self.base()?;
        let client = client()?;
        let refused = |error| Error::invalid(START, "the exporter cannot be set up").with_source(error);
        let spans = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{base}/v1/traces"))
            .with_headers(self.headers.clone())
            .with_timeout(EXPORT_TIMEOUT);
        let metrics = MetricExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{base}/v1/metrics"))
            .with_headers(self.headers.clone())
            .with_timeout(EXPORT_TIMEOUT);
        Ok((spans.build().map_err(refused)?, metrics.build().map_err(refused)?))
    }

    fn base(&self) -> Result<String> {
        // Wherever in the text a key may stand, it is not repeated: no more is shown than scheme and host.
        let url = Url::parse(&self.endpoint).map_err(|error| {
            Error::invalid(START, "the collector must be a URL, such as http://127.0.0.1:4318").with_source(error)
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
            let shown = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
            return Err(
                Error::invalid(START, "the collector must be an http or https URL without a query").with("otlp", shown)
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::invalid(START, "the collector's URL must hold no credentials; set a header"));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

/// A client for the exporting threads. It brings a runtime of its own, which must not be made or dropped inside of another.
fn client() -> Result<Client> {
    let build = || Client::builder().timeout(EXPORT_TIMEOUT).redirect(Policy::none()).build();
    let failed = |error| Error::internal(START, "the HTTP client cannot be set up").with_source(error);
    match thread::spawn(build).join() {
        Ok(client) => client.map_err(failed),
        Err(_) => Err(Error::internal(START, "the HTTP client cannot be set up")),
    }
}
