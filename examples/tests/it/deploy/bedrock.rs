//! A chat model of the kitchen's that is imported into Bedrock, and one that Bedrock fine-tunes, called by the storefront, each under its role. The scripted server is Bedrock.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Output,
    sync::Arc,
    time::Duration,
};

use hybrid_cloud::testkit::bedrock::{Answer, BedrockServer, ControlPlane, Course, Reply};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BaseModel, Cancellation, CandidateFile, CandidateOutput, ChannelName, Clock,
    DatasetName, DatasetRef, Digest, Document, FileName, Interval, Judgment, JudgmentId, Lineage, ModelName,
    NoProgress, Requirements, SeededIds, Segment, SystemClock, Task, TenantId, Timestamp, TrainPlan, TrainRun, Trainer,
    Verdict, VerdictRecord, WriterId, segment_key,
    task::{Chat, ChatRequest},
};
use hybrid_examples::{locations::Locations, site::Site};
use hybrid_local::{DecoderTrainer, Device};
use hybrid_sync::registry::{Draft, Namespace, PublishOptions, Registry, Release};
use reqwest::Client;
use serde_json::{Value, json};

use super::{Stack, gate::Decided};
use crate::app::{Running, answer};

/// The files of the smallest model that Bedrock imports: all but the numbers are there.
fn files(folder: &Path) -> Vec<CandidateFile> {
    let weights = json!({ "model.embed_tokens.weight": { "dtype": "BF16", "shape": [32], "data_offsets": [0, 64] } });
    let header = weights.to_string();
    let weights = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 64]].concat();
    let config = json!({ "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32_768 });
    [
        ("config.json", config.to_string().into_bytes()),
        ("tokenizer.json", json!({ "version": "1.0" }).to_string().into_bytes()),
        ("tokenizer_config.json", json!({ "tokenizer_class": "Qwen2Tokenizer" }).to_string().into_bytes()),
        ("model.safetensors", weights),
    ]
    .map(|(name, bytes)| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        CandidateFile { name: FileName::new(name).unwrap(), path }
    })
    .into()
}

/// A version of these files, by whoever made them.
fn draft(model: &ModelName, plan: TrainPlan, architecture: &str, files: Vec<CandidateFile>) -> Draft {
    let verdict = VerdictRecord {
        verdict: Verdict::Promote,
        golden: Digest::of(b"golden"),
        cases: 10,
        incumbent: None,
        metric: "accuracy".to_owned(),
        candidate: Interval { value: 0.9, low: 0.8, high: 1.0 },
        baseline: None,
        fixes: 0,
        regressions: 0,
        p: None,
        ece: None,
    };
    let dataset = plan.dataset.digest();
    Draft {
        model: model.clone(),
        version: 1,
        task: Chat::NAME.to_owned(),
        architecture: architecture.to_owned(),
        files,
        requirements: Requirements::default(),
        lineage: Lineage { dataset, plan, examples: 8, trainer: "test".into(), device: "cpu".into() },
        verdict,
        metadata: BTreeMap::new(),
        base: None,
    }
}

fn plan(model: &ModelName, method: &str, base: Option<BaseModel>, dataset: DatasetRef) -> TrainPlan {
    let hyperparameters = BTreeMap::new();
    TrainPlan { model: model.clone(), method: method.to_owned(), base, dataset, hyperparameters, seed: 1 }
}

