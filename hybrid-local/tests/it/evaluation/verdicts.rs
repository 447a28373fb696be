use std::{sync::Arc, time::Duration};

use hybrid_core::{
    CallContext, Clock, Currency, Document, InferenceBackend, ManualClock, Money, NoProgress, Note, Price,
    Requirements, Verdict, VerdictRecord,
};
use hybrid_local::evaluation::{Budgets, Contender, Evaluator, EvaluatorOptions, GoldenSet, Report, SliceBy};

use super::{Table, Takes, adjusted, context, golden, judge, manifest, report, right, wrong};

fn is_refusal(report: &Report, why: &str) -> bool {
    matches!(&report.verdict, Verdict::Refuse(reason) if reason.contains(why) && *reason == report.reason)
}

#[tokio::test]
async fn a_first_version_must_beat_the_majority_class() {
    let golden = golden(100);
    // A quarter of the cases are of the most common class: 33 right of 100 has a lower bound of 24.6 %, 34 one of 25.5 %.
    for (correct, verdict) in [(33, Verdict::Hold), (34, Verdict::Promote), (100, Verdict::Promote), (0, Verdict::Hold)]
    {
        let report = report(&golden, &Table::wrong_on("first", 100, |i| i >= correct), None).await;
        assert_eq!(report.verdict, verdict, "{correct}: {}", report.reason);
        assert_eq!((report.baseline.score, report.baseline.answer.as_str()), (0.25, "allergy"));
        assert!(report.comparison.is_none() && report.slices.iter().all(|slice| slice.comparison.is_none()));
    }
}

#[tokio::test]
async fn a_better_candidate_is_promoted_from_the_first_significant_split() {
    let golden = golden(400);
    // Five fixes without a regression have p = 0.0625, six p = 0.03125.
    for (fixes, verdict) in [(0, Verdict::Hold), (5, Verdict::Hold), (6, Verdict::Promote), (60, Verdict::Promote)] {
        let incumbent = Table::wrong_on("old", 400, |i| i < fixes);
        let report = report(&golden, &Table::new("new", 400, right), Some(&incumbent)).await;
        assert_eq!(report.verdict, verdict, "{fixes} fixes: {}", report.reason);
        let comparison = report.comparison.as_ref().unwrap();
        assert_eq!((comparison.fixes, comparison.regressions), (fixes as u64, 0));
        assert_eq!(report.fixes.len(), fixes.min(20));
    }
}

#[tokio::test]
async fn a_worse_candidate_is_refused_with_the_figures() {
    let golden = golden(400);
    let candidate = Table::wrong_on("new", 400, |i| i < 24);
    let report = report(&golden, &candidate, Some(&Table::new("old", 400, right))).await;
    assert!(is_refusal(&report, "accuracy falls by 6.0 points to 94.0 % (p < 0.0001)"), "{}", report.reason);
    assert_eq!(report.regressions[0].id, "line-1");
    assert_eq!(
        (report.regressions[0].incumbent.as_str(), report.regressions[0].candidate.as_str()),
        (right(0), wrong(0))
    );
}

#[tokio::test]
async fn a_slice_that_got_worse_is_refused_though_all_in_all_it_is_better() {
    let golden = golden(400);
    // 120 fixes on three labels, 15 of the 100 allergy questions lost.
    let incumbent = Table::wrong_on("old", 400, |i| i % 4 != 0 && i < 160);
    let candidate = Table::wrong_on("new", 400, |i| i % 4 == 0 && i < 60);
    let report = report(&golden, &candidate, Some(&incumbent)).await;
    let comparison = report.comparison.as_ref().unwrap();
    assert!(comparison.p < 0.05 && comparison.difference.value > 0.0);
    assert!(is_refusal(&report, "accuracy on label allergy falls from 100.0 % to 85.0 %"), "{}", report.reason);
    assert!(!report.reason.contains("label order"));
}

