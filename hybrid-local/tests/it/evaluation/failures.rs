use std::{sync::Mutex, time::Duration};

use hybrid_core::{
    Digest, ErrorKind, InferenceBackend, Limits, NoProgress, ProgressFn,
    memory::ScriptedBackend,
    task::{Classify, ClassifyResponse},
};
use hybrid_local::evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet};

use super::{Table, context, golden, judge, manifest, right};

#[tokio::test]
async fn a_failing_backend_ends_the_evaluation_with_version_and_case() {
    let golden = golden(10);
    let good = Table::new("good", 10, right);
    let one_by_one = EvaluatorOptions { batch: 1, ..EvaluatorOptions::default() };
    let evaluator = Evaluator::classify(one_by_one).unwrap();
    let failing = || {
        let reply = |i: usize| {
            Ok(ClassifyResponse {
                results: vec![hybrid_core::task::Classification {
                    label: right(i).into(),
                    confidence: 1.0,
                    scores: vec![],
                }],
            })
        };
        let full = hybrid_core::Error::new(ErrorKind::RateLimited, "infer", "too many")
            .with_retry_after(Duration::from_secs(7));
        ScriptedBackend::<Classify>::new("shaky", (0..6).map(reply).chain([Err(full)]))
    };
    let shaky = failing();
    let error = evaluator
        .evaluate(&context(), &golden, Contender::new(&shaky), Some((manifest(), &good)), &NoProgress)
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, Some(Duration::from_secs(7))));
    assert!(error.to_string().contains("the candidate failed") && error.to_string().contains("too many"), "{error}");
    assert_eq!((error.context("backend"), error.context("case")), (Some("shaky"), Some("line-7 on line 7")));

    let shaky = failing();
    let error = evaluator
        .evaluate(&context(), &golden, Contender::new(&good), Some((manifest(), &shaky)), &NoProgress)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("the incumbent failed"), "{error}");

    // A request of several names the first and the last.
    let shaky = ScriptedBackend::<Classify>::new("shaky", []);
    let batched = Evaluator::classify(EvaluatorOptions { batch: 4, ..EvaluatorOptions::default() }).unwrap();
    let error = batched.evaluate(&context(), &golden, Contender::new(&shaky), None, &NoProgress).await.unwrap_err();
    assert_eq!(error.context("case"), Some("line-1 on line 1 to line-4 on line 4"));
}

#[tokio::test]
async fn a_reply_with_too_few_or_impossible_answers_is_refused() {
    let golden = golden(2);
    let result = |confidence| hybrid_core::task::Classification { label: "order".into(), confidence, scores: vec![] };
    for results in [vec![], vec![result(1.0)], vec![result(1.0); 3], vec![result(1.0), result(f32::NAN)]] {
        let backend = ScriptedBackend::<Classify>::new("odd", [Ok(ClassifyResponse { results })]);
        let evaluator = Evaluator::classify(EvaluatorOptions::default()).unwrap();
        let error =
            evaluator.evaluate(&context(), &golden, Contender::new(&backend), None, &NoProgress).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.context("case"), Some("line-1 on line 1 to line-2 on line 2"));
    }
}

#[tokio::test]
async fn a_backend_that_changes_its_model_meanwhile_is_not_judged() {
    let golden = golden(40);
    let mut swapping = Table::new("swapping", 40, right);
    swapping.swapped_from = Some(20);
    let options = EvaluatorOptions { batch: 10, ..EvaluatorOptions::default() };
    let error = judge(options.clone(), &golden, &swapping, None).await.unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("two models"), "{error}");

    let mut newer = Table::new("newer", 40, right);
    newer.profile.model.manifest = Some(Digest::of(b"another"));
    let error = judge(options.clone(), &golden, &Table::new("new", 40, right), Some(&newer)).await.unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("another version by now"), "{error}");
    newer.profile.model.manifest = Some(manifest());
    assert!(judge(options, &golden, &Table::new("new", 40, right), Some(&newer)).await.is_ok());
}

