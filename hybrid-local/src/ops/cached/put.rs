//! New keys and values, put into a cache.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use half::f16;
use rayon::prelude::*;

use super::{Number, SMALL};
use crate::ops::{
    fused::slice,
    simd::{LANES, Simd, Work, dispatch},
};

/// Puts rows `[rows, heads, size]` into `[heads, room, size]`, from token `at` on.
pub(crate) fn put_rows(all: &Tensor, rows: &Tensor, at: usize) -> Result<()> {
    all.inplace_op2(&rows.contiguous()?, &Put { at })
}

struct Put {
    at: usize,
}

impl InplaceOp2 for Put {
    fn name(&self) -> &'static str {
        "put into a cache"
    }

    fn cpu_fwd(&self, all: &mut CpuStorage, of_all: &Layout, rows: &CpuStorage, of_rows: &Layout) -> Result<()> {
        let ((heads, room, size), (count, new_heads, new_size)) = (of_all.shape().dims3()?, of_rows.shape().dims3()?);
        let fits = (heads, size) == (new_heads, new_size) && self.at + count <= room;
        let Some((0, end)) = of_all.contiguous_offsets().filter(|_| fits) else {
            candle_core::bail!("rows {:?} do not fit a cache {of_all:?} from token {} on", of_rows.shape(), self.at);
        };
        let rows = slice(rows, of_rows)?;
        match all {
            CpuStorage::F32(all) => self.put(&mut all[..end], rows, [heads, room, size], |to, from| {
                to.copy_from_slice(from);
            }),
            CpuStorage::F16(all) => self.put(&mut all[..end], rows, [heads, room, size], |to, from| {
                dispatch(Narrow { to, from });
            }),
            _ => candle_core::bail!("a cache is in single or half precision"),
        }
        Ok(())
    }
}

impl Put {
    fn put<N: Number>(
        &self,
        all: &mut [N],
        rows: &[f32],
        [heads, room, size]: [usize; 3],
        copy: impl Fn(&mut [N], &[f32]) + Sync,
    ) {
        if rows.is_empty() {
            return;
        }
        let put = |(head, all): (usize, &mut [N])| {
            let tokens = all[self.at * size..].chunks_exact_mut(size);
            for (to, row) in tokens.zip(rows.chunks_exact(heads * size)) {
                copy(to, &row[head * size..][..size]);
            }
        };
        if rows.len() <= SMALL {
            all.chunks_exact_mut(room * size).enumerate().for_each(put);
        } else {
            all.par_chunks_exact_mut(room * size).enumerate().for_each(put);
        }
    }
}

/// Rounds to half precision.
struct Narrow<'a> {
    to: &'a mut [f16],
    from: &'a [f32],
}

impl Work for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ((to, to_rest), (from, from_rest)) = (self.to.as_chunks_mut::<LANES>(), self.from.as_chunks());
        for (to, from) in to.iter_mut().zip(from) {
            *to = simd.to_halves(simd.load(from)).map(f16::from_bits);
        }
        for (to, from) in to_rest.iter_mut().zip(from_rest) {
            *to = f16::from_f32(*from);
        }
    }
}
