//! Bodies that lie in the bucket, as AWS's extended client libraries write and read them.

use std::sync::Arc;

use hybrid_core::{ArtifactStore, ArtifactStoreExt, Error, ErrorKind, Key, MAX_BODY_BYTES, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The message attribute that says that a body is a pointer, and how many bytes lie there.
pub(super) const SIZE: &str = "ExtendedPayloadSize";
/// Its names: today's, and the one before that.
pub(super) const SIZES: [&str; 2] = [SIZE, "SQSLargePayloadSize"];

const POINTER: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";
const POINTERS: [&str; 2] = [POINTER, "com.amazon.sqs.javamessaging.MessageS3Pointer"];

const OPERATION: &str = "read message payload";

/// Where bodies lie that do not fit into a message.
///
/// A message can be at most as large as its queue says, attributes counted; what is larger, or larger than [`threshold`](Self::threshold), is put into
/// the store, and the message points to it. Body and attribute are those of the Amazon SQS Extended Client Libraries for Java and Python, which read
/// our messages as we read theirs (the names of their first version too):
///
/// ```text
/// ["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"p/0198…"}]     ExtendedPayloadSize: 1048576 (Number)
/// ```
///
/// A body is never larger than [`MAX_BODY_BYTES`], whatever the store would hold: what is larger than that is the caller's to store, with its key in the
/// message. So with the default threshold only bodies just below the limit, those with attributes beside them, and queues with a lower limit of their own use it.
///
/// # Who deletes
/// Nobody here. A payload is needed for as long as its message or any copy of it may be delivered: an ack may be lost and the message come again, a dead
/// letter may be sent back. Give the prefix a lifecycle rule that expires objects after the retention of the queue and of its dead letters
/// together and a day more (29 days where both keep for the longest, 14 days). A copy that is handed over, released or sent back from the dead letters points to the same payload and is
/// kept anew: where letters are sent back more than once, or jobs run for days, let the rule wait as many times longer. The libraries named above can be told to delete a payload with its
/// message; leave that off.
///
/// # Whose data it is
/// All payloads lie below one prefix, whoever's they are. Where a tenant's data must lie apart, give each tenant a queue, with a prefix below `t/<tenant>/`.
#[derive(Clone, Debug)]
pub struct ClaimCheck {
    /// The store that holds the bucket's objects.
    pub store: Arc<dyn ArtifactStore>,
    /// The bucket's name as S3 knows it: what a pointer says.
    pub bucket: String,
    /// What stands before the store's keys in the bucket: empty, or a text that ends with `/`.
    pub root: String,
    /// Where payloads lie. A pointer to another bucket, or to a key that is not below this, is refused.
    pub prefix: Key,
    /// The most bytes of a message, attributes counted, that is sent as it is; by default the most there can be.
    pub threshold: usize,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    s3_bucket_name: String,
    s3_key: String,
}

impl ClaimCheck {
    /// Payloads below `prefix` of `bucket`, whose objects `store` holds by the same keys.
    pub fn new(store: Arc<dyn ArtifactStore>, bucket: impl Into<String>, prefix: Key) -> Self {
        Self { store, bucket: bucket.into(), root: String::new(), prefix, threshold: MAX_BODY_BYTES }
    }

    /// Stores a body under a name of its own; answers with the pointer to it.
    pub(super) async fn save(&self, name: Uuid, body: String) -> Result<String> {
        let Self { store, bucket, root, prefix, threshold: _ } = self;
        let key = Key::new(format!("{prefix}/{name}"))?;
        // A name that is taken has the same bytes: an earlier try whose answer was lost.
        store.create_same(&key, body.into_bytes().into()).await?;
        let location = Location { s3_bucket_name: bucket.clone(), s3_key: format!("{root}{key}") };
        serde_json::to_string(&(POINTER, location))
            .map_err(|error| Error::internal("write message payload", "the pointer is no JSON").with_source(error))
    }

    /// The body that `pointer` names, which the sender says has `size` bytes.
    pub(super) async fn load(&self, pointer: &str, size: &str) -> Result<String> {
        let key = self.locate(pointer)?;
        let wrong_size = |found: usize| {
            Error::corrupt(OPERATION, "the payload has not the size that the message says")
                .with("key", &key)
                .with("expected", size)
                .with("found", found)
        };
        let expected: u64 = size.parse().map_err(|_| {
            Error::corrupt(OPERATION, "the message's payload size is no number").with("key", &key).with("found", size)
        })?;
        if expected > MAX_BODY_BYTES as u64 {
            return Err(too_large(&key, expected));
        }
        let head = self.store.head(&key).await.map_err(|error| missing(error, &key))?;
        // Looked at before the bytes are fetched: another writer's word is no limit.
        if head.size > MAX_BODY_BYTES as u64 {
            return Err(too_large(&key, head.size));
        }
        let bytes = self.store.get(&key).await.map_err(|error| missing(error, &key))?;
        if bytes.len() as u64 != expected {
            return Err(wrong_size(bytes.len()));
        }
        String::from_utf8(bytes.into())
            .map_err(|error| Error::corrupt(OPERATION, "the payload is no UTF-8").with("key", &key).with_source(error))
    }

    /// The store's key of a pointer that is one of ours to read.
    fn locate(&self, pointer: &str) -> Result<Key> {
        let (class, Location { s3_bucket_name, s3_key }): (String, Location) =
            serde_json::from_str(pointer).map_err(|error| {
                Error::corrupt(OPERATION, "the message says that it has a payload, and points to none")
                    .with_source(error)
            })?;
        if !POINTERS.contains(&class.as_str()) {
            return Err(Error::unsupported(OPERATION, "a pointer of this class is not known").with("class", class));
        }
        if s3_bucket_name != self.bucket {
            return Err(Error::invalid(OPERATION, "the payload lies in another bucket than the one configured")
                .with("found", s3_bucket_name)
                .with("configured", &self.bucket));
        }
        let below = s3_key
            .strip_prefix(&self.root)
            .filter(|key| key.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with('/')));
        match below.map(Key::new) {
            Some(Ok(key)) => Ok(key),
            Some(Err(error)) => Err(error),
            None => Err(Error::invalid(OPERATION, "the payload lies outside the prefix configured")
                .with("found", &s3_key)
                .with("configured", format_args!("{}{}/", self.root, self.prefix))),
        }
    }
}