#[tokio::test]
async fn a_case_that_cannot_be_asked_is_named_before_anything_is_asked() {
    let lines =
        |second: &str| format!("{}\n{second}\n", r#"{"input": {"text": "case 0"}, "expected": {"label": "allergy"}}"#);
    for (second, field) in [
        (r#"{"input": {"text": " "}, "expected": {"label": "order"}}"#, "inputs[0]"),
        (r#"{"input": {"words": "case 1"}, "expected": {"label": "order"}}"#, "input"),
        (r#"{"input": {"text": "case 1"}, "expected": {"label": "order", "sure": true}}"#, "expected"),
    ] {
        let golden = GoldenSet::from_jsonl("bakery", lines(second)).unwrap();
        let backend = ScriptedBackend::<Classify>::new("idle", []);
        let evaluator = Evaluator::classify(EvaluatorOptions::default()).unwrap();
        let error =
            evaluator.evaluate(&context(), &golden, Contender::new(&backend), None, &NoProgress).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(
            (error.context("line"), error.context("field"), error.context("golden set")),
            (Some("2"), Some(field), Some("bakery")),
            "{error}"
        );
        assert!(backend.asked().is_empty());
    }
}

#[tokio::test]
async fn requests_keep_to_the_smallest_of_the_batch_limits() {
    let golden = golden(10);
    let ask = async |batch: usize, limit: Option<usize>| {
        let result = hybrid_core::task::Classification { label: "order".into(), confidence: 1.0, scores: vec![] };
        let script = |sizes: &[usize]| {
            sizes.iter().map(|&size| Ok(ClassifyResponse { results: vec![result.clone(); size] })).collect::<Vec<_>>()
        };
        let sizes: Vec<usize> = {
            let size = batch.min(limit.unwrap_or(batch));
            (0..10).step_by(size).map(|first| size.min(10 - first)).collect()
        };
        let mut profile = (*ScriptedBackend::<Classify>::new("limited", []).profile()).clone();
        profile.limits = Limits { batch: limit, ..Limits::default() };
        let backend = ScriptedBackend::<Classify>::with_profile(profile, script(&sizes));
        let evaluator =
            Evaluator::classify(EvaluatorOptions { batch, concurrency: 1, ..EvaluatorOptions::default() }).unwrap();
        evaluator.evaluate(&context(), &golden, Contender::new(&backend), None, &NoProgress).await.unwrap();
        backend.asked().iter().map(|request| request.inputs.len()).collect::<Vec<_>>()
    };
    assert_eq!(ask(64, None).await, [10]);
    assert_eq!(ask(4, None).await, [4, 4, 2]);
    assert_eq!(ask(64, Some(3)).await, [3, 3, 3, 1]);
}

#[tokio::test]
async fn a_cancelled_evaluation_stops() {
    let golden = golden(10);
    let cx = context();
    cx.cancel.cancel();
    let evaluator = Evaluator::classify(EvaluatorOptions::default()).unwrap();
    let error = evaluator
        .evaluate(&cx, &golden, Contender::new(&Table::new("new", 10, right)), None, &NoProgress)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[tokio::test]
async fn progress_counts_the_cases_of_both_versions() {
    let golden = golden(10);
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress = ProgressFn(move |event: hybrid_core::ProgressEvent| {
        sink.lock().unwrap().push((event.done, event.total, event.message))
    });
    let (new, old) = (Table::new("new", 10, right), Table::new("old", 10, right));
    let evaluator = Evaluator::classify(EvaluatorOptions { batch: 5, ..EvaluatorOptions::default() }).unwrap();
    evaluator.evaluate(&context(), &golden, Contender::new(&new), Some((manifest(), &old)), &progress).await.unwrap();
    let expected = [(5, "candidate"), (10, "candidate"), (15, "incumbent"), (20, "incumbent")];
    assert_eq!(*seen.lock().unwrap(), expected.map(|(done, role)| (done, Some(20), role.to_owned())));
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let default = EvaluatorOptions::default;
    for (options, name) in [
        (EvaluatorOptions { alpha: 0.0, ..default() }, "alpha"),
        (EvaluatorOptions { alpha: f64::NAN, ..default() }, "alpha"),
        (EvaluatorOptions { alpha: 0.6, ..default() }, "alpha"),
        (EvaluatorOptions { resamples: 999, ..default() }, "resamples"),
        (EvaluatorOptions { candidates: 0, ..default() }, "candidates"),
        (EvaluatorOptions { min_slice: 0, ..default() }, "min_slice"),
        (EvaluatorOptions { batch: 0, ..default() }, "batch"),
        (EvaluatorOptions { concurrency: 0, ..default() }, "concurrency"),
    ] {
        let error = Evaluator::classify(options).unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidInput, Some(name)));
    }
}

#[test]
fn a_worker_can_run_it_on_any_thread() {
    fn is_send(future: impl Send) {
        drop(future);
    }
    let (golden, table, cx) = (golden(4), Table::new("new", 4, right), context());
    let evaluator = Evaluator::classify(EvaluatorOptions::default()).unwrap();
    is_send(evaluator.evaluate(
        &cx,
        &golden,
        Contender::new(&table),
        Some((manifest(), &table as &dyn InferenceBackend<_>)),
        &NoProgress,
    ));
}
