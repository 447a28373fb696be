//! An upload's form, read piece by piece: no more of it is in memory than one part of a file.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{BodyDataStream, Bytes},
    extract::{FromRequest, Request},
    http::header,
};
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
    stream,
};
use hybrid_core::{BoxFuture, Clock, NewFile, StoredFile};
use multer::{Constraints, Field, Multipart, SizeLimit};

use crate::{
    storefront::{
        body::{boundary, refuse_announced},
        error::{ApiError, shorten},
        front::{Admitted, Front, Uploading},
    },
    wire::file::UPLOAD_PURPOSES,
};

/// What the form may have beside the file, in bytes, and one field of it.
const BESIDE: u64 = 64 * 1024;
const FIELD: u64 = 4 * 1024;
const FIELDS: usize = 64;
pub(super) const NAME_BYTES: usize = 512;
/// A piece of the body that is looked at, in bytes.
const PIECE: usize = 64 * 1024;
/// How much may have come of which nothing was made yet, in bytes: a form's reader keeps what it cannot cut.
const AHEAD: u64 = 512 * 1024;
pub(super) const EXPIRES: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// The form of `POST /v1/files`, on its way.
pub(in crate::storefront) struct UploadForm {
    form: Multipart<'static>,
    /// How many bytes of the body have been made use of.
    used: Arc<AtomicU64>,
    limit: u64,
}

impl fmt::Debug for UploadForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadForm").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl FromRequest<Arc<Front>> for UploadForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, front: &Arc<Front>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let (boundary, limits) = (boundary(&parts.headers)?, front.limits());
        let limit = limits.file_bytes;
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|bytes: u64| bytes > limit.saturating_add(BESIDE)) {
            return Err(refuse_announced(&parts, body, front, limit).await);
        }
        let used = Arc::<AtomicU64>::default();
        let body = Arriving {
            chunks: body.into_data_stream(),
            rest: Bytes::new(),
            came: 0,
            used: Arc::clone(&used),
            clock: Arc::clone(front.clock()),
            late: front.clock().sleep(limits.stream_timeout),
            limits: (limits.stream_timeout, limits.stream_stall),
        };
        let sizes =
            SizeLimit::new().whole_stream(limit.saturating_add(BESIDE)).per_field(FIELD).for_field("file", limit);
        let constraints = Constraints::new().size_limit(sizes);
        Ok(Self { form: Multipart::with_constraints(body.pieces(), boundary, constraints), used, limit })
    }
}

impl UploadForm {
    /// Stores the file as it comes.
    pub(super) async fn store(mut self, admitted: &Admitted) -> Result<StoredFile, ApiError> {
        let mut uploading = admitted.upload_file().await?;
        let stored = match self.read(admitted, &mut uploading).await {
            Ok(new) => uploading.finish(new).await,
            Err(refused) => Err(refused),
        };
        if let Err(refused) = &stored {
            uploading.give_up(refused).await;
        }
        stored
    }

    /// Reads the fields in whatever order they come.
    async fn read(&mut self, admitted: &Admitted, uploading: &mut Uploading) -> Result<NewFile, ApiError> {
        let (mut name, mut purpose, mut seconds, mut anchor) = (None, None, None, None);
        let mut fields = 0;
        while let Some(field) = self.form.next_field().await.map_err(|error| self.failed(&error))? {
            fields += 1;
            if fields > FIELDS {
                return Err(ApiError::too_many("form", FIELDS, fields));
            }
            match field.name().unwrap_or_default() {
                "file" if name.is_some() => return Err(refuse("file", "is there twice; send one")),
                "file" => name = Some(self.take(field, uploading).await?),
                "purpose" => purpose = Some(self.text(field).await?),
                "expires_after[anchor]" => anchor = Some(self.text(field).await?),
                "expires_after[seconds]" => seconds = Some(self.text(field).await?),
                // What newer clients send.
                _ => drop(self.text(field).await?),
            }
        }
        let name = name.ok_or_else(|| refuse("file", "is missing"))?;
        let purpose = purpose.filter(|purpose| UPLOAD_PURPOSES.contains(&purpose.as_str()));
        let purpose =
            purpose.ok_or_else(|| refuse("purpose", &format!("must be one of {}", UPLOAD_PURPOSES.join(", "))))?;
        if anchor.as_ref().is_some_and(|anchor| anchor != "created_at") {
            return Err(refuse("expires_after[anchor]", "must be created_at"));
        }
        let seconds = match (seconds.map(|seconds| seconds.parse()), anchor) {
            (None, None) => None,
            (Some(Ok(seconds)), _) if EXPIRES.contains(&seconds) => Some(Duration::from_secs(seconds)),
            _ => return Err(refuse("expires_after[seconds]", "must be a number from 3600 to 2592000")),
        };
        let expires = seconds.map(|seconds| admitted.front().clock().now().plus(seconds));
        Ok(NewFile { name, purpose, expires })
    }

