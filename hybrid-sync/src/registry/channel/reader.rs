//! The reader's side of a channel.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{Clock, Digest, Error, ErrorKind, Result, Timestamp};

use super::{
    super::{PublicKey, Trust, files::blocking},
    Channel, Floor, FloorStore, Head, Statement,
};

const READ: &str = "read channel";
/// How far a signer's clock may be ahead of the reader's.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(10 * 60);
/// How much later the time must be before it alone is worth a write to disk.
const TIME_STEP: Duration = Duration::from_secs(60 * 60);

/// Follows one channel and refuses to be led back.
///
/// # Behavior
/// - A reader never accepts a number below one it has seen, another statement at the same number, a gap, or a statement that does not continue the
///   one before it. Each is [`Untrusted`](ErrorKind::Untrusted) and names the number.
/// - A statement that has expired, or was issued in the future, does not put a *new* version in service. The version accepted before stays, and
///   the look says that it is stale.
/// - Expiry is measured against the latest time seen, which survives restarts and never moves back. It is remembered up to the expiry of the statement
///   accepted last: that is enough to stay stale, and a clock that once jumped ahead by years bars no later release.
/// - What was accepted is saved before it is returned.
#[derive(Debug)]
pub struct ChannelReader {
    channel: Channel,
    releases: Vec<PublicKey>,
    store: Arc<dyn FloorStore>,
    clock: Arc<dyn Clock>,
    floor: Option<Floor>,
}

/// What a look at a channel found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The floor after the look: the newest statement accepted.
    pub floor: Floor,
    /// The newest statement, if it is newer than the floor was.
    pub news: Option<Head>,
    /// The newest statement has expired: nothing fresh has been heard for too long.
    pub stale: bool,
}

impl ChannelReader {
    /// A reader of `channel` that trusts the release keys of `trust` and starts from the floor in `store`.
    ///
    /// # Errors
    /// Those of loading the floor.
    pub async fn open(
        channel: Channel,
        trust: &Trust,
        store: Arc<dyn FloorStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let floor = blocking({
            let store = Arc::clone(&store);
            move || store.load()
        })
        .await?;
        Ok(Self { channel, releases: trust.releases.clone(), store, clock, floor })
    }

    /// What has been accepted so far.
    pub fn floor(&self) -> Option<&Floor> {
        self.floor.as_ref()
    }

    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(super) fn releases(&self) -> &[PublicKey] {
        &self.releases
    }

    /// The latest time seen: the clock's, unless it was later before.
    pub fn now(&self) -> Timestamp {
        let now = self.clock.now();
        self.floor.as_ref().map_or(now, |floor| floor.time.max(now))
    }

    /// Looks at the channel once and accepts what is newer.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for a channel without a statement, [`Untrusted`](ErrorKind::Untrusted) for what must not be accepted;
    /// those of the store. After an error the floor is what it was.
    pub async fn look(&mut self) -> Result<Look> {
        let now = self.now();
        let news = match &self.floor {
            Some(floor) => self.read_on(floor).await?,
            None => read_all(&self.channel, &self.releases).await?.pop(),
        };
        let Some(head) = news else {
            let Some(mut floor) = self.floor.clone() else {
                return Err(error(&self.channel, ErrorKind::NotFound, "the channel has no statement yet"));
            };
            let time = remembered(now, floor.expires);
            if time.since(floor.time) >= TIME_STEP {
                floor.time = time;
                self.save(floor.clone()).await?;
            }
            let stale = is_stale(&floor, now);
            return Ok(Look { floor, news: None, stale });
        };
        let statement = &head.statement;
        if statement.issued > now.plus(CLOCK_TOLERANCE) {
            return Err(error(
                &self.channel,
                ErrorKind::Untrusted,
                "the statement was issued in the future; check this machine's clock and the signer's",
            )
            .with("seq", statement.seq)
            .with("issued", statement.issued)
            .with("now", now)
            .with("clock", self.clock.now()));
        }
        let is_known = self.floor.as_ref().is_some_and(|floor| floor.manifest == statement.manifest);
        if now >= statement.expires && !is_known {
            return Err(error(
                &self.channel,
                ErrorKind::Untrusted,
                "the newest statement has expired and puts no new version in service; renew the channel",
            )
            .with("seq", statement.seq)
            .with("manifest", statement.manifest)
            .with("expired", statement.expires)
            .with("now", now)
            .with("clock", self.clock.now()));
        }
        let floor = Floor {
            seq: statement.seq,
            statement: head.digest,
            manifest: statement.manifest,
            expires: Some(statement.expires),
            time: remembered(now, Some(statement.expires)).max(statement.issued),
            serving: self.floor.as_ref().and_then(|floor| floor.serving),
        };
        self.save(floor.clone()).await?;
        let stale = is_stale(&floor, now);
        Ok(Look { floor, news: Some(head), stale })
    }

