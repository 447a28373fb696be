//! IAM before a server that asks nobody: a reverse proxy that lets through what the policies of a stack allow.
//!
//! It decides as the user guide's "policy evaluation logic" says for one account: an explicit `Deny` wins, then an `Allow` of the caller's role, and without
//! either the call is refused. It knows the parts of the policy language that the template uses, and panics at any other, so that a template cannot
//! outgrow it unseen. Who calls is told from the access key in the request's signature; the signature itself is not checked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The policies of a stack.
pub(super) struct Policies {
    /// Each role's policy, by the access key of who has taken it.
    pub(super) roles: BTreeMap<String, (String, Value)>,
    pub(super) bucket: Value,
}

/// A gate at work.
pub(super) struct Gate {
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    policies: Policies,
    server: String,
    /// Bedrock, where it is another server.
    bedrock: String,
    client: reqwest::Client,
    decided: Mutex<Vec<Decided>>,
}

/// A call that was let through or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) role: String,
    pub(super) action: String,
    pub(super) resource: String,
    pub(super) allowed: bool,
}

impl Gate {
    /// A gate before `server`, for as long as the runtime lives.
    pub(super) async fn open(server: &str, bedrock: &str, policies: Policies) -> Self {
        let (server, bedrock, client) = (server.to_owned(), bedrock.to_owned(), reqwest::Client::new());
        let shared = Arc::new(Shared { policies, server, bedrock, client, decided: Mutex::default() });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, shared }
    }

    /// Whether a role may do something that nobody has done.
    pub(super) fn decide(&self, role: &str, action: &str, resource: &str, context: &[(&'static str, &str)]) -> bool {
        let Policies { roles, bucket } = &self.shared.policies;
        let (_, policy) = roles.values().find(|(name, _)| name == role).unwrap();
        let context = context.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Call { action: action.to_owned(), resource: resource.to_owned(), context }.is_allowed(policy, bucket)
    }

    pub(super) fn decided(&self) -> Vec<Decided> {
        self.shared.decided.lock().unwrap().clone()
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let calls = Call::all_of(&parts.method, &parts.uri, &parts.headers, &body);
    let key = access_key(&parts.headers);
    let (role, policy) = shared.policies.roles.get(&key).unwrap_or_else(|| panic!("nobody has the key {key}"));
    for call in &calls {
        let allowed = call.is_allowed(policy, &shared.policies.bucket);
        let (action, resource) = (call.action.clone(), call.resource.clone());
        shared.decided.lock().unwrap().push(Decided { role: role.clone(), action, resource, allowed });
        if !allowed {
            return call.refusal();
        }
    }
    let is_bedrocks = calls.iter().any(|call| call.action.starts_with("bedrock:"));
    let server = if is_bedrocks { &shared.bedrock } else { &shared.server };
    let url = format!("{server}{}", parts.uri.path_and_query().unwrap());
    let answer = shared.client.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("transfer-encoding");
    let bytes = answer.bytes().await.unwrap();
    (status, headers, Body::from(bytes)).into_response()
}

/// The id in `Credential=AKID/date/region/service/aws4_request`.
fn access_key(headers: &HeaderMap) -> String {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap()).unwrap_or_default();
    let credential = authorization.split("Credential=").nth(1).and_then(|rest| rest.split('/').next());
    credential.unwrap_or_else(|| panic!("unsigned: {headers:?}")).to_owned()
}

/// A call as IAM names it.
struct Call {
    action: String,
    resource: String,
    context: BTreeMap<&'static str, String>,
}

impl Call {
    /// What a request asks for, each with a permission of its own.
    fn all_of(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Vec<Self> {
        let of_bedrock = ["/model-import-jobs", "/imported-models/", "/model/"];
        match headers.get("x-amz-target") {
            Some(target) => vec![Self::to_queue(target.to_str().unwrap(), body)],
            None if of_bedrock.iter().any(|path| uri.path().starts_with(path)) => Self::to_bedrock(method, uri, body),
            None => vec![Self::to_bucket(method, uri, headers)],
        }
    }

    /// As the service authorization reference has it; an order is also a role that is passed on.
    fn to_bedrock(method: &Method, uri: &Uri, body: &Bytes) -> Vec<Self> {
        // The scripted server has an account of its own.
        let path = percent_decode(uri.path()).replace(":123456789012:", ":000000000000:");
        let parts: Vec<_> = path.trim_start_matches('/').splitn(2, '/').collect();
        let ours = |kind: &str, id: &str| match id.starts_with("arn:") {
            true => id.to_owned(),
            false => format!("arn:aws:bedrock:us-east-1:000000000000:{kind}/{id}"),
        };
        let call =
            |action: &str, resource: String| Self { action: action.to_owned(), resource, context: BTreeMap::new() };
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["model-import-jobs"]) => {
                let order: Value = serde_json::from_slice(body).unwrap();
                let passed = call("iam:PassRole", order["roleArn"].as_str().unwrap().to_owned());
                let context = BTreeMap::from([("iam:PassedToService", "bedrock.amazonaws.com".to_owned())]);
                vec![call("bedrock:CreateModelImportJob", "*".to_owned()), Self { context, ..passed }]
            }
            ("GET", ["model-import-jobs", id]) => {
                vec![call("bedrock:GetModelImportJob", ours("model-import-job", id))]
            }
            ("GET", ["imported-models", id]) => vec![call("bedrock:GetImportedModel", ours("imported-model", id))],
            ("POST", ["model", rest]) => {
                let (model, operation) = rest.rsplit_once('/').unwrap();
                assert_eq!(operation, "invoke", "a call that the gate does not know");
                vec![call("bedrock:InvokeModel", model.to_owned())]
            }
            _ => panic!("a call that the gate does not know: {method} {path}"),
        }
    }

    fn to_queue(target: &str, body: &Bytes) -> Self {
        let operation = target.strip_prefix("AmazonSQS.").unwrap_or_else(|| panic!("{target}"));
        let body: Value = serde_json::from_slice(body).unwrap();
        let queue = body["QueueUrl"].as_str().or(body["QueueName"].as_str()).unwrap();
        let queue = queue.rsplit('/').next().unwrap();
        Self {
            // A batch needs the permission of its single call.
            action: format!("sqs:{}", operation.trim_end_matches("Batch")),
            resource: format!("arn:aws:sqs:us-east-1:000000000000:{queue}"),
            context: BTreeMap::new(),
        }
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
        // The gate stands where TLS ends.
        let mut context = BTreeMap::from([("aws:SecureTransport", "true".to_owned())]);
        if action == "s3:PutObject" {
            context.insert("s3:ObjectCreationOperation", "true".to_owned());
        }
        if let Some(condition) = headers.get("if-none-match") {
            context.insert("s3:if-none-match", condition.to_str().unwrap().to_owned());
        }
        let resource = if key.is_empty() { bucket.to_owned() } else { format!("{bucket}/{key}") };
        Self { action: action.to_owned(), resource: format!("arn:aws:s3:::{resource}"), context }
    }

    fn is_allowed(&self, role: &Value, bucket: &Value) -> bool {
        let matching = |policy: &Value, effect: &str| {
            policy["Statement"]
                .as_array()
                .unwrap()
                .iter()
                .any(|statement| statement["Effect"] == effect && self.matches(statement))
        };
        // The bucket's policy has denials alone, so it is no matter which of the two allows.
        !matching(bucket, "Deny") && !matching(role, "Deny") && matching(role, "Allow")
    }

    fn matches(&self, statement: &Value) -> bool {
        for part in statement.as_object().unwrap().keys() {
            let known = ["Sid", "Effect", "Principal", "Action", "Resource", "NotResource", "Condition"];
            assert!(known.contains(&part.as_str()), "a part of a policy that the gate does not know: {part}");
        }
        let any = |patterns: &Value, value: &str| texts(patterns).iter().any(|pattern| like(pattern, value));
        let resource = match (statement.get("Resource"), statement.get("NotResource")) {
            (Some(resources), None) => any(resources, &self.resource),
            (None, Some(others)) => !any(others, &self.resource),
            _ => panic!("{statement}"),
        };
        any(&statement["Action"], &self.action) && resource && self.holds(statement.get("Condition"))
    }

    fn holds(&self, condition: Option<&Value>) -> bool {
        let tests = condition.and_then(Value::as_object).into_iter().flatten();
        tests.into_iter().all(|(operator, keys)| {
            keys.as_object().unwrap().iter().all(|(key, expected)| {
                let (found, expected) = (self.context.get(key.as_str()), expected.as_str().unwrap());
                match operator.as_str() {
                    "Null" => found.is_none() == (expected == "true"),
                    "Bool" | "StringEquals" => found.is_some_and(|found| found == expected),
                    other => panic!("an operator that the gate does not know: {other}"),
                }
            })
        })
    }

    fn refusal(&self) -> Response {
        let message = format!("User is not authorized to perform: {} on resource: {}", self.action, self.resource);
        if self.action.starts_with("bedrock:") || self.action.starts_with("iam:") {
            let headers = [("content-type", "application/json"), ("x-amzn-errortype", "AccessDeniedException")];
            return (StatusCode::FORBIDDEN, headers, json!({ "message": message }).to_string()).into_response();
        }
        if self.action.starts_with("sqs:") {
            let body = json!({ "__type": "com.amazon.coral.service#AccessDeniedException", "message": message });
            return (StatusCode::FORBIDDEN, [("content-type", "application/x-amz-json-1.0")], body.to_string())
                .into_response();
        }
        let body = format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>");
        (StatusCode::FORBIDDEN, [("content-type", "application/xml")], body).into_response()
    }
}

fn texts(one_or_more: &Value) -> Vec<&str> {
    match one_or_more {
        Value::Array(texts) => texts.iter().map(|text| text.as_str().unwrap()).collect(),
        text => vec![text.as_str().unwrap()],
    }
}

/// Whether `value` is like a pattern in which `*` stands for anything.
fn like(pattern: &str, value: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = value.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes()).next().unwrap().1.into_owned()
}

#[test]
fn a_pattern_is_matched_as_iam_does() {
    for (pattern, value, matches) in [
        ("t/*/jobs/*/job", "t/a/jobs/1/job", true),
        ("t/*/jobs/*/job", "t/a/jobs/1/result", false),
        ("t/*/files/*", "t/a/files/", true),
        ("sqs:SendMessage", "sqs:SendMessage", true),
        ("sqs:SendMessage", "sqs:SendMessages", false),
        ("s3:*", "s3:GetObject", true),
        ("a*a", "a", false),
    ] {
        assert_eq!(like(pattern, value), matches, "{pattern} {value}");
    }
}
