use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    CallContext, Error, ErrorKind, InferenceBackend, ProgressEvent, Result, Usage, VectorIndex, VectorRecord,
    task::{Embed, EmbedRequest, Truncate},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    BatchOptions, Template, add,
    rows::{Input, Row},
    steps::Steps,
};
use crate::worker::{JobContext, JobHandler, Resource};

const OPERATION: &str = "embed rows";
/// The most rows that a result names among those that have no vector; all of them count.
const SHOWN: usize = 20;

/// What `embed` asks for; the rows are the job's input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedJob {
    /// The text of a row.
    pub text: Template,
    /// A record's name in the index, made of its row; `<file id>/<line>` where absent. Of rows with one name the last counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Template>,
    /// The fields of a row that go beside its vector, as the index's schema declares them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<String>,
    /// What becomes of a text that is longer than the model reads; by default its row fails.
    #[serde(default)]
    pub truncate: Truncate,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// How many rows there are.
    pub rows: u64,
    /// How many of them have no vector.
    pub failed: u64,
    /// Why, for the first of them.
    pub failures: Vec<RowFailure>,
    /// What all requests used.
    pub usage: Usage,
}

/// A row without a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFailure {
    /// The row's line in the file.
    pub line: u64,
    /// Why.
    pub error: String,
}

/// Carries out `embed`: puts a vector of every row's text into an index, under the job's tenant.
///
/// A record of the same name is replaced, so that a file that has grown can be sent again. The records are durable in the index before a step counts.
#[derive(Debug)]
pub struct EmbedRows {
    backend: Arc<dyn InferenceBackend<Embed>>,
    index: Arc<dyn VectorIndex>,
    options: BatchOptions,
}

impl EmbedRows {
    /// A handler that asks `backend` and writes into `index`. A request holds as many rows as a step has, as far as the backend takes so many.
    pub fn new(backend: Arc<dyn InferenceBackend<Embed>>, index: Arc<dyn VectorIndex>, options: BatchOptions) -> Self {
        Self { backend, index, options }
    }