/// Publishes the version and puts it in service, as the kitchen does at the end of a training.
async fn release(stack: &Stack, kitchen: &Site, draft: Draft) {
    let model = draft.model.clone();
    let (builder, releaser) = kitchen.signers().unwrap();
    let registry = Registry::new(Arc::new(stack.store(&stack.config("kitchen").await)), Namespace::root());
    let now = SystemClock.now();
    let published = registry.publish(draft, &builder, PublishOptions::new("job-1", now)).await.unwrap();
    let release =
        Release { manifest: published.manifest, incumbent: None, why: "test".to_owned(), nonce: "job-1".to_owned() };
    let channel = registry.channel(&model, &ChannelName::stable());
    channel.append(release, &releaser, now, Duration::from_secs(86_400)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_the_kitchens_is_imported_into_bedrock_and_served_each_under_its_role() {
    let (server, control, stack) = bedrock().await;
    let role = stack.made["outputs"]["BedrockRoleArn"].as_str().unwrap();
    let kitchen = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(kitchen.path())).await.unwrap();
    let model = ModelName::new("baker").unwrap();

    let import = || run_program(&stack, kitchen.path(), &["import", "--model", "baker"]);
    let nothing = import().await;
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && said.contains("no version of this model is in service"), "{said}");

    let (folder, none) =
        (tempfile::tempdir().unwrap(), DatasetRef { name: "chats".parse().unwrap(), segments: Vec::new() });
    let version = draft(&model, plan(&model, "test", None, none), "test/1", files(folder.path()));
    release(&stack, &site, version).await;
    let done = import().await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let url = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    assert!(url.starts_with("bedrock://arn:aws:bedrock:us-east-1:") && url.contains(":imported-model/"), "{url}");
    let order = server.requests().into_iter().find(|request| request.method == "POST").unwrap().body;
    assert_eq!(order["roleArn"], role);
    let from = order["modelDataSource"]["s3DataSource"]["s3Uri"].as_str().unwrap();
    assert!(from.starts_with(&format!("s3://{}/exports/import/baker-", stack.bucket())), "{from}");
    // Whoever runs it again finds what is there.
    assert_eq!(String::from_utf8(import().await.stdout).unwrap().trim(), url);
    assert_eq!(control.made(), 1);

    let message = json!({ "role": "assistant", "content": "We open at six." });
    server.script([Reply::json(json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }] }))]);
    let models = serves(&stack, kitchen.path(), &url).await;
    assert!(!models.to_string().contains("imported-model"), "customers know the name alone: {models}");

    let decided = stack.gate.decided();
    // What was imported may be deleted, and the kitchen deletes none of it: the bucket forgets it by itself.
    let kept = |decided: &&Decided| decided.action == "s3:DeleteObject" && decided.resource.contains("/exports/");
    let refused: Vec<_> = decided.iter().filter(|one| !one.allowed && !kept(one)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let expected =
        ["bedrock:CreateModelImportJob", "bedrock:GetImportedModel", "bedrock:GetModelImportJob", "iam:PassRole"];
    assert_eq!(used(&decided, "kitchen"), BTreeSet::from(expected));
    assert_eq!(used(&decided, "storefront"), BTreeSet::from(["bedrock:InvokeModel"]));
    no_more_than_its_part(&stack, role, &url);
    as_written(&stack.made, role);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_worked_into_its_base_before_it_is_imported() {
    let (_server, control, stack) = bedrock().await;
    let kitchen = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(kitchen.path())).await.unwrap();
    let model = ModelName::new("baker").unwrap();
    judge(&stack, 8).await;

    let store = Arc::new(stack.store(&stack.config("kitchen").await));
    let dataset = DatasetRef::fix(&*store, &TenantId::single(), &"chats".parse().unwrap()).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    let base = copy.path();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hybrid-local/tests/fixtures/decoder/llama");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), base.join(name)).unwrap();
    }
    // Bedrock takes the names that came before it.
    let config = base.join("tokenizer_config.json");
    let named = std::fs::read_to_string(&config).unwrap().replace("TokenizersBackend", "PreTrainedTokenizerFast");
    std::fs::write(&config, named).unwrap();
    let plan = plan(&model, "decoder-lora", Some(BaseModel::Folder(base.to_owned())), dataset);
    let scratch = tempfile::tempdir().unwrap();
    let run = TrainRun {
        store: store.clone(),
        scratch: scratch.path().to_owned(),
        progress: Arc::new(NoProgress),
        cancel: Cancellation::new(),
        clock: Arc::new(SystemClock),
    };
    let candidate = DecoderTrainer::new(Device::cpu()).train(&plan, &run).await.unwrap();
    let CandidateOutput::Files(files) = candidate.output else { panic!("{:?}", candidate.output) };
    release(&stack, &site, draft(&model, plan, &candidate.architecture, files)).await;

    let done = run_program(&stack, kitchen.path(), &["import", "--model", "baker"]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(control.made(), 1);
    // The role may not delete the copies, so what Bedrock read is there.
    let copies = store.list_all("exports/import/").await.unwrap();
    let names: Vec<_> = copies.iter().map(|copy| copy.key.as_str().rsplit('/').next().unwrap()).collect();
    assert!(names.contains(&"config.json") && !names.iter().any(|name| name.starts_with("adapter")), "{names:?}");
    let weights = copies.iter().find(|copy| copy.key.as_str().ends_with("/model.safetensors")).unwrap();
    let (merged, original) =
        (store.get(&weights.key).await.unwrap(), std::fs::read(base.join("model.safetensors")).unwrap());
    assert_eq!(merged.len(), original.len());
    assert_ne!(merged, original, "the adapter is in it");
    assert!(!kitchen.path().join("kitchen/bedrock/baker/merged").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_of_bedrocks_is_fine_tuned_on_judged_conversations_and_served_each_under_its_role() {
    let (server, control, stack) = bedrock().await;
    let role = stack.made["outputs"]["BedrockRoleArn"].as_str().unwrap();
    let kitchen = tempfile::tempdir().unwrap();
    Site::open(&Locations::folder(kitchen.path())).await.unwrap().signers().unwrap();
    let arguments = "tune --base amazon.nova-micro-v1:0:128k --dataset chats --model baker --set epochs=2";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let tune = || run_program(&stack, kitchen.path(), &arguments);
    let nothing = tune().await;
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && said.contains("there are no judgments to learn from"), "{said}");

    judge(&stack, 8).await;
    let done = tune().await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let url = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    assert!(
        url.starts_with("bedrock://arn:aws:bedrock:us-east-1:") && url.contains(":custom-model-deployment/"),
        "{url}"
    );
    let order = server.requests().into_iter().find(|request| request.method == "POST").unwrap().body;
    assert_eq!((&order["roleArn"], &order["hyperParameters"]), (&json!(role), &json!({ "epochCount": "2" })));
    let from = order["trainingDataConfig"]["s3Uri"].as_str().unwrap();
    assert!(from.starts_with(&format!("s3://{}/exports/training/baker-", stack.bucket())), "{from}");
    // Whoever runs it again finds what is there.
    assert_eq!(String::from_utf8(tune().await.stdout).unwrap().trim(), url);
    assert_eq!(control.made(), 2, "a job and a deployment");

    server.script([Reply::json(Answer::text("We open at six.").json())]);
    let models = serves(&stack, kitchen.path(), &url).await;
    assert!(!models.to_string().contains("custom-model"), "customers know the name alone: {models}");

    let decided = stack.gate.decided();
    let refused: Vec<_> = decided.iter().filter(|one| !one.allowed).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let expected = [
        "bedrock:CreateCustomModelDeployment",
        "bedrock:CreateModelCustomizationJob",
        "bedrock:GetCustomModelDeployment",
        "bedrock:GetModelCustomizationJob",
        "iam:PassRole",
    ];
    assert_eq!(used(&decided, "kitchen"), BTreeSet::from(expected));
    assert_eq!(used(&decided, "storefront"), BTreeSet::from(["bedrock:InvokeModel"]));
}

/// Bedrock, where jobs are done at once, and a stack that uses it.
async fn bedrock() -> (BedrockServer, ControlPlane, Stack) {
    let (server, control) = (BedrockServer::start().unwrap(), ControlPlane::default());
    control.set_course(Course { looks: 0, ..Course::default() });
    let answering = control.clone();
    server.otherwise(move |request| answering.answer(request));
    let stack = Stack::deploy_with(&[("Bedrock", "true")], &[("bedrock", server.url())]).await;
    (server, control, stack)
}

/// Runs the program `bedrock` in the kitchen.
async fn run_program(stack: &Stack, kitchen: &Path, arguments: &[&str]) -> Output {
    let mut command = stack.program(env!("CARGO_BIN_EXE_bedrock"), "kitchen", kitchen);
    let bedrock = format!("region=us-east-1&endpoint={}", stack.gate.endpoint);
    command.args(["--role", stack.made["outputs"]["BedrockRoleArn"].as_str().unwrap(), "--bedrock", &bedrock]);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// A storefront with the model at `url` answers; gives the models that it lists.
async fn serves(stack: &Stack, kitchen: &Path, url: &str) -> Value {
    let shop = tempfile::tempdir().unwrap();
    std::fs::create_dir(shop.path().join("keys")).unwrap();
    for key in ["builder.pub.pem", "release.pub.pem"] {
        std::fs::copy(kitchen.join("keys").join(key), shop.path().join("keys").join(key)).unwrap();
    }
    let mut command = stack.program(env!("CARGO_BIN_EXE_storefront"), "storefront", shop.path());
    command.args(["--listen", "127.0.0.1:0", "--chat", &format!("baker={url}")]);
    let mut storefront = Running::with(&mut command);
    let root = storefront.line();
    let ask = json!({ "model": "baker", "messages": [{ "role": "user", "content": "When do you open?" }] });
    let (status, said) = answer(Client::new().post(format!("{root}/v1/chat/completions")).json(&ask)).await;
    assert_eq!((status, &said["choices"][0]["message"]["content"]), (200, &json!("We open at six.")), "{said}");
    let (_, models) = answer(Client::new().get(format!("{root}/v1/models"))).await;
    storefront.stop();
    models
}

/// Judged conversations, as a storefront leaves them.
async fn judge(stack: &Stack, count: usize) {
    let (ids, tenant, name) = (SeededIds::default(), TenantId::single(), DatasetName::new("chats").unwrap());
    let judgment = |i| {
        Judgment::new(
            JudgmentId::next(&ids),
            Chat::NAME,
            serde_json::to_value(ChatRequest::user(format!("Is loaf {i} fresh?"))).unwrap(),
            json!({ "answers": [format!("Loaf {i} is of today.")] }),
            Timestamp::UNIX_EPOCH,
        )
    };
    let segment = Segment { judgments: (0..count).map(judgment).collect() };
    let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &WriterId::new("shop").unwrap(), 0).unwrap();
    let store = stack.store(&stack.config("storefront").await);
    store.create(&key, segment.encode().unwrap()).await.unwrap();
}

/// The actions that a role has used, but for those on the bucket.
fn used<'a>(decided: &'a [Decided], role: &str) -> BTreeSet<&'a str> {
    let used = decided.iter().filter(|one| one.role == role && !one.action.starts_with("s3:"));
    used.map(|one| one.action.as_str()).collect()
}

