//! Answers that have a form: JSON, JSON of a schema, calls of tools that have to be made.
//!
//! The form is made into a grammar, and before each draw the tokens that no text of the grammar goes on with are taken out of the logits.
//! Objects are written in the order of their schema's properties, without white space that means nothing but one space after `:` and `,`.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hybrid_core::{Error, Result};
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

use super::answer::{CallFormat, THINK, THOUGHT};
use super::tokens::Tokens;

const OPERATION: &str = "chat";

/// What an answer has to be: a text of the schema, or calls of these tools; either where there are both.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Form {
    pub(super) text: Option<Value>,
    pub(super) calls: Vec<Callable>,
    /// Whether a message may call several tools.
    pub(super) many: bool,
}

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Callable {
    /// The request's name for its schema.
    pub(super) field: String,
    pub(super) name: String,
    /// The JSON Schema of its arguments.
    pub(super) schema: Value,
}

/// Makes constraints for the tokens of one model.
pub(super) struct Constraints {
    factory: ParserFactory,
    /// The token that the library takes for the end of a text.
    end: u32,
    /// The tokens between which thoughts stand, where each is one.
    thoughts: Option<[u32; 2]>,
    /// Whether a space at the beginning of an answer is not seen, so that it may begin as models of such tokenizers begin all words.
    strips_a_space: bool,
}

/// Holds one answer to its form.
pub(super) struct Constraint {
    matcher: Matcher,
    end: u32,
    /// The tokens that begin thoughts and end them, where the answer may begin with some.
    thoughts: Option<[u32; 2]>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has been written.
    Begin,
    Thoughts,
    Form,
}

impl Constraints {
    /// Reads the bytes of all tokens of a model that ends its answers with one of `ends`.
    ///
    /// # Errors
    /// `Unsupported` if the tokenizer is of a kind whose tokens are not known as bytes.
    pub(super) fn new(tokens: &Tokens, ends: &BTreeSet<u32>) -> Result<Self> {
        let unsupported =
            || Error::unsupported(OPERATION, "the model's tokenizer does not let answers be held to a form");
        let end = *ends.first().ok_or_else(unsupported)?;
        let spelling = tokens.spelling().ok_or_else(|| {
            unsupported().with("reason", "the tokenizer is not one of bytes, nor does it fall back to them")
        })?;
        let bytes = spelling.marked();
        // The library asserts what it expects.
        let made = catch_unwind(|| {
            let trie = TokTrie::from(&TokRxInfo::new(bytes.len() as u32, end), &bytes);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        });
        let mut factory = made.map_err(|_| unsupported())?.map_err(|error| unsupported().with("reason", error))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        let thoughts = tokens.id(THINK).zip(tokens.id(THOUGHT)).map(|(begin, end)| [begin, end]);
        Ok(Self { factory, end, thoughts, strips_a_space: spelling.strips_a_space() })
    }

    /// A constraint to a form; `thinking` says whether the answer has begun with thoughts, or must not have any.
    ///
    /// # Errors
    /// `Unsupported` that names the schema that cannot be kept to, and why.
    pub(super) fn constrain(&self, form: &Form, format: CallFormat, thinking: Option<bool>) -> Result<Constraint> {
        let thoughts = self.thoughts.filter(|_| thinking != Some(false));
        if thinking == Some(true) && thoughts.is_none() {
            return Err(Error::unsupported(
                OPERATION,
                "the model thinks first, and its tokenizer does not mark where that ends",
            )
            .with("field", "response_format"));
        }
        let before = match thoughts {
            Some(_) => "/\\n{0,2}/ ",
            None if self.strips_a_space => "/ ?/ ",
            None => "",
        };
        let matcher = self.matcher(&grammar(form, format, before)).map_err(|reason| {
            // Which of the schemas it is only each by itself can tell.
            let alone = |schema: &Value| self.matcher(&format!("start: %json {}", spaced(schema)));
            let mut schemas = form.text.iter().map(|schema| ("response_format.schema", schema.clone()));
            let mut tools = form.calls.iter().map(|call| (&*call.field, arguments(&call.schema)));
            let found =
                schemas.by_ref().chain(tools.by_ref()).find_map(|(field, schema)| Some((field, alone(&schema).err()?)));
            let (field, reason) = found.unwrap_or(("response_format", reason));
            Error::unsupported(OPERATION, "answers cannot be held to the schema")
                .with("field", field)
                .with("reason", reason)
        })?;
        let state = if thinking == Some(true) { State::Thoughts } else { State::Begin };
        Ok(Constraint { matcher, end: self.end, thoughts, state })
    }

