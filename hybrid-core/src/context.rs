//! What a call carries with it: whose it is, where its data may go, how long it may take.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Clock, Error, ErrorKind, Monotonic, RequestId, Result, SystemClock, TenantId};

/// A flag that is raised once and never lowered, to ask running work to stop.
pub use tokio_util::sync::CancellationToken as Cancellation;

/// Where data goes that a backend is given.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Locality {
    /// Nowhere: the model runs on this device.
    Device,
    /// To a machine of the same owner on the same site.
    Site,
    /// To a provider, in the region named, such as `eu-central-1`.
    Region(String),
    /// To a provider that chooses among these regions for each call; none are named where it does not say which.
    Regions(Vec<String>),
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Site => f.write_str("site"),
            Self::Region(region) => write!(f, "region {region}"),
            Self::Regions(regions) if regions.is_empty() => f.write_str("any region of the provider"),
            Self::Regions(regions) => write!(f, "one of the regions {}", regions.join(", ")),
        }
    }
}

/// Where the data of a call may go.
///
/// ```
/// use hybrid_core::{DataPolicy, Locality};
///
/// assert!(DataPolicy::Site.admits(&Locality::Device));
/// assert!(!DataPolicy::Site.admits(&Locality::Region("us-east-1".into())));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataPolicy {
    /// Not off this device.
    Device,
    /// Not off this site.
    Site,
    /// On this site or in one of the regions named. A provider that chooses the region may only choose among these.
    Regions(Vec<String>),
    /// Anywhere.
    #[default]
    Anywhere,
}

impl DataPolicy {
    /// Whether it lets data go anywhere: what a document leaves out, and what is meant where a document says nothing.
    pub fn is_anywhere(&self) -> bool {
        *self == Self::Anywhere
    }

    /// The policy that admits what both admit.
    ///
    /// ```
    /// use hybrid_core::DataPolicy;
    ///
    /// let regions = |names: &[&str]| DataPolicy::Regions(names.iter().map(|&name| name.to_owned()).collect());
    /// assert_eq!(regions(&["eu-central-1", "eu-west-1"]).and(&regions(&["eu-west-1"])), regions(&["eu-west-1"]));
    /// assert_eq!(DataPolicy::Anywhere.and(&DataPolicy::Site), DataPolicy::Site);
    /// ```
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Device, _) | (_, Self::Device) => Self::Device,
            (Self::Site, _) | (_, Self::Site) => Self::Site,
            (Self::Regions(mut ours), Self::Regions(theirs)) => {
                ours.retain(|region| theirs.contains(region));
                Self::Regions(ours)
            }
            (Self::Regions(regions), Self::Anywhere) => Self::Regions(regions),
            (Self::Anywhere, other) => other.clone(),
        }
    }

    /// Whether data under this policy may go to `locality`.
    pub fn admits(&self, locality: &Locality) -> bool {
        match (self, locality) {
            (Self::Anywhere, _) | (_, Locality::Device) => true,
            (Self::Site | Self::Regions(_), Locality::Site) => true,
            (Self::Regions(regions), Locality::Region(region)) => regions.contains(region),
            (Self::Regions(regions), Locality::Regions(reach)) => {
                !reach.is_empty() && reach.iter().all(|region| regions.contains(region))
            }
            (Self::Device | Self::Site, _) => false,
        }
    }
}

/// What one call carries from the edge to the backend.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Whose call it is.
    pub tenant: TenantId,
    /// The id that logs, jobs and results share.
    pub request: RequestId,
    /// Where the call's data may go.
    pub policy: DataPolicy,
    /// When the answer is no longer wanted, on [`clock`](Self::clock)'s monotonic time.
    pub deadline: Option<Monotonic>,
    /// Raised when the answer is no longer wanted.
    pub cancel: Cancellation,
    /// The caller's trace, as a W3C `traceparent` value, to be passed on.
    pub trace: Option<String>,
    /// The clock of the deadline.
    pub clock: Arc<dyn Clock>,
}

impl CallContext {
    /// The context of a call for `tenant` with no deadline, allowed to go anywhere.
    pub fn new(tenant: TenantId, request: RequestId) -> Self {
        Self {
            tenant,
            request,
            policy: DataPolicy::default(),
            deadline: None,
            cancel: Cancellation::new(),
            trace: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// The same context, with a deadline `timeout` from now.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Some(self.clock.monotonic().plus(timeout));
        self
    }

    /// The same context under `policy`.
    #[must_use]
    pub fn with_policy(mut self, policy: DataPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Checks that the call is still wanted.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) or [`Timeout`](ErrorKind::Timeout).
    pub fn check(&self, operation: &'static str) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled(operation, "the caller cancelled").with("request", &self.request));
        }
        if self.deadline.is_some_and(|deadline| self.clock.monotonic() >= deadline) {
            return Err(Error::timeout(operation, "the deadline has passed").with("request", &self.request));
        }
        Ok(())
    }

