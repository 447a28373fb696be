//! `POST /v1/audio/transcriptions` and `/v1/audio/translations`.

use std::time::Duration;

use hybrid_core::{
    Error, Result, Usage,
    task::{TokenLogprob, TranscribeDetails, TranscribeResponse, TranscriptSegment, TranscriptWord},
};
use serde::{Deserialize, Serialize};

/// An answer as JSON, short or verbose: the short form is `text` and `usage` alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Transcription {
    /// `transcribe` or `translate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) language: Option<String>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration: Option<f64>,
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) segments: Option<Vec<Segment>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) words: Option<Vec<Word>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<super::chat::WireLogprob>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<TranscriptionUsage>,
}

/// Times are in seconds from the beginning of the recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) seek: u64,
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) temperature: f32,
    pub(crate) avg_logprob: f32,
    pub(crate) compression_ratio: f32,
    pub(crate) no_speech_prob: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speaker: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct Word {
    pub(crate) word: String,
    pub(crate) start: f64,
    pub(crate) end: f64,
}

/// `{"type": "duration", "seconds"}` or `{"type": "tokens", …}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "storefront", derive(schemars::JsonSchema))]
pub(crate) struct TranscriptionUsage {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_tokens: Option<u64>,
}

/// The form of a request: what it may hold, for the description alone.
#[cfg(feature = "storefront")]
#[derive(schemars::JsonSchema)]
#[allow(dead_code, reason = "a form is read field by field")]
pub(crate) struct TranscriptionForm {
    /// The recording.
    #[schemars(extend("contentMediaType" = "application/octet-stream"))]
    file: String,
    /// The model; the first one that transcribes where none is named.
    model: Option<String>,
    /// ISO 639-1, such as `de`.
    language: Option<String>,
    prompt: Option<String>,
    /// `json`, `text`, `srt`, `verbose_json` or `vtt`.
    response_format: Option<String>,
    temperature: Option<f32>,
    /// `word` or `segment`; with `verbose_json` alone.
    #[schemars(rename = "timestamp_granularities[]")]
    timestamp_granularities: Option<Vec<String>>,
    #[schemars(rename = "include[]")]
    include: Option<Vec<String>>,
    #[schemars(rename = "keywords[]")]
    keywords: Option<Vec<String>>,
    #[schemars(rename = "languages[]")]
    languages: Option<Vec<String>>,
    chunking_strategy: Option<String>,
}

impl From<&Usage> for TranscriptionUsage {
    fn from(usage: &Usage) -> Self {
        let input = usage.total_input_tokens();
        if input + usage.output_tokens > 0 {
            return Self {
                kind: "tokens".into(),
                input_tokens: Some(input),
                output_tokens: Some(usage.output_tokens),
                total_tokens: Some(input.saturating_add(usage.output_tokens)),
                seconds: None,
            };
        }
        Self { kind: "duration".into(), seconds: Some(usage.audio_seconds), ..Self::default() }
    }
}

impl From<TranscribeResponse> for Transcription {
    /// The verbose form, without `task` and `usage`.
    fn from(response: TranscribeResponse) -> Self {
        let TranscribeResponse { text, segments, words, logprobs, details } = response;
        let segments: Vec<_> = segments.into_iter().map(Segment::from).collect();
        let words: Vec<_> = words
            .into_iter()
            .map(|word| Word { word: word.word, start: word.start.as_secs_f64(), end: word.end.as_secs_f64() })
            .collect();
        let end = segments.last().map(|segment: &Segment| segment.end);
        Self {
            task: None,
            language: details.language,
            duration: details.duration.map(|duration| duration.as_secs_f64()).or(end),
            text,
            segments: (!segments.is_empty()).then_some(segments),
            words: (!words.is_empty()).then_some(words),
            logprobs: (!logprobs.is_empty()).then(|| logprobs.into_iter().map(write_logprob).collect()),
            usage: None,
        }
    }
}

impl From<TranscriptSegment> for Segment {
    fn from(segment: TranscriptSegment) -> Self {
        Self {
            id: segment.id,
            seek: segment.seek.unwrap_or_default(),
            start: segment.start.as_secs_f64(),
            end: segment.end.as_secs_f64(),
            text: segment.text,
            tokens: segment.tokens,
            temperature: segment.temperature.unwrap_or_default(),
            avg_logprob: segment.avg_logprob.unwrap_or_default(),
            compression_ratio: segment.compression_ratio.unwrap_or_default(),
            no_speech_prob: segment.no_speech_prob.unwrap_or_default(),
            speaker: segment.speaker,
        }
    }
}

fn write_logprob(token: TokenLogprob) -> super::chat::WireLogprob {
    super::chat::WireLogprob {
        bytes: (!token.bytes.is_empty()).then(|| token.bytes.to_vec()),
        token: token.token,
        logprob: token.logprob,
        top_logprobs: Vec::new(),
    }
}

const READ: &str = "read transcription";

