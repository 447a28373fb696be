//! Encoders of the BERT family, for whatever is put on top of them.
//!
//! `family` knows the families' names, `config` the sizes, `base` the files, `tokens` the texts, `network` the network, `pooling` what is made of
//! a text's rows.

mod base;
mod config;
mod family;
mod network;
mod pooling;
mod tokens;

pub(crate) use base::{Base, missing, model_type, on_device};
pub(crate) use config::{EncoderConfig, LoraConfig, TARGETS};
pub(crate) use family::HeadActivation;
pub(crate) use network::{Dropout, Encoder, Linear};
pub(crate) use pooling::Pooling;
pub(crate) use tokens::{Batch, Encoded, Marks, Tokens};
