//! The vectors of one tenant in memory, and the search over them.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
};

use hybrid_core::{
    Neighbor, VectorKey, VectorQuery, VectorRecord, VectorSchema,
    vector::{Metadata, Metric},
};

use super::codes::Codes;

/// One tenant's vectors as of one generation.
#[derive(Default)]
pub(super) struct Shard {
    generation: i64,
    /// Fields that a filter cannot name stay in the file.
    stored: Vec<String>,
    slots: HashMap<VectorKey, usize>,
    entries: Vec<Entry>,
    codes: Codes,
}

struct Entry {
    key: VectorKey,
    /// The generation that wrote it.
    changed: i64,
    metadata: Metadata,
}

/// A change to what is held.
pub(super) enum Change<'a> {
    Put(&'a VectorRecord),
    Delete(&'a VectorKey),
}

/// A record found.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub(super) key: VectorKey,
    pub(super) changed: i64,
    distance: f32,
    metadata: Metadata,
}

impl Hit {
    pub(super) fn into_neighbor(self) -> Neighbor {
        let Self { key, distance, metadata, .. } = self;
        Neighbor { key, distance, metadata }
    }
}

impl Shard {
    pub(super) fn new(schema: &VectorSchema, generation: i64) -> Self {
        Self {
            generation,
            stored: schema.stored_fields().map(str::to_owned).collect(),
            slots: HashMap::new(),
            entries: Vec::new(),
            codes: Codes::new(schema.dimension(), schema.metric() == Metric::Cosine),
        }
    }

    pub(super) fn generation(&self) -> i64 {
        self.generation
    }

    /// About how much memory it takes; metadata as its text would.
    pub(super) fn bytes(&self) -> usize {
        let entry = |entry: &Entry| 160 + 2 * entry.key.as_str().len() + 96 * entry.metadata.len();
        self.codes.bytes() + self.entries.iter().map(entry).sum::<usize>()
    }

    pub(super) fn components(&self) -> usize {
        self.codes.components()
    }

    pub(super) fn apply<'a>(&mut self, generation: i64, changes: impl Iterator<Item = Change<'a>>) {
        for change in changes {
            match change {
                Change::Put(VectorRecord { key, vector, metadata }) => {
                    let mut metadata = metadata.clone();
                    metadata.retain(|field, _| !self.stored.contains(field));
                    self.put(key.clone(), generation, vector, metadata);
                }
                Change::Delete(key) => self.delete(key),
            }
        }
        self.generation = generation;
    }

    pub(super) fn put(&mut self, key: VectorKey, changed: i64, vector: &[f32], metadata: Metadata) {
        match self.slots.get(&key) {
            Some(&slot) => {
                self.codes.replace(slot, vector);
                self.entries[slot] = Entry { key, changed, metadata };
            }
            None => {
                self.codes.push(vector);
                self.slots.insert(key.clone(), self.entries.len());
                self.entries.push(Entry { key, changed, metadata });
            }
        }
    }

    fn delete(&mut self, key: &VectorKey) {
        let Some(slot) = self.slots.remove(key) else { return };
        self.codes.swap_remove(slot);
        self.entries.swap_remove(slot);
        if let Some(moved) = self.entries.get(slot) {
            self.slots.insert(moved.key.clone(), slot);
        }
    }

    /// The nearest records that match, nearest first, ties by key.
    pub(super) fn search(&self, query: &VectorQuery) -> Vec<Hit> {
        let VectorQuery { vector, k, filter } = query;
        let matches = |slot: usize| filter.as_ref().is_none_or(|filter| filter.matches(&self.entries[slot].metadata));
        let probe = self.codes.probe(vector);
        let mut race = Race::new(*k);
        self.codes.bounds(&probe, |slot, low, high| {
            // The filter costs more than the comparison, so it comes second.
            if race.is_open_to(high) && matches(slot) {
                race.enter(slot, low, high);
            }
        });
        let mut finalists: Vec<_> = race.finish().map(|slot| (self.codes.distance(&probe, slot), slot)).collect();
        let order = |a: &(f32, usize), b: &(f32, usize)| -> Ordering {
            a.0.total_cmp(&b.0).then_with(|| self.entries[a.1].key.cmp(&self.entries[b.1].key))
        };
        if finalists.len() > *k {
            finalists.select_nth_unstable_by(*k - 1, order);
            finalists.truncate(*k);
        }
        finalists.sort_unstable_by(order);
        finalists
            .into_iter()
            .map(|(distance, slot)| {
                let Entry { key, changed, metadata } = &self.entries[slot];
                Hit { key: key.clone(), changed: *changed, distance, metadata: metadata.clone() }
            })
            .collect()
    }
}

/// Who may be among the `k` of highest score, of which only bounds are known.
///
/// At any time `k` entrants have at least the score `bar`; whoever cannot reach it is out.
struct Race {
    k: usize,
    /// The `k` highest lower bounds so far.
    lows: BinaryHeap<Reverse<Score>>,
    entrants: Vec<(f32, usize)>,
    bar: f32,
}

impl Race {
    fn new(k: usize) -> Self {
        Self { k, lows: BinaryHeap::with_capacity(k + 1), entrants: Vec::new(), bar: f32::NEG_INFINITY }
    }

    fn is_open_to(&self, high: f32) -> bool {
        high >= self.bar
    }

    fn enter(&mut self, slot: usize, low: f32, high: f32) {
        self.entrants.push((high, slot));
        self.lows.push(Reverse(Score(low)));
        if self.lows.len() > self.k {
            self.lows.pop();
        }
        if self.lows.len() == self.k
            && let Some(Reverse(Score(bar))) = self.lows.peek()
        {
            self.bar = *bar;
        }
    }

    /// Those who are still in it.
    fn finish(self) -> impl Iterator<Item = usize> {
        let bar = self.bar;
        self.entrants.into_iter().filter(move |(high, _)| *high >= bar).map(|(_, slot)| slot)
    }
}

/// Scores are finite: components are limited.
#[derive(Clone, Copy, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