#[tokio::test]
async fn a_slice_is_judged_after_holm_over_all_of_them() {
    // Seven regressions on one label alone: p = 0.0156, with four labels and two languages 0.094; nine: 0.0039 and 0.023.
    let golden = golden(400);
    for (lost, refused) in [(7, false), (9, true)] {
        let candidate = Table::wrong_on("new", 400, |i| i % 4 == 0 && i < 4 * lost);
        // As many fixes elsewhere, so that over all cases nothing has changed.
        let incumbent = Table::wrong_on("old", 400, |i| {
            i % 4 != 0 && i / 4 + 100 * (i % 4) >= 200 && i / 4 + 100 * (i % 4) < 200 + lost
        });
        let report = report(&golden, &candidate, Some(&incumbent)).await;
        assert_eq!(report.comparison.as_ref().unwrap().p, 1.0);
        assert_eq!(adjusted(&report).len(), 6);
        assert_eq!(is_refusal(&report, "label allergy"), refused, "{lost}: {}", report.reason);
        assert_eq!(report.verdict == Verdict::Hold, !refused);
    }
}

#[tokio::test]
async fn small_slices_are_left_out_and_counted() {
    let golden = golden(76);
    let report = report(&golden, &Table::new("new", 76, right), None).await;
    // 19 cases a label, at least 36 a language.
    assert_eq!(report.slices.iter().map(ToString::to_string).collect::<Vec<_>>(), ["language de", "language en"]);
    assert_eq!(report.small_slices, 4);
    assert!(report.to_markdown().contains("4 more with fewer than 20 cases"));
}

#[tokio::test]
async fn a_slice_with_every_case_does_not_make_the_tests_of_the_others_stricter() {
    let line = |i: usize| {
        format!(
            "{{\"input\": {{\"text\": \"case {i}\"}}, \"expected\": {{\"label\": \"{}\"}}, \"tags\": {{\"source\": \"shop\"}}}}\n",
            right(i)
        )
    };
    let golden = GoldenSet::from_jsonl("bakery", (0..80).map(line).collect::<String>()).unwrap();
    let report = report(&golden, &Table::new("new", 80, right), None).await;
    assert_eq!(report.slices.iter().map(|slice| slice.by.clone()).collect::<Vec<_>>(), vec![SliceBy::Label; 4]);
    assert_eq!(report.small_slices, 0);
}

#[tokio::test]
async fn equal_versions_are_held_and_the_report_says_what_it_could_have_seen() {
    let golden = golden(400);
    let incumbent = Table::wrong_on("old", 400, |i| (0..20).contains(&i));
    let candidate = Table::wrong_on("new", 400, |i| (20..40).contains(&i));
    let report = report(&golden, &candidate, Some(&incumbent)).await;
    assert_eq!(report.verdict, Verdict::Hold);
    let comparison = report.comparison.as_ref().unwrap();
    // 10 % changed: 2.8 · sqrt(0.1 / 400), a little less.
    assert!((0.043..0.0445).contains(&comparison.detectable.unwrap()), "{comparison:?}");
    assert!(report.reason.contains("a difference of 4.4 points would have shown"), "{}", report.reason);
    // As one of four it would have had to be better than by chance at a quarter of the level.
    let options = EvaluatorOptions { candidates: 4, ..EvaluatorOptions::default() };
    let report = judge(options, &golden, &candidate, Some(&incumbent)).await.unwrap();
    assert!((0.052..0.0535).contains(&report.comparison.unwrap().detectable.unwrap()), "{}", report.reason);
}

fn usd(decimal: &str) -> Money {
    Money::new(Currency::USD, decimal).unwrap()
}

async fn with_budget(
    budgets: Budgets,
    candidate: &Table,
    memory_bytes: u64,
    clock: &ManualClock,
) -> hybrid_core::Result<Report> {
    let golden = golden(40);
    // Far worse: only the budget can stand against the candidate.
    let incumbent = Table::wrong_on("old", 40, |_| true);
    let contender = Contender { backend: candidate, requirements: Requirements { memory_bytes } };
    let cx = CallContext { clock: Arc::new(clock.clone()), ..context() };
    let evaluator = Evaluator::classify(EvaluatorOptions { budgets, ..EvaluatorOptions::default() })?;
    evaluator
        .evaluate(&cx, &golden, contender, Some((manifest(), &incumbent as &dyn InferenceBackend<_>)), &NoProgress)
        .await
}

