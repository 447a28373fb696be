//! What we send and what the scripted server answers, against AWS's own description of its API; and the trainer against another server.

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    bedrock::custom::{BedrockTrainer, BedrockTrainerOptions, ImportRun, OnCancel},
    testkit::{Ministack, Python, bedrock::Course},
};
use hybrid_core::{Cancellation, Digest, ErrorKind, ModelName, ProgressEvent, ProgressFn, Staging, Trainer};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

use super::{Bench, NOVA_MICRO, ROLE, import::version, key, plan};

/// Checks `[[operation, "input" or "output", JSON], …]` against the service's model in AWS's client for Python: no member that is not there, none missing that must be, texts in
/// their patterns, lengths and choices. Prints what does not fit.
const CHECK: &str = r#"
import datetime, json, re, sys, botocore.session
service = botocore.session.get_session().get_service_model("bedrock")
wrong = []
def check(shape, value, at):
    kind, rule = shape.type_name, shape.metadata
    if kind == "structure":
        for name in shape.required_members:
            if name not in value: wrong.append(f"{at}.{name} is missing")
        if getattr(shape, "is_tagged_union", False) and len(value) != 1: wrong.append(f"{at} has {len(value)} members")
        for name, part in value.items():
            if name in shape.members: check(shape.members[name], part, f"{at}.{name}")
            else: wrong.append(f"{at}.{name} is unknown")
    elif kind == "list":
        for i, part in enumerate(value): check(shape.member, part, f"{at}[{i}]")
    elif kind == "map":
        for name, part in value.items(): check(shape.value, part, f"{at}.{name}")
    elif kind == "timestamp": datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    elif kind == "string":
        if not isinstance(value, str): wrong.append(f"{at} is no string"); return
        if shape.enum and value not in shape.enum: wrong.append(f"{at} is {value}")
        if "pattern" in rule and not re.fullmatch(rule["pattern"], value): wrong.append(f"{at} is {value}")
        if not rule.get("min", 0) <= len(value) <= rule.get("max", 1 << 30): wrong.append(f"{at} has {len(value)} characters")
    elif kind in ("integer", "long", "float", "double"):
        if not isinstance(value, (int, float)) or isinstance(value, bool): wrong.append(f"{at} is no number")
    elif kind == "boolean":
        if not isinstance(value, bool): wrong.append(f"{at} is no boolean")
for operation, way, value in json.load(open(sys.argv[1])):
    model = service.operation_model(operation)
    shape = model.input_shape if way == "input" else model.output_shape
    check(shape, value, f"{operation} {way}")
print(json.dumps(wrong))
"#;

