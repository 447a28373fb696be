//! Our client against our storefront: what is asked arrives as it was asked, and the answer comes back as it was given.

use std::{sync::Arc, time::Duration};

use hybrid_cloud::openai::{MaxTokensField, OpenAiCompatible, OpenAiConfig};
use hybrid_core::{
    InferenceBackend, Locality, Result, Task,
    inference::collect_reply,
    memory::ScriptedBackend,
    task::{
        AudioOutput, AudioPart, Chat, ChatRequest, ChatResponse, Choice, Citation, CitationLocation, CitedText,
        ContentPart, CustomTool, DocumentPart, Embed, EmbedRequest, EmbedResponse, FunctionTool, Grammar,
        GrammarSyntax, ImageDetail, ImagePart, Logprobs, MediaSource, Message, Modality, Reasoning, ReasoningOptions,
        ResponseDetails, ResponseFormat, Role, Sampling, StopReason, TextSpan, TimestampGranularity, TokenLogprob,
        ToolChoice, ToolResult, ToolUse, ToolUseKind, TopLogprob, Transcribe, TranscribeDetails, TranscribeMode,
        TranscribeRequest, TranscribeResponse, TranscriptSegment, TranscriptWord, Verbosity,
    },
};
use serde_json::json;

use super::rig::context;
use crate::storefront::rig::{Served, builder, noon, serve};

async fn storefront<T: Task>(
    offer: impl FnOnce(
        hybrid_cloud::storefront::StorefrontBuilder,
        Arc<ScriptedBackend<T>>,
    ) -> hybrid_cloud::storefront::StorefrontBuilder,
    answers: Vec<T::Response>,
) -> (Served, Arc<ScriptedBackend<T>>, OpenAiCompatible) {
    let model = Arc::new(ScriptedBackend::<T>::new("scripted", answers.into_iter().map(Ok)));
    let limits = hybrid_cloud::storefront::StorefrontLimits { body_bytes: 8 << 20, ..Default::default() };
    let served = serve(&offer(builder(&noon()), model.clone()).limits(limits).build().unwrap()).await;
    let mut config = OpenAiConfig::new("ours", format!("http://{}/v1", served.at), "m", Locality::Site);
    config.send_reasoning = true;
    config.max_tokens_field = MaxTokensField::MaxCompletionTokens;
    (served, model, OpenAiCompatible::new(config).unwrap())
}

/// Asks both ways, and checks that both ways ask and answer the same.
async fn check_chat(request: ChatRequest, answer: ChatResponse, expected: ChatResponse) {
    let (_served, model, client) =
        storefront::<Chat>(|b, model| b.chat("m", model), vec![answer.clone(), answer]).await;
    let whole = InferenceBackend::<Chat>::infer(&client, &context().0, request.clone()).await.unwrap();
    let events = InferenceBackend::<Chat>::stream(&client, &context().0, request.clone()).await.unwrap();
    let streamed = collect_reply(events).await.unwrap();
    assert_eq!(model.asked(), [request.clone(), request]);
    for mut response in [whole.response, streamed.response] {
        // The storefront names its answers itself.
        response.details.id = None;
        assert_eq!(response, expected);
    }
}

async fn check(request: ChatRequest, answer: ChatResponse) {
    check_chat(request, answer.clone(), answer).await;
}

#[tokio::test]
async fn every_kind_of_content_arrives_as_it_was_sent() {
    let call = ToolUse::new("call_1", "weigh", json!({"grams": 500, "what": "flour"}));
    let custom = ToolUse { kind: ToolUseKind::Custom, ..ToolUse::new("call_2", "say", json!("free text")) };
    let cut = ToolUse::new("call_3", "weigh", json!("{\"grams\": 5"));
    let image = ImagePart { detail: Some(ImageDetail::Low), ..ImagePart::new("image/png", vec![1, 2, 3]) };
    let linked = ImagePart::new("image/jpeg", MediaSource::uri("https://bakery.example/loaf.jpg"));
    let request = ChatRequest {
        system: vec!["You are a baker.".into(), "Be brief.".into()],
        messages: vec![
            Message { name: Some("ada".into()), ..Message::user("Zwei Brötchen\u{0000}\n\"bitte\" 🥐") },
            Message::user("look")
                .with(image)
                .with(linked)
                .with(AudioPart::new("audio/wav", vec![9; 10]))
                .with(DocumentPart::file("recipe.pdf", "application/pdf", vec![7]))
                .with("and the rest"),
            Message::new(
                Role::Assistant,
                [ContentPart::from(Reasoning::text("hm")), "weighing".into(), call.into(), custom.into()],
            ),
            Message::tool_result("call_1", "500 g"),
            Message::new(Role::Tool, [ToolResult::text("call_2", "said")]),
            Message::new(Role::Assistant, [ContentPart::Refusal("no".into())]),
            Message::new(Role::System, ["from now on: English".to_owned()]),
            Message::new(Role::Developer, ["really".to_owned()]),
            Message::new(Role::Assistant, [cut]),
            Message::tool_result("call_3", ""),
            Message::user("go on"),
        ],
        ..ChatRequest::default()
    };
    check(request, ChatResponse::one(Message::assistant("done"))).await;
}

