//! Work that customers order.

use std::sync::Arc;

use axum::Router;
use hybrid_cloud::storefront::Principal;
use hybrid_core::{DataPolicy, ErrorKind, JobEnd, JobFailure, JobKind};
use serde_json::json;

use super::rig::{Desk, NOON, Tokens, builder, call, from, get, noon, post, tenant};

fn shop(desk: &Arc<Desk>) -> Router {
    let tokens = Tokens::new([("a", Principal::new(tenant("a"), "anna")), ("b", Principal::new(tenant("b"), "bert"))]);
    let kinds = ["enrich", "summarise"].map(|kind| JobKind::new(kind).unwrap());
    builder(&noon()).authenticator(tokens).jobs(desk.clone(), kinds).build().unwrap().router()
}

#[tokio::test]
async fn an_order_is_the_callers_and_carries_its_request_to_the_kitchen() {
    let desk = Arc::<Desk>::default();
    let router = shop(&desk);
    let order = json!({ "kind": "enrich", "payload": { "rows": 3 }, "idempotency_key": "row-7" });
    let mut request = from("a", post("/v1/jobs", order.to_string()));
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.headers_mut().insert("traceparent", trace.parse().unwrap());
    let answer = call(&router, request).await;
    assert_eq!((answer.status, answer.body["status"].as_str()), (202, Some("queued")));

    let order = desk.orders().remove(0);
    assert_eq!((order.tenant, order.kind.as_str(), order.payload), (tenant("a"), "enrich", json!({ "rows": 3 })));
    assert_eq!(order.key.unwrap().as_str(), "row-7");
    assert_eq!((order.request.unwrap().as_str(), order.trace.as_deref()), ("r-1", Some(trace)));

    let path = format!("/v1/jobs/{}", answer.body["id"].as_str().unwrap());
    let answer = call(&router, from("a", get(&path))).await;
    assert_eq!(
        (answer.status, &answer.body["status"], &answer.body["created_at"]),
        (200, &json!("queued"), &json!(1_772_366_400))
    );
    assert_eq!(answer.body["request_id"], "r-1");
    assert!(answer.body.get("output").is_none() && answer.body.get("finished_at").is_none());
}

#[tokio::test]
async fn an_order_is_held_to_the_policies_of_the_storefront_and_of_who_orders() {
    let regions = |names: &[&str]| DataPolicy::Regions(names.iter().map(|&name| name.to_owned()).collect());
    let (one, two) = (regions(&["eu-west-1"]), regions(&["eu-west-1", "us-east-1"]));
    for (of_all, own, expected) in [
        (DataPolicy::Anywhere, DataPolicy::Anywhere, DataPolicy::Anywhere),
        (DataPolicy::Anywhere, DataPolicy::Site, DataPolicy::Site),
        (two.clone(), DataPolicy::Anywhere, two),
        (one.clone(), regions(&["eu-west-1", "eu-north-1"]), one),
    ] {
        let desk = Arc::<Desk>::default();
        let somebody = Principal { policy: own, ..Principal::new(tenant("a"), "anna") };
        let shop = builder(&noon()).policy(of_all).authenticator(Tokens::new([("a", somebody)]));
        let router = shop.jobs(desk.clone(), [JobKind::new("enrich").unwrap()]).build().unwrap().router();
        let order = post("/v1/jobs", json!({ "kind": "enrich" }).to_string());
        assert_eq!(call(&router, from("a", order)).await.status, 202);
        assert_eq!(desk.orders().remove(0).policy, expected);
    }
}

#[tokio::test]
async fn anothers_job_is_as_unknown_as_one_that_does_not_exist() {
    let desk = Arc::<Desk>::default();
    let router = shop(&desk);
    let ordered = call(&router, from("a", post("/v1/jobs", json!({ "kind": "enrich" }).to_string()))).await;
    let known = ordered.body["id"].as_str().unwrap();
    let unknown = "01890000-0000-7000-8000-00000000ffff";
    for id in [known, unknown, "nonsense", "..%2F..%2Ft%2Fa", &known.to_uppercase()] {
        let answer = call(&router, from("b", get(&format!("/v1/jobs/{id}")))).await;
        assert_eq!((answer.status, answer.error("code")), (404, "job_not_found"), "{id}");
    }
}

#[tokio::test]
async fn only_kinds_on_offer_can_be_ordered() {
    let desk = Arc::<Desk>::default();
    let router = shop(&desk);
    let answer = call(&router, from("a", post("/v1/jobs", json!({ "kind": "train" }).to_string()))).await;
    assert_eq!((answer.status, answer.error("code"), answer.error("param")), (400, "unknown_kind", "kind"));
    assert!(answer.error("message").contains("enrich, summarise"), "{answer:?}");
    let answer =
        call(&router, from("a", post("/v1/jobs", json!({ "kind": "enrich", "priority": 1 }).to_string()))).await;
    assert_eq!(answer.status, 400);
    assert!(desk.orders().is_empty());
}

#[tokio::test]
async fn a_job_that_stands_still_is_told_to() {
    let desk = Arc::<Desk>::default();
    let router = shop(&desk);
    *desk.stalled.lock().unwrap() = Some(NOON.parse().unwrap());
    let answer = call(&router, from("a", get(&format!("/v1/jobs/{}", Desk::ALWAYS)))).await.body;
    assert_eq!((&answer["status"], answer.get("finished_at")), (&json!("stalled"), None));
}

#[tokio::test]
async fn how_a_job_ended_is_told_without_the_kitchens_secrets() {
    let desk = Arc::<Desk>::default();
    let router = shop(&desk);
    let finished = NOON.parse().unwrap();
    let end = async |outcome| {
        *desk.end.lock().unwrap() = Some(JobEnd { finished, outcome });
        call(&router, from("a", get(&format!("/v1/jobs/{}", Desk::ALWAYS)))).await.body
    };
    let answer = end(Ok(json!({ "rows": 3 }))).await;
    assert_eq!((&answer["status"], &answer["output"]), (&json!("succeeded"), &json!({ "rows": 3 })));
    assert_eq!(answer["finished_at"], 1_772_366_400);

    let failure = |kind, message: &str| Err(JobFailure { kind, message: message.to_owned() });
    let answer = end(failure(ErrorKind::InvalidInput, "read rows: not JSON (line: 3)")).await;
    assert_eq!(answer["error"], json!({ "code": "invalid_request", "message": "read rows: not JSON (line: 3)" }));
    let answer = end(failure(ErrorKind::Corrupt, "/Users/anna/models/x is damaged")).await;
    assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("failed"), &json!("internal_error")));
    assert!(!answer.to_string().contains("anna"), "{answer}");
}
