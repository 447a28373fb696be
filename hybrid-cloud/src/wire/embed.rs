//! `POST /v1/embeddings`.

use hybrid_core::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{media, refuse};

/// The body of a request for vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct EmbeddingRequest {
    /// The model; the first one that embeds where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// A text or several.
    #[cfg_attr(feature = "storefront", schemars(with = "super::chat::OneOrMany"))]
    pub(crate) input: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dimensions: Option<u32>,
    /// What the vectors are for, which some models must know: `search_query` (or `query`), `search_document` (or `document`, `passage`),
    /// `classification` or `clustering`. The OpenAI API has no such field; Cohere's has it by this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) input_type: Option<String>,
    /// `float` or `base64`: little-endian 32-bit floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encoding_format: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct EmbeddingList {
    /// `list`.
    #[serde(default)]
    pub(crate) object: String,
    pub(crate) data: Vec<Embedding>,
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) usage: Option<EmbeddingUsage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Embedding {
    /// `embedding`.
    #[serde(default)]
    pub(crate) object: String,
    #[serde(default)]
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
}

/// Numbers, or their bytes in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) enum Vector {
    Base64(String),
    Floats(Vec<f32>),
}

impl Vector {
    pub(crate) fn base64(numbers: &[f32]) -> Self {
        Self::Base64(media::encode(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()))
    }

    pub(crate) fn into_floats(self, operation: &'static str) -> Result<Vec<f32>> {
        match self {
            Self::Floats(numbers) => Ok(numbers),
            Self::Base64(text) => {
                let bytes = media::decode(operation, "embedding", &text)?;
                let (numbers, []) = bytes.as_chunks::<4>() else {
                    return Err(refuse(operation, "embedding", "is not a whole number of 32-bit floats"));
                };
                Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct EmbeddingUsage {
    pub(crate) prompt_tokens: u64,
    pub(crate) total_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_base64_to_the_bit() {
        let numbers = vec![0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::MAX, 0.1];
        let vector = Vector::base64(&numbers);
        assert_eq!(serde_json::to_string(&Vector::base64(&[1.0])).unwrap(), r#""AACAPw==""#);
        let back = vector.into_floats("read").unwrap();
        assert_eq!(
            back.iter().map(|n| n.to_bits()).collect::<Vec<_>>(),
            numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>()
        );
        assert!(Vector::Base64("AAAA".into()).into_floats("read").is_err());
    }
}
