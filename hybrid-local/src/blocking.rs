//! Work that would hold up the asynchronous threads: it reads or writes files, or computes.

use hybrid_core::{Error, Result};

/// Does `work` on one of the runtime's blocking threads.
///
/// # Errors
/// The work's own; `Internal` if it panics.
pub(crate) async fn blocking<R: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal(operation, "the work ended early").with_source(error))?
}
