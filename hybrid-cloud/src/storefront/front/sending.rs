//! What goes out piece by piece.

use axum::body::Bytes;
use futures_util::StreamExt;
use hybrid_core::{BoxStream, Result};

use super::call::Call;
use crate::storefront::error::ApiError;

/// Bytes on their way out, under a call of their own. Dropping it ends the call.
pub(crate) struct Sending {
    call: Call,
    operation: &'static str,
    parts: BoxStream<'static, Result<Bytes>>,
}

impl Sending {
    pub(super) fn new(call: Call, operation: &'static str, parts: BoxStream<'static, Result<Bytes>>) -> Self {
        Self { call, operation, parts }
    }

    /// The next part; the call has ended when there is none.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let parts = &mut self.parts;
        let part = self.call.cx.run(self.operation, async { parts.next().await.transpose() }).await;
        match &part {
            Ok(Some(_)) => {}
            Ok(None) => self.call.done(None, None).await?,
            Err(error) => self.call.fail(error, true).await,
        }
        Ok(part?)
    }
}