#[tokio::test]
async fn a_candidate_over_a_budget_is_refused_however_good_it_is() {
    let clock = ManualClock::default();
    let mut candidate = Table::new("new", 40, right);
    // Two of forty cases are slow: the 95th percentile is the fast time, one more and it is the slow one.
    let takes: [Takes; 2] =
        [|i| Duration::from_millis(if i < 2 { 80 } else { 5 }), |i| Duration::from_millis(if i < 3 { 80 } else { 5 })];
    let latency = Budgets { latency_p95: Some(Duration::from_millis(50)), ..Budgets::default() };
    for (takes, refused) in takes.into_iter().zip([false, true]) {
        candidate.slow = Some((clock.clone(), takes));
        let report = with_budget(latency.clone(), &candidate, 0, &clock).await.unwrap();
        assert_eq!(report.candidate.latency_p95, Some(takes(if refused { 0 } else { 9 })));
        assert_eq!(
            is_refusal(&report, "p95 latency 80.0ms is over the budget of 50.0ms"),
            refused,
            "{}",
            report.reason
        );
        assert_eq!(report.verdict == Verdict::Promote, !refused);
    }

    let memory = Budgets { memory_bytes: Some(1000), ..Budgets::default() };
    for (bytes, why) in [
        (1000, None),
        (1001, Some("memory 1001 bytes is over the budget of 1000")),
        (0, Some("does not state its memory")),
    ] {
        let report = with_budget(memory.clone(), &candidate, bytes, &clock).await.unwrap();
        assert_eq!(report.verdict == Verdict::Promote, why.is_none(), "{}", report.reason);
        assert!(why.is_none_or(|why| is_refusal(&report, why)), "{}", report.reason);
    }

    // One request for all forty cases.
    candidate.cost = Some(usd("0.4"));
    for (budgets, why) in [
        (Budgets { cost_per_call: Some(usd("0.01")), cost_total: Some(usd("0.4")), ..Budgets::default() }, None),
        (
            Budgets { cost_per_call: Some(usd("0.0099")), ..Budgets::default() },
            Some("cost per call is over the budget"),
        ),
        (
            Budgets { cost_total: Some(usd("0.39")), ..Budgets::default() },
            Some("cost of the golden set is over the budget: 0.4 USD for 40 cases"),
        ),
    ] {
        let report = with_budget(budgets, &candidate, 0, &clock).await.unwrap();
        assert_eq!(report.verdict == Verdict::Promote, why.is_none(), "{}", report.reason);
        assert!(why.is_none_or(|why| is_refusal(&report, why)), "{}", report.reason);
    }
    let euros = Budgets { cost_total: Some(Money::zero(Currency::EUR)), ..Budgets::default() };
    assert!(with_budget(euros, &candidate, 0, &clock).await.unwrap_err().to_string().contains("another currency"));
}

#[tokio::test]
async fn an_unknown_cost_is_refused_under_a_budget_and_no_price_costs_nothing() {
    let clock = ManualClock::default();
    let budgets = Budgets { cost_total: Some(usd("1")), ..Budgets::default() };
    let mut candidate = Table::new("new", 40, right);
    assert_eq!(with_budget(budgets.clone(), &candidate, 0, &clock).await.unwrap().verdict, Verdict::Promote);
    candidate.profile.price = Some(Price {
        input: usd("1"),
        output: usd("1"),
        cache_read: None,
        cache_write: None,
        audio_second: None,
        image: None,
    });
    let report = with_budget(budgets, &candidate, 0, &clock).await.unwrap();
    assert!(is_refusal(&report, "cost of the golden set is unknown: 1 replies"), "{}", report.reason);
}

#[tokio::test]
async fn every_reason_against_a_candidate_is_given() {
    let golden = golden(400);
    let options = EvaluatorOptions {
        budgets: Budgets { memory_bytes: Some(1), ..Budgets::default() },
        ..EvaluatorOptions::default()
    };
    let report =
        judge(options, &golden, &Table::wrong_on("new", 400, |i| i % 4 == 0), Some(&Table::new("old", 400, right)))
            .await
            .unwrap();
    for why in
        ["does not state its memory", "accuracy falls by 25.0 points", "label allergy falls", "language de falls"]
    {
        assert!(is_refusal(&report, why), "{}", report.reason);
    }
}

#[tokio::test]
async fn the_best_of_several_has_to_be_better_by_more_than_luck() {
    let golden = golden(400);
    // Six fixes and no regression: p = 1/32.
    let (candidate, incumbent) = (Table::new("new", 400, right), Table::wrong_on("old", 400, |i| i < 6));
    for (candidates, promoted) in [(1, true), (2, false)] {
        let options = EvaluatorOptions { candidates, ..EvaluatorOptions::default() };
        let report = judge(options, &golden, &candidate, Some(&incumbent)).await.unwrap();
        assert_eq!(report.verdict == Verdict::Promote, promoted, "{}", report.reason);
        assert_eq!(report.reason.contains("as the best of 2 it needs p < 0.0250"), !promoted, "{}", report.reason);
    }
}

