//! Spans and metrics by the conventions' names.

use std::collections::BTreeMap;

use hybrid_cloud::{storefront::TenantQuota, testkit::Python, testkit::otlp::ReceivedPoint};
use serde_json::{Value, json};

use super::rig::{answered, ask, watch};
use crate::storefront::rig::{from, get};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn only(points: &[ReceivedPoint]) -> &ReceivedPoint {
    assert_eq!(points.len(), 1, "{points:#?}");
    &points[0]
}

#[tokio::test]
async fn a_streamed_call_is_told_by_the_conventions_names_within_the_callers_trace() {
    let watched = watch(|telemetry| telemetry);
    let router = watched.storefront().build().unwrap().router();
    let mut request = ask("two loaves", true);
    request.headers_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-00").parse().unwrap());
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    let (status, body) = answered(&router, request).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");

    let spans = watched.spans().await;
    let [call, request] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((request.name.as_str(), request.kind, &*request.service), ("POST /v1/chat/completions", 2, "shop"));
    assert_eq!(
        (request.trace.as_str(), request.parent.as_str()),
        (TRACE, "b7ad6b7169203331"),
        "though not sampled there"
    );
    assert_eq!(
        request.attributes,
        labels(&[
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("http.route", "/v1/chat/completions"),
            ("hybrid.request.id", "r-1"),
            ("hybrid.tenant", "bakery"),
        ])
    );
    assert_eq!((call.name.as_str(), call.kind, call.failed), ("chat loaf", 3, false));
    assert_eq!((&call.trace, &call.parent), (&request.trace, &request.id));
    assert_eq!(
        call.attributes,
        labels(&[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "aws.bedrock"),
            ("gen_ai.request.model", "loaf"),
            ("gen_ai.request.stream", "true"),
            ("gen_ai.response.model", "clerk-2"),
            ("gen_ai.response.time_to_first_chunk", "0.2"),
            ("gen_ai.usage.cache_read.input_tokens", "2"),
            ("gen_ai.usage.input_tokens", "9"),
            ("gen_ai.usage.output_tokens", "11"),
            ("hybrid.backend", "bedrock/eu.clerk"),
            ("hybrid.cost", "0.001"),
            ("hybrid.currency", "USD"),
            ("hybrid.request.id", "r-1"),
            ("hybrid.tenant", "bakery"),
        ])
    );
}

#[tokio::test]
async fn what_a_call_took_used_and_cost_is_measured_for_its_tenant() {
    let watched = watch(|telemetry| telemetry);
    let router = watched.storefront().build().unwrap().router();
    answered(&router, ask("two loaves", true)).await;

    let of_call = labels(&[
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "aws.bedrock"),
        ("gen_ai.request.model", "loaf"),
        ("gen_ai.response.model", "clerk-2"),
        ("hybrid.tenant", "bakery"),
    ]);
    for (metric, seconds) in [
        ("gen_ai.client.operation.duration", 1.2),
        ("gen_ai.server.time_to_first_token", 0.2),
        ("gen_ai.server.time_per_output_token", 0.1),
    ] {
        let points = watched.points(metric).await;
        let point = only(&points);
        assert_eq!((&point.attributes, point.count, point.unit.as_str()), (&of_call, 1, "s"), "{metric}");
        assert!((point.sum - seconds).abs() < 1e-9, "{metric}: {}", point.sum);
    }
    let mut tokens: Vec<_> = watched.points("gen_ai.client.token.usage").await;
    tokens.sort_by(|a, b| a.sum.total_cmp(&b.sum));
    let of_kind: Vec<_> = tokens.iter().map(|point| (&*point.attributes["gen_ai.token.type"], point.sum)).collect();
    assert_eq!(of_kind, [("input", 9.0), ("output", 11.0)]);
    let cost = watched.points("hybrid.call.cost").await;
    assert_eq!((only(&cost).sum, &*only(&cost).attributes["hybrid.currency"]), (0.001, "USD"));
    let requests = watched.points("http.server.request.duration").await;
    let of_request = labels(&[
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/v1/chat/completions"),
        ("hybrid.tenant", "bakery"),
    ]);
    assert_eq!((&only(&requests).attributes, only(&requests).sum), (&of_request, 1.2), "to the end of the stream");
    assert_eq!(only(&watched.points("http.server.active_requests").await).sum, 0.0);
}

