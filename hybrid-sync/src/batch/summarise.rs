use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    CallContext, Error, InferenceBackend, Progress, ProgressEvent, Result, Usage,
    task::{Chat, ChatRequest, Sampling},
};
use serde::{Deserialize, Serialize};

use super::{BatchOptions, Template, add, rows::Input, steps::Steps};
use crate::worker::{JobContext, JobHandler, Resource};

const OPERATION: &str = "summarise rows";
/// So many summaries are made one of at least, so that each level has fewer than the one below.
const FEWEST: usize = 2;
/// Steps are numbered by level and place.
const LEVEL: u64 = 1 << 32;

/// What `summarise` asks for; the rows are the job's input, such as a week's conversations, one on each line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummariseJob {
    /// The text of a row.
    pub text: Template,
    /// What the model is to make of a part of the texts, and then of what it made: such as what customers asked for and what went wrong.
    pub instruction: String,
    /// The most bytes of text in one request, from 1,000; 12,000 by default. A row with more is cut into several parts.
    #[serde(default = "part_bytes")]
    pub part_bytes: usize,
    /// How tokens are drawn.
    #[serde(default)]
    pub sampling: Sampling,
}

fn part_bytes() -> usize {
    12_000
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summarised {
    /// The one text.
    pub summary: String,
    /// How many rows it is of.
    pub rows: u64,
    /// How many requests were made of texts and of summaries.
    pub requests: u64,
    /// How many levels of summaries there are.
    pub levels: u64,
    /// What all requests used.
    pub usage: Usage,
}

/// Carries out `summarise`: parts of the rows' texts are summarised, and the summaries again, until one is left.
#[derive(Debug)]
pub struct Summarise {
    backend: Arc<dyn InferenceBackend<Chat>>,
    options: BatchOptions,
}

/// What all parts are summarised with.
struct Asking<'a> {
    call: CallContext,
    job: &'a SummariseJob,
    progress: &'a dyn Progress,
}

/// A step: one summary.
#[derive(Debug, Serialize, Deserialize)]
struct Step {
    summary: String,
    usage: Usage,
}

impl Summarise {
    /// A handler that asks `backend`.
    pub fn new(backend: Arc<dyn InferenceBackend<Chat>>, options: BatchOptions) -> Self {
        Self { backend, options }
    }

    /// Summarises the parts of one level, but those that an earlier attempt has.
    async fn level(
        &self,
        asking: &Asking<'_>,
        parts: Vec<String>,
        steps: &mut Steps<'_>,
        result: &mut Summarised,
    ) -> Result<Vec<String>> {
        let level = result.levels;
        let mut summaries = Vec::with_capacity(parts.len());
        let (mut at, total) = (level * LEVEL, parts.len() as u64);
        let mut parts = parts.into_iter();
        loop {
            let stage = format!("summarise level {level}");
            asking.progress.report(ProgressEvent::new(stage, summaries.len() as u64, total, "parts"));
            let some: Vec<String> = parts.by_ref().take(self.options.concurrency()).collect();
            if some.is_empty() {
                return Ok(summaries);
            }
            let mut known = Vec::with_capacity(some.len());
            for (number, part) in (at..).zip(some) {
                known.push((steps.get(number).await?, part));
            }
            let made: Vec<_> = stream::iter(known)
                .map(|(known, part)| async move {
                    match known {
                        Some(known) => Ok(known),
                        None => self.summarise(asking, level, part).await,
                    }
                })
                .buffered(self.options.concurrency())
                .try_collect()
                .await?;
            for bytes in made {
                let step = steps.put(at, bytes).await?;
                let Step { summary, usage } = serde_json::from_slice(&step).map_err(|error| {
                    Error::corrupt(OPERATION, "a step of an earlier attempt is damaged").with_source(error)
                })?;
                summaries.push(summary);
                add(&mut result.usage, &usage);
                result.requests += 1;
                at += 1;
            }
        }
    }

    async fn summarise(&self, asking: &Asking<'_>, level: u64, part: String) -> Result<bytes::Bytes> {
        let job = asking.job;
        let of = if level == 0 { "texts" } else { "summaries of parts, in order" };
        let system = format!("{}\n\nYou are given {of}. Answer with the summary alone.", job.instruction);
        let request = ChatRequest { sampling: job.sampling.clone(), ..ChatRequest::user(part).with_system(system) };
        let reply = self.backend.infer(&asking.call, request).await?;
        let summary = reply.response.text().trim().to_owned();
        if summary.is_empty() {
            return Err(Error::unavailable(OPERATION, "the model gave an empty summary").with("level", level));
        }
        let step = serde_json::to_vec(&Step { summary, usage: reply.meta.usage });
        step.map(Into::into)
            .map_err(|error| Error::internal(OPERATION, "the step cannot be written").with_source(error))
    }
}

