use std::{sync::Arc, time::Duration};

use axum::Router;
use hybrid_core::{Digest, Error, ErrorKind, Judgment, ManualClock, ServedModel, TenantId, fold_judgments};
use serde_json::{Value, json};

use super::rig::{Answer, NOON, Sink, app, builder, call, dataset, noon, orders, post};

fn shop(clock: &ManualClock, sink: &Arc<Sink>) -> Router {
    let builder = builder(clock)
        .classify("messages", orders())
        .judgments(sink.clone(), dataset())
        .labels(["order", "allergy", "hours"]);
    builder.tenant(TenantId::new("bakery").unwrap()).build().unwrap().router()
}

async fn judge(router: &Router, body: &Value) -> Answer {
    call(router, post("/v1/judgments", body.to_string())).await
}

#[tokio::test]
async fn a_judgment_is_recorded_whole_before_it_is_acknowledged() {
    let sink = Arc::<Sink>::default();
    let manifest = Digest::of(b"manifest");
    let body = json!({
        "input": { "text": "Is there nut in it?" }, "label": "allergy",
        "model": "messages", "version": 3, "manifest": manifest,
        "answer": { "label": "order", "confidence": 0.9 }, "request_id": "r-7", "by": "head-baker", "tags": { "language": "en" },
    });
    let answer = judge(&shop(&noon(), &sink), &body).await;
    assert_eq!((answer.status, &answer.body["object"]), (201, &json!("judgment")));
    let expected = Judgment {
        id: answer.body["id"].as_str().unwrap().parse().unwrap(),
        task: "classify".into(),
        input: json!({ "text": "Is there nut in it?" }),
        decision: json!({ "label": "allergy" }),
        answer: Some(json!({ "label": "order", "confidence": 0.9 })),
        model: Some(ServedModel { name: "scripted".into(), version: Some(3), manifest: Some(manifest) }),
        request: Some("r-7".parse().unwrap()),
        by: Some("head-baker".into()),
        at: NOON.parse().unwrap(),
        tags: [("language".to_owned(), "en".to_owned())].into(),
    };
    assert_eq!(sink.judgments(), [expected]);
    assert_eq!(sink.places(), [(TenantId::new("bakery").unwrap(), dataset())]);
}

#[tokio::test]
async fn a_plain_text_is_the_same_input_as_an_object_with_it() {
    let sink = Arc::<Sink>::default();
    let router = shop(&noon(), &sink);
    for input in [json!("a"), json!({ "text": "a" })] {
        assert_eq!(judge(&router, &json!({ "input": input, "label": "order" })).await.status, 201);
    }
    let kept = sink.judgments();
    assert_eq!(kept[0].input, kept[1].input);
    assert_ne!(kept[0].id, kept[1].id);
}

#[tokio::test]
async fn a_retry_under_one_key_is_one_event_and_outlives_no_correction() {
    let (clock, sink) = (noon(), Arc::<Sink>::default());
    let router = shop(&clock, &sink);
    let written =
        |answer: Value| json!({ "input": "nuts?", "label": "order", "answer": answer, "idempotency_key": "row-1" });
    let wrong = written(json!({ "label": "hours", "scores": { "hours": 1, "order": 0 } }));
    let first = judge(&router, &wrong).await;
    clock.advance(Duration::from_secs(1));
    judge(&router, &json!({ "input": "nuts?", "label": "allergy", "idempotency_key": "row-2" })).await;
    clock.advance(Duration::from_secs(1));
    // The order of keys says nothing.
    let retry = judge(&router, &written(json!({ "scores": { "order": 0, "hours": 1 }, "label": "hours" }))).await;
    assert_eq!(first.body, retry.body);
    let folded = fold_judgments(sink.judgments()).unwrap();
    assert_eq!((sink.judgments().len(), folded.len(), &folded[0].decision), (3, 1, &json!({ "label": "allergy" })));
}

#[tokio::test]
async fn a_key_used_for_two_contents_does_not_spoil_the_dataset() {
    let (clock, sink) = (noon(), Arc::<Sink>::default());
    let router = shop(&clock, &sink);
    for (text, label) in [("a", "order"), ("b", "order"), ("b", "hours")] {
        clock.advance(Duration::from_secs(1));
        assert_eq!(judge(&router, &json!({ "input": text, "label": label, "idempotency_key": "1" })).await.status, 201);
    }
    assert_eq!(fold_judgments(sink.judgments()).unwrap().len(), 2);
}

