use std::{collections::BTreeMap, fmt, time::Duration};

use hybrid_core::{Digest, Document, Interval, Money, ServedModel, Verdict, VerdictRecord};
use serde::{Deserialize, Serialize};

use super::{EvaluatorOptions, LabelMetrics};

/// All that an evaluation found, with the verdict and the reason for it.
///
/// The same golden set, answers and options give the same report, byte for byte, unless a latency budget made it measure time. Stored with
/// [`encode`](Document::encode) as `hybrid.evaluation/1`; [`to_markdown`](Self::to_markdown) is for people, [`record`](Self::record) goes with the version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The decision.
    pub verdict: Verdict,
    /// Why, in a sentence or two with the figures that decided.
    pub reason: String,
    /// The task, as [`Task::NAME`](hybrid_core::Task::NAME).
    pub task: String,
    /// The primary metric: the mean of the cases' scores.
    pub metric: String,
    /// The golden set.
    pub golden: GoldenSummary,
    /// The best that can be had without a model.
    pub baseline: Baseline,
    /// The candidate.
    pub candidate: Measured,
    /// The version in service; `None` for a first version.
    pub incumbent: Option<Measured>,
    /// Candidate against incumbent over all cases; `None` for a first version.
    pub comparison: Option<Comparison>,
    /// The parts of the golden set with enough cases, by expected label and by tag.
    pub slices: Vec<Slice>,
    /// How many parts were left out for having fewer cases than [`EvaluatorOptions::min_slice`].
    pub small_slices: u64,
    /// Cases on which the candidate does better, the largest change first; at most [`EvaluatorOptions::shown`].
    pub fixes: Vec<Change>,
    /// Cases on which the candidate does worse, likewise.
    pub regressions: Vec<Change>,
    /// What the evaluator was told.
    pub options: EvaluatorOptions,
}

impl Document for Report {
    const FORMAT: &'static str = "hybrid.evaluation";
    const MAJOR: u32 = 1;
}

/// Which golden set was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenSummary {
    /// Its name.
    pub name: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many cases it has.
    pub cases: u64,
}

/// What it scores to give the most common expected answer every time: for labels the share of the majority class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// That answer.
    pub answer: String,
    /// Its score.
    pub score: f64,
}

/// One version's result over all cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The model that answered.
    pub model: ServedModel,
    /// The digest of its manifest; `None` for a candidate that is not published yet.
    pub manifest: Option<Digest>,
    /// The primary metric with its 95 % interval: Wilson's for right or wrong, the bootstrap's percentiles for scores.
    pub score: Interval,
    /// More about a classifier.
    pub labels: Option<LabelMetrics>,
    /// The 95th percentile of the time of a request; measured for a candidate under a latency budget alone.
    pub latency_p95: Option<Duration>,
    /// The memory that it states, in bytes.
    pub memory_bytes: Option<u64>,
    /// What all answers cost, where a price is known.
    pub cost: Option<Money>,
    /// How many replies had a [`Note`](hybrid_core::Note), by its code.
    #[serde(default)]
    pub notes: BTreeMap<String, u64>,
}

/// Two versions on the same cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The test: `exact McNemar` or `paired bootstrap`.
    pub test: String,
    /// Candidate minus incumbent, with its 95 % interval.
    pub difference: Interval,
    /// Cases on which the candidate does better.
    pub fixes: u64,
    /// Cases on which it does worse.
    pub regressions: u64,
    /// The two-sided p-value of no difference.
    pub p: f64,
    /// The smallest difference that this golden set would have shown four times in five, at the level at which the best of several is promoted; `None` if it cannot show any, or has nothing to judge by.
    pub detectable: Option<f64>,
}

/// A part of the golden set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// What it was cut by.
    pub by: SliceBy,
    /// The label, or the tag's value.
    pub value: String,
    /// How many cases it has.
    pub cases: u64,
    /// The candidate's score on it.
    pub candidate: Interval,
    /// The comparison on it; `None` for a first version.
    pub comparison: Option<SliceComparison>,
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by, self.value)
    }
}

/// What a slice was cut by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SliceBy {
    /// The expected label.
    Label,
    /// The tag of this name.
    Tag(String),
}

impl fmt::Display for SliceBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label => f.write_str("label"),
            Self::Tag(name) => f.write_str(name),
        }
    }
}

/// Two versions on one slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceComparison {
    /// The incumbent's score.
    pub incumbent: Interval,
    /// Cases on which the candidate does better.
    pub fixes: u64,
    /// Cases on which it does worse.
    pub regressions: u64,
    /// The two-sided p-value on this slice alone.
    pub p: f64,
    /// The p-value after Holm's adjustment over all slices of the report.
    pub adjusted_p: f64,
}

impl SliceComparison {
    /// Whether the candidate is significantly worse here at level `alpha`; `candidate` is its score on the slice.
    pub(super) fn is_worse(&self, candidate: Interval, alpha: f64) -> bool {
        self.adjusted_p < alpha && candidate.value < self.incumbent.value
    }
}

/// A case on which the versions differ. Texts are cut after 160 characters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The case's id.
    pub id: String,
    /// What was asked.
    pub input: String,
    /// What is right.
    pub expected: String,
    /// What the incumbent answers.
    pub incumbent: String,
    /// What the candidate answers.
    pub candidate: String,
}

impl Report {
    /// The part of the report that the version carries for good.
    pub fn record(&self) -> VerdictRecord {
        let comparison = self.comparison.as_ref();
        VerdictRecord {
            verdict: self.verdict.clone(),
            golden: self.golden.digest,
            cases: self.golden.cases,
            incumbent: self.incumbent.as_ref().and_then(|incumbent| incumbent.manifest),
            metric: self.metric.clone(),
            candidate: self.candidate.score,
            baseline: self.incumbent.as_ref().map(|incumbent| incumbent.score),
            fixes: comparison.map_or(0, |comparison| comparison.fixes),
            regressions: comparison.map_or(0, |comparison| comparison.regressions),
            p: comparison.map(|comparison| comparison.p),
            ece: self
                .candidate
                .labels
                .as_ref()
                .and_then(|labels| labels.calibration.as_ref())
                .map(|calibration| calibration.ece),
        }
    }
}

/// The beginning of a text, on one line.
pub(super) fn snippet(text: &str) -> String {
    const LENGTH: usize = 160;
    let line: String = text.chars().take(LENGTH + 1).map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", line[..end].trim_end()),
        None => line,
    }
}
