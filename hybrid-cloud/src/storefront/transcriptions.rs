//! `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`.

use std::{collections::BTreeSet, convert::Infallible};

use axum::{
    Json,
    body::Bytes,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use hybrid_core::{
    Error, Result, Task,
    task::{
        Chunking, TimestampGranularity, Transcribe, TranscribeMode, TranscribeRequest, TranscribeResponse,
        VoiceActivity,
    },
};

use super::{body::Upload, error::ApiError, front::Admitted};
use crate::wire::{
    media, refuse,
    transcribe::{Transcription, TranscriptionUsage, subtitles},
    unsupported,
};

const READ: &str = "read transcription request";
/// A field of a form besides its file: a prompt at most.
const FIELDS: usize = 64;

pub(super) async fn transcribe(admitted: Admitted, upload: Upload) -> Result<Response, ApiError> {
    answer(admitted, upload, TranscribeMode::Transcribe).await
}

pub(super) async fn translate(admitted: Admitted, upload: Upload) -> Result<Response, ApiError> {
    answer(admitted, upload, TranscribeMode::Translate).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Verbose,
    Text,
    Srt,
    Vtt,
}

async fn answer(admitted: Admitted, upload: Upload, mode: TranscribeMode) -> Result<Response, ApiError> {
    let Form { model, format, mut request } = Form::read(upload).await?;
    request.mode = mode;
    let model = admitted.model::<Transcribe>(model.as_deref())?;
    Transcribe::validate(&request).map_err(in_our_words)?;
    let reply = admitted.infer(&model, request).await?;
    let (response, usage) = (reply.response, reply.meta.usage);
    match format {
        Format::Text => Ok(plain("text/plain; charset=utf-8", response.text + "\n")),
        Format::Srt => Ok(plain("application/x-subrip; charset=utf-8", cues(&response, false)?)),
        Format::Vtt => Ok(plain("text/vtt; charset=utf-8", cues(&response, true)?)),
        Format::Json => {
            let logprobs = Transcription::from(response.clone()).logprobs;
            let usage = Some(TranscriptionUsage::from(&usage));
            Ok(Json(Transcription { text: response.text, logprobs, usage, ..Transcription::default() }).into_response())
        }
        Format::Verbose => {
            let mut verbose = Transcription::from(response);
            verbose.task = Some(if mode == TranscribeMode::Translate { "translate" } else { "transcribe" }.to_owned());
            // The official client's type has both always.
            verbose.language.get_or_insert_default();
            let duration = *verbose.duration.get_or_insert(usage.audio_seconds);
            verbose.usage =
                Some(TranscriptionUsage { kind: "duration".into(), seconds: Some(duration), ..Default::default() });
            Ok(Json(verbose).into_response())
        }
    }
}

fn plain(media_type: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], text).into_response()
}

fn cues(response: &TranscribeResponse, vtt: bool) -> Result<String> {
    if response.segments.is_empty() && !response.text.trim().is_empty() {
        return Err(unsupported(READ, "response_format", "needs times, and this model gives none; use json or text"));
    }
    Ok(subtitles(&response.segments, vtt))
}

/// What came in a form.
struct Form {
    model: Option<String>,
    format: Format,
    request: TranscribeRequest,
}

