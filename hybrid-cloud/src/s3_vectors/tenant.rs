//! The index of each tenant: its name, and whether it is there.

use std::{collections::BTreeMap, error::Error as StdError, sync::PoisonError};

use aws_sdk_s3vectors::types::{DataType, DistanceMetric, Index, MetadataConfiguration};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use hybrid_core::{
    Digest, Error, ErrorKind, Result, TenantId, VectorSchema,
    vector::{FieldKind, Metric},
};

use super::Inner;
use crate::aws::{aws_error, code_of};

const MAX_NAME: usize = 63;

/// What a call failed with.
pub(super) fn failed<E>(operation: &'static str, bucket: &str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let is_full = code_of(&error).is_some_and(|code| code.ends_with("ServiceQuotaExceededException"));
    let error = aws_error("s3vectors", operation, error).with("bucket", bucket);
    if !is_full {
        return error;
    }
    Error::new(
        ErrorKind::StorageFull,
        operation,
        "a quota of S3 Vectors is used up; ask for a higher one, or use another bucket",
    )
    .with("bucket", bucket)
    .with_source(error)
}

/// Whether the call failed because its index, or the bucket, is not there.
pub(super) fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    code_of(error).is_some_and(|code| code.ends_with("NotFoundException") && !code.contains("Kms"))
}

pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = prefix.as_bytes();
    if (1..=24).contains(&bytes.len()) && plain(bytes[0]) && bytes.iter().all(|&byte| plain(byte) || byte == b'-') {
        return Ok(());
    }
    Err(Error::invalid(
        "open vector index",
        "expected a prefix of 1 to 24 characters of a-z, 0-9 and -, the first a letter or digit",
    )
    .with("prefix", format_args!("{prefix:?}")))
}

/// A name of its own for each tenant: no tenant's name has a dot, and the endings tell the two forms apart.
pub(super) fn index_name(prefix: &str, tenant: &TenantId) -> String {
    let name = format!("{prefix}.{}.t", tenant.as_str().replace('_', "."));
    if name.len() <= MAX_NAME {
        return name;
    }
    let digest = Digest::of(tenant.as_str().as_bytes()).to_string();
    format!("{prefix}.{}.h", &digest[..32])
}

impl Inner {
    pub(super) fn index_name(&self, tenant: &TenantId) -> String {
        index_name(&self.prefix, tenant)
    }

    /// Whether the tenant has an index. One of another schema is an error.
    pub(super) async fn has_index(&self, tenant: &TenantId) -> Result<bool> {
        const OPERATION: &str = "open vector index";
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(tenant) {
            return Ok(true);
        }
        let name = self.index_name(tenant);
        let get = self.client.get_index().vector_bucket_name(&self.bucket).index_name(&name).send().await;
        let index = match get {
            Ok(found) => found.index,
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(failed(OPERATION, &self.bucket, error)),
        };
        if let Some(index) = index {
            self.profile
                .schema
                .check_extends(&schema_of(&self.profile.schema, &index)?)
                .map_err(|error| error.with("bucket", &self.bucket).with("index", &name))?;
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone());
        Ok(true)
    }

    /// Makes the tenant's index unless it is there.
    pub(super) async fn make_index(&self, tenant: &TenantId) -> Result<()> {
        const OPERATION: &str = "make vector index";
        if self.has_index(tenant).await? {
            return Ok(());
        }
        let schema = &self.profile.schema;
        let stored: Vec<_> = schema.stored_fields().map(str::to_owned).collect();
        let configuration = MetadataConfiguration::builder()
            .set_non_filterable_metadata_keys(Some(stored.clone()))
            .build()
            .map_err(|error| Error::internal(OPERATION, "a request could not be made").with_source(error))?;
        let create = self
            .client
            .create_index()
            .vector_bucket_name(&self.bucket)
            .index_name(self.index_name(tenant))
            .data_type(DataType::Float32)
            .dimension(i32::try_from(schema.dimension()).unwrap_or(i32::MAX))
            .distance_metric(match schema.metric() {
                Metric::Euclidean => DistanceMetric::Euclidean,
                _ => DistanceMetric::Cosine,
            })
            .set_metadata_configuration((!stored.is_empty()).then_some(configuration));
        match create.send().await {
            Ok(_) => {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone());
                Ok(())
            }
            // Another process was first, perhaps with another schema.
            Err(error) if error.as_service_error().is_some_and(|service| service.is_conflict_exception()) => {
                self.has_index(tenant).await.map(drop)
            }
            Err(error) if is_missing(&error) => {
                Err(Error::invalid(OPERATION, "the vector bucket does not exist; create it, or name another")
                    .with("bucket", &self.bucket))
            }
            Err(error) => Err(failed(OPERATION, &self.bucket, error)),
        }
    }
}

/// The schema that an index was made with, as far as the service knows it: of the fields, only which are stored.
fn schema_of(ours: &VectorSchema, index: &Index) -> Result<VectorSchema> {
    let metric = match &index.distance_metric {
        DistanceMetric::Cosine => Metric::Cosine,
        DistanceMetric::Euclidean => Metric::Euclidean,
        other => {
            return Err(Error::unsupported(
                "open vector index",
                "the index has a metric that this version does not know",
            )
            .with("metric", other.as_str()));
        }
    };
    let stored = index.metadata_configuration.as_ref().map_or(&[][..], |found| found.non_filterable_metadata_keys());
    // What is declared here and not stored there is taken to be the same: the service lets any such field come.
    let mut fields: BTreeMap<&str, FieldKind> = ours
        .fields()
        .iter()
        .filter(|(_, kind)| **kind != FieldKind::Stored)
        .map(|(name, kind)| (&**name, *kind))
        .collect();
    fields.extend(stored.iter().map(|name| (name.as_str(), FieldKind::Stored)));
    let dimension = usize::try_from(index.dimension).unwrap_or_default();
    fields
        .into_iter()
        .try_fold(VectorSchema::new(dimension, metric)?, |schema, (name, kind)| schema.with_field(name, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenant_has_a_legal_name_of_its_own() {
        let prefix = "p".repeat(24);
        let tenants: Vec<_> = ["a", "a-b", "a_b", "a--b", "a_", "a-", "t", &"x".repeat(63), &"x_".repeat(31)]
            .iter()
            .map(|name| TenantId::new(*name).unwrap())
            .collect();
        let mut names: Vec<_> = tenants.iter().map(|tenant| index_name(&prefix, tenant)).collect();
        for name in &names {
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            assert!((3..=63).contains(&name.len()) && name.bytes().all(legal), "{name}");
            assert!(name.ends_with(|last: char| last.is_ascii_alphanumeric()), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), tenants.len());
    }
}