#[tokio::test]
async fn every_setting_arrives_as_it_was_set() {
    let request = ChatRequest {
        tools: vec![
            FunctionTool { strict: Some(true), ..FunctionTool::new("weigh", json!({"type": "object"})) }.into(),
            CustomTool {
                name: "say".into(),
                description: Some("says".into()),
                grammar: Some(Grammar { syntax: GrammarSyntax::Regex, definition: "[a-z]+".into() }),
            }
            .into(),
        ],
        parallel_tool_calls: Some(false),
        response_format: ResponseFormat::json_schema("loaf", json!({"type": "object", "properties": {}})),
        modalities: vec![Modality::Text, Modality::Audio],
        audio: Some(AudioOutput { voice: "alloy".into(), media_type: "audio/wav".into() }),
        sampling: Sampling {
            max_tokens: Some(64),
            temperature: Some(0.7),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.05),
            frequency_penalty: Some(-0.5),
            presence_penalty: Some(0.25),
            repetition_penalty: Some(1.1),
            seed: Some(u64::MAX),
            stop: vec!["\n\n".into(), "###".into()],
            logprobs: Some(2),
            logit_bias: [(7, -1.5)].into(),
            n: None,
        },
        reasoning: ReasoningOptions { effort: Some("low".into()), budget_tokens: None },
        verbosity: Some(Verbosity::High),
        prediction: Some("the same".into()),
        service_tier: Some("flex".into()),
        metadata: [("order".into(), "7".into())].into(),
        user: Some("u-1".into()),
        prompt_cache_key: Some("k".into()),
        store: Some(false),
        ..ChatRequest::user("hi")
    };
    for choice in [
        None,
        Some(ToolChoice::Auto),
        Some(ToolChoice::None),
        Some(ToolChoice::Required),
        Some(ToolChoice::Tool("say".into())),
        Some(ToolChoice::AutoAmong(vec!["weigh".into(), "say".into()])),
        Some(ToolChoice::RequiredAmong(vec!["weigh".into()])),
    ] {
        let request = ChatRequest { tool_choice: choice, ..request.clone() };
        check(request, ChatResponse::one(Message::assistant("done"))).await;
    }
    for format in [ResponseFormat::Text, ResponseFormat::Json] {
        let request = ChatRequest { response_format: format, ..request.clone() };
        check(request, ChatResponse::one(Message::assistant("done"))).await;
    }
}

