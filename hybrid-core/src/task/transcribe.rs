//! Transcription: the words of a recording.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    MediaSource, TokenLogprob,
    check::{Check, NOT_NEGATIVE, SHARE},
    is_default,
};
use crate::{Error, Result, Task};

/// The task of writing down what is said in a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transcribe;

impl Task for Transcribe {
    const NAME: &'static str = "transcribe";
    type Request = TranscribeRequest;
    type Response = TranscribeResponse;
    type Delta = TranscribeDelta;

    fn validate(request: &TranscribeRequest) -> Result<()> {
        let check = Check("validate transcribe request");
        request.audio.check(check, "audio")?;
        check.not_blank("media_type", &request.media_type)?;
        check.not_blank_if_set("language", request.language.as_deref())?;
        for (i, language) in request.candidate_languages.iter().enumerate() {
            check.not_blank(format_args!("candidate_languages[{i}]"), language)?;
        }
        check.within("temperature", request.temperature, NOT_NEGATIVE)?;
        if let Some(Chunking::VoiceActivity(activity)) = &request.chunking {
            check.within("chunking.threshold", activity.threshold, SHARE)?;
        }
        Ok(())
    }

    /// Text comes just before the segment it belongs to, so that a reader can show both as they arrive.
    fn split(response: TranscribeResponse) -> Vec<TranscribeDelta> {
        let TranscribeResponse { text, segments, words, logprobs, details } = response;
        let mut deltas = Vec::new();
        let mut rest = text.as_str();
        for segment in segments {
            if let Some(at) = rest.find(&segment.text) {
                let (head, tail) = rest.split_at(at + segment.text.len());
                deltas.push(TranscribeDelta::Text(head.to_owned()));
                rest = tail;
            }
            deltas.push(TranscribeDelta::Segment(segment));
        }
        if !rest.is_empty() {
            deltas.push(TranscribeDelta::Text(rest.to_owned()));
        }
        if !words.is_empty() {
            deltas.push(TranscribeDelta::Words(words));
        }
        if !logprobs.is_empty() {
            deltas.push(TranscribeDelta::Logprobs(logprobs));
        }
        deltas.push(TranscribeDelta::End(details));
        deltas
    }

    fn fold(deltas: impl IntoIterator<Item = TranscribeDelta>) -> Result<TranscribeResponse> {
        const OPERATION: &str = "fold transcribe deltas";
        let mut response = TranscribeResponse::default();
        let mut deltas = deltas.into_iter();
        for delta in deltas.by_ref() {
            match delta {
                TranscribeDelta::Text(text) => response.text.push_str(&text),
                TranscribeDelta::Segment(segment) => response.segments.push(segment),
                TranscribeDelta::Words(words) => response.words.extend(words),
                TranscribeDelta::Logprobs(logprobs) => response.logprobs.extend(logprobs),
                TranscribeDelta::End(details) => {
                    response.details = details;
                    return match deltas.next() {
                        None => Ok(response),
                        Some(_) => Err(Error::corrupt(OPERATION, "a delta came after the end of the transcript")),
                    };
                }
            }
        }
        Err(Error::corrupt(OPERATION, "the stream ended before the transcript did"))
    }
}

/// A recording to be written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TranscribeRequest {
    /// The encoded recording.
    pub audio: MediaSource,
    /// Its IANA media type, such as `audio/wav`.
    pub media_type: String,
    /// Whether to keep the language or translate into English.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: TranscribeMode,
    /// The language spoken, ISO 639-1 such as `de`; `None` lets the model find out.
    #[serde(skip_serializing_if = "is_default")]
    pub language: Option<String>,
    /// The languages that may be spoken, where there are several, likeliest first.
    #[serde(skip_serializing_if = "is_default")]
    pub candidate_languages: Vec<String>,
    /// Text that could have stood before the recording, to set style and spelling.
    #[serde(skip_serializing_if = "is_default")]
    pub prompt: Option<String>,
    /// Words to expect, such as names.
    #[serde(skip_serializing_if = "is_default")]
    pub keywords: Vec<String>,
    /// The sampling temperature, from 0; `None` lets the model raise it where it is stuck.
    #[serde(skip_serializing_if = "is_default")]
    pub temperature: Option<f32>,
    /// What to give times for.
    #[serde(skip_serializing_if = "is_default")]
    pub timestamps: BTreeSet<TimestampGranularity>,
    /// Whether to tell speakers apart.
    #[serde(skip_serializing_if = "is_default")]
    pub diarize: bool,
    /// How a long recording is cut; `None` for the backend's own way.
    #[serde(skip_serializing_if = "is_default")]
    pub chunking: Option<Chunking>,
    /// Whether to give the log probability of each token.
    #[serde(skip_serializing_if = "is_default")]
    pub logprobs: bool,
    /// Fields that only the provider knows, put into its request as they are.
    #[serde(skip_serializing_if = "is_default")]
    pub extra: Map<String, Value>,
}

