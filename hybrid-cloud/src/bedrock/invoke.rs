//! Models that have a body of their own, through InvokeModel.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::AfterDeserializationInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{Blob, config_bag::ConfigBag};
use hybrid_core::{CallContext, Result};
use serde_json::Value;

use super::{call::Caller, failure::Failure};

/// What a model answered.
pub(super) struct Invoked {
    pub(super) body: Value,
    /// Input tokens as Bedrock counted them, where it says so.
    pub(super) input_tokens: Option<u64>,
}

impl Caller {
    /// Asks the model with a JSON body of its own.
    pub(super) async fn invoke(&self, cx: &CallContext, operation: &'static str, body: &Value) -> Result<Invoked> {
        let bytes = body.to_string().into_bytes();
        self.call(cx, operation, self.options.answer_within, || async {
            let tap = TokenTap::default();
            let call = self.client.invoke_model().model_id(self.id.as_str());
            let call = call.content_type("application/json").accept("application/json").body(Blob::new(bytes.clone()));
            let answer = call.customize().interceptor(tap.clone()).send().await.map_err(Failure::of)?;
            let body = serde_json::from_slice(answer.body.as_ref())
                .map_err(|error| Failure::corrupt("the model's answer is not JSON").caused_by(error))?;
            Ok(Invoked { body, input_tokens: tap.take() })
        })
        .await
    }
}

/// Takes the token count out of the headers, which the SDK does not tell.
#[derive(Clone, Debug, Default)]
struct TokenTap(Arc<Mutex<Option<u64>>>);

impl TokenTap {
    fn take(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Intercept for TokenTap {
    fn name(&self) -> &'static str {
        "TokenTap"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let header = context.response().headers().get("x-amzn-bedrock-input-token-count");
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = header.and_then(|count| count.parse().ok());
        Ok(())
    }
}
