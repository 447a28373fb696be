use hybrid_cloud::{
    bedrock::ModelOptions,
    testkit::bedrock::{Answer, BedrockServer},
};
use hybrid_core::{
    DataPolicy, ErrorKind, InferenceBackend, Locality,
    task::{Chat, ChatRequest},
};

use super::rig;

fn regions(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

async fn asked(model: ModelOptions, admitted: &[&str]) -> Result<Locality, ErrorKind> {
    let server = BedrockServer::start().unwrap();
    server.otherwise(|_| Answer::text("hi").into());
    let backend = rig::connect(&server, rig::options()).chat(model).unwrap();
    let cx = rig::context().with_policy(DataPolicy::Regions(regions(admitted)));
    let outcome = backend.infer(&cx, ChatRequest::user("hi")).await;
    let streamed = InferenceBackend::<Chat>::stream(&backend, &cx, ChatRequest::user("hi")).await.map(drop);
    assert_eq!(outcome.is_ok(), streamed.is_ok());
    assert_eq!(outcome.is_ok(), server.calls() > 0, "a byte left, or none did");
    outcome.map(|reply| reply.meta.locality).map_err(|error| error.kind())
}

#[tokio::test]
async fn a_profile_is_used_only_where_all_its_regions_are_admitted() {
    let us = ["us-east-1", "us-east-2", "us-west-1", "us-west-2"];
    let profile = || ModelOptions::new("us.amazon.nova-lite-v1:0");
    assert_eq!(asked(profile(), &["us-east-1"]).await, Err(ErrorKind::PolicyDenied));
    assert_eq!(asked(profile(), &us[..3]).await, Err(ErrorKind::PolicyDenied));
    assert_eq!(asked(profile(), &us).await, Ok(Locality::Regions(regions(&us))));
}

#[tokio::test]
async fn a_profile_that_may_go_anywhere_is_refused_whatever_regions_are_admitted() {
    let global = ModelOptions::new("global.amazon.nova-2-lite-v1:0");
    assert_eq!(asked(global, &["us-east-1", "us-east-2", "eu-west-1"]).await, Err(ErrorKind::PolicyDenied));
}

#[tokio::test]
async fn a_list_that_the_user_gives_is_believed() {
    let narrow = ["us-east-1", "us-west-2"];
    let profile = ModelOptions { regions: Some(regions(&narrow)), ..ModelOptions::new("us.amazon.nova-lite-v1:0") };
    assert_eq!(asked(profile.clone(), &narrow).await, Ok(Locality::Regions(regions(&narrow))));
    assert_eq!(asked(profile, &narrow[..1]).await, Err(ErrorKind::PolicyDenied));
}
