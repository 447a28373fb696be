//! A chat model of the kitchen's, imported into Bedrock and called by the storefront, each under its role. The scripted server is Bedrock.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hybrid_cloud::testkit::bedrock::{BedrockServer, ControlPlane, Course, Reply};
use hybrid_core::{
    CandidateFile, ChannelName, Clock, DatasetName, DatasetRef, Digest, FileName, Interval, Lineage, ModelName,
    Requirements, SystemClock, TrainPlan, Verdict, VerdictRecord,
};
use hybrid_examples::{locations::Locations, site::Site};
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

/// Publishes the version and puts it in service, as the kitchen does at the end of a training.
async fn release(stack: &Stack, kitchen: &Site, model: &ModelName) -> Digest {
    let folder = tempfile::tempdir().unwrap();
    let dataset = DatasetRef { name: DatasetName::new("chats").unwrap(), segments: Vec::new() };
    let plan = TrainPlan {
        model: model.clone(),
        method: "test".to_owned(),
        base: None,
        dataset: dataset.clone(),
        hyperparameters: BTreeMap::new(),
        seed: 1,
    };
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
    let draft = Draft {
        model: model.clone(),
        version: 1,
        task: "chat".to_owned(),
        architecture: "test/1".to_owned(),
        files: files(folder.path()),
        requirements: Requirements::default(),
        lineage: Lineage { dataset: dataset.digest(), plan, examples: 0, trainer: "test".into(), device: "cpu".into() },
        verdict,
        metadata: BTreeMap::new(),
        base: None,
    };
    let (builder, releaser) = kitchen.signers().unwrap();
    let registry = Registry::new(Arc::new(stack.store(&stack.config("kitchen").await)), Namespace::root());
    let now = SystemClock.now();
    let published = registry.publish(draft, &builder, PublishOptions::new("job-1", now)).await.unwrap();
    let release =
        Release { manifest: published.manifest, incumbent: None, why: "test".to_owned(), nonce: "job-1".to_owned() };
    let channel = registry.channel(model, &ChannelName::stable());
    channel.append(release, &releaser, now, Duration::from_secs(86_400)).await.unwrap();
    published.manifest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_the_kitchens_is_imported_into_bedrock_and_served_each_under_its_role() {
    let (server, control) = (BedrockServer::start().unwrap(), ControlPlane::default());
    control.set_course(Course { looks: 0, ..Course::default() });
    server.otherwise({
        let control = control.clone();
        move |request| control.answer(request)
    });
    let stack = Stack::deploy_with(&[("Bedrock", "true")], server.url()).await;
    let role = stack.made["outputs"]["BedrockRoleArn"].as_str().unwrap();
    let bedrock = format!("region=us-east-1&endpoint={}", stack.gate.endpoint);
    let (kitchen, shop) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let site = Site::open(&Locations::folder(kitchen.path())).await.unwrap();
    let model = ModelName::new("baker").unwrap();

    let import = || {
        let mut command = stack.program(env!("CARGO_BIN_EXE_bedrock"), "kitchen", kitchen.path());
        command.args(["--role", role, "--bedrock", &bedrock, "import", "--model", "baker"]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let nothing = import().await.unwrap();
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && said.contains("no version of this model is in service"), "{said}");

    release(&stack, &site, &model).await;
    let done = import().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let url = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    assert!(url.starts_with("bedrock://arn:aws:bedrock:us-east-1:") && url.contains(":imported-model/"), "{url}");
    let order = server.requests().into_iter().find(|request| request.method == "POST").unwrap().body;
    assert_eq!(order["roleArn"], role);
    let from = order["modelDataSource"]["s3DataSource"]["s3Uri"].as_str().unwrap();
    assert!(from.starts_with(&format!("s3://{}/exports/import/baker-", stack.bucket())), "{from}");
    // Whoever runs it again finds what is there.
    assert_eq!(String::from_utf8(import().await.unwrap().stdout).unwrap().trim(), url);
    assert_eq!(control.made(), 1);

    std::fs::create_dir(shop.path().join("keys")).unwrap();
    for key in ["builder.pub.pem", "release.pub.pem"] {
        std::fs::copy(kitchen.path().join("keys").join(key), shop.path().join("keys").join(key)).unwrap();
    }
    let mut command = stack.program(env!("CARGO_BIN_EXE_storefront"), "storefront", shop.path());
    command.args(["--listen", "127.0.0.1:0", "--chat", &format!("baker={url}")]);
    let mut storefront = Running::with(&mut command);
    let root = storefront.line();
    let message = json!({ "role": "assistant", "content": "We open at six." });
    server.script([Reply::json(json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }] }))]);
    let ask = json!({ "model": "baker", "messages": [{ "role": "user", "content": "When do you open?" }] });
    let (status, said) = answer(Client::new().post(format!("{root}/v1/chat/completions")).json(&ask)).await;
    assert_eq!((status, &said["choices"][0]["message"]["content"]), (200, &json!("We open at six.")), "{said}");
    let (_, models) = answer(Client::new().get(format!("{root}/v1/models"))).await;
    assert!(!models.to_string().contains("imported-model"), "customers know the name alone: {models}");
    storefront.stop();

    let decided = stack.gate.decided();
    // What was imported may be deleted, and the kitchen deletes none of it: the bucket forgets it by itself.
    let kept = |decided: &&Decided| decided.action == "s3:DeleteObject" && decided.resource.contains("/exports/");
    let refused: Vec<_> = decided.iter().filter(|one| !one.allowed && !kept(one)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let used = |role: &str| -> BTreeSet<_> {
        let of_bedrock = |one: &&Decided| one.role == role && !one.action.starts_with("s3:");
        decided.iter().filter(of_bedrock).map(|one| one.action.as_str()).collect()
    };
    let expected =
        ["bedrock:CreateModelImportJob", "bedrock:GetImportedModel", "bedrock:GetModelImportJob", "iam:PassRole"];
    assert_eq!(used("kitchen"), BTreeSet::from(expected));
    assert_eq!(used("storefront"), BTreeSet::from(["bedrock:InvokeModel"]));
    no_more_than_its_part(&stack, role, &url);
    as_written(&stack.made, role);
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
