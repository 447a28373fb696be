use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::scorer::Answer;

/// How many bins of equal width the calibration has, as in Guo et al. (2017, *ICML*).
const BINS: usize = 15;

/// What is known of a classifier beyond its accuracy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// The mean of the labels' F1, over the labels that golden cases expect.
    pub macro_f1: f64,
    /// Each label that is expected or answered, in order of the labels.
    pub labels: Vec<LabelReport>,
    /// How many cases of each label (rows) were given each label (columns), both in the order of [`labels`](Self::labels).
    pub confusion: Vec<Vec<u64>>,
    /// How well confidence foretells being right; `None` if an answer has no confidence.
    pub calibration: Option<Calibration>,
    /// The mean negative logarithm of the expected label's score, none below 2⁻²³; `None` unless the scores of every answer add up to 1.
    pub log_loss: Option<f64>,
    /// The mean over cases of the sum over labels of (score - truth)², from 0 to 2 (Brier 1950, *Monthly Weather Review* 78:1–3); `None` as for
    /// [`log_loss`](Self::log_loss).
    pub brier: Option<f64>,
    /// Labels that golden cases expect and the model never scores: it cannot answer with them.
    pub unknown: Vec<String>,
}

/// Precision and recall of one label; zero where nothing could be counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelReport {
    /// The label.
    pub label: String,
    /// Cases that expect it.
    pub cases: u64,
    /// Cases that were given it.
    pub answered: u64,
    /// The share of the answers with this label that are right.
    pub precision: f64,
    /// The share of the cases of this label that are found.
    pub recall: f64,
    /// The harmonic mean of precision and recall.
    pub f1: f64,
}

/// How well confidence foretells being right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: the mean distance of confidence and accuracy over the bins, weighted by their cases.
    pub ece: f64,
    /// The bins that have cases, from the least sure.
    pub bins: Vec<CalibrationBin>,
}

/// The answers whose confidence lies in `(low, high]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How many answers there are.
    pub cases: u64,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that is right.
    pub accuracy: f64,
}

impl LabelMetrics {
    /// The metrics of `answers` to cases that expect the label beside each.
    pub(super) fn of(answers: &[(&str, &Answer)]) -> Self {
        let expected: BTreeSet<&str> = answers.iter().map(|(expected, _)| *expected).collect();
        let names: BTreeSet<&str> =
            answers.iter().map(|(_, answer)| answer.text.as_str()).chain(expected.iter().copied()).collect();
        let index: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let mut confusion = vec![vec![0_u64; names.len()]; names.len()];
        for (expected, answer) in answers {
            if let (Some(&row), Some(&column)) = (index.get(expected), index.get(answer.text.as_str())) {
                confusion[row][column] += 1;
            }
        }
        let labels: Vec<_> = index.iter().map(|(label, &at)| label_report(label, at, &confusion)).collect();
        let expected_f1: Vec<f64> = labels.iter().filter(|label| label.cases > 0).map(|label| label.f1).collect();
        let scored: BTreeSet<&str> =
            answers.iter().flat_map(|(_, answer)| answer.scores.iter().map(|score| score.label.as_str())).collect();
        let unknown = if scored.is_empty() {
            Vec::new()
        } else {
            expected.difference(&scored).map(|&label| label.to_owned()).collect()
        };
        let (log_loss, brier) = proper_scores(answers).unzip();
        Self {
            macro_f1: super::stats::mean(&expected_f1),
            labels,
            confusion,
            calibration: Calibration::of(answers),
            log_loss,
            brier,
            unknown,
        }
    }
}

fn label_report(label: &str, at: usize, confusion: &[Vec<u64>]) -> LabelReport {
    let right = confusion[at][at];
    let cases: u64 = confusion[at].iter().sum();
    let answered: u64 = confusion.iter().map(|row| row[at]).sum();
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    LabelReport {
        label: label.to_owned(),
        cases,
        answered,
        precision: share(right, answered),
        recall: share(right, cases),
        f1: share(2 * right, cases + answered),
    }
}

/// Log loss and Brier score, if the scores of every answer are a distribution.
fn proper_scores(answers: &[(&str, &Answer)]) -> Option<(f64, f64)> {
    let (mut log_loss, mut brier) = (0.0, 0.0);
    for (expected, answer) in answers {
        let scores = answer.scores.iter().map(|score| f64::from(score.score));
        if !scores.clone().all(|score| (0.0..=1.0001).contains(&score))
            || (scores.clone().sum::<f64>() - 1.0).abs() > 1e-3
        {
            return None;
        }
        let right =
            answer.scores.iter().find(|score| score.label == **expected).map_or(0.0, |score| f64::from(score.score));
        log_loss -= libm::log(right.max(f64::from(f32::EPSILON)));
        // The sum of (p - truth)² over all labels; a label without a score has p = 0.
        brier += scores.map(|score| score * score).sum::<f64>() - right * right + (1.0 - right) * (1.0 - right);
    }
    let n = answers.len() as f64;
    (!answers.is_empty()).then_some((log_loss / n, brier / n))
}

