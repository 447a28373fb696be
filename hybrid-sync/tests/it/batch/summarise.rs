use hybrid_core::{
    ErrorKind,
    task::{Chat, ChatRequest, ChatResponse, Message},
};
use hybrid_sync::batch::{BatchOptions, Summarise, Summarised};
use serde_json::{Value, json};

use super::*;

fn job() -> Value {
    json!({"text": "{{who}}: {{said}}", "instruction": "Tell what customers asked for.", "part_bytes": 1000})
}

fn rows(count: usize) -> String {
    (0..count)
        .map(|n| json!({"who": format!("customer {n}"), "said": "bread ".repeat(60)}).to_string() + "\n")
        .collect()
}

/// Tells the customers that a part is about, and is long-winded.
fn listing() -> Arc<Clerk<Chat>> {
    Clerk::new(|request: ChatRequest| {
        let text = request.messages[0].text();
        let who: std::collections::BTreeSet<u32> = text
            .split("customer ")
            .skip(1)
            .filter_map(|rest| rest.split([':', ' ', '\n']).next()?.parse().ok())
            .collect();
        let all: String = who.iter().map(|n| format!("customer {n} ")).collect();
        Ok(ChatResponse::one(Message::assistant(format!("{all}\n{}", "and so on ".repeat(30)))))
    })
}

fn options() -> BatchOptions {
    BatchOptions { concurrency: 3, ..BatchOptions::default() }
}

fn check(made: &Summarised, case: &str) {
    assert!((0..20).all(|n| made.summary.contains(&format!("customer {n} "))), "{case}: {}", made.summary);
    assert_eq!((made.rows, made.levels, made.requests), (20, 4, 10 + 4 + 2 + 1), "{case}");
    assert_eq!(made.usage.output_tokens, 2 * made.requests, "{case}");
}

#[tokio::test]
async fn parts_are_summarised_and_the_summaries_again_until_one_is_left() {
    let site = Site::new();
    let clerk = listing();
    let job = site.order("summarise", job(), &rows(20)).await;
    let result = site.run(&job, |builder| builder.handler(Summarise::new(clerk.clone(), options()))).await;
    check(&result.output().unwrap(), "clean");
    let asked = clerk.requests.lock().unwrap();
    assert!(format!("{:?}", asked[0].system).contains("Tell what customers asked for."));
    assert!(asked.iter().all(|request| request.messages[0].text().len() <= 1000));
}

#[tokio::test]
async fn a_job_killed_at_any_call_ends_with_the_same_summary() {
    let order = async |site: &Site| site.order("summarise", job(), &rows(20)).await;
    let handlers = |builder: WorkerBuilder, _: &Site| builder.handler(Summarise::new(listing(), options()));
    killed_anywhere(order, handlers, |_, result, case| async move { check(&result.output().unwrap(), &case) }).await;
}

#[tokio::test]
async fn what_can_never_be_summarised_is_refused() {
    for (payload, text) in [
        (json!({"text": "{{missing}}", "instruction": "x"}), rows(2)),
        (json!({"text": "{{who}}", "instruction": "x", "part_bytes": 10}), rows(2)),
    ] {
        let site = Site::new();
        let job = site.order("summarise", payload, &text).await;
        let result = site.run(&job, |builder| builder.handler(Summarise::new(listing(), options()))).await;
        assert_eq!(result.output::<Summarised>().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
