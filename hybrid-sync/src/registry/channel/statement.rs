//! The signed statement that a channel is made of.

use bytes::Bytes;
use hybrid_core::{ChannelName, Digest, Document, Error, ModelName, Result, Signer, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::{
    PublicKey,
    dsse::{Envelope, InToto, Subject, SubjectDigest},
};

const PREDICATE_TYPE: &str = "https://github.com/hybrid-rs/hybrid/channel/v1";
const VERIFY: &str = "verify channel statement";

/// One statement of a channel: from `issued` on, `manifest` is in service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The model.
    pub model: ModelName,
    /// The channel.
    pub channel: ChannelName,
    /// The number, from 1, without gaps.
    pub seq: u64,
    /// The digest of the object before this one; `None` at number 1.
    pub prev: Option<Digest>,
    /// The version in service.
    pub manifest: Digest,
    /// The version that was in service before and that the decision rests on.
    pub incumbent: Option<Digest>,
    /// When it was signed.
    pub issued: Timestamp,
    /// When readers stop accepting it as new.
    pub expires: Timestamp,
    /// Tells one writer's statement from another's.
    pub nonce: String,
    /// Why, for people.
    pub why: String,
}

/// A verified statement with the digest of its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The digest of the object's bytes.
    pub digest: Digest,
    /// What it says.
    pub statement: Statement,
}

/// The object as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Signed {
    #[serde(flatten)]
    envelope: Envelope,
}

impl Document for Signed {
    const FORMAT: &'static str = "hybrid.channel";
    const MAJOR: u32 = 1;
}

impl Statement {
    pub(super) async fn sign(&self, signer: &dyn Signer) -> Result<Bytes> {
        let subject = Subject {
            name: format!("{}/{}", self.model, self.channel),
            digest: SubjectDigest { sha256: self.manifest },
        };
        let payload = InToto::new(subject, PREDICATE_TYPE, self.clone()).encode()?;
        Signed { envelope: Envelope::sign(&payload, signer).await? }.encode()
    }

    /// Reads a statement that one of `keys` has signed.
    pub(super) fn verify(bytes: &[u8], keys: &[PublicKey]) -> Result<Self> {
        Self::parse(&Signed::open(bytes)?.envelope.verify(VERIFY, keys)?)
    }

    /// Reads a statement whose bytes are vouched for by the `prev` of a verified one, whoever signed it: keys change over a channel's life.
    pub(super) fn pinned(bytes: &[u8]) -> Result<Self> {
        Self::parse(&Signed::open(bytes)?.envelope.payload(VERIFY)?)
    }

    fn parse(payload: &[u8]) -> Result<Self> {
        let mut statement = InToto::<Self>::decode(VERIFY, payload, PREDICATE_TYPE)?;
        let subject = statement.subject.remove(0);
        let statement = statement.predicate;
        if subject.digest.sha256 != statement.manifest
            || statement.seq == 0
            || (statement.seq == 1) != statement.prev.is_none()
        {
            return Err(Error::untrusted(VERIFY, "the statement contradicts itself")
                .with("seq", statement.seq)
                .with("manifest", statement.manifest));
        }
        Ok(statement)
    }
}

impl Signed {
    fn open(bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes).map_err(|error| match error.kind() {
            hybrid_core::ErrorKind::Unsupported => error,
            _ => Error::untrusted(VERIFY, "the object is not a signed statement").with_source(error),
        })
    }
}