/// What each role may ask of Bedrock.
fn no_more_than_its_part(stack: &Stack, bedrock_role: &str, url: &str) {
    let account = "arn:aws:bedrock:us-east-1:000000000000";
    let imported = url.trim_start_matches("bedrock://").split('?').next().unwrap().rsplit('/').next().unwrap();
    let imported = format!("{account}:imported-model/{imported}");
    let theirs = "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0";
    let [job, tuned, deployment] = ["model-customization-job", "custom-model", "custom-model-deployment"]
        .map(|kind| format!("{account}:{kind}/abcdef123456"));
    let other_role = "arn:aws:iam::000000000000:role/admin";
    for (action, resource, allowed) in [
        ("bedrock:InvokeModel", imported.as_str(), "s"),
        ("bedrock:InvokeModelWithResponseStream", &imported, "s"),
        ("bedrock:InvokeModel", theirs, ""),
        ("bedrock:CreateModelImportJob", "*", "k"),
        ("bedrock:CreateModelCustomizationJob", theirs, "k"),
        ("bedrock:GetModelCustomizationJob", &job, "k"),
        ("bedrock:StopModelCustomizationJob", &job, "k"),
        ("bedrock:CreateCustomModelDeployment", &tuned, "k"),
        ("bedrock:GetCustomModelDeployment", &deployment, "k"),
        ("bedrock:InvokeModel", &deployment, "s"),
        ("bedrock:DeleteCustomModelDeployment", &deployment, ""),
        ("bedrock:DeleteCustomModel", &tuned, ""),
        ("bedrock:DeleteImportedModel", &imported, ""),
        ("bedrock:PutModelInvocationLoggingConfiguration", "*", ""),
        ("iam:PassRole", bedrock_role, "k"),
        ("iam:PassRole", other_role, ""),
    ] {
        for role in super::ROLES {
            let context = [("iam:PassedToService", "bedrock.amazonaws.com")];
            let may = stack.gate.decide(role, action, resource, &context);
            assert_eq!(may, allowed.contains(&role[..1]), "{role} {action} {resource}");
        }
    }
    // The plan of a fine-tuning is kept, once.
    let plan = format!("arn:aws:s3:::{}/t/bakery/tuning/baker/{}/000001/plan", stack.bucket(), Digest::of(b"asked"));
    for role in super::ROLES {
        let once = [("aws:SecureTransport", "true"), ("s3:ObjectCreationOperation", "true"), ("s3:if-none-match", "*")];
        assert_eq!(stack.gate.decide(role, "s3:PutObject", &plan, &once), role == "kitchen", "{role}");
    }
    let to_another = [("iam:PassedToService", "lambda.amazonaws.com")];
    assert!(!stack.gate.decide("kitchen", "iam:PassRole", bedrock_role, &to_another));
}

/// Bedrock's own role is for Bedrock's jobs of this account, and for the copies that were made for them.
fn as_written(made: &Value, role: &str) {
    let trust = &made["trust"]["bedrock"]["Statement"][0];
    assert_eq!(trust["Principal"]["Service"], "bedrock.amazonaws.com", "{trust}");
    assert_eq!(trust["Condition"]["StringEquals"]["aws:SourceAccount"], "000000000000", "{role}");
    for statement in made["roles"]["bedrock"]["Statement"].as_array().unwrap() {
        let resource = statement["Resource"].as_str().unwrap();
        let copies = resource.contains("/exports/") || statement["Condition"].to_string().contains("exports/*");
        assert!(copies, "{statement}");
    }
}
