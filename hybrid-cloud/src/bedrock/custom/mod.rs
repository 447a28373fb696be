//! Models of one's own on Bedrock: fine-tuned there ([`BedrockTrainer`]), or trained elsewhere and imported ([`ModelImport`]).
//!
//! ```no_run
//! use std::sync::Arc;
//! use hybrid_cloud::{
//!     aws::{AwsConfig, AwsOptions},
//!     bedrock::custom::{BedrockTrainer, BedrockTrainerOptions},
//!     s3::{S3Options, S3Store},
//! };
//!
//! # async fn run() -> hybrid_core::Result<()> {
//! let config = AwsConfig::load(AwsOptions::default()).await?;
//! let store = S3Store::new(&config, "s3://bakery/prod".parse()?, S3Options::default())?;
//! let role = "arn:aws:iam::123456789012:role/bedrock-reads-bakery";
//! let options = BedrockTrainerOptions::new(role, "bedrock/training".parse()?);
//! let trainer = BedrockTrainer::new(&config, Arc::new(store.staging()), options)?;
//! # Ok(())
//! # }
//! ```
//!
//! # One order, one job
//! A job at Bedrock has a name that follows from what was ordered: the plan, or the version of the model. Whoever carries out the same order again, in this process, after a crash
//! or on another machine, finds that job and goes on with it; two who order at once share one by its request token. So nothing is paid for twice, and nothing about a job
//! is kept on this side.
//!
//! # Retries
//! Calls are made again as the table of [`bedrock`](super) says. Looks at a job go on over failures that are temporary, [`PollPolicy::patience`] of them in a row.

mod control;
mod import;
mod trainer;

use std::time::Duration;

pub use self::{
    import::{ImportRun, ImportedModel, ModelImport, ModelImportOptions},
    trainer::{BedrockTrainer, BedrockTrainerOptions, OnCancel, Serving},
};

/// How often a job at Bedrock is looked at. The waits grow twofold from `first` to `cap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollPolicy {
    /// The wait after the first look.
    pub first: Duration,
    /// The longest wait.
    pub cap: Duration,
    /// How many looks in a row may fail for a time, each after the retries of its call.
    pub patience: u32,
}

impl Default for PollPolicy {
    /// 5 s, 10 s, … 60 s; 10 failures in a row.
    fn default() -> Self {
        Self { first: Duration::from_secs(5), cap: Duration::from_secs(60), patience: 10 }
    }
}
