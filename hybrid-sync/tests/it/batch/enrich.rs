use bytes::Bytes;
use hybrid_core::{
    DataPolicy, Error, ErrorKind, Key, ListOptions, ObjectMeta, ReadOptions,
    task::{Chat, ChatRequest, ChatResponse, Message, ResponseFormat},
};
use hybrid_sync::batch::{BatchOptions, Enrich, EnrichJob, Enriched};
use serde_json::{Value, json};

use super::*;

fn job() -> Value {
    json!({
        "system": "You sort a bakery's mail.",
        "prompt": "{{n}}: {{text}}",
        "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false},
    })
}

fn rows(count: usize) -> String {
    (0..count).map(|n| json!({"n": n, "text": "two loaves"}).to_string() + "\n").collect()
}

fn prompt(request: &ChatRequest) -> String {
    request.messages[0].text()
}

fn number(request: &ChatRequest) -> usize {
    prompt(request).split(':').next().unwrap().parse().unwrap()
}

/// Answers with the row's number.
fn counting() -> Arc<Clerk<Chat>> {
    Clerk::new(|request: ChatRequest| Ok(said(json!({"n": number(&request)}))))
}

fn said(value: Value) -> ChatResponse {
    ChatResponse::one(Message::assistant(value.to_string()))
}

fn options() -> BatchOptions {
    BatchOptions { concurrency: 3, step: 4, ..BatchOptions::default() }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_row_has_its_answer_in_the_rows_order() {
    let site = Site::new();
    let clerk = counting();
    let text = format!("\n{}{}", rows(9), r#"{"n": 9, "text": {"a": ["Brötchen"]}}"#);
    let job = site.order("enrich", job(), &text).await;
    let result = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), options()))).await;
    let made: Enriched = result.output().unwrap();
    assert_eq!((made.rows, made.failed, made.constrained, clerk.asked()), (10, 0, true, 10));
    assert_eq!((made.usage.input_tokens, made.usage.output_tokens), (30, 20));
    let answers = lines(&site.text(&made.output_file_id).await);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(
            (&answer["line"], &answer["output"]["n"], &answer["input"]["n"]),
            (&json!(n + 2), &json!(n), &json!(n))
        );
    }
    let asked = clerk.requests.lock().unwrap().clone();
    assert_eq!(prompt(&asked[9]), r#"9: {"a":["Brötchen"]}"#);
    assert!(matches!(&asked[0].response_format, ResponseFormat::JsonSchema { strict: Some(true), .. }));
    let seeds: std::collections::BTreeSet<_> = asked.iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds.len(), 10);
    // The steps are gone: order of the file, its one part, the answers' file with one part, and the result.
    use hybrid_core::ArtifactStoreExt;
    assert_eq!(site.store.list_all("").await.unwrap().len(), 5);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_again_and_then_told_in_its_place() {
    let site = Site::new();
    let clerk = Clerk::new(|request: ChatRequest| {
        let seed = request.sampling.seed.unwrap() % 10;
        Ok(match (number(&request), seed % 3) {
            (0, _) => ChatResponse::one(Message::assistant("I cannot.")),
            (1, _) => said(json!({"n": "one"})),
            (2, _) => {
                let error = Error::too_large("infer", "the prompt is over the context").with("limit", 4_096);
                return Err(error.with("model", "arn:aws:bedrock:us-east-1:123456789012:imported-model/secret"));
            }
            // Right at the second or third try of three.
            (3, 0) => ChatResponse::one(Message::assistant("```json\n{\"n\": 3}\n```")),
            (3, _) => said(json!({})),
            (n, _) => said(json!({"n": n})),
        })
    });
    let job = site.order("enrich", job(), &rows(5)).await;
    let result = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), options()))).await;
    let made: Enriched = result.output().unwrap();
    assert_eq!((made.rows, made.failed), (5, 3));
    let answers = lines(&site.text(&made.output_file_id).await);
    let error = |n: usize| answers[n]["error"].as_str().unwrap().to_owned();
    assert!(error(0).contains("no JSON") && error(1).contains("/n"), "{answers:?}");
    assert_eq!(error(2), "the prompt is over the context (limit: 4096)", "of the side that failed nothing is told");
    assert_eq!((&answers[3]["output"], &answers[4]["output"]), (&json!({"n": 3}), &json!({"n": 4})));
    let tries = |n| clerk.requests.lock().unwrap().iter().filter(|request| number(request) == n).count();
    assert_eq!((tries(0), tries(1), tries(2), tries(4)), (3, 3, 1, 1));
}

