//! What judgments teach: texts with the index of their label.

use std::collections::BTreeSet;

use hybrid_core::{Error, Judgment, Result, Task, task::Classify};

use super::{MAX_LABEL_BYTES, MAX_LABELS, check_text};
use crate::random::Random;

const OPERATION: &str = "read judgments";

/// Texts with labels, in the order of the judgments' ids.
#[derive(Clone, Debug)]
pub(super) struct Examples {
    /// The labels, sorted.
    pub(super) labels: Vec<String>,
    pub(super) texts: Vec<String>,
    /// For each text the index of its label.
    pub(super) targets: Vec<usize>,
}

impl Examples {
    /// Reads judgments of classification: `{"text": …}` with `{"label": …}`.
    ///
    /// # Errors
    /// `InvalidInput` that names the judgment, if one is of another task or has no usable text or label; `InvalidInput` if there
    /// are fewer than two labels to tell apart.
    pub(super) fn read(judgments: &[Judgment]) -> Result<Self> {
        let pairs = judgments.iter().map(read_one).collect::<Result<Vec<_>>>()?;
        let labels: Vec<_> = pairs.iter().map(|(_, label)| *label).collect::<BTreeSet<_>>().into_iter().collect();
        match labels.as_slice() {
            [] => return Err(Error::invalid(OPERATION, "the dataset has no judgments; capture some before training")),
            [only] => {
                return Err(Error::invalid(OPERATION, "all judgments have one label; a classifier needs at least two")
                    .with("label", only));
            }
            many if many.len() > MAX_LABELS => {
                return Err(Error::invalid(OPERATION, "the dataset has too many labels")
                    .with("labels", many.len())
                    .with("limit", MAX_LABELS));
            }
            _ => {}
        }
        let targets = pairs.iter().map(|(_, label)| labels.partition_point(|other| other < label)).collect();
        let texts = pairs.iter().map(|(text, _)| (*text).to_owned()).collect();
        Ok(Self { labels: labels.into_iter().map(str::to_owned).collect(), texts, targets })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Deals the examples into `parts` of nearly equal size in which every label has nearly its share.
    pub(super) fn stratified(&self, parts: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut dealt = vec![Vec::new(); parts.max(1)];
        let mut next = 0;
        for label in 0..self.labels.len() {
            let mut members: Vec<_> = (0..self.len()).filter(|&i| self.targets[i] == label).collect();
            Random::of(seed, "split", [label as u64, 0]).shuffle(&mut members);
            for member in members {
                dealt[next % parts.max(1)].push(member);
                next += 1;
            }
        }
        dealt.iter_mut().for_each(|part| part.sort_unstable());
        dealt
    }
}

fn read_one(judgment: &Judgment) -> Result<(&str, &str)> {
    let refuse = |message: &'static str| Error::invalid(OPERATION, message).with("judgment", judgment.id);
    if judgment.task != Classify::NAME {
        return Err(refuse("the judgment is of another task")
            .with("task", &judgment.task)
            .with("expected", Classify::NAME));
    }
    let text = judgment.input.get("text").and_then(|text| text.as_str());
    let text = text.ok_or_else(|| refuse("the judgment's input has no text field that is a string"))?;
    check_text(OPERATION, text).map_err(|error| error.with("judgment", judgment.id))?;
    let label = judgment.decision.get("label").and_then(|label| label.as_str());
    let label = label.ok_or_else(|| refuse("the judgment's decision has no label field that is a string"))?;
    if label.trim().is_empty() || label.len() > MAX_LABEL_BYTES {
        return Err(refuse("a label has to be neither blank nor over the limit of bytes")
            .with("size", label.len())
            .with("limit", MAX_LABEL_BYTES));
    }
    Ok((text, label))
}

#[cfg(test)]
mod tests {
    use hybrid_core::{ErrorKind, IdSource, JudgmentId, SeededIds, Timestamp};
    use serde_json::{Value, json};

    use super::*;

    fn judgment(ids: &dyn IdSource, input: Value, decision: Value) -> Judgment {
        Judgment::new(JudgmentId::next(ids), Classify::NAME, input, decision, Timestamp::UNIX_EPOCH)
    }

    fn labelled(labels: &[&str]) -> Vec<Judgment> {
        let ids = SeededIds::default();
        labels.iter().map(|label| judgment(&ids, json!({"text": "words"}), json!({"label": label}))).collect()
    }

    #[test]
    fn labels_are_sorted_and_texts_point_to_them() {
        let examples = Examples::read(&labelled(&["b", "a", "c", "b"])).unwrap();
        assert_eq!(examples.labels, ["a", "b", "c"]);
        assert_eq!(examples.targets, [1, 0, 2, 1]);
    }

    #[test]
    fn a_judgment_that_teaches_nothing_is_refused_by_its_id() {
        let ids = SeededIds::default();
        let (text, label) = (json!({"text": "words"}), json!({"label": "a"}));
        let mut chat = judgment(&ids, text.clone(), label.clone());
        chat.task = "chat".to_owned();
        let long = json!({"text": "x".repeat(crate::text_classifier::MAX_TEXT_BYTES + 1)});
        let mut bad = vec![chat, judgment(&ids, long, label.clone())];
        for input in [json!({}), json!({"text": 3}), json!({"text": " "}), json!("words")] {
            bad.push(judgment(&ids, input, label.clone()));
        }
        for decision in [json!({}), json!({"label": null}), json!({"label": " "}), json!({"label": "x".repeat(300)})] {
            bad.push(judgment(&ids, text.clone(), decision));
        }
        for bad in bad {
            let id = bad.id.to_string();
            let error = Examples::read(&[labelled(&["a", "b"]), vec![bad]].concat()).unwrap_err();
            assert_eq!(error.context("judgment"), Some(&*id), "{error}");
            assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::TooLarge), "{error:?}");
        }
    }

    #[test]
    fn nothing_to_tell_apart_is_refused() {
        for labels in [&[][..], &["a", "a"]] {
            assert_eq!(Examples::read(&labelled(labels)).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn parts_are_disjoint_whole_and_hold_every_label_in_its_share() {
        let labels: Vec<_> = (0..60).map(|i| if i % 3 == 0 { "rare" } else { "often" }).collect();
        let examples = Examples::read(&labelled(&labels)).unwrap();
        let parts = examples.stratified(5, 1);
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
        for part in &parts {
            assert_eq!((part.len(), part.iter().filter(|&&i| examples.targets[i] == 1).count()), (12, 4));
        }
        assert_ne!(parts, examples.stratified(5, 2));
    }
}
