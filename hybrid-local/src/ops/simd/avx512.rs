//! Registers of 512 bits with products of bytes (VNNI): Intel of about 2019 and later, AMD of 2022 and later.

#![allow(
    unsafe_code,
    reason = "no library gives these instructions as safe functions; a value of the type is made only where the processor has all of them"
)]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_and_si512,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_cvtps_ph,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_xor_si512,
};

use super::{LANES, LINE, Simd, Work};

#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

/// Any bits are a value of either type, and their sizes are the same.
macro_rules! cast {
    ($from:ty => $to:ty, $value:expr) => {
        // SAFETY: both are plain bits of one size, which the compiler checks.
        unsafe { std::mem::transmute::<$from, $to>($value) }
    };
}

/// Calls an instruction.
macro_rules! call {
    ($call:expr) => {
        // SAFETY: the processor has the instruction, which `self` proves; it touches registers alone.
        unsafe { $call }
    };
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        all.then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const OFFSET: i32 = 128;
    const WIDE: bool = true;

    #[inline(always)]
    fn vectorise<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        #[inline]
        fn run<W: Work>(simd: Avx512, work: W) -> W::Output {
            work.run(simd)
        }
        call!(run(self, work))
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; LINE]) -> Self::Bytes {
        cast!([u8; LINE] => __m512i, *bytes)
    }

    #[inline(always)]
    fn bits<const FROM: u32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        call!(_mm512_and_si512(_mm512_srli_epi16::<FROM>(bytes), _mm512_set1_epi8(mask as i8)))
    }

    #[inline(always)]
    fn join<const TO: u32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes {
        call!(_mm512_or_si512(low, _mm512_slli_epi16::<TO>(high)))
    }

    #[inline(always)]
    fn signed(self, bytes: Self::Bytes) -> Self::Bytes {
        call!(_mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN)))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        call!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, sums: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints {
        call!(_mm512_dpbusd_epi32(sums, bytes, _mm512_set1_epi32(by)))
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        call!(_mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        call!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, floats: &[f32; LANES]) -> Self::Floats {
        cast!([f32; LANES] => __m512, *floats)
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        let bytes = cast!([u8; 2 * LANES] => __m256i, *bytes);
        call!(_mm512_cvtph_ps(bytes))
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; LANES]) -> Self::Floats {
        let bytes = cast!([u8; LANES] => __m128i, *bytes);
        call!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))
    }

    #[inline(always)]
    fn with_sign(self, bytes: &[u8; LANES]) -> Self::Floats {
        let bytes = cast!([u8; LANES] => __m128i, *bytes);
        call!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        call!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        call!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; LANES] {
        cast!(__m512 => [f32; LANES], floats)
    }

    #[inline(always)]
    fn to_halves(self, floats: Self::Floats) -> [u16; LANES] {
        let halves = call!(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(floats));
        cast!(__m256i => [u16; LANES], halves)
    }
}
