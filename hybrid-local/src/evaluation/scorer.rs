use std::fmt::Debug;

use hybrid_core::{
    Error, Result, Task,
    task::{Chat, ChatRequest, ChatResponse, Classify, ClassifyRequest, ClassifyResponse, LabelScore, Sampling},
};
use serde::Deserialize;

use super::GoldenCase;

/// How the answers of one task are scored against golden cases.
///
/// # Behavior
/// - It is pure: the same case and answer give the same score.
/// - A score lies from 0 to 1; under [`Scale::RightWrong`] it is 0 or 1.
pub trait Scorer<T: Task>: Debug + Send + Sync + 'static {
    /// A golden case as this task understands it.
    type Case: Debug + Send + Sync;

    /// The name of the primary metric, such as `accuracy`: the mean of the scores.
    fn metric(&self) -> &'static str;

    /// What scores there are, which chooses interval and test.
    fn scale(&self) -> Scale;

    /// How many cases one request can carry.
    fn max_batch(&self) -> usize;

    /// Reads input and expected answer of a case.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names the field; the evaluator adds case and line.
    fn read(&self, case: &GoldenCase) -> Result<Self::Case>;

    /// One request for one to [`max_batch`](Self::max_batch) cases.
    fn request(&self, cases: &[&Self::Case]) -> T::Request;

    /// One answer for each case of the request, in order.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) for a response that cannot be scored.
    fn answers(&self, response: T::Response) -> Result<Vec<Answer>>;

    /// The score of an answer's text.
    fn score(&self, case: &Self::Case, answer: &str) -> f64;

    /// The input and the expected answer, for people.
    fn show<'a>(&self, case: &'a Self::Case) -> Shown<'a>;
}

/// What scores a [`Scorer`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// 0 or 1: Wilson's interval and the exact McNemar test.
    RightWrong,
    /// Anything from 0 to 1: percentile interval and test of the paired bootstrap.
    Score,
}

/// What a model answered to one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The answer: a label or a text.
    pub text: String,
    /// How sure the model is, from 0 to 1, where it says so.
    pub confidence: Option<f64>,
    /// The scores of all labels, for tasks with labels; empty otherwise.
    pub scores: Vec<LabelScore>,
}

/// A case for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown<'a> {
    /// What was asked.
    pub input: &'a str,
    /// What is right.
    pub expected: Expected<'a>,
}

/// The right answer to a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected<'a> {
    /// One of a set of labels: the report has slices by label and a confusion matrix.
    Label(&'a str),
    /// Free text.
    Text(&'a str),
}

impl<'a> Expected<'a> {
    /// The label or text.
    pub fn text(self) -> &'a str {
        let (Self::Label(text) | Self::Text(text)) = self;
        text
    }
}

/// Scores [`Classify`]: right or wrong. Golden cases are `{"input": {"text": …}, "expected": {"label": …}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelScorer;

/// A golden case of [`LabelScorer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelCase {
    text: String,
    label: String,
}

impl Scorer<Classify> for LabelScorer {
    type Case = LabelCase;

    fn metric(&self) -> &'static str {
        "accuracy"
    }

    fn scale(&self) -> Scale {
        Scale::RightWrong
    }

    fn max_batch(&self) -> usize {
        usize::MAX
    }

    fn read(&self, case: &GoldenCase) -> Result<LabelCase> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Input {
            text: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Expected {
            label: String,
        }
        let Input { text } = read_field("input", r#"{"text": "…"}"#, &case.input)?;
        let Expected { label } = read_field("expected", r#"{"label": "…"}"#, &case.expected)?;
        if label.trim().is_empty() {
            return Err(Error::invalid("read golden case", "the expected label is blank").with("field", "expected"));
        }
        Ok(LabelCase { text, label })
    }

    fn request(&self, cases: &[&LabelCase]) -> ClassifyRequest {
        ClassifyRequest::many(cases.iter().map(|case| &case.text))
    }

    fn answers(&self, response: ClassifyResponse) -> Result<Vec<Answer>> {
        let answer = |result: hybrid_core::task::Classification| {
            // A sum of 32-bit numbers may end a hair above 1.
            if !(0.0..=1.0001).contains(&result.confidence) {
                return Err(Error::corrupt("score labels", "the confidence is no number from 0 to 1")
                    .with("label", &result.label)
                    .with("confidence", result.confidence));
            }
            Ok(Answer {
                text: result.label,
                confidence: Some(f64::from(result.confidence).min(1.0)),
                scores: result.scores,
            })
        };
        response.results.into_iter().map(answer).collect()
    }

    fn score(&self, case: &LabelCase, answer: &str) -> f64 {
        f64::from(u8::from(case.label == answer))
    }

    fn show<'a>(&self, case: &'a LabelCase) -> Shown<'a> {
        Shown { input: &case.text, expected: Expected::Label(&case.label) }
    }
}

