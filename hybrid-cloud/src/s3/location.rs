//! Where in S3 something lies.

use std::{fmt, str::FromStr};

use hybrid_core::{Error, Result};

/// A bucket and a prefix in it: `s3://bucket` or `s3://bucket/some/prefix`.
///
/// ```
/// use hybrid_cloud::s3::S3Location;
///
/// let location: S3Location = "s3://bakery/prod/".parse().unwrap();
/// assert_eq!((location.bucket(), location.prefix()), ("bakery", "prod/"));
/// assert_eq!(location.to_string(), "s3://bakery/prod/");
/// assert!("s3://bakery/a//b".parse::<S3Location>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Location {
    bucket: String,
    /// Empty, or ends in `/`.
    prefix: String,
}

impl S3Location {
    /// A bucket by its name or the ARN of an access point, and a prefix of it, which may be empty.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if the bucket is empty or the prefix is longer than 500 bytes, has an empty part, `.`, `..`, or characters
    /// other than `A-Z`, `a-z`, `0-9` and `! - _ . * ' ( )`, which S3 calls safe.
    pub fn new(bucket: impl Into<String>, prefix: &str) -> Result<Self> {
        let bucket = bucket.into();
        let invalid = |message| {
            Error::invalid("parse S3 location", message)
                .with("bucket", format_args!("{bucket:?}"))
                .with("prefix", format_args!("{prefix:?}"))
        };
        if bucket.is_empty() || bucket.contains(|char: char| char.is_whitespace() || char.is_control()) {
            return Err(invalid("expected the name of a bucket"));
        }
        let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
        let safe = |char: char| char.is_ascii_alphanumeric() || "!-_.*'()".contains(char);
        let part_fits = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(safe);
        let fits = prefix.is_empty() || trimmed.len() <= 500 && trimmed.split('/').all(part_fits);
        if !fits {
            return Err(invalid(
                "expected at most 500 bytes in parts of A-Z, a-z, 0-9 and ! - _ . * ' ( ), none of them empty, . or ..",
            ));
        }
        let prefix = if trimmed.is_empty() { String::new() } else { format!("{trimmed}/") };
        Ok(Self { bucket, prefix })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix: empty, or with a `/` at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name in the bucket of what is called `key` below the prefix.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

impl FromStr for S3Location {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("s3://").ok_or_else(|| {
            Error::invalid("parse S3 location", "expected s3://bucket or s3://bucket/prefix")
                .with("found", format_args!("{url:?}"))
        })?;
        // An access point's ARN has a slash of its own, before its name.
        let split_from = if rest.starts_with("arn:") { rest.find('/').map_or(0, |slash| slash + 1) } else { 0 };
        match rest[split_from..].find('/') {
            Some(slash) => Self::new(&rest[..split_from + slash], &rest[split_from + slash + 1..]),
            None => Self::new(rest, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_parts_that_a_key_could_not_follow() {
        for (url, bucket, prefix) in [
            ("s3://b", "b", ""),
            ("s3://b/", "b", ""),
            ("s3://b/A", "b", "A/"),
            ("s3://b/a/b/", "b", "a/b/"),
            (
                "s3://arn:aws:s3:eu-central-1:1:accesspoint/kitchen/p",
                "arn:aws:s3:eu-central-1:1:accesspoint/kitchen",
                "p/",
            ),
        ] {
            let location: S3Location = url.parse().unwrap();
            assert_eq!((location.bucket(), location.prefix()), (bucket, prefix), "{url}");
        }
        let long = format!("s3://b/{}", "x".repeat(501));
        for url in [
            "b",
            "s3:/b",
            "s3://",
            "s3:///a",
            "s3://b//",
            "s3://b/a//b",
            "s3://b/../a",
            "s3://b/ü",
            "s3://b/a b",
            &long,
        ] {
            assert!(url.parse::<S3Location>().is_err(), "{url}");
        }
    }
}
