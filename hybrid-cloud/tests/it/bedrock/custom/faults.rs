//! What goes wrong on the way to a trained model.

use std::sync::Arc;

use hybrid_cloud::{
    bedrock::custom::OnCancel,
    testkit::bedrock::{Course, Reply},
};
use hybrid_core::{Cancellation, ErrorKind, ProgressEvent, ProgressFn, TrainPlan, Trainer};

use super::{Bench, Fault};

const JOBS: &str = "/model-customization-jobs";

/// Never ends by itself.
fn endless() -> Course {
    Course { looks: u32::MAX, ..Course::default() }
}

/// Raises the cancellation at the first look.
fn cancelled_run(bench: &Bench) -> hybrid_core::TrainRun {
    let cancel = Cancellation::new();
    let raise = cancel.clone();
    bench.run_with(Arc::new(ProgressFn(move |_: ProgressEvent| raise.cancel())), cancel)
}

#[tokio::test]
async fn a_throttled_order_is_made_again_and_is_one_order() {
    let bench = Bench::open().await;
    let mut left = 2;
    bench.faults(move |request| {
        let throttled = request.method == "POST" && request.path == JOBS && left > 0;
        left -= u32::from(throttled);
        throttled.then(|| Fault::before(Reply::error(429, "ThrottlingException", "slow down")))
    });
    bench.trainer().train(&bench.plan(4).await, &bench.run()).await.unwrap();
    let requests = bench.server.requests();
    let tokens: Vec<_> = requests
        .iter()
        .filter(|request| request.method == "POST" && request.path == JOBS)
        .map(|request| request.body["clientRequestToken"].as_str().unwrap())
        .collect();
    assert_eq!(tokens.len(), 3);
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(bench.control.made(), 2);
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_one_order() {
    let bench = Bench::open().await;
    let mut lost = false;
    bench.faults(move |request| {
        let loses = request.method == "POST" && request.path == JOBS && !std::mem::replace(&mut lost, true);
        loses.then_some(Fault::LoseAnswer)
    });
    bench.trainer().train(&bench.plan(4).await, &bench.run()).await.unwrap();
    assert_eq!(bench.count("POST", JOBS), 2);
    assert_eq!(bench.control.made(), 2, "a job and its deployment");
}

#[tokio::test]
async fn an_order_that_somebody_else_made_meanwhile_is_followed() {
    let bench = Bench::open().await;
    let plan = bench.plan(4).await;
    bench.trainer().train(&plan, &bench.run()).await.unwrap();
    // The first look finds nothing, as if the other one came between it and the order; and their token is not known here.
    let mut looked = false;
    bench.faults(move |request| {
        let first = request.method == "GET" && !std::mem::replace(&mut looked, true);
        if first {
            return Some(Fault::before(Reply::error(404, "ResourceNotFoundException", "not yet")));
        }
        (request.method == "POST" && request.path == JOBS)
            .then(|| Fault::before(Reply::error(400, "ConflictException", "the name is in use")))
    });
    bench.trainer().train(&plan, &bench.run()).await.unwrap();
    assert_eq!(bench.control.made(), 2);
}

#[tokio::test]
async fn a_crash_after_the_order_pays_once() {
    let bench = Arc::new(Bench::open().await);
    bench.control.set_course(endless());
    let plan = bench.plan(4).await;
    let crashing = tokio::spawn({
        let (bench, plan) = (Arc::clone(&bench), plan.clone());
        async move { bench.trainer().train(&plan, &bench.run()).await.map(drop) }
    });
    while bench.control.made() == 0 {
        assert!(!crashing.is_finished(), "{:?}", crashing.await);
        tokio::task::yield_now().await;
    }
    crashing.abort();
    assert!(crashing.await.unwrap_err().is_cancelled());
    bench.control.set_course(Course::default());
    // Another process with another scratch folder.
    let scratch = tempfile::tempdir().unwrap();
    let run = hybrid_core::TrainRun { scratch: scratch.path().to_owned(), ..bench.run() };
    bench.trainer().train(&plan, &run).await.unwrap();
    assert_eq!(bench.count("POST", JOBS), 1);
}

#[tokio::test]
async fn a_job_that_fails_says_why_each_time_and_is_not_made_again() {
    let bench = Bench::open().await;
    let why = "The training data has a line that is no conversation.".to_owned();
    bench.control.set_course(Course { failure: Some(why), ..Course::default() });
    let plan = bench.plan(4).await;
    for _ in 0..2 {
        let error = bench.trainer().train(&plan, &bench.run()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("no conversation") && error.to_string().contains("another seed"), "{error}");
        assert!(error.context("job").unwrap().contains(":model-customization-job/"), "{error}");
    }
    assert_eq!(bench.control.made(), 1);
    bench.control.set_course(Course::default());
    bench.trainer().train(&TrainPlan { seed: 2, ..plan }, &bench.run()).await.unwrap();
    assert_eq!(bench.control.made(), 3);
}

#[tokio::test]
async fn a_cancelled_run_leaves_its_job_to_the_next_attempt() {
    let bench = Bench::open().await;
    bench.control.set_course(endless());
    let plan = bench.plan(4).await;
    assert!(bench.trainer().profile().resumable);
    let error = bench.trainer().train(&plan, &cancelled_run(&bench)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(bench.control.stops(), 0);
    bench.control.set_course(Course::default());
    bench.trainer().train(&plan, &bench.run()).await.unwrap();
    assert_eq!(bench.count("POST", JOBS), 1);
}

#[tokio::test]
async fn a_cancelled_run_that_is_to_stop_its_job_stops_it_for_good() {
    let bench = Bench::open().await;
    bench.control.set_course(endless());
    let plan = bench.plan(4).await;
    let trainer = bench.trainer_with(|options| options.on_cancel = OnCancel::Stop);
    assert!(!trainer.profile().resumable);
    let error = trainer.train(&plan, &cancelled_run(&bench)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(bench.control.stops(), 1);
    let error = trainer.train(&plan, &bench.run()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("was stopped"), "{error}");
    assert_eq!(bench.control.made(), 1);
}

#[tokio::test]
async fn a_job_that_cannot_be_stopped_is_named() {
    let bench = Bench::open().await;
    bench.control.set_course(endless());
    bench.faults(|request| {
        let refused = || Fault::before(Reply::error(403, "AccessDeniedException", "may not stop"));
        request.path.ends_with("/stop").then(refused)
    });
    let trainer = bench.trainer_with(|options| options.on_cancel = OnCancel::Stop);
    let error = trainer.train(&bench.plan(4).await, &cancelled_run(&bench)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(error.to_string().contains("by hand") && error.to_string().contains("may not stop"), "{error}");
    assert!(error.context("job").unwrap().starts_with("bakery-"), "{error}");
}

#[tokio::test]
async fn a_stop_that_is_refused_while_the_job_runs_is_repeated_until_it_is_stopped() {
    for (status, code) in [(404, "ResourceNotFoundException"), (400, "ConflictException"), (400, "ValidationException")]
    {
        let bench = Bench::open().await;
        bench.control.set_course(endless());
        let mut refused = 0;
        bench.faults(move |request| {
            let refuses = request.path.ends_with("/stop") && refused < 2;
            refused += u32::from(refuses);
            refuses.then(|| Fault::before(Reply::error(status, code, "not now")))
        });
        let trainer = bench.trainer_with(|options| options.on_cancel = OnCancel::Stop);
        let error = trainer.train(&bench.plan(4).await, &cancelled_run(&bench)).await.unwrap_err();
        assert_eq!((error.kind(), bench.control.stops()), (ErrorKind::Cancelled, 1), "{code}: {error}");
        assert!(!error.to_string().contains("by hand"), "{code}: {error}");
    }
    let bench = Bench::open().await;
    bench.control.set_course(endless());
    bench.faults(|request| {
        let refuses = request.path.ends_with("/stop");
        refuses.then(|| Fault::before(Reply::error(400, "ConflictException", "never")))
    });
    let trainer = bench.trainer_with(|options| options.on_cancel = OnCancel::Stop);
    let error = trainer.train(&bench.plan(4).await, &cancelled_run(&bench)).await.unwrap_err();
    assert!(error.to_string().contains("by hand"), "{error}");
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_it_orders_has_nothing_to_stop() {
    let bench = Bench::open().await;
    let cancel = Cancellation::new();
    let raise = cancel.clone();
    bench.faults(move |_| {
        raise.cancel();
        None
    });
    let trainer = bench.trainer_with(|options| options.on_cancel = OnCancel::Stop);
    let run = bench.run_with(Arc::new(hybrid_core::NoProgress), cancel);
    let error = trainer.train(&bench.plan(4).await, &run).await.unwrap_err();
    assert_eq!((error.kind(), bench.control.made()), (ErrorKind::Cancelled, 0), "{error}");
    assert!(!error.to_string().contains("by hand"), "{error}");
    assert!(bench.clock.waits().is_empty(), "and nothing to wait for");
}

#[tokio::test]
async fn a_service_that_is_away_for_a_while_is_outlived() {
    let bench = Bench::open().await;
    let (mut created, mut left) = (false, 20);
    bench.faults(move |request| {
        created |= request.method == "POST";
        let away = created && request.method == "GET" && left > 0;
        left -= u32::from(away);
        away.then(|| Fault::before(Reply::error(503, "ServiceUnavailableException", "later")))
    });
    bench.trainer().train(&bench.plan(4).await, &bench.run()).await.unwrap();
    assert_eq!(bench.control.made(), 2);
}

#[tokio::test]
async fn a_service_that_stays_away_is_a_temporary_error_and_the_job_goes_on() {
    let bench = Bench::open().await;
    let mut created = false;
    bench.faults(move |request| {
        created |= request.method == "POST";
        let away = created && request.method == "GET";
        away.then(|| Fault::before(Reply::error(503, "ServiceUnavailableException", "later")))
    });
    let plan = bench.plan(4).await;
    let error = bench.trainer().train(&plan, &bench.run()).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    assert_eq!(error.context("failures_in_a_row"), Some("11"), "{error}");
    bench.faults(|_| None);
    bench.trainer().train(&plan, &bench.run()).await.unwrap();
    assert_eq!(bench.count("POST", JOBS), 1);
}

#[tokio::test]
async fn a_deployment_that_fails_does_not_lose_the_model() {
    let bench = Bench::open().await;
    let plan = bench.plan(4).await;
    let only = bench.trainer_with(|options| options.serving = hybrid_cloud::bedrock::custom::Serving::Nothing);
    only.train(&plan, &bench.run()).await.unwrap();
    // The job is seen to its end; what comes now is the deployment alone.
    let control = bench.control.clone();
    bench.faults(move |request| {
        let failure = request.path.contains("custom-model-deployments").then(|| "No capacity.".to_owned());
        control.set_course(Course { failure, ..Course::default() });
        None
    });
    let error = bench.trainer().train(&plan, &bench.run()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("No capacity"), "{error}");
    assert!(error.context("model").unwrap().contains(":custom-model/"), "{error}");
}
