//! Captured judgment: what an expert decided about a model's answer, and datasets of it.

use std::{collections::BTreeMap, fmt::Debug};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ArtifactStore, DatasetName, Digest, Document, Error, Hasher, JudgmentId, Key, ReadOptions, RequestId, Result,
    TenantId, Timestamp, WriterId, document::document, inference::ServedModel,
};

/// What an expert decided about one input: an event that is recorded once and never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgment {
    /// The event's id. The same id twice is the same event.
    pub id: JudgmentId,
    /// The task, as [`Task::NAME`](crate::Task::NAME).
    pub task: String,
    /// What the model was asked: for classification `{"text": …}`.
    pub input: Value,
    /// What the expert says is right: for classification `{"label": …}`.
    pub decision: Value,
    /// What the model had answered, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
    /// The model that had answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ServedModel>,
    /// The request that had been answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, by the recorder's wall clock. A retry may record the same event again at a later time; the earliest counts.
    pub at: Timestamp,
    /// What evaluation may slice by, such as `language`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl Judgment {
    /// A judgment of an input that no model was asked about, by nobody in particular.
    pub fn new(id: JudgmentId, task: impl Into<String>, input: Value, decision: Value, at: Timestamp) -> Self {
        let (answer, model, request, by, tags) = (None, None, None, None, BTreeMap::new());
        Self { id, task: task.into(), input, decision, answer, model, request, by, at, tags }
    }
}

/// Where judgments go when they are made: the port between whoever hears an expert and whatever carries the judgment to the bucket.
///
/// # Behavior
/// - The judgment is durable on this machine when [`record`](Self::record) returns; it reaches the dataset some time later.
/// - Recording the same judgment again changes nothing in the folded dataset, so a caller that is in doubt records again.
/// - Never waits for the bucket or the other side. A full disk is [`StorageFull`](crate::ErrorKind::StorageFull) and loses nothing recorded before.
///
/// # Cancel safety
/// A future that is dropped may or may not have recorded; record again.
#[async_trait]
pub trait JudgmentSink: Debug + Send + Sync + 'static {
    /// Makes `judgment` durable as an event of the tenant's dataset.
    async fn record(&self, tenant: &TenantId, dataset: &DatasetName, judgment: Judgment) -> Result<()>;
}

/// One object of a dataset: the judgments that one writer sent together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The judgments.
    pub judgments: Vec<Judgment>,
}
document!(Segment, "hybrid.judgments", 1);

/// The keys under which a dataset's segments lie: `t/<tenant>/datasets/<name>/`.
pub fn dataset_prefix(tenant: &TenantId, dataset: &DatasetName) -> String {
    format!("t/{tenant}/datasets/{dataset}/")
}

/// The key of one segment: `t/<tenant>/datasets/<name>/<yyyy-mm-dd>/<writer>/<sequence, 20 digits>`.
///
/// # Errors
/// Never for valid names; the key's own rule otherwise.
pub fn segment_key(
    tenant: &TenantId,
    dataset: &DatasetName,
    date: Timestamp,
    writer: &WriterId,
    sequence: u64,
) -> Result<Key> {
    Key::new(format!("{}{}/{writer}/{sequence:020}", dataset_prefix(tenant, dataset), date.date()))
}

/// A fixed set of segments: a dataset as it was at one moment. What comes later is another dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRef {
    /// The dataset's name.
    pub name: DatasetName,
    /// Its segments, in order of their keys.
    pub segments: Vec<SegmentRef>,
}

/// One segment with the digest of its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// The object.
    pub key: Key,
    /// The digest of the object's bytes.
    pub digest: Digest,
}

impl DatasetRef {
    /// Fixes a dataset as it is now: lists and digests all its segments.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn fix(store: &dyn ArtifactStore, tenant: &TenantId, name: &DatasetName) -> Result<Self> {
        use futures_util::TryStreamExt;
        let segments = store
            .list(&dataset_prefix(tenant, name), crate::ListOptions::default())
            .and_then(|meta| async move {
                let bytes = store.read(&meta.key, ReadOptions::default()).await?;
                Ok(SegmentRef { key: meta.key, digest: Digest::of(&bytes) })
            })
            .try_collect()
            .await?;
        Ok(Self { name: name.clone(), segments })
    }

    /// The digest of the dataset: SHA-256 over the segments' raw digests, in order.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        self.segments.iter().for_each(|segment| hasher.update(segment.digest.as_bytes()));
        hasher.finish()
    }

    /// Reads all segments, each verified, and folds them with [`fold_judgments`].
    ///
    /// # Errors
    /// Those of the store; [`Corrupt`](crate::ErrorKind::Corrupt) that names the segment whose bytes have changed.
    pub async fn read(&self, store: &dyn ArtifactStore) -> Result<Vec<Judgment>> {
        let mut judgments = Vec::new();
        for SegmentRef { key, digest } in &self.segments {
            let bytes = store.read(key, ReadOptions::verified(*digest)).await?;
            judgments.extend(Segment::decode(&bytes).map_err(|error| error.with("key", key))?.judgments);
        }
        fold_judgments(judgments)
    }
}

