//! Chat templates: from a conversation to the text that a model was trained to go on from.
//!
//! Templates are Jinja as `transformers` runs it: blocks take their line with them, and there are `raise_exception`, `strftime_now`, a
//! `tojson` that writes as Python does, the methods of Python's strings and dictionaries, and `generation` blocks, which are passed through.

mod json;

use std::{borrow::Cow, collections::BTreeMap, io};

use hybrid_core::{Error, Result, Timestamp};
use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;

const OPERATION: &str = "fill chat template";
/// Steps of a template's program before it counts as a loop without an end; a long conversation takes some thousand.
const FUEL: u64 = 20_000_000;
/// What a template may write, in bytes: far more than any model reads.
const MAX_TEXT: usize = 64 << 20;

/// The templates that a model's files hold, and the tokens that they name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) default: Option<String>,
    /// The template for requests with tools, where it is another.
    pub(crate) tool_use: Option<String>,
    /// Texts of special tokens by name, such as `bos_token`.
    pub(crate) tokens: BTreeMap<String, String>,
}

/// What a template is filled with.
#[derive(Debug)]
pub(super) struct Conversation {
    /// Objects as `transformers` takes them, with `role` and `content`.
    pub(super) messages: Vec<Value>,
    /// Objects as `transformers` takes them; empty for none.
    pub(super) tools: Vec<Value>,
    /// Whether to think before the answer, to templates that ask.
    pub(super) thinking: Option<bool>,
    /// What the time is, to templates that ask.
    pub(super) now: Timestamp,
}

/// A model's templates, compiled.
#[derive(Debug)]
pub(super) struct Templates {
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
    text: String,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl Templates {
    /// Compiles the templates of a model.
    ///
    /// # Errors
    /// `Unsupported` if there is none, or if it has what the library does not know, with the line.
    pub(super) fn compile(sources: Sources) -> Result<Self> {
        let Sources { default, tool_use, tokens } = sources;
        let text = default.ok_or_else(|| {
            Error::unsupported(
                OPERATION,
                "the model has no chat template, so it is no chat model; add a chat_template.jinja to its folder",
            )
        })?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|error| Error::internal(OPERATION, "the syntax is faulty").with_source(error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        for (name, text) in [(DEFAULT, Some(&text)), (TOOL_USE, tool_use.as_ref())] {
            if let Some(text) = text {
                let added = environment.add_template_owned(name, without_generation(text).into_owned());
                added.map_err(|error| {
                    Error::unsupported("compile chat template", "the template has what is not known here")
                        .with("template", name)
                        .with_source(error)
                })?;
            }
        }
        Ok(Self { environment, tokens, text })
    }

    /// The text of the template that conversations without tools are written with.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// `InvalidInput` with the template's own words if it refuses the conversation; `TooLarge` if it writes without end; `Unsupported` if it fails.
    pub(super) fn fill(&self, conversation: Conversation) -> Result<String> {
        self.render(conversation, true)
    }

    /// A conversation that is over, as the model reads it.
    ///
    /// # Errors
    /// As of [`fill`](Self::fill).
    pub(super) fn fill_whole(&self, conversation: Conversation) -> Result<String> {
        self.render(conversation, false)
    }

    fn render(&self, conversation: Conversation, goes_on: bool) -> Result<String> {
        let Conversation { messages, tools, thinking, now } = conversation;
        let has_tools = !tools.is_empty();
        let template = self.environment.get_template(if has_tools { TOOL_USE } else { DEFAULT });
        let template = template.or_else(|_| self.environment.get_template(DEFAULT));
        let tools = if has_tools { Value::from(tools) } else { Value::from(()) };
        let strftime_now = Value::from_function(move |format: &str| format_time(now, format));
        let mut values: BTreeMap<String, Value> =
            self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        values.insert("messages".to_owned(), Value::from(messages));
        values.insert("tools".to_owned(), tools);
        values.insert("add_generation_prompt".to_owned(), Value::from(goes_on));
        values.insert("strftime_now".to_owned(), strftime_now);
        if let Some(thinking) = thinking {
            values.insert("enable_thinking".to_owned(), Value::from(thinking));
        }
        let mut text = Limited(Vec::new());
        let filled = template
            .and_then(|template| template.render_captured_to(context! { ..Value::from(values) }, &mut text).map(drop));
        filled.map_err(|error| match raised(&error) {
            Some(words) => {
                Error::invalid(OPERATION, "the model's template refuses the conversation").with("reason", words)
            }
            None if error.kind() == ErrorKind::OutOfFuel => {
                Error::unsupported(OPERATION, "the template does not come to an end").with("steps", FUEL)
            }
            None if error.kind() == ErrorKind::WriteFailure => {
                Error::too_large(OPERATION, "the template makes too long a text of the conversation")
                    .with("limit", MAX_TEXT)
            }
            None => Error::unsupported(OPERATION, "the template cannot be filled").with_source(error),
        })?;
        String::from_utf8(text.0)
            .map_err(|error| Error::internal(OPERATION, "the template wrote no text").with_source(error))
    }
}

/// A text that does not grow without end.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_TEXT - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said as it refused.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the template refuses").with_source(Raised(message)))
}

fn raised(error: &minijinja::Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(Raised(words)) = error.downcast_ref() {
            return Some(words.clone());
        }
        source = error.source();
    }
    None
}

