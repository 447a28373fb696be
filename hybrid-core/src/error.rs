use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The one error of the crate family.
///
/// It says what kind of failure it is, which operation failed, what the operation was about, and where known
/// the underlying cause. Callers act on [`kind`](Error::kind), [`is_temporary`](Error::is_temporary) and
/// [`retry_after`](Error::retry_after); nobody parses text.
///
/// # What others said
/// The words of another side, such as the answer of a server that refuses a prompt, may quote what it was sent. They are attached as
/// [quotes](Error::quote). `{}` and `{:?}`, and so every log line, have `[withheld]` in their place; `{:#}` and `{:#?}` have them, for whoever may
/// read what customers write.
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
    message_is_quote: bool,
    context: Vec<Fact>,
    retry_after: Option<Duration>,
    in_doubt: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
    source_is_quote: bool,
}

/// A thing that an error is about.
struct Fact {
    name: &'static str,
    value: String,
    is_quote: bool,
}

/// What stands for words that are not shown.
const WITHHELD: &str = "[withheld]";

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
            message_is_quote: false,
            context: Vec::new(),
            retry_after: None,
            in_doubt: false,
            source: None,
            source_is_quote: false,
        }))
    }

    /// Names a thing that the error is about, such as `("key", key)`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push(Fact { name, value: value.to_string(), is_quote: false });
        self
    }

    /// Keeps what another side said under a name, such as `("server_says", text)`. See [what others said](Error#what-others-said).
    ///
    /// ```
    /// use hybrid_core::Error;
    ///
    /// let error = Error::unavailable("chat", "the server failed").with("status", 500).quote("server_says", "cannot read 'two loaves'");
    /// assert_eq!(error.to_string(), "chat: the server failed (status: 500, server_says: [withheld])");
    /// assert_eq!(format!("{error:#}"), "chat: the server failed (status: 500, server_says: cannot read 'two loaves')");
    /// ```
    #[must_use]
    pub fn quote(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push(Fact { name, value: value.to_string(), is_quote: true });
        self
    }

    /// Says that the message is in the words of another side, as [`quote`](Self::quote) does of a value.
    #[must_use]
    pub fn quoting(mut self) -> Self {
        self.0.message_is_quote = true;
        self
    }

    /// Attaches the underlying cause, printed after the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self.0.source_is_quote = false;
        self
    }

    /// Attaches an underlying cause whose text may quote what another side sent, such as a parser's of its answer. See [`quote`](Self::quote).
    #[must_use]
    pub fn with_quoted_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self.0.source_is_quote = true;
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
        self.0.context.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str())
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
        let whole = f.alternate();
        let shown = |is_quote: bool| whole || !is_quote;
        let message = if shown(self.0.message_is_quote) { &self.0.message } else { WITHHELD };
        write!(f, "{}: {message}", self.0.operation)?;
        for (i, Fact { name, value, is_quote }) in self.0.context.iter().enumerate() {
            let value = if shown(*is_quote) { value } else { WITHHELD };
            write!(f, "{}{name}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        match &self.0.source {
            Some(_) if !shown(self.0.source_is_quote) => write!(f, ": {WITHHELD}"),
            // A cause of the same kind keeps its own quotes to itself in the same way.
            Some(source) if whole => write!(f, ": {source:#}"),
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match f.alternate() {
            true => write!(f, "{:?}: {self:#}", self.0.kind),
            false => write!(f, "{:?}: {self}", self.0.kind),
        }
    }
}

impl StdError for Error {
    // The cause is part of the message already, so a reporter that walks the chain starts below it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.0.source.as_ref().filter(|_| !self.0.source_is_quote);
        source.and_then(|source| source.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_side_said_is_shown_to_whoever_asks_for_it_alone() {
        let inner = Error::new(ErrorKind::InvalidInput, "infer", "canary 1".to_owned()).quoting();
        let middle = Error::corrupt("read answer", "not JSON").quote("text", "canary 2").with_source(inner);
        let error = Error::unavailable("chat", "failed").with("status", 500).with_source(middle);
        assert_eq!(
            error.to_string(),
            "chat: failed (status: 500): read answer: not JSON (text: [withheld]): infer: [withheld]"
        );
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert_eq!(
            format!("{error:#}"),
            "chat: failed (status: 500): read answer: not JSON (text: canary 2): infer: canary 1"
        );
        assert!(format!("{error:#?}").contains("canary 2"));
    }

    #[test]
    fn a_quoted_cause_is_in_no_chain_of_causes() {
        let cause = std::io::Error::other(std::io::Error::other("canary"));
        let error = Error::corrupt("read answer", "not JSON").with_quoted_source(cause);
        assert_eq!(error.to_string(), "read answer: not JSON: [withheld]");
        assert!(StdError::source(&error).is_none() && format!("{error:#}").ends_with("canary"));
    }
}