/// What the events say in the end, whatever their order and however often each was delivered: one judgment for each task and input, the latest
/// by time and then by id, in order of ids. Events of one id that differ in their time alone are one event, at the earliest of the times.
///
/// # Errors
/// [`Corrupt`](crate::ErrorKind::Corrupt) if two events of one id differ in anything else.
pub fn fold_judgments(events: impl IntoIterator<Item = Judgment>) -> Result<Vec<Judgment>> {
    let mut by_id: BTreeMap<JudgmentId, Judgment> = BTreeMap::new();
    for mut event in events {
        let Some(known) = by_id.get_mut(&event.id) else {
            by_id.insert(event.id, event);
            continue;
        };
        // A retried recording is the same event at a later time.
        let at = known.at.min(event.at);
        (known.at, event.at) = (at, at);
        if *known != event {
            return Err(Error::corrupt("fold judgments", "two different judgments have one id").with("id", event.id));
        }
    }
    let mut latest: BTreeMap<(String, String), (Timestamp, JudgmentId)> = BTreeMap::new();
    for event in by_id.values() {
        let slot = latest.entry((event.task.clone(), event.input.to_string())).or_insert((event.at, event.id));
        *slot = (*slot).max((event.at, event.id));
    }
    let kept: std::collections::BTreeSet<_> = latest.into_values().map(|(_, id)| id).collect();
    by_id.retain(|id, _| kept.contains(id));
    Ok(by_id.into_values().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{IdSource, SeededIds};

    fn judgment(ids: &dyn IdSource, text: &str, label: &str, at: i64) -> Judgment {
        Judgment::new(
            JudgmentId::next(ids),
            "classify",
            json!({ "text": text }),
            json!({ "label": label }),
            Timestamp::from_unix_micros(at),
        )
    }

    #[test]
    fn the_latest_decision_about_an_input_counts() {
        let ids = SeededIds::default();
        let events = [judgment(&ids, "a", "late", 9), judgment(&ids, "a", "early", 1), judgment(&ids, "b", "x", 5)];
        let folded = fold_judgments(events).unwrap();
        let labels: Vec<_> = folded.iter().map(|judgment| judgment.decision["label"].as_str().unwrap()).collect();
        assert_eq!(labels, ["late", "x"]);
    }

    #[test]
    fn one_id_with_two_contents_is_refused() {
        let a = judgment(&SeededIds::new(1), "a", "x", 1);
        let b = judgment(&SeededIds::new(1), "a", "y", 1);
        assert!(fold_judgments([a, b]).is_err());
    }

    #[test]
    fn a_retry_does_not_outlive_a_later_correction() {
        let (first, second) = (SeededIds::new(1), SeededIds::new(2));
        let wrong = judgment(&first, "a", "wrong", 1);
        let right = judgment(&second, "a", "right", 5);
        let retry = Judgment { at: Timestamp::from_unix_micros(9), ..wrong.clone() };
        for events in [[wrong.clone(), right.clone(), retry.clone()], [retry, right.clone(), wrong]] {
            assert_eq!(fold_judgments(events).unwrap(), std::slice::from_ref(&right));
        }
    }

    proptest! {
        #[test]
        fn order_and_duplicates_do_not_matter(texts in prop::collection::vec(0u8..4, 1..12), order in any::<u64>()) {
            let ids = SeededIds::default();
            let events: Vec<_> = texts.iter().enumerate().map(|(i, text)| judgment(&ids, &text.to_string(), &i.to_string(), i64::from(*text) % 2)).collect();
            let mut shuffled: Vec<_> = events.iter().chain(&events).cloned().collect();
            let mut state = order;
            for i in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(i, (state >> 33) as usize % (i + 1));
            }
            prop_assert_eq!(fold_judgments(events).unwrap(), fold_judgments(shuffled).unwrap());
        }
    }
}
