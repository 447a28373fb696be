//! What a run of the quickstart comes to: the table's rows, and the JSON object of `--json`.

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The versions that this run trained, in order.
    pub versions: Vec<VersionRow>,
    /// What the customer saw who kept asking.
    pub requests: Requests,
    /// The version in service at the end.
    pub serving: Option<u64>,
    /// How long the run took.
    pub seconds: f64,
}

/// One version that was trained and judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its number.
    pub version: u64,
    /// `promote`, `hold` or `refuse`.
    pub verdict: String,
    /// The share of the golden set that it gets right.
    pub accuracy: f64,
    /// The lower end of the share's 95 % interval.
    pub low: f64,
    /// The upper end of the share's 95 % interval.
    pub high: f64,
    /// Cases that it gets right and the version in service wrong.
    pub fixes: u64,
    /// Cases that it gets wrong and the version in service right.
    pub regressions: u64,
    /// The two-sided p-value of the comparison; none for a first version.
    pub p: Option<f64>,
    /// Its expected calibration error.
    pub ece: f64,
    /// How long training took in the attempt that finished it.
    pub train_seconds: f64,
    /// What publishing it moved into the bucket; zero if it was not published.
    pub bytes_moved: u64,
    /// How long the swap to it took at the storefront; none if it was not put into service.
    pub swap_ms: Option<f64>,
}

/// What the customer saw who kept asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Questions answered.
    pub served: u64,
    /// Questions not answered.
    pub failed: u64,
}
