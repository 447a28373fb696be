//! Channel statements expire, so that a frozen bucket is noticed. While no better version comes, the kitchen signs the one in service again; what has expired before
//! it saw it, a person decides on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use clap::Parser;
use futures_util::{StreamExt, stream};
use hybrid_core::{Cancellation, ChannelName, Clock, Digest, Error, ModelName, Result, SystemIds};
use hybrid_sync::registry::{Head, Namespace, Registry, Release};

use crate::{
    locations::Locations,
    log::say,
    serving::{ChannelId, Channels},
    site::Site,
    train_job::VALID_FOR,
};

/// Between two looks at all channels.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// Channels that are looked at side by side, so that one that answers slowly holds up no other.
const AT_ONCE: usize = 8;

/// Looks at each channel of the site's registry every hour until `stop` is raised, and renews it when half of its statement's time is over. What goes wrong with one
/// is logged, and tried again at the next look; the others notice nothing.
pub async fn renew_channels(channels: Channels, clock: Arc<dyn Clock>, stop: Cancellation) {
    let mut known = BTreeSet::new();
    let watch = async {
        loop {
            // Without a listing, those that were listed before.
            match channels.list().await {
                Ok(listed) => known.extend(listed),
                Err(error) => tracing::warn!(%error, "the channels were not listed; those known are renewed"),
            }
            for ((model, channel), renewed) in renew_each(&channels, known.iter().cloned()).await {
                match renewed {
                    Ok(Some(head)) => {
                        let statement = &head.statement;
                        tracing::info!(%model, %channel, seq = statement.seq, expires = %statement.expires, "a channel is renewed");
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%model, %channel, %error, "a channel was not renewed; tried again in an hour")
                    }
                }
            }
            clock.sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch => {}
    }
}

/// Renews those of the channels whose time has come; says of each what came of it.
pub async fn renew_each(
    channels: &Channels,
    ids: impl IntoIterator<Item = ChannelId>,
) -> Vec<(ChannelId, Result<Option<Head>>)> {
    let renew = async |id: ChannelId| {
        let renewed = channels.renew(&id).await;
        (id, renewed)
    };
    stream::iter(ids).map(renew).buffered(AT_ONCE).collect().await
}

/// Shows what a channel names and until when, and signs that again if you say that it is right.
///
/// A kitchen renews its channels itself. This is for one that was away so long that a release expired, and has lost what it remembered of it: it takes nothing for what is
/// in service that is expired and new to it.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// The model.
    #[arg(long, default_value = "bakery")]
    pub model: ModelName,
    /// The channel.
    #[arg(long, default_value_t = ChannelName::stable())]
    pub channel: ChannelName,
    /// The version to keep in service, as it is shown without this: sign it again.
    #[arg(long, value_name = "DIGEST")]
    pub manifest: Option<Digest>,
}

/// Shows what a channel names, or signs it again.
///
/// # Errors
/// [`NotFound`](hybrid_core::ErrorKind::NotFound) for a channel without a statement; [`AlreadyExists`](hybrid_core::ErrorKind::AlreadyExists) if it names another version than the one to be kept; those of the
/// bucket and of the keys.
pub async fn run(Args { locations, model, channel, manifest }: Args) -> Result<()> {
    let site = Site::open(&locations).await?;
    let head = renew_by_hand(&site, &(model, channel), manifest).await?;
    let Head { statement, .. } = &head;
    say(
        std::io::stdout(),
        format_args!(
            "{}/{} names {} by its statement {} of {}, until {}: {}",
            statement.model,
            statement.channel,
            statement.manifest,
            statement.seq,
            statement.issued,
            statement.expires,
            statement.why
        ),
    );
    Ok(())
}

/// A channel's newest statement, once more than before if it names the version to be kept.
///
/// # Errors
/// As [`run`].
pub async fn renew_by_hand(site: &Site, (model, name): &ChannelId, keep: Option<Digest>) -> Result<Head> {
    let channel = Registry::new(site.store(), Namespace::root()).channel(model, name);
    let Some(manifest) = keep else {
        let head = channel.head(&site.trust()?.releases).await?;
        return head.ok_or_else(|| {
            Error::not_found("renew channel", "the channel has no statement; release a version first")
                .with("channel", format_args!("{model}/{name}"))
        });
    };
    let release = Release::new(manifest, Some(manifest), "renewed by hand", &SystemIds::new(site.clock()));
    channel.append(release, &site.signers()?.1, site.clock().now(), VALID_FOR).await
}
