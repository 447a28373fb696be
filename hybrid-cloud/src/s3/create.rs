//! Creating an object once, whatever the wire does.

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use hybrid_core::{Error, ErrorKind, Key, Result, check_object_size};

use super::{Inner, attempt::Failure};

const OPERATION: &str = "create object";
/// The metadata field that tells a creator its own object from one with the same bytes.
pub(super) const NONCE: &str = "hybrid-nonce";

/// Who created the object that has the name.
enum Owner {
    Us,
    Another,
    Nobody,
}

impl Inner {
    pub(super) async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        check_object_size(key, bytes.len())?;
        let name = self.name(key);
        let nonce = self.ids.next_uuid().to_string();
        let mut attempt = 1;
        let mut unsure = false;
        loop {
            let Err(failure) = self.put(&name, bytes.clone(), &nonce).await else { return Ok(()) };
            unsure |= failure.may_have_acted;
            if failure.exists {
                // An earlier attempt of ours may be what exists, or one that something on the way has repeated.
                return match self.owner(&name, &nonce).await {
                    Ok(Owner::Us) => Ok(()),
                    Ok(Owner::Another | Owner::Nobody) => Err(self.lost(&name)),
                    // Who may create and not read still learns that the name is taken, unless it could be by itself.
                    Err(error) if error.kind() == ErrorKind::PermissionDenied && !unsure => Err(self.lost(&name)),
                    Err(error) => Err(self.about(error, &name)),
                };
            }
            // Looking costs less than sending it all again. Where looking fails, the next put's condition will tell.
            if failure.may_have_acted && failure.error.kind() != ErrorKind::RateLimited {
                match self.owner(&name, &nonce).await {
                    Ok(Owner::Us) => return Ok(()),
                    Ok(Owner::Another) => return Err(self.lost(&name)),
                    Ok(Owner::Nobody) | Err(_) => {}
                }
            }
            if !failure.error.is_temporary() || attempt >= self.attempts {
                return Err(self.about(failure.error, &name).with("attempts", attempt));
            }
            self.pause(attempt, &failure.error).await;
            attempt += 1;
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, nonce: &str) -> Result<(), Failure> {
        let size = bytes.len() as u64;
        let (encryption, key, bucket_key) = self.options.encryption.parts();
        let put = self
            .client
            .put_object()
            .bucket(self.bucket())
            .key(name)
            .if_none_match("*")
            .metadata(NONCE, nonce)
            .checksum_algorithm(self.options.checksum.algorithm())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key)
            .set_bucket_key_enabled(bucket_key)
            .body(ByteStream::from(bytes));
        self.attempt(OPERATION, size, put.send()).await.map(drop)
    }

    async fn owner(&self, name: &str, nonce: &str) -> Result<Owner> {
        let found = self
            .retried(|| async {
                let call = self.client.head_object().bucket(self.bucket()).key(name).send();
                self.attempt(OPERATION, 0, call).await
            })
            .await;
        match found {
            Ok(found) => {
                let ours =
                    found.metadata().and_then(|metadata| metadata.get(NONCE)).is_some_and(|found| found == nonce);
                Ok(if ours { Owner::Us } else { Owner::Another })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Owner::Nobody),
            Err(error) => Err(error),
        }
    }

    fn lost(&self, name: &str) -> Error {
        self.about(Error::already_exists(OPERATION, "the object exists"), name)
    }
}
