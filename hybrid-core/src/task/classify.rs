//! Classification: a label for each text.

use serde::{Deserialize, Serialize};

use super::{
    check::{Check, only},
    is_default,
};
use crate::{Error, Result, Task};

/// The task of putting a label on each text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Classify;

impl Task for Classify {
    const NAME: &'static str = "classify";
    type Request = ClassifyRequest;
    type Response = ClassifyResponse;
    type Delta = ClassifyResponse;

    fn validate(request: &ClassifyRequest) -> Result<()> {
        let check = Check("validate classify request");
        check.that(!request.inputs.is_empty(), "inputs", "must hold at least one text")?;
        for (i, input) in request.inputs.iter().enumerate() {
            check.not_blank(format_args!("inputs[{i}]"), input)?;
        }
        check.that(request.top_k != Some(0), "top_k", "must be at least 1; leave it out for all labels")
    }

    fn split(response: ClassifyResponse) -> Vec<ClassifyResponse> {
        vec![response]
    }

    fn fold(deltas: impl IntoIterator<Item = ClassifyResponse>) -> Result<ClassifyResponse> {
        only("fold classify deltas", deltas)
    }
}

/// Texts to be labelled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyRequest {
    /// The texts, each labelled on its own.
    pub inputs: Vec<String>,
    /// How many labels to score for each text, best first; `None` for all of them.
    #[serde(skip_serializing_if = "is_default")]
    pub top_k: Option<usize>,
}

impl ClassifyRequest {
    /// Asks for the label of one text, with the scores of all labels.
    pub fn one(input: impl Into<String>) -> Self {
        Self::many([input])
    }

    /// Asks for the labels of several texts, with the scores of all labels.
    pub fn many(inputs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { inputs: inputs.into_iter().map(Into::into).collect(), top_k: None }
    }
}

/// A label for each text, in the order of the request's inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassifyResponse {
    /// One for each input.
    pub results: Vec<Classification>,
}

/// What a classifier says of one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The best label.
    pub label: String,
    /// The best label's score, from 0 to 1.
    pub confidence: f32,
    /// The labels with their scores, best first; as many as the request's `top_k` asks for.
    pub scores: Vec<LabelScore>,
}

impl Classification {
    /// Ranks labels, best first, equal scores by label, and keeps the first `top_k`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if there is no label or a score is not a finite number.
    pub fn ranked(mut scores: Vec<LabelScore>, top_k: Option<usize>) -> Result<Self> {
        if let Some(bad) = scores.iter().find(|score| !score.score.is_finite()) {
            return Err(Error::corrupt("rank labels", "a score is not a finite number").with("label", &bad.label));
        }
        scores.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.label.cmp(&b.label)));
        let best = scores.first().ok_or_else(|| Error::corrupt("rank labels", "there is no label to rank"))?;
        let (label, confidence) = (best.label.clone(), best.score);
        scores.truncate(top_k.unwrap_or(usize::MAX));
        Ok(Self { label, confidence, scores })
    }
}

/// One label with its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    /// The label.
    pub label: String,
    /// How sure the classifier is, from 0 to 1. The scores of exclusive labels add up to 1.
    pub score: f32,
}

impl LabelScore {
    /// A label with its score.
    pub fn new(label: impl Into<String>, score: f32) -> Self {
        Self { label: label.into(), score }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::check::testing::{fold_error, over_json, refused},
        *,
    };

    #[test]
    fn requests_that_nobody_could_answer_are_refused() {
        let refused = refused::<Classify>;
        assert_eq!(refused(&ClassifyRequest::one("a")), None);
        assert_eq!(refused(&ClassifyRequest::default()).as_deref(), Some("inputs"));
        assert_eq!(refused(&ClassifyRequest::many(["a", " "])).as_deref(), Some("inputs[1]"));
        let none = ClassifyRequest { top_k: Some(0), ..ClassifyRequest::one("a") };
        assert_eq!(refused(&none).as_deref(), Some("top_k"));
    }

    #[test]
    fn a_newer_request_is_refused_and_not_half_read() {
        assert!(serde_json::from_str::<ClassifyRequest>(r#"{"inputs":["a"],"calibrate":true}"#).is_err());
        let request = ClassifyRequest { top_k: Some(2), ..ClassifyRequest::one("a") };
        assert_eq!(over_json(&request), request);
    }

    #[test]
    fn ranking_refuses_what_has_no_order() {
        assert!(Classification::ranked(vec![], None).is_err());
        assert!(Classification::ranked(vec![LabelScore::new("a", f32::NAN)], None).is_err());
    }

    #[test]
    fn only_one_delta_is_an_answer() {
        assert!(fold_error::<Classify>(vec![]).contains("no delta"));
        assert!(fold_error::<Classify>(vec![ClassifyResponse::default(); 2]).contains("several"));
    }

    proptest! {
        #[test]
        fn answers_are_ranked_and_come_back(
            scores in prop::collection::vec(("[a-c]{1,2}", 0f32..=1.0), 1..6),
            top_k in prop::option::of(1usize..8),
        ) {
            let scores: Vec<_> = scores.into_iter().map(|(label, score)| LabelScore::new(label, score)).collect();
            let result = Classification::ranked(scores.clone(), top_k).unwrap();
            prop_assert!(result.scores.is_sorted_by(|a, b| a.score >= b.score));
            prop_assert_eq!(result.scores.len(), scores.len().min(top_k.unwrap_or(usize::MAX)));
            prop_assert_eq!(&result.scores[0], &LabelScore::new(result.label.clone(), result.confidence));
            let response = ClassifyResponse { results: vec![result] };
            prop_assert_eq!(&over_json(&response), &response);
            prop_assert_eq!(Classify::fold(Classify::split(response.clone())).unwrap(), response);
        }
    }
}
