//! Who may come in, and that nobody sees anything of anybody else.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request};
use hybrid_cloud::storefront::{Authenticator, Offer, Principal, Route, Scope, Storefront};
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, DataPolicy, Error, Event, Files, InferenceBackend, JobKind, Reply, Result,
    memory::{MemoryStore, ScriptedBackend},
    task::{Classify, ClassifyRequest},
};
use serde_json::{Value, json};

use super::rig::{
    Answer, Desk, Links, Sink, Tokens, asleep, builder, call, classify, dataset, from, get, kept, noon, orders, post,
    tenant,
};

fn tokens() -> Arc<Tokens> {
    Tokens::new([
        ("a", Principal::new(tenant("a"), "anna").with_scopes(Scope::ALL)),
        ("b", Principal::new(tenant("b"), "bert").with_scopes(Scope::ALL)),
        ("reader", Principal::new(tenant("a"), "rita").with_scopes([Scope::ModelsRead])),
    ])
}

/// Everything on offer, some of it to one tenant alone.
fn shop(sink: &Arc<Sink>) -> Storefront {
    kept(builder(&noon()), None)
        .authenticator(tokens())
        .classify("messages", orders())
        .classify(Offer::new("of-a").only_for([tenant("a")]), orders())
        .classify(Offer::new("of-b").only_for([tenant("b")]), orders())
        .judgments(sink.clone(), dataset())
        .jobs(Arc::new(Desk::default()), [JobKind::new("enrich").unwrap()])
        .files(Files::new(Arc::new(MemoryStore::default()), Arc::new(noon())).with_links(Arc::new(Links)))
        .build()
        .unwrap()
}

/// The id of a file that nobody has; `files.rs` asks for those that somebody has.
const NO_FILE: &str = "file-01890000-0000-7000-8000-000000000000";

/// A request that `route` answers with a success, but for a file that nobody has, about `model` wherever a model can be named. A route that is not here fails the tests that
/// walk all of them.
fn request(route: &Route, model: &str) -> Request<Body> {
    match (route.method.as_str(), route.path) {
        ("GET", "/healthz" | "/readyz" | "/v1/models" | "/openapi.json") => get(route.path),
        ("GET", "/v1/models/{*id}") => get(&format!("/v1/models/{model}")),
        ("POST", "/v1/classify") => classify(&json!({ "model": model, "input": "two loaves" })),
        ("POST", "/v1/judgments") => {
            post(route.path, json!({ "model": model, "input": "two loaves", "label": "order" }).to_string())
        }
        ("POST", "/v1/chat/completions") => {
            let messages = json!([{ "role": "user", "content": "hi" }]);
            post(route.path, json!({ "model": model, "messages": messages }).to_string())
        }
        ("POST", "/v1/responses" | "/v1/embeddings") => {
            post(route.path, json!({ "model": model, "input": "two loaves" }).to_string())
        }
        ("POST", "/v1/images/generations") => {
            post(route.path, json!({ "model": model, "prompt": "two loaves" }).to_string())
        }
        ("POST", "/v1/audio/transcriptions" | "/v1/audio/translations") => {
            super::media::form(route.path, &[("model", model)], Some(("a.wav", b"RIFF")))
        }
        ("POST", "/v1/jobs") => post(route.path, json!({ "kind": "enrich" }).to_string()),
        ("GET", "/v1/jobs/{id}") => get(&format!("/v1/jobs/{}", Desk::ALWAYS)),
        ("POST", "/v1/files") => super::media::form(route.path, &[("purpose", "batch")], Some(("a", b"two loaves"))),
        ("GET", "/v1/files") => get(route.path),
        ("POST", "/v1/files/links") => {
            post(route.path, json!({ "filename": "a", "purpose": "batch", "parts": [] }).to_string())
        }
        ("POST", "/v1/files/{id}/complete") => {
            let parts = json!([{ "sha256": "0".repeat(64), "bytes": 1 }]);
            let body = json!({ "filename": "a", "purpose": "batch", "parts": parts });
            post(&route.path.replace("{id}", NO_FILE), body.to_string())
        }
        (method, "/v1/files/{id}" | "/v1/files/{id}/content" | "/v1/files/{id}/links") => {
            let path = route.path.replace("{id}", NO_FILE);
            Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
        }
        ("POST", "/v1/vectors") => {
            post(route.path, json!({ "documents": [{ "id": "1", "embedding": [1, 0] }] }).to_string())
        }
        ("POST", "/v1/vectors/query") => post(route.path, json!({ "embedding": [1, 0] }).to_string()),
        ("POST", "/v1/vectors/get" | "/v1/vectors/delete") => post(route.path, json!({ "ids": ["1"] }).to_string()),
        ("POST", "/v1/records/{collection}") => {
            post("/v1/records/reviews", json!({ "key": "1", "value": "open" }).to_string())
        }
        (method, "/v1/vectors" | "/v1/records" | "/v1/records/{collection}" | "/v1/records/{collection}/{*key}") => {
            let path = route.path.replace("{collection}", "reviews").replace("{*key}", "1");
            Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
        }
        (method, path) => panic!("{method} {path} is not proved to keep tenants apart: say here how to ask it"),
    }
}

