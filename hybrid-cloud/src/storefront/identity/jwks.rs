//! An issuer's public keys, fetched when they are needed.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    StreamExt,
    future::{Either, select},
};
use hybrid_core::{Clock, Error, Monotonic, Result};
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;
use tracing::Instrument;

use super::{
    CredentialSource,
    jwt::{JwtAlgorithm, refused},
    source::{DOCUMENT_BYTES, check_size},
};

/// What an RSA modulus must have at least, in bytes (RFC 7518 §3.3).
const RSA_BYTES: usize = 256;
/// What a fetch may take, whatever its source: while it runs no other is begun.
const FETCH_TIME: Duration = Duration::from_secs(30);

/// A JWK set that is published at a URL, as identity providers do.
#[derive(Clone)]
pub struct JwksUrl {
    url: reqwest::Url,
    client: reqwest::Client,
}

impl JwksUrl {
    /// The set at `url`, which must be `https`, or `http` on loopback. A fetch takes at most 5 s and follows no redirect.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for any other URL; [`Internal`](hybrid_core::ErrorKind::Internal) where TLS cannot be
    /// set up.
    pub fn new(url: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid("set up keys", "expected an https URL, or http on loopback")
                .with("found", format_args!("{url:?}"))
        };
        let url: reqwest::Url = url.parse().map_err(|_| invalid())?;
        let loopback = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if !(url.scheme() == "https" || url.scheme() == "http" && loopback) {
            return Err(invalid());
        }
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::internal("set up keys", "no client can be made").with_source(error))?;
        Ok(Self { url, client })
    }
}

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JwksUrl").field(&self.url.as_str()).finish()
    }
}

#[async_trait]
impl CredentialSource for JwksUrl {
    async fn fetch(&self) -> Result<Vec<u8>> {
        let away = |error: reqwest::Error| {
            Error::unavailable("fetch keys", "the issuer's keys cannot be fetched")
                .with("url", &self.url)
                .with_source(error)
        };
        let answer = self.client.get(self.url.clone()).send().await.map_err(away)?;
        if !answer.status().is_success() {
            return Err(Error::unavailable("fetch keys", "the issuer's keys are not there")
                .with("url", &self.url)
                .with("status", answer.status().as_u16()));
        }
        let mut chunks = answer.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(away)?;
            check_size(bytes.len().saturating_add(chunk.len()).min(DOCUMENT_BYTES + 1))?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// The keys of one issuer.
///
/// A fetch runs in a task of its own: whoever made it necessary may hang up, and what it costs, in time until the next one, must not be lost.
#[derive(Debug)]
pub(super) struct KeySet {
    known: Arc<Known>,
    refetch_after: Duration,
    refresh_after: Duration,
    /// When the last fetch was begun, successful or not. Whoever holds the lock fetches.
    asked: Arc<tokio::sync::Mutex<Option<Monotonic>>>,
}

/// The keys known now, and where they come from.
#[derive(Debug)]
struct Known {
    source: Arc<dyn CredentialSource>,
    clock: Arc<dyn Clock>,
    keys: RwLock<Arc<[Jwk]>>,
    /// When they were fetched.
    fetched: RwLock<Option<Monotonic>>,
}

impl KeySet {
    pub(super) fn new(
        source: Arc<dyn CredentialSource>,
        clock: Arc<dyn Clock>,
        refetch_after: Duration,
        refresh_after: Duration,
    ) -> Self {
        let known = Known { source, clock, keys: RwLock::new(Arc::new([])), fetched: RwLock::default() };
        Self { known: Arc::new(known), refetch_after, refresh_after, asked: Arc::default() }
    }

    /// The key called `id` for `algorithm`, or where a token names none the only one that there is for it.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: JwtAlgorithm) -> Result<DecodingKey> {
        let old = self.known.fetched().is_some_and(|at| self.known.clock.monotonic().since(at) >= self.refresh_after);
        if old && let Ok(asked) = Arc::clone(&self.asked).try_lock_owned() {
            // The keys known stay in force, and one caller alone waits.
            let _ = self.fetch(asked).await;
        }
        if let Some(key) = self.known.look_up(id, algorithm)? {
            return Ok(key);
        }
        let asked = Arc::clone(&self.asked).lock_owned().await;
        // Somebody may have fetched them meanwhile.
        if let Some(key) = self.known.look_up(id, algorithm)? {
            return Ok(key);
        }
        self.fetch(asked).await?;
        self.known.look_up(id, algorithm)?.ok_or_else(|| refused("the token's key is not known"))
    }

    /// Fetches the keys unless that was tried a short while ago.
    ///
    /// # Errors
    /// Those of the source, where there are no keys yet that could stay in force.
    ///
    /// # Cancel safety
    /// A fetch that was begun goes on when the future is dropped.
    async fn fetch(&self, mut asked: OwnedMutexGuard<Option<Monotonic>>) -> Result<()> {
        let now = self.known.clock.monotonic();
        if let Some(ago) = asked.map(|asked| now.since(asked)).filter(|ago| *ago < self.refetch_after) {
            let away = Error::unavailable("fetch keys", "the issuer's keys could not be fetched a short while ago");
            let none = self.known.fetched().is_none();
            return if none { Err(away.with_retry_after(self.refetch_after.saturating_sub(ago))) } else { Ok(()) };
        }
        *asked = Some(now);
        let known = Arc::clone(&self.known);
        let fetch = async move {
            let outcome = known.fetch(now).await;
            // Held until here, so that whoever waits for it finds the new keys.
            drop(asked);
            outcome
        };
        tokio::spawn(fetch.in_current_span())
            .await
            .map_err(|error| Error::internal("fetch keys", "the fetch broke off").with_source(error))?
    }
}

impl Known {
    async fn fetch(&self, now: Monotonic) -> Result<()> {
        let fresh = match select(self.source.fetch(), self.clock.sleep(FETCH_TIME)).await {
            Either::Left((Ok(bytes), _)) => parse(&bytes),
            Either::Left((Err(error), _)) => Err(error),
            Either::Right(_) => Err(Error::timeout("fetch keys", "the source did not answer in time")
                .with("limit", format_args!("{FETCH_TIME:?}"))),
        };
        match fresh {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
                *self.fetched.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the issuer's keys could not be fetched; those known stay in force");
                if self.fetched().is_none() {
                    Err(Error::unavailable("fetch keys", "there are no keys yet").with_source(error))
                } else {
                    Ok(())
                }
            }
        }
    }

