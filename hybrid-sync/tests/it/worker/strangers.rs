use std::{sync::atomic::Ordering, time::Duration};

use hybrid_core::{Depth, Document};
use hybrid_sync::worker::{Summary, WorkerOptions};

use super::{Kitchen, Script, wire::Line};
use crate::time::settle;

#[tokio::test]
async fn garbage_ends_with_the_dead_letters_and_jobs_beside_it_are_done() {
    let kitchen = Kitchen::new(3);
    let script = Script::succeeding();
    let worker = kitchen.start_script(&script);
    for garbage in
        ["no json", "{}", r#"{"format":"hybrid.job/2"}"#, r#"{"format":"hybrid.job/1","id":"x"}"#, "[[[[[[[["]
    {
        kitchen.send_body(garbage).await;
    }
    let job = kitchen.submit_script().await;
    let before = kitchen.wire.receives.load(Ordering::Relaxed);
    kitchen.advance(120).await;
    assert!(kitchen.result(&job).await.is_some());
    assert_eq!((kitchen.depth().await, kitchen.dead().await), (Depth::default(), 5));
    // Fifteen deliveries of garbage, one of the job, and the polls of two minutes.
    let receives = kitchen.wire.receives.load(Ordering::Relaxed) - before;
    assert!(receives <= 16 + 120 / 20 + 16, "{receives}");
    assert_eq!(worker.stop().await, Summary { misfits: 15, succeeded: 1, ..Summary::default() });
}

#[tokio::test]
async fn a_stranger_is_given_back_with_delays_and_not_spun_on() {
    let kitchen = Kitchen::new(u32::MAX);
    let worker = kitchen.start_script(&Script::succeeding());
    let job = kitchen.job("unknown");
    kitchen.submit(&job).await;
    kitchen.advance(4 * 3600).await;
    let nacks = kitchen.wire.nacks();
    assert!(nacks.len() < 60 && nacks.iter().any(|delay| *delay > Duration::from_secs(300)), "{nacks:?}");
    assert_eq!(kitchen.objects().await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_with_a_role_runs_only_where_that_role_is() {
    let kitchen = Kitchen::new(100);
    let (plain, trainer) = (Script::succeeding(), Script::succeeding());
    let first = kitchen.start_script(&plain);
    let mut job = kitchen.job("script");
    job.role = Some("trainer".to_owned());
    kitchen.submit(&job).await;
    kitchen.advance(60).await;
    assert_eq!(plain.runs(), 0);
    assert!(kitchen.result(&job).await.is_none());

    let roles = ["trainer".to_owned()].into();
    let second =
        kitchen.start(kitchen.builder(WorkerOptions { roles, ..WorkerOptions::default() }).handler(trainer.clone()));
    kitchen.advance(3600).await;
    assert_eq!((plain.runs(), trainer.runs()), (0, 1));
    assert!(kitchen.result(&job).await.is_some());
    assert_eq!(second.stop().await.succeeded, 1);
    assert_eq!(first.stop().await.succeeded, 0);
}

#[tokio::test]
async fn a_job_of_a_newer_field_is_still_a_job() {
    let kitchen = Kitchen::new(1);
    let worker = kitchen.start_script(&Script::succeeding());
    let job = kitchen.job("script");
    let body = String::from_utf8(job.encode().unwrap().into()).unwrap();
    kitchen.send_body(&body.replacen('{', r#"{"colour":"brown","#, 1)).await;
    settle().await;
    assert!(kitchen.result(&job).await.is_some());
    worker.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_away_for_a_day_is_asked_now_and_then_and_found_again() {
    let kitchen = Kitchen::new(1);
    let worker = kitchen.start_script(&Script::succeeding());
    *kitchen.wire.receive.lock().unwrap() = Line::Down;
    let job = kitchen.submit_script().await;
    kitchen.advance(86_400).await;
    let receives = kitchen.wire.receives.load(Ordering::Relaxed);
    assert!((86_400 / 66..86_400 / 10).contains(&receives), "{receives}");
    *kitchen.wire.receive.lock().unwrap() = Line::Good;
    kitchen.advance(65).await;
    assert!(kitchen.result(&job).await.is_some());
    worker.stop().await;
}

#[tokio::test]
async fn an_empty_queue_is_asked_as_often_as_the_wait_says() {
    let kitchen = Kitchen::new(1);
    // One that does not wait at all is not spun on either.
    for (wait, most) in [(20, 3600 / 20), (0, 3600)] {
        let before = kitchen.wire.receives.load(Ordering::Relaxed);
        let options = WorkerOptions { wait: Duration::from_secs(wait), ..WorkerOptions::default() };
        let worker = kitchen.start(kitchen.builder(options).handler(Script::succeeding()));
        kitchen.advance(3600).await;
        let receives = kitchen.wire.receives.load(Ordering::Relaxed) - before;
        assert!(receives > most / 10 && receives <= most + 1, "{wait}: {receives}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn outside_working_hours_nothing_is_received() {
    let kitchen = Kitchen::new(5);
    let script = Script::succeeding();
    // It is Friday, 12:00.
    let hours = "fri 13:00-14:00; UTC".parse().unwrap();
    // The last call before the end, left alone, would reach over it by some seconds.
    let wait = Duration::from_secs(17);
    let worker = kitchen
        .start(kitchen.builder(WorkerOptions { hours, wait, ..WorkerOptions::default() }).handler(script.clone()));
    let early = kitchen.submit_script().await;
    kitchen.advance(3595).await;
    assert_eq!((kitchen.wire.receives.load(Ordering::Relaxed), script.runs()), (0, 0));
    kitchen.advance(65).await;
    assert!(kitchen.result(&early).await.is_some());

    // No call reaches over the end: what comes right after is left for others.
    kitchen.advance(3600 - 60 - 3).await;
    let receives = kitchen.wire.receives.load(Ordering::Relaxed);
    kitchen.advance(3).await;
    let late = kitchen.submit_script().await;
    kitchen.advance(7200).await;
    assert!(kitchen.wire.receives.load(Ordering::Relaxed) <= receives + 1);
    assert!(kitchen.result(&late).await.is_none());
    assert_eq!(kitchen.depth().await.ready, 1);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_runs_at_closing_time_goes_on() {
    use std::sync::Arc;
    let kitchen = Kitchen::new(5);
    let done = Arc::new(tokio::sync::Notify::new());
    let oven = done.clone();
    let script = Script::new(move |_| {
        let oven = oven.clone();
        async move {
            oven.notified().await;
            Ok(serde_json::Value::Null)
        }
    });
    let hours = "fri 12:00-12:05; UTC".parse().unwrap();
    let worker = kitchen.start(kitchen.builder(WorkerOptions { hours, ..WorkerOptions::default() }).handler(script));
    let job = kitchen.submit_script().await;
    kitchen.advance(7200).await;
    done.notify_one();
    settle().await;
    assert_eq!(kitchen.result(&job).await.unwrap().attempts, 1);
    worker.stop().await;
}
