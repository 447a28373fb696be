//! One version in service, and how it ends.

use std::sync::Arc;

use hybrid_core::{InferenceBackend, Task};

use super::LiveVersion;
use crate::registry::InUse;

/// A loaded version.
#[derive(Debug)]
pub(super) struct Serving<T: Task> {
    pub(super) version: LiveVersion,
    pub(super) backend: Arc<dyn InferenceBackend<T>>,
    /// A backend may read its files at any time.
    pub(super) _in_use: InUse,
}

/// Keeps a version alive for one request. Whoever gives back the last lease has the version dropped on a thread that may block.
#[derive(Debug)]
pub(super) struct Lease<T: Task>(Option<Arc<Serving<T>>>);

impl<T: Task> Lease<T> {
    pub(super) fn new(serving: Arc<Serving<T>>) -> Self {
        Self(Some(serving))
    }

    pub(super) fn backend(&self) -> &dyn InferenceBackend<T> {
        match &self.0 {
            Some(serving) => &*serving.backend,
            None => unreachable!("a lease is emptied only when it is dropped"),
        }
    }
}

impl<T: Task> Drop for Lease<T> {
    fn drop(&mut self) {
        // Of several that are given back at once, exactly one gets the inner value.
        let Some(last) = self.0.take().and_then(Arc::into_inner) else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(last))),
            Err(_) => drop(last),
        }
    }
}
