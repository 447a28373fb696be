//! Links that upload or download one object.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use hybrid_core::{
    Digest, DownloadOptions, Error, Key, Presign, Result, SignedRequest, Timestamp, UploadOptions, check_object_size,
};

use super::{Inner, S3Store, attempt::Failure};

/// The longest that S3 lets a link hold.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Links by Signature Version 4 in the query. An upload's link carries `If-None-Match: *` among its signed headers, so it creates and never overwrites.
#[async_trait]
impl Presign for S3Store {
    async fn presign_upload(&self, key: &Key, options: UploadOptions) -> Result<SignedRequest> {
        const OPERATION: &str = "presign upload";
        let UploadOptions { expires_in, size, content_type, digest } = options;
        check_object_size(key, usize::try_from(size).unwrap_or(usize::MAX))?;
        let inner = &self.inner;
        let (signing, expires) = inner.signing(OPERATION, expires_in)?;
        let (encryption, kms_key, bucket_key) = inner.options.encryption.parts();
        let name = inner.name(key);
        let put = inner
            .client
            .put_object()
            .bucket(inner.bucket())
            .key(&name)
            .if_none_match("*")
            // Within the limit of an object, so within an i64.
            .content_length(size as i64)
            .set_content_type(content_type)
            .set_checksum_sha256(digest.map(|digest| base64(&digest)))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .set_bucket_key_enabled(bucket_key);
        let signed = put.presigned(signing).await.map_err(|failed| Failure::of(OPERATION, failed).error);
        Ok(request(&signed.map_err(|error| inner.about(error, &name))?, expires))
    }

    async fn presign_download(&self, key: &Key, options: DownloadOptions) -> Result<SignedRequest> {
        const OPERATION: &str = "presign download";
        let DownloadOptions { expires_in, content_type, file_name } = options;
        let inner = &self.inner;
        let (signing, expires) = inner.signing(OPERATION, expires_in)?;
        let disposition = file_name.map(|name| attachment(&name)).transpose()?;
        let name = inner.name(key);
        let get = inner
            .client
            .get_object()
            .bucket(inner.bucket())
            .key(&name)
            .set_response_content_type(content_type)
            .set_response_content_disposition(disposition);
        let signed = get.presigned(signing).await.map_err(|failed| Failure::of(OPERATION, failed).error);
        Ok(request(&signed.map_err(|error| inner.about(error, &name))?, expires))
    }
}

impl Inner {
    /// For how long, from the second that it is now by the store's clock.
    fn signing(&self, operation: &'static str, expires_in: Duration) -> Result<(PresigningConfig, Timestamp)> {
        let invalid = || {
            Error::invalid(operation, "a link holds for 1 second to 7 days")
                .with("expires_in", format_args!("{expires_in:?}"))
        };
        if !(Duration::from_secs(1)..=LONGEST).contains(&expires_in) {
            return Err(invalid());
        }
        // The signature knows whole seconds.
        let seconds = self.clock.now().unix_micros().div_euclid(1_000_000);
        let whole = Duration::from_secs(expires_in.as_secs());
        let start = u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let start =
            start.ok_or_else(|| Error::internal(operation, "the clock stands before 1970").with("seconds", seconds))?;
        let config = PresigningConfig::builder().start_time(start).expires_in(whole).build();
        let config = config.map_err(|error| invalid().with_source(error))?;
        Ok((config, Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000)).plus(whole)))
    }
}

fn request(signed: &PresignedRequest, expires: Timestamp) -> SignedRequest {
    SignedRequest {
        method: signed.method().to_owned(),
        url: signed.uri().to_owned(),
        headers: signed.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        expires,
    }
}

/// `Content-Disposition` with a plain name; a browser takes the rest as part of the name.
fn attachment(name: &str) -> Result<String> {
    if name.is_empty()
        || name.len() > 200
        || name.chars().any(|char| !(' '..='~').contains(&char) || "\"\\/".contains(char))
    {
        return Err(Error::invalid(
            "presign download",
            "expected a file name of 1 to 200 printable ASCII characters without \", \\ and /",
        )
        .with("file_name", format_args!("{name:?}")));
    }
    Ok(format!("attachment; filename=\"{name}\""))
}

fn base64(digest: &Digest) -> String {
    aws_smithy_types::base64::encode(digest.as_bytes())
}
