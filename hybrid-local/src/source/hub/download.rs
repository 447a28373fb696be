//! One file into the cache: in pieces, over cut connections and crashes, and visible only once it is what was promised.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use hybrid_core::{Error, ErrorKind, Result};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc;

use super::{
    Hub, OPERATION, Promised,
    client::{away, text},
    part::{Finished, Part, is_whole, make_folder_of, take_lock},
    shown,
};
use crate::{
    blocking::blocking,
    files::{io_error, sync_folder},
    source::{HubCache, HubModel},
};

/// How often what brings nothing is tried.
const IDLE_TRIES: u32 = 4;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Pieces that wait for the disk.
const QUEUED: usize = 16;

/// A file of the hub.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) url: Url,
    pub(super) digest: Promised,
    pub(super) size: u64,
}

impl Hub {
    /// Brings a file into the cache, if it is not there.
    pub(super) async fn download(&self, repository: &Path, blob: &Blob) -> Result<PathBuf> {
        let name = blob.digest.name();
        let path = repository.join("blobs").join(name);
        let lock = locks(&self.cache, repository).join(format!("{name}.lock"));
        let begun = {
            let (path, promised, size) = (path.clone(), blob.digest.clone(), blob.size);
            blocking(
                OPERATION,
                move || if is_whole(&path, size) { Ok(None) } else { Part::open(&path, &lock, promised, size) },
            )
        };
        let Some(mut part) = begun.await? else { return Ok(path) };
        let mut tries = 0;
        loop {
            if part.missing() == 0 {
                let target = path.clone();
                match blocking(OPERATION, move || part.finish(&target)).await? {
                    Finished::Whole => return Ok(path),
                    Finished::Begun(begun) => part = *begun,
                }
            }
            let before = part.length();
            let brought;
            (part, brought) = self.bring(&blob.url, part).await?;
            let Err(error) = brought else { continue };
            let error = error.with("length", part.length()).with("size", blob.size);
            if part.length() > before && error.is_temporary() {
                tracing::warn!(%error, "a download was cut; it goes on where it ended");
                tries = 0;
            } else {
                self.wait(&mut tries, error).await?;
            }
        }
    }

    /// Waits before the next try, after `tries` and this one that brought nothing.
    ///
    /// # Errors
    /// This one's, if there is to be no other.
    pub(super) async fn wait(&self, tries: &mut u32, error: Error) -> Result<()> {
        *tries += 1;
        let wait = error.retry_after().unwrap_or(Duration::from_secs(1 << (*tries - 1)));
        if !error.is_temporary() || *tries >= IDLE_TRIES || wait > LONGEST_WAIT {
            return Err(error);
        }
        tracing::warn!(%error, seconds = wait.as_secs(), "the hub brought nothing; it is asked again");
        self.clock.sleep(wait).await;
        Ok(())
    }

    /// Brings what is missing of a file, as far as one connection goes. The outer error is for a part that is lost.
    async fn bring(&self, url: &Url, mut part: Part) -> Result<(Part, Result<()>)> {
        let from = part.length();
        let mut response = match self.client.get(url, from).await {
            Ok(response) => response,
            Err(error) => return Ok((part, Err(error))),
        };
        let anew = from > 0 && !goes_on(&response, from);
        let (send, mut receive) = mpsc::channel::<Bytes>(QUEUED);
        let writer = tokio::task::spawn_blocking(move || {
            let mut write = || {
                if anew {
                    part.empty()?;
                }
                while let Some(bytes) = receive.blocking_recv() {
                    part.append(&bytes)?;
                }
                Ok(())
            };
            let wrote = write();
            (part, wrote)
        });
        let read = loop {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    // A writer that has failed says why.
                    if send.send(bytes).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(away(url, error)),
            }
        };
        drop(send);
        let written = writer.await;
        let (part, wrote) =
            written.map_err(|error| Error::internal(OPERATION, "writing ended early").with_source(error))?;
        let whole = || match part.missing() {
            0 => Ok(()),
            _ => {
                let message = "the connection ended before the file";
                Err(Error::new(ErrorKind::Unavailable, OPERATION, message).with("url", shown(url)))
            }
        };
        let brought = wrote.and(read).and_then(|()| whole());
        Ok((part, brought))
    }
}

/// Whether an answer is the part of the file that begins at `from`.
fn goes_on(response: &Response, from: u64) -> bool {
    let range = text(response.headers(), "content-range").and_then(|range| range.strip_prefix("bytes "));
    let begins = range.and_then(|range| range.split_once('-')?.0.parse::<u64>().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && begins == Some(from)
}

/// Lets a snapshot have a file.
pub(super) fn link(blob: &Path, snapshot: &Path, name: &str) -> Result<()> {
    let path = snapshot.join(name);
    make_folder_of(&path)?;
    let fail = |error| io_error(OPERATION, &path, error);
    #[cfg(unix)]
    {
        use std::{io, os::unix::fs::symlink};

        let up = "../".repeat(2 + name.matches('/').count());
        let target = Path::new(&up).join("blobs").join(blob.file_name().unwrap_or_default());
        match symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map_err(fail),
        }
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        // Something else in its place is replaced at once.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        symlink(target, &new).and_then(|()| fs::rename(&new, &path)).map_err(fail)
    }
    #[cfg(not(unix))]
    {
        let new = path.with_extension(format!("{}.new", std::process::id()));
        fs::copy(blob, &new).and_then(|_| fs::rename(&new, &path)).map_err(fail)
    }
}

/// Remembers which commit a branch or a tag is.
pub(super) fn write_ref(cache: &HubCache, model: &HubModel, commit: &str) -> Result<()> {
    let repository = cache.repository(model);
    let path = repository.join("refs").join(model.revision());
    if fs::read_to_string(&path).is_ok_and(|found| found == commit) {
        return Ok(());
    }
    make_folder_of(&path)?;
    let locks = locks(cache, &repository);
    let _turn = take_lock(&locks.join("refs.lock"))?;
    // Not beside its place, where everything is a name.
    let new = locks.join("ref.new");
    crate::files::write(&new, commit.as_bytes())?;
    fs::rename(&new, &path).map_err(|error| io_error(OPERATION, &path, error))?;
    sync_folder(&path)
}

/// Where the hub's own tools have the locks of a model.
fn locks(cache: &HubCache, repository: &Path) -> PathBuf {
    cache.root().join(".locks").join(repository.file_name().unwrap_or_default())
}
