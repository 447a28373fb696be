//! Job kinds over rows: a file of JSON objects in, a model's answers out, over the ports alone.
//!
//! | handler | kind | what it does |
//! |---|---|---|
//! | [`Enrich`] | `enrich` | a prompt for each row, the answers checked against a JSON Schema, as a file in the rows' order |
//! | [`EmbedRows`] | `embed` | each row's text into a [`VectorIndex`](hybrid_core::VectorIndex) |
//! | [`Summarise`] | `summarise` | one text of all rows: parts are summarised, and the summaries again, until one is left |
//!
//! The rows are the lines of the job's [input](crate::job::Job::input): a tenant's file in JSON Lines, each line an object. A line that is none, or that has over a
//! mebibyte, fails the job by its number before a model is asked. Texts are made of a row by a [`Template`].
//!
//! # What they promise
//! - **Rows are resumed.** A few rows at a time become an effect of the job, created once. A job that runs again, after a crash or a lost
//!   lease, asks no model for rows that have theirs, and ends with the same output; two workers on one job agree on it, however differently a model
//!   answers twice.
//! - **A row's own trouble is the row's.** An answer that does not fit, or a row that is too large, is told in the row's place; everything
//!   else (a backend that is away, a policy that forbids it) ends the attempt.
//! - **What is left.** The answers to rows are removed once their file is durable; of `embed` a count for each step stays, of `summarise` the summaries
//!   that the last was made of.
//!
//! A handler of one's own goes through a file the same way with [`Lines`] and [`Steps`].

mod embed;
mod enrich;
mod lines;
mod rows;
mod steps;
mod summarise;
mod template;

use hybrid_core::{CallContext, DataPolicy, Result, Usage};

pub use embed::{EmbedJob, EmbedRows, Embedded, RowFailure};
pub use enrich::{Enrich, EnrichJob, Enriched};
pub use lines::{Line, Lines};
pub use steps::Steps;
pub use summarise::{Summarise, SummariseJob, Summarised};
pub use template::Template;

use crate::worker::JobContext;

/// How a handler goes through rows.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// The most requests at one time; 4 by default.
    pub concurrency: usize,
    /// How many rows become one effect: how many a crash costs at most. 16 by default; fewer where these have over 4 MiB.
    pub step: usize,
    /// Where rows may go at most, whatever a job's own policy allows; anywhere by default.
    pub policy: DataPolicy,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { concurrency: 4, step: 16, policy: DataPolicy::default() }
    }
}

impl BatchOptions {
    fn concurrency(&self) -> usize {
        self.concurrency.max(1)
    }

    fn step(&self) -> usize {
        self.step.max(1)
    }

    /// The context of a call for a job: its data goes where both policies let it.
    fn call(&self, cx: &JobContext) -> Result<CallContext> {
        let mut call = cx.call()?;
        call.policy = call.policy.and(&self.policy);
        Ok(call)
    }
}

fn add(all: &mut Usage, one: &Usage) {
    let Usage {
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens,
        reasoning_tokens,
        audio_seconds,
        images,
    } = all;
    let sum = |all: &mut u64, one: u64| *all = all.saturating_add(one);
    sum(input_tokens, one.input_tokens);
    sum(output_tokens, one.output_tokens);
    sum(cache_read_tokens, one.cache_read_tokens);
    sum(cache_write_tokens, one.cache_write_tokens);
    sum(reasoning_tokens, one.reasoning_tokens);
    sum(images, one.images);
    *audio_seconds += one.audio_seconds;
}
