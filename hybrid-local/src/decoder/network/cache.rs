//! Keys and values of the tokens that a sequence has so far.

use candle_core::{DType, Device, Result, Tensor};

use crate::{decoder::config::DecoderConfig, ops::put_rows};

/// Tokens that a cache has room for at first, beyond those it must take.
const HEADROOM: usize = 256;

/// The cache of one sequence. Its room doubles when it is full, so that a short answer does not take what a long one may need.
#[derive(Debug)]
pub(crate) struct Cache {
    /// For each layer keys and values, `[heads, room, head size]`.
    layers: Vec<[Tensor; 2]>,
    length: usize,
    room: usize,
    limit: usize,
    shape: [usize; 2],
    kind: DType,
    device: Device,
}

impl Cache {
    /// An empty cache for at most `limit` tokens, with numbers of this kind.
    pub(crate) fn new(config: &DecoderConfig, limit: usize, kind: DType, device: &Device) -> Self {
        Self {
            layers: Vec::with_capacity(config.layers()),
            length: 0,
            room: 0,
            limit,
            shape: [config.key_value_heads, config.head_size],
            kind,
            device: device.clone(),
        }
    }

    /// The tokens that are in it.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The tokens that it has memory for.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Sets the most tokens that it may hold from now on.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// A cache of its own for at most `limit` tokens, with the first `length` tokens of this one in it.
    pub(crate) fn fork(&self, length: usize, limit: usize) -> Result<Self> {
        let length = length.min(self.length);
        let mut fork = Self {
            layers: Vec::with_capacity(self.layers.len()),
            length: 0,
            room: 0,
            limit,
            shape: self.shape,
            kind: self.kind,
            device: self.device.clone(),
        };
        fork.reserve(length, self.layers.len())?;
        for (own, theirs) in fork.layers.iter().zip(&self.layers) {
            for (own, theirs) in own.iter().zip(theirs).filter(|_| length > 0) {
                own.slice_set(&theirs.narrow(1, 0, length)?.contiguous()?, 1, 0)?;
            }
        }
        fork.length = length;
        Ok(fork)
    }

    /// Forgets the tokens from `length` on.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes room for `rows` more tokens in all of `layers` layers.
    pub(super) fn reserve(&mut self, rows: usize, layers: usize) -> Result<()> {
        let needed = self.length + rows;
        if needed > self.limit {
            candle_core::bail!("{needed} tokens are more than the {} that the cache may hold", self.limit);
        }
        if needed <= self.room {
            return Ok(());
        }
        let room = (needed + HEADROOM).max(2 * self.room);
        // For a little more it would soon have to be copied once again.
        let room = if room + HEADROOM > self.limit { self.limit } else { room };
        let [heads, head_size] = self.shape;
        for layer in 0..layers {
            let empty = || Tensor::zeros((heads, room, head_size), self.kind, &self.device);
            let grown = [empty()?, empty()?];
            match self.layers.get_mut(layer) {
                Some(old) => {
                    if self.length > 0 {
                        for (grown, old) in grown.iter().zip(&*old) {
                            grown.slice_set(&old.narrow(1, 0, self.length)?.contiguous()?, 1, 0)?;
                        }
                    }
                    *old = grown;
                }
                None => self.layers.push(grown),
            }
        }
        self.room = room;
        Ok(())
    }

    /// Puts the next tokens' keys and values of one layer, `[rows, heads, head size]`, beside those before, and gives those from `first` on,
    /// `[heads, tokens, head size]`.
    pub(super) fn extend(&self, layer: usize, new: [&Tensor; 2], first: usize) -> Result<[Tensor; 2]> {
        let rows = new[0].dim(0)?;
        let Some([keys, values]) = self.layers.get(layer) else {
            candle_core::bail!("the cache has no layer {layer}");
        };
        let put = |all: &Tensor, new: &Tensor| {
            if self.device.is_cpu() {
                put_rows(all, new, self.length)?;
            } else {
                all.slice_set(&new.transpose(0, 1)?.contiguous()?.to_dtype(self.kind)?, 1, self.length)?;
            }
            all.narrow(1, first, self.length + rows - first)
        };
        Ok([put(keys, new[0])?, put(values, new[1])?])
    }

    /// Counts `rows` tokens whose keys and values are in all layers now.
    pub(super) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::config::tiny;

    /// Keys or values of `rows` tokens from number `first` on, as a cache has them: each is its token's number.
    fn tokens(first: usize, rows: usize) -> Tensor {
        new(first, rows).transpose(0, 1).unwrap().contiguous().unwrap()
    }

    /// The same as they come.
    fn new(first: usize, rows: usize) -> Tensor {
        let rows_of = (first..first + rows).flat_map(|token| [token as f32; 2 * 4]).collect();
        Tensor::from_vec(rows_of, (rows, 2, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_in_a_cache_stays_as_its_room_grows() {
        let mut cache = Cache::new(&tiny(), 700, DType::F32, &Device::Cpu);
        for rows in [1, 200, 90, 3, 300, 106] {
            let first = cache.len();
            cache.reserve(rows, 2).unwrap();
            for layer in 0..2 {
                let new = new(first, rows);
                let [keys, values] = cache.extend(layer, [&new, &new], 0).unwrap();
                let whole = tokens(0, first + rows).to_vec3::<f32>().unwrap();
                assert_eq!((keys.to_vec3().unwrap(), values.to_vec3().unwrap()), (whole.clone(), whole));
            }
            cache.advance(rows);
        }
        assert!(cache.len() == 700 && cache.room == 700 && cache.reserve(1, 2).is_err());
        cache.truncate(10);
        cache.reserve(1, 2).unwrap();
        let new = new(10, 1);
        let [keys, _] = cache.extend(1, [&new, &new], 8).unwrap();
        assert_eq!(keys.to_vec3::<f32>().unwrap(), tokens(8, 3).to_vec3::<f32>().unwrap());
    }

    #[test]
    fn a_fork_has_the_beginning_and_goes_its_own_way() {
        // Keys of the first layer and values of the second.
        let put = |cache: &mut Cache, new: &Tensor| {
            let rows = new.dim(0).unwrap();
            cache.reserve(rows, 2).unwrap();
            let [one, other] =
                [0, 1].map(|layer| cache.extend(layer, [new, new], 0).unwrap()[layer].to_vec3::<f32>().unwrap());
            cache.advance(rows);
            assert_eq!(one, other);
            one
        };
        let whole = |parts: [Tensor; 2]| Tensor::cat(&parts, 1).unwrap().to_vec3::<f32>().unwrap();
        let mut cache = Cache::new(&tiny(), 400, DType::F32, &Device::Cpu);
        assert_eq!(cache.fork(9, 400).unwrap().len(), 0, "an empty cache has nothing to give");
        put(&mut cache, &new(0, 300));
        let mut fork = cache.fork(100, 120).unwrap();
        assert_eq!((fork.len(), fork.room()), (100, 120));
        assert_eq!(put(&mut fork, &new(500, 20)), whole([tokens(0, 100), tokens(500, 20)]));
        assert_eq!(put(&mut cache, &new(700, 1)), whole([tokens(0, 300), tokens(700, 1)]));
        assert!(fork.reserve(1, 2).is_err());
        fork.set_limit(130);
        assert!(fork.reserve(1, 2).is_ok());
    }
}