#[tokio::test]
async fn customers_make_no_series_and_tenants_only_where_they_are_wanted() {
    let watched = watch(|telemetry| telemetry.without_tenants());
    let router = watched.storefront().build().unwrap().router();
    for i in 0..50 {
        let mut request = from("b", get(&format!("/v1/nowhere/{i}")));
        *request.method_mut() = format!("BREW{i}").parse().unwrap();
        assert_eq!(answered(&router, request).await.0, 404);
        let body = ask("x", false);
        assert_eq!(answered(&router, body).await.0, 200);
    }
    let mut series: Vec<_> = watched.points("http.server.request.duration").await;
    series.sort_by_key(|point| point.attributes["http.request.method"].clone());
    assert_eq!(
        series.iter().map(|point| (point.attributes.clone(), point.count)).collect::<Vec<_>>(),
        [
            (
                labels(&[
                    ("http.request.method", "POST"),
                    ("http.response.status_code", "200"),
                    ("http.route", "/v1/chat/completions")
                ]),
                50
            ),
            (labels(&[("http.request.method", "_OTHER"), ("http.response.status_code", "404")]), 50),
        ]
    );
}

#[tokio::test]
async fn a_metric_has_no_more_series_than_it_is_allowed() {
    let watched = watch(|telemetry| telemetry.series(2));
    let router = watched.storefront().build().unwrap().router();
    for request in [ask("x", false), from("b", get("/v1/models")), from("b", get("/openapi.json")), get("/healthz")] {
        answered(&router, request).await;
    }
    let series = watched.points("http.server.request.duration").await;
    let overflow = series.iter().find(|point| point.attributes.contains_key("otel.metric.overflow"));
    assert!(series.len() <= 3, "{series:#?}");
    assert!(overflow.is_some_and(|point| point.count >= 1), "{series:#?}");
    assert_eq!(series.iter().map(|point| point.count).sum::<u64>(), 4, "none is lost");
}

#[tokio::test]
async fn refusals_say_which_quota_and_errors_which_kind() {
    let watched = watch(|telemetry| telemetry);
    let quota = |_: &_| TenantQuota { requests_per_minute: Some(1), ..TenantQuota::default() };
    let router = watched.storefront().quotas(quota).build().unwrap().router();
    assert_eq!(answered(&router, ask("x", false)).await.0, 200);
    assert_eq!(answered(&router, ask("x", false)).await.0, 429);
    let refusals = watched.points("hybrid.quota.refusals").await;
    let expected = labels(&[("hybrid.quota", "requests per minute"), ("hybrid.tenant", "bakery")]);
    assert_eq!((&only(&refusals).attributes, only(&refusals).sum), (&expected, 1.0));
    let refused = watched.spans().await.pop().unwrap();
    assert_eq!(
        (refused.attributes["hybrid.code"].as_str(), refused.failed),
        ("rate_limit_exceeded", false),
        "the caller's affair"
    );
}

#[tokio::test]
async fn pythons_reader_of_the_protocol_reads_the_same() {
    let watched = watch(|telemetry| telemetry);
    let router = watched.storefront().build().unwrap().router();
    answered(&router, ask("two loaves", true)).await;
    let spans = watched.spans().await;
    let points = watched.collector.points().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (i, (path, body)) in watched.collector.exports().into_iter().enumerate() {
        let file = folder.path().join(format!("{i}{}", path.replace('/', "-")));
        std::fs::write(&file, body).unwrap();
        files.push(file.to_string_lossy().into_owned());
    }
    let run = tokio::task::spawn_blocking(move || {
        let python = Python::environment(include_str!("requirements-otlp.txt"))?;
        python.run(include_str!("read_otlp.py"), &files.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let printed = run.await.unwrap().unwrap_or_else(|error| panic!("{error}"));
    let read: Value = serde_json::from_str(&printed).unwrap();
    let ours: Vec<_> = spans.iter().map(|span| json!([span.name, span.trace, span.id, span.attributes])).collect();
    assert_eq!(read["spans"], json!(ours));
    let mut ours: Vec<_> =
        points.iter().map(|point| json!([point.metric, point.unit, point.count, point.sum])).collect();
    let mut theirs = read["points"].as_array().unwrap().clone();
    ours.sort_by_key(Value::to_string);
    theirs.sort_by_key(Value::to_string);
    assert_eq!(theirs, ours);
}