#[tokio::test]
async fn a_report_depends_on_nothing_but_its_input() {
    let golden = golden(400);
    let clock = ManualClock::default();
    let incumbent = Table::wrong_on("old", 400, |i| i % 7 == 0);
    let mut candidate = Table::wrong_on("new", 400, |i| i % 11 == 0);
    let first = report(&golden, &candidate, Some(&incumbent)).await;
    // Another machine at another time: slower, and with a clock that stands elsewhere.
    clock.advance(Duration::from_secs(1_000_000));
    candidate.slow = Some((clock.clone(), |i| Duration::from_millis(i as u64)));
    let again = report(&golden, &candidate, Some(&incumbent)).await;
    assert!(clock.monotonic().since(ManualClock::default().monotonic()) > Duration::from_secs(1_000_000));
    assert_eq!(first.encode().unwrap(), again.encode().unwrap());
    assert_eq!(first.to_markdown(), again.to_markdown());
    assert_eq!(Report::decode(&first.encode().unwrap()).unwrap(), first);
    // However the cases are cut into requests.
    let options = EvaluatorOptions { batch: 7, concurrency: 3, ..EvaluatorOptions::default() };
    let cut = judge(options.clone(), &golden, &candidate, Some(&incumbent)).await.unwrap();
    assert_eq!(Report { options: EvaluatorOptions::default(), ..cut }, first);
}

#[tokio::test]
async fn the_record_says_what_the_report_says() {
    let golden = golden(400);
    let incumbent = Table::wrong_on("old", 400, |i| i < 40);
    let report = report(&golden, &Table::wrong_on("new", 400, |i| (35..45).contains(&i)), Some(&incumbent)).await;
    let VerdictRecord {
        verdict,
        golden: digest,
        cases,
        incumbent,
        metric,
        candidate,
        baseline,
        fixes,
        regressions,
        p,
        ece,
    } = report.record();
    assert_eq!((verdict, digest, cases, incumbent), (Verdict::Promote, golden.digest(), 400, Some(manifest())));
    assert_eq!((metric.as_str(), candidate.value, baseline.unwrap().value), ("accuracy", 0.975, 0.9));
    // Cases 35 to 39 are wrong with both.
    assert_eq!((fixes, regressions), (35, 5));
    assert!((p.unwrap() - 1.3829e-6).abs() < 1e-9, "{p:?}");
    // Always 0.9 sure, 0.975 right.
    assert!((ece.unwrap() - 0.075).abs() < 1e-6, "{ece:?}");
}

#[tokio::test]
async fn the_page_has_what_a_reviewer_looks_for() {
    let golden = golden(400);
    let mut candidate = Table::wrong_on("new|model", 400, |i| (35..45).contains(&i));
    candidate.note = Some(Note { code: "truncated".to_owned(), detail: String::new() });
    let page = report(&golden, &candidate, Some(&Table::wrong_on("old", 400, |i| i < 40))).await.to_markdown();
    for part in [
        "# Promote: classify on bakery",
        "accuracy rises by 7.5 points to 97.5 %",
        "| new\\|model |",
        "| accuracy | 97.5 % [95.5, 98.6] | 90.0 % [86.7, 92.6] |",
        "| notes | truncated × 7 | – |",
        "35 fixes and 5 regressions; the other 360 cases score the same",
        "exact McNemar test, two-sided: p < 0.0001",
        "minimum detectable effect at power 0.8: ",
        "| label allergy | 100 |",
        "| language en | 200 |",
        "## Confusion",
        "| allergy | **97** | 3 | · | · |",
        "## Calibration",
        "## Fixes\n\n20 of 35.",
        "| line-41 | case 40 | allergy | allergy | complaint |",
    ] {
        assert!(page.contains(part), "{part:?} is missing in\n{page}");
    }
    // Tables are whole: as many cells in each row as in its head.
    for block in page.split("\n\n").filter(|block| block.starts_with('|')) {
        let cells = |row: &str| row.replace("\\|", "").matches('|').count();
        assert!(block.lines().all(|row| cells(row) == cells(block.lines().next().unwrap())), "{block}");
    }
}
