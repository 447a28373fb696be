//! What a version of the architecture says of itself.

use std::collections::BTreeMap;

use hybrid_core::{Digest, Document, Error, Result};
use serde::{Deserialize, Serialize};

use crate::text_classifier::{ClassifierConfig, check_labels};

/// `classifier.json` of the architecture `decoder-text-classifier/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::text_classifier) struct HeadConfig {
    #[serde(flatten)]
    pub(in crate::text_classifier) classifier: ClassifierConfig,
    /// Tokens of a text that are read, those that the tokenizer adds included.
    pub(super) max_tokens: usize,
    /// Whether low-rank matrices lie beside the decoder's files.
    pub(super) adapter: bool,
    /// The SHA-256 of the base model's files, by name.
    pub(super) base: BTreeMap<String, Digest>,
}

impl Document for HeadConfig {
    const FORMAT: &'static str = "hybrid.decoder-text-classifier";
    const MAJOR: u32 = 1;
}

impl HeadConfig {
    /// # Errors
    /// `Corrupt` that names what makes no sense.
    pub(in crate::text_classifier) fn check(&self) -> Result<()> {
        check_labels(&self.classifier)?;
        if self.max_tokens == 0 {
            return Err(Error::corrupt("check configuration", "some tokens of a text have to be read")
                .with("max_tokens", self.max_tokens));
        }
        Ok(())
    }
}
