//! The calls that several operations make, and what they fail with.

use std::{error::Error as StdError, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    operation::{put_item::PutItemError, query::builders::QueryFluentBuilder},
};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use hybrid_core::{Error, TenantId};

use super::item::{Attributes, NAMES, text};
use crate::aws::{aws_error, code_of};

/// What a call failed with.
pub(super) fn failed<E>(operation: &'static str, table: &str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    // Not "not found", which is said of records.
    if code_of(&error).is_some_and(|code| code.ends_with("ResourceNotFoundException")) {
        return Error::invalid(operation, "the table does not exist; create it, or name another").with("table", table);
    }
    aws_error("dynamodb", operation, error).with("table", table)
}

/// What the place held that a condition did not hold for.
pub(super) fn held(error: &PutItemError) -> Option<Attributes> {
    match error {
        PutItemError::ConditionalCheckFailedException(failed) => {
            failed.item().filter(|attributes| !attributes.is_empty()).cloned()
        }
        _ => None,
    }
}

/// A query for all items of a tenant.
pub(super) fn items_of(client: &Client, table: &str, tenant: &TenantId) -> QueryFluentBuilder {
    client
        .query()
        .table_name(table)
        .consistent_read(true)
        .key_condition_expression("#tenant = :tenant")
        .expression_attribute_names("#tenant", NAMES.tenant)
        .expression_attribute_values(":tenant", text(tenant.as_str()))
}

pub(super) mod retry {
    //! Batches of which the service does a part.

    use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};
    use hybrid_core::{Clock, ErrorKind, Result};

    use super::*;

    /// The most that one call takes.
    const BATCH: usize = 25;
    /// How often the rest of a batch is asked for again, with waits that double up to the longest.
    const TRIES: u32 = 12;
    const LONGEST: Duration = Duration::from_secs(5);

    /// Deletes the items with these keys.
    pub(crate) async fn delete_all(
        client: &Client,
        table: &str,
        keys: Vec<Attributes>,
        clock: &dyn Clock,
    ) -> Result<()> {
        const OPERATION: &str = "erase tenant";
        let invalid = |error| Error::internal(OPERATION, "a request could not be made").with_source(error);
        for batch in keys.chunks(BATCH) {
            let mut rest = Vec::with_capacity(batch.len());
            for key in batch {
                let delete = DeleteRequest::builder().set_key(Some(key.clone())).build().map_err(invalid)?;
                rest.push(WriteRequest::builder().delete_request(delete).build());
            }
            let mut wait = Duration::from_millis(50);
            for attempt in 1.. {
                let write = client.batch_write_item().request_items(table, rest);
                let written = write.send().await.map_err(|error| failed(OPERATION, table, error))?;
                rest = written.unprocessed_items.unwrap_or_default().remove(table).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                if attempt == TRIES {
                    return Err(Error::new(
                        ErrorKind::RateLimited,
                        OPERATION,
                        "the service leaves a part of the batch undone; erase again",
                    )
                    .with("table", table)
                    .with("undone", rest.len()));
                }
                clock.sleep(wait).await;
                wait = (wait * 2).min(LONGEST);
            }
        }
        Ok(())
    }
}
