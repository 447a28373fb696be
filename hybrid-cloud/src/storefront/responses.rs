//! `POST /v1/responses`.

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
    chat::heading,
    error::ApiError,
    front::Admitted,
    sse::{self, Scribe, event},
};
use crate::wire::{
    chat::finish_reason,
    responses::{Named, ParsedResponse, ResponseRequest, ResponseWriter, caller_words, read_request},
};

pub(super) async fn respond(admitted: Admitted, json: JsonText) -> Result<Response, ApiError> {
    let ParsedResponse { wire, request, stream } = read_request(json.parse::<ResponseRequest>()?)?;
    let model = admitted.model::<Chat>(wire.model.as_deref())?;
    Chat::validate(&request).map_err(caller_words)?;
    let mut writer = ResponseWriter::new(heading(&admitted, "", model.id()), wire);
    if stream {
        let events = admitted.stream(&model, request).await?;
        return sse::respond(&admitted, events, NamedEvents(writer)).await;
    }
    let reply = admitted.infer(&model, request).await?;
    for choice in &reply.response.choices {
        // What nobody can read is a failure, with its status.
        finish_reason(&choice.stop_reason, false)?;
    }
    for delta in Chat::split(reply.response) {
        writer.write(delta);
    }
    writer.finish(&reply.meta);
    Ok(Json(writer.into_response()).into_response())
}

struct NamedEvents(ResponseWriter);

fn text(events: Vec<Named>) -> String {
    events.iter().map(|Named { name, data }| event(Some(name), data)).collect()
}

impl Scribe for NamedEvents {
    type Task = Chat;

    fn begin(&mut self) -> String {
        text(self.0.begin())
    }

    fn write(&mut self, delta: ChatDelta) -> String {
        text(self.0.write(delta))
    }

    fn finish(&mut self, meta: &ReplyMeta) -> Result<String> {
        Ok(text(self.0.finish(meta)))
    }

    fn fail(&mut self, error: &ApiError, request: &RequestId) -> String {
        text(self.0.fail(error.code(), &error.body(request).error.message))
    }
}
