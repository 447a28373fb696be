//! Embedding: a vector for each input.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ImagePart,
    check::{Check, only},
    is_default,
};
use crate::{Result, Task};

/// The task of turning each input into a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Embed;

impl Task for Embed {
    const NAME: &'static str = "embed";
    type Request = EmbedRequest;
    type Response = EmbedResponse;
    type Delta = EmbedResponse;

    fn validate(request: &EmbedRequest) -> Result<()> {
        let check = Check("validate embed request");
        check.that(!request.inputs.is_empty(), "inputs", "must hold at least one input")?;
        for (i, input) in request.inputs.iter().enumerate() {
            let field = format_args!("inputs[{i}]");
            match input {
                EmbedInput::Text(text) => check.that(!text.is_empty(), field, "must not be empty")?,
                EmbedInput::Tokens(tokens) => check.that(!tokens.is_empty(), field, "must not be empty")?,
                EmbedInput::Image(image) => image.check(check, field)?,
            }
        }
        check.not_zero("dimensions", request.dimensions)
    }

    fn split(response: EmbedResponse) -> Vec<EmbedResponse> {
        vec![response]
    }

    fn fold(deltas: impl IntoIterator<Item = EmbedResponse>) -> Result<EmbedResponse> {
        only("fold embed deltas", deltas)
    }
}

/// Inputs to be turned into vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedRequest {
    /// The inputs, each embedded on its own.
    pub inputs: Vec<EmbedInput>,
    /// The length of each vector; `None` for the model's own.
    #[serde(skip_serializing_if = "is_default")]
    pub dimensions: Option<u32>,
    /// What the vectors are for, for models that embed questions and documents differently.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: Option<EmbedKind>,
    /// What to do with an input that is longer than the model reads.
    #[serde(skip_serializing_if = "is_default")]
    pub truncate: Truncate,
    /// Whether the vectors have length 1; `None` for the model's own way.
    #[serde(skip_serializing_if = "is_default")]
    pub normalize: Option<bool>,
    /// Fields that only the provider knows, put into its request as they are.
    #[serde(skip_serializing_if = "is_default")]
    pub extra: Map<String, Value>,
}

impl EmbedRequest {
    /// Asks for the vector of one text.
    pub fn one(input: impl Into<EmbedInput>) -> Self {
        Self::many([input])
    }

    /// Asks for the vectors of several inputs.
    pub fn many(inputs: impl IntoIterator<Item = impl Into<EmbedInput>>) -> Self {
        Self { inputs: inputs.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Asks for the vector of a search query.
    pub fn query(text: impl Into<String>) -> Self {
        Self { kind: Some(EmbedKind::Query), ..Self::one(text.into()) }
    }

    /// Asks for the vectors of texts that queries are to find.
    pub fn documents(texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let texts = texts.into_iter().map(|text| EmbedInput::Text(text.into()));
        Self { kind: Some(EmbedKind::Document), ..Self::many(texts) }
    }
}

/// One thing to be turned into a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbedInput {
    /// A text.
    Text(String),
    /// A text as ids of the model's own vocabulary.
    Tokens(Vec<u32>),
    /// An image.
    Image(ImagePart),
}

impl EmbedInput {
    /// The text, where the input is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl From<String> for EmbedInput {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for EmbedInput {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What a vector is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbedKind {
    /// To search with.
    Query,
    /// To be found.
    Document,
    /// To be the input of a classifier.
    Classification,
    /// To be grouped with others like it.
    Clustering,
}

/// What to do with an input that is longer than the model reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Truncate {
    /// Refuse it with [`TooLarge`](crate::ErrorKind::TooLarge).
    #[default]
    Never,
    /// Drop its beginning, and say so in the reply's notes.
    Start,
    /// Drop its end, and say so in the reply's notes.
    End,
}

/// A vector for each input, in the order of the request's inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EmbedResponse {
    /// The vectors, `[inputs, dimensions]`, all of one length.
    pub embeddings: Vec<Vec<f32>>,
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
        let refused = refused::<Embed>;
        assert_eq!(refused(&EmbedRequest::query("a")), None);
        assert_eq!(refused(&EmbedRequest::default()).as_deref(), Some("inputs"));
        assert_eq!(refused(&EmbedRequest::documents(["a", ""])).as_deref(), Some("inputs[1]"));
        assert_eq!(refused(&EmbedRequest::one(EmbedInput::Tokens(vec![]))).as_deref(), Some("inputs[0]"));
        let image = EmbedInput::Image(ImagePart::new("image/png", vec![]));
        assert_eq!(refused(&EmbedRequest::one(image)).as_deref(), Some("inputs[0].source"));
        let flat = EmbedRequest { dimensions: Some(0), ..EmbedRequest::one("a") };
        assert_eq!(refused(&flat).as_deref(), Some("dimensions"));
    }

    #[test]
    fn requests_come_back_and_read_well() {
        let request = EmbedRequest { truncate: Truncate::End, dimensions: Some(256), ..EmbedRequest::query("a") };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"inputs":[{"text":"a"}],"dimensions":256,"kind":"query","truncate":"end"}"#);
        assert_eq!(over_json(&request), request);
        assert!(serde_json::from_str::<EmbedRequest>(r#"{"inputs":[],"pooling":"mean"}"#).is_err());
    }

    #[test]
    fn only_one_delta_is_an_answer() {
        assert!(fold_error::<Embed>(vec![]).contains("no delta"));
        assert!(fold_error::<Embed>(vec![EmbedResponse::default(); 2]).contains("several"));
    }

    proptest! {
        #[test]
        fn answers_come_back(embeddings: Vec<Vec<f32>>) {
            let response = EmbedResponse { embeddings };
            prop_assert_eq!(&Embed::fold(Embed::split(response.clone())).unwrap(), &response);
            prop_assert_eq!(over_json(&response), response);
        }
    }
}
