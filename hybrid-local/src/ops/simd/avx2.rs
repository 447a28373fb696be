//! Two registers of 256 bits, for processors of about 2013 and later.

use std::arch::x86_64::{__m256, __m256i};

use pulp::{NullaryFnOnce, cast, x86::V3};

use super::{LANES, LINE, Simd, Work, narrow, widen};

#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(V3);

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        V3::try_new().map(Self)
    }
}

struct Call<W>(Avx2, W);

impl<W: Work> NullaryFnOnce for Call<W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.1.run(self.0)
    }
}

impl Simd for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    const OFFSET: i32 = 0;
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorise<W: Work>(self, work: W) -> W::Output {
        self.0.vectorize(Call(self, work))
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; LINE]) -> Self::Bytes {
        cast(*bytes)
    }

    #[inline(always)]
    fn bits<const FROM: u32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        let (avx, avx2) = (self.0.avx, self.0.avx2);
        let mask = avx._mm256_set1_epi8(mask as i8);
        let count = self.0.sse2._mm_cvtsi32_si128(FROM as i32);
        bytes.map(|bytes| avx2._mm256_and_si256(avx2._mm256_srl_epi16(bytes, count), mask))
    }

    #[inline(always)]
    fn join<const TO: u32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes {
        let avx2 = self.0.avx2;
        let count = self.0.sse2._mm_cvtsi32_si128(TO as i32);
        std::array::from_fn(|i| avx2._mm256_or_si256(low[i], avx2._mm256_sll_epi16(high[i], count)))
    }

    #[inline(always)]
    fn signed(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        [self.0.avx._mm256_set1_epi32(value); 2]
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, sums: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints {
        let avx2 = self.0.avx2;
        let (by, one) = (self.0.avx._mm256_set1_epi32(by), self.0.avx._mm256_set1_epi16(1));
        std::array::from_fn(|i| {
            // The first factor has no sign: it is given to the second. Two products are at most 2 · 128 · 127, which fits.
            let pairs = if SIGNED {
                avx2._mm256_maddubs_epi16(avx2._mm256_abs_epi8(bytes[i]), avx2._mm256_sign_epi8(by, bytes[i]))
            } else {
                avx2._mm256_maddubs_epi16(bytes[i], by)
            };
            avx2._mm256_add_epi32(sums[i], avx2._mm256_madd_epi16(pairs, one))
        })
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|ints| self.0.avx._mm256_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        [self.0.avx._mm256_set1_ps(value); 2]
    }

    #[inline(always)]
    fn load(self, floats: &[f32; LANES]) -> Self::Floats {
        cast(*floats)
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        cast(widen(bytes))
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; LANES]) -> Self::Floats {
        cast(bytes.map(f32::from))
    }

    #[inline(always)]
    fn with_sign(self, bytes: &[u8; LANES]) -> Self::Floats {
        cast(bytes.map(|byte| f32::from(byte as i8)))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| self.0.avx._mm256_mul_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| self.0.fma._mm256_fmadd_ps(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; LANES] {
        cast(floats)
    }

    #[inline(always)]
    fn to_halves(self, floats: Self::Floats) -> [u16; LANES] {
        narrow(cast(floats))
    }
}
