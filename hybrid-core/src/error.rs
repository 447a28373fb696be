use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The one error of the crate family.
///
/// It says what kind of failure it is, which operation failed, what the operation was about, and where known
/// the underlying cause. Callers act on [`kind`](Error::kind), [`is_temporary`](Error::is_temporary) and
/// [`retry_after`](Error::retry_after); nobody parses text.
///
/// ```
/// use hybrid_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::NotFound, "read object", "no such key").with("key", "blobs/a");
/// assert_eq!(error.to_string(), "read object: no such key (key: blobs/a)");
/// assert!(!error.is_temporary());
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    in_doubt: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a caller can do about an [`Error`]: a kind exists only where callers act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// Somebody created it first; read it and decide again.
    AlreadyExists,
    /// The input can never succeed as it is.
    InvalidInput,
    /// The input is over a limit of size; a smaller one may succeed.
    TooLarge,
    /// Bytes differ from what was promised: a digest, a length, a format.
    Corrupt,
    /// A newer format or an unknown capability; an upgrade may help.
    Unsupported,
    /// A signature, a sequence or an expiry does not hold; never load it.
    Untrusted,
    /// The data policy forbids this backend; route elsewhere or give up.
    PolicyDenied,
    /// The identity in use may not do this.
    PermissionDenied,
    /// The lease has run out or was taken over: stop, and write nothing more.
    LeaseLost,
    /// The service is away for now; try again with back-off.
    Unavailable,
    /// Too many calls; try again after [`Error::retry_after`].
    RateLimited,
    /// The deadline passed, or an operation took longer than its limit.
    Timeout,
    /// The caller cancelled.
    Cancelled,
    /// The disk or the account is full; free space, then try again.
    StorageFull,
    /// Not enough memory or accelerator for this work on this machine.
    ResourceExhausted,
    /// A defect, or something nobody foresaw.
    Internal,
}

impl Error {
    /// Makes an error of `kind` for `operation` (a short verb phrase such as `"read object"`).
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            message: message.into(),
            context: Vec::new(),
            retry_after: None,
            in_doubt: false,
            source: None,
        }))
    }

    /// Names a thing that the error is about, such as `("key", key)`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// Attaches the underlying cause, printed after the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says how long to wait before the next try.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Says that what was asked may have been done, and may have to be paid for: the answer broke off after the question was out.
    #[must_use]
    pub fn in_doubt(mut self) -> Self {
        self.0.in_doubt = true;
        self
    }

    /// Whether what was asked may have been done although the call failed: so for each [`Timeout`](ErrorKind::Timeout), and for what an adapter
    /// [says](Self::in_doubt).
    pub fn is_in_doubt(&self) -> bool {
        self.0.in_doubt || self.0.kind == ErrorKind::Timeout
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The message without operation, context and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The message with the `field` and the `limit` that the context names: what whoever asked may read. The rest of the context and the cause may name
    /// paths, hosts and other things of the side that failed.
    pub fn public_message(&self) -> String {
        let field = self.context("field").map_or_else(String::new, |field| format!("{field} "));
        let limit = self.context("limit").map_or_else(String::new, |limit| format!(" (limit: {limit})"));
        format!("{field}{}{limit}", self.message())
    }

    /// The value recorded for `name`, if any.
    pub fn context(&self, name: &str) -> Option<&str> {
        self.0.context.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::RateLimited | ErrorKind::Timeout)
    }

    /// How long the failing side asked to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident,)*) => {
        impl Error {
            $($(#[$doc])*
            pub fn $name(operation: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
                Self::new(ErrorKind::$kind, operation, message)
            })*
        }
    };
}

constructors! {
    /// Short for [`ErrorKind::NotFound`].
    not_found => NotFound,
    /// Short for [`ErrorKind::AlreadyExists`].
    already_exists => AlreadyExists,
    /// Short for [`ErrorKind::InvalidInput`].
    invalid => InvalidInput,
    /// Short for [`ErrorKind::TooLarge`].
    too_large => TooLarge,
    /// Short for [`ErrorKind::Corrupt`].
    corrupt => Corrupt,
    /// Short for [`ErrorKind::Unsupported`].
    unsupported => Unsupported,
    /// Short for [`ErrorKind::Untrusted`].
    untrusted => Untrusted,
    /// Short for [`ErrorKind::LeaseLost`].
    lease_lost => LeaseLost,
    /// Short for [`ErrorKind::Unavailable`].
    unavailable => Unavailable,
    /// Short for [`ErrorKind::Timeout`].
    timeout => Timeout,
    /// Short for [`ErrorKind::Cancelled`].
    cancelled => Cancelled,
    /// Short for [`ErrorKind::Internal`].
    internal => Internal,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    // The cause is part of the message already, so a reporter that walks the chain starts below it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().and_then(|source| source.source())
    }
}
