//! Names, digests and ids that are valid once they exist.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{Error, Result};

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
///
/// ```
/// use hybrid_core::Digest;
///
/// let digest = Digest::of(b"");
/// assert_eq!(digest.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
/// assert!("E3B0".parse::<Digest>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest whose 32 bytes are `bytes`.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks that `bytes` have this digest.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) with the digest expected and the digest found.
    pub fn verify(&self, operation: &'static str, bytes: &[u8]) -> Result<()> {
        let found = Self::of(bytes);
        if found == *self {
            return Ok(());
        }
        Err(Error::corrupt(operation, "the bytes do not have the promised digest")
            .with("expected", self)
            .with("found", found))
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// Accepts exactly `^[0-9a-f]{64}$`, so that a digest is safe as a part of a path or a key.
    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::invalid("parse digest", "expected 64 lower-case hexadecimal digits").with("found", text);
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(invalid()),
        };
        let text_bytes: &[u8; 64] = text.as_bytes().try_into().map_err(|_| invalid())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text_bytes.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// Serialises a type through its text form.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;
serde_as_text!(Digest);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// One to 63 characters of `a-z`, `0-9`, `-` and `_`, the first a letter or digit: safe as a part of a key, a path and a metric label.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps `name`.
            ///
            /// # Errors
            /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the rule.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                check_name(concat!("parse ", $what), &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        serde_as_text!($name);
    };
}

fn check_name(operation: &'static str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    if (1..=63).contains(&bytes.len())
        && plain(bytes[0])
        && bytes.iter().all(|&byte| plain(byte) || byte == b'-' || byte == b'_')
    {
        return Ok(());
    }
    Err(Error::invalid(operation, "expected 1 to 63 characters of a-z, 0-9, - and _, the first a letter or digit")
        .with("found", format_args!("{name:?}")))
}

name!(
    /// Whose data something is.
    TenantId,
    "tenant id"
);
name!(
    /// The name of a family of model versions.
    ModelName,
    "model name"
);
name!(
    /// The name of a channel of a model, such as `stable`.
    ChannelName,
    "channel name"
);
name!(
    /// The name of a dataset.
    DatasetName,
    "dataset name"
);
name!(
    /// The name of a collection of records, such as `conversations`.
    CollectionName,
    "collection name"
);
name!(
    /// The one process that appends to a sequence, so that writers never race.
    WriterId,
    "writer id"
);
name!(
    /// The kind of a job, such as `train`; it chooses the handler.
    JobKind,
    "job kind"
);

impl TenantId {
    /// The tenant of a deployment that has only one: `default`.
    pub fn single() -> Self {
        Self("default".to_owned())
    }
}

impl ChannelName {
    /// The channel that storefronts follow unless told otherwise: `stable`.
    pub fn stable() -> Self {
        Self("stable".to_owned())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes the next id from `ids`.
            pub fn next(ids: &dyn crate::IdSource) -> Self {
                Self(ids.next_uuid())
            }

            /// Wraps an id made elsewhere.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The id as a UUID.
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                // Only the canonical form, so that an id has one spelling as a part of a key.
                Uuid::try_parse(text)
                    .ok()
                    .filter(|uuid| uuid.to_string() == text)
                    .map(Self)
                    .ok_or_else(|| Error::invalid(concat!("parse ", $what), "expected a UUID in lower case with hyphens").with("found", format_args!("{text:?}")))
            }
        }

        serde_as_text!($name);
    };
}

uuid_id!(
    /// The id of a job, which keys its effects and its result.
    JobId,
    "job id"
);
uuid_id!(
    /// The id of a judgment; the same judgment delivered twice counts once.
    JudgmentId,
    "judgment id"
);
uuid_id!(
    /// The id of a customer's file. Of one made by [`SystemIds`](crate::SystemIds) nobody guesses the 74 random bits.
    FileId,
    "file id"
);

/// The id of one customer request, carried through logs, jobs and results.
///
/// One to 128 characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`: what a client may send in `x-request-id`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// Takes the next id from `ids`.
    pub fn next(ids: &dyn crate::IdSource) -> Self {
        Self(ids.next_uuid().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RequestId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = (1..=128).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid("parse request id", "expected 1 to 128 characters of A-Z, a-z, 0-9, ., _ and -"))
    }
}

serde_as_text!(RequestId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_lower_case_hex_digits() {
        let text = Digest::of(b"x").to_string();
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::of(b"x"));
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace(&text[..1], "g"),
            "../../../etc/passwd",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_safe_as_a_path_part() {
        for good in ["a", "bakery", "a-b_c9", &"x".repeat(63)] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "A", "-a", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<ModelName>("\"../x\"").is_err());
    }

    #[test]
    fn a_uuid_id_has_one_spelling() {
        let id = "0199a5b0-0000-7000-8000-000000000000";
        assert_eq!(id.parse::<JobId>().unwrap().to_string(), id);
        for bad in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}")] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
