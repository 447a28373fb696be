//! Caches of sequences that have ended, for prompts that begin as they do.
//!
//! A cache belongs to the tenant that it was made for: how soon an answer comes tells nobody what another tenant has asked.

use super::requests::Owner;
use crate::decoder::network::Cache;

/// Beginnings shorter than this are read anew.
pub(super) const WORTHWHILE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The one that was not used for the longest time first.
    entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    owner: Owner,
    /// As many as are in the cache.
    tokens: Vec<u32>,
    cache: Cache,
}

impl Kept {
    /// Memory that is taken, in tokens.
    pub(super) fn room(&self) -> usize {
        self.entries.iter().map(|entry| entry.cache.room()).sum()
    }

    /// Keeps the cache of a sequence of `tokens`.
    pub(super) fn put(&mut self, owner: &Owner, mut tokens: Vec<u32>, cache: Cache) {
        tokens.truncate(cache.len());
        let covered = |entry: &Entry| entry.owner == *owner && entry.tokens.starts_with(&tokens);
        if tokens.len() < WORTHWHILE {
            return;
        }
        if let Some(at) = self.entries.iter().position(covered) {
            return self.entries[at..].rotate_left(1);
        }
        self.entries.retain(|entry| entry.owner != *owner || !tokens.starts_with(&entry.tokens));
        self.entries.push(Entry { owner: owner.clone(), tokens, cache });
    }

    /// Takes out the owner's cache that has the longest beginning of `tokens`, if it is longer than `least`; gives that length too.
    pub(super) fn take(&mut self, owner: &Owner, tokens: &[u32], least: usize) -> Option<(usize, Entry)> {
        let own = self.entries.iter().enumerate().filter(|(_, entry)| entry.owner == *owner);
        let (common, at) = own.map(|(at, entry)| (common(&entry.tokens, tokens), at)).max()?;
        (common > least && common >= WORTHWHILE).then(|| (common, self.entries.remove(at)))
    }

    /// Puts back what was taken.
    pub(super) fn put_back(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Forgets what was not used for the longest time, until at most `room` tokens of memory are taken.
    pub(super) fn shrink(&mut self, room: usize) {
        let mut taken = self.room();
        let mut gone = 0;
        while taken > room {
            taken -= self.entries[gone].cache.room();
            gone += 1;
        }
        self.entries.drain(..gone);
    }
}

impl Entry {
    pub(super) fn room(&self) -> usize {
        self.cache.room()
    }

    /// A cache with the first `length` tokens, for at most `limit`; and this one again, if it is worth its memory beside it.
    pub(super) fn begin(
        self,
        length: usize,
        limit: usize,
        has_room: bool,
    ) -> candle_core::Result<(Cache, Option<Self>)> {
        // The next turn of a conversation seldom needs more of it than this one; a beginning that many conversations have is worth a copy.
        if has_room && 2 * length < self.tokens.len() {
            return Ok((self.cache.fork(length, limit)?, Some(self)));
        }
        let mut cache = self.cache;
        cache.truncate(length);
        cache.set_limit(limit);
        Ok((cache, None))
    }
}

/// How many tokens two sequences begin with alike.
pub(super) fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}