impl TranscribeRequest {
    /// Asks for the words of a recording of the given IANA media type, in its own language.
    pub fn new(audio: impl Into<MediaSource>, media_type: impl Into<String>) -> Self {
        Self { audio: audio.into(), media_type: media_type.into(), ..Self::default() }
    }
}

/// Whether to keep the language of a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TranscribeMode {
    /// Write down what is said.
    #[default]
    Transcribe,
    /// Write down what is said, in English.
    Translate,
}

/// What to give times for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimestampGranularity {
    /// Each segment.
    Segment,
    /// Each word.
    Word,
}

/// How a long recording is cut into pieces that the model can hear.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Chunking {
    /// As the backend sees fit.
    Auto,
    /// Where nobody speaks.
    VoiceActivity(VoiceActivity),
}

/// How to find out where nobody speaks; `None` for the backend's own values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VoiceActivity {
    /// How sure to be of a voice, from 0 to 1.
    pub threshold: Option<f32>,
    /// Sound to keep before a voice.
    pub prefix_padding: Option<Duration>,
    /// Silence that ends a piece.
    pub silence: Option<Duration>,
}

/// The words of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranscribeResponse {
    /// All of the text.
    pub text: String,
    /// The text in pieces with their times, in order, where the backend makes them.
    #[serde(skip_serializing_if = "is_default")]
    pub segments: Vec<TranscriptSegment>,
    /// The words with their times, in order, where they were asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub words: Vec<TranscriptWord>,
    /// The log probability of each token, where it was asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub logprobs: Vec<TokenLogprob>,
    /// What is known about the whole recording.
    #[serde(skip_serializing_if = "is_default")]
    pub details: TranscribeDetails,
}

/// What is known about a whole recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscribeDetails {
    /// The language spoken, ISO 639-1.
    pub language: Option<String>,
    /// How long it is.
    pub duration: Option<Duration>,
}

/// A piece of a recording, usually a sentence or less. Times count from the beginning of the recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranscriptSegment {
    /// Its number, from 0.
    pub id: u32,
    /// When it begins.
    pub start: Duration,
    /// When it ends.
    pub end: Duration,
    /// What is said.
    pub text: String,
    /// Who speaks, where speakers are told apart.
    #[serde(skip_serializing_if = "is_default")]
    pub speaker: Option<String>,
    /// The frame at which the model's window began, in steps of the model's hop (10 ms for Whisper).
    #[serde(skip_serializing_if = "is_default")]
    pub seek: Option<u64>,
    /// The text as ids of the model's vocabulary.
    #[serde(skip_serializing_if = "is_default")]
    pub tokens: Vec<u32>,
    /// The sampling temperature it was decoded with.
    #[serde(skip_serializing_if = "is_default")]
    pub temperature: Option<f32>,
    /// The mean log probability of its tokens, natural logarithm.
    #[serde(skip_serializing_if = "is_default")]
    pub avg_logprob: Option<f32>,
    /// How well its text compresses; a high ratio means that the model repeats itself.
    #[serde(skip_serializing_if = "is_default")]
    pub compression_ratio: Option<f32>,
    /// The probability that nobody speaks, from 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub no_speech_prob: Option<f32>,
}

