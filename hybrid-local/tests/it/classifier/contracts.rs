//! The ports' contracts, by core's own suites.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, InferenceBackend, Result, TrainPlan, Trainer,
    conformance::{
        inference::{self, InferenceHarness},
        trainer::{self, TrainerHarness},
    },
    task::{Classify, ClassifyRequest},
};
use hybrid_local::{Device, TextClassifierTrainer};
use serde_json::{Value, json};

use super::{
    Folders, Site,
    bert::{METHODS, bert_plan},
    dataset, judgments, messages, plan,
};

#[derive(Debug)]
struct Training {
    method: &'static str,
    settings: Value,
    folders: Folders,
}

#[async_trait]
impl TrainerHarness for Training {
    fn trainer(&self) -> Arc<dyn Trainer> {
        Arc::new(TextClassifierTrainer::new(Device::cpu()))
    }

    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan> {
        let dataset = dataset(store, judgments(&messages(24))).await?;
        Ok(match self.method {
            "hashed-text" => plan(self.method, dataset, self.settings.clone()),
            _ => bert_plan(self.method, "bert", dataset, self.settings.clone()),
        })
    }

    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan> {
        let mut plan = valid.clone();
        plan.hyperparameters.insert("epochs".to_owned(), json!(0));
        vec![plan]
    }

    fn folder(&self) -> PathBuf {
        self.folders.next()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn training_hashed_text_keeps_the_trainers_contract() {
    let settings =
        json!({"epochs": 5, "batch_size": 6, "folds": 2, "dimension": 8, "char_max": 3, "checkpoint_steps": 3});
    let training = Training { method: "hashed-text", settings, folders: Folders::new() };
    trainer::run(&training).await.assert();
}

#[tokio::test(flavor = "multi_thread")]
async fn training_encoders_keeps_the_trainers_contract() {
    for method in METHODS {
        let settings = json!({"epochs": 4, "batch_size": 6, "folds": 2, "checkpoint_steps": 3});
        trainer::run(&Training { method, settings, folders: Folders::new() }).await.assert();
    }
}

/// A version that is served.
#[derive(Debug)]
pub(super) struct Serving(pub(super) Arc<dyn InferenceBackend<Classify>>);

#[async_trait]
impl InferenceHarness<Classify> for Serving {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Classify>>> {
        Ok(Arc::clone(&self.0))
    }

    fn requests(&self) -> Vec<ClassifyRequest> {
        let messages = messages(6).into_iter().map(|(text, _)| text);
        vec![ClassifyRequest::one("please reserve a cake"), ClassifyRequest::many(messages)]
    }

    fn invalid(&self) -> ClassifyRequest {
        ClassifyRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_hashed_text_keeps_the_inference_contract() {
    let site = Site::with(judgments(&messages(30))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 3}));
    let candidate = site.train(&plan).await.unwrap();
    inference::run(&Serving(site.load(&plan, &candidate).await.unwrap())).await.assert();
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_encoders_keeps_the_inference_contract() {
    for method in METHODS {
        let site = Site::with(judgments(&messages(30))).await;
        let plan = bert_plan(method, "distilbert", site.dataset.clone(), json!({"epochs": 1}));
        let candidate = site.train(&plan).await.unwrap();
        inference::run(&Serving(site.load(&plan, &candidate).await.unwrap())).await.assert();
    }
}