/// Reads the scripted control plane with AWS's own client, and again as it comes over the wire.
const READ: &str = r#"
import json, sys, urllib.parse, urllib.request, boto3
url, job, imported, deployment = sys.argv[1:5]
client = boto3.client("bedrock", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
def raw(path, identifier):
    with urllib.request.urlopen(f"{url}/{path}/{urllib.parse.quote(identifier, safe='')}") as answer: return json.load(answer)
arn = client.get_model_import_job(jobIdentifier=imported)["importedModelArn"]
answers = [
    ["GetModelCustomizationJob", raw("model-customization-jobs", job), client.get_model_customization_job(jobIdentifier=job)],
    ["GetModelImportJob", raw("model-import-jobs", imported), client.get_model_import_job(jobIdentifier=imported)],
    ["GetCustomModelDeployment", raw("model-customization/custom-model-deployments", deployment),
        client.get_custom_model_deployment(customModelDeploymentIdentifier=deployment)],
    ["GetImportedModel", raw("imported-models", arn), client.get_imported_model(modelIdentifier=arn)],
]
for _, sent, read in answers:
    read.pop("ResponseMetadata")
    assert sent.keys() == read.keys(), (sent, read)
try: client.get_model_import_job(jobIdentifier="nobody-has-this")
except client.exceptions.ResourceNotFoundException as error: missing = error.response["Error"]["Message"]
print(json.dumps({"answers": [answer[:2] for answer in answers], "missing": missing}))
"#;

async fn python(script: &'static str, arguments: Vec<String>) -> Value {
    let run = move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Python::servers()?.run(script, &arguments)
    };
    let printed = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    serde_json::from_str(printed.trim()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_answers_have_the_shapes_that_aws_describes() {
    let bench = Bench::open().await;
    let mut order = bench.plan(10).await;
    order.hyperparameters.insert("hold_out".to_owned(), json!(0.2));
    let trainer = bench.trainer_with(|options| {
        options.tags = [("team".to_owned(), "bakery 1".to_owned())].into();
        options.kms_key = Some("alias/bakery".to_owned());
    });
    trainer.train(&order, &bench.run()).await.unwrap();
    let folder = bench.scratch.path().join("version");
    version(&folder);
    let run = ImportRun { clock: Arc::new(bench.clock.clone()), ..ImportRun::default() };
    let model = ModelName::new("a_long-name__of-a-model-that-goes-on-for-sixty-three-characters").unwrap();
    bench.import().import(&model, Digest::of(b"v1"), &folder, &run).await.unwrap();

    let customization = bench.asked("/model-customization-jobs");
    let import = bench.asked("/model-import-jobs");
    let deployment = bench.asked("/model-customization/custom-model-deployments");
    let name = |body: &Value, field: &str| body[field].as_str().unwrap().to_owned();
    let url = bench.server.url().to_owned();
    let names = [name(&customization, "jobName"), name(&import, "jobName"), name(&deployment, "modelDeploymentName")];
    let read = python(READ, [vec![url], names.to_vec()].concat()).await;

    let mut all = vec![
        json!(["CreateModelCustomizationJob", "input", customization]),
        json!(["CreateModelImportJob", "input", import]),
        json!(["CreateCustomModelDeployment", "input", deployment]),
    ];
    assert_eq!(read["missing"], "there is no nobody-has-this");
    let answers = read["answers"].as_array().unwrap();
    all.extend(answers.iter().map(|answer| json!([answer[0], "output", answer[1]])));
    let path = bench.scratch.path().join("shapes.json");
    std::fs::write(&path, Value::from(all).to_string()).unwrap();
    assert_eq!(python(CHECK, vec![path.display().to_string()]).await, json!([]));

    assert_eq!(answers[0][1]["status"], "Completed");
    assert_eq!(answers[0][1]["statusDetails"]["trainingDetails"]["status"], "Completed");
    assert_eq!(answers[0][1]["hyperParameters"], json!({"epochCount": "3"}));
    assert_eq!(answers[3][1]["customModelUnits"]["customModelUnitsPerModelCopy"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_on_an_emulator_of_aws_is_ordered_once_and_stopped() {
    let server = tokio::task::spawn_blocking(Ministack::shared).await.unwrap().unwrap();
    let config = AwsConfig::load(AwsOptions::local(server.endpoint(), "test", "test")).await.unwrap();
    let bench = Bench::open().await;
    bench.control.set_course(Course::default());
    let ordered = plan(&bench.store, 4).await;
    // Its jobs never end by themselves.
    for (on_cancel, kind) in [
        (OnCancel::Leave, ErrorKind::Cancelled),
        (OnCancel::Stop, ErrorKind::Cancelled),
        (OnCancel::Leave, ErrorKind::InvalidInput),
    ] {
        let mut options = BedrockTrainerOptions::new(ROLE, key("bedrock/training"));
        options.on_cancel = on_cancel;
        options.poll.first = Duration::from_millis(1);
        let trainer = BedrockTrainer::new(&config, Arc::clone(&bench.staging) as Arc<dyn Staging>, options).unwrap();
        let cancel = Cancellation::new();
        let raise = cancel.clone();
        let progress = Arc::new(ProgressFn(move |_: ProgressEvent| raise.cancel()));
        let error = trainer.train(&ordered, &bench.run_with(progress, cancel)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(bench.staging.take_puts(), ["train.jsonl"], "the second and the third found the first one's job");
    assert_eq!(ordered.base, Some(hybrid_core::BaseModel::Provider(NOVA_MICRO.to_owned())));
}