/// Whether a request to the route can name a model.
fn names_a_model(route: &Route) -> bool {
    let nameless = ["/healthz", "/readyz", "/v1/models", "/openapi.json"];
    let without = ["/v1/jobs", "/v1/files", "/v1/vectors", "/v1/records"];
    !nameless.contains(&route.path) && !without.iter().any(|prefix| route.path.starts_with(prefix))
}

/// The same offers of each of the tasks that speak the OpenAI API.
fn shops() -> Vec<Storefront> {
    let (a, b) = (|| Offer::new("of-a").only_for([tenant("a")]), || Offer::new("of-b").only_for([tenant("b")]));
    let new = || builder(&noon()).authenticator(tokens());
    let (chat, embed) = (super::media::says("a"), super::media::vectors());
    let (ears, painter) = (super::media::ears(), super::media::painter());
    let shops = [
        new().chat("messages", chat.clone()).chat(a(), chat.clone()).chat(b(), chat),
        new().embed("messages", embed.clone()).embed(a(), embed.clone()).embed(b(), embed),
        new().transcribe("messages", ears.clone()).transcribe(a(), ears.clone()).transcribe(b(), ears),
        new().images("messages", painter.clone()).images(a(), painter.clone()).images(b(), painter),
    ];
    shops.into_iter().map(|shop| shop.build().unwrap()).collect()
}

/// Status, headers and body, with what may differ between any two requests taken out.
fn seen(answer: &Answer, model: &str) -> (u16, Vec<(String, String)>, Value) {
    let id = answer.headers["x-request-id"].to_str().unwrap();
    let plain = |text: &str| text.replace(id, "ID").replace(model, "MODEL");
    let headers = answer.headers.iter().map(|(name, value)| (name.to_string(), plain(value.to_str().unwrap())));
    (answer.status, headers.collect(), serde_json::from_str(&plain(&answer.body.to_string())).unwrap())
}

#[tokio::test]
async fn only_the_probes_are_open_to_strangers() {
    for storefront in shops().into_iter().chain([shop(&Arc::default())]) {
        let router = storefront.router();
        let mut open = BTreeSet::new();
        for route in storefront.routes() {
            let answer = call(&router, request(&route, "messages")).await;
            match route.scope {
                None => assert!(open.insert(route.path) && answer.status == 200, "{route:?} {answer:?}"),
                Some(_) => {
                    assert_eq!((answer.status, answer.error("code")), (401, "missing_credentials"), "{route:?}");
                    assert_eq!(answer.headers["www-authenticate"], "Bearer");
                }
            }
        }
        assert_eq!(open, BTreeSet::from(["/healthz", "/readyz"]));
    }
    let router = shop(&Arc::default()).router();
    // Strangers do not learn which routes and models there are.
    for request in [get("/v1/nothing"), get("/v1/classify"), get("/v1/models/none"), get("/")] {
        assert_eq!(call(&router, request).await.status, 401);
    }
}

