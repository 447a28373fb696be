//! What guardrail and prompt router did, in the provider's own form: read from the wire, beside what the SDK makes of it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept,
            context::{AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut},
        },
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;

/// Takes the `trace` out of one answer or one stream that goes by.
#[derive(Clone, Debug)]
pub(super) struct TraceTap {
    found: Arc<Mutex<Option<Value>>>,
    streams: bool,
}

impl TraceTap {
    pub(super) fn for_answer() -> Self {
        Self { found: Arc::default(), streams: false }
    }

    pub(super) fn for_stream() -> Self {
        Self { found: Arc::default(), streams: true }
    }

    pub(super) fn take(&self) -> Option<Value> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn look_in(&self, json: &[u8]) {
        // Most answers have none, and need not be parsed twice.
        if !json.windows(7).any(|window| window == b"\"trace\"") {
            return;
        }
        if let Ok(Value::Object(mut fields)) = serde_json::from_slice(json) {
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) =
                fields.remove("trace").filter(|t| !t.is_null());
        }
    }
}

impl Intercept for TraceTap {
    fn name(&self) -> &'static str {
        "TraceTap"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.streams && context.response().status().is_success() {
            let body = context.response_mut().body_mut();
            let inner = std::mem::replace(body, SdkBody::taken());
            let decoder = Some(MessageFrameDecoder::new());
            *body = SdkBody::from_body_1_x(Tapped { inner, decoder, seen: BytesMut::new(), tap: self.clone() });
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if !self.streams
            && let Some(bytes) = context.response().body().bytes()
        {
            self.look_in(bytes);
        }
        Ok(())
    }
}

/// A body whose frames are looked at as they go by. What it cannot read the SDK cannot either, and says so.
struct Tapped {
    inner: SdkBody,
    decoder: Option<MessageFrameDecoder>,
    seen: BytesMut,
    tap: TraceTap,
}

impl Tapped {
    fn look_at(&mut self, bytes: &[u8]) {
        let Some(decoder) = &mut self.decoder else { return };
        self.seen.extend_from_slice(bytes);
        loop {
            match decoder.decode_frame(&mut self.seen) {
                Ok(DecodedFrame::Complete(message)) => self.tap.look_in(message.payload()),
                Ok(DecodedFrame::Incomplete) => return,
                Err(_) => {
                    self.decoder = None;
                    return;
                }
            }
        }
    }
}

impl Body for Tapped {
    type Data = Bytes;
    type Error = aws_smithy_types::body::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            let bytes = bytes.clone();
            self.look_at(&bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
