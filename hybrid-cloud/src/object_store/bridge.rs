//! Credentials from the AWS configuration for the crate's own S3 client.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::object_store::{CredentialProvider, Error as StoreError, aws::AwsCredential};
use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use hybrid_core::{Clock, Error, Result, SystemClock, Timestamp};
use tokio::sync::Mutex;

use crate::aws::AwsConfig;

/// How long before they expire credentials are fetched anew.
const EARLY: Duration = Duration::from_secs(5 * 60);

/// Keeps what the provider gave until shortly before it expires; one fetches while the others wait.
pub(super) struct AwsCredentials {
    provider: SharedCredentialsProvider,
    clock: Arc<dyn Clock>,
    known: Mutex<Option<Known>>,
}

struct Known {
    credential: Arc<AwsCredential>,
    expires: Option<Timestamp>,
}

impl AwsCredentials {
    pub(super) fn new(config: &AwsConfig) -> Result<Self> {
        let provider = config.sdk().credentials_provider().ok_or_else(|| {
            Error::invalid("open object store", "the AWS configuration has no credentials and no way to find them")
        })?;
        Ok(Self { provider, clock: Arc::new(SystemClock), known: Mutex::default() })
    }
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsCredentials").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for AwsCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> ::object_store::Result<Arc<AwsCredential>> {
        let mut known = self.known.lock().await;
        if let Some(Known { credential, expires }) = &*known
            && expires.is_none_or(|expires| self.clock.now().plus(EARLY) < expires)
        {
            return Ok(Arc::clone(credential));
        }
        let fetched = self.provider.provide_credentials().await;
        let fetched =
            fetched.map_err(|error| StoreError::Generic { store: "AWS credentials", source: error.into() })?;
        let credential = Arc::new(AwsCredential {
            key_id: fetched.access_key_id().to_owned(),
            secret_key: fetched.secret_access_key().to_owned(),
            token: fetched.session_token().map(str::to_owned),
        });
        *known = Some(Known { credential: Arc::clone(&credential), expires: fetched.expiry().map(timestamp) });
        Ok(credential)
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::UNIX_EPOCH.plus(since_epoch)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_config::SdkConfig;
    use aws_credential_types::{
        Credentials,
        provider::{error::CredentialsError, future},
    };
    use hybrid_core::ManualClock;

    use super::*;

    /// Gives credentials that hold for an hour, numbered, until it is told to fail.
    #[derive(Clone, Debug)]
    struct Numbered {
        clock: ManualClock,
        given: Arc<AtomicUsize>,
    }

    impl ProvideCredentials for Numbered {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.given.fetch_add(1, Ordering::SeqCst);
            if number == 2 {
                return future::ProvideCredentials::ready(Err(CredentialsError::provider_error("logged out")));
            }
            let now = Duration::from_micros(self.clock.now().unix_micros() as u64);
            let expires = SystemTime::UNIX_EPOCH + now + Duration::from_secs(3600);
            let given =
                Credentials::new(format!("key {number}"), "secret", Some("token".into()), Some(expires), "test");
            future::ProvideCredentials::ready(Ok(given))
        }
    }

    #[tokio::test]
    async fn credentials_are_kept_until_shortly_before_they_expire() {
        let clock = ManualClock::default();
        let provider = Numbered { clock: clock.clone(), given: Arc::default() };
        let sdk = SdkConfig::builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
        let mut bridge = AwsCredentials::new(&AwsConfig::from_sdk(sdk)).unwrap();
        bridge.clock = Arc::new(clock.clone());
        for (after_minutes, expected) in [(0, "key 0"), (54, "key 0"), (2, "key 1"), (54, "key 1")] {
            clock.advance(Duration::from_secs(after_minutes * 60));
            let given = bridge.get_credential().await.unwrap();
            assert_eq!((given.key_id.as_str(), given.token.as_deref()), (expected, Some("token")), "{after_minutes}");
        }
        clock.advance(Duration::from_secs(600));
        assert!(bridge.get_credential().await.unwrap_err().to_string().contains("credentials"));
        assert_eq!(bridge.get_credential().await.unwrap().key_id, "key 3");
        assert!(!format!("{bridge:?}").contains("secret"));
    }
}
