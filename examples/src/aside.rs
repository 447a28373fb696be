//! What refused versions had learnt from, set aside for a person to look at.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, Digest, Document, Error, ErrorKind, Key, ModelName, Result, TenantId,
};
use hybrid_sync::{job::Job, worker::JobContext};
use serde::{Deserialize, Serialize};

use crate::train_job::Chosen;

/// Documents that are read at once.
const READS: usize = 32;

/// The segments that a refused version had learnt from beyond the one in service: the document at `t/<tenant>/aside/<model>/<job>`, created before the job's result. Who
/// wants a later version to learn from them after all deletes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The evaluation that refused it.
    pub report: Key,
    /// The digest over the refused candidate's files.
    pub weights: Digest,
    /// Of a set of plans: the candidate's, and the table of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// The segments.
    pub segments: BTreeSet<Key>,
}

impl Document for Aside {
    const FORMAT: &'static str = "hybrid.aside";
    const MAJOR: u32 = 1;
}

impl Aside {
    /// What an earlier attempt of this job has set aside: it has refused its candidate, and that stands.
    ///
    /// # Errors
    /// Those of the store; [`Corrupt`](ErrorKind::Corrupt) if the object is another document.
    pub async fn of(cx: &JobContext, model: &ModelName) -> Result<Option<Self>> {
        let Job { id, tenant, .. } = &*cx.job;
        match read(&*cx.store, &Key::new(format!("{}{id}", prefix(tenant, model)))?).await {
            Ok(aside) => Ok(Some(aside)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets this aside for a job, once.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn create(&self, cx: &JobContext, model: &ModelName) -> Result<()> {
        let Job { id, tenant, .. } = &*cx.job;
        cx.store.create_same(&Key::new(format!("{}{id}", prefix(tenant, model)))?, self.encode()?).await
    }
}

/// All segments that were set aside and are not to be learnt from again.
///
/// # Errors
/// Those of the store, and [`Corrupt`](ErrorKind::Corrupt) that names an object which is no such document: what it held back is not known, so nothing is learnt before
/// somebody has looked.
pub async fn set_aside(store: &dyn ArtifactStore, tenant: &TenantId, model: &ModelName) -> Result<BTreeSet<Key>> {
    let listed = store.list_all(&prefix(tenant, model)).await?;
    let asides = stream::iter(listed).map(|meta| async move { read(store, &meta.key).await });
    let asides: Vec<Aside> = asides.buffer_unordered(READS).try_collect().await?;
    Ok(asides.into_iter().flat_map(|aside| aside.segments).collect())
}

async fn read(store: &dyn ArtifactStore, key: &Key) -> Result<Aside> {
    Aside::decode(&store.get(key).await?).map_err(|error| {
        let message = "what a refused version had learnt from cannot be read; restore the object, or delete it to learn from that too";
        Error::new(error.kind(), "read what is set aside", message).with("key", key).with_source(error)
    })
}

fn prefix(tenant: &TenantId, model: &ModelName) -> String {
    format!("t/{tenant}/aside/{model}/")
}
