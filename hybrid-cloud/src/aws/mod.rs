//! What the AWS adapters share: one configuration, and one way from the SDK's errors to [`hybrid_core::Error`].
//!
//! ```no_run
//! use hybrid_cloud::aws::{AwsConfig, AwsOptions};
//!
//! # async fn load() -> hybrid_core::Result<()> {
//! // As the AWS command line finds them: environment, profile, container, instance.
//! let config = AwsConfig::load(AwsOptions::default()).await?;
//! // A server for tests.
//! let local = AwsConfig::load(AwsOptions::local("http://127.0.0.1:4566", "test", "test")).await?;
//! # drop((config, local));
//! # Ok(())
//! # }
//! ```

#[allow(dead_code, reason = "what is used depends on the adapters that are switched on")]
mod error;

use std::{fmt, time::Duration};

use aws_config::{
    BehaviorVersion, ConfigLoader, Region, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_credential_types::Credentials;
use hybrid_core::{Error, Result};

#[allow(unused_imports, reason = "which of them are used depends on the adapters that are switched on")]
pub(crate) use error::{aws_error, code_of, may_have_acted, status_of};

/// Region, endpoint, credentials, retries and time limits for every AWS adapter of this crate.
///
/// Cheap to clone; clones share credentials and connections.
#[derive(Clone)]
pub struct AwsConfig {
    sdk: aws_config::SdkConfig,
}

/// What [`AwsConfig::load`] is told; what is left out is found as the AWS command line finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsOptions {
    /// The region, such as `eu-central-1`; otherwise `AWS_REGION`, the profile's, or the instance's.
    pub region: Option<String>,
    /// A URL that takes the place of AWS's own, for servers that speak the same protocol.
    pub endpoint: Option<String>,
    /// The profile of the shared configuration files; otherwise `AWS_PROFILE` or `default`.
    pub profile: Option<String>,
    /// Fixed credentials, for tests and for servers that are not AWS; otherwise the usual chain of providers.
    pub credentials: Option<StaticCredentials>,
    /// How failed calls are repeated.
    pub retry: Retry,
    /// How long a call may take.
    pub time: TimeLimits,
}

/// Credentials that do not change. They print without the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct StaticCredentials {
    /// The access key's id.
    pub access_key: String,
    /// The secret access key.
    pub secret_key: String,
    /// The token of a session, where the credentials are temporary.
    pub session_token: Option<String>,
}

/// How the SDK repeats a call whose failure is temporary: with back-off and jitter, out of a shared budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How many times a call is tried in all; 1 is no retry.
    pub attempts: u32,
    /// The longest wait between two tries.
    pub max_backoff: Duration,
    /// Whether the client also slows itself down while the service throttles.
    pub adaptive: bool,
}

/// How long a call may take. A limit that is `None` does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    /// Until the connection stands.
    pub connect: Option<Duration>,
    /// From the request's first byte to the answer's first, with the upload of the request's body in it. Adapters whose calls take longer by nature
    /// set a limit of their own for them.
    pub read: Option<Duration>,
    /// One attempt, until the answer's headers are there.
    pub attempt: Option<Duration>,
    /// The whole call with its retries, until the last answer's headers are there.
    pub operation: Option<Duration>,
    /// How long a body may stand still, in either direction, before the transfer counts as dead.
    pub stall: Option<Duration>,
}

impl AwsConfig {
    /// Finds the configuration. Credentials are looked for now only if a profile must be read; they are fetched with the first call.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if no region is to be found or a limit makes no sense.
    pub async fn load(options: AwsOptions) -> Result<Self> {
        const OPERATION: &str = "load AWS configuration";
        let AwsOptions { region, endpoint, profile, credentials, retry, time } = options;
        if retry.attempts == 0 {
            return Err(Error::invalid(OPERATION, "a call needs at least one attempt").with("attempts", retry.attempts));
        }
        let mut loader: ConfigLoader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(retry.into_sdk())
            .timeout_config(time.to_sdk())
            .stalled_stream_protection(time.stall_to_sdk());
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(profile) = profile {
            loader = loader.profile_name(profile);
        }
        if let Some(StaticCredentials { access_key, secret_key, session_token }) = credentials {
            loader =
                loader.credentials_provider(Credentials::new(access_key, secret_key, session_token, None, "static"));
        }
        let sdk = loader.load().await;
        if sdk.region().is_none() {
            return Err(Error::invalid(
                OPERATION,
                "no region is configured; give one, set AWS_REGION, or add it to the profile",
            ));
        }
        Ok(Self { sdk })
    }

