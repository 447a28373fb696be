//! The stack of `deploy/hybrid.yaml`, deployed, and the loop on it under its roles.
//!
//! The server makes all of the stack's resources but those in [`LEFT_OUT`], and of the bucket neither its lifecycle nor its key for encryption. It asks
//! nobody for permission; the [gate] before it does, by the very policies that the server has of the stack. What stays untested: the function and its API,
//! who may take a role, and whatever AWS does otherwise than its documentation says.

mod bedrock;
mod data;
mod gate;

use std::{collections::BTreeSet, path::Path, process::Command};

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, StaticCredentials},
    s3::{S3Location, S3Options, S3Store},
    sqs::{SqsQueue, SqsQueueOptions},
    testkit::{Ministack, Python},
};
use hybrid_core::{
    ArtifactStore, ErrorKind, JobQueue, JobQueueExt, Key, NewMessage, ReadOptions, ReceiveOptions, Result,
};
use hybrid_examples::{data::Decided, quickstart::client::Client};
use reqwest::multipart;
use serde_json::{Value, json};

use crate::app::{Running, answer, until};
use gate::{Gate, Policies};

const TEMPLATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/hybrid.yaml");
/// What the server does not know.
const LEFT_OUT: &str = "OnlyTheJobsQueueDrops,Documents";
const PRINCIPAL: &str = "arn:aws:iam::000000000000:role/mac-studio";
const ROLES: [&str; 3] = ["storefront", "kitchen", "collector"];

/// A deployed stack, and the gate before it.
struct Stack {
    made: Value,
    gate: Gate,
    _server: Ministack,
}

impl Stack {
    async fn deploy() -> Self {
        Self::deploy_with(&[], &[]).await
    }

    /// The same with more parameters, and with other servers for some services.
    async fn deploy_with(parameters: &[(&str, &str)], others: &[(&str, &str)]) -> Self {
        let (server, python) = (Ministack::start().unwrap(), Python::servers().unwrap());
        let more: serde_json::Map<_, _> =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let more = Value::from(more).to_string();
        let arguments = [server.endpoint(), TEMPLATE, LEFT_OUT, PRINCIPAL, &more];
        let made: Value = serde_json::from_str(&python.run(include_str!("stack.py"), &arguments).unwrap()).unwrap();
        let of_role = |role: &str| {
            let key = made["credentials"][role][0].as_str().unwrap().to_owned();
            (key, (role.to_owned(), made["roles"][role].clone()))
        };
        let policies = Policies { roles: ROLES.map(of_role).into(), bucket: made["bucket_policy"].clone() };
        let gate = Gate::open(server.endpoint(), others, policies).await;
        Self { made, gate, _server: server }
    }

    fn credentials(&self, role: &str) -> [&str; 3] {
        std::array::from_fn(|i| self.made["credentials"][role][i].as_str().unwrap())
    }

    fn bucket(&self) -> &str {
        self.made["bucket"].as_str().unwrap()
    }

    /// The credentials of a role, as programs find them.
    fn environment(&self, role: &str) -> [(&str, &str); 3] {
        let [key, secret, token] = self.credentials(role);
        [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_SESSION_TOKEN", token)]
    }

    /// A program on this stack, with the credentials of a role.
    fn program(&self, program: &str, role: &str, site: &Path) -> Command {
        let more = format!("region=us-east-1&endpoint={}", self.gate.endpoint);
        let host = self.gate.endpoint.split_once("://").unwrap().1;
        let mut command = Command::new(program);
        command.arg("--site").arg(site);
        command.args(["--artifacts", &format!("s3://{}?path-style=true&{more}", self.bucket())]);
        command.args(["--queue", &format!("sqs://{host}/000000000000/hybrid-jobs?{more}")]);
        command.envs(self.environment(role));
        command
    }

    async fn config(&self, role: &str) -> AwsConfig {
        let [access_key, secret_key, token] = self.credentials(role).map(str::to_owned);
        let credentials = StaticCredentials { access_key, secret_key, session_token: Some(token) };
        let options = AwsOptions {
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.gate.endpoint.clone()),
            credentials: Some(credentials),
            ..AwsOptions::default()
        };
        AwsConfig::load(options).await.unwrap()
    }

    fn store(&self, config: &AwsConfig) -> S3Store {
        let location = S3Location::new(self.bucket(), "").unwrap();
        S3Store::new(config, location, S3Options { path_style: true, ..S3Options::default() }).unwrap()
    }

    async fn queue(&self, config: &AwsConfig) -> Result<SqsQueue> {
        let url = format!("{}/000000000000/hybrid-jobs", self.gate.endpoint);
        SqsQueue::open(config, url, SqsQueueOptions::default()).await
    }
}

