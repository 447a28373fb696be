//! What Converse has no field for: where models have one in `additionalModelRequestFields`.

use std::collections::BTreeMap;

use hybrid_core::{Error, Result};
use serde_json::{Map, Value, json};

/// Where the models of a vendor have what Converse has no field for, from AWS's pages on model parameters.
const FAMILIES: &[(&str, &[(&str, &str)])] = &[
    ("anthropic.claude", &[("top_k", "/top_k"), ("reasoning_budget", THINKING)]),
    ("amazon.nova", &[("top_k", "/inferenceConfig/topK")]),
    ("cohere.command", &[("top_k", "/k"), ("seed", "/seed")]),
    ("mistral.", &[("top_k", "/top_k")]),
];

/// Claude's budget is not a number in one place: `{"thinking": {"type": "enabled", "budget_tokens": n}}`.
const THINKING: &str = "/thinking";

const NAMES: &[&str] = &[
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "reasoning_budget",
    "parallel_tool_calls",
    "verbosity",
    "user",
];

pub(super) fn of_family(model: &str) -> BTreeMap<String, String> {
    let family = FAMILIES.iter().find(|(prefix, _)| model.starts_with(prefix)).map_or(&[][..], |(_, fields)| *fields);
    family.iter().map(|&(name, pointer)| (name.to_owned(), pointer.to_owned())).collect()
}

/// Checks what a user wrote.
pub(super) fn check(name: &str, pointer: &str) -> Result<()> {
    let refuse = |message| Err(Error::invalid("read model options", message).with("name", name).with("found", pointer));
    if !NAMES.contains(&name) {
        return refuse("`additional` has an unknown name; the documentation of `ModelOptions` lists them");
    }
    let parts =
        pointer.strip_prefix('/').map(|rest| rest.split('/').all(|part| !part.is_empty() && !part.contains('~')));
    if parts != Some(true) {
        return refuse("`additional` has no JSON pointer such as /inferenceConfig/topK");
    }
    Ok(())
}

/// Gathers `additionalModelRequestFields`.
pub(super) struct Additional<'a> {
    pointers: &'a BTreeMap<String, String>,
    fields: Map<String, Value>,
}

impl<'a> Additional<'a> {
    pub(super) fn new(pointers: &'a BTreeMap<String, String>) -> Self {
        Self { pointers, fields: Map::new() }
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.pointers.contains_key(name)
    }

    /// Puts a value where the model has it; false if that is not known.
    pub(super) fn set(&mut self, name: &str, value: Value) -> bool {
        let Some(pointer) = self.pointers.get(name) else { return false };
        let value = match (pointer.as_str(), value.as_u64()) {
            (THINKING, Some(0)) => json!({"type": "disabled"}),
            (THINKING, _) => json!({"type": "enabled", "budget_tokens": value}),
            _ => value,
        };
        let nested =
            pointer.rsplit('/').filter(|part| !part.is_empty()).fold(value, |inner, part| json!({part: inner}));
        match nested {
            // Two pointers that are in each other's way are the user's own; the later holds.
            Value::Object(nested) => merge(&mut self.fields, nested, "").is_ok(),
            _ => false,
        }
    }

    /// Adds the request's own extra fields.
    ///
    /// # Errors
    /// The field that is set already.
    pub(super) fn finish(&mut self, extra: Map<String, Value>) -> std::result::Result<Option<Value>, String> {
        merge(&mut self.fields, extra, "")?;
        let fields = std::mem::take(&mut self.fields);
        Ok((!fields.is_empty()).then_some(Value::Object(fields)))
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>, path: &str) -> std::result::Result<(), String> {
    for (name, value) in from {
        let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (into.get_mut(&name), value) {
            (None, value) => {
                into.insert(name, value);
            }
            (Some(Value::Object(known)), Value::Object(more)) => merge(known, more, &here)?,
            (Some(known), value) if *known == value => {}
            (Some(_), _) => return Err(here),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(model: &str, set: &[(&str, Value)], extra: Value) -> std::result::Result<Option<Value>, String> {
        let pointers = of_family(model);
        let mut additional = Additional::new(&pointers);
        for (name, value) in set {
            assert!(additional.set(name, value.clone()), "{name}");
        }
        let Value::Object(extra) = extra else { panic!("{extra}") };
        additional.finish(extra)
    }

    #[test]
    fn each_family_has_its_own_names() {
        let top_k = [("top_k", json!(5))];
        assert_eq!(fields("anthropic.claude-x", &top_k, json!({})), Ok(Some(json!({"top_k": 5}))));
        let nova = fields("amazon.nova-lite-v1:0", &top_k, json!({"inferenceConfig": {"x": 1}}));
        assert_eq!(nova, Ok(Some(json!({"inferenceConfig": {"topK": 5, "x": 1}}))));
        assert_eq!(fields("meta.llama3", &[], json!({})), Ok(None));
        assert!(!Additional::new(&of_family("meta.llama3")).set("top_k", json!(5)));
    }

    #[test]
    fn a_budget_of_nothing_is_no_reasoning() {
        let budget = |tokens: u32| fields("anthropic.claude-x", &[("reasoning_budget", json!(tokens))], json!({}));
        assert_eq!(budget(0), Ok(Some(json!({"thinking": {"type": "disabled"}}))));
        assert_eq!(budget(2048), Ok(Some(json!({"thinking": {"type": "enabled", "budget_tokens": 2048}}))));
    }

    #[test]
    fn what_is_said_twice_differently_is_refused_by_name() {
        let top_k = [("top_k", json!(5))];
        assert_eq!(
            fields("amazon.nova", &top_k, json!({"inferenceConfig": {"topK": 6}})),
            Err("inferenceConfig.topK".into())
        );
        assert!(fields("mistral.x", &top_k, json!({"top_k": 5})).is_ok());
    }

    #[test]
    fn pointers_of_users_are_checked() {
        assert!(check("top_k", "/a/b").is_ok());
        for (name, pointer) in [("top_q", "/a"), ("top_k", "a"), ("top_k", "/"), ("top_k", "/a//b"), ("top_k", "")] {
            assert!(check(name, pointer).is_err(), "{name} {pointer}");
        }
    }
}