/// One word. Times count from the beginning of the recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranscriptWord {
    /// The word.
    pub word: String,
    /// When it begins.
    pub start: Duration,
    /// When it ends.
    pub end: Duration,
    /// How sure the model is, from 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub probability: Option<f32>,
    /// Who speaks, where speakers are told apart.
    #[serde(skip_serializing_if = "is_default")]
    pub speaker: Option<String>,
}

/// A piece of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TranscribeDelta {
    /// More text. All of them in order make [`TranscribeResponse::text`].
    Text(String),
    /// A segment that is complete. Its text has come as [`Text`](Self::Text) too.
    Segment(TranscriptSegment),
    /// More words.
    Words(Vec<TranscriptWord>),
    /// More log probabilities.
    Logprobs(Vec<TokenLogprob>),
    /// The end of the transcript; the last delta.
    End(TranscribeDetails),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::check::testing::{fold_error, over_json, refused},
        *,
    };

    fn request() -> TranscribeRequest {
        TranscribeRequest::new(vec![1, 2], "audio/wav")
    }

    #[test]
    fn requests_that_nobody_could_answer_are_refused() {
        let refused = refused::<Transcribe>;
        assert_eq!(refused(&request()), None);
        assert_eq!(refused(&TranscribeRequest::default()).as_deref(), Some("audio"));
        assert_eq!(refused(&TranscribeRequest::new(vec![1], "")).as_deref(), Some("media_type"));
        let nowhere = TranscribeRequest { language: Some(String::new()), ..request() };
        assert_eq!(refused(&nowhere).as_deref(), Some("language"));
        for temperature in [-0.1, f32::NAN, f32::INFINITY] {
            let cold = TranscribeRequest { temperature: Some(temperature), ..request() };
            assert_eq!(refused(&cold).as_deref(), Some("temperature"));
        }
        let chunking = Chunking::VoiceActivity(VoiceActivity { threshold: Some(2.0), ..VoiceActivity::default() });
        let deaf = TranscribeRequest { chunking: Some(chunking), ..request() };
        assert_eq!(refused(&deaf).as_deref(), Some("chunking.threshold"));
    }

    #[test]
    fn requests_come_back_and_read_well() {
        let request = TranscribeRequest { timestamps: [TimestampGranularity::Word].into(), ..request() };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"audio":{"bytes":"AQI="},"media_type":"audio/wav","timestamps":["word"]}"#);
        assert_eq!(over_json(&request), request);
    }

    #[test]
    fn half_a_transcript_is_corrupt() {
        let end = TranscribeDelta::End(TranscribeDetails::default());
        let text = TranscribeDelta::Text("a".into());
        assert!(fold_error::<Transcribe>(vec![text.clone()]).contains("ended before"));
        assert!(fold_error::<Transcribe>(vec![end.clone(), text]).contains("after the end"));
        assert_eq!(Transcribe::fold([end]).unwrap(), TranscribeResponse::default());
    }

    proptest! {
        #[test]
        fn answers_come_back(
            text in "[ab ]{0,20}",
            segments in prop::collection::vec(("[ab ]{0,5}", any::<Duration>()), 0..5),
            words in prop::collection::vec("[a-z]{1,5}", 0..4),
            duration: Option<Duration>,
        ) {
            let segments: Vec<_> = segments
                .into_iter()
                .map(|(text, start)| TranscriptSegment { text, start, end: start, ..TranscriptSegment::default() })
                .collect();
            let words = words.into_iter().map(|word| TranscriptWord { word, ..TranscriptWord::default() }).collect();
            let logprobs = vec![TokenLogprob::new("a", -0.5)];
            let details = TranscribeDetails { language: Some("de".into()), duration };
            let response = TranscribeResponse { text, segments, words, logprobs, details };
            let deltas = Transcribe::split(response.clone());
            prop_assert_eq!(&over_json(&deltas), &deltas);
            prop_assert_eq!(&Transcribe::fold(deltas).unwrap(), &response);
            prop_assert_eq!(over_json(&response), response);
        }
    }
}
