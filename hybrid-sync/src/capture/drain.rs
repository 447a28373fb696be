use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::TryStreamExt;
use hybrid_core::{
    ArtifactStoreExt, DatasetName, Digest, Document, Error, ErrorKind, Judgment, Key, ListOptions, Result, Segment,
    TenantId, dataset_prefix,
};

use super::{Capture, Record};

/// What one [`Capture::drain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Judgments that left the outbox, durable in the bucket.
    pub judgments: u64,
    /// Segments created.
    pub segments: u64,
    /// Bytes created.
    pub bytes: u64,
    /// Records that are no judgment of any version (a damaged disk): kept as they are under `t/<tenant>/quarantine/`.
    pub quarantined: u64,
}

/// One sequence of segments of this writer: everything in a segment's key but the number.
///
/// The date is that of recording, kept in the record: a drain after a crash, days later or under a clock that has jumped, finds the same place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    tenant: TenantId,
    dataset: DatasetName,
    date: String,
}

/// The longest run of records of which each place gets at most one segment: then at most the last segment of each place can be one whose
/// records a crash left in the outbox.
#[derive(Debug, Default)]
struct Batch {
    places: BTreeMap<Place, Part>,
    damaged: Vec<(u64, Bytes)>,
    records: u64,
    last: Option<u64>,
}

/// What one place gets of a batch.
#[derive(Debug, Default)]
struct Part {
    bytes: usize,
    numbers: Vec<u64>,
    judgments: Vec<Judgment>,
}

/// What could not be carried in one drain, and why first.
#[derive(Debug, Default)]
struct Left {
    places: BTreeSet<Place>,
    error: Option<Error>,
    /// The store or the outbox is away, so that going on is of no use.
    away: bool,
}

impl Left {
    fn note(&mut self, error: Error) {
        tracing::warn!(%error, "some records stay in the outbox");
        self.away |= error.is_temporary();
        self.error.get_or_insert(error);
    }
}

/// What was found at a number that this writer wanted.
enum Found {
    /// An object; judgments that it holds are taken off the list.
    Absorbed,
    /// Nothing: the answer that it exists was wrong.
    Nothing,
}

/// How many dates and datasets one process remembers the sequence of; the others are listed again.
const MAX_SEQUENCES: usize = 4096;
/// How often an answer of "exists" for an object that is not there is asked again.
const MAX_DOUBTS: u32 = 3;

