//! Stores by their URL.

use std::{str::FromStr, sync::Arc};

use ::object_store::{
    ObjectStore,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    limit::LimitStore,
};
use hybrid_core::{Error, Result};

use super::ObjectStoreAdapter;

const OPERATION: &str = "open object store";
/// Requests under way at once.
const PARALLEL: usize = 64;

impl ObjectStoreAdapter {
    /// The store at `url`: `gs://bucket/prefix`, `az://container/prefix`, `s3://bucket/prefix`, with up to 64 requests at once.
    ///
    /// Credentials and settings come from the environment as the crate's builders read it (`GOOGLE_…`, `AZURE_…`, `AWS_…`), and from `options`, which go before it: names
    /// and values as the builders' configuration keys, such as `("endpoint", "https://….r2.cloudflarestorage.com")` or `("account_name", "bakery")`.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the scheme or an option is not known, or something is missing.
    pub fn from_url<'a>(url: &str, options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let (scheme, bucket, prefix) = split(url)?;
        let place = format!("{scheme}://{bucket}");
        let failed = |error: ::object_store::Error| {
            Error::invalid(OPERATION, "the store cannot be configured").with("url", url).with_source(error.to_string())
        };
        let store: Arc<dyn ObjectStore> = match scheme {
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_url(place);
                for (name, value) in options {
                    builder = builder.with_config(option::<GoogleConfigKey>(url, name)?, value);
                }
                Arc::new(LimitStore::new(builder.build().map_err(failed)?, PARALLEL))
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_url(place);
                for (name, value) in options {
                    builder = builder.with_config(option::<AzureConfigKey>(url, name)?, value);
                }
                Arc::new(LimitStore::new(builder.build().map_err(failed)?, PARALLEL))
            }
            "s3" => {
                let mut builder = AmazonS3Builder::from_env().with_url(place);
                for (name, value) in options {
                    builder = builder.with_config(option::<AmazonS3ConfigKey>(url, name)?, value);
                }
                Arc::new(LimitStore::new(builder.build().map_err(failed)?, PARALLEL))
            }
            _ => {
                return Err(Error::invalid(OPERATION, "the scheme is none of gs, az and s3").with("url", url));
            }
        };
        Self::new(store, prefix)
    }

    /// The store at `s3://bucket/prefix` by the crate's own client, with region, endpoint and credentials of `config`: so profiles, SSO and roles work that
    /// the crate alone does not know.
    ///
    /// # Errors
    /// As [`from_url`](Self::from_url).
    #[cfg(feature = "aws")]
    pub fn from_aws(url: &str, config: &crate::aws::AwsConfig) -> Result<Self> {
        let (scheme, bucket, prefix) = split(url)?;
        if scheme != "s3" {
            return Err(Error::invalid(OPERATION, "expected s3://bucket/prefix").with("url", url));
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_credentials(Arc::new(super::bridge::AwsCredentials::new(config)?));
        if let Some(region) = config.region() {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = config.endpoint() {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        let store = builder.build().map_err(|error| {
            Error::invalid(OPERATION, "the store cannot be configured").with("url", url).with_source(error.to_string())
        })?;
        Self::new(Arc::new(LimitStore::new(store, PARALLEL)), prefix)
    }
}

/// Scheme, bucket and prefix.
fn split(url: &str) -> Result<(&str, &str, &str)> {
    let invalid =
        || Error::invalid(OPERATION, "expected a URL such as gs://bucket/prefix").with("url", format_args!("{url:?}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() { Err(invalid()) } else { Ok((scheme, bucket, prefix)) }
}

fn option<K: FromStr<Err = ::object_store::Error>>(url: &str, name: &str) -> Result<K> {
    name.parse()
        .map_err(|_| Error::invalid(OPERATION, "the store knows no such option").with("url", url).with("option", name))
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;

    use super::*;

    #[test]
    fn a_url_gives_the_store_that_it_names() {
        let key = (
            "service_account_key",
            r#"{"private_key":"","client_email":"x","private_key_id":"","disable_oauth":true}"#,
        );
        let account = [("account_name", "bakery"), ("access_key", "c2VjcmV0")];
        let aws = [("region", "eu-central-1"), ("access_key_id", "a"), ("secret_access_key", "s")];
        for (url, options, shown) in [
            ("gs://bakery/prod", vec![key], "prod/"),
            ("az://bakery/prod", account.to_vec(), "prod/"),
            ("s3://bakery", aws.to_vec(), "prefix: \"\""),
        ] {
            let store = ObjectStoreAdapter::from_url(url, options).unwrap();
            let text = format!("{store:?}");
            assert!(text.contains("bakery") && text.contains(shown), "{url}: {text}");
            assert!(!text.contains("c2VjcmV0"), "{text}");
        }
    }

    #[test]
    fn what_no_builder_knows_is_refused_by_name() {
        for (url, options) in [
            ("ftp://bakery", vec![]),
            ("bakery", vec![]),
            ("s3://", vec![]),
            ("gs://bakery", vec![("colour", "red")]),
            ("s3://bakery/a//b", vec![("region", "eu-central-1")]),
        ] {
            let error = ObjectStoreAdapter::from_url(url, options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}: {error}");
        }
    }
}
