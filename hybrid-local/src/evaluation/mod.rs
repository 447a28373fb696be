//! Whether a candidate may replace the version in service: golden sets, metrics, a paired test, a verdict and a report.
//!
//! Works with any [`InferenceBackend`](hybrid_core::InferenceBackend) and needs neither candle nor SQLite.
//!
//! # The verdict
//! | verdict | when |
//! |---|---|
//! | [`Refuse`](hybrid_core::Verdict::Refuse) | over a [budget](Budgets), or significantly worse over all cases, or on a slice (Holm over the slices) |
//! | [`Promote`](hybrid_core::Verdict::Promote) | significantly better over all cases; for a first version, the lower bound beats always giving the most common answer |
//! | [`Hold`](hybrid_core::Verdict::Hold) | else |
//!
//! The first that fits holds: nothing makes up for a slice that got worse. *Significantly* is p < 0.05, two-sided, by the exact McNemar test for right and
//! wrong and the paired bootstrap for scores; all are in [`stats`]. A slice is the cases of one expected label or of one value of a tag.
//!
//! ```
//! use hybrid_core::{CallContext, NoProgress, RequestId, SystemIds, TenantId, Verdict, memory::ScriptedBackend, task::*};
//! use hybrid_local::evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> hybrid_core::Result<()> {
//! let golden: String = (0..20)
//!     .map(|i| format!("{{\"input\": {{\"text\": \"message {i}\"}}, \"expected\": {{\"label\": \"{}\"}}}}\n", if i < 10 { "order" } else { "hours" }))
//!     .collect();
//! let golden = GoldenSet::from_jsonl("bakery", golden)?;
//!
//! // Any backend will do; this one gives its answers from a script, and all of them are right.
//! let answer = |case: &hybrid_local::evaluation::GoldenCase| {
//!     let label = case.expected["label"].as_str().unwrap_or_default();
//!     Classification::ranked(vec![LabelScore::new(label, 1.0)], None)
//! };
//! let results = golden.cases().iter().map(answer).collect::<Result<_, _>>()?;
//! let candidate = ScriptedBackend::<Classify>::new("candidate", [Ok(ClassifyResponse { results })]);
//!
//! let evaluator = Evaluator::classify(EvaluatorOptions::default())?;
//! let cx = CallContext::new(TenantId::single(), RequestId::next(&SystemIds::default()));
//! let report = evaluator.evaluate(&cx, &golden, Contender::new(&candidate), None, &NoProgress).await?;
//! assert_eq!(report.verdict, Verdict::Promote);
//! println!("{}", report.to_markdown());
//! # Ok(())
//! # }
//! ```

mod budgets;
mod decide;
mod evaluator;
mod golden;
mod labels;
pub(crate) mod markdown;
mod report;
mod run;
mod scorer;
pub mod stats;
mod text;

pub use budgets::Budgets;
pub use evaluator::{Contender, Evaluator, EvaluatorOptions};
pub use golden::{GoldenCase, GoldenSet};
pub use labels::{Calibration, CalibrationBin, LabelMetrics, LabelReport};
pub use report::{Baseline, Change, Comparison, GoldenSummary, Measured, Report, Slice, SliceBy, SliceComparison};
pub use scorer::{Answer, ChatLabelScorer, Expected, LabelCase, LabelScorer, Scale, Scorer, Shown};
pub use text::{TextCase, TextScorer};
