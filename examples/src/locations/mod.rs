//! Where the halves meet: a bucket and a queue, in a folder or wherever a URL says.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use hybrid_core::{
    ArtifactStore, Clock, DeadLetters, Error, ErrorKind, JobQueue, Presign, RecordStore, Result, VectorIndex,
    VectorSchema,
};
use hybrid_local::{
    FolderStore, SqliteQueue, SqliteQueueOptions, SqliteRecordOptions, SqliteRecordStore, SqliteVectorIndex,
    SqliteVectorOptions,
};
use url::Url;

/// How often a job may be begun before it goes to the dead letters: training that survives a power cut wants some patience.
const MAX_DELIVERIES: u32 = 20;

/// The site's folder, and what lies elsewhere.
#[derive(Clone, Debug, Args)]
pub struct Locations {
    /// The folder of the site: everything lies in it that is not said to be elsewhere.
    #[arg(long, default_value = ".hybrid")]
    pub site: PathBuf,
    /// The bucket, such as s3://my-bucket/prefix?region=eu-central-1; for a server that is not AWS's, endpoint=http://… and path-style=true as well.
    #[arg(long)]
    pub artifacts: Option<Url>,
    /// The queue, its URL with sqs in place of https, such as sqs://sqs.eu-central-1.amazonaws.com/123456789012/jobs; or endpoint=http://… as well.
    #[arg(long)]
    pub queue: Option<Url>,
}

/// An open bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The bucket itself.
    pub store: Arc<dyn ArtifactStore>,
    /// Links by which customers reach single objects of it, if it gives any.
    pub links: Option<Arc<dyn Presign>>,
}

/// An open queue.
#[derive(Clone, Debug)]
pub struct Queue {
    /// The queue itself.
    pub jobs: Arc<dyn JobQueue>,
    /// Where messages go whose deliveries are used up, if they go anywhere.
    pub dead: Option<Arc<dyn DeadLetters>>,
}

impl Locations {
    /// Everything in the folder `site`.
    pub fn folder(site: impl Into<PathBuf>) -> Self {
        Self { site: site.into(), artifacts: None, queue: None }
    }

    /// The same as arguments for another process.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--site".to_owned(), self.site.display().to_string()];
        for (flag, url) in [("--artifacts", &self.artifacts), ("--queue", &self.queue)] {
            arguments.extend(url.iter().flat_map(|url| [flag.to_owned(), url.to_string()]));
        }
        arguments
    }

    /// Bucket and queue in words for people.
    pub fn described(&self) -> (String, String) {
        let place = |url: &Option<Url>, file| match url {
            Some(url) => url.to_string(),
            None => self.site.join(file).display().to_string(),
        };
        (place(&self.artifacts, "artifacts"), place(&self.queue, "queue.db"))
    }

    /// Opens the bucket.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a URL that names none, and those of the store.
    pub async fn open_store(&self) -> Result<Arc<dyn ArtifactStore>> {
        self.open_bucket().await.map(|bucket| bucket.store)
    }

    /// Opens the bucket, with its links where it gives any.
    ///
    /// # Errors
    /// As [`open_store`](Self::open_store).
    pub async fn open_bucket(&self) -> Result<Bucket> {
        let folder = |path: PathBuf| Ok(Bucket { store: Arc::new(FolderStore::open(path)?), links: None });
        match &self.artifacts {
            None => folder(self.site.join("artifacts")),
            Some(url) if url.scheme() == "s3" => aws::bucket(url).await,
            Some(url) if url.scheme() == "file" => match url.to_file_path() {
                Ok(path) => folder(path),
                Err(()) => Err(Error::invalid("open bucket", "the URL is not that of a folder here").with("url", url)),
            },
            Some(url) => Err(unknown("open bucket", url, "s3:// and file://")),
        }
    }

    /// Opens the place for whole files that providers read, below the bucket's `exports/`.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a bucket that is not on S3: a provider reads no folder.
    #[cfg(feature = "aws")]
    pub async fn open_staging(&self) -> Result<Arc<dyn hybrid_core::Staging>> {
        match &self.artifacts {
            Some(url) if url.scheme() == "s3" => aws::staging(url).await,
            _ => Err(Error::unsupported(
                "open staging",
                "a provider reads from S3 alone; name the bucket as --artifacts s3://…",
            )),
        }
    }

    /// Opens the queue, with its dead letters where it has any.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a URL that names none, and those of the queue.
    pub async fn open_queue(&self) -> Result<Queue> {
        let options = SqliteQueueOptions { max_deliveries: MAX_DELIVERIES, ..SqliteQueueOptions::default() };
        match &self.queue {
            None => {
                let queue = Arc::new(SqliteQueue::open(self.site.join("queue.db"), options)?);
                Ok(Queue { jobs: Arc::clone(&queue) as _, dead: Some(queue) })
            }
            Some(url) if url.scheme() == "sqs" => aws::queue(url).await,
            Some(url) => Err(unknown("open queue", url, "sqs://")),
        }
    }
}

/// Opens an index of customers' documents: where `url` says, or in a file at `file`.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) for a URL that names none, and those of the index.
pub async fn open_documents(url: Option<&Url>, file: PathBuf, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
    match url {
        None => Ok(Arc::new(SqliteVectorIndex::open(file, schema, SqliteVectorOptions::default())?)),
        Some(url) if url.scheme() == "s3vectors" => aws::documents(url, schema).await,
        Some(url) => Err(unknown("open documents", url, "s3vectors://")),
    }
}

/// Opens the store of customers' records: where `url` says, or in a file at `file`.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) for a URL that names none, and those of the store.
pub async fn open_records(url: Option<&Url>, file: PathBuf, clock: Arc<dyn Clock>) -> Result<Arc<dyn RecordStore>> {
    match url {
        None => {
            let options = SqliteRecordOptions { clock, ..SqliteRecordOptions::default() };
            Ok(Arc::new(SqliteRecordStore::open(file, options)?))
        }
        Some(url) if url.scheme() == "dynamodb" => aws::records(url, clock).await,
        Some(url) => Err(unknown("open records", url, "dynamodb://")),
    }
}

fn unknown(operation: &'static str, url: &Url, known: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, operation, "no such kind of place; leave it out for the site's folder")
        .with("url", url)
        .with("known", known)
}

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "aws")]
pub(crate) use aws::config as aws_config;

#[cfg(not(feature = "aws"))]
mod aws {
    use std::sync::Arc;

    use super::{Bucket, Clock, Error, ErrorKind, Queue, RecordStore, Result, Url, VectorIndex, VectorSchema};

    pub(super) async fn bucket(url: &Url) -> Result<Bucket> {
        Err(not_built("open bucket", url))
    }

    pub(super) async fn queue(url: &Url) -> Result<Queue> {
        Err(not_built("open queue", url))
    }

    pub(super) async fn documents(url: &Url, _schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
        Err(not_built("open documents", url))
    }

    pub(super) async fn records(url: &Url, _clock: Arc<dyn Clock>) -> Result<Arc<dyn RecordStore>> {
        Err(not_built("open records", url))
    }

    fn not_built(operation: &'static str, url: &Url) -> Error {
        Error::new(ErrorKind::Unsupported, operation, "this program is built without AWS; build it with --features aws")
            .with("url", url)
    }
}
