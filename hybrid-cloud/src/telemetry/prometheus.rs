use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hybrid_core::{Error, Result};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::TcpListener;

/// The metrics in Prometheus' text format, version 0.0.4.
///
/// They name tenants and models: serve them where customers cannot come, on a loopback or management address. The storefront's own router never has
/// them.
#[derive(Clone, Debug)]
pub struct PrometheusMetrics(pub(super) Registry);

impl PrometheusMetrics {
    /// The metrics as they stand.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if a series cannot be written.
    pub fn text(&self) -> Result<String> {
        let encoded = TextEncoder::new().encode_to_string(&self.0.gather());
        encoded.map_err(|error| Error::internal("write metrics", "a series cannot be written").with_source(error))
    }

    /// `GET /metrics` alone, without authentication.
    pub fn router(&self) -> Router {
        Router::new().route("/metrics", get(scrape)).with_state(self.clone())
    }

    /// Serves [`router`](Self::router) on `listener` until `shutdown` ends.
    ///
    /// # Errors
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if the listener fails.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let served = axum::serve(listener, self.router()).with_graceful_shutdown(shutdown).await;
        served.map_err(|error| Error::unavailable("serve metrics", "the listener failed").with_source(error))
    }
}

async fn scrape(State(metrics): State<PrometheusMetrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
