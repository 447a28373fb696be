//! From the folder to the bucket.

use std::{fs, io, sync::Arc, time::Duration};

use hybrid_core::{ArtifactStore, ArtifactStoreExt, Cancellation, Clock, Error, Result};

use super::{
    AuditLog,
    chain::{segment_key, segments, unreadable},
};

impl AuditLog {
    /// Creates each sealed segment in the bucket that is not there yet, in order; answers with how many were. The files stay where they are.
    ///
    /// # Errors
    /// Those of the disk and the store; [`AlreadyExists`](hybrid_core::ErrorKind::AlreadyExists) where another log of the same writer's name is in
    /// the bucket. What was shipped is not shipped again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a segment that the next call creates again, with the same bytes.
    pub async fn ship(&self, store: &dyn ArtifactStore) -> Result<usize> {
        let _one = self.shipping.lock().await;
        let (folder, shared) = (self.folder.clone(), Arc::clone(&self.shared));
        let sealed = on_disk(move || {
            // Asked before the folder is: one that is begun meanwhile is not taken for sealed.
            let written = shared.segment().first();
            let mut sealed = segments(&folder)?;
            sealed.retain(|(first, _)| *first < written);
            Ok(sealed)
        });
        let sealed = sealed.await?;
        let mut shipped = 0;
        for (first, name) in sealed {
            let (path, marker) = (self.folder.join(&name), self.folder.join(format!("{first:020}.shipped")));
            let read = {
                let marker = marker.clone();
                on_disk(move || {
                    if marker.exists() {
                        Ok(None)
                    } else {
                        fs::read(&path).map(Some).map_err(|error| unreadable(&path, error))
                    }
                })
            };
            let Some(bytes) = read.await? else { continue };
            store.create_same(&segment_key(&self.writer, first)?, bytes.into()).await?;
            on_disk(move || fs::write(&marker, b"").map_err(|error| unreadable(&marker, error))).await?;
            shipped += 1;
        }
        Ok(shipped)
    }

    /// Seals and [ships](Self::ship) every `interval` until `stop` is raised, and once more then: for a task of its own. What fails is tried again.
    pub async fn ship_every(
        &self,
        store: &dyn ArtifactStore,
        interval: Duration,
        clock: &dyn Clock,
        stop: Cancellation,
    ) {
        loop {
            let stopping = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = clock.sleep(interval) => false,
            };
            // Segments that were sealed before are shipped whatever becomes of the one that is being written.
            let (sealed, shipped) = (self.seal().await, self.ship(store).await);
            for error in [sealed.err(), shipped.err()].into_iter().flatten() {
                tracing::warn!(%error, "audit segments could not be shipped; they stay on this machine");
            }
            if stopping {
                return;
            }
        }
    }
}

/// Runs `work` where blocking is allowed.
async fn on_disk<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::internal("read audit log", "the task was lost").with_source(io::Error::other(error.to_string()))
    })?
}
