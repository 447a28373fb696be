use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    CallContext, Digest, Error, ErrorKind, InferenceBackend, NewFile, ProgressEvent, Result, Usage,
    task::{Chat, ChatRequest, ResponseFormat, Sampling},
};
use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    BatchOptions, Template, add,
    rows::{Input, Row},
    steps::Steps,
};
use crate::worker::{JobContext, JobHandler, Resource};

const OPERATION: &str = "enrich rows";
const MAX_TRIES: u32 = 10;

/// What `enrich` asks for; the rows are the job's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrichJob {
    /// What the model is told before each row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What it is asked of a row.
    pub prompt: Template,
    /// The JSON Schema that every answer has to fit. References to other places are refused.
    pub schema: Value,
    /// How tokens are drawn. Without a seed each row, and each further try of it, has one of its own that is made of the job's id.
    #[serde(default)]
    pub sampling: Sampling,
    /// How often a row is asked before it is given up, from 1 to 10; 3 by default.
    #[serde(default = "three")]
    pub tries: u32,
}

fn three() -> u32 {
    3
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Enriched {
    /// The file of answers, in the rows' order: `{"line", "input", "output"}` on each line, or `error` in the place of `output`, with `usage`.
    pub output_file_id: String,
    /// How many rows there are.
    pub rows: u64,
    /// How many of them have no answer.
    pub failed: u64,
    /// What all answers used.
    pub usage: Usage,
    /// Whether the backend forced answers into the schema. Where it cannot, the schema is told to the model, and the answers are checked alike.
    pub constrained: bool,
}

/// Carries out `enrich`: asks a model about every row, and leaves a file of answers that fit a schema.
#[derive(Debug)]
pub struct Enrich {
    backend: Arc<dyn InferenceBackend<Chat>>,
    options: BatchOptions,
}

/// A line of the file of answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    line: u64,
    input: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    usage: Usage,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unconstrained: bool,
}

impl Enrich {
    /// A handler that asks `backend`.
    pub fn new(backend: Arc<dyn InferenceBackend<Chat>>, options: BatchOptions) -> Self {
        Self { backend, options }
    }

    async fn step(&self, asking: &Asking<'_>, rows: Vec<Row>) -> Result<Bytes> {
        let answers = stream::iter(rows).map(|row| asking.answer(row)).buffered(self.options.concurrency());
        let answers: Vec<Answered> = answers.try_collect().await?;
        let mut lines = Vec::new();
        for answer in &answers {
            serde_json::to_writer(&mut lines, answer)
                .map_err(|error| Error::internal(OPERATION, "the answer cannot be written").with_source(error))?;
            lines.push(b'\n');
        }
        Ok(lines.into())
    }
}

#[async_trait]
impl JobHandler for Enrich {
    const KIND: &'static str = "enrich";
    type Payload = EnrichJob;
    type Output = Enriched;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: EnrichJob) -> Result<Enriched> {
        let schema = validator(&job)?;
        let input = Input::open(cx).await?;
        let name = cx.output_file();
        let report = |done: u64, total| cx.progress.report(ProgressEvent::new(Self::KIND, done, total, "rows"));
        let mut tally = Tally {
            result: Enriched { output_file_id: format!("file-{name}"), constrained: true, ..Enriched::default() },
        };
        let mut steps = Steps::open(cx).await?;
        if let Some(file) = input.files.get(&cx.job.tenant, name).await? {
            // An earlier attempt came to the end, but for its result.
            let mut rows = Input::own(input.files.clone(), file).rows(cx);
            while let Some(row) = rows.next().await? {
                tally.add(serde_json::from_value(Value::Object(row.fields)).map_err(damaged)?);
            }
            steps.clear().await?;
            return Ok(tally.result);
        }

        let total = input.count(cx).await?;
        let call = self.options.call(cx)?;
        let asking = Asking { backend: &*self.backend, call: &call, job: &job, schema: &schema, seed: seed_of(cx) };
        let mut upload = input.files.upload(&cx.job.tenant, name);
        let (mut rows, mut done) = (input.rows(cx), 0);
        report(0, total);
        loop {
            let mut read = 0;
            let made = match steps.get(done).await? {
                Some(made) => made,
                None => {
                    let some = rows.take(self.options.step()).await?;
                    if some.is_empty() {
                        break;
                    }
                    read = some.len() as u64;
                    steps.put(done, self.step(&asking, some).await?).await?
                }
            };
            let found = tally.lines(&made)?;
            input.follow(cx, &mut rows, done, read, found).await?;
            done += found;
            upload.write(made).await?;
            report(done, total);
        }
        upload.finish(NewFile::new(format!("{}.enriched.jsonl", input.file.name), "batch_output")).await?;
        steps.clear().await?;
        Ok(tally.result)
    }
}