fn format_time(now: Timestamp, format: &str) -> Result<String, minijinja::Error> {
    let fail = |error: jiff::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "the time cannot be written so").with_source(error)
    };
    let now = jiff::Timestamp::from_microsecond(now.unix_micros()).map_err(fail)?;
    jiff::fmt::strtime::format(format, &now.to_zoned(jiff::tz::TimeZone::UTC)).map_err(fail)
}

/// Training looks for what is in `generation` blocks; here they are written as they are.
fn without_generation(text: &str) -> Cow<'_, str> {
    if !text.contains("generation") {
        return text.into();
    }
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(from) = rest.find("{%") {
        let Some(to) = rest[from..].find("%}").map(|to| from + to + 2) else { break };
        let block = &rest[from..to];
        let word = block[2..block.len() - 2].trim_matches(['-', '+']).trim();
        whole.push_str(&rest[..from]);
        match word {
            "generation" => whole.push_str(&block.replacen(word, "if true", 1)),
            "endgeneration" => whole.push_str(&block.replacen(word, "endif", 1)),
            _ => whole.push_str(block),
        }
        rest = &rest[to..];
    }
    whole.push_str(rest);
    whole.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> Result<String> {
        let tokens = [("bos_token".to_owned(), "<s>".to_owned())].into();
        let templates = Templates::compile(Sources { default: Some(template.to_owned()), tool_use: None, tokens })?;
        templates.fill(Conversation {
            messages: vec![context! { role => "user", content => " hi " }],
            tools: Vec::new(),
            thinking: Some(false),
            now: "2026-11-21T10:00:00Z".parse().unwrap(),
        })
    }

    #[test]
    fn templates_have_the_functions_that_they_are_written_for() {
        let check = |template: &str, expected: &str| assert_eq!(fill(template).unwrap(), expected, "{template}");
        check(
            "{{ bos_token }}{% for m in messages %}\n  {% if true %}\n{{ m.content.strip() }}\n  {% endif %}\n{% endfor %}",
            "<s>hi\n",
        );
        check("{{ strftime_now('%d %b %Y') }}", "21 Nov 2026");
        check("{%- generation -%} {{ messages[0]['role'] }} {%- endgeneration -%} !", "user!");
        check("{{ 1 if enable_thinking is defined and enable_thinking is false else 2 }}", "1");
        check("{{ tools is none }}{{ messages[0].get('name', 'x') }}", "Truex");
        check(
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        );
        check("{{ 'a,b'.split(',')[-1] }}{{ 'ab'.startswith('a') }}{{ messages[::-1][0].role }}", "bTrueuser");
    }

    #[test]
    fn a_template_that_refuses_is_quoted_and_one_that_fails_or_loops_is_told() {
        use hybrid_core::ErrorKind::{InvalidInput, Unsupported};
        let error = fill("{% if messages[0].role == 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}");
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.context("reason")), (InvalidInput, Some("roles must alternate")), "{error}");
        assert_eq!(fill("{% for").unwrap_err().kind(), Unsupported);
        assert_eq!(fill("{{ messages[0].content.nonesuch() }}").unwrap_err().kind(), Unsupported);
        assert_eq!(fill("{{ strftime_now('%') }}").unwrap_err().kind(), Unsupported);
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(fill(endless).unwrap_err().message().contains("does not come to an end"));
        let deep = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        assert_eq!(fill(deep).unwrap_err().kind(), Unsupported);
        let long = "{% for a in range(9999) %}{{ 'rye' * 1000000 }}{% endfor %}";
        assert_eq!(fill(long).unwrap_err().kind(), hybrid_core::ErrorKind::TooLarge);
        assert!(Templates::compile(Sources::default()).unwrap_err().message().contains("no chat template"));
    }
}
