//! What customers keep in a stack's table and vector bucket, under the storefront's role. The test kit's server is S3 Vectors.

use std::collections::BTreeSet;

use hybrid_cloud::{
    dynamodb::{DynamoRecordOptions, DynamoRecordStore},
    testkit::{MissingField, S3VectorsServer},
};
use hybrid_core::{CollectionName, NewRecord, PutCondition, RecordKey, RecordQuery, RecordStore, TenantId};
use serde_json::json;

use super::{ROLES, Stack};
use crate::{aws::make_vector_bucket, surface::keeps_documents_and_records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stacks_table_and_vector_bucket_keep_what_customers_keep_under_the_storefronts_role() {
    let vectors = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    let stack = Stack::deploy_with(&[("CustomerData", "true")], &[("s3vectors", vectors.endpoint())]).await;
    let output = |name: &str| stack.made["outputs"][name].as_str().unwrap();
    make_vector_bucket(&vectors, output("DocumentsBucket"));

    let more = format!("region=us-east-1&endpoint={}", stack.gate.endpoint);
    let documents = format!("s3vectors://{}/texts?{more}", output("DocumentsBucket"));
    let records = format!("dynamodb://{}?{more}", output("RecordsTable"));
    let environment = stack.environment("storefront");
    keeps_documents_and_records(&["--documents-in", &documents, "--records-in", &records], &environment).await;

    // What only a key for it may do.
    let options = DynamoRecordOptions::table(output("RecordsTable"));
    let store = DynamoRecordStore::new(&stack.config("storefront").await, options).unwrap();
    let (bakery, orders) = (TenantId::new("bakery").unwrap(), CollectionName::new("orders").unwrap());
    let key = RecordKey::new("1").unwrap();
    store.put(&bakery, &orders, &key, NewRecord::new("two rye"), PutCondition::Create).await.unwrap();
    assert_eq!(store.query(&bakery, &orders, RecordQuery::default()).await.unwrap().records.len(), 1);
    store.erase(&bakery).await.unwrap();
    assert!(store.get(&bakery, &orders, &key).await.unwrap().is_none());

    let decided = stack.gate.decided();
    let refused: Vec<_> = decided.iter().filter(|decided| !decided.allowed).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let used: BTreeSet<_> = decided.iter().map(|decided| decided.action.as_str()).collect();
    for action in ["GetItem", "PutItem", "DeleteItem", "Query", "BatchWriteItem"] {
        assert!(used.contains(&*format!("dynamodb:{action}")), "{action} of {used:?}");
    }
    for action in ["GetIndex", "CreateIndex", "PutVectors", "GetVectors", "QueryVectors", "DeleteVectors"] {
        assert!(used.contains(&*format!("s3vectors:{action}")), "{action} of {used:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_for_one_tenant_reaches_no_others_records_and_documents() {
    let stack = Stack::deploy_with(&[("CustomerData", "true"), ("Tenant", "bakery")], &[]).await;
    let account = "us-east-1:000000000000";
    let table = format!("arn:aws:dynamodb:{account}:table/hybrid-records");
    let index = |name: &str| format!("arn:aws:s3vectors:{account}:bucket/hybrid-documents-000000000000/index/{name}");
    for role in ROLES {
        for (tenant, expected) in [("bakery", role == "storefront"), ("florist", false), ("bakery-2", false)] {
            for action in ["GetItem", "PutItem", "DeleteItem", "Query", "BatchWriteItem"] {
                let leading = [("dynamodb:LeadingKeys", tenant)];
                let may = stack.gate.decide(role, &format!("dynamodb:{action}"), &table, &leading);
                assert_eq!(may, expected, "{role} {action} {tenant}");
            }
            for action in ["CreateIndex", "PutVectors", "QueryVectors", "DeleteIndex"] {
                let index = index(&format!("texts.{tenant}.t"));
                let may = stack.gate.decide(role, &format!("s3vectors:{action}"), &index, &[]);
                assert_eq!(may, expected, "{role} {action} {index}");
            }
        }
        // A scan names no tenant, and who may delete a table needs no tenant's leave.
        for action in ["Scan", "DeleteTable", "UpdateTable", "DescribeTable"] {
            assert!(!stack.gate.decide(role, &format!("dynamodb:{action}"), &table, &[]), "{role} {action}");
        }
        let bucket = index("").replace("/index/", "");
        assert!(!stack.gate.decide(role, "s3vectors:DeleteVectorBucket", &bucket, &[]), "{role}");
        // The other's tenant `bakery_x`, whose index is named with a dot.
        assert!(!stack.gate.decide(role, "s3vectors:GetVectors", &index("texts.bakery.x.t"), &[]), "{role}");
    }
    let leading = &stack.made["roles"]["storefront"].to_string();
    assert!(leading.contains(&json!({ "dynamodb:LeadingKeys": "bakery" }).to_string()), "{leading}");
}
