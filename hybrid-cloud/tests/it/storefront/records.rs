//! Live data of a customer: under conditions, with an end, to be taken away and removed, for one tenant.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt;
use hybrid_cloud::storefront::{Principal, Scope};
use hybrid_core::{
    CollectionName, ManualClock, NewRecord, PutCondition, RecordKey, RecordStore, memory::MemoryRecordStore,
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::rig::{Answer, Tokens, builder, call, from, get, noon, post, soon, tenant};

fn name(name: &str) -> CollectionName {
    CollectionName::new(name).unwrap()
}

fn shop() -> (Router, Arc<MemoryRecordStore>, ManualClock) {
    let clock = noon();
    let store = Arc::new(MemoryRecordStore::new(Arc::new(clock.clone())));
    let head = |name: &str, subject: &str| Principal::new(tenant(name), subject).with_scopes(Scope::ALL);
    let clerk = Principal::new(tenant("a"), "clerk").with_scopes([Scope::Records]);
    let shop = builder(&clock)
        .authenticator(Tokens::new([("a", head("a", "anna")), ("b", head("b", "bert")), ("clerk", clerk)]))
        .records(store.clone(), [name("conversations"), name("reviews")]);
    (shop.build().unwrap().router(), store, clock)
}

async fn put(router: &Router, who: &str, collection: &str, body: Value) -> Answer {
    call(router, from(who, post(&format!("/v1/records/{collection}"), body.to_string()))).await
}

async fn read(router: &Router, who: &str, path: &str) -> Answer {
    call(router, from(who, get(&format!("/v1/records/{path}")))).await
}

fn delete(who: &str, path: &str) -> Request<Body> {
    from(who, Request::delete(path).body(Body::empty()).unwrap())
}

/// An answer's text, as it is.
async fn text(router: &Router, who: &str, path: &str) -> String {
    let response = soon(router.clone().oneshot(from(who, get(path)))).await.unwrap();
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The lines of an export.
async fn export(router: &Router, who: &str) -> Vec<Value> {
    let response = soon(router.clone().oneshot(from(who, get("/v1/records")))).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_put_and_is_gone_when_it_is_deleted() {
    let (router, _, clock) = shop();
    let value = json!({ "messages": [{ "role": "user", "content": "Öffnet ihr um sechs?" }], "n": 1.5 });
    // Slashes and other characters of a key travel in the path as in any URL.
    let key = "2026-03-01/42 ä?";
    let end = 1_772_366_400 + 60;
    let written = put(&router, "a", "conversations", json!({ "key": key, "value": value, "expires_at": end })).await;
    assert_eq!((written.status, &written.body["key"]), (200, &json!(key)), "{written:?}");
    let path = "conversations/2026-03-01/42%20%C3%A4%3F";
    let found = read(&router, "a", path).await;
    assert_eq!((found.status, &found.body["value"]), (200, &value), "{found:?}");
    assert_eq!(found.body["version"], written.body["version"]);
    assert_eq!((&found.body["written_at"], &found.body["expires_at"]), (&json!(1_772_366_400), &json!(end)));

    // It ends by itself, and at once.
    clock.advance(Duration::from_secs(60));
    let ended = read(&router, "a", path).await;
    assert_eq!((ended.status, ended.error("code")), (404, "record_not_found"));

    put(&router, "a", "reviews", json!({ "key": "1", "value": null })).await;
    assert_eq!(read(&router, "a", "reviews/1").await.body["value"], Value::Null);
    for _ in 0..2 {
        let gone = call(&router, delete("a", "/v1/records/reviews/1")).await;
        assert_eq!((gone.status, &gone.body["deleted"]), (200, &json!(true)));
    }
    assert_eq!(read(&router, "a", "reviews/1").await.status, 404);
}

#[tokio::test]
async fn a_value_comes_back_as_it_was_sent_to_the_digit() {
    let (router, store, _) = shop();
    let value = r#"{"n":12345678901234567890123,"f":1.10,"e":1E2,"twice":1,"twice":2,"s":"a  \"b\\","u":"\u00e4"}"#;
    let spread = value.replace(',', " ,\n\t").replace(':', ": ");
    for (key, sent) in [("1", value), ("2", &spread)] {
        let body = format!(r#"{{"key": "{key}", "value": {sent}}}"#);
        assert_eq!(call(&router, from("a", post("/v1/records/reviews", body))).await.status, 200);
    }
    // A program that shares the store writes as it likes.
    let (own, key) = (NewRecord::new(spread.clone()), RecordKey::new("3").unwrap());
    store.put(&tenant("a"), &name("reviews"), &key, own, PutCondition::Always).await.unwrap();
    for key in ["1", "2", "3"] {
        let found = text(&router, "a", &format!("/v1/records/reviews/{key}")).await;
        assert!(found.contains(value), "{found}");
    }
    assert_eq!(text(&router, "a", "/v1/records/reviews").await.matches(value).count(), 3);
    let exported = text(&router, "a", "/v1/records").await;
    assert_eq!((exported.lines().count(), exported.lines().filter(|line| line.contains(value)).count()), (4, 3));
    assert_eq!(export(&router, "a").await.len(), 4);
}

#[tokio::test]
async fn a_value_is_held_to_what_all_json_here_is() {
    let (router, ..) = shop();
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let write = async |value: &str| {
        let body = format!(r#"{{"key": "1", "value": {value}}}"#);
        call(&router, from("a", post("/v1/records/reviews", body))).await
    };
    assert_eq!(write(&nested(126)).await.status, 200);
    assert_eq!(read(&router, "a", "reviews/1").await.status, 200);
    for bad in [&nested(127), &nested(100_000), r#""\ud800""#, "1e999", "[1", "nul", "01"] {
        let refused = write(bad).await;
        assert_eq!((refused.status, refused.error("code")), (400, "invalid_json"), "{refused:?}");
    }
}

#[tokio::test]
async fn of_two_who_change_one_version_one_is_told_to_read_again() {
    let (router, ..) = shop();
    let review = |value: &str, more: Value| {
        let mut body = json!({ "key": "42", "value": value });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let first = put(&router, "a", "reviews", review("open", json!({ "if_absent": true }))).await;
    let again = put(&router, "a", "reviews", review("open", json!({ "if_absent": true }))).await;
    assert_eq!((first.status, again.status, again.error("code")), (200, 409, "conflict"));
    let seen = json!({ "if_version": first.body["version"] });
    assert_eq!(put(&router, "a", "reviews", review("taken by ada", seen.clone())).await.status, 200);
    let late = put(&router, "a", "reviews", review("taken by bob", seen.clone())).await;
    assert_eq!((late.status, late.error("code")), (409, "conflict"));
    assert_eq!(read(&router, "a", "reviews/42").await.body["value"], "taken by ada");
    call(&router, delete("a", "/v1/records/reviews/42")).await;
    let missing = put(&router, "a", "reviews", review("taken", seen)).await;
    assert_eq!((missing.status, missing.error("code")), (404, "record_not_found"));
}

#[tokio::test]
async fn a_collection_is_listed_page_by_page_in_both_orders() {
    let (router, ..) = shop();
    for i in 0..7 {
        put(&router, "a", "reviews", json!({ "key": format!("2026/{i}"), "value": i })).await;
    }
    put(&router, "a", "reviews", json!({ "key": "2025/9", "value": 9 })).await;
    for (order, expected) in [("asc", [0, 1, 2, 3, 4, 5, 6]), ("desc", [6, 5, 4, 3, 2, 1, 0])] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = read(&router, "a", &format!("reviews?prefix=2026%2F&limit=3&order={order}{after}")).await;
            let data = page.body["data"].as_array().unwrap();
            assert!(data.len() <= 3);
            seen.extend(data.iter().map(|record| record["value"].as_u64().unwrap()));
            match page.body["next_after"].as_str() {
                Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
                None => break assert_eq!(page.body["has_more"], false),
            }
        }
        assert_eq!(seen, expected, "{order}");
    }
    // A key of a record may look like the beginning of an API key.
    assert_eq!(read(&router, "a", "reviews?after=hk_order_7").await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_name() {
    let (router, ..) = shop();
    let long = "x".repeat(400_000);
    for (collection, body, status, code) in [
        ("reviews", json!({ "key": "", "value": 1 }), 400, "invalid_request"),
        ("reviews", json!({ "key": "a\u{0}b", "value": 1 }), 400, "invalid_request"),
        ("reviews", json!({ "key": "1" }), 400, "invalid_body"),
        ("reviews", json!({ "key": "1", "value": 1, "ttl": 3 }), 400, "invalid_body"),
        ("reviews", json!({ "key": "1", "value": 1, "expires_at": 1 }), 400, "invalid_request"),
        ("reviews", json!({ "key": "1", "value": 1, "expires_at": i64::MAX }), 400, "invalid_request"),
        ("reviews", json!({ "key": "1", "value": 1, "if_version": "7" }), 400, "invalid_request"),
        ("reviews", json!({ "key": "1", "value": 1, "if_absent": true, "if_version": "7" }), 400, "invalid_request"),
        ("reviews", json!({ "key": "1", "value": long }), 413, "too_large"),
        ("internal", json!({ "key": "1", "value": 1 }), 404, "collection_not_found"),
        ("..%2Freviews", json!({ "key": "1", "value": 1 }), 404, "collection_not_found"),
    ] {
        let answer = put(&router, "a", collection, body).await;
        assert_eq!((answer.status, answer.error("code")), (status, code), "{answer:?}");
    }
    for query in ["limit=0", "limit=101", "limit=x", "order=up", "before=1", "after="] {
        assert_eq!(read(&router, "a", &format!("reviews?{query}")).await.status, 400, "{query}");
    }
    assert_eq!(export(&router, "a").await, [json!({ "object": "records.end", "records": 0 })]);
}

#[tokio::test]
async fn a_tenant_takes_all_of_its_records_away_and_has_them_removed_and_nobody_elses() {
    let (router, store, _) = shop();
    for who in ["a", "b"] {
        put(&router, who, "conversations", json!({ "key": "1", "value": format!("of {who}") })).await;
        put(&router, who, "reviews", json!({ "key": "1", "value": format!("review of {who}") })).await;
    }
    // The application's own collections are the tenant's data too, in whatever form they are.
    let drafts = (name("drafts"), RecordKey::new("1").unwrap(), NewRecord::new(&b"\xff\x00"[..]));
    store.put(&tenant("a"), &drafts.0, &drafts.1, drafts.2, PutCondition::Always).await.unwrap();
    assert_eq!(read(&router, "a", "drafts/1").await.error("code"), "collection_not_found");

    for path in ["conversations/1", "reviews/1"] {
        let (mine, theirs) = (read(&router, "a", path).await, read(&router, "b", path).await);
        assert!(mine.body["value"].as_str().unwrap().ends_with("of a"), "{mine:?}");
        assert!(theirs.body["value"].as_str().unwrap().ends_with("of b"), "{theirs:?}");
    }
    for request in [from("clerk", get("/v1/records")), delete("clerk", "/v1/records")] {
        let refused = call(&router, request).await;
        assert_eq!((refused.status, refused.error("code")), (403, "missing_scope"));
    }

    let lines = export(&router, "a").await;
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3], json!({ "object": "records.end", "records": 3 }));
    let of = |collection: &str| lines.iter().find(|line| line["collection"] == collection).unwrap();
    assert_eq!((&of("conversations")["value"], &of("reviews")["value"]), (&json!("of a"), &json!("review of a")));
    assert_eq!((of("drafts").get("value"), &of("drafts")["value_base64"]), (None, &json!("/wA=")));

    let erased = call(&router, delete("a", "/v1/records")).await;
    assert_eq!(erased.body, json!({ "object": "records", "deleted": true }));
    assert_eq!(export(&router, "a").await.len(), 1);
    assert_eq!(export(&router, "b").await.len(), 3, "and b notices nothing");
    // What is another's answers exactly like what does not exist.
    let (foreign, nothing) = (read(&router, "a", "reviews/1").await, read(&router, "a", "reviews/2").await);
    assert_eq!(foreign.status, 404);
    assert_eq!(foreign.error("message").replace("\"1\"", "\"2\""), nothing.error("message"));
}
