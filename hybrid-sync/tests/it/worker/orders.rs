//! Jobs that are ordered through the port of storefronts.

use hybrid_core::{Clock, DataPolicy, ErrorKind, JobEnd, JobFailure, JobId, JobOrder, Jobs, RequestId};
use hybrid_sync::job::QueuedJobs;

use super::*;
use crate::faults::{Faults, Faulty, Side};

fn jobs(kitchen: &Kitchen, faults: &Arc<Faults>) -> QueuedJobs {
    let queue = Faulty { inner: kitchen.queue.clone(), faults: faults.clone() };
    let store = Faulty { inner: kitchen.store.clone(), faults: faults.clone() };
    let (clock, ids) = (Arc::new(kitchen.clock.clone()), Arc::new(SeededIds::new(7)));
    QueuedJobs::new(Arc::new(queue), Arc::new(store), clock, ids)
}

pub(super) fn order(key: Option<&str>) -> JobOrder {
    JobOrder {
        tenant: TenantId::single(),
        kind: JobKind::new("script").unwrap(),
        payload: Value::from("dough"),
        input: None,
        policy: DataPolicy::Anywhere,
        key: key.map(|key| key.parse::<RequestId>().unwrap()),
        request: Some("r-1".parse().unwrap()),
        trace: None,
    }
}

#[tokio::test]
async fn an_order_is_known_from_the_start_and_ends_with_its_output() {
    let kitchen = Kitchen::new(5);
    let jobs = jobs(&kitchen, &Faults::none());
    let tenant = TenantId::single();
    let id = jobs.submit(order(None)).await.unwrap();
    let status = jobs.status(&tenant, id).await.unwrap().unwrap();
    assert_eq!((status.kind.as_str(), status.submitted, status.end), ("script", kitchen.clock.now(), None));

    let script = Script::new(|context| async move {
        assert_eq!(context.job.request.as_ref().unwrap().as_str(), "r-1");
        Ok(Value::from("bread"))
    });
    let worker = kitchen.start_script(&script);
    settle().await;
    let end = jobs.status(&tenant, id).await.unwrap().unwrap().end;
    assert_eq!(end, Some(JobEnd { finished: kitchen.clock.now(), outcome: Ok(Value::from("bread")) }));
    worker.stop().await;

    let other = TenantId::new("other").unwrap();
    assert_eq!(jobs.status(&other, id).await.unwrap(), None);
    assert_eq!(jobs.status(&tenant, JobId::next(&SeededIds::new(99))).await.unwrap(), None);
}

#[tokio::test]
async fn an_order_that_can_never_succeed_ends_with_its_kind_of_failure() {
    let kitchen = Kitchen::new(5);
    let jobs = jobs(&kitchen, &Faults::none());
    let id = jobs.submit(order(None)).await.unwrap();
    let script = Script::new(|_| async { Err(hybrid_core::Error::invalid("read rows", "a row is not JSON")) });
    let worker = kitchen.start_script(&script);
    settle().await;
    let end = jobs.status(&TenantId::single(), id).await.unwrap().unwrap().end.unwrap();
    let Err(JobFailure { kind, message }) = end.outcome else { panic!("{end:?}") };
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(message.contains("a row is not JSON"), "{message}");
    worker.stop().await;
}

#[tokio::test]
async fn a_repeated_order_is_the_same_job_whatever_broke_before() {
    for side in [Side::Before, Side::After] {
        for call in 0..3 {
            let kitchen = Kitchen::new(5);
            let jobs = jobs(&kitchen, &Faults::once(call, side));
            let first = jobs.submit(order(Some("k"))).await;
            let second = jobs.submit(order(Some("k"))).await.unwrap();
            assert!(first.is_err() || first.unwrap() == second, "{side:?} of call {call}");
            let worker = kitchen.start_script(&Script::succeeding());
            settle().await;
            worker.stop().await;
            assert!(jobs.status(&TenantId::single(), second).await.unwrap().unwrap().end.is_some());
            // The order and its result: two tries of one job leave nothing twice.
            assert_eq!(kitchen.objects().await, 2, "{side:?} of call {call}");
        }
    }
}

#[tokio::test]
async fn one_key_with_another_payload_tenant_or_policy_is_another_job() {
    let kitchen = Kitchen::new(5);
    let jobs = jobs(&kitchen, &Faults::none());
    let other = JobOrder { payload: Value::from("batter"), ..order(Some("k")) };
    let foreign = JobOrder { tenant: TenantId::new("other").unwrap(), ..order(Some("k")) };
    let strict = JobOrder { policy: DataPolicy::Site, ..order(Some("k")) };
    let mut ids = vec![order(Some("k")), order(None), order(None), other, foreign, strict];
    let mut seen = std::collections::BTreeSet::new();
    for order in ids.drain(..) {
        seen.insert(jobs.submit(order).await.unwrap());
    }
    assert_eq!(seen.len(), 6);
}

#[tokio::test]
async fn an_order_over_the_queues_limit_is_refused_and_leaves_nothing() {
    let kitchen = Kitchen::new(5);
    let jobs = jobs(&kitchen, &Faults::none());
    let large = JobOrder { payload: Value::from("x".repeat(hybrid_core::MAX_BODY_BYTES)), ..order(None) };
    assert_eq!(jobs.submit(large).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(kitchen.objects().await, 0);
}