#[tokio::test]
async fn a_job_killed_at_any_call_ends_with_the_same_answers() {
    let order = async |site: &Site| site.order("enrich", job(), &rows(10)).await;
    let last = Arc::new(Mutex::new(counting()));
    let handlers = |builder: WorkerBuilder, _: &Site| {
        // Each worker's own backend: what the first has asked the second does not know.
        let clerk = counting();
        *last.lock().unwrap() = clerk.clone();
        builder.handler(Enrich::new(clerk, options()))
    };
    killed_anywhere(order, handlers, |site, result, case| async move {
        let made: Enriched = result.output().unwrap();
        assert_eq!((made.rows, made.failed, made.usage.input_tokens), (10, 0, 30), "{case}");
        let answers = lines(&site.text(&made.output_file_id).await);
        let numbers: Vec<_> = answers.iter().map(|answer| answer["output"]["n"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>(), "{case}");
        // Parts that a killed attempt wrote are nobody's a day later.
        site.clock.advance(Duration::from_secs(2 * 24 * 3600));
        site.files().sweep(&TenantId::single()).await.unwrap();
        use hybrid_core::ArtifactStoreExt;
        assert_eq!(site.store.list_all("").await.unwrap().len(), 5, "{case}");
    })
    .await;
}

/// A row may be as long as a line of a customer's file: the answers repeat it.
#[tokio::test]
async fn rows_as_long_as_may_be_have_their_answers_and_a_job_that_lacks_its_result_alone_reads_them_again() {
    let site = Site::new();
    let long = |n: usize| {
        let row = |text: &str| json!({"n": n, "text": text}).to_string() + "\n";
        row(&"x".repeat((1 << 20) - row("").len()))
    };
    let text: String = (10..28).map(long).collect();
    assert!(text.lines().all(|line| line.len() + 1 == 1 << 20));
    let order = json!({"prompt": "{{n}}:", "schema": job()["schema"]});
    let job = site.order("enrich", order, &text).await;
    let wide = BatchOptions { step: 18, ..options() };
    let clerk = counting();
    let result = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), wide.clone()))).await;
    let made: Enriched = result.output().unwrap();
    assert_eq!((made.rows, made.failed, clerk.asked()), (18, 0, 18));

    // As if the worker had died before it wrote the result.
    site.store.delete(&job::result_key(&job.tenant, job.id).unwrap()).await.unwrap();
    job::submit(&site.queue, &site.store, &job).await.unwrap();
    let again = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), wide))).await;
    assert_eq!((again.output::<Enriched>().unwrap(), clerk.asked()), (made, 18));
}

/// A store that lets nobody delete, as the bucket of a worker whose role may not.
#[derive(Debug)]
struct Kept(MemoryStore);

#[async_trait]
impl ArtifactStore for Kept {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        self.0.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.0.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.0.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix, options)
    }

    async fn delete(&self, _: &Key) -> Result<()> {
        Err(Error::new(ErrorKind::PermissionDenied, "delete object", "the role may not"))
    }
}

#[tokio::test]
async fn a_job_that_is_done_does_not_fail_for_steps_that_stay() {
    let site = Site::new();
    let job = site.order("enrich", job(), &rows(5)).await;
    let builder = Worker::builder(Arc::new(site.queue.clone()), Arc::new(Kept(site.store.clone())));
    let builder = builder.clock(Arc::new(site.clock.clone())).handler(Enrich::new(counting(), options()));
    let (worker, cancel) = (builder.build().unwrap(), Cancellation::new());
    let token = cancel.clone();
    let running = Running { cancel, task: tokio::spawn(async move { worker.run(token).await }) };
    site.advance(5).await;
    running.stop().await;
    let made: Enriched = site.result(&job).await.output().unwrap();
    assert_eq!((made.rows, made.failed), (5, 0));
}

#[tokio::test]
async fn rows_that_have_their_answer_are_asked_no_more_whatever_the_next_worker_would_say() {
    let site = Site::new();
    let first = Clerk::<Chat>::new(|request: ChatRequest| match number(&request) {
        n if n < 8 => Ok(said(json!({"n": n}))),
        _ => Err(Error::unavailable("infer", "the model is away")),
    });
    let job = site.order("enrich", job(), &rows(11)).await;
    let worker = site.worker(&Faults::none(), |builder| builder.handler(Enrich::new(first.clone(), options())));
    site.advance(1).await;
    worker.task.abort();
    assert!(first.asked() >= 9);
    let other = Clerk::new(|request: ChatRequest| Ok(said(json!({"n": 100 + number(&request)}))));
    // Another size of steps finds the same places.
    let wider = BatchOptions { step: 7, ..options() };
    let worker = site.worker(&Faults::none(), |builder| builder.handler(Enrich::new(other.clone(), wider)));
    site.advance(3 * LEASE.as_secs()).await;
    worker.stop().await;
    let made: Enriched = site.result(&job).await.output().unwrap();
    let answers = lines(&site.text(&made.output_file_id).await);
    let numbers: Vec<_> = answers.iter().map(|answer| answer["output"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 108, 109, 110]);
    assert_eq!(other.asked(), 3);
}

