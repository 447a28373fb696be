//! Memory that is used again: what one operator gives up the next one takes, so that pages are not asked of the system for each.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Buffers that are free, shared by all clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    /// By capacity; the newest of each last, with the round in which it was put there.
    free: BTreeMap<usize, Vec<(usize, Vec<f32>)>>,
    round: usize,
}

/// Floats that go back to the others when nobody needs them.
#[derive(Debug)]
pub(crate) struct Buffer {
    values: Vec<f32>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// So many floats, which may be any.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        // A buffer that is larger by more than a quarter is kept for others.
        let found = self.shelf().take(len, len + len / 4);
        let mut values = found.unwrap_or_default();
        if values.len() < len {
            values.resize(len, 0.0);
        }
        Buffer { values, len, home: self.clone() }
    }

    /// A copy of `values`.
    pub(crate) fn copy(&self, values: &[f32]) -> Buffer {
        let mut buffer = self.take(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// The same floats, as one of these buffers.
    pub(crate) fn adopt(&self, values: Vec<f32>) -> Buffer {
        Buffer { len: values.len(), values, home: self.clone() }
    }

    /// Gives back to the system what nobody took since the last call.
    pub(crate) fn settle(&self) {
        let mut shelf = self.shelf();
        let round = shelf.round;
        shelf.round += 1;
        shelf.free.retain(|_, buffers| {
            buffers.retain(|(put, _)| *put >= round);
            !buffers.is_empty()
        });
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn take(&mut self, least: usize, most: usize) -> Option<Vec<f32>> {
        let (&capacity, buffers) = self.free.range_mut(least..=most).next()?;
        let found = buffers.pop();
        if buffers.is_empty() {
            self.free.remove(&capacity);
        }
        found.map(|(_, values)| values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.capacity() > 0 {
            let mut shelf = self.home.shelf();
            let round = shelf.round;
            shelf.free.entry(values.capacity()).or_default().push((round, values));
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_taken_again_and_what_nobody_takes_is_given_back() {
        let buffers = Buffers::default();
        let count = || buffers.shelf().free.values().map(Vec::len).sum::<usize>();
        let first = buffers.copy(&[1.0; 100]);
        drop(first);
        assert_eq!(count(), 1);
        // One that fits is taken, one that is much too large is not.
        let (again, small) = (buffers.take(90), buffers.take(10));
        assert_eq!((count(), again.len(), small.len()), (0, 90, 10));
        drop((again, small));
        buffers.settle();
        assert_eq!(count(), 2, "they were used in this round");
        let again = buffers.take(100);
        drop(again);
        buffers.settle();
        assert_eq!(count(), 1, "the small one was not");
        drop(buffers.take(70));
        assert_eq!(count(), 2);
    }
}