    /// The vectors of some rows' texts, or why a row has none.
    async fn vectors(
        &self,
        call: &CallContext,
        job: &EmbedJob,
        texts: &[String],
        made: &mut Embedded,
    ) -> Result<Vec<Result<Vec<f32>, String>>> {
        let limit = self.backend.profile().limits.batch.unwrap_or(usize::MAX).max(1);
        let mut vectors = Vec::with_capacity(texts.len());
        for some in texts.chunks(limit) {
            match self.ask(call, job, some, made).await {
                Ok(all) => vectors.extend(all.into_iter().map(Ok)),
                // One of them is at fault; each is asked for itself.
                Err(error) if is_a_rows_own(&error) => {
                    for text in some {
                        vectors.push(match self.ask(call, job, std::slice::from_ref(text), made).await {
                            Ok(mut one) => one.pop().ok_or_else(|| "the backend gave no vector".to_owned()),
                            Err(error) if is_a_rows_own(&error) => Err(error.public_message()),
                            Err(error) => return Err(error),
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    async fn ask(
        &self,
        call: &CallContext,
        job: &EmbedJob,
        texts: &[String],
        made: &mut Embedded,
    ) -> Result<Vec<Vec<f32>>> {
        let request = EmbedRequest { truncate: job.truncate, ..EmbedRequest::documents(texts.iter().cloned()) };
        let reply = self.backend.infer(call, request).await?;
        add(&mut made.usage, &reply.meta.usage);
        let vectors = reply.response.embeddings;
        if vectors.len() != texts.len() {
            return Err(Error::corrupt(OPERATION, "the backend gave another number of vectors than texts")
                .with("texts", texts.len())
                .with("vectors", vectors.len()));
        }
        Ok(vectors)
    }

    async fn step(&self, cx: &JobContext, call: &CallContext, job: &EmbedJob, rows: Vec<Row>) -> Result<Embedded> {
        let mut made = Embedded { rows: rows.len() as u64, ..Embedded::default() };
        let fail = |made: &mut Embedded, line: u64, error: String| {
            made.failed += 1;
            made.failures.push(RowFailure { line, error });
        };
        let (mut asked, mut texts) = (Vec::new(), Vec::new());
        for row in rows {
            let text = job.text.fill(&row.fields);
            let record = match text.trim() {
                "" => Err("the row has no text".to_owned()),
                _ => self.record(cx, job, &row).map_err(|error| error.public_message()),
            };
            match record {
                Ok(record) => {
                    texts.push(text);
                    asked.push((row.line, record));
                }
                Err(error) => fail(&mut made, row.line, error),
            }
        }
        let vectors = self.vectors(call, job, &texts, &mut made).await?;
        let mut records = BTreeMap::new();
        for ((line, record), vector) in asked.into_iter().zip(vectors) {
            match vector {
                Ok(vector) => {
                    records.insert(record.key.clone(), VectorRecord { vector, ..record });
                }
                Err(error) => fail(&mut made, line, error),
            }
        }
        made.failures.sort_by_key(|failure| failure.line);
        if !records.is_empty() {
            self.index.upsert(&cx.job.tenant, records.into_values().collect()).await?;
        }
        Ok(made)
    }

    /// The record of a row but for its vector.
    ///
    /// # Errors
    /// What of the row the index does not take.
    fn record(&self, cx: &JobContext, job: &EmbedJob, row: &Row) -> Result<VectorRecord> {
        let key = match (&job.key, cx.job.input) {
            (Some(key), _) => key.fill(&row.fields),
            (None, Some(file)) => format!("{file}/{}", row.line),
            (None, None) => row.line.to_string(),
        };
        let mut record = VectorRecord::new(key, Vec::new()).map_err(|error| error.with("field", "key"))?;
        for name in &job.metadata {
            if let Some(value) = row.fields.get(name).filter(|value| **value != Value::Null) {
                record = record.with(name, value.clone());
            }
        }
        self.index.profile().schema.check_metadata(&record.metadata)?;
        Ok(record)
    }
}

fn is_a_rows_own(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::TooLarge)
}

#[async_trait]
impl JobHandler for EmbedRows {
    const KIND: &'static str = "embed";
    type Payload = EmbedJob;
    type Output = Embedded;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: EmbedJob) -> Result<Embedded> {
        let fields = self.index.profile().schema.fields();
        if let Some(unknown) = job.metadata.iter().find(|name| !fields.contains_key(*name)) {
            let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(OPERATION, "the index has no such field; it has those of its schema")
                .with("field", unknown)
                .with("known", known));
        }
        let input = Input::open(cx).await?;
        let total = input.count(cx).await?;
        let call = self.options.call(cx)?;
        let mut steps = Steps::open(cx).await?;
        let (mut rows, mut result) = (input.rows(cx), Embedded::default());
        loop {
            cx.progress.report(ProgressEvent::new(Self::KIND, result.rows, total, "rows"));
            let mut read = 0;
            let made = match steps.get(result.rows).await? {
                Some(made) => made,
                None => {
                    let some = rows.take(self.options.step()).await?;
                    if some.is_empty() {
                        break;
                    }
                    read = some.len() as u64;
                    let made = self.step(cx, &call, &job, some).await?;
                    let bytes = serde_json::to_vec(&made)
                        .map_err(|error| Error::internal(OPERATION, "the step cannot be written").with_source(error))?;
                    steps.put(result.rows, bytes.into()).await?
                }
            };
            let made = parse(&made)?;
            input.follow(cx, &mut rows, result.rows, read, made.rows).await?;
            result.rows += made.rows;
            result.failed += made.failed;
            let room = SHOWN.saturating_sub(result.failures.len());
            result.failures.extend(made.failures.into_iter().take(room));
            add(&mut result.usage, &made.usage);
        }
        Ok(result)
    }
}

fn parse(step: &[u8]) -> Result<Embedded> {
    let made: Embedded = serde_json::from_slice(step)
        .map_err(|error| Error::corrupt(OPERATION, "a step of an earlier attempt is damaged").with_source(error))?;
    if made.rows == 0 {
        return Err(Error::corrupt(OPERATION, "a step of an earlier attempt has no rows"));
    }
    Ok(made)
}
