use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    Clock, DeadLetter, DeadLetters, Delivery, Depth, Error, ErrorKind, Guarantees, JobQueue, JobQueueExt, MAX_DELAY,
    ManualClock, MessageId, Monotonic, NewMessage, Receipt, ReceiveOptions, Result, conformance::queue,
    memory::MemoryQueue,
};

use crate::conformance::Queues;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QueueFault {
    LosesTheRestOfABatch,
    AnswersBackwards,
    RefusesNoItems,
    TrimsBodies,
    ForgetsGroups,
    HasAnOldSizeLimit,
    CleansBodies,
    ForgetsDelays,
    CountsFromZero,
    IgnoresMax,
    EmptyIsAnError,
    SleepsThroughItsWait,
    AcksOnDelivery,
    RepeatsAnswers,
    RedeliversEarly,
    CountsNoAttempts,
    HasOneLeaseForAll,
    ExtendsFromTheEnd,
    IgnoresExtend,
    AcceptsLostLeases,
    AcksUnderStaleLeases,
    NacksUnderStaleLeases,
    ExtendsStaleLeases,
    ForgetsAcks,
    ForgetsNacks,
    ForgetsNackDelays,
    ShortensNackDelays,
    ForgetsReleases,
    CountsReleases,
    ReleasesUnderStaleLeases,
    NeverDies,
    HidesTheBodiesOfTheDead,
    NewestDeadFirst,
    RedriveRefusesStrangers,
    PurgeForgets,
    CountsDelayedAsReady,
    IgnoresOrder,
}

use QueueFault::*;

const PLANTED: &[super::Planted<QueueFault>] = &[
    (LosesTheRestOfABatch, &["send_answers_per_item"]),
    (AnswersBackwards, &["send_answers_per_item", "ids_name_their_messages", "ack_answers_per_item"]),
    (RefusesNoItems, &["no_items_have_no_answers"]),
    (TrimsBodies, &["messages_come_back_as_sent"]),
    (ForgetsGroups, &["messages_come_back_as_sent"]),
    (HasAnOldSizeLimit, &["the_largest_body_is_carried"]),
    (CleansBodies, &["what_queues_cannot_carry_is_refused", "send_answers_per_item"]),
    (ForgetsDelays, &["a_delay_hides_a_message"]),
    (CountsFromZero, &["first_deliveries_count_one"]),
    (IgnoresMax, &["receive_keeps_to_max"]),
    (EmptyIsAnError, &["an_empty_answer_is_no_error"]),
    (
        SleepsThroughItsWait,
        &[
            "a_waiting_receive_sees_a_send",
            "a_waiting_receive_sees_a_delay_end",
            "a_waiting_receive_sees_a_lease_end",
            "a_waiting_receive_sees_a_nack",
        ],
    ),
    (AcksOnDelivery, &["a_dropped_receive_loses_nothing", "a_lease_that_ends_delivers_again"]),
    (RepeatsAnswers, &["receivers_side_by_side_get_everything", "exclusive_receivers_never_share"]),
    (RedeliversEarly, &["exclusive_leases_are_exclusive"]),
    (CountsNoAttempts, &["a_lease_that_ends_delivers_again"]),
    (HasOneLeaseForAll, &["each_delivery_has_its_own_lease"]),
    (ExtendsFromTheEnd, &["extend_counts_from_now", "extend_may_shorten"]),
    (IgnoresExtend, &["extend_counts_from_now", "extend_answers_per_item", "the_last_delivery_can_be_acked"]),
    (
        AcceptsLostLeases,
        &[
            "an_ended_lease_cannot_ack",
            "an_ended_lease_cannot_nack",
            "an_ended_lease_cannot_release",
            "an_ended_lease_cannot_be_extended",
            "ack_twice_is_refused",
        ],
    ),
    (AcksUnderStaleLeases, &["a_stale_ack_changes_nothing"]),
    (NacksUnderStaleLeases, &["a_stale_nack_changes_nothing"]),
    (ExtendsStaleLeases, &["a_stale_extend_changes_nothing"]),
    (ForgetsAcks, &["ack_removes_for_good"]),
    (ForgetsNacks, &["nack_gives_back_at_once", "nack_ends_the_lease"]),
    (ForgetsNackDelays, &["nack_delay_is_kept"]),
    (ShortensNackDelays, &["nack_delay_is_limited"]),
    (ForgetsReleases, &["release_gives_back_at_once", "release_answers_per_item"]),
    (CountsReleases, &["free_releases_do_not_count", "release_gives_back_at_once"]),
    (ReleasesUnderStaleLeases, &["an_ended_lease_cannot_release"]),
    (
        NeverDies,
        &[
            "used_up_leases_end_deliveries",
            "used_up_nacks_end_deliveries",
            "dead_letters_are_listed",
            "ordered_groups_pass_the_dead",
        ],
    ),
    (HidesTheBodiesOfTheDead, &["dead_letters_are_listed"]),
    (NewestDeadFirst, &["dead_letters_come_oldest_first"]),
    (RedriveRefusesStrangers, &["redrive_counts_from_one"]),
    (PurgeForgets, &["purge_removes_for_good"]),
    (CountsDelayedAsReady, &["exact_depth_is_exact"]),
    (
        IgnoresOrder,
        &[
            "ordered_groups_keep_their_order",
            "ordered_groups_wait_for_a_retry",
            "ordered_groups_do_not_block_each_other",
        ],
    ),
];

