//! The suite of [`JobQueue`] and [`DeadLetters`].

mod dead;
mod declared;
mod lease;
mod line;
mod receive;
mod send;
mod settle;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Report, case::CASE_LIMIT};
use crate::{DeadLetters, JobQueue, Result};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait QueueHarness: Debug + Send + Sync {
    /// A fresh, empty queue in which each message may have `max_deliveries` deliveries.
    async fn queue(&self, max_deliveries: u32) -> Result<QueueUnderTest>;

    /// Moves the time of all queues made so far by at least `by`: an injected clock moves, any other harness really waits.
    async fn advance(&self, by: Duration);

    /// The shortest time that the queue tells apart reliably; the suite's leases and delays are a few ticks long. By default one second.
    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// A queue with its optional powers.
#[derive(Clone, Debug)]
pub struct QueueUnderTest {
    /// The queue.
    pub queue: Arc<dyn JobQueue>,
    /// Its dead letters, where the adapter shows them; their cases are skipped otherwise.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
}

/// Runs all cases against an adapter, each on a queue of its own.
///
/// What [`JobQueue::guarantees`] declares is tested; what it does not declare is not asked for. Takes about 200 ticks.
pub async fn run(harness: &dyn QueueHarness) -> Report {
    let mut report = Report::new("job queue");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        send::send_answers_per_item => "`send` answers per item, in the order given; one item that fails leaves the others alone",
        send::no_items_have_no_answers => "`send`, `extend`, `ack`, `nack` and `release` answer per item: none for none",
        send::ids_name_their_messages => "a message is durable when `send` returns its id, the same in each delivery",
        send::messages_come_back_as_sent => "body, group and trace are those sent, to the byte",
        send::the_largest_body_is_carried => "a body may have `MAX_BODY_BYTES` bytes; more is refused with `TooLarge`",
        send::what_queues_cannot_carry_is_refused => "an empty body, a character outside XML 1.0 or a delay over `MAX_DELAY` is refused with `InvalidInput`",
        send::a_delay_hides_a_message => "a message is not delivered before its delay has passed",
        receive::first_deliveries_count_one => "a first delivery has attempt one, and says how many there may be where the queue knows",
        receive::receive_keeps_to_max => "`receive` answers with at most `ReceiveOptions::max` deliveries",
        receive::an_empty_answer_is_no_error => "an empty answer is no error, and comes when the wait has passed",
        receive::a_waiting_receive_sees_a_send => "`receive` waits until a message can be leased: one is sent",
        receive::a_waiting_receive_sees_a_delay_end => "`receive` waits until a message can be leased: a delay ends",
        receive::a_waiting_receive_sees_a_lease_end => "`receive` waits until a message can be leased: a lease ends",
        receive::a_waiting_receive_sees_a_nack => "`receive` waits until a message can be leased: one is given back",
        receive::a_dropped_receive_loses_nothing => "dropping `receive` loses nothing: what was leased comes again",
        receive::receivers_side_by_side_get_everything => "every message is delivered at least once, however many receive",
        lease::a_lease_that_ends_delivers_again => "when a lease ends without `ack` the message is delivered again with the attempt one higher",
        lease::each_delivery_has_its_own_lease => "a delivery is held for the lease it was received with",
        lease::extend_counts_from_now => "`extend` makes a lease last for the given time from now",
        lease::extend_may_shorten => "`extend` makes a lease last for the given time from now, also if that is sooner",
        lease::an_ended_lease_cannot_be_extended => "after a lease has ended `extend` answers `LeaseLost` and changes nothing",
        lease::a_stale_extend_changes_nothing => "`extend` under a lease that another took over answers `LeaseLost` and changes nothing",
        lease::extend_answers_per_item => "`extend` answers per item, in the order given; one item that fails leaves the others alone",
        settle::ack_removes_for_good => "`ack` removes the message for good",
        settle::ack_twice_is_refused => "`ack` for an already acked message answers `LeaseLost`",
        settle::an_ended_lease_cannot_ack => "after a lease has ended `ack` answers `LeaseLost` and changes nothing",
        settle::a_stale_ack_changes_nothing => "`ack` under a lease that another took over answers `LeaseLost` and changes nothing",
        settle::ack_answers_per_item => "`ack` answers per item, in the order given; one item that fails leaves the others alone",
        settle::nack_gives_back_at_once => "`nack` ends the lease now; the message comes again",
        settle::nack_delay_is_kept => "after `nack` the message comes again after the delay, not before",
        settle::nack_delay_is_limited => "`nack` with a delay over `MAX_DELAY` is refused with `InvalidInput`, and the lease goes on",
        settle::nack_ends_the_lease => "after `nack`, `ack`, `nack` and `extend` answer `LeaseLost`",
        settle::an_ended_lease_cannot_nack => "after a lease has ended `nack` answers `LeaseLost` and changes nothing",
        settle::a_stale_nack_changes_nothing => "`nack` under a lease that another took over answers `LeaseLost` and changes nothing",
        settle::release_gives_back_at_once => "`release` ends the lease now; the message comes again at once",
        settle::an_ended_lease_cannot_release => "after a lease has ended `release` answers `LeaseLost` and changes nothing",
        settle::release_answers_per_item => "`release` answers per item, in the order given; one item that fails leaves the others alone",
        settle::nack_answers_per_item => "`nack` answers per item, in the order given; one item that fails leaves the others alone",
        dead::used_up_leases_end_deliveries => "a message whose deliveries are used up is not delivered again: its last lease ends",
        dead::used_up_nacks_end_deliveries => "a message whose deliveries are used up is not delivered again: its last delivery is given back",
        dead::the_last_delivery_can_be_acked => "the last delivery can be acked like any other, and is no dead letter until its lease ends",
        dead::dead_letters_are_listed => "a message whose last delivery ends without `ack` is among the dead letters, whole, and nowhere else",
        dead::dead_letters_wait_for_a_nack_delay => "a message given back for good is among the dead letters when its delay would have ended",
        dead::dead_letters_come_oldest_first => "`DeadLetters::list` yields the oldest first, at most `max`, strictly after the id given",
        dead::redrive_counts_from_one => "`redrive` sends messages back with their deliveries counted from one again; ids not here are passed over",
        dead::purge_removes_for_good => "`purge` removes dead letters for good, and those alone",
        declared::exclusive_leases_are_exclusive => "with `exclusive_lease` no message is delivered while its lease lasts",
        declared::exclusive_receivers_never_share => "with `exclusive_lease` receivers side by side never get the same message",
        declared::exact_depth_is_exact => "with `exact_depth` depth is exact",
        declared::free_releases_do_not_count => "with `free_release` a delivery that is released does not count, the last one either",
        declared::ordered_groups_keep_their_order => "with `ordered` messages of one group come in the order sent, the next only after the one before is acked",
        declared::ordered_groups_wait_for_a_retry => "with `ordered` a message given back comes again before the next of its group",
        declared::ordered_groups_pass_the_dead => "with `ordered` the next of a group comes when the one before is dead",
        declared::ordered_groups_do_not_block_each_other => "with `ordered` one group does not wait for another",
    ]);
    report
}
