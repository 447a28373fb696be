//! The evaluator from outside: answers in, verdict and report out.

mod failures;
mod scores;
mod simulation;
mod verdicts;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use hybrid_core::{
    BackendProfile, BoxStream, CallContext, Digest, Event, InferenceBackend, Limits, Locality, ManualClock, Money,
    NoProgress, Note, Reply, ReplyMeta, RequestId, Result, SeededIds, ServedModel, Task, TenantId, Usage,
    inference::stream_reply,
    task::{Classification, Classify, ClassifyRequest, ClassifyResponse, LabelScore},
};
use hybrid_local::evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet, Report};

const LABELS: [&str; 4] = ["allergy", "complaint", "hours", "order"];

/// `n` cases `case <i>`, each label every fourth, in English for the first of eight and in German for the last four.
fn golden(n: usize) -> GoldenSet {
    let line = |i: usize| {
        let language = if i % 8 < 4 { "en" } else { "de" };
        format!(
            "{{\"input\": {{\"text\": \"case {i}\"}}, \"expected\": {{\"label\": \"{}\"}}, \"tags\": {{\"language\": \"{language}\"}}}}\n",
            right(i)
        )
    };
    GoldenSet::from_jsonl("bakery", (0..n).map(line).collect::<String>()).unwrap()
}

fn right(i: usize) -> &'static str {
    LABELS[i % 4]
}

/// The label that follows the right one.
fn wrong(i: usize) -> &'static str {
    LABELS[(i + 1) % 4]
}

/// How long a case takes.
type Takes = fn(usize) -> Duration;

/// A classifier that knows its answers by the number of the case.
#[derive(Debug)]
struct Table {
    profile: BackendProfile,
    labels: Vec<String>,
    confidence: f32,
    /// What a call costs.
    cost: Option<Money>,
    /// How long each case takes on this clock.
    slow: Option<(ManualClock, Takes)>,
    note: Option<Note>,
    /// Makes the reply of a batch that begins with the case name another model.
    swapped_from: Option<usize>,
}

impl Table {
    fn new(name: &str, n: usize, label: impl Fn(usize) -> &'static str) -> Self {
        Self {
            profile: BackendProfile {
                name: name.to_owned(),
                model: ServedModel::named(name),
                locality: Locality::Device,
                limits: Limits::default(),
                price: None,
            },
            labels: (0..n).map(|i| label(i).to_owned()).collect(),
            confidence: 0.9,
            cost: None,
            slow: None,
            note: None,
            swapped_from: None,
        }
    }

    /// Right everywhere but on the cases that `is_wrong` picks.
    fn wrong_on(name: &str, n: usize, is_wrong: impl Fn(usize) -> bool) -> Self {
        Self::new(name, n, |i| if is_wrong(i) { wrong(i) } else { right(i) })
    }

    fn classify(&self, text: &str) -> Result<Classification> {
        let index: usize = text.strip_prefix("case ").unwrap().parse().unwrap();
        let rest = (1.0 - self.confidence) / 3.0;
        let label = &self.labels[index];
        let scores = LABELS
            .iter()
            .map(|name| LabelScore::new(*name, if name == label { self.confidence } else { rest }))
            .collect();
        Classification::ranked(scores, None)
    }
}

#[async_trait]
impl InferenceBackend<Classify> for Table {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::new(self.profile.clone())
    }

    async fn infer(&self, cx: &CallContext, request: ClassifyRequest) -> Result<Reply<Classify>> {
        Classify::validate(&request)?;
        cx.admit("infer", &self.profile.locality)?;
        let results = request.inputs.iter().map(|text| self.classify(text)).collect::<Result<Vec<_>>>()?;
        let first: usize = request.inputs[0][5..].parse().unwrap();
        if let Some((clock, takes)) = &self.slow {
            clock.advance(takes(first));
        }
        let mut meta = ReplyMeta::of(&self.profile, Duration::ZERO, Usage::default())?;
        meta.cost = self.cost;
        meta.notes.extend(self.note.clone());
        if self.swapped_from.is_some_and(|from| first >= from) {
            meta.model.version = Some(9);
        }
        Ok(Reply { response: ClassifyResponse { results }, meta })
    }

    async fn stream(
        &self,
        cx: &CallContext,
        request: ClassifyRequest,
    ) -> Result<BoxStream<'static, Result<Event<Classify>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}

fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

/// The manifest of whatever is in service.
fn manifest() -> Digest {
    Digest::of(b"manifest")
}

async fn judge(
    options: EvaluatorOptions,
    golden: &GoldenSet,
    candidate: &Table,
    incumbent: Option<&Table>,
) -> Result<Report> {
    let incumbent = incumbent.map(|backend| (manifest(), backend as &dyn InferenceBackend<Classify>));
    Evaluator::classify(options)?.evaluate(&context(), golden, Contender::new(candidate), incumbent, &NoProgress).await
}

/// The report by the default options.
async fn report(golden: &GoldenSet, candidate: &Table, incumbent: Option<&Table>) -> Report {
    judge(EvaluatorOptions::default(), golden, candidate, incumbent).await.unwrap()
}

/// The adjusted p-values by slice.
fn adjusted(report: &Report) -> BTreeMap<String, f64> {
    report.slices.iter().map(|slice| (slice.to_string(), slice.comparison.as_ref().unwrap().adjusted_p)).collect()
}