    fn fetched(&self) -> Option<Monotonic> {
        *self.fetched.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_up(&self, id: Option<&str>, algorithm: JwtAlgorithm) -> Result<Option<DecodingKey>> {
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let mut fitting = keys
            .iter()
            .filter(|key| id.is_none_or(|id| key.common.key_id.as_deref() == Some(id)) && fits(key, algorithm));
        match (fitting.next(), fitting.next()) {
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(refused("the token does not say which key signed it")),
            (Some(key), None) => {
                DecodingKey::from_jwk(key).map(Some).map_err(|_| refused("the token's key cannot be used"))
            }
        }
    }
}

/// Whether a key is one for `algorithm`: a token's header does not choose how a key is used.
fn fits(key: &Jwk, algorithm: JwtAlgorithm) -> bool {
    let kind = match (&key.algorithm, algorithm) {
        (
            AlgorithmParameters::RSA(rsa),
            JwtAlgorithm::Rs256 | JwtAlgorithm::Rs384 | JwtAlgorithm::Rs512 | JwtAlgorithm::Ps256,
        ) => rsa.n.len() * 3 / 4 >= RSA_BYTES,
        (AlgorithmParameters::EllipticCurve(curve), JwtAlgorithm::Es256) => curve.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(curve), JwtAlgorithm::Es384) => curve.curve == EllipticCurve::P384,
        (AlgorithmParameters::OctetKeyPair(pair), JwtAlgorithm::EdDsa) => pair.curve == EllipticCurve::Ed25519,
        _ => false,
    };
    let common = &key.common;
    let named = match &common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::RS256) => algorithm == JwtAlgorithm::Rs256,
        Some(KeyAlgorithm::RS384) => algorithm == JwtAlgorithm::Rs384,
        Some(KeyAlgorithm::RS512) => algorithm == JwtAlgorithm::Rs512,
        Some(KeyAlgorithm::PS256) => algorithm == JwtAlgorithm::Ps256,
        Some(KeyAlgorithm::ES256) => algorithm == JwtAlgorithm::Es256,
        Some(KeyAlgorithm::ES384) => algorithm == JwtAlgorithm::Es384,
        Some(KeyAlgorithm::EdDSA) => algorithm == JwtAlgorithm::EdDsa,
        Some(_) => false,
    };
    let signs = !matches!(common.public_key_use, Some(PublicKeyUse::Encryption))
        && common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    kind && named && signs
}

/// A JWK set. A key of a kind that is not known is passed over, as RFC 7517 §5 asks.
fn parse(bytes: &[u8]) -> Result<Vec<Jwk>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt("fetch keys", "the document is no JWK set").with_source(error))?;
    Ok(set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}
