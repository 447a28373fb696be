//! What must not leave does not leave: seen from the customer's side and from the wire.

use std::{net::TcpListener, pin::pin, sync::Arc};

use axum::{Router, body::Body, http::Request};
use futures_util::future::{Either, select};
use hybrid_cloud::{
    openai::{OpenAiCompatible, OpenAiConfig},
    storefront::Principal,
};
use hybrid_core::{DataPolicy, Locality};
use serde_json::{Value, json};

use super::{
    media::form,
    rig::{Tokens, builder, call, from, noon, post, soon, tenant},
};

/// A region's address, where somebody listens and nobody has called yet.
struct Region(TcpListener);

impl Region {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    fn was_called(&self) -> bool {
        self.0.accept().is_ok()
    }
}

fn shop(region: &Region, policy: DataPolicy) -> Router {
    let somebody = |policy| Principal { policy, ..Principal::new(tenant("a"), "anna") };
    let tokens = Tokens::new([
        ("device", somebody(DataPolicy::Device)),
        ("site", somebody(DataPolicy::Site)),
        ("elsewhere", somebody(DataPolicy::Regions(vec!["us-east-1".to_owned()]))),
        ("anywhere", somebody(DataPolicy::Anywhere)),
    ]);
    let place = Locality::Region("eu-central-1".to_owned());
    let config = OpenAiConfig::new("far", format!("{}/v1", region.url()), "loaf-1", place);
    let far = Arc::new(OpenAiCompatible::new(config).unwrap());
    let shop = builder(&noon()).authenticator(tokens).policy(policy);
    shop.chat("c", far.clone()).embed("e", far.clone()).transcribe("t", far).build().unwrap().router()
}

/// One request of each route and each manner that reaches a model.
fn requests() -> Vec<Request<Body>> {
    let chat =
        |stream: bool| json!({ "model": "c", "messages": [{ "role": "user", "content": "SECRET" }], "stream": stream });
    let respond = |stream: bool| json!({ "model": "c", "input": "SECRET", "stream": stream });
    let json = |path: &str, body: Value| post(path, body.to_string());
    vec![
        json("/v1/chat/completions", chat(false)),
        json("/v1/chat/completions", chat(true)),
        json("/v1/responses", respond(false)),
        json("/v1/responses", respond(true)),
        json("/v1/embeddings", json!({ "model": "e", "input": "SECRET" })),
        form("/v1/audio/transcriptions", &[("model", "t")], Some(("a.wav", b"RIFF"))),
    ]
}

#[tokio::test]
async fn data_that_must_stay_is_refused_before_anybody_is_called_whole_or_streamed() {
    let region = Region::open();
    let shops = [
        (shop(&region, DataPolicy::Anywhere), ["device", "site", "elsewhere"]),
        // The storefront's own policy holds whoever asks.
        (shop(&region, DataPolicy::Site), ["anywhere", "elsewhere", "site"]),
    ];
    for (router, tokens) in &shops {
        for token in tokens {
            for request in requests() {
                let path = request.uri().path().to_owned();
                let answer = soon(call(router, from(token, request))).await;
                let refused = (answer.status, answer.error("code"), answer.error("type"));
                assert_eq!(refused, (403, "policy_denied", "permission_error"), "{token} {path}: {answer:?}");
                // A refusal, not a stream that begins and then fails.
                assert_eq!(answer.headers["content-type"], "application/json", "{token} {path}");
            }
        }
    }
    assert!(!region.was_called());

    // The same requests do go there where that is allowed: nobody answers, but somebody called.
    let router = &shops[0].0;
    for request in requests() {
        let path = request.uri().path().to_owned();
        let asking = call(router, from("anywhere", request));
        let called = async {
            while !region.was_called() {
                tokio::task::yield_now().await;
            }
        };
        if let Either::Left((answer, _)) = soon(select(pin!(asking), pin!(called))).await {
            panic!("{path} was answered without a call: {answer:?}");
        }
    }
}

#[cfg(feature = "bedrock")]
#[tokio::test]
async fn data_that_must_stay_in_one_region_does_not_reach_a_provider_in_another() {
    use hybrid_cloud::testkit::bedrock::BedrockServer;

    use crate::bedrock::rig;

    let server = BedrockServer::start().unwrap();
    let somebody = |policy| Principal { policy, ..Principal::new(tenant("a"), "anna") };
    let tokens = Tokens::new([
        ("site", somebody(DataPolicy::Site)),
        ("europe", somebody(DataPolicy::Regions(vec!["eu-central-1".to_owned()]))),
        ("here", somebody(DataPolicy::Regions(vec![rig::REGION.to_owned()]))),
    ]);
    let shop = builder(&noon()).authenticator(tokens).chat("c", Arc::new(rig::chat_once(&server, rig::NOVA)));
    let router = shop.build().unwrap().router();
    for token in ["site", "europe"] {
        for stream in [false, true] {
            let ask = json!({ "model": "c", "messages": [{ "role": "user", "content": "SECRET" }], "stream": stream });
            let answer = soon(call(&router, from(token, post("/v1/chat/completions", ask.to_string())))).await;
            assert_eq!((answer.status, answer.error("code")), (403, "policy_denied"), "{token} {stream}");
        }
    }
    assert_eq!(server.calls(), 0);
    let ask = json!({ "model": "c", "messages": [{ "role": "user", "content": "hello" }] });
    let answer = soon(call(&router, from("here", post("/v1/chat/completions", ask.to_string())))).await;
    assert_ne!(answer.status, 403, "{answer:?}");
    assert_eq!(server.calls(), 1);
}
