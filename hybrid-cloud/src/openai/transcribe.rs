//! `Transcribe` over `/audio/transcriptions` and `/audio/translations`.

use std::sync::Arc;

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Error, Event, InferenceBackend, Reply, Result, Task,
    inference::stream_reply,
    task::{Chunking, MediaSource, TimestampGranularity, Transcribe, TranscribeMode, TranscribeRequest},
};
use reqwest::multipart::{Form, Part};
use serde_json::Value;

use super::{OpenAiCompatible, failure::broken_off};
use crate::wire::{media, transcribe::Transcription, unsupported};

const TRANSCRIBE: &str = "transcribe";

#[async_trait]
impl InferenceBackend<Transcribe> for OpenAiCompatible {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.inner.profile)
    }

    async fn infer(&self, cx: &CallContext, request: TranscribeRequest) -> Result<Reply<Transcribe>> {
        Transcribe::validate(&request)?;
        cx.admit(TRANSCRIBE, &self.inner.config.locality)?;
        let started = cx.clock.monotonic();
        let fields = self.fields(&request)?;
        let MediaSource::Bytes(audio) = &request.audio else {
            return Err(unsupported(TRANSCRIBE, "audio", "must be bytes; the OpenAI API takes no address"));
        };
        let path = match request.mode {
            TranscribeMode::Translate => "audio/translations",
            _ => "audio/transcriptions",
        };
        let name = format!("audio.{}", media::format(&request.media_type).unwrap_or("bin"));
        let fill = |http: reqwest::RequestBuilder| {
            let length = u64::try_from(audio.len()).unwrap_or(u64::MAX);
            let file = Part::stream_with_length(audio.clone(), length).file_name(name.clone());
            let file = file.mime_str(&request.media_type).map_err(|error| {
                Error::invalid(TRANSCRIBE, "is no media type").with("field", "media_type").with_source(error)
            })?;
            let form = fields.iter().fold(Form::new(), |form, (name, value)| form.text(*name, value.clone()));
            Ok(http.multipart(form.part("file", file)))
        };
        let response = self.inner.http.post(cx, TRANSCRIBE, path, fill).await?;
        let body = self.inner.http.body(cx, TRANSCRIBE, response).await?;
        let unfit = |error| {
            Error::corrupt(TRANSCRIBE, "the server's answer is not in the API's form").with_quoted_source(error)
        };
        let mut value: Value = serde_json::from_slice(&body).map_err(unfit)?;
        if let Some(error) = value.get_mut("error").map(Value::take).filter(|error| !error.is_null()) {
            return Err(broken_off(TRANSCRIBE, &error));
        }
        if !value.get("text").is_some_and(Value::is_string) {
            return Err(Error::corrupt(TRANSCRIBE, "the server's answer has no text"));
        }
        let wire: Transcription = serde_json::from_value(value).map_err(unfit)?;
        let (response, usage) = wire.read()?;
        Ok(Reply { response, meta: self.meta(cx, started, usage, Vec::new())? })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: TranscribeRequest,
    ) -> Result<BoxStream<'static, Result<Event<Transcribe>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

impl OpenAiCompatible {
    /// The form's fields besides the recording.
    fn fields(&self, request: &TranscribeRequest) -> Result<Vec<(&'static str, String)>> {
        let refuse = |field: &'static str, message| Err(unsupported(TRANSCRIBE, field, message));
        if request.diarize {
            return refuse("diarize", "is not supported by this backend");
        }
        if !request.extra.is_empty() {
            return refuse("extra", "is not supported by this backend; a form has no place for JSON");
        }
        let mut fields = vec![("model", self.inner.config.model.clone())];
        let mut push = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
        push("language", request.language.clone());
        push("prompt", request.prompt.clone());
        push("temperature", request.temperature.map(|temperature| temperature.to_string()));
        // Only the verbose form has times, and not every model has the verbose form.
        let verbose = !request.timestamps.is_empty();
        push("response_format", Some(if verbose { "verbose_json" } else { "json" }.to_owned()));
        for granularity in &request.timestamps {
            let name = if *granularity == TimestampGranularity::Word { "word" } else { "segment" };
            push("timestamp_granularities[]", Some(name.to_owned()));
        }
        for keyword in &request.keywords {
            push("keywords[]", Some(keyword.clone()));
        }
        for language in &request.candidate_languages {
            push("languages[]", Some(language.clone()));
        }
        if request.logprobs {
            push("include[]", Some("logprobs".to_owned()));
        }
        match &request.chunking {
            None => {}
            Some(Chunking::Auto) => push("chunking_strategy", Some("auto".to_owned())),
            Some(_) => return refuse("chunking", "must be automatic for this backend"),
        }
        Ok(fields)
    }
}
