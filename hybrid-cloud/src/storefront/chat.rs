//! `POST /v1/chat/completions`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use hybrid_core::{
    ReplyMeta, RequestId, Result, Task,
    task::{Chat, ChatDelta},
};

use super::{
    body::JsonText,
    error::ApiError,
    front::Admitted,
    sse::{self, Scribe, event},
};
use crate::wire::chat::{
    AnswerWriter, CompletionRequest, Heading, ParsedChat, caller_words, read_request, write_completion,
};

pub(super) async fn complete(admitted: Admitted, json: JsonText) -> Result<Response, ApiError> {
    let ParsedChat { model, request, stream, include_usage, lead } = read_request(json.parse::<CompletionRequest>()?)?;
    let model = admitted.model::<Chat>(model.as_deref())?;
    Chat::validate(&request).map_err(|error| caller_words(error, lead))?;
    let heading = heading(&admitted, "chatcmpl-", model.id());
    if stream {
        let events = admitted.stream(&model, request).await?;
        return sse::respond(&admitted, events, Chunks(AnswerWriter::new(heading, include_usage))).await;
    }
    let reply = admitted.infer(&model, request).await?;
    Ok(Json(write_completion(heading, reply.response, &reply.meta)?).into_response())
}

/// What every piece of an answer repeats, its id made of the request's.
pub(super) fn heading(admitted: &Admitted, prefix: &str, model: &str) -> Heading {
    Heading {
        id: format!("{prefix}{}", admitted.request()),
        created: admitted.front().clock().now().unix_micros().div_euclid(1_000_000),
        model: model.to_owned(),
    }
}

struct Chunks(AnswerWriter);

impl Scribe for Chunks {
    type Task = Chat;

    fn write(&mut self, delta: ChatDelta) -> String {
        self.0.write(delta).iter().map(|chunk| event(None, chunk)).collect()
    }

    fn finish(&mut self, meta: &ReplyMeta) -> Result<String> {
        let last: String = self.0.finish(meta)?.iter().map(|chunk| event(None, chunk)).collect();
        Ok(last + "data: [DONE]\n\n")
    }

    fn fail(&mut self, error: &ApiError, request: &RequestId) -> String {
        event(None, &error.body(request))
    }
}
