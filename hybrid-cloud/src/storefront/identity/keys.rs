//! API keys.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{Cancellation, Clock, DataPolicy, Digest, Document, Error, ErrorKind, Result, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{Authenticator, CredentialSource, Principal, Scope};

const PREFIX: &str = "hk_";
/// The digits of RFC 4648's base32, in lower case: no two of them look alike in most types, and a double click selects the whole key.
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_BYTES: usize = 10;
const SECRET_BYTES: usize = 32;
/// 16 and 52 digits: five bits each.
const ID_DIGITS: usize = (ID_BYTES * 8).div_ceil(5);
const KEY_LENGTH: usize = PREFIX.len() + ID_DIGITS + 1 + (SECRET_BYTES * 8).div_ceil(5);

/// Whether `text` has the form of an API key.
pub(in crate::storefront) fn is_key(text: &str) -> bool {
    let base32 = |part: &str| part.bytes().all(|byte| DIGITS.contains(&byte));
    text.len() == KEY_LENGTH
        && text
            .strip_prefix(PREFIX)
            .and_then(|digits| digits.split_once('_'))
            .is_some_and(|(id, secret)| id.len() == ID_DIGITS && base32(id) && base32(secret))
}

/// What is kept of an API key: enough to know it again, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The key's public part, by which it is found and by which logs name it.
    pub id: String,
    /// SHA-256 of the whole key. A key has 256 random bits, so there is nothing that a slower hash would protect.
    pub sha256: Digest,
    /// Whose key it is.
    pub tenant: TenantId,
    /// Who within the tenant. Several keys may be one subject's: the old and the new while they are exchanged.
    pub subject: String,
    /// What it may do; everything but [`Admin`](Scope::Admin) where absent.
    #[serde(default = "usual_scopes")]
    pub scopes: BTreeSet<Scope>,
    /// Where data may go on top of the storefront's policy; wherever that allows where absent.
    #[serde(default)]
    pub policy: DataPolicy,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it no longer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// From when on it was called back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

fn usual_scopes() -> BTreeSet<Scope> {
    Scope::USUAL.into()
}

/// The document that [`ApiKeys`] reads: `{"format": "hybrid.api-keys/1", "keys": [record, …]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// The records.
    pub keys: Vec<KeyRecord>,
}

impl Document for KeyList {
    const FORMAT: &'static str = "hybrid.api-keys";
    const MAJOR: u32 = 1;
}

/// A fresh key, whose text exists nowhere else.
pub struct NewKey {
    key: String,
    record: KeyRecord,
}

impl NewKey {
    /// A key for `subject` of `tenant`, from the operating system's random numbers: `hk_`, a public id, `_`, a secret of 256 bits.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) if the system has no random numbers.
    pub fn generate(tenant: TenantId, subject: impl Into<String>, now: Timestamp) -> Result<Self> {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut random)
            .map_err(|error| Error::internal("make key", "the system gives no random numbers").with_source(error))?;
        let (id, secret) = random.split_at(ID_BYTES);
        let id = base32(id);
        let key = format!("{PREFIX}{id}_{}", base32(secret));
        let record = KeyRecord {
            sha256: Digest::of(key.as_bytes()),
            id,
            tenant,
            subject: subject.into(),
            scopes: usual_scopes(),
            policy: DataPolicy::Anywhere,
            created: now,
            expires: None,
            revoked: None,
        };
        Ok(Self { key, record })
    }

    /// The key itself, to be shown once to whoever will use it.
    pub fn reveal(&self) -> &str {
        &self.key
    }

    /// What to put into the [list](KeyList).
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("record", &self.record).finish_non_exhaustive()
    }
}

fn base32(bytes: &[u8]) -> String {
    let (mut text, mut held, mut bits) = (String::new(), 0u16, 0);
    for &byte in bytes {
        held = held << 8 | u16::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(DIGITS[usize::from(held >> bits & 31)]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(DIGITS[usize::from(held << (5 - bits) & 31)]));
    }
    text
}

/// Knows API keys by their hashes.
///
/// # Behavior
/// - Any number of keys may be in force for one subject, so a key is exchanged without a moment in which none holds: add the new record, move the
///   client, set `revoked` or `expires` of the old one.
/// - What changes in the source counts from the next [`reload`](Self::reload) on; [`reload_every`](Self::reload_every) does it all the time. A source
///   that fails leaves the keys as they were.
/// - A key is compared in constant time, and one that is unknown takes as long as one that is known.
#[derive(Debug)]
pub struct ApiKeys {
    source: Arc<dyn CredentialSource>,
    clock: Arc<dyn Clock>,
    known: RwLock<Arc<HashMap<String, Known>>>,
}