    fn matcher(&self, grammar: &str) -> Result<Matcher, String> {
        let grammar = TopLevelGrammar::from_lark(grammar.to_owned());
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let matcher = Matcher::new(parser.map_err(|_| "the schema is too much for the library")?);
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(matcher),
        }
    }
}

impl Constraint {
    /// The same for another answer, written beside this one.
    pub(super) fn fork(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ..*self }
    }

    /// Makes impossible what may not come next; `ends` are the tokens that end an answer.
    ///
    /// # Errors
    /// `Internal` if the form allows nothing any more or is too much to follow.
    pub(super) fn mask(&mut self, logits: &mut [f32], ends: &BTreeSet<u32>) -> Result<()> {
        const NEVER: f32 = f32::NEG_INFINITY;
        let mut never = |token: &u32| {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = NEVER;
            }
        };
        if self.state == State::Thoughts {
            ends.iter().for_each(&mut never);
            return Ok(());
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let may_end = mask.is_allowed(self.end);
        let think = self.thoughts.map(|[begin, _]| begin).filter(|_| self.state == State::Begin);
        let mut any = false;
        for (token, logit) in (0..).zip(logits) {
            let allowed = match ends.contains(&token) {
                true => may_end,
                false => (token as usize) < mask.len() && mask.is_allowed(token) || think == Some(token),
            };
            if allowed { any = true } else { *logit = NEVER }
        }
        if any { Ok(()) } else { Err(Error::internal(OPERATION, "the answer's form allows no token of the model's")) }
    }

    /// Takes a token that was drawn and is no end; gives whether more may come.
    ///
    /// # Errors
    /// `Internal` if the token was not allowed.
    pub(super) fn accept(&mut self, token: u32) -> Result<bool> {
        let is = |at: usize| self.thoughts.is_some_and(|thoughts| thoughts[at] == token);
        match self.state {
            State::Begin if is(0) => self.state = State::Thoughts,
            State::Thoughts if is(1) => self.state = State::Form,
            State::Thoughts => {}
            State::Begin | State::Form => {
                self.state = State::Form;
                self.matcher.consume_token(token).map_err(failed)?;
                return Ok(!self.matcher.is_stopped());
            }
        }
        Ok(true)
    }
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").field("end", &self.end).finish_non_exhaustive()
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("state", &self.state).finish_non_exhaustive()
    }
}

fn failed(error: impl fmt::Display) -> Error {
    Error::internal(OPERATION, "the answer's form could not be followed").with("reason", error)
}

/// The form in the language of the library, behind white space of this pattern. Literals are JSON strings in it.
fn grammar(form: &Form, format: CallFormat, before: &str) -> String {
    let literal = |text: String| Value::String(text).to_string();
    let mut rules = Vec::new();
    let mut answers = Vec::new();
    if let Some(schema) = &form.text {
        answers.push("text".to_owned());
        rules.push(format!("text: %json {}", spaced(schema)));
    }
    if !form.calls.is_empty() {
        let again = form.many && format == CallFormat::Tagged;
        answers.push(if again { format!("call ({} call)*", literal("\n".to_owned())) } else { "call".to_owned() });
        let mut calls = Vec::new();
        for (i, Callable { name, schema, .. }) in form.calls.iter().enumerate() {
            let name = Value::from(name.as_str());
            let [before, after] = match format {
                CallFormat::Tagged => {
                    [format!("<tool_call>\n{{\"name\": {name}, \"arguments\": "), "}\n</tool_call>".to_owned()]
                }
                CallFormat::Bare => [format!("{{\"name\": {name}, \"parameters\": "), "}".to_owned()],
            };
            calls.push(format!("{} arguments_{i} {}", literal(before), literal(after)));
            rules.push(format!("arguments_{i}: %json {}", spaced(&arguments(schema))));
        }
        rules.push(format!("call: {}", calls.join(" | ")));
    }
    format!("start: {before}({})\n{}\n", answers.join(" | "), rules.join("\n"))
}

/// Arguments are an object, whether or not their schema says so.
fn arguments(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut().filter(|fields| !fields.contains_key("type")) {
        fields.insert("type".to_owned(), "object".into());
    }
    schema
}

/// The schema with how its JSON is spaced.
fn spaced(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let spaces = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
        fields.insert("x-guidance".to_owned(), spaces);
    }
    schema
}