#[tokio::test]
async fn every_kind_of_answer_comes_back() {
    let say = |message: Message, reason: StopReason| ChatResponse {
        choices: vec![Choice::new(message, reason)],
        details: ResponseDetails::default(),
    };
    let call = |id: &str| ToolUse::new(id, "weigh", json!({"grams": 0.1, "deep": [null, {"a": "ä"}]}));
    let custom = ToolUse { kind: ToolUseKind::Custom, ..ToolUse::new("c", "say", json!("")) };
    let token = |text: &str| TokenLogprob {
        bytes: text.as_bytes().to_vec().into(),
        top: vec![TopLogprob { token: "b".into(), logprob: -2.5, ..TopLogprob::default() }],
        ..TokenLogprob::new(text, -0.5)
    };
    let likely = Logprobs { content: vec![token("Two"), token(" loaves")], refusal: vec![] };
    let mut measured = say(Message::assistant("Two loaves"), StopReason::EndTurn);
    measured.choices[0].logprobs = Some(likely);
    let several = ChatResponse {
        choices: vec![
            Choice::new(Message::assistant("one"), StopReason::EndTurn),
            Choice::new(Message::assistant("two"), StopReason::MaxTokens),
        ],
        details: ResponseDetails {
            service_tier: Some("default".into()),
            system_fingerprint: Some("fp_1".into()),
            ..ResponseDetails::default()
        },
    };
    let cited = CitedText {
        text: "Rye is dark.".into(),
        citations: vec![Citation {
            title: Some("Rye".into()),
            location: Some(CitationLocation::Web { url: Some("https://rye.example".into()), domain: None }),
            span: Some(TextSpan { start: 0, end: 3 }),
            ..Citation::default()
        }],
    };
    let spoken = AudioPart {
        id: Some("audio_1".into()),
        transcript: Some("Two loaves".into()),
        expires_at: Some("2026-03-01T13:00:00Z".into()),
        ..AudioPart::new("audio/wav", vec![5; 1000])
    };
    for answer in [
        say(Message::assistant("Zwei\nBrötchen 🥐"), StopReason::EndTurn),
        say(Message::assistant(""), StopReason::EndTurn),
        say(Message::assistant("cut"), StopReason::MaxTokens),
        say(Message::assistant("filtered"), StopReason::ContentFiltered),
        say(Message::assistant("odd"), "resting".into()),
        say(Message::new(Role::Assistant, [ContentPart::Refusal("no".into())]), StopReason::Refusal),
        say(
            Message::new(Role::Assistant, [ContentPart::from(Reasoning::text("hm")), "yes".into()]),
            StopReason::EndTurn,
        ),
        say(Message::assistant("weighing").with(call("a")).with(call("b")), StopReason::ToolUse),
        say(Message::new(Role::Assistant, [custom]), StopReason::ToolUse),
        say(Message::new(Role::Assistant, [ToolUse::new("a", "weigh", json!("{\"grams\": 5"))]), StopReason::MaxTokens),
        say(Message::new(Role::Assistant, [cited]), StopReason::EndTurn),
        say(Message::new(Role::Assistant, [spoken]), StopReason::EndTurn),
        measured,
        several,
    ] {
        check(ChatRequest::user("hi"), answer).await;
    }
    // What this API tells less exactly comes back less exactly.
    let stopped = say(Message::assistant("a"), StopReason::StopSequence);
    check_chat(ChatRequest::user("hi"), stopped, say(Message::assistant("a"), StopReason::EndTurn)).await;
}

#[tokio::test]
async fn vectors_come_back_to_the_bit() {
    let vectors = vec![vec![0.1, -0.0, f32::MIN_POSITIVE], vec![1.0e-20, f32::MAX, -3.5]];
    let answer = EmbedResponse { embeddings: vectors.clone() };
    let (_served, model, client) = storefront::<Embed>(|b, model| b.embed("m", model), vec![answer]).await;
    let request = EmbedRequest { dimensions: Some(3), ..EmbedRequest::many(["a", "ä"]) };
    let reply = InferenceBackend::<Embed>::infer(&client, &context().0, request.clone()).await.unwrap();
    let bits = |vectors: &[Vec<f32>]| vectors.iter().flatten().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&reply.response.embeddings), bits(&vectors));
    assert_eq!(model.asked(), [request]);
}

#[tokio::test]
async fn a_recording_arrives_and_its_words_come_back() -> Result<()> {
    let answer = TranscribeResponse {
        text: "Two loaves.".into(),
        segments: vec![TranscriptSegment {
            end: Duration::from_millis(1_500),
            text: "Two loaves.".into(),
            seek: Some(0),
            tokens: vec![1, 2],
            temperature: Some(0.0),
            avg_logprob: Some(-0.25),
            compression_ratio: Some(1.5),
            no_speech_prob: Some(0.01),
            ..TranscriptSegment::default()
        }],
        words: vec![TranscriptWord {
            word: "Two".into(),
            end: Duration::from_millis(400),
            ..TranscriptWord::default()
        }],
        logprobs: vec![],
        details: TranscribeDetails { language: Some("en".into()), duration: Some(Duration::from_secs(2)) },
    };
    let (_served, model, client) =
        storefront::<Transcribe>(|b, model| b.transcribe("m", model), vec![answer.clone(), answer.clone()]).await;
    let request = TranscribeRequest {
        language: Some("en".into()),
        prompt: Some("Brötchen".into()),
        temperature: Some(0.5),
        timestamps: [TimestampGranularity::Segment, TimestampGranularity::Word].into(),
        keywords: vec!["rye".into(), "spelt".into()],
        ..TranscribeRequest::new((0..=255).collect::<Vec<u8>>(), "audio/mpeg")
    };
    let reply = InferenceBackend::<Transcribe>::infer(&client, &context().0, request.clone()).await?;
    assert_eq!(reply.response, answer);
    let english = TranscribeRequest { mode: TranscribeMode::Translate, ..TranscribeRequest::new(vec![1], "audio/wav") };
    let reply = InferenceBackend::<Transcribe>::infer(&client, &context().0, english.clone()).await?;
    assert_eq!(reply.response.text, "Two loaves.");
    assert_eq!(model.asked(), [request, english]);
    Ok(())
}
