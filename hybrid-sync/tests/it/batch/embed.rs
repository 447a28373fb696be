use hybrid_core::{
    Error, ErrorKind, VectorIndex, VectorSchema,
    memory::MemoryVectorIndex,
    task::{Embed, EmbedInput, EmbedRequest, EmbedResponse},
    vector::{FieldKind, Metric, VectorKey},
};
use hybrid_sync::batch::{BatchOptions, EmbedRows, Embedded};
use serde_json::{Value, json};

use super::*;

fn job() -> Value {
    json!({"text": "{{text}}", "key": "faq/{{n}}", "metadata": ["language"]})
}

fn index(dimension: usize) -> Arc<MemoryVectorIndex> {
    let schema = VectorSchema::new(dimension, Metric::Cosine).unwrap().with_field("language", FieldKind::Text).unwrap();
    Arc::new(MemoryVectorIndex::new(schema))
}

/// Embeds a text as its length and one; refuses what is longer than 40 bytes.
fn measuring(batch: Option<usize>) -> Arc<Clerk<Embed>> {
    Clerk::taking(batch, |request: EmbedRequest| {
        let vector = |input: &EmbedInput| match input.as_text().unwrap() {
            long if long.len() > 40 => {
                let error = Error::too_large("embed", "the text is over the limit").with("limit", 40);
                Err(error.with("model", "arn:aws:bedrock:us-east-1:123456789012:imported-model/secret"))
            }
            text => Ok(vec![text.len() as f32, 1.0]),
        };
        Ok(EmbedResponse { embeddings: request.inputs.iter().map(vector).collect::<Result<_>>()? })
    })
}

fn rows(count: usize) -> String {
    (0..count).map(|n| json!({"n": n, "text": "x".repeat(n + 1), "language": "en"}).to_string() + "\n").collect()
}

fn options() -> BatchOptions {
    BatchOptions { step: 4, ..BatchOptions::default() }
}

async fn vector(index: &MemoryVectorIndex, key: &str) -> Option<hybrid_core::VectorRecord> {
    index.get(&TenantId::single(), &[VectorKey::new(key).unwrap()]).await.unwrap().remove(0)
}

#[tokio::test]
async fn every_row_has_its_vector_and_what_has_none_is_told() {
    let site = Site::new();
    let (index, clerk) = (index(2), measuring(Some(3)));
    let more = [json!({"n": 10, "text": " "}), json!({"n": 11, "text": "y".repeat(50)}), json!({"n": 0, "text": "zz"})];
    let text = rows(10) + &more.map(|row| row.to_string() + "\n").concat();
    let job = site.order("embed", job(), &text).await;
    let result =
        site.run(&job, |builder| builder.handler(EmbedRows::new(clerk.clone(), index.clone(), options()))).await;
    let made: Embedded = result.output().unwrap();
    assert_eq!((made.rows, made.failed), (13, 2));
    assert_eq!(made.failures.iter().map(|failure| failure.line).collect::<Vec<_>>(), [11, 12]);
    assert_eq!(
        made.failures[1].error, "the text is over the limit (limit: 40)",
        "of the side that failed nothing is told"
    );
    assert_eq!(index.count(&TenantId::single()).await.unwrap(), 10);
    let record = vector(&index, "faq/4").await.unwrap();
    assert_eq!((record.vector, &record.metadata["language"]), (vec![5.0, 1.0], &json!("en")));
    // Of two rows with one name the last counts.
    assert_eq!(vector(&index, "faq/0").await.unwrap().vector, [2.0, 1.0]);
    let sizes: Vec<_> = clerk.requests.lock().unwrap().iter().map(|request| request.inputs.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 3), "{sizes:?}");
}

#[tokio::test]
async fn a_job_killed_at_any_call_ends_with_the_same_index() {
    let order = async |site: &Site| site.order("embed", job(), &rows(10)).await;
    let shared = Arc::new(Mutex::new((index(2), None::<usize>)));
    let handlers = |builder: WorkerBuilder, site: &Site| {
        // One index for the workers of one site.
        let here = std::ptr::from_ref(site).addr();
        let mut shared = shared.lock().unwrap();
        if shared.1 != Some(here) {
            *shared = (index(2), Some(here));
        }
        builder.handler(EmbedRows::new(measuring(None), shared.0.clone(), options()))
    };
    killed_anywhere(order, handlers, |_, result, case| {
        let index = shared.lock().unwrap().0.clone();
        async move {
            let made: Embedded = result.output().unwrap();
            assert_eq!((made.rows, made.failed, made.usage.input_tokens), (10, 0, 9), "{case}");
            assert_eq!(index.count(&TenantId::single()).await.unwrap(), 10, "{case}");
            assert_eq!(vector(&index, "faq/9").await.unwrap().vector, [10.0, 1.0], "{case}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_row_that_the_index_does_not_take_is_told_and_the_others_have_their_vectors() {
    let site = Site::new();
    let (index, clerk) = (index(2), measuring(None));
    let bad = [json!({"n": "\n", "text": "a"}), json!({"n": 20, "text": "b", "language": 7}), {
        json!({"n": 21, "text": "c", "language": "x".repeat(3_000)})
    }];
    let text = rows(2) + &bad.map(|row| row.to_string() + "\n").concat() + &rows(1);
    let job = site.order("embed", job(), &text).await;
    let result =
        site.run(&job, |builder| builder.handler(EmbedRows::new(clerk.clone(), index.clone(), options()))).await;
    let made: Embedded = result.output().unwrap();
    assert_eq!((made.rows, made.failed), (6, 3));
    let told = |line: u64, what: &str| made.failures.iter().any(|it| it.line == line && it.error.contains(what));
    assert!(told(3, "key expected") && told(4, "language the value") && told(5, "limit: 2048"), "{made:?}");
    assert_eq!(index.count(&TenantId::single()).await.unwrap(), 2);
    let asked: usize = clerk.requests.lock().unwrap().iter().map(|request| request.inputs.len()).sum();
    assert_eq!(asked, 3, "what cannot be kept is not embedded");

    let mut lost = self::job();
    lost["metadata"] = json!(["tongue"]);
    let job = site.order("embed", lost, &rows(1)).await;
    let result = site.run(&job, |builder| builder.handler(EmbedRows::new(clerk.clone(), index, options()))).await;
    let error = result.output::<Embedded>().unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("tongue"), "{error}");
}

#[tokio::test]
async fn vectors_that_the_index_does_not_take_fail_the_job() {
    let site = Site::new();
    let job = site.order("embed", job(), &rows(1)).await;
    let result = site.run(&job, |builder| builder.handler(EmbedRows::new(measuring(None), index(3), options()))).await;
    assert_eq!(result.output::<Embedded>().unwrap_err().kind(), ErrorKind::InvalidInput);
}