    /// Takes the file, and answers with its name.
    async fn take(&self, mut field: Field<'static>, uploading: &mut Uploading) -> Result<String, ApiError> {
        // Some clients send where the file lay; nobody here is to take a name for a path.
        let name = field.file_name().and_then(|name| name.rsplit(['/', '\\']).next()).unwrap_or_default();
        let name = if name.is_empty() { "file".to_owned() } else { name.to_owned() };
        if name.len() > NAME_BYTES {
            return Err(refuse("file", "must have a name of at most 512 bytes"));
        }
        while let Some(piece) = field.chunk().await.map_err(|error| self.failed(&error))? {
            self.used.fetch_add(piece.len() as u64, Ordering::Relaxed);
            uploading.write(piece).await?;
        }
        Ok(name)
    }

    async fn text(&self, field: Field<'static>) -> Result<String, ApiError> {
        let name = shorten(field.name().unwrap_or_default().to_owned(), 64);
        let bytes = field.bytes().await.map_err(|error| self.failed(&error))?;
        self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        String::from_utf8(bytes.into()).map_err(|_| refuse(&name, "must be UTF-8"))
    }

    fn failed(&self, error: &multer::Error) -> ApiError {
        match error {
            multer::Error::FieldSizeExceeded { field_name, .. } if field_name.as_deref() != Some("file") => {
                let name = shorten(field_name.clone().unwrap_or_default(), 64);
                refuse(&name, "must have at most 4096 bytes")
            }
            multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => {
                ApiError::body_too_large(self.limit, None)
            }
            multer::Error::StreamReadFailed(cause) => match cause.downcast_ref() {
                Some(Broken::Slow(limit)) => ApiError::body_timeout(*limit),
                Some(Broken::Shapeless) => {
                    ApiError::invalid("invalid_form", "the form has no fields where they must be")
                }
                _ => ApiError::invalid("invalid_form", "the body broke off or is framed wrongly"),
            },
            other => ApiError::invalid("invalid_form", format!("the form is malformed: {other}")),
        }
    }
}

pub(super) fn refuse(field: &str, message: &str) -> ApiError {
    ApiError::invalid("invalid_request", format!("{field} {message}")).param(field.to_owned())
}

/// Why a body does not come to its end.
#[derive(Debug)]
enum Broken {
    Off,
    Slow(Duration),
    /// Too much has come that is neither a field nor a part of one.
    Shapeless,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Broken {}

/// A body on its way, within its time.
struct Arriving {
    chunks: BodyDataStream,
    /// What has come and was not passed on yet.
    rest: Bytes,
    came: u64,
    used: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
    /// Ends when the whole body is too late.
    late: BoxFuture<'static, ()>,
    limits: (Duration, Duration),
}

impl Arriving {
    fn pieces(self) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
        stream::unfold(Some(self), async |arriving| {
            let mut arriving = arriving?;
            let piece = arriving.next().await?;
            let goes_on = piece.is_ok();
            Some((piece, goes_on.then_some(arriving)))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        // Whoever reads the form takes all that is ready at once: it gets one piece each time it asks.
        tokio::task::yield_now().await;
        if self.came.saturating_sub(self.used.load(Ordering::Relaxed)) > AHEAD {
            return Some(Err(Broken::Shapeless));
        }
        if self.rest.is_empty() {
            let (whole, stall) = self.limits;
            let stalled = self.clock.sleep(stall);
            self.rest = match select(self.chunks.next(), select(&mut self.late, stalled)).await {
                Either::Left((Some(Ok(chunk)), _)) => chunk,
                Either::Left((Some(Err(_)), _)) => return Some(Err(Broken::Off)),
                Either::Left((None, _)) => return None,
                Either::Right((Either::Left(_), _)) => return Some(Err(Broken::Slow(whole))),
                Either::Right((Either::Right(_), _)) => return Some(Err(Broken::Slow(stall))),
            };
        }
        let piece = self.rest.split_to(PIECE.min(self.rest.len()));
        self.came += piece.len() as u64;
        Some(Ok(piece))
    }
}