/// Scores [`Chat`] models that answer a text with its label alone, on the golden cases of [`LabelScorer`] and by the same metric: so that a decoder that was
/// trained on labels stands beside classifiers.
///
/// The text is asked as it is, as `DecoderTrainer` has it learnt; the likeliest tokens are taken, at most 64. White space around the answer does not
/// count. How sure the model is, it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatLabelScorer;

impl Scorer<Chat> for ChatLabelScorer {
    type Case = LabelCase;

    fn metric(&self) -> &'static str {
        LabelScorer.metric()
    }

    fn scale(&self) -> Scale {
        LabelScorer.scale()
    }

    fn max_batch(&self) -> usize {
        1
    }

    fn read(&self, case: &GoldenCase) -> Result<LabelCase> {
        LabelScorer.read(case)
    }

    fn request(&self, cases: &[&LabelCase]) -> ChatRequest {
        let text = cases.first().map_or("", |case| &case.text);
        let sampling = Sampling { temperature: Some(0.0), max_tokens: Some(64), ..Sampling::default() };
        ChatRequest { sampling, ..ChatRequest::user(text) }
    }

    fn answers(&self, response: ChatResponse) -> Result<Vec<Answer>> {
        if response.choices.is_empty() {
            return Err(Error::corrupt("score labels", "the response has no choice"));
        }
        Ok(vec![Answer { text: response.text().trim().to_owned(), confidence: None, scores: Vec::new() }])
    }

    fn score(&self, case: &LabelCase, answer: &str) -> f64 {
        LabelScorer.score(case, answer)
    }

    fn show<'a>(&self, case: &'a LabelCase) -> Shown<'a> {
        LabelScorer.show(case)
    }
}

/// Reads one field of a golden case as a type that refuses unknown fields.
pub(super) fn read_field<D: serde::de::DeserializeOwned>(
    field: &'static str,
    form: &str,
    value: &serde_json::Value,
) -> Result<D> {
    D::deserialize(value).map_err(|error| {
        Error::invalid("read golden case", format!("expected {form}")).with("field", field).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str, expected: &str) -> Result<LabelCase> {
        let golden =
            super::super::GoldenSet::from_jsonl("g", format!(r#"{{"input": {input}, "expected": {expected}}}"#))
                .unwrap();
        LabelScorer.read(&golden.cases()[0])
    }

    #[test]
    fn a_case_of_another_form_is_refused_by_field() {
        let case = read(r#"{"text": "a"}"#, r#"{"label": "x"}"#).unwrap();
        assert_eq!(LabelScorer.show(&case), Shown { input: "a", expected: Expected::Label("x") });
        for (input, expected, field) in [
            (r#"{"text": "a", "lang": "en"}"#, r#"{"label": "x"}"#, "input"),
            (r#"{"inputs": ["a"]}"#, r#"{"label": "x"}"#, "input"),
            (r#"{"text": "a"}"#, r#"{"label": 1}"#, "expected"),
            (r#"{"text": "a"}"#, r#"{"label": ""}"#, "expected"),
            (r#"{"text": "a"}"#, "{}", "expected"),
        ] {
            let error = read(input, expected).unwrap_err();
            assert_eq!(error.context("field"), Some(field), "{error}");
        }
    }

    #[test]
    fn a_confidence_that_is_none_is_refused() {
        let answers = |confidence| {
            let result = hybrid_core::task::Classification { label: "x".into(), confidence, scores: vec![] };
            LabelScorer.answers(ClassifyResponse { results: vec![result] })
        };
        assert_eq!(answers(1.000_000_1).unwrap()[0].confidence, Some(1.0));
        for bad in [f32::NAN, -0.1, 1.1, f32::INFINITY] {
            assert!(answers(bad).is_err(), "{bad}");
        }
    }
}