#[derive(Debug)]
struct Known {
    sha256: Digest,
    expires: Option<Timestamp>,
    revoked: Option<Timestamp>,
    principal: Arc<Principal>,
}

impl ApiKeys {
    /// The keys in a [`KeyList`] that `source` gives.
    ///
    /// # Errors
    /// Those of the source; [`Corrupt`](ErrorKind::Corrupt) if it is no such list, [`InvalidInput`](ErrorKind::InvalidInput) that names a record
    /// with a malformed or repeated id.
    pub async fn open(source: Arc<dyn CredentialSource>, clock: Arc<dyn Clock>) -> Result<Self> {
        let known = RwLock::new(Arc::new(read(&source.fetch().await?)?));
        Ok(Self { source, clock, known })
    }

    /// Reads the source again.
    ///
    /// # Errors
    /// As [`open`](Self::open); the keys stay as they were.
    pub async fn reload(&self) -> Result<()> {
        let fresh = Arc::new(read(&self.source.fetch().await?)?);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Reads the source again every `interval`, and warns when it fails, until `stop` is raised: for a task of its own.
    pub async fn reload_every(&self, interval: Duration, stop: Cancellation) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.clock.sleep(interval) => {}
            }
            if let Err(error) = self.reload().await {
                tracing::warn!(%error, "the API keys could not be read again; those known stay in force");
            }
        }
    }
}

fn read(bytes: &[u8]) -> Result<HashMap<String, Known>> {
    let list = KeyList::decode(bytes)?;
    let mut known = HashMap::with_capacity(list.keys.len());
    for KeyRecord { id, sha256, tenant, subject, scopes, policy, created: _, expires, revoked } in list.keys {
        let plain = id.len() == ID_DIGITS && id.bytes().all(|byte| DIGITS.contains(&byte));
        if !plain || known.contains_key(&id) {
            let message = if plain { "two records have one id" } else { "an id must be 16 digits of base32" };
            return Err(Error::invalid("read keys", message).with("id", format_args!("{id:?}")));
        }
        let principal = Arc::new(Principal { tenant, subject, credential: Some(id.clone()), scopes, policy });
        known.insert(id, Known { sha256, expires, revoked, principal });
    }
    Ok(known)
}

#[async_trait]
impl Authenticator for ApiKeys {
    async fn authenticate(&self, token: &str) -> Result<Option<Arc<Principal>>> {
        let refuse = |message: &'static str| Err(Error::new(ErrorKind::PermissionDenied, "authenticate", message));
        if !token.starts_with(PREFIX) {
            return Ok(None);
        }
        let known = Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner));
        let sent = Digest::of(token.as_bytes());
        let id = token.get(PREFIX.len()..PREFIX.len() + ID_DIGITS).filter(|_| token.len() == KEY_LENGTH);
        let found = id.and_then(|id| known.get(id));
        let expected = found.map_or([0; 32], |known| *known.sha256.as_bytes());
        let same = bool::from(sent.as_bytes().ct_eq(&expected));
        let Some(key) = found.filter(|_| same) else { return refuse("this API key is not known") };
        // Only whoever has the whole key comes as far as here.
        let now = self.clock.now();
        if key.revoked.is_some_and(|revoked| revoked <= now) {
            return refuse("this API key is revoked");
        }
        if key.expires.is_some_and(|expires| expires <= now) {
            return refuse("this API key has expired");
        }
        Ok(Some(Arc::clone(&key.principal)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_rfc_4648_without_padding() {
        for (bytes, text) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_new_key_has_the_documented_form_and_does_not_print_itself() {
        let now = Timestamp::UNIX_EPOCH;
        let key = NewKey::generate(TenantId::single(), "shop", now).unwrap();
        assert!(is_key(key.reveal()) && key.reveal().len() == KEY_LENGTH);
        assert!(!is_key(&key.reveal().to_uppercase()) && !is_key(&key.reveal()[1..]));
        assert_eq!(key.record().sha256, Digest::of(key.reveal().as_bytes()));
        assert!(!format!("{key:?}").contains(key.reveal()));
        assert_ne!(key.reveal(), NewKey::generate(TenantId::single(), "shop", now).unwrap().reveal());
    }
}