    /// Checks that the call is still wanted and that its data may go to `locality`: the one gate before a byte leaves.
    ///
    /// # Errors
    /// As [`check`](Self::check), or [`PolicyDenied`](ErrorKind::PolicyDenied) that names policy and place.
    pub fn admit(&self, operation: &'static str, locality: &Locality) -> Result<()> {
        if !self.policy.admits(locality) {
            return Err(Error::new(
                ErrorKind::PolicyDenied,
                operation,
                "the data policy does not let the data go there",
            )
            .with("policy", format_args!("{:?}", self.policy))
            .with("locality", locality)
            .with("request", &self.request));
        }
        self.check(operation)
    }

    /// Runs `work` until it ends, the caller cancels, or the deadline passes.
    ///
    /// # Errors
    /// That of `work`, [`Cancelled`](ErrorKind::Cancelled) or [`Timeout`](ErrorKind::Timeout).
    pub async fn run<R>(&self, operation: &'static str, work: impl Future<Output = Result<R>>) -> Result<R> {
        use futures_util::future::{Either, select};
        self.check(operation)?;
        let cancelled = self.cancel.cancelled();
        let late = async {
            match self.deadline {
                Some(deadline) => self.clock.sleep(deadline.since(self.clock.monotonic())).await,
                None => std::future::pending().await,
            }
        };
        let (work, cancelled, late) = (std::pin::pin!(work), std::pin::pin!(cancelled), std::pin::pin!(late));
        match select(work, select(cancelled, late)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                self.check(operation)?;
                // The clock of a test may wake a sleeper at the very deadline.
                Err(Error::timeout(operation, "the deadline has passed").with("request", &self.request))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ManualClock, SeededIds};

    fn context() -> (CallContext, ManualClock) {
        let clock = ManualClock::default();
        let mut cx = CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()));
        cx.clock = Arc::new(clock.clone());
        (cx, clock)
    }

    #[test]
    fn a_policy_admits_its_own_place_and_nearer_ones() {
        let region = |name: &str| Locality::Region(name.to_owned());
        let eu = DataPolicy::Regions(vec!["eu-central-1".to_owned()]);
        let cases = [
            (&DataPolicy::Device, [true, false, false, false]),
            (&DataPolicy::Site, [true, true, false, false]),
            (&eu, [true, true, true, false]),
            (&DataPolicy::Anywhere, [true, true, true, true]),
        ];
        let places = [Locality::Device, Locality::Site, region("eu-central-1"), region("us-east-1")];
        for (policy, admitted) in cases {
            assert_eq!(places.each_ref().map(|place| policy.admits(place)), admitted, "{policy:?}");
        }
    }

    #[test]
    fn a_provider_that_chooses_the_region_is_admitted_only_if_every_choice_is() {
        let reach = |names: &[&str]| Locality::Regions(names.iter().map(|&name| name.to_owned()).collect());
        let eu = DataPolicy::Regions(vec!["eu-central-1".to_owned(), "eu-west-1".to_owned()]);
        assert!(eu.admits(&reach(&["eu-west-1", "eu-central-1"])));
        assert!(!eu.admits(&reach(&["eu-central-1", "eu-north-1"])));
        assert!(!eu.admits(&reach(&[])), "nobody knows where it goes");
        assert!(DataPolicy::Anywhere.admits(&reach(&[])));
        assert!(!DataPolicy::Site.admits(&reach(&["eu-central-1"])));
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline_or_when_cancelled() {
        let (cx, clock) = context();
        let cx = cx.with_timeout(Duration::from_secs(3));
        let mut call = std::pin::pin!(cx.run("wait", std::future::pending::<Result<()>>()));
        assert!(futures_util::poll!(&mut call).is_pending());
        clock.advance(Duration::from_secs(3));
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Timeout);

        let (cx, _clock) = context();
        cx.cancel.cancel();
        let error = cx.run("wait", std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn data_that_must_stay_is_refused_before_the_call() {
        let (cx, _clock) = context();
        let cx = cx.with_policy(DataPolicy::Device);
        assert_eq!(cx.admit("infer", &Locality::Site).unwrap_err().kind(), ErrorKind::PolicyDenied);
        assert!(cx.admit("infer", &Locality::Device).is_ok());
    }
}
