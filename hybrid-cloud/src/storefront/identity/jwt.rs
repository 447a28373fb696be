//! JSON Web Tokens (RFC 7519), signed with keys that the issuer publishes as a JWK set (RFC 7517).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_core::{Clock, DataPolicy, Error, ErrorKind, Result, TenantId};
use jsonwebtoken::{Validation, decode, errors::ErrorKind as JwtErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Authenticator, CredentialSource, Principal, Scope, jwks::KeySet};

/// A subject may have this many bytes.
const SUBJECT_BYTES: usize = 256;

/// How a token may be signed: with the issuer's private key. There is no shared-secret algorithm here, so a public key can never pass for a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum JwtAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

/// What tokens must look like.
#[derive(Clone, Debug)]
pub struct JwtOptions {
    /// Who issues them: the `iss` claim.
    pub issuer: String,
    /// Whom they are for: one of these must be in the `aud` claim.
    pub audiences: BTreeSet<String>,
    /// How they may be signed. RS256, ES256 and EdDSA by default.
    pub algorithms: BTreeSet<JwtAlgorithm>,
    /// How far the issuer's clock may be off. 60 s by default.
    pub leeway: Duration,
    /// Where the tenant stands. The claim `tenant` by default.
    pub tenant: TenantFrom,
    /// What a token without a `scope` or `scp` claim may do. Nothing by default.
    pub scopes_when_absent: BTreeSet<Scope>,
    /// The least time between two fetches of the keys for the sake of an unknown one. 60 s by default.
    pub refetch_after: Duration,
    /// How long the keys hold until they are fetched again, so that one the issuer has dropped is dropped here. 10 min by default.
    pub refresh_after: Duration,
}

impl JwtOptions {
    /// Tokens of `issuer` for `audience`, and otherwise as usual.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: [audience.into()].into(),
            algorithms: [JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa].into(),
            leeway: Duration::from_secs(60),
            tenant: TenantFrom::Claim("tenant".to_owned()),
            scopes_when_absent: BTreeSet::new(),
            refetch_after: Duration::from_secs(60),
            refresh_after: Duration::from_secs(600),
        }
    }
}

/// Where a token's tenant comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TenantFrom {
    /// From the claim of this name, which must hold a valid [`TenantId`].
    Claim(String),
    /// It is always the same.
    Fixed(TenantId),
}

/// Knows tokens of one issuer.
///
/// # Behavior
/// - A token is taken if its algorithm is allowed, a key of the set that is made for this algorithm verifies it, its issuer and audience fit, its
///   `exp` is ahead and its `nbf` is not, both by the injected clock and within the leeway. `exp`, `sub` and the tenant must be there. A token with
///   a critical extension (`crit`) is refused: none is known.
/// - The keys are fetched when the first token comes. A token with a key id that is not known has them fetched again, at most once in
///   [`refetch_after`](JwtOptions::refetch_after) whatever comes; a fetch that fails leaves the keys known in force.
/// - Anything that is not three parts with dots between them is no token of this kind.
#[derive(Debug)]
pub struct JwtAuthenticator {
    options: JwtOptions,
    keys: KeySet,
    clock: Arc<dyn Clock>,
}

impl JwtAuthenticator {
    /// Takes tokens signed with a key of the JWK set that `keys` gives.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) where the issuer, the audiences or the algorithms are empty.
    pub fn new(options: JwtOptions, keys: Arc<dyn CredentialSource>, clock: Arc<dyn Clock>) -> Result<Self> {
        let empty = [
            ("issuer", options.issuer.is_empty()),
            ("audiences", options.audiences.iter().all(String::is_empty)),
            ("algorithms", options.algorithms.is_empty()),
        ];
        if let Some((field, _)) = empty.into_iter().find(|(_, empty)| *empty) {
            return Err(Error::invalid("set up tokens", "must not be empty").with("field", field));
        }
        let keys = KeySet::new(keys, Arc::clone(&clock), options.refetch_after, options.refresh_after);
        Ok(Self { options, keys, clock })
    }