impl Capture {
    /// Carries all that was recorded before the call to the bucket.
    ///
    /// # Behavior
    /// - Segments are created under this writer's next numbers; only then their records leave the outbox.
    /// - After a crash in between, and after an ambiguous answer, the segment is found again by its judgments and not written twice.
    /// - A number that somebody else has taken is passed over. One call drains at a time; others wait.
    /// - What the store refuses for one tenant, dataset or day stays and holds up nothing else. What it cannot do now ends the drain.
    ///
    /// # Errors
    /// Those of outbox and store, the first after all that could be carried; what is not in the bucket stays in the outbox.
    /// [`Unsupported`](ErrorKind::Unsupported) if a newer version of this software has left records here: upgrade again.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub async fn drain(&self) -> Result<Drained> {
        let mut sequences = self.sequences.lock().await;
        let (mut drained, mut left) = (Drained::default(), Left::default());
        let (mut waiting, mut after) = (self.outbox.len().await?, 0);
        while waiting > 0 && !left.away {
            let batch = self.next_batch(after, &mut left).await?;
            let Some(last) = batch.last else { break };
            if sequences.len() > MAX_SEQUENCES {
                sequences.clear();
            }
            let (mut done, mut reached) = (Vec::new(), Vec::new());
            for (place, part) in batch.places {
                // The number is known again once the records have left the outbox. Until then whoever comes looks for them in the bucket first.
                let next = sequences.remove(&place);
                match self.store_segments(next, &place, part.judgments, &mut drained).await {
                    Ok(next) => {
                        drained.judgments += part.numbers.len() as u64;
                        done.extend(part.numbers);
                        reached.push((place, next));
                    }
                    Err(error) => {
                        left.places.insert(place);
                        left.note(error);
                        if left.away {
                            break;
                        }
                    }
                }
            }
            for (number, record) in batch.damaged {
                match self.quarantine(record).await {
                    Ok(()) => {
                        drained.quarantined += 1;
                        done.push(number);
                    }
                    Err(error) => left.note(error),
                }
            }
            if !done.is_empty() {
                self.outbox.remove(&done).await?;
            }
            sequences.extend(reached);
            (waiting, after) = (waiting.saturating_sub(batch.records), last);
        }
        if drained != Drained::default() {
            let Drained { judgments, segments, bytes, quarantined } = drained;
            tracing::info!(judgments, segments, bytes, quarantined, writer = %self.writer, "outbox drained");
        }
        left.error.map_or(Ok(drained), Err)
    }

    async fn next_batch(&self, after: u64, left: &mut Left) -> Result<Batch> {
        let (max_bytes, max_records) = (self.options.segment_bytes, self.options.segment_judgments);
        // The outbox counts records, not bytes: begin with few, so that large ones do not fill the memory.
        let mut asked = max_records.min(128);
        let records = loop {
            let records = self.outbox.pending(after, asked).await?;
            let bytes: usize = records.iter().map(|(_, record)| record.len()).sum();
            if records.len() < asked || asked == max_records || bytes >= max_bytes {
                break records;
            }
            asked = asked.saturating_mul(4).min(max_records);
        };
        let mut batch = Batch::default();
        for (number, bytes) in records {
            match Record::decode(&bytes) {
                Ok(Record { tenant, dataset, recorded, judgment }) => {
                    let place = Place { tenant, dataset, date: recorded.date() };
                    if !left.places.contains(&place) {
                        let part = batch.places.entry(place).or_default();
                        if part.bytes > 0 && part.bytes + bytes.len() > max_bytes {
                            break;
                        }
                        part.bytes += bytes.len();
                        part.numbers.push(number);
                        part.judgments.push(judgment);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => left.note(error.with("record", number)),
                Err(error) => {
                    tracing::error!(%error, record = number, "a record of the outbox is damaged; it goes to quarantine");
                    batch.damaged.push((number, bytes));
                }
            }
            batch.records += 1;
            batch.last = Some(number);
        }
        Ok(batch)
    }

    /// Creates what is not there yet of these judgments; `next` is the sequence's next number, if it is known. Answers the number after.
    async fn store_segments(
        &self,
        next: Option<u64>,
        place: &Place,
        mut judgments: Vec<Judgment>,
        drained: &mut Drained,
    ) -> Result<u64> {
        let mut sequence = match next {
            Some(next) => next,
            None => match self.last_sequence(place).await? {
                None => 0,
                // These very judgments may have been stored last, and their records stayed.
                Some(last) => {
                    self.absorb(&self.key(place, last)?, &mut judgments).await?;
                    after(last)?
                }
            },
        };
        let mut doubts = 0;
        while !judgments.is_empty() {
            let key = self.key(place, sequence)?;
            let segment = Segment { judgments };
            let bytes = segment.encode()?;
            judgments = segment.judgments;
            let size = bytes.len() as u64;
            match self.store.create(&key, bytes).await {
                Ok(()) => {
                    drained.segments += 1;
                    drained.bytes += size;
                    judgments.clear();
                    sequence = after(sequence)?;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    match self.absorb(&key, &mut judgments).await? {
                        Found::Absorbed => sequence = after(sequence)?,
                        Found::Nothing if doubts < MAX_DOUBTS => doubts += 1,
                        Found::Nothing => {
                            return Err(Error::unavailable(
                                "create segment",
                                "the store says that the object exists and has none",
                            )
                            .with("key", key)
                            .with_source(error));
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sequence)
    }

    /// Takes the judgments off the list that the object at `key` holds: those of an earlier try of this drain.
    async fn absorb(&self, key: &Key, judgments: &mut Vec<Judgment>) -> Result<Found> {
        let bytes = match self.store.get(key).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        match Segment::decode(&bytes) {
            Ok(segment) => {
                // One id may be there more than once: a retried recording differs in its time.
                let mut stored: BTreeMap<_, Vec<_>> = BTreeMap::new();
                segment.judgments.iter().for_each(|judgment| stored.entry(judgment.id).or_default().push(judgment));
                judgments.retain(|judgment| !stored.get(&judgment.id).is_some_and(|same| same.contains(&judgment)));
            }
            // Whatever it is, it is not ours to judge: our judgments go to the next number.
            Err(error) => tracing::warn!(%error, %key, "an object among the segments is none"),
        }
        Ok(Found::Absorbed)
    }

    async fn last_sequence(&self, place: &Place) -> Result<Option<u64>> {
        let prefix = self.prefix(place);
        let mut last = None;
        let mut listing = self.store.list(&prefix, ListOptions::default());
        while let Some(meta) = listing.try_next().await? {
            // Anything else below the prefix is not of this writer's sequence.
            if let Some(number) = meta.key.as_str().strip_prefix(&prefix).and_then(|number| number.parse().ok()) {
                last = last.max(Some(number));
            }
        }
        Ok(last)
    }

    async fn quarantine(&self, record: Bytes) -> Result<()> {
        let key = Key::new(format!("t/{}/quarantine/{}/{}", self.options.tenant, self.writer, Digest::of(&record)))?;
        self.store.create_same(&key, record).await
    }

    fn prefix(&self, place: &Place) -> String {
        format!("{}{}/{}/", dataset_prefix(&place.tenant, &place.dataset), place.date, self.writer)
    }

    /// The same as [`hybrid_core::segment_key`], from the date as text.
    fn key(&self, place: &Place, sequence: u64) -> Result<Key> {
        Key::new(format!("{}{sequence:020}", self.prefix(place)))
    }
}

fn after(sequence: u64) -> Result<u64> {
    sequence.checked_add(1).ok_or_else(|| {
        Error::corrupt("create segment", "the sequence has an object with the last number; use another writer id")
    })
}
