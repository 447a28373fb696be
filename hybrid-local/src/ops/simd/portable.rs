//! Plain loops, which the compiler turns into the vector instructions that it may take for granted.

use super::{LANES, LINE, Simd, Work, narrow, widen};

#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Portable;

impl Simd for Portable {
    type Bytes = [u8; LINE];
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    const OFFSET: i32 = 0;
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorise<W: Work>(self, work: W) -> W::Output {
        work.run(self)
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; LINE]) -> Self::Bytes {
        *bytes
    }

    #[inline(always)]
    fn bits<const FROM: u32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        bytes.map(|byte| byte >> FROM & mask)
    }

    #[inline(always)]
    fn join<const TO: u32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| low[i] | high[i] << TO)
    }

    #[inline(always)]
    fn signed(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, mut sums: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints {
        let by = by.to_le_bytes().map(|by| i32::from(by as i8));
        for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let product = |i: usize| by[i] * if SIGNED { i32::from(bytes[i] as i8) } else { i32::from(bytes[i]) };
            *sum += product(0) + product(1) + product(2) + product(3);
        }
        sums
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, floats: &[f32; LANES]) -> Self::Floats {
        *floats
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        widen(bytes)
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; LANES]) -> Self::Floats {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn with_sign(self, bytes: &[u8; LANES]) -> Self::Floats {
        bytes.map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; LANES] {
        floats
    }

    #[inline(always)]
    fn to_halves(self, floats: Self::Floats) -> [u16; LANES] {
        narrow(floats)
    }
}