#[tokio::test]
async fn the_suite_notices_broken_queues() {
    super::check(PLANTED, |fault| async move { queue::run(&Queues::broken(fault)).await }).await;
}

#[derive(Debug)]
pub(crate) struct BrokenQueue {
    memory: MemoryQueue,
    fault: QueueFault,
    clock: ManualClock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The message of each receipt, the newest receipt of each message, and the end of each lease.
    messages: HashMap<Receipt, MessageId>,
    newest: HashMap<MessageId, Receipt>,
    ends: HashMap<Receipt, Monotonic>,
    last_answer: Vec<Delivery>,
}

impl BrokenQueue {
    pub(crate) fn new(memory: MemoryQueue, fault: QueueFault, clock: ManualClock) -> Self {
        Self { memory, fault, clock, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The receipt under which the message of `receipt` is held now, whoever asks.
    fn newest(&self, receipt: &Receipt) -> Receipt {
        let state = self.state();
        state.messages.get(receipt).and_then(|id| state.newest.get(id)).unwrap_or(receipt).clone()
    }

    /// Answers as a queue does that never says `LeaseLost`.
    fn lenient(&self, answers: Vec<Result<()>>) -> Vec<Result<()>> {
        let lenient = |answer: Result<()>| match answer {
            Err(error) if self.fault == AcceptsLostLeases && error.kind() == ErrorKind::LeaseLost => Ok(()),
            other => other,
        };
        let mut answers: Vec<_> = answers.into_iter().map(lenient).collect();
        // In another order than asked, by one.
        if self.fault == AnswersBackwards && !answers.is_empty() {
            answers.rotate_left(1);
        }
        answers
    }
}

#[async_trait]
impl JobQueue for BrokenQueue {
    fn guarantees(&self) -> Guarantees {
        Guarantees { ordered: true, ..self.memory.guarantees() }
    }

    async fn send(&self, mut messages: Vec<NewMessage>) -> Result<Vec<Result<MessageId>>> {
        if self.fault == RefusesNoItems && messages.is_empty() {
            return Err(Error::invalid("send messages", "a batch has at least one entry"));
        }
        for message in &mut messages {
            match self.fault {
                TrimsBodies => message.body = message.body.trim().to_owned(),
                ForgetsGroups => message.group = None,
                CleansBodies => message.body = message.body.replace(char::is_control, " "),
                ForgetsDelays if message.delay <= MAX_DELAY => message.delay = Duration::ZERO,
                _ => {}
            }
        }
        if self.fault == LosesTheRestOfABatch
            && let Some(bad) = messages.iter().position(|message| message.validate().is_err())
        {
            let lost = messages.len() - bad;
            messages.truncate(bad);
            let mut answers = self.memory.send(messages).await?;
            answers.extend((0..lost).map(|_| Err(Error::invalid("send messages", "an item of the batch is bad"))));
            return Ok(answers);
        }
        if self.fault == HasAnOldSizeLimit && messages.iter().any(|message| message.body.len() > 256 * 1024) {
            return Ok(messages.iter().map(|_| Err(Error::too_large("send messages", "over 256 KiB"))).collect());
        }
        let mut answers = self.memory.send(messages).await?;
        if self.fault == AnswersBackwards {
            answers.reverse();
        }
        Ok(answers)
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        let ReceiveOptions { max, wait, lease } = options;
        let lease = match self.fault {
            RedeliversEarly => lease / 2,
            HasOneLeaseForAll => Duration::from_secs(3),
            _ => lease,
        };
        let max = if self.fault == IgnoresMax { max * 10 } else { max };
        if self.fault == RepeatsAnswers {
            let repeated = std::mem::take(&mut self.state().last_answer);
            if !repeated.is_empty() && repeated.len() <= max {
                return Ok(repeated);
            }
        }
        let mut found = if self.fault == SleepsThroughItsWait {
            let found = self.memory.receive(ReceiveOptions { max, wait: Duration::ZERO, lease }).await?;
            if found.is_empty() && !wait.is_zero() {
                self.clock.sleep(wait).await;
            }
            if found.is_empty() {
                self.memory.receive(ReceiveOptions { max, wait: Duration::ZERO, lease }).await?
            } else {
                found
            }
        } else {
            self.memory.receive(ReceiveOptions { max, wait, lease }).await?
        };
        if self.fault == EmptyIsAnError && found.is_empty() {
            return Err(Error::timeout("receive messages", "no message came"));
        }
        if self.fault == AcksOnDelivery {
            for delivery in &found {
                self.memory.ack_one(&delivery.receipt).await?;
            }
        }
        let now = self.clock.monotonic();
        let mut state = self.state();
        for delivery in &mut found {
            match self.fault {
                CountsFromZero => delivery.attempt -= 1,
                CountsNoAttempts => delivery.attempt = 1,
                _ => {}
            }
            state.messages.insert(delivery.receipt.clone(), delivery.id.clone());
            state.newest.insert(delivery.id.clone(), delivery.receipt.clone());
            state.ends.insert(delivery.receipt.clone(), now.plus(lease));
        }
        state.last_answer.clone_from(&found);
        Ok(found)
    }

    async fn extend(&self, leases: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        if self.fault == IgnoresExtend {
            return Ok(leases.iter().map(|_| Ok(())).collect());
        }
        let now = self.clock.monotonic();
        let leases: Vec<_> = leases
            .iter()
            .map(|(receipt, lease)| match self.fault {
                ExtendsStaleLeases => (self.newest(receipt), *lease),
                ExtendsFromTheEnd => {
                    let mut state = self.state();
                    let end = state.ends.entry(receipt.clone()).or_insert(now);
                    *end = end.plus(*lease);
                    (receipt.clone(), end.since(now))
                }
                _ => (receipt.clone(), *lease),
            })
            .collect();
        Ok(self.lenient(self.memory.extend(&leases).await?))
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        match self.fault {
            ForgetsAcks => Ok(receipts.iter().map(|_| Ok(())).collect()),
            AcksUnderStaleLeases => {
                let receipts: Vec<_> = receipts.iter().map(|receipt| self.newest(receipt)).collect();
                self.memory.ack(&receipts).await
            }
            _ => Ok(self.lenient(self.memory.ack(receipts).await?)),
        }
    }

    async fn nack(&self, receipts: &[(Receipt, Duration)]) -> Result<Vec<Result<()>>> {
        if self.fault == ForgetsNacks {
            return Ok(receipts.iter().map(|_| Ok(())).collect());
        }
        let receipts: Vec<_> = receipts
            .iter()
            .map(|(receipt, delay)| match self.fault {
                NacksUnderStaleLeases => (self.newest(receipt), *delay),
                ForgetsNackDelays if *delay <= MAX_DELAY => (receipt.clone(), Duration::ZERO),
                ShortensNackDelays => (receipt.clone(), (*delay).min(MAX_DELAY)),
                _ => (receipt.clone(), *delay),
            })
            .collect();
        Ok(self.lenient(self.memory.nack(&receipts).await?))
    }

    async fn release(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        match self.fault {
            ForgetsReleases => Ok(receipts.iter().map(|_| Ok(())).collect()),
            CountsReleases => {
                let nacks: Vec<_> = receipts.iter().map(|receipt| (receipt.clone(), Duration::ZERO)).collect();
                self.memory.nack(&nacks).await
            }
            ReleasesUnderStaleLeases => {
                let receipts: Vec<_> = receipts.iter().map(|receipt| self.newest(receipt)).collect();
                self.memory.release(&receipts).await
            }
            _ => Ok(self.lenient(self.memory.release(receipts).await?)),
        }
    }

    async fn depth(&self) -> Result<Depth> {
        let Depth { ready, leased, delayed } = self.memory.depth().await?;
        Ok(match self.fault {
            CountsDelayedAsReady => Depth { ready: ready + delayed, leased, delayed: 0 },
            _ => Depth { ready, leased, delayed },
        })
    }
}

#[derive(Debug)]
pub(crate) struct BrokenDeadLetters {
    pub(crate) memory: MemoryQueue,
    pub(crate) fault: QueueFault,
}

#[async_trait]
impl DeadLetters for BrokenDeadLetters {
    async fn list(&self, max: usize, after: Option<&MessageId>) -> Result<Vec<DeadLetter>> {
        let mut letters = self.memory.list(max, after).await?;
        match self.fault {
            NewestDeadFirst => letters.reverse(),
            HidesTheBodiesOfTheDead => letters.iter_mut().for_each(|letter| letter.body = "…".to_owned()),
            _ => {}
        }
        Ok(letters)
    }

    async fn redrive(&self, ids: &[MessageId]) -> Result<u64> {
        if self.fault == RedriveRefusesStrangers {
            let known = self.memory.list(1_000, None).await?;
            if let Some(stranger) = ids.iter().find(|id| !known.iter().any(|letter| letter.id == **id)) {
                return Err(Error::not_found("redrive dead letters", "no such message").with("id", &stranger.0));
            }
        }
        self.memory.redrive(ids).await
    }

    async fn purge(&self, ids: &[MessageId]) -> Result<u64> {
        if self.fault == PurgeForgets {
            let known = self.memory.list(1_000, None).await?;
            return Ok(known.iter().filter(|letter| ids.contains(&letter.id)).count() as u64);
        }
        self.memory.purge(ids).await
    }
}
