//! What the tests of Bedrock share.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use hybrid_cloud::{
    aws::AwsConfig,
    bedrock::{Bedrock, BedrockChat, BedrockOptions, ModelOptions, RetryPolicy},
    testkit::bedrock::BedrockServer,
};
use hybrid_core::{BoxFuture, CallContext, Clock, ManualClock, Monotonic, RequestId, SeededIds, TenantId, Timestamp};

pub(crate) const REGION: &str = "us-east-1";
pub(crate) const NOVA: &str = "amazon.nova-lite-v1:0";
pub(crate) const CLAUDE: &str = "us.anthropic.claude-sonnet-4-5-20250929-v1:0";

pub(crate) fn config(url: &str) -> AwsConfig {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    let sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    AwsConfig::from_sdk(sdk)
}

pub(crate) fn options() -> BedrockOptions {
    BedrockOptions { ids: Arc::new(SeededIds::default()), ..BedrockOptions::default() }
}

pub(crate) fn connect(server: &BedrockServer, options: BedrockOptions) -> Bedrock {
    Bedrock::new(&config(server.url()), options).unwrap()
}

pub(crate) fn chat(server: &BedrockServer, model: &str) -> BedrockChat {
    connect(server, options()).chat(ModelOptions::new(model)).unwrap()
}

/// A model whose calls are made once.
pub(crate) fn chat_once(server: &BedrockServer, model: &str) -> BedrockChat {
    let options = BedrockOptions { retry: RetryPolicy::never(), ..options() };
    connect(server, options).chat(ModelOptions::new(model)).unwrap()
}

pub(crate) fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

pub(crate) fn context_at(clock: impl Clock) -> CallContext {
    CallContext { clock: Arc::new(clock), ..context() }
}

/// A clock on which the waits between tries pass at once and the limits of calls never come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasty {
    inner: ManualClock,
    waits: Arc<Mutex<Vec<Duration>>>,
}

impl Hasty {
    pub(crate) fn waits(&self) -> Vec<Duration> {
        self.waits.lock().unwrap().clone()
    }
}

impl Clock for Hasty {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn monotonic(&self) -> Monotonic {
        self.inner.monotonic()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if duration > Duration::from_secs(90) {
            return Box::pin(std::future::pending());
        }
        self.inner.advance(duration);
        self.waits.lock().unwrap().push(duration);
        Box::pin(async {})
    }
}
