use std::time::Duration;

use hybrid_core::{Error, Money, Result};
use serde::{Deserialize, Serialize};

use super::run::Answers;

/// What a candidate may use. A candidate over a budget is refused, however good it is; `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Budgets {
    /// The 95th percentile of the time from asking to the whole answer, by the context's clock.
    ///
    /// With this budget the candidate answers one case a request, one after the other, as it would a single customer. Without it no time is measured
    /// and an evaluation depends on nothing but its input.
    pub latency_p95: Option<Duration>,
    /// Memory while serving, in bytes, against [`Requirements::memory_bytes`](hybrid_core::Requirements::memory_bytes). A candidate that does not state
    /// it is refused.
    pub memory_bytes: Option<u64>,
    /// The mean cost of a case.
    pub cost_per_call: Option<Money>,
    /// The cost of the whole golden set.
    pub cost_total: Option<Money>,
}

impl Budgets {
    /// A reason for each budget that the candidate is over.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if budget and cost have different currencies.
    pub(super) fn exceeded(&self, answers: &Answers, memory_bytes: u64, cases: u64) -> Result<Vec<String>> {
        let Self { latency_p95, memory_bytes: memory, cost_per_call, cost_total } = self;
        let mut reasons = Vec::new();
        if let (Some(budget), Some(found)) = (latency_p95, answers.latency_p95)
            && found > *budget
        {
            reasons.push(format!("p95 latency {found:.1?} is over the budget of {budget:.1?}"));
        }
        match memory {
            Some(budget) if memory_bytes == 0 => {
                reasons.push(format!("the candidate does not state its memory, and the budget is {budget} bytes"));
            }
            Some(budget) if memory_bytes > *budget => {
                reasons.push(format!("memory {memory_bytes} bytes is over the budget of {budget}"))
            }
            _ => {}
        }
        let total = cost_total.map(|budget| (budget, "cost of the golden set"));
        let per_call = cost_per_call.map(|budget| Ok((budget.times(cases)?, "cost per call"))).transpose()?;
        for (budget, what) in [total, per_call].into_iter().flatten() {
            if answers.unpriced > 0 {
                reasons.push(format!(
                    "{what} is unknown: {} replies have a price of their backend but no cost",
                    answers.unpriced
                ));
            } else if let Some(cost) = answers.cost {
                if cost.currency != budget.currency {
                    return Err(Error::invalid(
                        "evaluate",
                        "the budget has another currency than the candidate's cost; set it in that currency",
                    )
                    .with("budget", budget)
                    .with("cost", cost));
                }
                if cost.pico > budget.pico {
                    reasons.push(format!("{what} is over the budget: {cost} for {cases} cases against {budget}"));
                }
            }
        }
        Ok(reasons)
    }
}
