//! The trainer's contract, by core's own suite.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use hybrid_cloud::{
    bedrock::custom::{BedrockTrainer, BedrockTrainerOptions, OnCancel, PollPolicy},
    testkit::bedrock::{BedrockServer, ControlPlane, Course},
};
use hybrid_core::{
    ArtifactStore, BaseModel, Result, SeededIds, Staging, TrainPlan, Trainer,
    conformance::trainer::{self, TrainerHarness},
};
use serde_json::json;

use super::{ROLE, key, plan};
use crate::{bedrock::rig, s3::Server};

/// Each trainer has a Bedrock of its own that forgets a job once it is over, so that every run of the suite is a whole one.
#[derive(Debug)]
struct Harness {
    staging: Arc<dyn Staging>,
    on_cancel: OnCancel,
    servers: Mutex<Vec<BedrockServer>>,
    scratch: tempfile::TempDir,
}

#[async_trait]
impl TrainerHarness for Harness {
    fn trainer(&self) -> Arc<dyn Trainer> {
        let (server, control) = (BedrockServer::start().unwrap(), ControlPlane::default());
        control.set_course(Course { looks: 12, forgets: true, ..Course::default() });
        server.otherwise(move |request| control.answer(request));
        let mut options = BedrockTrainerOptions::new(ROLE, key("bedrock/training"));
        options.poll = PollPolicy { first: Duration::from_millis(1), cap: Duration::from_millis(2), patience: 3 };
        options.on_cancel = self.on_cancel;
        options.ids = Arc::new(SeededIds::default());
        let trainer = BedrockTrainer::new(&rig::config(server.url()), Arc::clone(&self.staging), options).unwrap();
        self.servers.lock().unwrap().push(server);
        Arc::new(trainer)
    }

    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan> {
        Ok(plan(store, 6).await)
    }

    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan> {
        let mut epochs = valid.clone();
        epochs.hyperparameters.insert("epochs".to_owned(), json!(0));
        let no_base = TrainPlan { base: None, ..valid.clone() };
        let folder = TrainPlan { base: Some(BaseModel::Folder("model".into())), ..valid.clone() };
        vec![epochs, no_base, folder]
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.scratch).unwrap().keep()
    }
}

async fn check(on_cancel: OnCancel) {
    let s3 = Server::Ministack;
    let staging = Arc::new(s3.store(&s3.bucket().await).await.staging());
    let scratch = tempfile::tempdir().unwrap();
    trainer::run(&Harness { staging, on_cancel, servers: Mutex::default(), scratch }).await.assert();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept_where_jobs_are_left_to_go_on() {
    check(OnCancel::Leave).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept_where_jobs_are_stopped() {
    check(OnCancel::Stop).await;
}
