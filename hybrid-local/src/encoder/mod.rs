//! Encoders of the BERT family, for whatever is put on top of them.
//!
//! `family` knows the families' names, `config` the sizes, `base` the files, `tokens` the texts, `network` the network, `pooling` what is made of
//! a text's rows, `portions` how many texts are read.

mod base;
mod config;
mod family;
mod network;
mod pooling;
mod portions;
mod tokens;

pub(crate) use base::{Base, model_type, on_device};
pub(crate) use config::{EncoderConfig, LoraConfig, TARGETS};
pub(crate) use family::HeadActivation;
pub(crate) use network::{Dropout, Encoder, Linear};
pub(crate) use pooling::Pooling;
pub(crate) use portions::{Portions, in_portions};
pub(crate) use tokens::{Batch, Encoded, Marks, Tokens};