    fn principal(&self, claims: &Map<String, Value>) -> Result<Principal> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let tenant = match &self.options.tenant {
            TenantFrom::Fixed(tenant) => tenant.clone(),
            TenantFrom::Claim(name) => text(name)
                .and_then(|tenant| TenantId::new(tenant).ok())
                .ok_or_else(|| refused("the token names no valid tenant"))?,
        };
        let plain = |text: &&str| (1..=SUBJECT_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
        let subject = text("sub").filter(plain).ok_or_else(|| refused("the token names no valid subject"))?.to_owned();
        let scopes = match claims.get("scope").or_else(|| claims.get("scp")) {
            None => self.options.scopes_when_absent.clone(),
            Some(Value::String(scopes)) => known_scopes(scopes.split(' ')),
            Some(Value::Array(scopes)) => known_scopes(scopes.iter().filter_map(Value::as_str)),
            Some(_) => return Err(refused("the token's scope is neither text nor a list")),
        };
        let credential = text("jti").filter(plain).map(str::to_owned);
        Ok(Principal { tenant, subject, credential, scopes, policy: DataPolicy::Anywhere })
    }

    /// `exp` and `nbf` (RFC 7519 §4.1.4 and §4.1.5) by the injected clock: the library's own check asks the machine's.
    fn check_times(&self, claims: &Map<String, Value>) -> Result<()> {
        let number = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|seconds| seconds.is_finite()) {
                Some(seconds) => Ok(Some(seconds)),
                None => Err(refused("the token's times are not numbers")),
            },
        };
        let now = self.clock.now().unix_micros() as f64 / 1e6;
        let leeway = self.options.leeway.as_secs_f64();
        let expires = number("exp")?.ok_or_else(|| refused("the token has no expiry"))?;
        if now >= expires + leeway {
            return Err(refused("the token has expired"));
        }
        if number("nbf")?.is_some_and(|begins| now + leeway < begins) {
            return Err(refused("the token is not valid yet"));
        }
        Ok(())
    }
}

/// The scopes that this version knows; tokens carry other services' scopes too.
fn known_scopes<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<Scope> {
    names.filter_map(|name| name.parse().ok()).collect()
}

pub(super) fn refused(message: &'static str) -> Error {
    Error::new(ErrorKind::PermissionDenied, "authenticate", message)
}

/// What a token says of itself before anything of it is believed.
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

impl JwtAlgorithm {
    /// As RFC 7518 and RFC 8037 spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    fn library(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm;
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

#[async_trait]
impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, token: &str) -> Result<Option<Arc<Principal>>> {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let mut parts = token.split('.');
        let (Some(head), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Ok(None);
        };
        let head = URL_SAFE_NO_PAD.decode(head).ok().and_then(|head| serde_json::from_slice::<Header>(&head).ok());
        let Header { alg, kid, crit } = head.ok_or_else(|| refused("the token's header is malformed"))?;
        if crit.is_some() {
            return Err(refused("the token asks for an extension that is not known"));
        }
        let algorithm = self.options.algorithms.iter().copied().find(|allowed| allowed.name() == alg);
        let algorithm = algorithm.ok_or_else(|| refused("the token's algorithm is not allowed"))?;
        let key = self.keys.find(kid.as_deref(), algorithm).await?;

        let mut validation = Validation::new(algorithm.library());
        validation.set_issuer(&[&self.options.issuer]);
        validation.aud = Some(self.options.audiences.iter().cloned().collect());
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_exp = false;
        let claims = decode::<Map<String, Value>>(token, &key, &validation).map_err(|error| match error.kind() {
            JwtErrorKind::InvalidAudience => refused("the token is for another audience"),
            JwtErrorKind::InvalidIssuer => refused("the token is another issuer's"),
            JwtErrorKind::MissingRequiredClaim(claim) => refused("the token lacks a claim").with("claim", claim),
            JwtErrorKind::InvalidSignature => refused("the token's signature does not hold"),
            _ => refused("the token is malformed"),
        })?;
        self.check_times(&claims.claims)?;
        self.principal(&claims.claims).map(|principal| Some(Arc::new(principal)))
    }
}
