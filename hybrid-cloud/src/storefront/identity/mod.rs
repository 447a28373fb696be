//! Who a request comes from.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{DataPolicy, Error, Result, TenantId};
use serde::{Deserialize, Serialize};

#[cfg(feature = "jwt")]
mod jwks;
#[cfg(feature = "jwt")]
mod jwt;
mod keys;
mod source;

#[cfg(feature = "jwt")]
pub use jwks::JwksUrl;
#[cfg(feature = "jwt")]
pub use jwt::{JwtAlgorithm, JwtAuthenticator, JwtOptions, TenantFrom};
pub(super) use keys::is_key;
pub use keys::{ApiKeys, KeyList, KeyRecord, NewKey};
pub use source::{CredentialFile, CredentialSource};

/// Says who sends a bearer token: the port between the storefront and whatever knows its customers.
///
/// A storefront may have several; they are asked in the order in which they were given.
///
/// # Behavior
/// - `Ok(Some(principal))`: the token is genuine, in force, and `principal`'s. Its tenant is the tenant of everything the request does.
/// - `Ok(None)`: this is no token of the kind that this authenticator knows; the next one is asked. When none is left the request is refused.
/// - [`PermissionDenied`](hybrid_core::ErrorKind::PermissionDenied): a token of this kind that does not hold; nobody else is asked. The caller is
///   shown the error's message, so it says no more than the holder of this very token may know.
/// - Every other error means that it could not be found out: the caller is told to try again, and is let in nowhere.
/// - The token is untrusted text of at most 16 KiB without blanks. It goes into no log and no error.
///
/// # Cancel safety
/// The future may be dropped at any point, as when the client hangs up.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Who sends `token`.
    async fn authenticate(&self, token: &str) -> Result<Option<Arc<Principal>>>;
}

/// Who a request comes from and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose data the request sees and makes.
    pub tenant: TenantId,
    /// Who within the tenant, such as a key's name or a token's subject; for logs and the audit, never a secret.
    pub subject: String,
    /// Which of its credentials it sent, by its public name, such as an API key's id or a token's `jti`; never a secret.
    pub credential: Option<String>,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// Where its data may go, on top of the storefront's own policy: both must admit a place.
    pub policy: DataPolicy,
}

impl Principal {
    /// Somebody of `tenant` with the [usual scopes](Scope::USUAL), whose data is held to the storefront's policy alone.
    pub fn new(tenant: TenantId, subject: impl Into<String>) -> Self {
        Self {
            tenant,
            subject: subject.into(),
            credential: None,
            scopes: Scope::USUAL.into(),
            policy: DataPolicy::Anywhere,
        }
    }

    /// The same with `scopes` alone.
    #[must_use]
    pub fn with_scopes(mut self, scopes: impl IntoIterator<Item = Scope>) -> Self {
        self.scopes = scopes.into_iter().collect();
        self
    }
}

/// What a request may do; each [route](super::Storefront::routes) asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
#[non_exhaustive]
pub enum Scope {
    /// `models.read`: see which models there are.
    ModelsRead,
    /// `inference`: ask models, which costs money.
    Inference,
    /// `judgments.write`: record what an expert decided.
    JudgmentsWrite,
    /// `jobs`: submit work to the kitchen and collect its results.
    Jobs,
    /// `files`: store files and read them.
    Files,
    /// `vectors`: keep documents, find the nearest of them, remove them. What texts cost to embed is the tenant's.
    Vectors,
    /// `records`: keep records, read and remove them.
    Records,
    /// `tenant.admin`: take all of the tenant's records away, and remove all of its records and documents. Nobody has it to whom it was not given by name.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 8] = [
        Self::ModelsRead,
        Self::Inference,
        Self::JudgmentsWrite,
        Self::Jobs,
        Self::Files,
        Self::Vectors,
        Self::Records,
        Self::Admin,
    ];

    /// Every scope but [`Admin`](Self::Admin): what one has who was given none by name.
    pub const USUAL: [Self; 7] = {
        let [usual @ .., Self::Admin] = Self::ALL else { panic!("the last is not the administrator's") };
        usual
    };

    /// The scope as it stands in a token or a key's record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ModelsRead => "models.read",
            Self::Inference => "inference",
            Self::JudgmentsWrite => "judgments.write",
            Self::Jobs => "jobs",
            Self::Files => "files",
            Self::Vectors => "vectors",
            Self::Records => "records",
            // Tokens carry other services' scopes too, and some have a plain `admin`.
            Self::Admin => "tenant.admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| {
            let known =
                "expected models.read, inference, judgments.write, jobs, files, vectors, records or tenant.admin";
            Error::invalid("parse scope", known).with("found", format_args!("{text:?}"))
        })
    }
}

impl From<Scope> for &'static str {
    fn from(scope: Scope) -> Self {
        scope.as_str()
    }
}

impl TryFrom<String> for Scope {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}