    /// The configuration that the application has made with `aws-config` itself: for providers, HTTP clients and settings
    /// that [`AwsOptions`] does not know. It is taken as it is, with its own retries and time limits.
    pub fn from_sdk(sdk: aws_config::SdkConfig) -> Self {
        Self { sdk }
    }

    /// What the SDK's clients are made of: for calls that no adapter makes.
    pub fn sdk(&self) -> &aws_config::SdkConfig {
        &self.sdk
    }

    /// The region.
    pub fn region(&self) -> Option<&str> {
        self.sdk.region().map(AsRef::as_ref)
    }

    /// The URL that takes the place of AWS's own, if any.
    pub fn endpoint(&self) -> Option<&str> {
        self.sdk.endpoint_url()
    }
}

/// Without the credentials' provider, whose text is long.
impl fmt::Debug for AwsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsConfig")
            .field("region", &self.region())
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

impl AwsOptions {
    /// For a server that is not AWS: its URL and fixed credentials, in region `us-east-1`.
    pub fn local(endpoint: impl Into<String>, access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            region: Some("us-east-1".to_owned()),
            endpoint: Some(endpoint.into()),
            credentials: Some(StaticCredentials {
                access_key: access_key.into(),
                secret_key: secret_key.into(),
                session_token: None,
            }),
            ..Self::default()
        }
    }
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticCredentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Six attempts, waits of at most 20 s: where one call in twenty fails for a moment, one in sixty million fails for good.
impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 6, max_backoff: Duration::from_secs(20), adaptive: false }
    }
}

impl Retry {
    fn into_sdk(self) -> RetryConfig {
        let Self { attempts, max_backoff, adaptive } = self;
        let mode = if adaptive { RetryConfig::adaptive() } else { RetryConfig::standard() };
        mode.with_max_attempts(attempts).with_max_backoff(max_backoff)
    }
}

/// 3 s to connect, 60 s until an answer begins, 20 s of standing still; no limit on an attempt or a call, since some of them transfer much.
impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            connect: Some(Duration::from_secs(3)),
            read: Some(Duration::from_secs(60)),
            attempt: None,
            operation: None,
            stall: Some(Duration::from_secs(20)),
        }
    }
}

impl TimeLimits {
    fn to_sdk(&self) -> TimeoutConfig {
        let mut builder = TimeoutConfig::builder();
        // To set nothing is to have no limit, where to leave it out is to have the SDK's.
        builder
            .set_connect_timeout(self.connect)
            .set_read_timeout(self.read)
            .set_operation_attempt_timeout(self.attempt)
            .set_operation_timeout(self.operation);
        builder.build()
    }

    fn stall_to_sdk(&self) -> StalledStreamProtectionConfig {
        match self.stall {
            Some(stall) => StalledStreamProtectionConfig::enabled().grace_period(stall).build(),
            None => StalledStreamProtectionConfig::disabled(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fixed_options_ask_nobody_and_print_no_secret() {
        let options = AwsOptions::local("http://127.0.0.1:1", "id", "the-secret");
        assert!(!format!("{options:?}").contains("the-secret"));
        let config = AwsConfig::load(options).await.unwrap();
        assert_eq!((config.region(), config.endpoint()), (Some("us-east-1"), Some("http://127.0.0.1:1")));
        assert!(!format!("{config:?}").contains("the-secret"));
    }

    #[tokio::test]
    async fn no_attempt_at_all_is_refused() {
        let retry = Retry { attempts: 0, ..Retry::default() };
        let error = AwsConfig::load(AwsOptions { retry, ..AwsOptions::default() }).await.unwrap_err();
        assert_eq!(error.kind(), hybrid_core::ErrorKind::InvalidInput, "{error}");
    }
}
