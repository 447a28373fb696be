//! Plans side by side.

use std::{cmp::Ordering, collections::BTreeMap};

use hybrid_core::{BaseModel, Document, Error, Result, Verdict, VerdictRecord};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FailedPlan, TrainedPlan};
use crate::evaluation::{
    GoldenSummary, Report,
    markdown::{Page, cell, p_text, plain, with_interval},
};

/// Plans compared on one golden set, the best first: the document `hybrid.plan-table/1`.
///
/// The order: what may be put in service by its verdict goes before what stays as it is, and that before what is refused; then the higher score; of equal scores
/// the one that takes less memory, then the one that stood first in the set. Barred plans and failed ones come last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanTable {
    /// The golden set.
    pub golden: GoldenSummary,
    /// The primary metric.
    pub metric: String,
    /// The plans.
    pub rows: Vec<PlanRow>,
}

impl Document for PlanTable {
    const FORMAT: &'static str = "hybrid.plan-table";
    const MAJOR: u32 = 1;
}

/// One plan, and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// Its name.
    pub name: String,
    /// As [`TrainPlan::method`](hybrid_core::TrainPlan::method).
    pub method: String,
    /// As [`TrainPlan::base`](hybrid_core::TrainPlan::base).
    pub base: Option<BaseModel>,
    /// As [`TrainPlan::hyperparameters`](hybrid_core::TrainPlan::hyperparameters).
    pub hyperparameters: BTreeMap<String, Value>,
    /// As [`TrainPlan::seed`](hybrid_core::TrainPlan::seed).
    pub seed: u64,
    /// What it came to.
    pub outcome: PlanOutcome,
}

/// What a plan came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlanOutcome {
    /// A candidate that was judged.
    Judged(Box<PlanFigures>),
    /// Nothing, and why.
    Failed(String),
}

/// What a plan's candidate is and how it was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanFigures {
    /// The verdict with its figures.
    pub verdict: VerdictRecord,
    /// Why, in a sentence.
    pub reason: String,
    /// Why it is compared and cannot be chosen, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barred: Option<String>,
    /// The task that it does.
    pub task: String,
    /// What kind of loader reads it.
    pub architecture: String,
    /// The bytes of its files.
    pub bytes: u64,
    /// Memory while serving, in bytes; zero if unknown.
    pub memory_bytes: u64,
    /// How many judgments it has learnt from.
    pub examples: u64,
    /// How long training took, in seconds.
    pub seconds: f64,
    /// The device it was trained on.
    pub device: String,
}

/// A trained plan with the report on it.
#[derive(Clone, Debug)]
pub struct Judged<'a> {
    /// What was trained.
    pub trained: &'a TrainedPlan,
    /// How it was judged.
    pub report: &'a Report,
    /// Why it cannot be chosen, such as another task than what is in service; `None` if it can.
    pub barred: Option<String>,
}

impl PlanTable {
    /// The table of plans that were judged, in the set's order, and of those that failed.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if nothing was judged, or not everything on the same golden set by the same metric.
    pub fn of(judged: &[Judged<'_>], failed: &[FailedPlan]) -> Result<Self> {
        let refuse = |message: &'static str| Error::invalid("compare plans", message);
        let first = judged.first().ok_or_else(|| refuse("no plan was judged"))?.report;
        let (golden, metric) = (first.golden.clone(), first.metric.clone());
        let mut rows = Vec::with_capacity(judged.len() + failed.len());
        for Judged { trained, report, barred } in judged {
            if (report.golden.digest, &report.metric) != (golden.digest, &metric) {
                let error = refuse("the plans were judged by different golden sets or metrics");
                return Err(error.with("plan", &trained.name).with("metric", &report.metric).with("expected", &metric));
            }
            let TrainedPlan { name, plan, trainer: _, candidate, weights: _, bytes, seconds } = trained;
            let figures = PlanFigures {
                verdict: report.record(),
                reason: report.reason.clone(),
                barred: barred.clone(),
                task: candidate.task.clone(),
                architecture: candidate.architecture.clone(),
                bytes: *bytes,
                memory_bytes: candidate.requirements.memory_bytes,
                examples: candidate.examples,
                seconds: *seconds,
                device: candidate.device.clone(),
            };
            rows.push(PlanRow::new(name, plan, PlanOutcome::Judged(Box::new(figures))));
        }
        let failures =
            failed.iter().map(|it| PlanRow::new(&it.name, &it.plan, PlanOutcome::Failed(it.error.to_string())));
        rows.extend(failures);
        rows.sort_by(PlanRow::order);
        Ok(Self { golden, metric, rows })
    }

    /// The name of the plan to choose; `None` if none can be.
    pub fn best(&self) -> Option<&str> {
        let first = self.rows.first()?;
        first.figures().filter(|figures| figures.barred.is_none()).map(|_| &*first.name)
    }

    /// The table for people, as Markdown (GitHub's).
    pub fn to_markdown(&self) -> String {
        let mut page = Page::default();
        let Self { golden, metric, rows } = self;
        page.line(format_args!(
            "# {} plans on {}: {}\n",
            rows.len(),
            plain(&golden.name),
            self.best().map_or_else(|| "none can be chosen".to_owned(), |best| format!("the best is {}", plain(best)))
        ));
        let headings =
            ["plan", "method", "verdict", metric, "fixes", "regressions", "p", "memory", "files", "trained in"];
        page.table(&headings, 3);
        for row in rows {
            page.row(row.cells(headings.len()));
        }
        page.heading(format_args!("What they are"));
        for row in rows {
            let base = row.base.as_ref().map_or_else(String::new, |base| format!(" of {}", plain(&base_name(base))));
            let settings = serde_json::to_string(&row.hyperparameters).unwrap_or_default();
            let (name, method, seed) = (plain(&row.name), plain(&row.method), row.seed);
            page.line(format_args!(
                "- **{name}**: {method}{base}, settings {}, seed {seed}. {}",
                plain(&settings),
                plain(&row.said())
            ));
        }
        page.line(format_args!("\n{} golden cases, `{}`. Intervals at 95 %.", golden.cases, golden.digest));
        page.0
    }
}

impl PlanRow {
    fn new(name: &str, plan: &hybrid_core::TrainPlan, outcome: PlanOutcome) -> Self {
        Self {
            name: name.to_owned(),
            method: plan.method.clone(),
            base: plan.base.clone(),
            hyperparameters: plan.hyperparameters.clone(),
            seed: plan.seed,
            outcome,
        }
    }