#[tokio::test]
async fn another_tenants_model_is_exactly_as_unknown_as_one_that_does_not_exist() {
    let sink = Arc::<Sink>::default();
    for storefront in shops().into_iter().chain([shop(&sink)]) {
        let router = storefront.router();
        for route in storefront.routes().iter().filter(|route| names_a_model(route)) {
            for (who, own, foreign) in [("a", "of-a", "of-b"), ("b", "of-b", "of-a")] {
                let mine = call(&router, from(who, request(route, own))).await;
                assert!((200..300).contains(&mine.status), "{route:?} {mine:?}");
                let theirs = call(&router, from(who, request(route, foreign))).await;
                let nobodys = call(&router, from(who, request(route, "of-c"))).await;
                assert_eq!((theirs.status, theirs.error("code")), (404, "model_not_found"), "{route:?}");
                assert_eq!(seen(&theirs, foreign), seen(&nobodys, "of-c"), "{route:?}");
            }
        }
    }
    let mine: BTreeSet<_> = sink.places().into_iter().collect();
    assert_eq!(mine, BTreeSet::from([(tenant("a"), dataset()), (tenant("b"), dataset())]));
}

#[tokio::test]
async fn a_list_shows_what_its_caller_may_ask() {
    let router = shop(&Arc::default()).router();
    let list = async |who: &str| {
        let answer = call(&router, from(who, get("/v1/models"))).await;
        let text = answer.body.to_string();
        let ids: Vec<_> = answer.body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, text)
    };
    let (ids, text) = list("a").await;
    assert_eq!(ids, ["messages", "of-a"]);
    assert!(!text.contains("of-b") && !text.contains("\"b\""), "{text}");
    assert_eq!(list("b").await.0, ["messages", "of-b"]);
}

#[tokio::test]
async fn one_name_may_be_another_model_for_another_tenant() {
    let answer = |label: &str| Arc::new(ScriptedBackend::<Classify>::new("s", [Ok(super::rig::labelled(label))]));
    let offer = |who: &str| Offer::new("messages").only_for([tenant(who)]);
    let builder = builder(&noon()).authenticator(tokens());
    let builder = builder.classify(offer("a"), answer("order")).classify(offer("b"), answer("hours"));
    let router = builder.build().unwrap().router();
    for (who, label) in [("b", "hours"), ("a", "order")] {
        // No model is named: the first that the caller may see answers.
        let answer = call(&router, from(who, classify(&json!({ "input": "x" })))).await;
        assert_eq!(answer.body["results"][0]["label"], label, "{answer:?}");
    }
}

