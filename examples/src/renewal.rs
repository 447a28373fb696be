//! Channel statements expire, so that a frozen bucket is noticed. While no better version comes, the kitchen signs the one in service again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use hybrid_core::{Cancellation, Clock, Result};
use hybrid_sync::registry::Head;

use crate::serving::{ChannelId, Channels};

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
