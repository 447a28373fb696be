//! `{"error": {"message", "type", "param", "code"}}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The body of every answer that is an error, and the event of a stream that fails on its way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorObject,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct ErrorObject {
    pub(crate) message: String,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) param: Option<String>,
    /// A string here; some servers send the status as a number.
    #[cfg_attr(feature = "storefront", schemars(with = "Option<String>"))]
    pub(crate) code: Option<Value>,
}

impl ErrorObject {
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_ref().and_then(Value::as_str)
    }
}
