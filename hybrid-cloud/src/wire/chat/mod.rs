//! `POST /v1/chat/completions`.

#![cfg_attr(
    not(all(feature = "openai", feature = "storefront")),
    allow(unused_imports, reason = "what one feature writes the other reads")
)]

mod answer_in;
mod answer_out;
mod request;
mod request_in;
mod request_out;
mod response;
mod usage;

pub(crate) use answer_in::AnswerReader;
pub(crate) use answer_out::{
    AnswerWriter, Heading, citation, finish_reason, input_text, write_completion, write_logprobs,
};
pub(crate) use request::*;
pub(crate) use request_in::{
    ParsedChat, caller_words, json_or_text, read_file, read_grammar, read_image, read_mode, read_request, read_schema,
};
pub(crate) use request_out::{WireOptions, write_request};
pub(crate) use response::*;
pub(crate) use usage::WireUsage;

#[cfg(test)]
mod tests;
