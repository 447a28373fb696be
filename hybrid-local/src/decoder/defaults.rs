//! What a model's files say about how its tokens are drawn, and about where its answers end.

use std::collections::BTreeSet;

use serde::Deserialize;

/// A model's own way to draw tokens, for what a request leaves open.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Defaults {
    /// The tokens that end an answer.
    pub(crate) ends: BTreeSet<u32>,
    /// Zero where the model's files do not ask for chance.
    pub(crate) temperature: f32,
    pub(crate) top_k: Option<u32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
}

/// The parts of a Hugging Face `generation_config.json` that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GenerationConfig {
    pub(super) do_sample: Option<bool>,
    pub(super) temperature: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) top_p: Option<f32>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) eos_token_id: Option<Ends>,
}

/// One token or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Ends {
    One(u32),
    Several(Vec<u32>),
}

impl Ends {
    pub(super) fn tokens(self) -> Vec<u32> {
        match self {
            Self::One(token) => vec![token],
            Self::Several(tokens) => tokens,
        }
    }
}

impl GenerationConfig {
    /// What it says, apart from what makes no sense as a number.
    pub(super) fn defaults(self) -> Defaults {
        let samples = self.do_sample.unwrap_or(false);
        let share = |value: Option<f32>| value.filter(|value| (0.0..=1.0).contains(value));
        let positive = |value: Option<f32>| value.filter(|value| *value > 0.0 && value.is_finite());
        let temperature = if samples { positive(self.temperature).unwrap_or(1.0) } else { 0.0 };
        Defaults {
            ends: self.eos_token_id.map(Ends::tokens).unwrap_or_default().into_iter().collect(),
            temperature,
            top_k: self.top_k.filter(|k| *k > 0),
            top_p: share(self.top_p),
            min_p: share(self.min_p),
            repetition_penalty: positive(self.repetition_penalty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_ask_for_chance_is_greedy() {
        let read = |text: &str| serde_json::from_str::<GenerationConfig>(text).unwrap().defaults();
        let greedy = read(r#"{"temperature": 0.7, "eos_token_id": 3}"#);
        assert_eq!((greedy.temperature, greedy.ends), (0.0, [3].into()));
        let drawn =
            read(r#"{"do_sample": true, "temperature": 0.7, "top_k": 0, "top_p": 3.0, "eos_token_id": [3, 4]}"#);
        assert_eq!((drawn.temperature, drawn.top_k, drawn.top_p, drawn.ends), (0.7, None, None, [3, 4].into()));
    }
}
