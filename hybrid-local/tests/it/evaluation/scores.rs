//! A task without labels whose answers are scored between right and wrong.

use hybrid_core::{
    Document, NoProgress, Result, Verdict,
    memory::ScriptedBackend,
    task::{Chat, ChatResponse, Message},
};
use hybrid_local::evaluation::{
    ChatLabelScorer, Contender, Evaluator, EvaluatorOptions, GoldenSet, Report, TextScorer,
};

use super::{context, manifest};

const CASES: usize = 60;

fn golden() -> GoldenSet {
    let line = |i: usize| {
        let language = if i.is_multiple_of(2) { "en" } else { "de" };
        let input = format!(r#"{{"messages": [{{"role": "user", "content": [{{"text": "question {i}"}}]}}]}}"#);
        format!(
            "{{\"input\": {input}, \"expected\": {{\"answers\": [\"rye {i} and wheat\", \"both {i}\"]}}, \"tags\": {{\"language\": \"{language}\"}}}}\n"
        )
    };
    GoldenSet::from_jsonl("questions", (0..CASES).map(line).collect::<String>()).unwrap()
}

async fn judge(
    scorer: TextScorer,
    candidate: impl Fn(usize) -> String,
    incumbent: Option<&dyn Fn(usize) -> String>,
) -> Result<Report> {
    let backend = |name: &str, answer: &dyn Fn(usize) -> String| {
        ScriptedBackend::<Chat>::new(
            name,
            (0..CASES).map(answer).map(|text| Ok(ChatResponse::one(Message::assistant(text)))),
        )
    };
    let candidate = backend("new", &candidate);
    let incumbent = incumbent.map(|answer| backend("old", answer));
    let incumbent = incumbent.as_ref().map(|backend| (manifest(), backend as _));
    // The script answers in the order in which it is asked.
    let options = EvaluatorOptions { concurrency: 1, ..EvaluatorOptions::default() };
    Evaluator::new(scorer, options)?
        .evaluate(&context(), &golden(), Contender::new(&candidate), incumbent, &NoProgress)
        .await
}

fn full(i: usize) -> String {
    format!("Both {i}.")
}

/// Three of four words.
fn half(i: usize) -> String {
    format!("rye {i} and oats")
}

#[tokio::test]
async fn a_chat_model_that_answers_labels_is_scored_as_classifiers_are() {
    let golden = super::golden(40);
    let answer = |i: usize| if i < 30 { format!(" {}\n", super::right(i)) } else { "I would say an order".to_owned() };
    let answers = (0..40).map(|i| Ok(ChatResponse::one(Message::assistant(answer(i)))));
    let candidate = ScriptedBackend::<Chat>::new("new", answers);
    let options = EvaluatorOptions { concurrency: 1, ..EvaluatorOptions::default() };
    let evaluator = Evaluator::new(ChatLabelScorer, options).unwrap();
    let report = evaluator.evaluate(&context(), &golden, Contender::new(&candidate), None, &NoProgress).await.unwrap();
    assert_eq!((&*report.metric, report.candidate.score.value), ("accuracy", 0.75));
    let asked = candidate.asked();
    assert_eq!(
        (asked.len(), asked[0].messages[0].text(), asked[0].sampling.temperature),
        (40, "case 0".to_owned(), Some(0.0))
    );
}

#[tokio::test]
async fn scores_between_right_and_wrong_are_compared_by_the_bootstrap() {
    let report = judge(TextScorer::TokenF1, full, Some(&half)).await.unwrap();
    assert_eq!(report.verdict, Verdict::Promote, "{}", report.reason);
    let comparison = report.comparison.as_ref().unwrap();
    assert_eq!((comparison.test.as_str(), comparison.fixes, comparison.regressions), ("paired bootstrap", 60, 0));
    assert!((comparison.difference.value - 0.25).abs() < 1e-12 && comparison.p < 0.001);
    assert!(report.candidate.labels.is_none());
    assert_eq!(report.slices.iter().map(ToString::to_string).collect::<Vec<_>>(), ["language de", "language en"]);
    assert_eq!(Report::decode(&report.encode().unwrap()).unwrap(), report);
    assert!(report.to_markdown().contains("| token F1 | 100.0 % [100.0, 100.0] | 75.0 % [75.0, 75.0] |"));

    let worse = judge(TextScorer::TokenF1, half, Some(&full)).await.unwrap();
    assert!(
        matches!(&worse.verdict, Verdict::Refuse(why) if why.contains("token F1 falls by 25.0 points")),
        "{}",
        worse.reason
    );
}

#[tokio::test]
async fn a_slice_that_lost_what_another_won_is_refused() {
    // German answers lose a quarter, English ones win one.
    let candidate = |i: usize| if i % 2 == 1 { half(i) } else { full(i) };
    let incumbent = |i: usize| if i % 2 == 1 { full(i) } else { half(i) };
    let report = judge(TextScorer::TokenF1, candidate, Some(&incumbent)).await.unwrap();
    assert!(
        matches!(&report.verdict, Verdict::Refuse(why) if why.contains("language de falls") && !why.contains("language en")),
        "{}",
        report.reason
    );
}

#[tokio::test]
async fn exact_match_is_right_or_wrong() {
    let report = judge(TextScorer::ExactMatch, full, Some(&half)).await.unwrap();
    assert_eq!(report.comparison.unwrap().test, "exact McNemar");
    assert_eq!((report.candidate.score.value, report.incumbent.unwrap().score.value), (1.0, 0.0));
}

#[tokio::test]
async fn a_first_version_must_beat_the_most_common_answer() {
    // Whatever the answer, "rye 0 and wheat" has two of its four words in common with every case but its own.
    let always = judge(TextScorer::TokenF1, |_| "rye 0 and wheat".to_owned(), None).await.unwrap();
    assert_eq!(always.verdict, Verdict::Hold, "{}", always.reason);
    assert_eq!(judge(TextScorer::TokenF1, full, None).await.unwrap().verdict, Verdict::Promote);
}
