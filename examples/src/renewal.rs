//! Channel statements expire, so that a frozen bucket is noticed. While no better version comes, the kitchen signs the one in service again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hybrid_core::{Cancellation, ChannelName, ModelName, Result, Signer};
use hybrid_sync::registry::{ChannelReader, FileFloor, Namespace, Registry, Renewer};
use tokio::task::JoinSet;

use crate::{
    site::{Site, make_folder},
    train_job::VALID_FOR,
};

/// How soon a new channel is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);

/// Renews each channel of the site's registry when half of its statement's time is over, until `stop` is raised.
///
/// # Errors
/// A key or a folder that cannot be opened; what goes wrong later is logged and tried again.
pub async fn renew_channels(site: Site, stop: Cancellation) -> Result<()> {
    let signer: Arc<dyn Signer> = Arc::new(site.signers()?.1);
    let trust = site.trust()?;
    let registry = Registry::new(site.store(), Namespace::root());
    let floors = site.kitchen().join("floors");
    let mut known = BTreeSet::<(ModelName, ChannelName)>::new();
    let mut renewers = JoinSet::new();
    while !stop.is_cancelled() {
        let channels = registry.channels().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the channels were not listed");
            Vec::new()
        });
        for channel in channels {
            let name = (channel.model().clone(), channel.name().clone());
            if !known.insert(name.clone()) {
                continue;
            }
            let folder = floors.join(name.0.as_str());
            make_folder(&folder)?;
            let floor = Arc::new(FileFloor::new(folder.join(format!("{}.json", name.1))));
            let reader = ChannelReader::open(channel, &trust, floor, site.clock()).await?;
            renewers.spawn(Renewer::new(reader, Arc::clone(&signer), VALID_FOR).run(site.clock(), stop.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = site.clock().sleep(LOOK_EVERY) => {}
        }
    }
    while renewers.join_next().await.is_some() {}
    Ok(())
}
