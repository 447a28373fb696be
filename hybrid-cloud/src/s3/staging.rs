//! Whole files on S3: see [`S3Staging`].

use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{BoxStream, Error, ErrorKind, FileName, Key, Result, StagedFile, Staging};

use super::{
    Inner, S3Store,
    create::NONCE,
    list,
    read::{size, timestamp},
};

const OPERATION: &str = "stage file";
const MIB: u64 = 1024 * 1024;
/// The size of a part, unless the file has so many that S3's limit of 10,000 is met.
const PART: u64 = 16 * MIB;
const MAX_PARTS: u64 = 10_000;
/// Parts under way at once: so many times [`PART`] are held in memory.
const PARTS_AT_ONCE: usize = 4;

/// A [`Staging`] place below a store's prefix: each file is one object.
///
/// # Behavior
/// - A file of up to 16 MiB is one put. A larger one is a multipart upload, four parts of at least 16 MiB at a time, each with a checksum that the server verifies;
///   it becomes visible when it is whole. If it fails or the future is dropped, the upload is aborted. A process that dies in the middle leaves its parts to the bucket's
///   lifecycle rule: have one with `AbortIncompleteMultipartUpload`, since S3 bills them.
/// - Two who put one file at once both succeed; the later one's is there.
#[derive(Clone)]
pub struct S3Staging {
    inner: Arc<Inner>,
}

impl S3Store {
    /// The place for whole files below this store's prefix, with its options.
    pub fn staging(&self) -> S3Staging {
        S3Staging { inner: Arc::clone(&self.inner) }
    }
}

impl fmt::Debug for S3Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Staging").field("location", &self.inner.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl Staging for S3Staging {
    async fn put_file(&self, folder: &Key, name: &FileName, source: &Path) -> Result<()> {
        let name = self.inner.staged_name(folder, name);
        let source = Source::open(source).await?;
        let staged = if source.size <= PART {
            self.inner.put_small(&name, &source).await
        } else {
            self.inner.put_large(&name, &source).await
        };
        staged.map_err(|error| match error.context("path") {
            Some(_) => error,
            None => self.inner.about(error, &name).with("path", source.path.display()),
        })
    }

    async fn read_file(&self, folder: &Key, name: &FileName) -> Result<Bytes> {
        let name = self.inner.staged_name(folder, name);
        let read = self.inner.read_whole("read staged file", &name).await;
        read.map_err(|error| self.inner.about(error, &name))
    }

    fn list(&self, folder: &Key) -> BoxStream<'static, Result<StagedFile>> {
        let prefix = self.inner.location.name(&format!("{folder}/"));
        let root = prefix.len();
        list::raw(Arc::clone(&self.inner), prefix, None)
            .try_filter_map(move |object| async move {
                let name = object.key().and_then(|name| name.get(root..)).and_then(|name| FileName::new(name).ok());
                let file =
                    |name| StagedFile { name, size: size(object.size()), modified: timestamp(object.last_modified()) };
                Ok(name.map(file))
            })
            .boxed()
    }

    async fn delete(&self, folder: &Key, name: &FileName) -> Result<()> {
        self.inner.delete(&self.inner.staged_name(folder, name), "delete staged file").await
    }

    fn location(&self, folder: &Key) -> String {
        format!("{}{folder}/", self.inner.location)
    }
}

impl Inner {
    fn staged_name(&self, folder: &Key, name: &FileName) -> String {
        self.location.name(&format!("{folder}/{name}"))
    }

    async fn put_small(&self, name: &str, source: &Source) -> Result<()> {
        let bytes = source.read(0, source.size).await?;
        let (encryption, key, bucket_key) = self.options.encryption.parts();
        self.retried(|| async {
            let put = self
                .client
                .put_object()
                .bucket(self.bucket())
                .key(name)
                .checksum_algorithm(self.options.checksum.algorithm())
                .set_server_side_encryption(encryption.clone())
                .set_ssekms_key_id(key.clone())
                .set_bucket_key_enabled(bucket_key)
                .body(ByteStream::from(bytes.clone()));
            self.attempt(OPERATION, source.size, put.send()).await.map(drop)
        })
        .await?;
        source.check_unchanged().await
    }

    async fn put_large(self: &Arc<Self>, name: &str, source: &Source) -> Result<()> {
        let nonce = self.ids.next_uuid().to_string();
        let (encryption, key, bucket_key) = self.options.encryption.parts();
        let started = self
            .retried(|| async {
                let create = self
                    .client
                    .create_multipart_upload()
                    .bucket(self.bucket())
                    .key(name)
                    .metadata(NONCE, &nonce)
                    .checksum_algorithm(self.options.checksum.algorithm())
                    .set_server_side_encryption(encryption.clone())
                    .set_ssekms_key_id(key.clone())
                    .set_bucket_key_enabled(bucket_key);
                self.attempt(OPERATION, 0, create.send()).await
            })
            .await?;
        let upload =
            started.upload_id().ok_or_else(|| Error::internal(OPERATION, "the server gives the upload no id"))?;
        // Aborts the upload wherever this function is left before its end.
        let unfinished = Unfinished::new(Arc::clone(self), name, upload);
        let size = part_size(source.size);
        let parts: Vec<CompletedPart> = stream::iter(0..source.size.div_ceil(size))
            .map(|number| {
                let start = number * size;
                self.put_part(name, upload, number as i32 + 1, source, start, size.min(source.size - start))
            })
            .buffered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        source.check_unchanged().await?;
        self.complete(name, upload, &nonce, parts).await?;
        unfinished.finish();
        Ok(())
    }