    /// Remembers which version is in service.
    ///
    /// # Errors
    /// Those of saving the floor.
    pub async fn set_serving(&mut self, manifest: Digest) -> Result<()> {
        match self.floor.clone() {
            Some(floor) if floor.serving != Some(manifest) => {
                self.save(Floor { serving: Some(manifest), ..floor }).await
            }
            _ => Ok(()),
        }
    }

    /// The last of the statements after the floor, which must still be where it was.
    async fn read_on(&self, floor: &Floor) -> Result<Option<Head>> {
        let Some(known) = self.channel.read_object(floor.seq).await? else {
            return Err(error(
                &self.channel,
                ErrorKind::Untrusted,
                "a statement that was accepted before is gone: the channel was rolled back",
            )
            .with("seq", floor.seq)
            .with("statement", floor.statement));
        };
        let found = Digest::of(&known);
        if found != floor.statement {
            return Err(error(
                &self.channel,
                ErrorKind::Untrusted,
                "another statement stands where one was accepted before: the channel was forked",
            )
            .with("seq", floor.seq)
            .with("expected", floor.statement)
            .with("found", found));
        }
        let mut objects = Vec::new();
        while let Some(next) = self.channel.read_object(floor.seq + 1 + objects.len() as u64).await? {
            objects.push(next);
        }
        Ok(open_chain(&self.channel, floor.seq + 1, Some(floor.statement), &objects, &self.releases)?.pop())
    }

    async fn save(&mut self, floor: Floor) -> Result<()> {
        let (store, saved) = (Arc::clone(&self.store), floor.clone());
        blocking(move || store.save(&saved)).await?;
        self.floor = Some(floor);
        Ok(())
    }
}

/// All statements from number 1, the last one signed by one of `keys`, each continuing the one before.
pub(super) async fn read_all(channel: &Channel, keys: &[PublicKey]) -> Result<Vec<Head>> {
    let numbers = channel.numbers().await?;
    let gone = |seq| error(channel, ErrorKind::Untrusted, "a number of the channel is missing").with("seq", seq);
    if let Some((missing, _)) = (1_u64..).zip(&numbers).find(|(expected, number)| expected != *number) {
        return Err(gone(missing));
    }
    let objects: Vec<Bytes> = stream::iter(numbers)
        .map(|seq| async move { channel.read_object(seq).await?.ok_or_else(|| gone(seq)) })
        .buffered(16)
        .try_collect()
        .await?;
    open_chain(channel, 1, None, &objects, keys)
}

/// Verifies the last object's signature and, through the chain of digests, all before it.
fn open_chain(
    channel: &Channel,
    first: u64,
    prev: Option<Digest>,
    objects: &[Bytes],
    keys: &[PublicKey],
) -> Result<Vec<Head>> {
    let mut heads: Vec<Head> = Vec::with_capacity(objects.len());
    for (index, bytes) in objects.iter().enumerate().rev() {
        let seq = first + index as u64;
        let head = match heads.last() {
            None => channel.open_statement(seq, bytes, |bytes| Statement::verify(bytes, keys))?,
            Some(next) => {
                check_link(channel, next, Some(Digest::of(bytes)))?;
                channel.open_statement(seq, bytes, Statement::pinned)?
            }
        };
        heads.push(head);
    }
    if let Some(oldest) = heads.last() {
        check_link(channel, oldest, prev)?;
    }
    heads.reverse();
    Ok(heads)
}

fn check_link(channel: &Channel, head: &Head, expected: Option<Digest>) -> Result<()> {
    if head.statement.prev == expected {
        return Ok(());
    }
    Err(error(channel, ErrorKind::Untrusted, "a statement does not continue the one before it: the chain is broken")
        .with("seq", head.statement.seq)
        .with("expected", super::display(expected))
        .with("found", super::display(head.statement.prev)))
}

/// What is kept of the time `now`.
fn remembered(now: Timestamp, expires: Option<Timestamp>) -> Timestamp {
    expires.map_or(now, |expires| now.min(expires))
}

fn is_stale(floor: &Floor, now: Timestamp) -> bool {
    floor.expires.is_some_and(|expires| now >= expires)
}

fn error(channel: &Channel, kind: ErrorKind, message: &'static str) -> Error {
    Error::new(kind, READ, message).with("channel", format_args!("{}/{}", channel.model, channel.name))
}
