//! What a plan becomes.

use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;
use hybrid_cloud::{bedrock::custom::Serving, testkit::bedrock::Course};
use hybrid_core::{
    Cancellation, Candidate, CandidateOutput, FileName, Key, ProgressEvent, ProgressFn, Staging, Trainer,
};
use serde_json::{Value, json};

use super::{Bench, NOVA_MICRO, ROLE};

const CREATE: &str = "/model-customization-jobs";

fn hosted(candidate: &Candidate) -> &str {
    match &candidate.output {
        CandidateOutput::Hosted { provider, id } if provider == "bedrock" => id,
        other => panic!("{other:?}"),
    }
}

/// The folder of an S3 URL below the bucket.
fn folder(url: &Value) -> Key {
    let path = url.as_str().unwrap().splitn(4, '/').nth(3).unwrap();
    Key::new(path.trim_end_matches('/')).unwrap()
}

#[tokio::test]
async fn a_plan_becomes_a_job_then_a_model_that_can_be_called() {
    let bench = Bench::open().await;
    let mut plan = bench.plan(10).await;
    plan.hyperparameters.insert("hold_out".to_owned(), json!(0.2));
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let progress = Arc::new(ProgressFn(move |event: ProgressEvent| seen.lock().unwrap().push(event)));
    let trainer = bench.trainer_with(|options| {
        options.tags = [("team".to_owned(), "bakery".to_owned())].into();
        options.kms_key = Some("alias/bakery".to_owned());
    });
    let candidate = trainer.train(&plan, &bench.run_with(progress, Cancellation::new())).await.unwrap();

    assert!(hosted(&candidate).contains(":custom-model-deployment/"), "{candidate:?}");
    assert_eq!((candidate.task.as_str(), candidate.examples), ("chat", 10));
    assert_eq!(candidate.device, "bedrock us-east-1");
    assert_eq!(candidate.metrics["train_loss"], 0.5);
    assert_eq!(candidate.metrics["seconds"], 1_800.0);

    let order = bench.asked(CREATE);
    assert_eq!(order["jobName"], order["customModelName"]);
    assert!(order["jobName"].as_str().unwrap().starts_with("bakery-"), "{order}");
    assert_eq!(order["roleArn"], ROLE);
    assert_eq!(order["baseModelIdentifier"], NOVA_MICRO);
    assert_eq!(order["customizationType"], "FINE_TUNING");
    assert_eq!(order["hyperParameters"], json!({"epochCount": "3"}));
    assert_eq!(order["customModelKmsKeyId"], "alias/bakery");
    assert_eq!(order["jobTags"], json!([{"key": "team", "value": "bakery"}]));
    let train = order["trainingDataConfig"]["s3Uri"].as_str().unwrap();
    let input = folder(&train.strip_suffix("train.jsonl").unwrap().into());
    let read = async |name: &str| {
        let bytes = bench.staging.read_file(&input, &FileName::new(name).unwrap()).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let (train, valid) = (read("train.jsonl").await, read("valid.jsonl").await);
    assert_eq!((train.len(), valid.len()), (8, 2));
    for line in train.iter().chain(&valid) {
        assert_eq!(line["schemaVersion"], "bedrock-conversation-2024");
        assert_eq!(line["messages"][1]["role"], "assistant");
    }
    let validators = &order["validationDataConfig"]["validators"];
    assert!(validators[0]["s3Uri"].as_str().unwrap().ends_with("/input/valid.jsonl"), "{order}");

    let deployment = bench.asked("/model-customization/custom-model-deployments");
    assert_eq!(deployment["modelDeploymentName"], order["jobName"]);
    assert!(deployment["modelArn"].as_str().unwrap().contains(":custom-model/"), "{deployment}");
    assert_eq!(std::fs::read_dir(bench.scratch.path()).unwrap().count(), 0, "the examples stay in the scratch folder");
    let events = events.lock().unwrap();
    let stages: Vec<_> = events.iter().map(|event| (event.stage.as_str(), event.done)).collect();
    let expected = [("train", 0), ("train", 1), ("train", 3), ("deploy", 0), ("deploy", 0), ("deploy", 1)];
    assert_eq!(stages, expected);
    assert_eq!(events[0].message, "checking the data");
}

#[tokio::test]
async fn another_machine_finds_the_job_and_reads_the_tables_that_bedrock_wrote() {
    let bench = Bench::open().await;
    let plan = bench.plan(4).await;
    let first = bench.trainer().train(&plan, &bench.run()).await.unwrap();
    // What Bedrock writes beside the examples.
    let output = folder(&bench.asked(CREATE)["outputDataConfig"]["s3Uri"]);
    let put = async |name: &str, table: &str| {
        let path = bench.scratch.path().join("table");
        std::fs::write(&path, table).unwrap();
        bench.staging.put_file(&output, &FileName::new(name).unwrap(), &path).await.unwrap();
        std::fs::remove_file(path).unwrap();
    };
    let job = "model-customization-job-000000000001";
    put(
        &format!("{job}/training_artifacts/step_wise_training_metrics.csv"),
        "step_number,epoch_number,training_loss,perplexity\n0,0,2.0,7.4\n1,0,0.25,1.3\n",
    )
    .await;
    put(
        &format!("{job}/validation_artifacts/post_fine_tuning_validation/validation_metrics.csv"),
        "step_number,epoch_number,validation_loss,perplexity\n1,0,0.75,2.1\n",
    )
    .await;
    put(
        "model-customization-job-000000000009/training_artifacts/step_wise_training_metrics.csv",
        "step_number,epoch_number,training_loss,perplexity\n0,0,9.0,9.0\n",
    )
    .await;

    let second = bench.trainer().train(&plan, &bench.run()).await.unwrap();
    assert_eq!(second.output, first.output);
    assert_eq!(bench.control.made(), 2, "one job and one deployment, however often it is asked");
    let metric = |name: &str| second.metrics.get(name).copied();
    assert_eq!(metric("train_loss"), Some(0.25));
    assert_eq!(metric("train_perplexity"), Some(1.3));
    assert_eq!(metric("steps"), Some(2.0));
    assert_eq!(metric("valid_loss"), Some(0.75));
    assert_eq!(metric("valid_perplexity"), Some(2.1));
}

#[tokio::test]
async fn another_plan_role_or_seed_is_another_job() {
    let bench = Bench::open().await;
    let plan = bench.plan(4).await;
    let train = async |trainer: hybrid_cloud::bedrock::custom::BedrockTrainer, plan| {
        trainer.train(&plan, &bench.run()).await.unwrap();
        bench.control.made()
    };
    let model_only = |role: &str| {
        let role = role.to_owned();
        bench.trainer_with(move |options| {
            options.serving = Serving::Nothing;
            options.role = role;
        })
    };
    assert_eq!(train(model_only(ROLE), plan.clone()).await, 1);
    assert_eq!(train(model_only(ROLE), plan.clone()).await, 1);
    assert_eq!(train(model_only(ROLE), hybrid_core::TrainPlan { seed: 2, ..plan.clone() }).await, 2);
    assert_eq!(train(model_only("arn:aws:iam::123456789012:role/other"), plan.clone()).await, 3);
    let mut epochs = plan.clone();
    epochs.hyperparameters.insert("epochs".to_owned(), json!(2));
    assert_eq!(train(model_only(ROLE), epochs).await, 4);
    let candidate = model_only(ROLE).train(&plan, &bench.run()).await.unwrap();
    assert!(hosted(&candidate).contains(":custom-model/"), "{candidate:?}");
    assert_eq!(bench.count("POST", "/model-customization/custom-model-deployments"), 0);
}

#[tokio::test]
async fn looks_grow_rarer_up_to_the_cap() {
    let bench = Bench::open().await;
    bench.control.set_course(Course { looks: 8, ..Course::default() });
    let plan = bench.plan(4).await;
    let trainer = bench.trainer_with(|options| options.serving = Serving::Nothing);
    trainer.train(&plan, &bench.run()).await.unwrap();
    let waits: Vec<_> = bench.clock.waits().iter().map(std::time::Duration::as_secs).collect();
    assert_eq!(waits, [5, 10, 20, 40, 60, 60, 60, 60]);
    let staged: Vec<_> = bench.staging.list(&super::key("bedrock")).try_collect().await.unwrap();
    assert_eq!(staged.len(), 1, "{staged:?}");
}
