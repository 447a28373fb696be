//! Channels: which version is in service, as an append-only sequence of signed statements.

mod floor;
mod reader;
mod renewal;
mod statement;

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use hybrid_core::{
    ChannelName, Digest, Error, ErrorKind, IdSource, Key, ListOptions, ModelName, Result, Signer, Timestamp, Verdict,
};

pub use self::{
    floor::{FileFloor, Floor, FloorStore, MemoryFloor},
    reader::{ChannelReader, Look},
    renewal::Renewer,
    statement::{Head, Statement},
};
use super::{PublicKey, Registry, settle::Settled};

const APPEND: &str = "append to channel";
/// How far back a retry looks for what it has appended already.
const LOOK_BACK: usize = 32;

/// One channel of one model: its writer's side. Readers use [`ChannelReader`].
///
/// ```no_run
/// use std::time::Duration;
/// use hybrid_core::{ChannelName, Clock, Digest, Result, SystemClock, SystemIds};
/// use hybrid_sync::registry::{FileSigner, Registry, Release};
///
/// # async fn release(registry: Registry, release_key: FileSigner, version: Digest) -> Result<()> {
/// let channel = registry.channel(&"bakery".parse()?, &ChannelName::stable());
/// let in_service = channel.head(&[release_key.public_key().clone()]).await?.map(|head| head.statement.manifest);
/// let release = Release::new(version, in_service, "better on the golden set", &SystemIds::default());
/// channel.append(release, &release_key, SystemClock.now(), Duration::from_secs(90 * 24 * 3600)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Channel {
    registry: Registry,
    model: ModelName,
    name: ChannelName,
    releases: Vec<PublicKey>,
}

/// What is to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The version to put in service: a new one, or an old one to roll back to.
    pub manifest: Digest,
    /// The version that is in service and that the decision rests on; `None` for a channel that has none yet.
    pub incumbent: Option<Digest>,
    /// Why, for people.
    pub why: String,
    /// Names this release. A retry with the same nonce, such as the job's id, finds the statement that an earlier try has appended.
    pub nonce: String,
}

impl Release {
    /// A release with a fresh nonce.
    pub fn new(manifest: Digest, incumbent: Option<Digest>, why: impl Into<String>, ids: &dyn IdSource) -> Self {
        Self { manifest, incumbent, why: why.into(), nonce: ids.next_uuid().to_string() }
    }
}

impl Channel {
    pub(super) fn new(registry: Registry, model: ModelName, name: ChannelName) -> Self {
        Self { registry, model, name, releases: Vec::new() }
    }

    /// Also accepts statements that were signed by these keys as what to continue, beside those of the key that signs; for a change of keys.
    #[must_use]
    pub fn with_release_keys(mut self, keys: impl IntoIterator<Item = PublicKey>) -> Self {
        self.releases.extend(keys);
        self
    }

    /// The model.
    pub fn model(&self) -> &ModelName {
        &self.model
    }

    /// The channel's name.
    pub fn name(&self) -> &ChannelName {
        &self.name
    }

    /// Appends a statement that puts a version in service, valid from `issued` for `valid_for`.
    ///
    /// # Behavior
    /// - The version must be published, of this model, and not refused by its own verdict.
    /// - Of any number of writers at one number exactly one wins. An answer that leaves doubt is resolved by reading back.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) if another statement won the number, or the channel names another version than
    /// [`Release::incumbent`]: read, judge again, and decide again. [`Untrusted`](ErrorKind::Untrusted) if the newest statement is not signed by a
    /// known key; [`NotFound`](ErrorKind::NotFound) for a version that was not published; those of store and signer.
    pub async fn append(
        &self,
        release: Release,
        signer: &dyn Signer,
        issued: Timestamp,
        valid_for: Duration,
    ) -> Result<Head> {
        self.check_version(release.manifest).await?;
        let keys = self.keys(signer)?;
        let head = self.head(&keys).await?;
        if let Some(head) = &head
            && let Some(earlier) = self.find(head, &release).await?
        {
            return Ok(earlier);
        }
        let current = head.as_ref().map(|head| head.statement.manifest);
        if current != release.incumbent {
            return Err(self
                .error(
                    ErrorKind::AlreadyExists,
                    "the channel names another version than the one compared with; judge against it and try again",
                )
                .with("incumbent", display(release.incumbent))
                .with("in service", display(current)));
        }
        self.append_after(head, release, signer, issued, valid_for, &keys).await
    }

    /// Signs the version in service again, so that its statement does not expire. `nonce` as in [`Release::nonce`].
    ///
    /// # Errors
    /// As [`append`](Self::append); [`NotFound`](ErrorKind::NotFound) for a channel without a statement.
    pub async fn renew(
        &self,
        nonce: impl Into<String>,
        signer: &dyn Signer,
        issued: Timestamp,
        valid_for: Duration,
    ) -> Result<Head> {
        let keys = self.keys(signer)?;
        let head = self.head(&keys).await?.ok_or_else(|| {
            self.error(ErrorKind::NotFound, "the channel has no statement to renew; append one first")
        })?;
        let manifest = head.statement.manifest;
        let release = Release { manifest, incumbent: Some(manifest), why: "renewal".to_owned(), nonce: nonce.into() };
        if let Some(earlier) = self.find(&head, &release).await? {
            return Ok(earlier);
        }
        self.append_after(Some(head), release, signer, issued, valid_for, &keys).await
    }

    /// The newest statement, if one of `keys` has signed it; `None` for an empty channel. For writers and displays: it keeps no floor.
    ///
    /// # Errors
    /// [`Untrusted`](ErrorKind::Untrusted) if no such key has signed it; those of the store.
    pub async fn head(&self, keys: &[PublicKey]) -> Result<Option<Head>> {
        let Some(seq) = self.numbers().await?.last().copied() else { return Ok(None) };
        match self.read_object(seq).await? {
            Some(bytes) => self.open_statement(seq, &bytes, |bytes| Statement::verify(bytes, keys)).map(Some),
            None => Ok(None),
        }
    }

