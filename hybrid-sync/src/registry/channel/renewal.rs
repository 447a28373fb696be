//! Keeping a channel's newest statement from expiring while no new version comes.

use std::{sync::Arc, time::Duration};

use hybrid_core::{Cancellation, Clock, Error, ErrorKind, Result, Signer};

use super::{super::PublicKey, ChannelReader, Head, Release};

/// Between two looks of [`Renewer::run`].
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);

/// Signs a channel's version in service again once half of the time is over in which its statement holds.
///
/// Without it a storefront that starts when nothing was released for [`valid_for`](Self::new) finds an expired statement, and starts without a
/// version. It runs where the release key is, in the kitchen.
///
/// # Behavior
/// - It signs only what its own [`ChannelReader`] has accepted, by the keys that this reader trusts, so a bucket that was rolled back does not get an old
///   version signed anew. A key that was rotated signs as soon as it is among them.
/// - Any number of renewers at one statement append one.
/// - A statement that expired before the reader accepted its version is not renewed: a person decides, by [`Channel::renew`](super::Channel::renew).
///
/// ```no_run
/// use std::{sync::Arc, time::Duration};
/// use hybrid_core::{Cancellation, ChannelName, Clock, ModelName, Result};
/// use hybrid_sync::registry::{ChannelReader, FileFloor, FileSigner, Registry, Renewer, Trust};
///
/// # async fn keep(registry: Registry, trust: Trust, release: FileSigner, clock: Arc<dyn Clock>) -> Result<()> {
/// let channel = registry.channel(&ModelName::new("bakery")?, &ChannelName::stable());
/// let floor = Arc::new(FileFloor::new("kitchen/bakery-stable.json"));
/// let reader = ChannelReader::open(channel, &trust, floor, Arc::clone(&clock)).await?;
/// let ninety_days = Duration::from_secs(90 * 24 * 3600);
/// Renewer::new(reader, Arc::new(release), ninety_days).run(clock, Cancellation::new()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Renewer {
    reader: ChannelReader,
    signer: Arc<dyn Signer>,
    valid_for: Duration,
}

impl Renewer {
    /// A renewer of the channel that `reader` reads. Its statements hold for `valid_for`.
    pub fn new(reader: ChannelReader, signer: Arc<dyn Signer>, valid_for: Duration) -> Self {
        Self { reader, signer, valid_for }
    }

    /// The reader that it goes by, for whoever needs the same floor.
    pub fn reader_mut(&mut self) -> &mut ChannelReader {
        &mut self.reader
    }

    /// Looks once, and appends a statement if the newest holds for less than half of the time; answers that statement.
    ///
    /// # Errors
    /// [`Untrusted`](ErrorKind::Untrusted) if the reader does not trust the signer's key; those of [`ChannelReader::look`] and
    /// [`Channel::renew`](super::Channel::renew). After an error the channel is what it was.
    pub async fn look(&mut self) -> Result<Option<Head>> {
        let ours = PublicKey::from_pem(self.signer.public_key_pem())?;
        if !self.reader.releases().contains(&ours) {
            let message =
                "the release key in use is not one that the reader trusts; add it to the trust of every reader first";
            let channel = self.reader.channel();
            return Err(Error::new(ErrorKind::Untrusted, "renew channel", message)
                .with("channel", format_args!("{}/{}", channel.model(), channel.name()))
                .with("key", ours.fingerprint()));
        }
        let look = self.reader.look().await?;
        let (channel, now, keys) = (self.reader.channel(), self.reader.now(), self.reader.releases());
        // What is not what the reader has accepted is for the next look.
        let Some(head) = channel.head(keys).await?.filter(|head| head.digest == look.floor.statement) else {
            return Ok(None);
        };
        if head.statement.expires.since(now) > self.valid_for / 2 {
            return Ok(None);
        }
        let release = Release {
            manifest: head.statement.manifest,
            incumbent: Some(head.statement.manifest),
            why: "renewal".to_owned(),
            // The same for all renewers of this statement: whoever comes second has renewed it too.
            nonce: format!("renewal of {}", head.digest),
        };
        channel.append_after(Some(head), release, &*self.signer, now, self.valid_for, keys).await.map(Some)
    }

    /// Looks every hour until `stop` is raised. What goes wrong is logged, and tried again at the next look.
    pub async fn run(mut self, clock: Arc<dyn Clock>, stop: Cancellation) {
        let watch = async {
            loop {
                match self.look().await {
                    Ok(Some(head)) => tracing::info!(
                        model = %head.statement.model,
                        channel = %head.statement.channel,
                        seq = head.statement.seq,
                        expires = %head.statement.expires,
                        "the channel's statement is renewed"
                    ),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "the channel's statement was not renewed"),
                }
                clock.sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch => {}
        }
    }
}
