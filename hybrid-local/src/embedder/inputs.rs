//! From what was asked for to the tokens that a network reads.

use std::collections::BTreeMap;

use hybrid_core::{
    Error, Note, Result,
    task::{EmbedInput, EmbedKind, EmbedRequest, Truncate},
};

use super::settings::Settings;
use crate::encoder::Tokens;

const OPERATION: &str = "embed";
/// The most inputs of one request.
pub(super) const MAX_BATCH: usize = 2_048;
/// The longest text that is read, in bytes of UTF-8.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// What stands before texts.
#[derive(Clone, Debug)]
pub(super) struct Prompts {
    by_kind: BTreeMap<&'static str, String>,
    default: Option<String>,
}

/// Names under which models keep the prompt of a kind; the first that there is counts.
const NAMES: [(EmbedKind, &[&str]); 4] = [
    (EmbedKind::Query, &["query", "search_query"]),
    (EmbedKind::Document, &["document", "passage", "search_document"]),
    (EmbedKind::Classification, &["classification", "Classification"]),
    (EmbedKind::Clustering, &["clustering", "Clustering"]),
];

impl Prompts {
    /// A model's own prompts, and those `set` instead.
    pub(super) fn new(settings: &Settings, set: &[(EmbedKind, String)]) -> Self {
        let mut by_kind = BTreeMap::new();
        for (kind, names) in NAMES {
            let own = names.iter().find_map(|name| settings.prompts.get(*name));
            let set = set.iter().rev().find(|(other, _)| *other == kind).map(|(_, text)| text);
            by_kind.extend(set.or(own).map(|text| (names[0], text.clone())));
        }
        let default = settings.default_prompt.as_ref().and_then(|name| settings.prompts.get(name));
        Self { by_kind, default: default.cloned() }
    }

    fn of(&self, kind: Option<EmbedKind>) -> &str {
        let own = kind.and_then(|kind| {
            let (_, names) = NAMES.iter().find(|(other, _)| *other == kind)?;
            self.by_kind.get(names[0])
        });
        own.or(self.default.as_ref().filter(|_| kind.is_none())).map_or("", String::as_str)
    }
}

/// What is left of a request to be computed.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The tokens of each input.
    pub(super) tokens: Vec<Vec<u32>>,
    pub(super) notes: Vec<Note>,
    pub(super) dimensions: Option<usize>,
    pub(super) normalize: Option<bool>,
}

/// Checks what can be checked of a request without a look at its texts' tokens.
///
/// # Errors
/// `TooLarge` that names number and limit; `Unsupported` and `InvalidInput` that name the field.
pub(super) fn check(request: &EmbedRequest, dimensions: usize) -> Result<()> {
    let EmbedRequest { inputs, dimensions: wanted, kind: _, truncate: _, normalize: _, extra } = request;
    if inputs.len() > MAX_BATCH {
        return Err(Error::too_large(OPERATION, "the request has too many inputs; send several requests")
            .with("inputs", inputs.len())
            .with("limit", MAX_BATCH));
    }
    if !extra.is_empty() {
        return Err(Error::unsupported(OPERATION, "there is no provider to pass fields to").with("field", "extra"));
    }
    if let Some(wanted) = wanted.filter(|&wanted| wanted as usize > dimensions) {
        return Err(Error::invalid(OPERATION, "the model's vectors are shorter than those asked for")
            .with("dimensions", wanted)
            .with("limit", dimensions));
    }
    for (i, input) in inputs.iter().enumerate() {
        match input {
            EmbedInput::Text(text) if text.len() > MAX_TEXT_BYTES => {
                return Err(Error::too_large(OPERATION, "the text is over the limit; shorten it")
                    .with("input", i)
                    .with("size", text.len())
                    .with("limit", MAX_TEXT_BYTES));
            }
            EmbedInput::Text(_) | EmbedInput::Tokens(_) => {}
            _ => {
                let message = "the model reads texts alone";
                return Err(Error::unsupported(OPERATION, message).with("field", format_args!("inputs[{i}]")));
            }
        }
    }
    Ok(())
}

/// Turns inputs into tokens, and cuts none that was not to be cut.
///
/// # Errors
/// `TooLarge` that names an input with its length and the limit; `InvalidInput` for a token that the model does not have.
pub(super) fn prepare(request: EmbedRequest, tokens: &Tokens, prompts: &Prompts, lower_case: bool) -> Result<Prepared> {
    let EmbedRequest { inputs, dimensions, kind, truncate, normalize, extra: _ } = request;
    let prompt = prompts.of(kind);
    let ahead = if prompt.is_empty() { Vec::new() } else { tokens.ids(&cased(prompt, lower_case))? };
    let mut prepared = Prepared {
        tokens: Vec::with_capacity(inputs.len()),
        notes: Vec::new(),
        dimensions: dimensions.map(|dimensions| dimensions as usize),
        normalize,
    };
    for (i, input) in inputs.into_iter().enumerate() {
        let mut ids = match input {
            // Prompt and text are one text: where they meet may be within a token.
            EmbedInput::Text(text) => tokens.ids(&cased(&format!("{prompt}{text}"), lower_case))?,
            EmbedInput::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= tokens.vocabulary()) {
                    return Err(Error::invalid(OPERATION, "the model has no such token")
                        .with("input", i)
                        .with("id", id)
                        .with("vocabulary", tokens.vocabulary()));
                }
                [ahead.clone(), ids].concat()
            }
            _ => return Err(Error::internal(OPERATION, "an input was not checked").with("input", i)),
        };
        let (length, limit) = (ids.len() + tokens.added(), tokens.max());
        if let Some(over) = length.checked_sub(limit).filter(|&over| over > 0) {
            let way = match truncate {
                Truncate::End => {
                    ids.truncate(ids.len() - over);
                    "first"
                }
                Truncate::Start if ids.len() >= over + ahead.len() => {
                    // What stands before the text stays.
                    ids.drain(ahead.len()..ahead.len() + over);
                    "last"
                }
                _ => {
                    let message = "the input is longer than the model reads; shorten it, or ask for it to be cut";
                    return Err(Error::too_large(OPERATION, message)
                        .with("input", i)
                        .with("tokens", length)
                        .with("limit", limit));
                }
            };
            prepared.notes.push(Note {
                code: "truncated".to_owned(),
                detail: format!("inputs[{i}] has {length} tokens; the model read the {way} {limit}"),
            });
        }
        prepared.tokens.push(tokens.marked(ids)?);
    }
    Ok(prepared)
}

fn cased(text: &str, lower: bool) -> String {
    if lower { text.to_lowercase() } else { text.to_owned() }
}
