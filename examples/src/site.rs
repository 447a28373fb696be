//! A site: everything that one deployment keeps, in one folder when nothing else is configured.

use std::{
    fs::{File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{ArtifactStore, Clock, Error, ErrorKind, Files, Result, Signer, SystemClock};
use hybrid_sync::registry::{FileSigner, PublicKey, Trust};

use crate::locations::{Bucket, Locations, Queue};

/// The folder of a site and what lies where in it.
///
/// ```text
/// artifacts/    the bucket: what the two halves share, unless it is elsewhere
/// queue.db      the queue: the other thing they share, unless it is elsewhere
/// keys/         builder and release key; only the kitchen has the private halves
/// storefront/   outbox and model cache of the storefront
/// kitchen/      scratch and model cache of the kitchen
/// ```
#[derive(Clone, Debug)]
pub struct Site {
    root: PathBuf,
    locations: Locations,
    bucket: Bucket,
    clock: Arc<dyn Clock>,
}

impl Site {
    /// Opens the site at `locations`, creating its folder if need be.
    ///
    /// # Errors
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) or another kind that names the folder; those of [`Locations::open_store`].
    pub async fn open(locations: &Locations) -> Result<Self> {
        let root = locations.site.clone();
        for folder in ["", "storefront", "kitchen", "keys"] {
            make_folder(&root.join(folder))?;
        }
        let bucket = locations.open_bucket().await?;
        Ok(Self { root, locations: locations.clone(), bucket, clock: Arc::new(SystemClock) })
    }

    /// The same site by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Takes `name`'s lock until the file returned is dropped: one process at a time plays this part on a site.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) that names the lock if another process holds it.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| io("lock site", &path, error))?;
        match file.try_lock() {
            Ok(()) => {
                // For people, and for tests that want to know whom to kill.
                let write = file.set_len(0).and_then(|()| (&file).write_all(std::process::id().to_string().as_bytes()));
                write.map(|()| file).map_err(|error| io("lock site", &path, error))
            }
            Err(TryLockError::WouldBlock) => Err(Error::unavailable(
                "lock site",
                "another process uses this folder; wait for it or choose another with --site",
            )
            .with("part", name)
            .with("folder", self.root.display())),
            Err(TryLockError::Error(error)) => Err(io("lock site", &path, error)),
        }
    }

    /// The bucket.
    pub fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::clone(&self.bucket.store)
    }

    /// Customers' files in the bucket, with links to their parts where the bucket gives any.
    pub fn files(&self) -> Files {
        let files = Files::new(self.store(), self.clock());
        match &self.bucket.links {
            Some(links) => files.with_links(Arc::clone(links)),
            None => files,
        }
    }

    /// The queue.
    ///
    /// # Errors
    /// Those of [`Locations::open_queue`].
    pub async fn queue(&self) -> Result<Queue> {
        self.locations.open_queue().await
    }

    /// The builder key and the release key, made when first asked for, with their public halves beside them. Only the kitchen asks.
    ///
    /// # Errors
    /// Those of [`FileSigner::open_or_generate`], and of writing the public halves.
    pub fn signers(&self) -> Result<(FileSigner, FileSigner)> {
        let open = |name: &str| {
            let signer = FileSigner::open_or_generate(&self.keys().join(format!("{name}.pem")))?;
            let public = self.public_key(name);
            // Compared and not only looked for: one that a power cut has left empty is written again.
            if std::fs::read(&public).ok().as_deref() != Some(signer.public_key_pem().as_bytes()) {
                write_whole(&public, signer.public_key_pem().as_bytes())
                    .map_err(|error| io("write public key", &public, error))?;
            }
            Ok::<_, Error>(signer)
        };
        Ok((open("builder")?, open("release")?))
    }

    /// The public keys that this site trusts. A storefront on another machine is given these two and no private key. Where bucket and queue are in
    /// this folder, the kitchen is too, and they are made when they are not there yet.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) that names the files to bring here, and those of [`signers`](Self::signers).
    pub fn trust(&self) -> Result<Trust> {
        let (builder, release) = (self.public_key("builder"), self.public_key("release"));
        let read =
            || Ok(Trust { builders: vec![PublicKey::open(&builder)?], releases: vec![PublicKey::open(&release)?] });
        match read() {
            Err(_) if self.locations.artifacts.is_none() => {
                self.signers()?;
                read()
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = "the kitchen's public keys are not here; copy both files from the kitchen's folder of keys, or start it here first";
                Err(Error::not_found("read public keys", message)
                    .with("builder", builder.display())
                    .with("release", release.display()))
            }
            trust => trust,
        }
    }

    fn public_key(&self, name: &str) -> PathBuf {
        self.keys().join(format!("{name}.pub.pem"))
    }

    /// The clock of a deployment: the machine's, unless it was given another.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// The site's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its parts lie.
    pub fn locations(&self) -> &Locations {
        &self.locations
    }

    /// The storefront's folder.
    pub fn storefront(&self) -> PathBuf {
        self.root.join("storefront")
    }

    /// The kitchen's folder.
    pub fn kitchen(&self) -> PathBuf {
        self.root.join("kitchen")
    }

    /// The folder of the keys.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }
}

/// Puts a file in place whole, or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Creates a folder with its parents.
///
/// # Errors
/// As [`io`].
pub fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| io("create folder", path, error))
}

/// An input-output error that names its path.
pub fn io(operation: &'static str, path: &Path, error: std::io::Error) -> Error {
    let (kind, message) = match error.kind() {
        std::io::ErrorKind::NotFound => (ErrorKind::NotFound, "no such file or folder"),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::PermissionDenied, "this user may not do that here")
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            (ErrorKind::StorageFull, "the disk is full; free space and start again")
        }
        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
            (ErrorKind::InvalidInput, "a file stands where a folder should be")
        }
        _ => (ErrorKind::Internal, "the system refused"),
    };
    Error::new(kind, operation, message).with("path", path.display()).with_source(error)
}