struct Tally {
    result: Enriched,
}

impl Tally {
    fn add(&mut self, answer: Answered) {
        self.result.rows += 1;
        self.result.failed += u64::from(answer.output.is_none());
        self.result.constrained &= !answer.unconstrained;
        add(&mut self.result.usage, &answer.usage);
    }

    /// Adds a step's lines; answers with how many there are.
    fn lines(&mut self, step: &[u8]) -> Result<u64> {
        let before = self.result.rows;
        for line in step.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.add(serde_json::from_slice(line).map_err(damaged)?);
        }
        if self.result.rows == before {
            return Err(Error::corrupt(OPERATION, "a step of an earlier attempt has no rows"));
        }
        Ok(self.result.rows - before)
    }
}

fn damaged(error: serde_json::Error) -> Error {
    Error::corrupt(OPERATION, "an answer of an earlier attempt is damaged").with_source(error)
}

/// Compiles the schema, and checks what else can never succeed.
fn validator(job: &EnrichJob) -> Result<Validator> {
    if !(1..=MAX_TRIES).contains(&job.tries) {
        return Err(Error::invalid(OPERATION, "a row is tried 1 to 10 times").with("tries", job.tries));
    }
    // Patterns by the linear engine: a customer's schema must not keep the kitchen busy for ever.
    let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
    options.build(&job.schema).map_err(|error| {
        Error::invalid(OPERATION, "the schema is no JSON Schema that can be checked here").with("reason", error)
    })
}

fn seed_of(cx: &JobContext) -> u64 {
    let digest = Digest::of(cx.job.id.as_uuid().as_bytes());
    digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// What all rows are asked with.
struct Asking<'a> {
    backend: &'a dyn InferenceBackend<Chat>,
    call: &'a CallContext,
    job: &'a EnrichJob,
    schema: &'a Validator,
    seed: u64,
}

impl Asking<'_> {
    async fn answer(&self, row: Row) -> Result<Answered> {
        let prompt = self.job.prompt.fill(&row.fields);
        let mut answered = Answered {
            line: row.line,
            input: Value::Object(row.fields),
            output: None,
            error: None,
            usage: Usage::default(),
            unconstrained: false,
        };
        let mut tries = 0;
        while answered.output.is_none() && tries < self.job.tries {
            let request = self.request(&prompt, row.line, tries, answered.unconstrained);
            let reply = match self.backend.infer(self.call, request).await {
                Ok(reply) => reply,
                Err(error) if !answered.unconstrained && cannot_constrain(&error) => {
                    answered.unconstrained = true;
                    continue;
                }
                // Another row may well be answered.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::TooLarge) => {
                    answered.error = Some(error.public_message());
                    return Ok(answered);
                }
                Err(error) => return Err(error.with("line", row.line)),
            };
            tries += 1;
            add(&mut answered.usage, &reply.meta.usage);
            match self.read(&reply.response.text()) {
                Ok(output) => (answered.output, answered.error) = (Some(output), None),
                Err(reason) => answered.error = Some(reason),
            }
        }
        Ok(answered)
    }

    fn request(&self, prompt: &str, line: u64, tries: u32, told: bool) -> ChatRequest {
        let mut request = ChatRequest { sampling: self.job.sampling.clone(), ..ChatRequest::user(prompt) };
        if let Some(system) = &self.job.system {
            request = request.with_system(system);
        }
        if told {
            request = request.with_system(format!("Answer with JSON alone, of this JSON Schema: {}", self.job.schema));
        } else {
            request.response_format = ResponseFormat::json_schema("row", self.job.schema.clone());
        }
        let seed = self.seed.wrapping_add(line.wrapping_mul(u64::from(MAX_TRIES)));
        let own = request.sampling.seed.unwrap_or(seed).wrapping_add(u64::from(tries));
        request.sampling.seed = Some(own);
        request
    }

    /// The answer as JSON that fits, or what is wrong with it.
    fn read(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        // Models like to fence what they write.
        let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
        let inner = inner.map_or(text, |inner| inner.strip_prefix("json").unwrap_or(inner));
        let value = serde_json::from_str(inner).map_err(|error| format!("the answer is no JSON: {error}"))?;
        let wrong = self.schema.iter_errors(&value).next().map(|error| {
            format!("the answer does not fit the schema at {:?}: {error}", error.instance_path().as_str())
        });
        wrong.map_or(Ok(value), Err)
    }
}

/// Whether the backend refuses only to force a schema.
fn cannot_constrain(error: &Error) -> bool {
    error.kind() == ErrorKind::Unsupported
        && error.context("field").is_some_and(|field| field.starts_with("response_format"))
}