fn too_large(key: &Key, size: u64) -> Error {
    Error::too_large(OPERATION, "the payload is over the limit of a body")
        .with("key", key)
        .with("size", size)
        .with("limit", MAX_BODY_BYTES)
}

/// A message outlives its payload only if somebody deleted that too early.
fn missing(error: Error, key: &Key) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::not_found(OPERATION, "the payload is gone; payloads must be kept as long as messages").with("key", key)
}

#[cfg(test)]
mod tests {
    use hybrid_core::{IdSource, SeededIds, memory::MemoryStore};
    use serde_json::{Value, json};

    use super::*;

    fn check() -> ClaimCheck {
        let store = Arc::new(MemoryStore::default());
        let check = ClaimCheck::new(store, "bakery", Key::new("payloads").unwrap());
        ClaimCheck { root: "team/".to_owned(), ..check }
    }

    #[tokio::test]
    async fn a_body_comes_back_by_the_pointer_that_the_libraries_write() {
        let (check, name) = (check(), SeededIds::new(1).next_uuid());
        let pointer = check.save(name, "bread 🥐".to_owned()).await.unwrap();
        let expected = json!([POINTER, { "s3BucketName": "bakery", "s3Key": format!("team/payloads/{name}") }]);
        assert_eq!(serde_json::from_str::<Value>(&pointer).unwrap(), expected);
        assert_eq!(check.load(&pointer, "10").await.unwrap(), "bread 🥐");
        // As the libraries' first version wrote it, with Python's spaces.
        let legacy = pointer.replace(POINTER, POINTERS[1]).replace(',', ", ").replace(':', ": ");
        assert_eq!(check.load(&legacy, "10").await.unwrap(), "bread 🥐");
        assert_eq!(check.load(&pointer, "11").await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(check.load(&pointer, "1048577").await.unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[tokio::test]
    async fn a_pointer_that_leads_elsewhere_is_refused_by_name() {
        let check = check();
        let at = |bucket: &str, key: &str| json!([POINTER, { "s3BucketName": bucket, "s3Key": key }]).to_string();
        for (pointer, kind, named) in [
            (at("other", "team/payloads/a"), ErrorKind::InvalidInput, "other"),
            (at("bakery", "payloads/a"), ErrorKind::InvalidInput, "payloads/a"),
            (at("bakery", "team/payloads-of-others/a"), ErrorKind::InvalidInput, "payloads-of-others"),
            (at("bakery", "team/payloads/../secrets"), ErrorKind::InvalidInput, "secrets"),
            (at("bakery", "team/payloads/gone"), ErrorKind::NotFound, "payloads/gone"),
            (at("bakery", "team/payloads/a").replace("Payload", "Other"), ErrorKind::Unsupported, "OtherS3Pointer"),
            ("plain text".to_owned(), ErrorKind::Corrupt, "points to none"),
        ] {
            let error = check.load(&pointer, "1").await.unwrap_err();
            assert_eq!(error.kind(), kind, "{pointer}: {error}");
            assert!(error.to_string().contains(named), "{pointer}: {error}");
        }
    }
}
