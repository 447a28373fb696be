//! The tasks: what a model can be asked to do, with the request, response and delta of each.
//!
//! | marker | asks for | request | response | delta |
//! |---|---|---|---|---|
//! | [`Chat`] | the next message of a conversation | [`ChatRequest`] | [`ChatResponse`] | [`ChatDelta`] |
//! | [`Embed`] | a vector for each input | [`EmbedRequest`] | [`EmbedResponse`] | the response |
//! | [`Classify`] | a label for each input | [`ClassifyRequest`] | [`ClassifyResponse`] | the response |
//! | [`Transcribe`] | the words of a recording | [`TranscribeRequest`] | [`TranscribeResponse`] | [`TranscribeDelta`] |
//! | [`GenerateImage`] | pictures from a prompt | [`GenerateImageRequest`] | [`GenerateImageResponse`] | [`GenerateImageDelta`] |
//!
//! The types are the union of what providers and local models understand. What a backend cannot honour it refuses with
//! [`Unsupported`](crate::ErrorKind::Unsupported) or leaves out with a [`Note`](crate::Note), never in silence. Fields that only one
//! provider knows travel in a request's `extra`. What was used and what it cost stands in [`ReplyMeta`](crate::ReplyMeta), not here.
//!
//! # Serialised form
//! Requests, responses and deltas are JSON in queues, captures and data sets. Fields that say nothing are left out; variants are
//! `{"name": value}`; bytes are base64 strings. A request with a field this version does not know is refused, so that an older
//! kitchen never answers half of a newer question.

mod base64_bytes;
mod chat;
mod check;
mod classify;
mod embed;
mod image;
mod media;
mod open_enum;
mod transcribe;

pub use chat::*;
pub use classify::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore};
pub use embed::{Embed, EmbedInput, EmbedKind, EmbedRequest, EmbedResponse, Truncate};
pub use image::{
    GenerateImage, GenerateImageDelta, GenerateImageRequest, GenerateImageResponse, GeneratedImage, ImageBackground,
    ImageDelivery, ImageFinish, ImageQuality, ImageSize,
};
pub use media::{
    AudioPart, DocumentPart, DocumentSource, ImageDetail, ImagePart, MediaSource, SearchResult, VideoPart,
};
pub use transcribe::{
    Chunking, TimestampGranularity, Transcribe, TranscribeDelta, TranscribeDetails, TranscribeMode, TranscribeRequest,
    TranscribeResponse, TranscriptSegment, TranscriptWord, VoiceActivity,
};

/// Whether a field says nothing and can be left out of the serialised form.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
