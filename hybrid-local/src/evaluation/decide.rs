use hybrid_core::{Interval, Verdict};

use super::report::{Baseline, Comparison, Slice};

/// What a verdict rests on.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    pub(super) metric: &'a str,
    pub(super) alpha: f64,
    /// How many candidates are judged, of which the best is taken.
    pub(super) candidates: usize,
    /// A reason for each budget that the candidate is over.
    pub(super) over: Vec<String>,
    pub(super) score: Interval,
    pub(super) baseline: &'a Baseline,
    pub(super) comparison: Option<&'a Comparison>,
    pub(super) slices: &'a [Slice],
}

impl Evidence<'_> {
    /// The verdict with its reason. What speaks against the candidate goes before what speaks for it.
    pub(super) fn decide(self) -> (Verdict, String) {
        let Self { metric, alpha, candidates, over, score, baseline, comparison, slices } = self;
        let mut against = over;
        if let Some(comparison) = comparison
            && comparison.p < alpha
            && comparison.difference.value < 0.0
        {
            against.push(format!(
                "{metric} falls by {} to {} ({})",
                points(-comparison.difference.value),
                percent(score.value),
                p_text(comparison.p)
            ));
        }
        for slice in slices {
            if let Some(there) = slice.comparison.as_ref().filter(|there| there.is_worse(slice.candidate, alpha)) {
                let (from, to) = (percent(there.incumbent.value), percent(slice.candidate.value));
                against.push(format!(
                    "{metric} on {slice} falls from {from} to {to} ({} after Holm over {} slices)",
                    p_text(there.adjusted_p),
                    slices.len()
                ));
            }
        }
        if !against.is_empty() {
            let reason = against.join("; ");
            return (Verdict::Refuse(reason.clone()), reason);
        }
        let promoted = promoted_below(alpha, candidates);
        match comparison {
            None => {
                let low = format!("the lower bound of {metric}, {},", percent(score.low));
                let common = format!(
                    "{}, what always answering \"{}\" gives",
                    percent(baseline.score),
                    super::report::snippet(&baseline.answer)
                );
                match score.low > baseline.score {
                    true => (Verdict::Promote, format!("{low} beats {common}")),
                    false => (Verdict::Hold, format!("{low} does not beat {common}")),
                }
            }
            Some(Comparison { difference, p, .. }) if *p < promoted && difference.value > 0.0 => (
                Verdict::Promote,
                format!(
                    "{metric} rises by {} to {} ({}); no slice is worse",
                    points(difference.value),
                    percent(score.value),
                    p_text(*p)
                ),
            ),
            Some(Comparison { difference, p, detectable, .. }) => {
                let sign = if difference.value < 0.0 { "-" } else { "+" };
                let several = match *p < alpha && difference.value > 0.0 {
                    true => format!("; as the best of {candidates} it needs p < {promoted:.4}"),
                    false => String::new(),
                };
                let shown = detectable.map_or(String::new(), |least| {
                    format!("; a difference of {} would have shown in four evaluations of five", points(least))
                });
                (
                    Verdict::Hold,
                    format!(
                        "no significant difference: {sign}{} ({}){several}{shown}",
                        points(difference.value.abs()),
                        p_text(*p)
                    ),
                )
            }
        }
    }
}

/// The level of a promotion. Bonferroni: of several that are no better one easily looks so.
pub(super) fn promoted_below(alpha: f64, candidates: usize) -> f64 {
    alpha / candidates as f64
}

/// A share as text, such as `91.2 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A difference of shares as text, such as `7.2 points`.
pub(super) fn points(difference: f64) -> String {
    format!("{:.1} points", 100.0 * difference)
}

/// A p-value as text, such as `p = 0.0123`.
pub(crate) fn p_text(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_owned() } else { format!("p = {p:.4}") }
}