#[tokio::test]
async fn a_scope_that_is_missing_is_named() {
    for storefront in shops().into_iter().chain([shop(&Arc::default())]) {
        let router = storefront.router();
        for route in storefront.routes() {
            let answer = call(&router, from("reader", request(&route, "messages"))).await;
            match route.scope {
                None | Some(Scope::ModelsRead) => assert_eq!(answer.status, 200, "{route:?}"),
                Some(scope) => {
                    assert_eq!((answer.status, answer.error("code")), (403, "missing_scope"), "{route:?}");
                    assert!(answer.error("message").contains(scope.as_str()), "{answer:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_router_that_is_nested_asks_for_what_it_asks_for_anywhere() {
    let nested = |mut request: Request<Body>| {
        *request.uri_mut() = format!("/api{}", request.uri()).parse().unwrap();
        request
    };
    let storefront = shop(&Arc::default());
    let (inner, erase) = (storefront.router(), || Request::delete("/v1/records").body(Body::empty()).unwrap());
    for router in [Router::new().nest("/api", inner.clone()), Router::new().nest_service("/api", inner)] {
        for route in storefront.routes() {
            let stranger = call(&router, nested(request(&route, "messages"))).await;
            assert_eq!(stranger.status, if route.scope.is_none() { 200 } else { 401 }, "{route:?}");
            let reader = call(&router, nested(from("reader", request(&route, "messages")))).await;
            let may = matches!(route.scope, None | Some(Scope::ModelsRead));
            assert_eq!(reader.status, if may { 200 } else { 403 }, "{route:?}");
        }
        assert_eq!(call(&router, nested(from("a", erase()))).await.status, 200);
        assert_eq!(call(&router, nested(get("/v1/nothing"))).await.status, 401);
        assert_eq!(call(&router, nested(from("a", get("/v1/nothing")))).await.error("code"), "not_found");
    }
}

#[tokio::test]
async fn credentials_that_do_not_hold_are_refused_and_say_no_more_than_the_message() {
    let router = shop(&Arc::default()).router();
    for (token, status, code, message) in [
        ("c", 401, "invalid_api_key", "the credentials are not known here"),
        ("revoked", 401, "invalid_api_key", "the key is revoked"),
    ] {
        let answer = call(&router, from(token, get("/v1/models"))).await;
        assert_eq!((answer.status, answer.error("code"), answer.error("message")), (status, code, message));
        assert!(!answer.body.to_string().contains("k-7"), "{answer:?}");
    }
    let away = call(&router, from("nobody-knows", get("/v1/models"))).await;
    assert_eq!(
        (away.status, away.error("code"), &away.headers["retry-after"]),
        (503, "unavailable", &"1".parse().unwrap())
    );
    assert!(!away.body.to_string().contains("10.0.0.7"), "{away:?}");
}

#[tokio::test]
async fn a_key_in_the_url_is_refused_even_beside_a_good_header() {
    let router = shop(&Arc::default()).router();
    for query in ["api_key=a", "access_token=a", "x=1&key=hk_abc"] {
        let answer = call(&router, from("a", get(&format!("/v1/models?{query}")))).await;
        assert_eq!((answer.status, answer.error("code")), (400, "credentials_in_url"), "{query}");
    }
}

#[derive(Debug)]
struct Never;

#[async_trait]
impl Authenticator for Never {
    async fn authenticate(&self, _: &str) -> Result<Option<Arc<Principal>>> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn an_authenticator_that_hangs_holds_a_request_no_longer_than_its_time() {
    let clock = noon();
    let router = builder(&clock).authenticator(Arc::new(Never)).classify("m", orders()).build().unwrap().router();
    let answer = tokio::spawn(async move { call(&router, from("a", get("/v1/models"))).await });
    asleep(&clock, 1).await;
    clock.advance(Duration::from_secs(30));
    assert_eq!(answer.await.unwrap().status, 504);
}

/// Remembers under which context it was asked.
#[derive(Debug)]
struct Witness(Arc<ScriptedBackend<Classify>>, Mutex<Vec<CallContext>>);

#[async_trait]
impl InferenceBackend<Classify> for Witness {
    fn profile(&self) -> Arc<BackendProfile> {
        self.0.profile()
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        self.1.lock().unwrap().push(cx.clone());
        self.0.infer(cx, request).await
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        self.0.stream(cx, request).await
    }
}

#[tokio::test]
async fn a_call_runs_under_its_callers_tenant_and_the_stricter_policy() {
    let witness = Arc::new(Witness(orders(), Mutex::default()));
    let at_home = Principal { policy: DataPolicy::Device, ..Principal::new(tenant("b"), "bert") };
    let builder = builder(&noon())
        .authenticator(Tokens::new([("a", Principal::new(tenant("a"), "anna")), ("b", at_home)]))
        .policy(DataPolicy::Site);
    let router: Router = builder.classify("m", witness.clone()).build().unwrap().router();
    for who in ["a", "b"] {
        assert_eq!(call(&router, from(who, classify(&json!({ "input": "x" })))).await.status, 200);
    }
    let calls: Vec<_> = witness.1.lock().unwrap().iter().map(|cx| (cx.tenant.to_string(), cx.policy.clone())).collect();
    assert_eq!(calls, [("a".to_owned(), DataPolicy::Site), ("b".to_owned(), DataPolicy::Device)]);
}

#[test]
fn a_tenant_of_the_builders_beside_an_authenticator_is_refused() {
    let builder = builder(&noon()).authenticator(tokens()).classify("m", orders()).tenant(tenant("a"));
    let error: Error = builder.build().unwrap_err();
    assert!(error.to_string().contains("leave the tenant out"), "{error}");
}