    async fn put_part(
        &self,
        name: &str,
        upload: &str,
        number: i32,
        source: &Source,
        start: u64,
        length: u64,
    ) -> Result<CompletedPart> {
        let bytes = source.read(start, length).await?;
        let put = self
            .retried(|| async {
                let put = self
                    .client
                    .upload_part()
                    .bucket(self.bucket())
                    .key(name)
                    .upload_id(upload)
                    .part_number(number)
                    .checksum_algorithm(self.options.checksum.algorithm())
                    .body(ByteStream::from(bytes.clone()));
                self.attempt(OPERATION, length, put.send()).await
            })
            .await?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(put.e_tag().map(str::to_owned))
            .set_checksum_crc64_nvme(put.checksum_crc64_nvme().map(str::to_owned))
            .set_checksum_sha256(put.checksum_sha256().map(str::to_owned))
            .build())
    }

    async fn complete(&self, name: &str, upload: &str, nonce: &str, parts: Vec<CompletedPart>) -> Result<()> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let completed = self
            .retried(|| async {
                let call = self
                    .client
                    .complete_multipart_upload()
                    .bucket(self.bucket())
                    .key(name)
                    .upload_id(upload)
                    .multipart_upload(parts.clone());
                self.attempt(OPERATION, 0, call.send()).await.map(drop)
            })
            .await;
        let Err(error) = completed else { return Ok(()) };
        // An attempt whose answer was lost may have completed it; the next one is told that there is no such upload.
        if error.kind() == ErrorKind::NotFound || error.is_temporary() {
            let found = self
                .retried(|| async {
                    let call = self.client.head_object().bucket(self.bucket()).key(name).send();
                    self.attempt(OPERATION, 0, call).await
                })
                .await;
            let ours = found
                .is_ok_and(|found| found.metadata().and_then(|all| all.get(NONCE)).is_some_and(|found| found == nonce));
            if ours {
                return Ok(());
            }
        }
        Err(error)
    }
}

/// Whole MiB, at least [`PART`], so that there are at most [`MAX_PARTS`].
fn part_size(size: u64) -> u64 {
    size.div_ceil(MAX_PARTS).div_ceil(MIB).saturating_mul(MIB).max(PART)
}

/// A multipart upload that is to be aborted unless it is finished.
struct Unfinished {
    upload: Option<(Arc<Inner>, String, String)>,
}

impl Unfinished {
    fn new(inner: Arc<Inner>, name: &str, upload: &str) -> Self {
        Self { upload: Some((inner, name.to_owned(), upload.to_owned())) }
    }

    fn finish(mut self) {
        self.upload = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let (Some((inner, name, upload)), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        // Whoever waits for the file has an answer already; what cannot be aborted is left to the lifecycle rule.
        runtime.spawn(async move {
            let _ = inner
                .retried(|| async {
                    let call =
                        inner.client.abort_multipart_upload().bucket(inner.bucket()).key(&name).upload_id(&upload);
                    inner.attempt(OPERATION, 0, call.send()).await.map(drop)
                })
                .await;
        });
    }
}

/// A local file whose parts are read on threads that may block.
struct Source {
    path: PathBuf,
    file: Arc<Mutex<File>>,
    size: u64,
}

impl Source {
    async fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let failed = |error: io::Error| unreadable(&path, error);
            let file = File::open(&path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            if !meta.is_file() {
                return Err(Error::invalid(OPERATION, "expected a file").with("path", path.display()));
            }
            Ok(Self { size: meta.len(), file: Arc::new(Mutex::new(file)), path })
        })
        .await
    }

    async fn read(&self, start: u64, length: u64) -> Result<Bytes> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let mut bytes = Vec::with_capacity(length as usize);
            let read = file
                .seek(SeekFrom::Start(start))
                .and_then(|_| Read::by_ref(&mut *file).take(length).read_to_end(&mut bytes));
            match read {
                Ok(read) if read as u64 == length => Ok(bytes.into()),
                Ok(_) => Err(changed(&path)),
                Err(error) => Err(unreadable(&path, error)),
            }
        })
        .await
    }

    /// Its size is what it was; whoever changes bytes in place is not noticed.
    async fn check_unchanged(&self) -> Result<()> {
        let (file, path, size) = (Arc::clone(&self.file), self.path.clone(), self.size);
        blocking(move || {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let now = file.metadata().map_err(|error| unreadable(&path, error))?.len();
            if now == size { Ok(()) } else { Err(changed(&path)) }
        })
        .await
    }
}

fn changed(path: &Path) -> Error {
    Error::invalid(OPERATION, "the file changed while it was read").with("path", path.display())
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, OPERATION, "the file cannot be read").with("path", path.display()).with_source(error)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => {
                Err(Error::new(ErrorKind::Cancelled, OPERATION, "the runtime is shutting down").with_source(error))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_parts_than_the_server_takes() {
        for size in [PART + 1, 1 << 30, MAX_PARTS * PART, MAX_PARTS * PART + 1, 5 << 40] {
            let part = part_size(size);
            assert!(
                part >= PART && part.is_multiple_of(MIB) && size.div_ceil(part) <= MAX_PARTS,
                "{size} in parts of {part}"
            );
        }
        assert_eq!(part_size(1 << 30), PART);
    }
}