#[tokio::test]
async fn an_unknown_label_is_refused_with_the_labels_there_are() {
    let sink = Arc::<Sink>::default();
    let answer = judge(&shop(&noon(), &sink), &json!({ "input": "nuts?", "label": "alergy" })).await;
    assert_eq!((answer.status, answer.error("code"), answer.error("param")), (400, "unknown_label", "label"));
    assert_eq!(answer.error("message"), "there is no label \"alergy\"; the labels are allergy, hours, order");
    assert!(sink.judgments().is_empty());
}

#[tokio::test]
async fn a_list_is_checked_whole_before_any_of_it_is_recorded() {
    let sink = Arc::<Sink>::default();
    let router = shop(&noon(), &sink);
    let good = json!({ "input": "a", "label": "order" });
    for (bad, param) in [
        (json!({ "input": "b", "label": "x" }), "judgments[1].label"),
        (json!({ "input": " ", "label": "order" }), "judgments[1].input"),
        (json!({ "input": "b", "label": "order", "model": "gone" }), "judgments[1].model"),
        (json!({ "input": { "txt": "b" }, "label": "order" }), "judgments[1].input.txt"),
    ] {
        let answer = judge(&router, &json!({ "judgments": [good, bad] })).await;
        assert!(matches!(answer.status, 400 | 404), "{answer:?}");
        assert_eq!(answer.error("param"), param);
    }
    assert_eq!(judge(&router, &json!({ "judgments": [] })).await.error("param"), "judgments");
    assert!(sink.judgments().is_empty());

    let answer = judge(&router, &json!({ "judgments": [good, { "input": "b", "label": "hours" }] })).await;
    let ids: Vec<_> =
        sink.judgments().iter().map(|judgment| json!({ "object": "judgment", "id": judgment.id })).collect();
    assert_eq!((answer.status, answer.body), (201, json!({ "object": "list", "data": ids })));
}

#[tokio::test]
async fn a_judgment_that_could_not_be_kept_is_not_acknowledged() {
    let full =
        || Error::new(ErrorKind::StorageFull, "append record", "the disk is full").with("path", "/srv/outbox.db");
    let sink = Sink::failing([Some(full()), None, Some(full()), None]);
    let router = shop(&noon(), &sink);
    let body = json!({ "input": "a", "label": "order" });
    let one = judge(&router, &body).await;
    assert_eq!((one.status, one.error("code")), (507, "storage_full"));
    assert!(!one.body.to_string().contains("/srv"), "{one:?}");

    let list = judge(
        &router,
        &json!({ "judgments": [body, { "input": "b", "label": "order" }, { "input": "c", "label": "order" }] }),
    )
    .await;
    assert_eq!(list.status, 507);
    assert!(list.error("message").starts_with("2 of 3 judgments are recorded, send all of them again: "), "{list:?}");
}

#[tokio::test]
async fn what_would_not_fit_a_dataset_is_refused() {
    let sink = Arc::<Sink>::default();
    let router = shop(&noon(), &sink);
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    let long = "x".repeat(257);
    for (field, value) in [
        ("answer", nested(33)),
        ("by", json!(long)),
        ("tags", json!({ "": "x" })),
        ("tags", json!({ "x": long })),
        ("version", json!(-1)),
        ("manifest", json!("sha256")),
        ("request_id", json!("a b")),
        ("idempotency_key", json!("")),
        ("id", json!("0199a5b0-0000-7000-8000-000000000000")),
    ] {
        let mut body = json!({ "input": "a", "label": "order" });
        body[field] = value;
        let answer = judge(&router, &body).await;
        assert_eq!((answer.status, answer.error("param")), (400, field), "{answer:?}");
    }
    let nameless = judge(&router, &json!({ "input": "a", "label": "order", "version": 3 })).await;
    assert_eq!((nameless.status, nameless.error("param")), (400, "model"));
    assert!(sink.judgments().is_empty());
    assert_eq!(judge(&router, &json!({ "input": "a", "label": "order", "answer": nested(32) })).await.status, 201);
}

#[tokio::test]
async fn deep_json_is_refused_and_overflows_nothing() {
    let router = shop(&noon(), &Arc::default());
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    for (body, code) in [
        (format!(r#"{{"input":"a","label":"order","answer":{deep}}}"#), "invalid_json"),
        (format!(r#"{{"judgments":{deep}}}"#), "invalid_body"),
        (deep.clone(), "invalid_body"),
        ("{\"answer\":".repeat(100_000), "invalid_json"),
    ] {
        let answer = call(&router, post("/v1/judgments", body)).await;
        assert_eq!((answer.status, answer.error("code")), (400, code), "{answer:?}");
    }
}

#[tokio::test]
async fn a_storefront_without_a_place_for_judgments_has_no_such_route() {
    assert_eq!(judge(&app(orders()), &json!({ "input": "a", "label": "order" })).await.error("code"), "not_found");
}