    /// The channel's whole history, oldest first: the newest statement signed by one of `keys`, the others vouched for by the chain of digests.
    ///
    /// # Errors
    /// As [`head`](Self::head), and [`Untrusted`](ErrorKind::Untrusted) for a gap or a broken chain.
    pub async fn history(&self, keys: &[PublicKey]) -> Result<Vec<Head>> {
        reader::read_all(self, keys).await
    }

    async fn append_after(
        &self,
        head: Option<Head>,
        release: Release,
        signer: &dyn Signer,
        issued: Timestamp,
        valid_for: Duration,
        keys: &[PublicKey],
    ) -> Result<Head> {
        let statement = Statement {
            model: self.model.clone(),
            channel: self.name.clone(),
            seq: head.as_ref().map_or(1, |head| head.statement.seq + 1),
            prev: head.as_ref().map(|head| head.digest),
            manifest: release.manifest,
            incumbent: release.incumbent,
            issued,
            expires: issued.plus(valid_for),
            nonce: release.nonce,
            why: release.why,
        };
        let key = self.key(statement.seq)?;
        let bytes = statement.sign(signer).await?;
        match self.registry.create_settled(&key, &bytes).await? {
            Settled::Created | Settled::Same => Ok(Head { digest: Digest::of(&bytes), statement }),
            Settled::Other(found) => {
                let winner = Statement::verify(&found, keys).map_err(|error| error.with("key", &key))?;
                if winner.nonce == statement.nonce && winner.manifest == statement.manifest {
                    return Ok(Head { digest: Digest::of(&found), statement: winner });
                }
                Err(self
                    .error(
                        ErrorKind::AlreadyExists,
                        "another writer has taken the number; read the channel and decide again",
                    )
                    .with("key", key)
                    .with("winner", winner.manifest))
            }
        }
    }

    /// The statement of an earlier try of this release.
    async fn find(&self, head: &Head, release: &Release) -> Result<Option<Head>> {
        let mut at = head.clone();
        for _ in 0..LOOK_BACK {
            if at.statement.nonce == release.nonce && at.statement.manifest == release.manifest {
                return Ok(Some(at));
            }
            let (Some(prev), seq) = (at.statement.prev, at.statement.seq - 1) else { break };
            let Some(bytes) = self.read_object(seq).await? else { break };
            prev.verify(APPEND, &bytes).map_err(|error| error.with("seq", seq))?;
            at = self.open_statement(seq, &bytes, Statement::pinned)?;
        }
        Ok(None)
    }

    async fn check_version(&self, digest: Digest) -> Result<()> {
        let manifest = self.registry.manifest(digest).await?;
        if manifest.model != self.model {
            return Err(self
                .error(ErrorKind::InvalidInput, "the version is of another model")
                .with("manifest", digest)
                .with("its model", manifest.model));
        }
        match manifest.verdict.map(|record| record.verdict) {
            Some(Verdict::Refuse(reason)) => Err(self
                .error(ErrorKind::InvalidInput, "the version's own verdict refuses it")
                .with("manifest", digest)
                .with("reason", reason)),
            Some(_) => Ok(()),
            None => Err(self.error(ErrorKind::InvalidInput, "the version has no verdict").with("manifest", digest)),
        }
    }

    /// The numbers that are taken, in order.
    async fn numbers(&self) -> Result<Vec<u64>> {
        let prefix = self.prefix();
        let objects: Vec<_> = self.registry.store.list(&prefix, ListOptions::default()).try_collect().await?;
        Ok(objects.iter().filter_map(|meta| parse_number(meta.key.as_str().strip_prefix(&prefix)?)).collect())
    }

    async fn read_object(&self, seq: u64) -> Result<Option<Bytes>> {
        match self.registry.read(&self.key(seq)?).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a statement's bytes and checks that it stands where it says it does.
    fn open_statement(&self, seq: u64, bytes: &Bytes, open: impl FnOnce(&[u8]) -> Result<Statement>) -> Result<Head> {
        let statement = match (open(bytes), self.key(seq)) {
            (Ok(statement), _) => statement,
            (Err(error), Ok(key)) => return Err(error.with("key", key)),
            (Err(error), Err(_)) => return Err(error),
        };
        if (&statement.model, &statement.channel, statement.seq) != (&self.model, &self.name, seq) {
            return Err(self
                .error(ErrorKind::Untrusted, "the statement was signed for another place")
                .with("seq", seq)
                .with(
                    "signed for",
                    format_args!("{}/{} number {}", statement.model, statement.channel, statement.seq),
                ));
        }
        Ok(Head { digest: Digest::of(bytes), statement })
    }

    fn keys(&self, signer: &dyn Signer) -> Result<Vec<PublicKey>> {
        let mut keys = self.releases.clone();
        keys.push(PublicKey::from_pem(signer.public_key_pem())?);
        Ok(keys)
    }

    fn prefix(&self) -> String {
        self.registry.namespace.prefix(&format!("channels/{}/{}/", self.model, self.name))
    }

    fn key(&self, seq: u64) -> Result<Key> {
        Key::new(format!("{}{seq:020}", self.prefix()))
    }

    fn error(&self, kind: ErrorKind, message: &'static str) -> Error {
        Error::new(kind, APPEND, message).with("channel", format_args!("{}/{}", self.model, self.name))
    }
}

fn parse_number(text: &str) -> Option<u64> {
    (text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn display(digest: Option<Digest>) -> String {
    digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string())
}
