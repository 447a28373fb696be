//! A custom model made ready for calls on demand.

use aws_sdk_bedrock::{
    operation::get_custom_model_deployment::GetCustomModelDeploymentOutput as Deployment,
    types::CustomModelDeploymentStatus as Status,
};
use hybrid_core::{CallContext, Error, ErrorKind, Progress, ProgressEvent, Result};

use super::{
    super::control::{found, tags},
    BedrockTrainer,
    job::Order,
};

const DEPLOY: &str = "deploy custom model";

impl BedrockTrainer {
    /// Finds or makes the model's deployment and waits until it can be called; answers with its ARN.
    pub(super) async fn deploy(
        &self,
        cx: &CallContext,
        order: &Order,
        model: &str,
        progress: &dyn Progress,
    ) -> Result<String> {
        let report = |done| progress.report(ProgressEvent::new("deploy", done, 1, "models"));
        let client = &self.control.client;
        let get = || client.get_custom_model_deployment().custom_model_deployment_identifier(&order.name).send();
        if found(self.control.call(cx, DEPLOY, get).await)?.is_none() {
            let create = client
                .create_custom_model_deployment()
                .model_deployment_name(&order.name)
                .model_arn(model)
                .client_request_token(&order.token)
                .set_tags(tags(&self.options.tags)?);
            match self.control.call(cx, DEPLOY, || create.clone().send()).await {
                // Somebody else was faster; whether it is there shows at the next look.
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.with("model", model)),
                _ => {}
            }
        }
        let judge = |deployment: Deployment| match deployment.status() {
            Status::Active => {
                report(1);
                Ok(Some(deployment.custom_model_deployment_arn().to_owned()))
            }
            Status::Failed => Err(failed(&deployment, model)),
            _ => {
                report(0);
                Ok(None)
            }
        };
        self.control.follow(cx, DEPLOY, get, judge).await
    }
}

fn failed(deployment: &Deployment, model: &str) -> Error {
    let said = deployment.failure_message().unwrap_or("Bedrock does not say why").trim_end_matches('.').to_owned();
    let message =
        "the model is trained and its deployment failed; delete that and train the same plan again, which deploys anew";
    Error::invalid(DEPLOY, message)
        .with("deployment", deployment.custom_model_deployment_arn())
        .with("model", model)
        .with_source(said)
}
