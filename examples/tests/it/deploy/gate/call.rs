//! What a request asks for, as IAM names it.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// A call as IAM names it.
pub(super) struct Call {
    pub(super) action: String,
    pub(super) resource: String,
    pub(super) context: BTreeMap<&'static str, Vec<String>>,
}

/// What a request is signed with: `Credential=AKID/date/region/service/aws4_request`.
pub(super) struct Scope {
    pub(super) key: String,
    pub(super) service: String,
}

impl Scope {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let authorization = headers.get("authorization").map(|value| value.to_str().unwrap()).unwrap_or_default();
        let scope = authorization.split("Credential=").nth(1).unwrap_or_else(|| panic!("unsigned: {headers:?}"));
        let mut parts = scope.split('/').map(str::to_owned);
        Self { key: parts.next().unwrap(), service: parts.nth(2).unwrap() }
    }
}

impl Call {
    fn new(action: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { action: action.into(), resource: resource.into(), context: BTreeMap::new() }
    }

    fn with(mut self, key: &'static str, values: impl IntoIterator<Item = String>) -> Self {
        self.context.insert(key, values.into_iter().collect());
        self
    }

    /// What a request to a service asks for, each with a permission of its own.
    pub(super) fn all_of(service: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Vec<Self> {
        let json = || serde_json::from_slice::<Value>(body).unwrap();
        let target = |prefix: &str| {
            let target = headers["x-amz-target"].to_str().unwrap();
            target.strip_prefix(prefix).unwrap_or_else(|| panic!("{target}")).to_owned()
        };
        match service {
            "s3" => vec![Self::to_bucket(method, uri, headers)],
            "sqs" => vec![Self::to_queue(&target("AmazonSQS."), &json())],
            "dynamodb" => vec![Self::to_table(&target("DynamoDB_20120810."), &json())],
            "s3vectors" => Self::to_vectors(uri.path().trim_start_matches('/'), &json()),
            "bedrock" => Self::to_bedrock(method, uri, body),
            other => panic!("a service that the gate does not know: {other}"),
        }
    }

    /// As the service authorization reference has it; an order is also a role that is passed on.
    fn to_bedrock(method: &Method, uri: &Uri, body: &Bytes) -> Vec<Self> {
        const ACCOUNT: &str = "arn:aws:bedrock:us-east-1:000000000000";
        // The scripted server has an account of its own.
        let ours = |arn: &str| arn.replace(":123456789012:", ":000000000000:");
        let path = ours(&percent_decode(uri.path()));
        let parts: Vec<_> = path.trim_start_matches('/').splitn(2, '/').collect();
        let named = |kind: &str, id: &str| match id.starts_with("arn:") {
            true => id.to_owned(),
            false => format!("{ACCOUNT}:{kind}/{id}"),
        };
        let order = || serde_json::from_slice::<Value>(body).unwrap();
        let text = |order: &Value, field: &str| order[field].as_str().unwrap().to_owned();
        let passing = |order: &Value| {
            Self::new("iam:PassRole", text(order, "roleArn"))
                .with("iam:PassedToService", ["bedrock.amazonaws.com".to_owned()])
        };
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["model-import-jobs"]) => {
                vec![Self::new("bedrock:CreateModelImportJob", "*"), passing(&order())]
            }
            ("POST", ["model-customization-jobs"]) => {
                let order = order();
                let base =
                    format!("arn:aws:bedrock:us-east-1::foundation-model/{}", text(&order, "baseModelIdentifier"));
                vec![Self::new("bedrock:CreateModelCustomizationJob", base), passing(&order)]
            }
            ("POST", ["model-customization", "custom-model-deployments"]) => {
                vec![Self::new("bedrock:CreateCustomModelDeployment", ours(&text(&order(), "modelArn")))]
            }
            ("GET", ["model-import-jobs", id]) => {
                vec![Self::new("bedrock:GetModelImportJob", named("model-import-job", id))]
            }
            ("GET", ["model-customization-jobs", id]) => {
                vec![Self::new("bedrock:GetModelCustomizationJob", named("model-customization-job", id))]
            }
            ("GET", ["model-customization", rest]) => {
                let id = rest.strip_prefix("custom-model-deployments/").unwrap();
                vec![Self::new("bedrock:GetCustomModelDeployment", named("custom-model-deployment", id))]
            }
            ("GET", ["imported-models", id]) => {
                vec![Self::new("bedrock:GetImportedModel", named("imported-model", id))]
            }
            ("POST", ["model", rest]) => {
                let (model, operation) = rest.rsplit_once('/').unwrap();
                assert!(matches!(operation, "invoke" | "converse"), "a call that the gate does not know: {operation}");
                vec![Self::new("bedrock:InvokeModel", model)]
            }
            _ => panic!("a call that the gate does not know: {method} {path}"),
        }
    }

    fn to_queue(operation: &str, body: &Value) -> Self {
        let queue = body["QueueUrl"].as_str().or(body["QueueName"].as_str()).unwrap();
        let queue = queue.rsplit('/').next().unwrap();
        // A batch needs the permission of its single call.
        let action = format!("sqs:{}", operation.trim_end_matches("Batch"));
        Self::new(action, format!("arn:aws:sqs:us-east-1:000000000000:{queue}"))
    }

    /// The partition keys of what is read or written are told to the policies.
    fn to_table(operation: &str, body: &Value) -> Self {
        let tenant = |item: &Value| item["tenant"]["S"].as_str().unwrap().to_owned();
        let (table, tenants) = match operation {
            "GetItem" | "DeleteItem" => (body["TableName"].as_str(), vec![tenant(&body["Key"])]),
            "PutItem" => (body["TableName"].as_str(), vec![tenant(&body["Item"])]),
            "Query" => {
                let condition = body["KeyConditionExpression"].as_str().unwrap();
                assert!(condition.starts_with("#tenant = :tenant"), "{condition}");
                let value = &body["ExpressionAttributeValues"][":tenant"]["S"];
                (body["TableName"].as_str(), vec![value.as_str().unwrap().to_owned()])
            }
            "BatchWriteItem" => {
                let mut tables = body["RequestItems"].as_object().unwrap().iter();
                let (Some((table, requests)), None) = (tables.next(), tables.next()) else { panic!("{body}") };
                let requests = requests.as_array().unwrap().iter();
                (Some(&**table), requests.map(|request| tenant(&request["DeleteRequest"]["Key"])).collect())
            }
            other => panic!("a call that the gate does not know: {other}"),
        };
        let table = format!("arn:aws:dynamodb:us-east-1:000000000000:table/{}", table.unwrap());
        Self::new(format!("dynamodb:{operation}"), table).with("dynamodb:LeadingKeys", tenants)
    }

    /// Metadata in answers, and filters on it, need the permission to read vectors too.
    fn to_vectors(operation: &str, body: &Value) -> Vec<Self> {
        let [bucket, index] = ["vectorBucketName", "indexName"].map(|field| body[field].as_str().unwrap());
        let resource = format!("arn:aws:s3vectors:us-east-1:000000000000:bucket/{bucket}/index/{index}");
        let reads =
            ["returnMetadata", "returnData"].iter().any(|field| body[field] == true) || body["filter"].is_object();
        let and_read = reads && operation != "GetVectors";
        let actions = [operation].into_iter().chain(and_read.then_some("GetVectors"));
        actions.map(|action| Self::new(format!("s3vectors:{action}"), &*resource)).collect()
    }

    fn to_bucket(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let path = percent_decode(uri.path().trim_start_matches('/'));
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        let query = uri.query().unwrap_or_default();
        let action = match (method.as_str(), key.is_empty()) {
            ("GET" | "HEAD", true) => "s3:ListBucket",
            ("GET" | "HEAD", false) => "s3:GetObject",
            ("PUT", false) if !query.contains("uploadId") => "s3:PutObject",
            ("DELETE", false) => "s3:DeleteObject",
            _ => panic!("a call that the gate does not know: {method} {uri}"),
        };
        let resource = if key.is_empty() { bucket.to_owned() } else { format!("{bucket}/{key}") };
        // The gate stands where TLS ends.
        let mut call =
            Self::new(action, format!("arn:aws:s3:::{resource}")).with("aws:SecureTransport", ["true".to_owned()]);
        if action == "s3:PutObject" {
            call = call.with("s3:ObjectCreationOperation", ["true".to_owned()]);
        }
        match headers.get("if-none-match") {
            Some(condition) => call.with("s3:if-none-match", [condition.to_str().unwrap().to_owned()]),
            None => call,
        }
    }

    /// What the service says to who may not.
    pub(super) fn refusal(&self) -> Response {
        let message = format!("User is not authorized to perform: {} on resource: {}", self.action, self.resource);
        let code = "AccessDeniedException";
        let typed = json!({ "__type": format!("com.amazon.coral.service#{code}"), "message": message }).to_string();
        let json_1_0 = [("content-type", "application/x-amz-json-1.0")];
        match self.action.split(':').next().unwrap() {
            "s3" => {
                let body = format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>");
                (StatusCode::FORBIDDEN, [("content-type", "application/xml")], body).into_response()
            }
            "sqs" => (StatusCode::FORBIDDEN, json_1_0, typed).into_response(),
            "dynamodb" => (StatusCode::BAD_REQUEST, json_1_0, typed).into_response(),
            _ => {
                let headers = [("content-type", "application/json"), ("x-amzn-errortype", code)];
                (StatusCode::FORBIDDEN, headers, json!({ "message": message }).to_string()).into_response()
            }
        }
    }
}

fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes()).next().unwrap().1.into_owned()
}
