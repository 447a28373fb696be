//! What was asked and answered, in the JSON of the GenAI conventions: used only where a storefront was told to tell it.

use serde_json::{Value, json};

/// `gen_ai.input.messages` of a chat request.
pub(super) fn input(request: &str) -> Option<String> {
    let request: Value = serde_json::from_str(request).ok()?;
    Some(messages(request.get("messages")?.as_array()?))
}

/// `gen_ai.output.messages` of a chat response.
pub(super) fn output(response: &str) -> Option<String> {
    let response: Value = serde_json::from_str(response).ok()?;
    let choices = response.get("choices")?.as_array()?;
    let said = choices.iter().filter_map(|choice| {
        let mut message = message(choice.get("message")?)?;
        message["finish_reason"] = choice.get("stop_reason")?.clone();
        Some(message)
    });
    Some(Value::from_iter(said).to_string())
}

fn messages(messages: &[Value]) -> String {
    Value::from_iter(messages.iter().filter_map(message)).to_string()
}

fn message(message: &Value) -> Option<Value> {
    let parts = message.get("content")?.as_array()?.iter().map(part);
    Some(json!({ "role": message.get("role")?, "parts": Value::from_iter(parts) }))
}

/// Texts whole; of everything else its kind alone, since media would outgrow a span.
fn part(part: &Value) -> Value {
    match part.as_object().and_then(|part| part.iter().next()) {
        Some((kind, Value::String(text))) => json!({ "type": kind, "content": text }),
        Some((kind, _)) => json!({ "type": kind }),
        None => json!({ "type": part }),
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::task::{ChatResponse, Message, Role};

    use super::*;

    #[test]
    fn a_conversation_is_told_in_the_conventions_form() {
        let request = json!({ "messages": [Message::user("hello")] }).to_string();
        assert_eq!(
            serde_json::from_str::<Value>(&input(&request).unwrap()).unwrap(),
            json!([{ "role": "user", "parts": [{ "type": "text", "content": "hello" }] }])
        );
        let response = serde_json::to_string(&ChatResponse::one(Message::new(Role::Assistant, ["hi"]))).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&output(&response).unwrap()).unwrap(),
            json!([{ "role": "assistant", "parts": [{ "type": "text", "content": "hi" }], "finish_reason": "end_turn" }])
        );
        assert!(input("no JSON").is_none());
    }
}
