//! What an evaluation decided about a candidate, as it is stored with a version.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, document::document};

/// Whether a candidate may replace the version in service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision", content = "reason")]
#[non_exhaustive]
pub enum Verdict {
    /// Better beyond doubt: publish it.
    Promote,
    /// Not worse, not surely better: keep the version in service.
    Hold,
    /// Worse, or over a budget, for the reason given: keep it away.
    Refuse(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promote => f.write_str("promote"),
            Self::Hold => f.write_str("hold"),
            Self::Refuse(reason) => write!(f, "refuse: {reason}"),
        }
    }
}

/// A share with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// The part of an evaluation that a version carries for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictRecord {
    /// The decision.
    pub verdict: Verdict,
    /// The digest of the golden set.
    pub golden: Digest,
    /// How many golden cases there were.
    pub cases: u64,
    /// The manifest of the version that the candidate was compared with.
    pub incumbent: Option<Digest>,
    /// The primary metric's name, such as `accuracy`.
    pub metric: String,
    /// The candidate's score with its 95 % interval.
    pub candidate: Interval,
    /// The incumbent's score, where there is one.
    pub baseline: Option<Interval>,
    /// Cases that the candidate gets right and the incumbent wrong.
    pub fixes: u64,
    /// Cases that the candidate gets wrong and the incumbent right.
    pub regressions: u64,
    /// The two-sided p-value of the paired comparison.
    pub p: Option<f64>,
    /// Expected calibration error of the candidate's confidence.
    pub ece: Option<f64>,
}
document!(VerdictRecord, "hybrid.verdict", 1);
