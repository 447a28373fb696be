//! Bad input is a clear error that names the thing, and reaches no backend.

use axum::{body::Body, http::Request};
use hybrid_cloud::storefront::StorefrontLimits;
use serde_json::json;

use super::rig::{app, builder, call, classify, noon, orders, post};

/// Sends `body` to be classified and checks status, code and field; answers with the message.
async fn refused(body: impl Into<Body>, status: u16, code: &str, param: Option<&str>) -> String {
    let backend = orders();
    let limits = StorefrontLimits { body_bytes: 4096, inputs: 3, ..StorefrontLimits::default() };
    let router = builder(&noon()).classify("messages", backend.clone()).limits(limits).build().unwrap().router();
    let answer = call(&router, post("/v1/classify", body)).await;
    assert_eq!((answer.status, answer.error("code")), (status, code), "{answer:?}");
    assert_eq!(answer.body["error"]["param"].as_str(), param, "{answer:?}");
    assert_eq!(answer.body.as_object().unwrap().len(), 1);
    assert!(backend.asked().is_empty());
    answer.error("message").to_owned()
}

#[tokio::test]
async fn text_that_is_not_json_is_refused_with_line_and_column() {
    for body in [
        "",
        " ",
        "{",
        r#"{"input":"a""#,
        r#"{"input":"a"} x"#,
        r#"{"input":'a'}"#,
        r#"{"input":"\ud800"}"#,
        "\u{feff}{}",
    ] {
        let message = refused(body, 400, "invalid_json", None).await;
        assert!(message.contains("line 1 column"), "{body}: {message}");
    }
}

#[tokio::test]
async fn json_that_does_not_fit_is_refused_with_its_field() {
    let list = refused(r#"[null,"a",null]"#, 400, "invalid_body", None).await;
    assert!(list.contains("must be a JSON object"), "{list}");
    let missing = refused("{}", 400, "invalid_body", None).await;
    assert!(missing.contains("`input`"), "{missing}");
    let misspelt = refused(r#"{"input":"a","topk":3}"#, 400, "invalid_body", Some("topk")).await;
    assert!(misspelt.contains("`topk`") && misspelt.contains("`top_k`"), "{misspelt}");
    let number = refused(r#"{"input":["a",7]}"#, 400, "invalid_body", Some("input[1]")).await;
    assert!(number.contains("expected a string"), "{number}");
    let nothing = refused(r#"{"input":null}"#, 400, "invalid_body", Some("input")).await;
    assert!(nothing.contains("a text or a list of texts"), "{nothing}");
    let twice = refused(r#"{"input":"a","input":"b"}"#, 400, "invalid_body", None).await;
    assert!(twice.contains("duplicate field `input`"), "{twice}");
    refused(r#"{"input":"a","top_k":-1}"#, 400, "invalid_body", Some("top_k")).await;
}

#[tokio::test]
async fn an_empty_input_is_refused_by_its_place() {
    assert_eq!(refused(r#"{"input":""}"#, 400, "invalid_request", Some("input")).await, "input must not be blank");
    assert_eq!(
        refused(r#"{"input":["a"," \n"]}"#, 400, "invalid_request", Some("input[1]")).await,
        "input[1] must not be blank"
    );
    assert_eq!(
        refused(r#"{"input":[]}"#, 400, "invalid_request", Some("input")).await,
        "input must hold at least one text"
    );
    refused(r#"{"input":"a","top_k":0}"#, 400, "invalid_request", Some("top_k")).await;
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_are_refused_with_their_place() {
    let message = refused(b"{\"input\":\"\xff\"}".to_vec(), 400, "invalid_utf8", None).await;
    assert!(message.contains("byte 10"), "{message}");
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_with_limit_and_value() {
    let many = refused(r#"{"input":["a","b","c","d"]}"#, 413, "too_large", Some("input")).await;
    assert!(many.contains("3 items and has 4"), "{many}");
    let body = json!({ "input": "x".repeat(5000) }).to_string();
    let long = refused(body.clone(), 413, "body_too_large", None).await;
    assert!(long.contains("4096 bytes"), "{long}");
    let chunks: Vec<_> = body.as_bytes().chunks(100).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    let streamed = refused(Body::from_stream(futures_util::stream::iter(chunks)), 413, "body_too_large", None).await;
    assert!(streamed.contains("4096 bytes and has more"), "{streamed}");
    let fits = json!({ "input": "x".repeat(4096 - 12) }).to_string();
    assert_eq!(fits.len(), 4096);
    let limits = StorefrontLimits { body_bytes: 4096, ..StorefrontLimits::default() };
    let router = builder(&noon()).classify("messages", orders()).limits(limits).build().unwrap().router();
    assert_eq!(call(&router, post("/v1/classify", fits)).await.status, 200);
}

#[tokio::test]
async fn an_error_does_not_send_a_large_request_back() {
    let router = app(orders());
    for body in [json!({ "input": "a", "model": "m".repeat(100_000) }), json!({ "input": "a", "m".repeat(100_000): 1 })]
    {
        let answer = call(&router, classify(&body)).await;
        assert!(answer.status >= 400 && answer.body.to_string().len() < 1500, "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_of_another_type_or_coding_is_refused() {
    let router = app(orders());
    let send = |name: &'static str, value: &'static str| {
        let mut request = classify(&json!({ "input": "a" }));
        match value {
            "" => drop(request.headers_mut().remove(name)),
            value => drop(request.headers_mut().insert(name, value.parse().unwrap())),
        }
        call(&router, request)
    };
    for wrong in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"] {
        let answer = send("content-type", wrong).await;
        assert_eq!((answer.status, answer.error("code")), (415, "unsupported_media_type"), "{wrong}");
    }
    for right in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.shop+json"] {
        assert_eq!(send("content-type", right).await.status, 200, "{right}");
    }
    assert_eq!(send("content-encoding", "gzip").await.error("code"), "unsupported_encoding");
    assert_eq!(send("content-encoding", "identity").await.status, 200);
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_have_the_same_shape() {
    let router = app(orders());
    let send = |method: &'static str, path: &'static str| {
        call(&router, Request::builder().method(method).uri(path).body(Body::empty()).unwrap())
    };
    for (method, path) in
        [("GET", "/"), ("POST", "/v1/chat/completions"), ("GET", "/v1/../etc/passwd"), ("BREW", "/pot")]
    {
        let answer = send(method, path).await;
        assert_eq!(
            (answer.status, answer.error("code"), answer.error("type")),
            (404, "not_found", "invalid_request_error"),
            "{path}"
        );
    }
    for (method, path, allow) in
        [("GET", "/v1/classify", "POST"), ("DELETE", "/v1/models", "GET,HEAD"), ("BREW", "/readyz", "GET,HEAD")]
    {
        let answer = send(method, path).await;
        assert_eq!((answer.status, answer.error("code")), (405, "method_not_allowed"), "{method} {path}");
        assert_eq!(answer.headers["allow"], allow);
        assert!(answer.error("message").contains(method));
    }
}