#[tokio::test]
async fn a_backend_that_cannot_force_a_schema_is_told_it() {
    let site = Site::new();
    let clerk = Clerk::new(|request: ChatRequest| {
        if request.response_format != ResponseFormat::Text {
            return Err(Error::unsupported("chat", "the form cannot be forced").with("field", "response_format"));
        }
        Ok(said(json!({"n": number(&request)})))
    });
    let job = site.order("enrich", job(), &rows(2)).await;
    let result = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), options()))).await;
    let made: Enriched = result.output().unwrap();
    assert_eq!((made.failed, made.constrained), (0, false));
    let told = clerk.requests.lock().unwrap();
    assert!(format!("{:?}", told.last().unwrap().system).contains("additionalProperties"));
}

#[tokio::test]
async fn what_can_never_succeed_is_told_before_a_model_is_asked() {
    let long = format!("{{\"text\": \"{}\"}}\n", "x".repeat(2 << 20));
    let change = |key: &str, value: Value| {
        let mut changed = job();
        changed[key] = value;
        changed
    };
    let cases = [
        (job(), "{\"n\": 1}\nno row\n".to_owned(), "line: 2"),
        (job(), "{\"n\": 1}\n[1]\n".to_owned(), "line: 2"),
        (job(), long, "line: 1"),
        (job(), "\n \n".to_owned(), "no rows"),
        (change("schema", json!({"type": 3})), rows(1), "schema"),
        (change("schema", json!({"$ref": "https://example.org/schema"})), rows(1), "schema"),
        (change("tries", json!(0)), rows(1), "tries"),
        (change("prompt", json!("{{")), rows(1), "payload"),
        (change("prmpt", json!("")), rows(1), "payload"),
    ];
    for (payload, text, named) in cases {
        let site = Site::new();
        let clerk = counting();
        let job = site.order("enrich", payload, &text).await;
        let result = site.run(&job, |builder| builder.handler(Enrich::new(clerk.clone(), options()))).await;
        let error = result.output::<Enriched>().unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(named), "{named}: {error}");
        assert_eq!(clerk.asked(), 0, "{named}");
    }
}

#[tokio::test]
async fn rows_do_not_leave_where_they_may_be() {
    let site = Site::new();
    let far = BackendProfile { locality: Locality::Region("eu-west-1".to_owned()), ..(*counting().profile).clone() };
    let backend = Arc::new(hybrid_core::memory::ScriptedBackend::<Chat>::with_profile(far, []));
    let elsewhere = DataPolicy::Regions(vec!["us-east-1".to_owned()]);
    // What the kitchen allows, and what whoever ordered the job does.
    for (kitchen, policy) in [
        (DataPolicy::Site, DataPolicy::Anywhere),
        (DataPolicy::Anywhere, DataPolicy::Site),
        (DataPolicy::Anywhere, DataPolicy::Device),
        (DataPolicy::Anywhere, elsewhere.clone()),
        (elsewhere, DataPolicy::Regions(vec!["eu-west-1".to_owned()])),
    ] {
        let case = format!("{kitchen:?} and {policy:?}");
        let options = BatchOptions { policy: kitchen, ..options() };
        let job = site.order_under(policy, "enrich", job(), &rows(1)).await;
        let result = site.run(&job, |builder| builder.handler(Enrich::new(backend.clone(), options))).await;
        assert_eq!(result.output::<Enriched>().unwrap_err().kind(), ErrorKind::PolicyDenied, "{case}");
        assert!(backend.asked().is_empty(), "{case}");
    }
}

#[test]
fn a_payload_is_read_as_it_is_written() {
    let read: EnrichJob = serde_json::from_value(job()).unwrap();
    assert_eq!((read.tries, read.sampling.seed), (3, None));
    assert_eq!(serde_json::from_value::<EnrichJob>(serde_json::to_value(&read).unwrap()).unwrap(), read);
}