impl Form {
    async fn read(upload: Upload) -> Result<Self, ApiError> {
        let Upload { boundary, bytes } = upload;
        let body = stream::iter([Ok::<Bytes, Infallible>(bytes)]);
        let mut parts = multer::Multipart::new(body, boundary);
        let mut form = Self { model: None, format: Format::Json, request: TranscribeRequest::default() };
        let (mut file, mut fields) = (false, 0);
        let mut granularities = BTreeSet::new();
        while let Some(part) = parts.next_field().await.map_err(malformed)? {
            let name = part.name().unwrap_or_default().to_owned();
            fields += 1;
            if fields > FIELDS {
                return Err(ApiError::too_many("form", FIELDS, fields));
            }
            if name == "file" {
                if std::mem::replace(&mut file, true) {
                    return Err(refuse(READ, "file", "is there twice; send one recording").into());
                }
                let extension = part.file_name().and_then(|name| name.rsplit_once('.')).map(|(_, extension)| extension);
                let known = extension.and_then(|extension| media::media_type("audio", extension));
                let declared = part.content_type().map(|media_type| media_type.essence_str().to_owned());
                let declared = declared.filter(|media_type| media_type != "application/octet-stream");
                let media_type =
                    declared.filter(|declared| declared.starts_with("audio/") || known.is_none()).or(known);
                form.request.media_type = media_type.ok_or_else(|| {
                    refuse(READ, "file", "must have a content type, or a name that ends as audio does, such as .wav")
                })?;
                form.request.audio = part.bytes().await.map_err(malformed)?.into();
                continue;
            }
            let text = part.bytes().await.map_err(malformed)?;
            let text = String::from_utf8(text.to_vec()).map_err(|_| refuse(READ, &name, "must be UTF-8"))?;
            form.field(&name, text, &mut granularities)?;
        }
        if !file {
            return Err(refuse(READ, "file", "is missing").into());
        }
        if form.format == Format::Verbose && granularities.is_empty()
            || matches!(form.format, Format::Srt | Format::Vtt)
        {
            granularities.insert(TimestampGranularity::Segment);
        }
        if !granularities.is_empty() && matches!(form.format, Format::Json | Format::Text) {
            let error = refuse(READ, "timestamp_granularities", "needs `response_format` to be verbose_json");
            return Err(error.into());
        }
        form.request.timestamps = granularities;
        Ok(form)
    }

    fn field(&mut self, name: &str, text: String, granularities: &mut BTreeSet<TimestampGranularity>) -> Result<()> {
        let request = &mut self.request;
        match name.strip_suffix("[]").unwrap_or(name) {
            "model" => self.model = Some(text),
            "language" => request.language = Some(text).filter(|text| !text.is_empty()),
            "prompt" => request.prompt = Some(text).filter(|text| !text.is_empty()),
            "languages" => request.candidate_languages.push(text),
            "keywords" => request.keywords.push(text),
            "temperature" => {
                let number = text.parse().map_err(|_| refuse(READ, "temperature", "must be a number"))?;
                request.temperature = Some(number);
            }
            "response_format" => {
                self.format = match text.as_str() {
                    "json" => Format::Json,
                    "verbose_json" => Format::Verbose,
                    "text" => Format::Text,
                    "srt" => Format::Srt,
                    "vtt" => Format::Vtt,
                    "diarized_json" => {
                        return Err(unsupported(READ, name, "must be json, verbose_json, text, srt or vtt"));
                    }
                    _ => return Err(refuse(READ, name, "must be json, verbose_json, text, srt or vtt")),
                }
            }
            "timestamp_granularities" => {
                granularities.insert(match text.as_str() {
                    "word" => TimestampGranularity::Word,
                    "segment" => TimestampGranularity::Segment,
                    _ => return Err(refuse(READ, "timestamp_granularities", "must be word or segment")),
                });
            }
            "include" if text == "logprobs" => request.logprobs = true,
            "include" => return Err(unsupported(READ, "include", "may hold logprobs alone")),
            "stream" if matches!(text.as_str(), "false" | "False" | "0" | "") => {}
            "stream" => return Err(unsupported(READ, "stream", "must be false or left out")),
            "chunking_strategy" if text == "auto" => request.chunking = Some(Chunking::Auto),
            "chunking_strategy" | "chunking_strategy[type]" if text == "server_vad" => {
                request.chunking = Some(Chunking::VoiceActivity(VoiceActivity::default()));
            }
            other if other.starts_with("chunking_strategy") => {
                return Err(unsupported(READ, "chunking_strategy", "must be auto, or server_vad with its defaults"));
            }
            "known_speaker_names" | "known_speaker_references" => {
                return Err(unsupported(READ, name, "is not supported; leave it out"));
            }
            // What newer clients send.
            _ => {}
        }
        Ok(())
    }
}

fn malformed(error: multer::Error) -> ApiError {
    ApiError::invalid("invalid_form", format!("the form is malformed: {error}"))
}

/// The task's own words, said of the form.
fn in_our_words(error: Error) -> Error {
    let field = match error.context("field").unwrap_or_default() {
        "audio" | "media_type" => "file",
        field if field.starts_with("candidate_languages") => "languages",
        field => field,
    };
    Error::new(error.kind(), READ, error.message().to_owned()).with("field", field)
}
