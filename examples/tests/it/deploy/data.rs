//! What customers keep: the stack's table, as the store of records finds it.

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    dynamodb::{DynamoRecordOptions, DynamoRecordStore},
};
use hybrid_core::{CollectionName, NewRecord, PutCondition, RecordKey, RecordStore, TenantId};
use serde_json::json;

use super::Stack;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stacks_table_keeps_records_and_the_storefront_may_do_no_more_with_it_than_that() {
    let stack = Stack::deploy_with(&[("CustomerData", "true")], "").await;
    let made = &stack.made;
    let config = AwsConfig::load(AwsOptions::local(stack.server.endpoint(), "test", "test")).await.unwrap();
    let table = made["outputs"]["RecordsTable"].as_str().unwrap();
    let store = DynamoRecordStore::new(&config, DynamoRecordOptions::table(table)).unwrap();
    let (bakery, orders) = (TenantId::new("bakery").unwrap(), CollectionName::new("orders").unwrap());
    let key = RecordKey::new("1").unwrap();
    store.put(&bakery, &orders, &key, NewRecord::new("two rye"), PutCondition::Create).await.unwrap();
    assert_eq!(store.get(&bakery, &orders, &key).await.unwrap().unwrap().value, "two rye");
    store.erase(&bakery).await.unwrap();
    assert!(store.get(&bakery, &orders, &key).await.unwrap().is_none());

    let statements = |role: &str| made["roles"][role]["Statement"].as_array().unwrap().clone();
    let of_data = |role: &str| {
        let all = statements(role).into_iter();
        all.filter(|statement| statement["Action"].to_string().contains("dynamodb:")).collect::<Vec<_>>()
    };
    let [keep] = &of_data("storefront")[..] else { panic!("{:?}", of_data("storefront")) };
    assert_eq!(
        keep["Action"],
        json!([
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:DeleteItem",
            "dynamodb:Query",
            "dynamodb:BatchWriteItem"
        ])
    );
    assert!(keep["Resource"].as_str().unwrap().ends_with(":table/hybrid-records"), "{keep}");
    assert_eq!(keep["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"], "*");
    assert!(of_data("kitchen").is_empty() && of_data("collector").is_empty());
}