fn data(file: &str) -> String {
    format!("{}/data/bakery/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Asks until the answer is as wished.
async fn ask_until(url: &str, wished: impl Fn(u16, &Value) -> bool) -> Value {
    let client = reqwest::Client::new();
    until(url, async || {
        let (status, said) = answer(client.get(url)).await;
        wished(status, &said).then_some(said)
    })
    .await
}

#[test]
fn the_template_is_what_cloudformation_takes() {
    let python = Python::environment(include_str!("requirements-cfn-lint.txt")).unwrap();
    let lint = Command::new(python.program("cfn-lint")).arg(TEMPLATE).output().unwrap();
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stack_comes_out_as_written_and_the_loop_runs_on_it_under_its_roles() {
    let stack = Stack::deploy().await;
    as_written(&stack.made);

    // Two machines: the storefront has nothing of the kitchen's but its public keys.
    let (kitchen_site, site) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = stack.program(env!("CARGO_BIN_EXE_kitchen"), "kitchen", kitchen_site.path());
    let mut kitchen = Running::with(command.args(["--events", "--device", "cpu"]));
    assert!(kitchen.line().contains("ready"));
    std::fs::create_dir(site.path().join("keys")).unwrap();
    for key in ["builder.pub.pem", "release.pub.pem"] {
        std::fs::copy(kitchen_site.path().join("keys").join(key), site.path().join("keys").join(key)).unwrap();
    }
    let storefront = || {
        let mut command = stack.program(env!("CARGO_BIN_EXE_storefront"), "storefront", site.path());
        Running::with(command.args(["--listen", "127.0.0.1:0", "--audit", "--jobs"]))
    };

    // Judgment goes in; a stop carries the last of it to the bucket.
    let mut shop = storefront();
    let client = Client::new(shop.line()).unwrap();
    client.judge_all(&Decided::read(Path::new(&data("first.jsonl"))).unwrap(), || ()).await.unwrap();
    shop.stop();
    let mut shop = storefront();
    let root = shop.line();

    // A training is ordered, done, judged, published and picked up.
    let mut train = stack.program(env!("CARGO_BIN_EXE_train"), "kitchen", kitchen_site.path());
    let ordered = train.args(["--golden", &data("golden.jsonl")]).output().unwrap();
    assert!(ordered.status.success(), "{}", String::from_utf8_lossy(&ordered.stderr));
    ask_until(&format!("{root}/readyz"), |status, _| status == 200).await;
    let answered = Client::new(root.clone()).unwrap().classify(&["Are you open on Sundays?"]).await.unwrap();
    assert_eq!(answered.results.len(), 1);

    // A customer's file is labelled, read and erased.
    let http = reqwest::Client::new();
    let part = multipart::Part::text("Two rye loaves, please\nAre you open on Sundays?\n").file_name("mail.txt");
    let form = multipart::Form::new().text("purpose", "batch").part("file", part);
    let (status, file) = answer(http.post(format!("{root}/v1/files")).multipart(form)).await;
    assert_eq!(status, 200, "{file}");
    let order = json!({ "kind": "label", "payload": { "model": "bakery" }, "input_file_id": file["id"] });
    let (status, job) = answer(http.post(format!("{root}/v1/jobs")).json(&order)).await;
    assert_eq!(status, 202, "{job}");
    let path = format!("{root}/v1/jobs/{}", job["id"].as_str().unwrap());
    let job = ask_until(&path, |_, job| job["status"] != "queued").await;
    assert_eq!((&job["status"], &job["output"]["version"]), (&json!("succeeded"), &json!(1)), "{job}");
    let output = format!("{root}/v1/files/{}", job["output"]["output_file_id"].as_str().unwrap());
    let content = http.get(format!("{output}/content")).send().await.unwrap().text().await.unwrap();
    assert_eq!(content.lines().count(), 2);
    assert_eq!(answer(http.delete(&output)).await.0, 200);
    kitchen.stop();
    shop.stop();

    // All that took the roles' own permissions, and no more.
    let decided = stack.gate.decided();
    let refused: Vec<_> = decided.iter().filter(|decided| !decided.allowed).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let used = |role: &str| -> BTreeSet<_> {
        let by = decided.iter().filter(|decided| decided.role == role);
        by.map(|decided| decided.action.as_str()).collect()
    };
    for action in ["s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject", "sqs:SendMessage"] {
        assert!(used("storefront").contains(action), "{action} of {:?}", used("storefront"));
    }
    for action in ["sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "s3:PutObject"] {
        assert!(used("kitchen").contains(action), "{action} of {:?}", used("kitchen"));
    }
    no_more_than_its_part(&stack).await;
    who_buries(&stack);
    no_overwriting(&stack);
}

fn as_written(made: &Value) {
    assert_eq!((&made["status"], &made["versioning"]), (&json!("CREATE_COMPLETE"), &json!("Enabled")));
    assert!(made["encryption"].is_string());
    let blocked = made["public_access"].as_object().unwrap();
    assert!(blocked.len() == 4 && blocked.values().all(|blocked| *blocked == true), "{blocked:?}");
    assert_eq!(made["ownership"][0]["ObjectOwnership"], "BucketOwnerEnforced");
    let redrive: Value = serde_json::from_str(made["queue"]["RedrivePolicy"].as_str().unwrap()).unwrap();
    assert_eq!(redrive["deadLetterTargetArn"], made["dead_letters"]["QueueArn"]);
    assert_eq!(redrive["maxReceiveCount"].to_string().trim_matches('"'), "20");
    for queue in ["queue", "dead_letters"] {
        assert_eq!(made[queue]["SqsManagedSseEnabled"], "true");
        assert_eq!(made[queue]["MessageRetentionPeriod"], (14 * 86_400).to_string());
    }
    assert_eq!(made["alarms"], json!(["ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"]));
    for role in ["kitchen", "collector"] {
        assert_eq!(made["trust"][role]["Statement"][0]["Principal"]["AWS"], PRINCIPAL);
    }
    assert!(made["trust"]["storefront"].to_string().contains("lambda.amazonaws.com"));
}

/// What each role may and may not do with an object of each kind, and with the queue.
async fn no_more_than_its_part(stack: &Stack) {
    let id = "01890000-0000-7000-8000-000000000001";
    // Key; who may create it, read it, delete it: storefront, kitchen, collector.
    let objects = [
        ("blobs/x", "k", "sk", "c"),
        ("t/a/blobs/x", "k", "sk", "c"),
        ("manifests/x", "k", "skc", ""),
        ("channels/m/stable/x", "k", "skc", ""),
        ("t/a/datasets/d/2026-03-01/w/x", "s", "sk", ""),
        ("t/a/files/index/x", "sk", "sk", "s"),
        (&format!("t/a/jobs/{id}/job"), "sk", "sk", ""),
        (&format!("t/a/jobs/{id}/result"), "k", "sk", ""),
        (&format!("t/a/jobs/{id}/steps/0"), "k", "sk", "k"),
        ("t/a/budget/2026-03-01/x", "s", "sk", ""),
        ("t/a/golden/x", "k", "k", ""),
        ("audit/storefront-1/x", "s", "sk", ""),
        ("condemned/x", "c", "kc", ""),
        ("elsewhere", "", "k", ""),
    ];
    let permitted = |result: Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
        // What is there already or not at all was asked for with permission.
        Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => true,
        other => other.map(|()| true).unwrap(),
    };
    for role in ROLES {
        let (letter, config) = (&role[..1], stack.config(role).await);
        let store = stack.store(&config);
        for (key, create, read, delete) in &objects {
            let key = Key::new(*key).unwrap();
            let may = |who: &str| who.contains(letter);
            let created = store.create(&key, "x".into()).await;
            assert_eq!(permitted(created), may(create), "{role} creates {key}");
            let found = store.read(&key, ReadOptions::default()).await.map(drop);
            assert_eq!(permitted(found), may(read), "{role} reads {key}");
            assert_eq!(permitted(store.delete(&key).await), may(delete), "{role} deletes {key}");
        }
        if role == "collector" {
            assert!(!permitted(stack.queue(&config).await.map(drop)), "the collector has no business with the queue");
            continue;
        }
        let queue = stack.queue(&config).await.unwrap();
        assert!(permitted(queue.send_one(NewMessage::new("x")).await.map(drop)), "{role} sends");
        let received = queue.receive(ReceiveOptions::default()).await;
        assert_eq!(permitted(received.map(drop)), role == "kitchen", "{role} receives");
        let dead = hybrid_core::DeadLetters::list(&queue.dead_letters().unwrap(), 1, None).await;
        assert_eq!(permitted(dead.map(drop)), role == "kitchen", "{role} looks at dead letters");
    }
}

/// A message whose deliveries were used up by its copies is put among the dead letters by whoever receives it.
fn who_buries(stack: &Stack) {
    for role in ROLES {
        let dead = stack.made["dead_letters"]["QueueArn"].as_str().unwrap();
        assert_eq!(stack.gate.decide(role, "sqs:SendMessage", dead, &[]), role == "kitchen", "{role}");
    }
}

/// The kitchen may create a version, and nobody may put one over it.
fn no_overwriting(stack: &Stack) {
    let put = "import boto3, sys\n\
               endpoint, bucket, key, secret, token = sys.argv[1:]\n\
               s3 = boto3.client('s3', endpoint_url=endpoint, region_name='us-east-1', aws_access_key_id=key, \
               aws_secret_access_key=secret, aws_session_token=token)\n\
               def code(key, **more):\n\
               \x20   try: s3.put_object(Bucket=bucket, Key=key, Body=b'other', **more); return 'done'\n\
               \x20   except s3.exceptions.ClientError as error: return error.response['Error']['Code']\n\
               print(code('manifests/one'), code('manifests/one', IfNoneMatch='*'), code('manifests/one', IfNoneMatch='*'), \
               code('exports/one'), code('exports/one'))";
    let [key, secret, token] = stack.credentials("kitchen");
    let arguments = [&*stack.gate.endpoint, stack.bucket(), key, secret, token];
    let codes = Python::servers().unwrap().run(put, &arguments).unwrap();
    assert_eq!(codes.trim(), "AccessDenied done PreconditionFailed done done");
}
