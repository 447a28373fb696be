//! Extending leases, ending them, and handing over what SQS holds no longer.

use std::time::Duration;

use futures_util::future::join_all;
use hybrid_core::{Error, ErrorKind, MAX_DELAY, Receipt, Result, check_delay};

use super::{Inner, LONGEST_HOLD, batch::Gaps, calls::seconds, lease::Lease, outgoing::Outgoing};

/// Why a lease that was asked for longer is over.
const HANDED_OVER: &str = "the queue holds no message for longer than twelve hours; it was handed over and comes again";

impl Inner {
    pub(super) async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        const OPERATION: &str = "extend leases";
        let asked = self.clock.monotonic();
        let mut checked = Vec::with_capacity(leases.len());
        for (receipt, length) in leases {
            checked.push(match self.leases.get(receipt) {
                Err(error) => Err(Err(error)),
                Ok(_) if *length > LONGEST_HOLD => {
                    Err(Err(Error::invalid(OPERATION, "the lease is over the queue's limit; extend it on the way")
                        .with("lease", format_args!("{length:?}"))
                        .with("limit", format_args!("{LONGEST_HOLD:?}"))))
                }
                Ok(lease) if asked.plus(whole(*length)) > lease.limit => {
                    // Not before the holder's time is over, so that it can stop first, as far as the queue can wait.
                    let handed_over = self.hand_over(receipt, lease.end.since(asked).min(MAX_DELAY)).await;
                    Err(handed_over.and_then(|()| Err(Error::lease_lost(OPERATION, HANDED_OVER))))
                }
                Ok(_) => Ok((receipt, *length)),
            });
        }
        let (held, answers) = Gaps::split(checked);
        let times = held.iter().map(|(receipt, length)| (receipt.0.clone(), *length)).collect();
        let hidden = self.hide_all(OPERATION, &self.url, times).await?;
        let extended = held.iter().zip(hidden).map(|((receipt, length), outcome)| {
            outcome.map_err(|error| self.refused(receipt, error))?;
            self.leases.extend(receipt, asked.plus(*length))
        });
        Ok(answers.fill(extended))
    }

    pub(super) async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let (held, answers) =
            Gaps::split(receipts.iter().map(|receipt| self.leases.get(receipt).map(|_| receipt).map_err(Err)));
        let handles = held.iter().map(|receipt| receipt.0.clone()).collect();
        let deleted = self.delete_all("ack messages", &self.url, handles).await?;
        let acked = held.iter().zip(deleted).map(|(receipt, outcome)| {
            outcome.map_err(|error| self.refused(receipt, error))?;
            // An answer that comes when the lease is over may be about another's message: SQS says yes to an old receipt without deleting.
            self.leases.take(receipt).map(drop)
        });
        Ok(answers.fill(acked))
    }

    pub(super) async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        let asked = self.clock.monotonic();
        let mut checked = Vec::with_capacity(receipts.len());
        for (receipt, delay) in receipts {
            checked.push(match check_delay(*delay).and_then(|()| self.leases.get(receipt)) {
                Err(error) => Err(Err(error)),
                Ok(lease) if asked.plus(whole(*delay)) > lease.limit => Err(self.hand_over(receipt, *delay).await),
                Ok(_) => Ok((receipt, *delay)),
            });
        }
        let (held, answers) = Gaps::split(checked);
        let times = held.iter().map(|(receipt, delay)| (receipt.0.clone(), *delay)).collect();
        let hidden = self.hide_all("nack messages", &self.url, times).await?;
        let nacked = held.iter().zip(hidden).map(|((receipt, _), outcome)| {
            outcome.map_err(|error| self.refused(receipt, error))?;
            self.leases.take(receipt).map(drop)
        });
        Ok(answers.fill(nacked))
    }

    /// A copy takes the message's place, since SQS takes no receive back that it has counted.
    pub(super) async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        Ok(join_all(receipts.iter().map(|receipt| self.hand_over(receipt, Duration::ZERO))).await)
    }

    /// A lease that SQS knows nothing of is over here too. What it calls a wrong parameter can only be the receipt or the time left: the
    /// others were checked before.
    fn refused(&self, receipt: &Receipt, error: Error) -> Error {
        match error.kind() {
            ErrorKind::LeaseLost => {
                let _ = self.leases.take(receipt);
                error
            }
            ErrorKind::InvalidInput => {
                let _ = self.leases.take(receipt);
                Error::lease_lost("find lease", "the queue does not hold the message for this receipt")
                    .with_source(error)
            }
            _ => error,
        }
    }

    /// Lets a copy of the message come after `delay`, and ends the lease. On failure the lease is as it was.
    async fn hand_over(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        const OPERATION: &str = "hand message over";
        // From here on the lease is lost to every other call, so that no second copy is made.
        let lease = self.leases.take(receipt)?;
        let message = lease.message.clone();
        let copy = match Outgoing::copy(&message, &message.handover(message.attempt().saturating_sub(1)), delay) {
            Ok(copy) if !self.fifo && copy.fits(self.max_bytes) => copy,
            // A copy would lose its place, or be too large: the message itself comes again.
            Ok(_) => return self.let_go(receipt, lease, delay).await,
            Err(error) => return Err(self.put_back(receipt, lease, error)),
        };
        match self.send_all(OPERATION, &self.url, vec![copy]).await.map(|mut sent| sent.pop()) {
            Ok(Some(Ok(follow_on))) => {
                tracing::info!(message = %message.id().0, follow_on, ?delay, "handed over to a copy");
            }
            Ok(Some(Err(error))) | Err(error) => return Err(self.put_back(receipt, lease, error)),
            Ok(None) => return Err(self.put_back(receipt, lease, Error::internal(OPERATION, "an answer is missing"))),
        }
        let deleted = self.delete_all(OPERATION, &self.url, vec![receipt.0.clone()]).await;
        if let Err(error) = deleted.and_then(|mut deleted| deleted.pop().unwrap_or(Ok(()))) {
            tracing::warn!(%error, message = %message.id().0, "the message was handed over and could not be deleted; it comes twice");
        }
        Ok(())
    }

    /// Lets the message itself come again after `delay`, or as soon as SQS shows it.
    async fn let_go(&self, receipt: &Receipt, lease: Lease, delay: Duration) -> Result<()> {
        let delay = delay.min(lease.limit.since(self.clock.monotonic()));
        match self.hide_all("nack messages", &self.url, vec![(receipt.0.clone(), delay)]).await {
            Err(error) => Err(self.put_back(receipt, lease, error)),
            Ok(mut hidden) => hidden.pop().unwrap_or(Ok(())).map_err(|error| self.put_back(receipt, lease, error)),
        }
    }

    fn put_back(&self, receipt: &Receipt, lease: Lease, error: Error) -> Error {
        self.leases.insert(receipt.0.clone(), lease);
        error
    }
}

/// As long as SQS hides a message that is to be hidden for this long.
fn whole(time: Duration) -> Duration {
    Duration::from_secs(seconds(time).unsigned_abs().into())
}
