//! Bucket, queue, documents and records on AWS, or on servers that speak its protocols. Credentials come from where the AWS command line has them.

use std::{collections::HashMap, sync::Arc};

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    dynamodb::{DynamoRecordOptions, DynamoRecordStore},
    s3::{Listing, S3Location, S3Options, S3Store},
    s3_vectors::{S3VectorIndex, S3VectorOptions},
    sqs::{SqsQueue, SqsQueueOptions},
};
use hybrid_core::{Clock, Error, RecordStore, Result, Staging, VectorIndex, VectorSchema};
use url::Url;

use super::{Bucket, Queue};

/// What may stand behind the question mark.
const KNOWN: [&str; 5] = ["region", "endpoint", "profile", "path-style", "listing"];

pub(super) async fn bucket(url: &Url) -> Result<Bucket> {
    let store = Arc::new(store(url).await?);
    Ok(Bucket { store: Arc::clone(&store) as _, links: Some(store) })
}

/// Where whole files go beside what is in the bucket.
pub(super) async fn staging(url: &Url) -> Result<Arc<dyn Staging>> {
    Ok(Arc::new(store(url).await?.staging()))
}

async fn store(url: &Url) -> Result<S3Store> {
    let (bucket, query) = parts("open bucket", url, "the URL names no bucket")?;
    let config = load(&query, None).await?;
    let location = S3Location::new(bucket, url.path().trim_matches('/'))?;
    let path_style = query.get("path-style").is_some_and(|value| value == "true");
    let listing = match query.get("listing").map(String::as_str) {
        None => Listing::ByteOrder,
        Some("sorted") => Listing::Sorted,
        Some(other) => {
            let unknown = "the only other listing is listing=sorted, for servers that list folder by folder";
            return Err(Error::invalid("open bucket", unknown).with("listing", other));
        }
    };
    S3Store::new(&config, location, S3Options { path_style, listing, ..S3Options::default() })
}

pub(super) async fn queue(url: &Url) -> Result<Queue> {
    let (host, query) = parts("open queue", url, "the URL names no host")?;
    // A queue's URL says where it is: sqs.<region>.amazonaws.com.
    let region = host.strip_prefix("sqs.").and_then(|rest| rest.split_once(".amazonaws.")).map(|(region, _)| region);
    let config = load(&query, region).await?;
    let root = match query.get("endpoint") {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => format!("https://{host}"),
    };
    let queue = SqsQueue::open(&config, format!("{root}{}", url.path()), SqsQueueOptions::default()).await?;
    let dead = queue.dead_letters().map(|letters| Arc::new(letters) as _);
    Ok(Queue { jobs: Arc::new(queue), dead })
}

pub(super) async fn documents(url: &Url, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
    let (bucket, query) = parts("open documents", url, "the URL names no vector bucket")?;
    let (bucket, prefix) = (bucket.to_owned(), url.path().trim_matches('/').to_owned());
    let options = S3VectorOptions { bucket, prefix, schema };
    Ok(Arc::new(S3VectorIndex::new(&load(&query, None).await?, options)?))
}

pub(super) async fn records(url: &Url, clock: Arc<dyn Clock>) -> Result<Arc<dyn RecordStore>> {
    let (table, query) = parts("open records", url, "the URL names no table")?;
    let options = DynamoRecordOptions { clock, ..DynamoRecordOptions::table(table) };
    Ok(Arc::new(DynamoRecordStore::new(&load(&query, None).await?, options)?))
}

/// A URL's host, and what stands behind its question mark.
fn parts<'a>(
    operation: &'static str,
    url: &'a Url,
    without: &'static str,
) -> Result<(&'a str, HashMap<String, String>)> {
    let host = url.host_str().ok_or_else(|| Error::invalid(operation, without).with("url", url))?;
    Ok((host, query(operation, url.query().unwrap_or_default())?))
}

/// The configuration that what stands behind a question mark describes.
pub(crate) async fn config(operation: &'static str, text: &str) -> Result<AwsConfig> {
    load(&query(operation, text)?, None).await
}

async fn load(query: &HashMap<String, String>, region: Option<&str>) -> Result<AwsConfig> {
    let one = |name: &str| query.get(name).cloned();
    let region = one("region").or_else(|| region.map(str::to_owned));
    AwsConfig::load(AwsOptions { region, endpoint: one("endpoint"), profile: one("profile"), ..AwsOptions::default() })
        .await
}

fn query(operation: &'static str, text: &str) -> Result<HashMap<String, String>> {
    let query: HashMap<_, _> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
    match query.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        None => Ok(query),
        Some(unknown) => Err(Error::invalid(operation, "the URL has a parameter that is not known")
            .with("parameter", unknown)
            .with("known", KNOWN.join(", "))),
    }
}
