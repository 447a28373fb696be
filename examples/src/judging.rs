//! Golden sets, and how a model is judged on one: classifiers and chat models by the same metric where the cases have labels.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, CallContext, Digest, Document, ErrorKind, InferenceBackend, Key, Progress,
    ProgressEvent, ProgressFn, ReadOptions, Requirements, Result, Task, TenantId,
};
use hybrid_local::{
    evaluation::{
        ChatLabelScorer, Contender, Evaluator, EvaluatorOptions, GoldenSet, LabelScorer, Report, Scorer, TextScorer,
    },
    plan_set::PlanTable,
};
use hybrid_sync::worker::JobContext;
use serde::{Deserialize, Serialize};

use crate::{models::Loaded, site::io};

/// A golden set in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenRef {
    /// The object.
    pub key: Key,
    /// The digest of its bytes.
    pub digest: Digest,
}

impl GoldenRef {
    /// Reads the golden set, verified.
    ///
    /// # Errors
    /// Those of the store and of the set.
    pub async fn read(&self, store: &dyn ArtifactStore) -> Result<GoldenSet> {
        let bytes = store.read(&self.key, ReadOptions::verified(self.digest)).await?;
        GoldenSet::from_jsonl(self.key.as_str(), &bytes)
    }
}

/// Puts a golden set into the bucket under its digest, once.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names file and line if it is no golden set; those of the store.
pub async fn store_golden(store: &dyn ArtifactStore, tenant: &TenantId, file: &Path) -> Result<GoldenRef> {
    let bytes = Bytes::from(std::fs::read(file).map_err(|error| io("read golden set", file, error))?);
    let digest = GoldenSet::from_jsonl(file.display().to_string(), &bytes)?.digest();
    let key = Key::new(format!("t/{tenant}/golden/{digest}.jsonl"))?;
    store.create_same(&key, bytes).await?;
    Ok(GoldenRef { key, digest })
}

/// The report on a candidate against an incumbent, and its key: the one that an earlier attempt of the job has written counts, else the one that comes of `judging`.
/// The same for people lies beside it, with `md` for `json`.
///
/// # Errors
/// Those of the store and of `judging`; [`Corrupt`](ErrorKind::Corrupt) for an object that is no report.
pub async fn keep_report(
    cx: &JobContext,
    candidate: Digest,
    incumbent: Option<Digest>,
    judging: impl Future<Output = Result<Report>>,
) -> Result<(Key, Report)> {
    let name = format!("reports/{candidate}-against-{}", or_nothing(incumbent));
    let key = cx.effect_key(&format!("{name}.json"))?;
    let report = match cx.store.get(&key).await {
        Err(error) if error.kind() == ErrorKind::NotFound => first(cx, &key, &judging.await?).await?,
        found => Report::decode(&found?).map_err(|error| error.with("key", &key))?,
    };
    for_people(cx, &name, report.to_markdown()).await?;
    Ok((key, report))
}

/// Makes `table` the one that the first attempt has made of its plans against this incumbent, and answers its key.
///
/// # Errors
/// As [`keep_report`].
pub async fn keep_table(cx: &JobContext, incumbent: Option<Digest>, table: &mut PlanTable) -> Result<Key> {
    let name = format!("plans/against-{}", or_nothing(incumbent));
    let key = cx.effect_key(&format!("{name}.json"))?;
    *table = first(cx, &key, table).await?;
    for_people(cx, &name, table.to_markdown()).await?;
    Ok(key)
}

/// Creates a document, or answers with the one that an earlier attempt has created: that is the one that counts.
async fn first<D: Document + Sync>(cx: &JobContext, key: &Key, document: &D) -> Result<D> {
    let bytes = document.encode()?;
    let written = match cx.store.create(key, bytes.clone()).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => cx.store.get(key).await?,
        created => created.map(|()| bytes)?,
    };
    D::decode(&written).map_err(|error| error.with("key", key))
}

/// Leaves the same as Markdown beside it.
async fn for_people(cx: &JobContext, name: &str, page: String) -> Result<()> {
    match cx.store.create(&cx.effect_key(&format!("{name}.md"))?, page.into()).await {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn or_nothing(incumbent: Option<Digest>) -> String {
    incumbent.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string())
}

/// What is judged.
#[derive(Debug)]
pub struct Judging<'a> {
    /// The golden set.
    pub golden: &'a GoldenSet,
    /// Who is judged.
    pub candidate: &'a Loaded,
    /// What it needs.
    pub requirements: Requirements,
    /// The version in service, of the same task.
    pub incumbent: Option<(Digest, &'a Loaded)>,
    /// Of how many candidates the best is taken.
    pub candidates: usize,
    /// The plan of several that made the candidate: progress carries its name.
    pub plan: Option<&'a str>,
}

impl Judging<'_> {
    /// Asks, compares and decides. Chat models answer cases with labels by the label alone, and other cases by their words (token F1).
    ///
    /// # Errors
    /// Those of the evaluator; [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for an incumbent of another task.
    pub async fn report(self, cx: &JobContext) -> Result<Report> {
        let call = cx.call()?;
        let progress: Arc<dyn Progress> = match self.plan {
            None => Arc::clone(&cx.progress),
            Some(plan) => {
                let (inner, plan) = (Arc::clone(&cx.progress), plan.to_owned());
                let named = move |event: ProgressEvent| {
                    inner.report(ProgressEvent { stage: format!("{} {plan}", event.stage), ..event });
                };
                Arc::new(ProgressFn(named))
            }
        };
        match self.candidate {
            Loaded::Classify(backend) => {
                let incumbent = self.against(Loaded::classifier)?;
                self.by(LabelScorer, &**backend, incumbent, &call, &*progress).await
            }
            Loaded::Chat(backend) => {
                let incumbent = self.against(Loaded::chat)?;
                let labelled = self.golden.cases().iter().all(|case| case.expected.get("label").is_some());
                match labelled {
                    true => self.by(ChatLabelScorer, &**backend, incumbent, &call, &*progress).await,
                    false => self.by(TextScorer::TokenF1, &**backend, incumbent, &call, &*progress).await,
                }
            }
        }
    }

    fn against<'b, T: Task>(
        &'b self,
        of: impl Fn(&'b Loaded) -> Result<&'b dyn InferenceBackend<T>>,
    ) -> Result<Option<(Digest, &'b dyn InferenceBackend<T>)>> {
        self.incumbent.map(|(digest, loaded)| Ok((digest, of(loaded)?))).transpose()
    }

    async fn by<T: Task, S: Scorer<T>>(
        &self,
        scorer: S,
        backend: &dyn InferenceBackend<T>,
        incumbent: Option<(Digest, &dyn InferenceBackend<T>)>,
        call: &CallContext,
        progress: &dyn Progress,
    ) -> Result<Report> {
        let options = EvaluatorOptions { candidates: self.candidates, ..EvaluatorOptions::default() };
        let contender = Contender { backend, requirements: self.requirements.clone() };
        Evaluator::new(scorer, options)?.evaluate(call, self.golden, contender, incumbent, progress).await
    }
}