impl Transcription {
    /// What was heard, and what was used, where the server says so.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) for a time that is none.
    pub(crate) fn read(self) -> Result<(TranscribeResponse, Option<Usage>)> {
        let usage = match self.usage {
            Some(TranscriptionUsage { seconds: Some(seconds), .. }) if seconds.is_finite() && seconds >= 0.0 => {
                Some(Usage { audio_seconds: seconds, ..Usage::default() })
            }
            Some(TranscriptionUsage { input_tokens: Some(input), output_tokens, .. }) => Some(Usage {
                input_tokens: input,
                output_tokens: output_tokens.unwrap_or_default(),
                ..Usage::default()
            }),
            _ => self
                .duration
                .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
                .map(|seconds| Usage { audio_seconds: seconds, ..Usage::default() }),
        };
        let segments = self.segments.into_iter().flatten().map(|segment| {
            Ok(TranscriptSegment {
                id: segment.id,
                start: time(segment.start)?,
                end: time(segment.end)?,
                text: segment.text,
                speaker: segment.speaker,
                seek: Some(segment.seek),
                tokens: segment.tokens,
                temperature: Some(segment.temperature),
                avg_logprob: Some(segment.avg_logprob),
                compression_ratio: Some(segment.compression_ratio),
                no_speech_prob: Some(segment.no_speech_prob),
            })
        });
        let words = self.words.into_iter().flatten().map(|word| {
            let (start, end) = (time(word.start)?, time(word.end)?);
            Ok(TranscriptWord { word: word.word, start, end, ..TranscriptWord::default() })
        });
        let logprobs = self.logprobs.into_iter().flatten().map(|token| TokenLogprob {
            bytes: token.bytes.unwrap_or_default().into(),
            ..TokenLogprob::new(token.token, token.logprob)
        });
        let response = TranscribeResponse {
            text: self.text,
            segments: segments.collect::<Result<_>>()?,
            words: words.collect::<Result<_>>()?,
            logprobs: logprobs.collect(),
            details: TranscribeDetails {
                language: self.language.map(language_code),
                duration: self.duration.map(time).transpose()?,
            },
        };
        Ok((response, usage))
    }
}

/// To the microsecond: decimal seconds have no more in them.
fn time(seconds: f64) -> Result<Duration> {
    let rounded = (seconds * 1e6).round() / 1e6;
    Duration::try_from_secs_f64(rounded)
        .map_err(|error| Error::corrupt(READ, "a time is not a number of seconds").with_source(error))
}

/// Whisper's servers write the language's English name, newer ones its code.
fn language_code(name: String) -> String {
    const NAMES: [(&str, &str); 24] = [
        ("arabic", "ar"),
        ("chinese", "zh"),
        ("czech", "cs"),
        ("danish", "da"),
        ("dutch", "nl"),
        ("english", "en"),
        ("finnish", "fi"),
        ("french", "fr"),
        ("german", "de"),
        ("greek", "el"),
        ("hebrew", "he"),
        ("hindi", "hi"),
        ("hungarian", "hu"),
        ("indonesian", "id"),
        ("italian", "it"),
        ("japanese", "ja"),
        ("korean", "ko"),
        ("norwegian", "no"),
        ("polish", "pl"),
        ("portuguese", "pt"),
        ("russian", "ru"),
        ("spanish", "es"),
        ("swedish", "sv"),
        ("turkish", "tr"),
    ];
    let lower = name.to_lowercase();
    NAMES.iter().find(|(known, _)| *known == lower).map_or(name, |(_, code)| (*code).to_owned())
}

/// SubRip or WebVTT text of the segments.
pub(crate) fn subtitles(segments: &[TranscriptSegment], vtt: bool) -> String {
    let stamp = |at: Duration| {
        let (seconds, millis) = (at.as_secs(), at.subsec_millis());
        let point = if vtt { '.' } else { ',' };
        format!("{:02}:{:02}:{:02}{point}{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    };
    let mut out = if vtt { "WEBVTT\n\n".to_owned() } else { String::new() };
    for (i, segment) in segments.iter().enumerate() {
        if !vtt {
            out.push_str(&format!("{}\n", i + 1));
        }
        // An empty line would end the cue, and an arrow would begin another one's time.
        let text: Vec<_> = segment.text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = text.join("\n").replace("-->", "->");
        out.push_str(&format!("{} --> {}\n{text}\n\n", stamp(segment.start), stamp(segment.end)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtitles_have_their_own_times_and_one_cue_a_segment() {
        let segment = |start: u64, end: u64, text: &str| TranscriptSegment {
            start: Duration::from_millis(start),
            end: Duration::from_millis(end),
            text: text.into(),
            ..TranscriptSegment::default()
        };
        let segments = [segment(0, 1500, " Two loaves,\n\nplease."), segment(3_661_001, 3_662_000, "a --> b")];
        assert_eq!(
            subtitles(&segments, false),
            "1\n00:00:00,000 --> 00:00:01,500\nTwo loaves,\nplease.\n\n2\n01:01:01,001 --> 01:01:02,000\na -> b\n\n"
        );
        assert!(subtitles(&segments, true).starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nTwo loaves,"));
    }

    #[test]
    fn a_verbose_answer_comes_back() {
        let response = TranscribeResponse {
            text: "Two loaves.".into(),
            segments: vec![TranscriptSegment {
                id: 3,
                start: Duration::from_millis(120),
                end: Duration::from_millis(2_340),
                text: "Two loaves.".into(),
                seek: Some(7),
                tokens: vec![1, 2],
                temperature: Some(0.2),
                avg_logprob: Some(-0.5),
                compression_ratio: Some(1.25),
                no_speech_prob: Some(0.01),
                speaker: None,
            }],
            words: vec![TranscriptWord {
                word: "Two".into(),
                end: Duration::from_millis(400),
                ..TranscriptWord::default()
            }],
            logprobs: vec![],
            details: TranscribeDetails { language: Some("en".into()), duration: Some(Duration::from_millis(2_500)) },
        };
        let wire = Transcription::from(response.clone());
        let json = serde_json::to_string(&wire).unwrap();
        let read: Transcription = serde_json::from_str(&json).unwrap();
        let (back, usage) = read.read().unwrap();
        assert_eq!(back, response);
        assert_eq!(usage.unwrap().audio_seconds, 2.5);
    }

    #[test]
    fn a_time_that_is_none_is_corrupt() {
        let wire = Transcription { duration: Some(-1.0), ..Transcription::default() };
        assert_eq!(wire.read().unwrap_err().kind(), hybrid_core::ErrorKind::Corrupt);
    }
}