#[async_trait]
impl JobHandler for Summarise {
    const KIND: &'static str = "summarise";
    type Payload = SummariseJob;
    type Output = Summarised;

    fn resource(&self) -> Resource {
        Resource::Accelerator
    }

    async fn run(&self, cx: &JobContext, job: SummariseJob) -> Result<Summarised> {
        if job.part_bytes < 1_000 {
            return Err(Error::invalid(OPERATION, "a part has 1,000 bytes at least").with("part_bytes", job.part_bytes));
        }
        let input = Input::open(cx).await?;
        let mut result = Summarised { rows: input.count(cx).await?, ..Summarised::default() };
        let asking = Asking { call: self.options.call(cx)?, job: &job, progress: &*cx.progress };
        let mut steps = Steps::open(cx).await?;
        let (mut rows, mut texts) = (input.rows(cx), Parts::new(job.part_bytes, 1));
        while let Some(row) = rows.next().await? {
            texts.add(&job.text.fill(&row.fields));
        }
        let mut parts = texts.finish();
        if parts.is_empty() {
            return Err(Error::invalid(OPERATION, "no row has a text").with("file", input.file.id));
        }
        loop {
            let summaries = self.level(&asking, parts, &mut steps, &mut result).await?;
            result.levels += 1;
            if let [summary] = &summaries[..] {
                result.summary = summary.clone();
                return Ok(result);
            }
            let mut groups = Parts::new(job.part_bytes, FEWEST);
            summaries.iter().for_each(|summary| groups.add(summary));
            parts = groups.finish();
        }
    }
}

/// Texts put together to parts of a size.
struct Parts {
    limit: usize,
    /// The fewest texts in a part that is not the last; a single text is only cut where this is one.
    fewest: usize,
    parts: Vec<String>,
    last: String,
    in_last: usize,
}

const BETWEEN: &str = "\n\n---\n\n";

impl Parts {
    fn new(limit: usize, fewest: usize) -> Self {
        Self { limit, fewest, parts: Vec::new(), last: String::new(), in_last: 0 }
    }

    fn add(&mut self, text: &str) {
        let mut text = text.trim();
        if text.is_empty() {
            return;
        }
        if self.in_last >= self.fewest && self.last.len() + BETWEEN.len() + text.len() > self.limit {
            self.cut();
        }
        while self.fewest == 1 && text.len() > self.limit {
            let end = (0..=self.limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(self.limit);
            // Between two lines or words, where there is such a place in the second half.
            let end = text[..end].rfind(['\n', ' ']).filter(|at| *at > end / 2).unwrap_or(end);
            self.last.push_str(&text[..end]);
            self.cut();
            text = text[end..].trim_start();
        }
        if !self.last.is_empty() {
            self.last.push_str(BETWEEN);
        }
        self.last.push_str(text);
        self.in_last += 1;
    }

    fn cut(&mut self) {
        self.parts.push(std::mem::take(&mut self.last));
        self.in_last = 0;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.last.is_empty() {
            self.cut();
        }
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(limit: usize, fewest: usize, texts: &[&str]) -> Vec<String> {
        let mut parts = Parts::new(limit, fewest);
        texts.iter().for_each(|text| parts.add(text));
        parts.finish()
    }

    #[test]
    fn texts_are_put_together_and_cut_to_parts() {
        assert_eq!(parts(20, 1, &["one", " ", "two", "three and four"]), ["one\n\n---\n\ntwo", "three and four"]);
        let cut = parts(10, 1, &["zwölf Brötchen für Ä"]);
        assert_eq!(cut, ["zwölf", "Brötchen", "für Ä"]);
        assert!(parts(10, 1, &["äääääääääääää"]).iter().all(|part| part.len() <= 10));
        assert!(parts(10, 1, &[]).is_empty());
    }

    #[test]
    fn there_are_fewer_groups_than_summaries_however_long_these_are() {
        let long = "x".repeat(50);
        assert_eq!(parts(10, 2, &[&*long; 5]).len(), 3);
        assert_eq!(parts(10, 2, &[&*long; 2]).len(), 1);
        assert_eq!(parts(1000, 2, &[&*long; 5]).len(), 1);
    }
}
