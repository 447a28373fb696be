//! Making the table.

use std::time::Duration;

use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus,
        TimeToLiveSpecification, TimeToLiveStatus,
    },
};
use hybrid_core::{Clock, Error, Result};

use super::{call::failed, item::NAMES};

const OPERATION: &str = "create table";
/// How long a new table may take; seconds, as a rule.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn create(client: &Client, table: &str, clock: &dyn Clock) -> Result<()> {
    let invalid = |error| Error::internal(OPERATION, "a request could not be made").with_source(error);
    let attribute = |name: &str| {
        AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(ScalarAttributeType::S)
            .build()
            .map_err(invalid)
    };
    let key =
        |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build().map_err(invalid);
    let created = client
        .create_table()
        .table_name(table)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute(NAMES.tenant)?)
        .attribute_definitions(attribute(NAMES.place)?)
        .key_schema(key(NAMES.tenant, KeyType::Hash)?)
        .key_schema(key(NAMES.place, KeyType::Range)?)
        .send()
        .await;
    match created {
        Err(error) if !error.as_service_error().is_some_and(|service| service.is_resource_in_use_exception()) => {
            return Err(failed(OPERATION, table, error));
        }
        _ => {}
    }
    let end = clock.monotonic().plus(PATIENCE);
    while !is_active(client, table).await? {
        if end.since(clock.monotonic()).is_zero() {
            return Err(Error::timeout(OPERATION, "the table is not ready yet; look again later").with("table", table));
        }
        clock.sleep(Duration::from_millis(500)).await;
    }
    // Whoever made the table: an earlier call may have come so far and no further.
    if forgets(client, table).await? {
        return Ok(());
    }
    let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name(NAMES.ttl).build().map_err(invalid)?;
    let updated = client.update_time_to_live().table_name(table).time_to_live_specification(ttl).send().await;
    updated.map(drop).map_err(|error| failed(OPERATION, table, error))
}

/// Whether the table clears away what has expired, or is about to.
async fn forgets(client: &Client, table: &str) -> Result<bool> {
    let described = client.describe_time_to_live().table_name(table).send().await;
    let described = described.map_err(|error| failed(OPERATION, table, error))?;
    let status = described.time_to_live_description.and_then(|description| description.time_to_live_status);
    Ok(matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)))
}

async fn is_active(client: &Client, table: &str) -> Result<bool> {
    let described = client.describe_table().table_name(table).send().await;
    let described = described.map_err(|error| failed(OPERATION, table, error))?;
    Ok(described.table.and_then(|table| table.table_status) == Some(TableStatus::Active))
}