impl Calibration {
    fn of(answers: &[(&str, &Answer)]) -> Option<Self> {
        let mut bins = [(0_u64, 0.0, 0_u64); BINS];
        for (expected, answer) in answers {
            let confidence = answer.confidence?;
            // Each bin is open below: 0 itself belongs to the first.
            let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            bins[bin].0 += 1;
            bins[bin].1 += confidence;
            bins[bin].2 += u64::from(answer.text == **expected);
        }
        let edge = |bin: usize| bin as f64 / BINS as f64;
        let bins: Vec<_> = bins
            .iter()
            .enumerate()
            .filter(|(_, (cases, ..))| *cases > 0)
            .map(|(bin, &(cases, confidence, right))| CalibrationBin {
                low: edge(bin),
                high: edge(bin + 1),
                cases,
                confidence: confidence / cases as f64,
                accuracy: right as f64 / cases as f64,
            })
            .collect();
        let weighted: f64 = bins.iter().map(|bin| bin.cases as f64 * (bin.confidence - bin.accuracy).abs()).sum();
        (!answers.is_empty()).then(|| Self { ece: weighted / answers.len() as f64, bins })
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::task::LabelScore;

    use super::*;

    fn answer(label: &str, scores: &[(&str, f32)]) -> Answer {
        let confidence = scores.iter().find(|(name, _)| *name == label).map(|(_, score)| f64::from(*score));
        Answer {
            text: label.into(),
            confidence,
            scores: scores.iter().map(|(name, score)| LabelScore::new(*name, *score)).collect(),
        }
    }

    fn metrics(answers: &[(&str, Answer)]) -> LabelMetrics {
        LabelMetrics::of(&answers.iter().map(|(expected, answer)| (*expected, answer)).collect::<Vec<_>>())
    }

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-6
    }

    #[test]
    fn precision_recall_and_confusion_are_those_counted_by_hand() {
        let said = |label: &str| answer(label, &[]);
        let metrics =
            metrics(&[("a", said("a")), ("a", said("a")), ("a", said("b")), ("b", said("b")), ("b", said("c"))]);
        assert_eq!(metrics.confusion, [[2, 1, 0], [0, 1, 1], [0, 0, 0]]);
        let row = |at: usize| (metrics.labels[at].cases, metrics.labels[at].precision, metrics.labels[at].recall);
        assert_eq!([row(0), row(1), row(2)], [(3, 1.0, 2.0 / 3.0), (2, 0.5, 0.5), (0, 0.0, 0.0)]);
        // c is never expected, so it does not count: (4/5 + 1/2) / 2.
        assert!(close(metrics.macro_f1, 0.65), "{}", metrics.macro_f1);
        assert_eq!((metrics.calibration, metrics.log_loss, metrics.unknown.len()), (None, None, 0));
    }

    #[test]
    fn calibration_is_the_weighted_distance_of_confidence_and_accuracy() {
        // Bins of 1/15: 0.9 and 0.93 share (0.8667, 0.9333].
        let sure = |label: &str, share: f32| answer(label, &[(label, share)]);
        let metrics =
            metrics(&[("a", sure("a", 0.9)), ("a", sure("b", 0.93)), ("a", sure("a", 0.6)), ("a", sure("a", 1.0))]);
        let calibration = metrics.calibration.unwrap();
        // 2 · |0.915 - 0.5| + |0.6 - 1| + |1 - 1|, over 4.
        assert!(close(calibration.ece, (2.0 * 0.415 + 0.4) / 4.0), "{}", calibration.ece);
        assert_eq!(calibration.bins.iter().map(|bin| bin.cases).collect::<Vec<_>>(), [1, 2, 1]);
        assert!(close(calibration.bins[2].high, 1.0));
        // 0.2 is 3/15 exactly, the upper end of its bin.
        let edge = Answer { confidence: Some(0.2), ..answer("a", &[]) };
        let bins = LabelMetrics::of(&[("a", &edge)]).calibration.unwrap().bins;
        assert!(close(bins[0].low, 2.0 / 15.0) && close(bins[0].high, 0.2), "{bins:?}");
        let none = LabelMetrics::of(&[("a", &answer("a", &[("a", 0.0)]))]).calibration.unwrap();
        assert_eq!((none.ece, none.bins[0].low), (1.0, 0.0));
    }

    #[test]
    fn log_loss_and_brier_judge_the_whole_distribution() {
        let metrics =
            metrics(&[("a", answer("a", &[("a", 0.8), ("b", 0.2)])), ("b", answer("a", &[("a", 0.6), ("b", 0.4)]))]);
        assert!(close(metrics.log_loss.unwrap(), -(0.8f64.ln() + 0.4f64.ln()) / 2.0));
        assert!(close(metrics.brier.unwrap(), (0.04 + 0.04 + 0.36 + 0.36) / 2.0));
    }

    #[test]
    fn a_label_that_the_model_does_not_know_is_named_and_costs_its_due() {
        let metrics = metrics(&[("a", answer("a", &[("a", 1.0)])), ("new", answer("a", &[("a", 1.0)]))]);
        assert_eq!(metrics.unknown, ["new"]);
        assert!(close(metrics.brier.unwrap(), 1.0));
        assert!(close(metrics.log_loss.unwrap(), 23.0 * std::f64::consts::LN_2 / 2.0));
    }

    #[test]
    fn scores_that_are_no_distribution_have_no_log_loss() {
        let metrics = metrics(&[("a", answer("a", &[("a", 0.9), ("b", 0.9)]))]);
        assert_eq!((metrics.log_loss, metrics.brier), (None, None));
        assert!(metrics.calibration.is_some());
    }
}
