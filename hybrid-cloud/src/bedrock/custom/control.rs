//! Bedrock's control plane: calls with retries, and looks at a job until it has ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_config::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_bedrock::{
    Client,
    config::{self, http::HttpResponse},
    error::{ProvideErrorMetadata, SdkError},
    types::Tag,
};
use hybrid_core::{
    CallContext, Cancellation, Clock, DataPolicy, Digest, Error, ErrorKind, Hasher, IdSource, Key, ModelName,
    RequestId, Result, Staging, TenantId,
};

use super::{
    super::{
        call::within,
        failure::Failure,
        retry::{Retrier, RetryPolicy},
    },
    PollPolicy,
};
use crate::aws::AwsConfig;

const CONNECT: &str = "connect to Bedrock";
/// How long one call may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Bedrock's control plane in one region.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) client: Client,
    pub(super) region: String,
    retrier: Retrier,
    pub(super) poll: PollPolicy,
    ids: Arc<dyn IdSource>,
}

impl Control {
    pub(super) fn new(
        config: &AwsConfig,
        retry: RetryPolicy,
        poll: PollPolicy,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self> {
        let region = config.region().ok_or_else(|| {
            Error::invalid(CONNECT, "the configuration has no region; set one, such as by AWS_REGION")
        })?;
        // Retries and limits are judged here, on the run's clock.
        let mut limits = TimeoutConfig::builder();
        limits.set_connect_timeout(config.sdk().timeout_config().and_then(TimeoutConfig::connect_timeout));
        let client = config::Builder::from(config.sdk())
            .retry_config(RetryConfig::disabled())
            .timeout_config(limits.build())
            .build();
        let retrier = Retrier::new(retry, &*ids);
        Ok(Self { client: Client::from_conf(client), region: region.to_owned(), retrier, poll, ids })
    }

    /// The context of the calls of one run.
    pub(super) fn context(&self, clock: &Arc<dyn Clock>, cancel: &Cancellation) -> CallContext {
        CallContext {
            tenant: TenantId::single(),
            request: RequestId::next(&*self.ids),
            policy: DataPolicy::Anywhere,
            deadline: None,
            cancel: cancel.clone(),
            trace: None,
            clock: Arc::clone(clock),
        }
    }

    /// Makes a call, again and again as the policy has it.
    pub(super) async fn call<R, E, F>(
        &self,
        cx: &CallContext,
        operation: &'static str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<R>
    where
        F: Future<Output = std::result::Result<R, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let attempt = || {
            let call = attempt();
            within(cx, ANSWER_WITHIN, async { call.await.map_err(Failure::of) })
        };
        self.retrier.run(cx, operation, attempt).await
    }

    /// Looks at a job with `get` until `judge` says that it has ended.
    pub(super) async fn follow<R, E, F, T>(
        &self,
        cx: &CallContext,
        operation: &'static str,
        mut get: impl FnMut() -> F,
        mut judge: impl FnMut(R) -> Result<Option<T>>,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<R, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (mut wait, mut failures) = (self.poll.first, 0);
        loop {
            match self.call(cx, operation, &mut get).await.and_then(&mut judge) {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => failures = 0,
                // A job that was made a moment ago may not be seen everywhere yet.
                Err(error) if error.is_temporary() || error.kind() == ErrorKind::NotFound => {
                    failures += 1;
                    if failures > self.poll.patience {
                        return Err(error.with("failures_in_a_row", failures));
                    }
                }
                Err(error) => return Err(error),
            }
            self.pause(cx, operation, &mut wait).await?;
        }
    }

    /// Waits, and longer the next time.
    pub(super) async fn pause(&self, cx: &CallContext, operation: &'static str, wait: &mut Duration) -> Result<()> {
        let sleep = cx.clock.sleep(*wait);
        *wait = wait.saturating_mul(2).min(self.poll.cap);
        cx.run(operation, async {
            sleep.await;
            Ok(())
        })
        .await
    }
}

/// What is not there is none.
pub(super) fn found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What identifies a job: what is ordered, and how Bedrock is to carry it out.
pub(super) fn order(what: &[u8], role: &str, kms_key: Option<&str>, location: &str) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(what);
    for part in [role, kms_key.unwrap_or_default(), location] {
        hasher.update(b"\0");
        hasher.update(part.as_bytes());
    }
    hasher.finish()
}

/// A name that follows from what was ordered: of lower-case letters, digits and single hyphens, as every kind of thing at Bedrock can be named.
pub(super) fn name(model: &ModelName, order: Digest) -> String {
    let mut name = String::new();
    for part in model.as_str().split(['-', '_']).filter(|part| !part.is_empty()) {
        name.push_str(part);
        name.push('-');
    }
    // 63 characters are allowed; an import's name has the number of its attempt behind it.
    name.truncate(36);
    format!("{}-{}", name.trim_end_matches('-'), &order.to_string()[..20])
}

pub(super) fn tags(tags: &BTreeMap<String, String>) -> Result<Option<Vec<Tag>>> {
    let tag = |(key, value): (&String, &String)| {
        let tag = Tag::builder().key(key).value(value).build();
        tag.map_err(|error| Error::invalid(CONNECT, "the tag is not whole").with("tag", key).with_source(error))
    };
    let tags = tags.iter().map(tag).collect::<Result<Vec<_>>>()?;
    Ok((!tags.is_empty()).then_some(tags))
}

/// Checks what Bedrock is told whichever the job: the role it takes, and a place that it can reach.
pub(super) fn check_access(role: &str, staging: &dyn Staging, folder: &Key) -> Result<()> {
    let mut parts = role.splitn(6, ':');
    let is_role = parts.next() == Some("arn")
        && parts.next().is_some_and(|partition| partition.starts_with("aws"))
        && parts.next() == Some("iam")
        && parts.nth(2).is_some_and(|resource| resource.starts_with("role/") && resource.len() > "role/".len());
    if !is_role {
        return Err(Error::invalid(
            CONNECT,
            "expected the ARN of a role that Bedrock may take, such as arn:aws:iam::123456789012:role/name",
        )
        .with("role", role));
    }
    let location = staging.location(folder);
    if !location.starts_with("s3://") {
        return Err(
            Error::invalid(CONNECT, "Bedrock reads from S3 alone; stage the files there").with("location", location)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_every_kind_of_thing() {
        let order = Digest::of(b"order");
        for model in ["m", "bakery", "a_-_b--c", &"x".repeat(63), &"ab-".repeat(20)] {
            let name = name(&ModelName::new(model).unwrap(), order);
            let parts: Vec<_> = name.split('-').collect();
            assert!(name.len() <= 58, "{name}");
            assert!(
                parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric())),
                "{name}"
            );
        }
        assert_ne!(
            name(&ModelName::new("m").unwrap(), order),
            name(&ModelName::new("m").unwrap(), Digest::of(b"other"))
        );
    }
}
