//! What products need of a processor: sixteen lanes of a float or of four bytes each, whatever the registers' width.
//!
//! One text of a kernel serves all processors; sums of whole numbers are the same on all of them, bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::f16;

pub(in crate::ops) use portable::Portable;

/// Lanes of a vector.
pub(in crate::ops) const LANES: usize = 16;
/// Bytes of a vector.
pub(in crate::ops) const LINE: usize = 4 * LANES;

/// Vector instructions; a value of the type is the proof that the processor has them.
pub(in crate::ops) trait Simd: Copy + Send + Sync {
    /// 64 bytes, four to a lane.
    type Bytes: Copy;
    /// Sixteen whole numbers of 32 bits.
    type Ints: Copy;
    /// Sixteen floats of 32 bits.
    type Floats: Copy;

    /// What [`signed`](Self::signed) adds to bytes, because [`dot`](Self::dot) takes its first factor without sign.
    const OFFSET: i32;
    /// Whether there are registers for eight sums of whole numbers and eight of floats.
    const WIDE: bool;

    /// Runs `work` with the instructions.
    fn vectorise<W: Work>(self, work: W) -> W::Output;

    fn bytes(self, bytes: &[u8; LINE]) -> Self::Bytes;
    /// `bytes >> FROM & mask` for each byte; no bits of a neighbour come in if the mask has none of the `FROM` highest.
    fn bits<const FROM: u32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// `low | high << TO` for each byte, of high bytes that have room for it.
    fn join<const TO: u32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// Bytes with a sign as the first factor of a product with `SIGNED`: plus [`OFFSET`](Self::OFFSET), modulo 256.
    fn signed(self, bytes: Self::Bytes) -> Self::Bytes;

    fn ints(self, value: i32) -> Self::Ints;
    /// Adds to each lane the product of its four bytes with the four of `by`, which are -127 to 127, the lowest first. The lanes' are
    /// 0 to 127, or with `SIGNED` what [`signed`](Self::signed) gave.
    fn dot<const SIGNED: bool>(self, sums: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;

    fn floats(self, value: f32) -> Self::Floats;
    fn load(self, floats: &[f32; LANES]) -> Self::Floats;
    /// Half precision, little-endian, finite.
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats;
    fn unsigned(self, bytes: &[u8; LANES]) -> Self::Floats;
    fn with_sign(self, bytes: &[u8; LANES]) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn store(self, floats: Self::Floats) -> [f32; LANES];
    /// The bits of half precision, rounded to the nearest, ties to the even one.
    fn to_halves(self, floats: Self::Floats) -> [u16; LANES];
}

/// Work that is written once for all processors.
pub(in crate::ops) trait Work {
    type Output;

    /// Has to be inlined always, with all that it calls: what is not is compiled without the instructions. A closure cannot promise that.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `work` with the best instructions that the processor has.
pub(in crate::ops) fn dispatch<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = avx512::Avx512::detect() {
            return simd.vectorise(work);
        }
        if let Some(simd) = avx2::Avx2::detect() {
            return simd.vectorise(work);
        }
    }
    Portable.vectorise(work)
}

/// Whether the processor has instructions that are known here by name; elsewhere the tensor library's own products are the faster ones.
pub(in crate::ops) fn is_vectorised() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = avx512::Avx512::detect().is_some() || avx2::Avx2::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

/// Runs `work` with each kind of instructions that this processor has.
#[cfg(test)]
pub(in crate::ops) fn dispatch_each<W: Work + Clone>(work: W) -> Vec<W::Output> {
    let mut outputs = vec![Portable.vectorise(work.clone())];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(avx2::Avx2::detect().map(|simd| simd.vectorise(work.clone())));
        outputs.extend(avx512::Avx512::detect().map(|simd| simd.vectorise(work.clone())));
    }
    outputs
}

/// Rounds to half precision, for processors without an instruction.
#[inline(always)]
fn narrow(floats: [f32; LANES]) -> [u16; LANES] {
    floats.map(|float| f16::from_f32(float).to_bits())
}

/// Half precision in whole numbers alone, for processors without an instruction: exact for all that is finite.
#[inline(always)]
fn widen(bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
    let mut floats = [0f32; LANES];
    for (float, half) in floats.iter_mut().zip(bytes.as_chunks().0) {
        let half = u32::from(u16::from_le_bytes(*half));
        // The exponent's bias is 112 more.
        let magnitude = f32::from_bits((half & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
        *float = f32::from_bits(magnitude.to_bits() | (half & 0x8000) << 16);
    }
    floats
}
