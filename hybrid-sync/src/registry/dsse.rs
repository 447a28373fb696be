//! Dead Simple Signing Envelopes (DSSE v1) around in-toto statements.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hybrid_core::{Error, Result, Signer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::PublicKey;

pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// The envelope: a payload and one signature of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

/// An in-toto statement v1 with predicate `P`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InToto<P> {
    #[serde(rename = "_type")]
    kind: String,
    pub(super) subject: Vec<Subject>,
    predicate_type: String,
    pub(super) predicate: P,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) digest: SubjectDigest,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SubjectDigest {
    pub(super) sha256: hybrid_core::Digest,
}

impl<P: Serialize + DeserializeOwned> InToto<P> {
    pub(super) fn new(subject: Subject, predicate_type: &str, predicate: P) -> Self {
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![subject],
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            Error::internal("encode statement", "the statement cannot be written as JSON").with_source(error)
        })
    }

    /// Reads a payload whose signature has been verified.
    pub(super) fn decode(operation: &'static str, payload: &[u8], predicate_type: &str) -> Result<Self> {
        // The types first, so that another kind of statement is named as such.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Types {
            #[serde(rename = "_type")]
            kind: String,
            predicate_type: String,
        }
        let unreadable =
            |error| Error::untrusted(operation, "the signed payload is not the statement expected").with_source(error);
        let types: Types = serde_json::from_slice(payload).map_err(unreadable)?;
        if types.kind != STATEMENT_TYPE || types.predicate_type != predicate_type {
            return Err(Error::untrusted(operation, "the signature is of another kind of statement")
                .with("expected", predicate_type)
                .with("found", types.predicate_type));
        }
        let statement: Self = serde_json::from_slice(payload).map_err(unreadable)?;
        if statement.subject.len() != 1 {
            return Err(
                Error::untrusted(operation, "expected exactly one subject").with("found", statement.subject.len())
            );
        }
        Ok(statement)
    }
}

impl Envelope {
    /// Signs `payload` and checks the signature, so that a signer that is set up wrongly fails here and not at the readers.
    pub(super) async fn sign(payload: &[u8], signer: &dyn Signer) -> Result<Self> {
        let message = pae(PAYLOAD_TYPE, payload);
        let signature = signer.sign(&message).await?;
        if !PublicKey::from_pem(signer.public_key_pem())?.verifies(&message, &signature) {
            return Err(Error::internal(
                "sign statement",
                "the signer's signature does not verify with its own public key",
            ));
        }
        Ok(Self {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature { sig: STANDARD.encode(signature), keyid: String::new() }],
        })
    }

    /// The payload's exact bytes, if one of `keys` has signed them. Nothing of the payload is parsed before.
    pub(super) fn verify(&self, operation: &'static str, keys: &[PublicKey]) -> Result<Vec<u8>> {
        let malformed =
            |what: &'static str| Error::untrusted(operation, "the signature envelope is malformed").with("field", what);
        if self.payload_type != PAYLOAD_TYPE {
            return Err(malformed("payloadType").with("found", &self.payload_type));
        }
        let [signature] = self.signatures.as_slice() else {
            return Err(malformed("signatures").with("expected", 1).with("found", self.signatures.len()));
        };
        let payload = self.payload(operation)?;
        let signature = STANDARD.decode(&signature.sig).map_err(|_| malformed("sig"))?;
        let message = pae(&self.payload_type, &payload);
        if keys.iter().any(|key| key.verifies(&message, &signature)) {
            return Ok(payload);
        }
        Err(Error::untrusted(operation, "no trusted key has made the signature").with("trusted keys", keys.len()))
    }

    /// The payload without a look at the signature: only for bytes that something else vouches for.
    pub(super) fn payload(&self, operation: &'static str) -> Result<Vec<u8>> {
        STANDARD
            .decode(&self.payload)
            .map_err(|_| Error::untrusted(operation, "the signature envelope is malformed").with("field", "payload"))
    }
}

/// DSSE's pre-authentication encoding.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_before_signing_is_that_of_dsse_v1() {
        // The example of the DSSE protocol document.
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}
