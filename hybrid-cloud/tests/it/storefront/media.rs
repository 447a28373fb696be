//! Vectors, recordings and pictures.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use hybrid_cloud::storefront::StorefrontLimits;
use hybrid_core::{
    Task,
    memory::ScriptedBackend,
    task::{
        Chat, ChatResponse, Embed, EmbedInput, EmbedResponse, GenerateImage, GenerateImageResponse, GeneratedImage,
        ImageBackground, ImageDelivery, ImageFinish, ImageSize, MediaSource, Message, TimestampGranularity, Transcribe,
        TranscribeDetails, TranscribeMode, TranscribeResponse, TranscriptSegment,
    },
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::rig::{Answer, asleep, builder, call, noon, post, soon};

fn always<T: Task>(answer: T::Response) -> Arc<ScriptedBackend<T>> {
    Arc::new(ScriptedBackend::new("scripted", std::iter::repeat_with(move || Ok(answer.clone())).take(32)))
}

pub(crate) fn says(text: &str) -> Arc<ScriptedBackend<Chat>> {
    always(ChatResponse::one(Message::assistant(text)))
}

pub(crate) fn vectors() -> Arc<ScriptedBackend<Embed>> {
    always(EmbedResponse { embeddings: vec![vec![0.5, -1.0]] })
}

pub(crate) fn ears() -> Arc<ScriptedBackend<Transcribe>> {
    let segment = |id: u32, start: u64, end: u64, text: &str| TranscriptSegment {
        id,
        start: Duration::from_millis(start),
        end: Duration::from_millis(end),
        text: text.into(),
        ..TranscriptSegment::default()
    };
    always(TranscribeResponse {
        text: "Two loaves, please.".into(),
        segments: vec![segment(0, 0, 1_200, "Two loaves,"), segment(1, 1_200, 1_900, " please.")],
        details: TranscribeDetails { language: Some("en".into()), duration: Some(Duration::from_secs(2)) },
        ..TranscribeResponse::default()
    })
}

pub(crate) fn painter() -> Arc<ScriptedBackend<GenerateImage>> {
    let image = GeneratedImage {
        size: Some(ImageSize::new(64, 32)),
        revised_prompt: Some("two loaves".into()),
        ..GeneratedImage::new("image/png", b"\x89PNG".to_vec())
    };
    always(GenerateImageResponse { images: vec![image] })
}

/// A form with fields and, if given, a file.
pub(crate) fn form(path: &str, fields: &[(&str, &str)], file: Option<(&str, &[u8])>) -> Request<Body> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    if let Some((name, bytes)) = file {
        body.extend(
            format!("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n").bytes(),
        );
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--b--\r\n");
    Request::post(path).header("content-type", "multipart/form-data; boundary=b").body(body.into()).unwrap()
}

const EARS: &str = "/v1/audio/transcriptions";

async fn hear(fields: &[(&str, &str)], file: Option<(&str, &[u8])>) -> Answer {
    let router = builder(&noon()).transcribe("ears", ears()).build().unwrap().router();
    call(&router, form(EARS, fields, file)).await
}

async fn hear_text(format: &str) -> (String, String) {
    let router = builder(&noon()).transcribe("ears", ears()).build().unwrap().router();
    let request = form(EARS, &[("response_format", format)], Some(("a.wav", b"RIFF")));
    let response = soon(router.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (media_type, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn vectors_come_as_numbers_or_as_their_bytes() {
    let backend = vectors();
    let router = builder(&noon()).embed("vectors", backend.clone()).build().unwrap().router();
    let ask = |body: Value| call(&router, post("/v1/embeddings", body.to_string()));
    let answer = ask(json!({ "input": "a" })).await;
    let usage = json!({ "prompt_tokens": 0, "total_tokens": 0 });
    let data = |embedding: Value| json!([{ "object": "embedding", "index": 0, "embedding": embedding }]);
    let list = |data: Value| json!({ "object": "list", "data": data, "model": "vectors", "usage": usage });
    assert_eq!(answer.body, list(data(json!([0.5, -1.0]))));
    let answer = ask(json!({ "input": ["a"], "encoding_format": "base64", "dimensions": 2, "user": "u" })).await;
    assert_eq!(answer.body, list(data(json!("AAAAPwAAgL8="))));
    let asked = backend.asked();
    assert_eq!((asked[1].inputs[0].clone(), asked[1].dimensions), (EmbedInput::Text("a".into()), Some(2)));
    for (body, param) in [
        (json!({ "input": [1, 2] }), "input"),
        (json!({ "input": [[1, 2]] }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": ["a", ""] }), "input[1]"),
        (json!({ "input": ["a", null] }), "input[1]"),
        (json!({ "input": {} }), "input"),
        (json!({ "input": "a", "encoding_format": "hex" }), "encoding_format"),
        (json!({ "input": "a", "dimensions": 0 }), "dimensions"),
    ] {
        let answer = ask(body).await;
        assert_eq!((answer.status, answer.error("param")), (400, param), "{answer:?}");
    }
    // One vector for two texts is not believed.
    assert_eq!(ask(json!({ "input": ["a", "b"] })).await.status, 500);
}

#[tokio::test]
async fn a_recording_is_written_down_in_each_form() {
    let file = Some(("a.wav", &b"RIFF"[..]));
    let usage = json!({ "type": "duration", "seconds": 0.0 });
    assert_eq!(hear(&[], file).await.body, json!({ "text": "Two loaves, please.", "usage": usage }));
    let verbose =
        hear(&[("response_format", "verbose_json"), ("timestamp_granularities[]", "segment")], file).await.body;
    assert_eq!(
        (&verbose["task"], &verbose["language"], &verbose["duration"]),
        (&json!("transcribe"), &json!("en"), &json!(2.0))
    );
    assert_eq!(verbose["segments"][1]["start"], 1.2);
    assert_eq!(verbose["segments"].as_array().unwrap().len(), 2);
    assert_eq!(hear_text("text").await, ("text/plain; charset=utf-8".into(), "Two loaves, please.\n".into()));
    assert_eq!(
        hear_text("srt").await.1,
        "1\n00:00:00,000 --> 00:00:01,200\nTwo loaves,\n\n2\n00:00:01,200 --> 00:00:01,900\nplease.\n\n"
    );
    let (media_type, vtt) = hear_text("vtt").await;
    assert_eq!(media_type, "text/vtt; charset=utf-8");
    assert!(vtt.starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:01.200\n"), "{vtt}");
}

#[tokio::test]
async fn a_form_arrives_as_it_was_filled_in() {
    let backend = ears();
    let router = builder(&noon()).transcribe("ears", backend.clone()).build().unwrap().router();
    let bytes: Vec<u8> = (0..=255).collect();
    let fields = [
        ("model", "ears"),
        ("language", "de"),
        ("prompt", "Brötchen"),
        ("temperature", "0.5"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("next_years_field", "x"),
    ];
    assert_eq!(call(&router, form(EARS, &fields, Some(("order.MP3", &bytes)))).await.status, 200);
    let translated = form("/v1/audio/translations", &[], Some(("a.ogg", b"OggS")));
    assert_eq!(call(&router, translated).await.status, 200);
    let asked = backend.asked();
    assert_eq!((&asked[0].audio, asked[0].media_type.as_str()), (&MediaSource::from(bytes), "audio/mpeg"));
    assert_eq!((asked[0].language.as_deref(), asked[0].prompt.as_deref()), (Some("de"), Some("Brötchen")));
    assert_eq!(asked[0].temperature, Some(0.5));
    assert_eq!(asked[0].timestamps, [TimestampGranularity::Segment, TimestampGranularity::Word].into());
    assert_eq!((asked[1].mode, asked[1].media_type.as_str()), (TranscribeMode::Translate, "audio/ogg"));
}

#[tokio::test]
async fn a_form_that_cannot_be_honoured_is_refused_by_its_field() {
    let file = Some(("a.wav", &b"RIFF"[..]));
    for (fields, file, param) in [
        (&[][..], None, "file"),
        (&[], Some(("a.wav", &b""[..])), "file"),
        (&[], Some(("a.exe", &b"MZ"[..])), "file"),
        (&[("response_format", "xml")], file, "response_format"),
        (&[("response_format", "diarized_json")], file, "response_format"),
        (&[("timestamp_granularities[]", "word")], file, "timestamp_granularities"),
        (&[("stream", "true")], file, "stream"),
        (&[("temperature", "warm")], file, "temperature"),
        (&[("temperature", "-1")], file, "temperature"),
        (&[("include[]", "everything")], file, "include"),
        (&[("chunking_strategy[threshold]", "0.5")], file, "chunking_strategy"),
    ] {
        let answer = hear(fields, file).await;
        assert_eq!((answer.status, answer.error("param")), (400, param), "{answer:?}");
    }
    let twice = hear(&[("file", "a")], file).await;
    assert_eq!(twice.status, 400);
    let many: Vec<_> = (0..100).map(|_| ("x", "y")).collect();
    assert_eq!(hear(&many, file).await.error("code"), "too_large");
}

#[tokio::test]
async fn an_upload_over_its_limit_or_broken_off_is_refused() {
    let limits = StorefrontLimits { upload_bytes: 1000, ..StorefrontLimits::default() };
    let router = builder(&noon()).transcribe("ears", ears()).limits(limits).build().unwrap().router();
    let large = call(&router, form(EARS, &[], Some(("a.wav", &[0; 2000])))).await;
    assert_eq!((large.status, large.error("code")), (413, "body_too_large"));
    let broken = Request::post(EARS).header("content-type", "multipart/form-data; boundary=b");
    let broken = broken
        .body(Body::from("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIF"))
        .unwrap();
    let answer = call(&router, broken).await;
    assert_eq!((answer.status, answer.error("code")), (400, "invalid_form"), "{answer:?}");
    assert_eq!(call(&router, post(EARS, "{}")).await.error("code"), "unsupported_media_type");
    let unnamed = Request::post(EARS).header("content-type", "multipart/form-data").body(Body::empty()).unwrap();
    assert_eq!(call(&router, unnamed).await.error("code"), "unsupported_media_type");
}

#[tokio::test]
async fn no_more_uploads_are_read_at_once_than_there_may_be() {
    let clock = noon();
    let limits = StorefrontLimits { uploads: 1, ..StorefrontLimits::default() };
    let router = builder(&clock).transcribe("ears", ears()).limits(limits).build().unwrap().router();
    let upload = || form(EARS, &[], Some(("a.wav", b"RIFF")));
    let never = Body::from_stream(futures_util::stream::pending::<std::io::Result<Vec<u8>>>());
    let slow = tokio::spawn({
        let (router, slow) = (router.clone(), upload().map(|_| never));
        async move { call(&router, slow).await }
    });
    asleep(&clock, 1).await;
    let second = call(&router, upload()).await;
    assert_eq!((second.status, second.error("code")), (503, "overloaded"));
    clock.advance(Duration::from_secs(30));
    assert_eq!(slow.await.unwrap().status, 408);
    assert_eq!(call(&router, upload()).await.status, 200);
}

#[tokio::test]
async fn pictures_come_as_base64_with_what_was_really_drawn() {
    let backend = painter();
    let router = builder(&noon()).images("painter", backend.clone()).build().unwrap().router();
    let ask = |body: Value| call(&router, post("/v1/images/generations", body.to_string()));
    let answer = ask(json!({
        "prompt": "loaves", "n": 1, "size": "64x32", "quality": "high", "background": "opaque", "seed": 7,
        "output_format": "png", "response_format": "b64_json", "moderation": "auto", "user": "u",
    }))
    .await;
    let expected = json!({
        "created": 1_772_366_400,
        "data": [{ "b64_json": "iVBORw==", "revised_prompt": "two loaves" }],
        "output_format": "png",
        "size": "64x32",
    });
    assert_eq!(answer.body, expected);
    let asked = &backend.asked()[0];
    assert_eq!((asked.size, asked.seed, asked.n), (Some(ImageSize::new(64, 32)), Some(7), Some(1)));
    assert_eq!((asked.background, asked.delivery), (Some(ImageBackground::Opaque), Some(ImageDelivery::Bytes)));
    assert_eq!(asked.media_type.as_deref(), Some("image/png"));
    for (field, value) in [
        ("prompt", json!(" ")),
        ("size", json!("large")),
        ("size", json!("0x10")),
        ("n", json!(0)),
        ("response_format", json!("url")),
        ("output_format", json!("bmp")),
        ("output_compression", json!(101)),
        ("stream", json!(true)),
        ("partial_images", json!(2)),
        ("moderation", json!("low")),
        ("background", json!("loud")),
    ] {
        let mut body = json!({ "prompt": "loaves" });
        body[field] = value;
        let answer = ask(body).await;
        assert_eq!((answer.status, answer.error("param")), (400, field), "{answer:?}");
    }
    let many = ask(json!({ "prompt": "loaves", "n": 1000 })).await;
    assert_eq!(many.error("code"), "too_large");
}

#[tokio::test]
async fn a_picture_that_a_filter_left_out_is_a_refusal() {
    let filtered = GeneratedImage { finish: ImageFinish::ContentFiltered, ..GeneratedImage::new("image/png", vec![]) };
    let backend = always::<GenerateImage>(GenerateImageResponse { images: vec![filtered] });
    let router = builder(&noon()).images("painter", backend).build().unwrap().router();
    let answer = call(&router, post("/v1/images/generations", r#"{"prompt":"loaves"}"#)).await;
    assert_eq!((answer.status, answer.error("param")), (400, "prompt"));
}
