//! What every request passes first and every answer last.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{
    FutureExt,
    future::{Either, select},
};
use hybrid_core::{Error, Monotonic, RequestId};
use tracing::{Instrument, Span, field::Empty};

use super::{
    error::ApiError,
    front::{Front, Identified, Refused},
    routes::Access,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the edge knows of a request; in the request's extensions.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) request: RequestId,
    pub(super) deadline: Monotonic,
    pub(super) trace: Option<String>,
}

/// Gives the request its id, span and deadline; finds out whose it is, without which only the probes can be reached; writes errors, catches
/// panics. Whatever waits holds itself to the deadline: the [body](super::body), and the call after it.
pub(super) async fn edge(
    State((front, access)): State<(Arc<Front>, Access)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = front.clock().monotonic();
    let edge = Edge {
        request: request_id(request.headers()).unwrap_or_else(|| RequestId::next(front.ids())),
        deadline: started.plus(front.limits().request_timeout),
        trace: trace_parent(request.headers()),
    };
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(|path| path.as_str());
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        route = route.unwrap_or("none"),
        request_id = %edge.request,
        trace = edge.trace,
        tenant = Empty,
        status = Empty,
        latency_ms = Empty,
        code = Empty,
        quota = Empty,
    );
    let probe = matches!(access, Access::Open);
    request.extensions_mut().insert(edge.clone());
    async {
        let handled = async {
            match enter(&front, access, &edge, &mut request).await {
                Ok(()) => next.run(request).await,
                Err(refused) => refused.into_response(),
            }
        };
        let carrier = AssertUnwindSafe(handled).catch_unwind().await;
        let carrier = carrier.unwrap_or_else(|panic| ApiError::panicked(&*panic).into_response());
        let response = finish(&front, &edge.request, carrier);
        let latency_ms = front.clock().monotonic().since(started).as_secs_f64() * 1e3;
        log(response.status(), latency_ms, probe);
        response
    }
    .instrument(span)
    .await
}

/// Puts into the request who sends it, if they may come here.
async fn enter(front: &Front, access: Access, edge: &Edge, request: &mut Request) -> Result<(), Refused> {
    let scope = match access {
        Access::Open => return Ok(()),
        Access::Scope(scope) => Some(scope),
        Access::Nowhere => None,
    };
    let identified = identify(front, edge, request.headers(), request.uri().query()).await?;
    let principal = identified.principal();
    Span::current().record("tenant", tracing::field::display(&principal.tenant));
    front.count(&identified)?;
    // Where no scope was asked for, nobody gets what leads to a model or a sink.
    let Some(scope) = scope else { return Ok(()) };
    if !principal.scopes.contains(&scope) {
        return Err(Box::new(ApiError::missing_scope(scope)));
    }
    request.extensions_mut().insert(identified);
    Ok(())
}

async fn identify(front: &Front, edge: &Edge, headers: &HeaderMap, query: Option<&str>) -> Result<Identified, Refused> {
    let too_late = front.clock().sleep(edge.deadline.since(front.clock().monotonic()));
    match select(pin!(front.identify(headers, query)), too_late).await {
        Either::Left((identified, _)) => identified,
        Either::Right(_) => Err(Error::timeout("authenticate", "nobody said in time who this is").into()),
    }
}

fn finish(front: &Front, request: &RequestId, mut carrier: Response) -> Response {
    let mut response = match carrier.extensions_mut().remove::<ApiError>() {
        Some(error) => {
            let code = error.code();
            Span::current().record("code", code).record("quota", error.quota());
            match error.told(front.traces_content()) {
                Some(detail) if error.status.is_server_error() => tracing::error!(code, detail, "request failed"),
                // What was wrong with a request may quote what the customer wrote.
                _ => tracing::debug!(code, "request refused"),
            }
            error.write(request, carrier)
        }
        None => carrier,
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(request.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn log(status: StatusCode, latency_ms: f64, probe: bool) {
    let status = status.as_u16();
    Span::current().record("status", status).record("latency_ms", latency_ms);
    match status {
        // Probes come every few seconds, and "not ready" is an answer.
        _ if probe => tracing::debug!(status, latency_ms, "probe answered"),
        500.. => tracing::error!(status, latency_ms, "request answered"),
        _ => tracing::info!(status, latency_ms, "request answered"),
    }
}

/// The client's id, if it sent exactly one and it is valid: it goes into logs, keys and answers as it is.
fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    only(headers, &REQUEST_ID)?.parse().ok()
}

/// The client's W3C trace context, version 00, if it is well formed.
fn trace_parent(headers: &HeaderMap) -> Option<String> {
    let value = only(headers, &HeaderName::from_static("traceparent"))?;
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let id = |part: &str, digits: usize| hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    let mut parts = value.split('-');
    let whole = parts.next() == Some("00")
        && parts.next().is_some_and(|trace| id(trace, 32))
        && parts.next().is_some_and(|parent| id(parent, 16))
        && parts.next().is_some_and(|flags| hex(flags, 2))
        && parts.next().is_none();
    whole.then(|| value.to_owned())
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

pub(super) async fn not_found() -> ApiError {
    ApiError::not_found()
}

pub(super) async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::method_not_allowed(method.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_that_is_not_well_formed_is_not_passed_on() {
        let trace = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            trace_parent(&headers)
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace(good).as_deref(), Some(good));
        for bad in [
            "",
            "00",
            &format!("{good}-00"),
            &good.to_uppercase(),
            &good.replacen("00", "ff", 1),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("b7ad", "b7a"),
        ] {
            assert_eq!(trace(bad), None, "{bad}");
        }
    }
}