    /// What its candidate is and how it was judged, if it has one.
    pub fn figures(&self) -> Option<&PlanFigures> {
        match &self.outcome {
            PlanOutcome::Judged(figures) => Some(figures),
            PlanOutcome::Failed(_) => None,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let (mine, theirs) = match (self.figures(), other.figures()) {
            (Some(mine), Some(theirs)) => (mine, theirs),
            (mine, theirs) => return theirs.is_some().cmp(&mine.is_some()),
        };
        let rank = |figures: &PlanFigures| match figures.verdict.verdict {
            _ if figures.barred.is_some() => 3,
            Verdict::Promote => 0,
            Verdict::Refuse(_) => 2,
            _ => 1,
        };
        let score = |figures: &PlanFigures| figures.verdict.candidate.value;
        // Memory that is not known is taken for the most.
        let memory = |figures: &PlanFigures| figures.memory_bytes.wrapping_sub(1);
        rank(mine)
            .cmp(&rank(theirs))
            .then(score(theirs).total_cmp(&score(mine)))
            .then(memory(mine).cmp(&memory(theirs)))
    }

    fn cells(&self, count: usize) -> Vec<String> {
        let mut cells = vec![cell(&self.name), cell(&self.method)];
        match self.figures() {
            None => cells.push("failed".to_owned()),
            Some(figures) => {
                let record = &figures.verdict;
                let compared = record.incumbent.is_some();
                cells.push(match &record.verdict {
                    _ if figures.barred.is_some() => "barred".to_owned(),
                    Verdict::Refuse(_) => "refuse".to_owned(),
                    other => other.to_string(),
                });
                cells.push(with_interval(record.candidate));
                cells.push(if compared { record.fixes.to_string() } else { "–".to_owned() });
                cells.push(if compared { record.regressions.to_string() } else { "–".to_owned() });
                cells.push(record.p.map_or_else(|| "–".to_owned(), p_text));
                cells.push(mebibytes(figures.memory_bytes));
                cells.push(mebibytes(figures.bytes));
                cells.push(format!("{:.1} s", figures.seconds));
            }
        }
        cells.resize(count, "–".to_owned());
        cells
    }

    fn said(&self) -> String {
        match &self.outcome {
            PlanOutcome::Failed(why) => format!("It failed: {why}."),
            PlanOutcome::Judged(figures) => match &figures.barred {
                Some(why) => format!("It cannot be chosen: {why}."),
                None => format!("{}.", figures.reason),
            },
        }
    }
}

fn base_name(base: &BaseModel) -> String {
    match base {
        BaseModel::Folder(path) => path.display().to_string(),
        BaseModel::Hub(name) | BaseModel::Provider(name) => name.clone(),
        BaseModel::Version(digest) => digest.to_string(),
        other => format!("{other:?}"),
    }
}

fn mebibytes(bytes: u64) -> String {
    match bytes {
        0 => "–".to_owned(),
        bytes => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
