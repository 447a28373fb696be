use std::collections::HashMap;

use hybrid_core::{
    Error, Result,
    task::{Chat, ChatRequest, ChatResponse},
};
use serde::Deserialize;

use super::{
    GoldenCase,
    scorer::{Answer, Expected, Scale, Scorer, Shown, read_field},
};

/// Scores the text of [`Chat`] answers against one or more right ones, as the SQuAD benchmark does (Rajpurkar et al. 2016, *EMNLP*, section 6.1).
///
/// Golden cases are `{"input": <chat request>, "expected": {"answers": ["…", …]}}`; the best score over the right answers counts. Before they are
/// compared, texts are put in lower case and lose ASCII punctuation, the English articles and spare white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextScorer {
    /// Right if the texts are equal.
    ExactMatch,
    /// The harmonic mean of precision and recall over the words, each as often as it occurs.
    TokenF1,
}

/// A golden case of [`TextScorer`].
#[derive(Clone, Debug)]
pub struct TextCase {
    request: ChatRequest,
    asked: String,
    answers: Vec<String>,
}

impl Scorer<Chat> for TextScorer {
    type Case = TextCase;

    fn metric(&self) -> &'static str {
        match self {
            Self::ExactMatch => "exact match",
            Self::TokenF1 => "token F1",
        }
    }

    fn scale(&self) -> Scale {
        match self {
            Self::ExactMatch => Scale::RightWrong,
            Self::TokenF1 => Scale::Score,
        }
    }

    fn max_batch(&self) -> usize {
        1
    }

    fn read(&self, case: &GoldenCase) -> Result<TextCase> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Expected {
            answers: Vec<String>,
        }
        let request: ChatRequest = read_field(
            "input",
            r#"a chat request such as {"messages": [{"role": "user", "content": [{"text": "…"}]}]}"#,
            &case.input,
        )?;
        let Expected { answers } = read_field("expected", r#"{"answers": ["…"]}"#, &case.expected)?;
        if answers.is_empty() {
            return Err(Error::invalid("read golden case", "there is no right answer; give at least one")
                .with("field", "expected"));
        }
        let asked = request.messages.last().map(|message| message.text()).unwrap_or_default();
        Ok(TextCase { request, asked, answers })
    }

    fn request(&self, cases: &[&TextCase]) -> ChatRequest {
        cases.first().map(|case| case.request.clone()).unwrap_or_default()
    }

    fn answers(&self, response: ChatResponse) -> Result<Vec<Answer>> {
        if response.choices.is_empty() {
            return Err(Error::corrupt("score text", "the response has no choice"));
        }
        Ok(vec![Answer { text: response.text(), confidence: None, scores: Vec::new() }])
    }

    fn score(&self, case: &TextCase, answer: &str) -> f64 {
        let answer = words(answer);
        let score = |right: &String| match self {
            Self::ExactMatch => f64::from(u8::from(words(right) == answer)),
            Self::TokenF1 => token_f1(&words(right), &answer),
        };
        case.answers.iter().map(score).fold(0.0, f64::max)
    }

    fn show<'a>(&self, case: &'a TextCase) -> Shown<'a> {
        Shown { input: &case.asked, expected: Expected::Text(case.answers.first().map_or("", String::as_str)) }
    }
}

fn words(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_owned).collect()
}

fn token_f1(right: &[String], answer: &[String]) -> f64 {
    if right.is_empty() || answer.is_empty() {
        return f64::from(u8::from(right.is_empty() && answer.is_empty()));
    }
    let mut left = HashMap::new();
    for word in right {
        *left.entry(word).or_insert(0_usize) += 1;
    }
    let mut common = 0;
    for word in answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    2.0 * common as f64 / (right.len() + answer.len()) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(scorer: TextScorer, answers: &[&str], answer: &str) -> f64 {
        let answers = answers.iter().map(|&text| text.to_owned()).collect();
        scorer.score(&TextCase { request: ChatRequest::user("q"), asked: "q".into(), answers }, answer)
    }

    #[test]
    fn texts_are_compared_as_the_benchmark_does() {
        let exact = |answers: &[&str], answer| score(TextScorer::ExactMatch, answers, answer);
        assert_eq!(exact(&["The  Rye-Loaf!"], "rye loaf"), 0.0, "punctuation goes without a space in its place");
        assert_eq!(exact(&["The  Rye Loaf!"], "a rye loaf."), 1.0);
        assert_eq!(exact(&["yes", "we do"], "We do."), 1.0);

        let f1 = |answers: &[&str], answer| score(TextScorer::TokenF1, answers, answer);
        // Two words in common, of three and four: 2 · 2 / 7.
        assert!((f1(&["rye and wheat"], "only rye, no wheat") - 4.0 / 7.0).abs() < 1e-12);
        // A word said twice counts once if it is right once.
        assert!((f1(&["rye"], "rye rye") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((f1(&["rye"], "wheat"), f1(&["rye"], ""), f1(&["the"], "")), (0.0, 0.0, 1.0));
    }

    proptest! {
        #[test]
        fn token_f1_is_a_share_that_takes_no_side(one in "[a-d ]{0,12}", other in "[a-d ]{0,12}") {
            let f1 = score(TextScorer::TokenF1, &[&one], &other);
            prop_assert!((0.0..=1.0).contains(&f1));
            prop_assert_eq!(f1, score(TextScorer::TokenF1, &[&other], &one));
            prop_assert_eq!(score(TextScorer::TokenF1, &[&one], &one), 1.0);
        }
    }
}
