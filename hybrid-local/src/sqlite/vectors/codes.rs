//! Vectors beside one-byte codes of them, and bounds that the codes prove.
//!
//! A vector *x* is kept as is, and as *s·c* with whole numbers *c* between -127 and 127 and one scale *s*; the length of what that leaves over,
//! *r = x - s·c*, is kept too. For a query *q* with code *t·p* and remainder *ρ*, by Cauchy–Schwarz:
//!
//! *|q·x - s·t·(c·p)| ≤ |q||r| + |ρ||s·c|*
//!
//! *c·p* is a product of whole numbers, which compilers turn into vector instructions on every platform, over a quarter of the bytes. The score is what grows as the distance shrinks:
//! *q·x* of unit vectors for cosine, *-|q - x|²* for Euclidean distance. Rounding in single precision is allowed for in the bounds too.

/// Rows of codes that are scored before their bounds are looked at, so that the inner loop does nothing else.
const BLOCK: usize = 64;
/// Partial sums of a product, so that the order of additions leaves room for vector instructions and is the same everywhere.
const LANES: usize = 16;

#[derive(Default)]
pub(super) struct Codes {
    dimension: usize,
    /// For cosine all vectors are brought to length one.
    is_cosine: bool,
    vectors: Vec<f32>,
    codes: Vec<i8>,
    rows: Vec<Row>,
}

/// What is known of a vector beside its code.
#[derive(Clone, Copy)]
struct Row {
    scale: f32,
    /// Its length.
    norm: f32,
    /// The length of what the code leaves over, rounded up.
    remainder: f32,
}

/// A query, ready to be compared.
pub(super) struct Probe {
    vector: Vec<f32>,
    /// As wide as the products need, so that only the other side is widened in the loop.
    code: Vec<i16>,
    row: Row,
}

impl Codes {
    pub(super) fn new(dimension: usize, is_cosine: bool) -> Self {
        Self { dimension, is_cosine, ..Self::default() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.vectors.len() * 4 + self.codes.len() + self.rows.len() * size_of::<Row>()
    }

    pub(super) fn components(&self) -> usize {
        self.vectors.len()
    }

    pub(super) fn push(&mut self, vector: &[f32]) {
        let vector = self.prepare(vector);
        self.rows.push(encode(&vector, |code| self.codes.push(code)));
        self.vectors.extend(vector);
    }

    pub(super) fn replace(&mut self, slot: usize, vector: &[f32]) {
        let vector = self.prepare(vector);
        let range = slot * self.dimension..(slot + 1) * self.dimension;
        let mut codes = self.codes[range.clone()].iter_mut();
        self.rows[slot] = encode(&vector, |code| {
            if let Some(place) = codes.next() {
                *place = code;
            }
        });
        self.vectors[range].copy_from_slice(&vector);
    }

    /// Removes a vector; the last takes its slot.
    pub(super) fn swap_remove(&mut self, slot: usize) {
        self.rows.swap_remove(slot);
        let (last, dimension) = (self.rows.len() * self.dimension, self.dimension);
        self.codes.copy_within(last.., slot * dimension);
        self.codes.truncate(last);
        self.vectors.copy_within(last.., slot * dimension);
        self.vectors.truncate(last);
    }

    pub(super) fn probe(&self, vector: &[f32]) -> Probe {
        let vector = self.prepare(vector);
        let mut code = Vec::with_capacity(vector.len());
        let row = encode(&vector, |part| code.push(i16::from(part)));
        Probe { vector, code, row }
    }

    /// Calls `see` for each slot with a lower and an upper bound of its score.
    pub(super) fn bounds(&self, probe: &Probe, mut see: impl FnMut(usize, f32, f32)) {
        let Row { scale: t, norm: q, remainder: rho } = probe.row;
        // |q·x - fl(q·x)| ≤ n·ε·|q||x| (Higham, Accuracy and Stability of Numerical Algorithms, §3.1), with room for the few operations around it.
        let rounding = (self.dimension + 32) as f32 * f32::EPSILON;
        let mut products = [0; BLOCK];
        for (block, rows) in self.rows.chunks(BLOCK).enumerate() {
            let first = block * BLOCK;
            let codes = self.codes[first * self.dimension..].chunks_exact(self.dimension);
            for (product, code) in products.iter_mut().zip(codes.take(rows.len())) {
                *product = whole_product(&probe.code, code);
            }
            for (i, (row, product)) in rows.iter().zip(products).enumerate() {
                let Row { scale: s, norm: x, remainder: r } = *row;
                let dot = s * t * product as f32;
                let error = q * r + rho * (x + r);
                let (score, error) = if self.is_cosine {
                    (dot, error + rounding * q * x)
                } else {
                    (2.0 * dot - x * x - q * q, 2.0 * error + 2.0 * rounding * (q + x) * (q + x))
                };
                see(first + i, score - error, score + error);
            }
        }
    }

    /// The distance itself.
    pub(super) fn distance(&self, probe: &Probe, slot: usize) -> f32 {
        let vector = &self.vectors[slot * self.dimension..(slot + 1) * self.dimension];
        if self.is_cosine {
            (1.0 - sum(&probe.vector, vector, |a, b| a * b)).max(0.0)
        } else {
            sum(&probe.vector, vector, |a, b| (a - b) * (a - b)).sqrt()
        }
    }

    fn prepare(&self, vector: &[f32]) -> Vec<f32> {
        if !self.is_cosine {
            return vector.to_vec();
        }
        let norm = length(vector.iter().map(|x| f64::from(*x)));
        vector.iter().map(|x| (f64::from(*x) / norm) as f32).collect()
    }
}

/// Gives the code of each component to `take`.
fn encode(vector: &[f32], mut take: impl FnMut(i8)) -> Row {
    let largest = vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // A scale so small that its inverse is infinite codes all as zero; the remainder then is the vector itself.
    let scale = largest / 127.0;
    let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
    let mut left_over = 0.0_f64;
    for x in vector {
        let code = (x * inverse).round().clamp(-127.0, 127.0);
        let remainder = f64::from(*x) - f64::from(code) * f64::from(scale);
        left_over += remainder * remainder;
        take(code as i8);
    }
    let norm = length(vector.iter().map(|x| f64::from(*x)));
    Row { scale, norm: norm as f32, remainder: (left_over.sqrt() * 1.000_001) as f32 }
}

fn length(components: impl Iterator<Item = f64>) -> f64 {
    components.map(|x| x * x).sum::<f64>().sqrt()
}

/// At most 127² · 4096, which is far from the limit of 32 bits.
fn whole_product(a: &[i16], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(*a, *b);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| term(*a, *b)).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Components of all sizes, some exactly zero.
    fn component() -> impl Strategy<Value = f32> {
        prop_oneof![Just(0.0), -1.0_f32..1.0, -1e-6_f32..1e-6, -1e15_f32..1e15, Just(f32::MIN_POSITIVE)]
    }

    fn vectors() -> impl Strategy<Value = Vec<Vec<f32>>> {
        (1_usize..70)
            .prop_flat_map(|dimension| prop::collection::vec(prop::collection::vec(component(), dimension), 2..20))
    }

    proptest! {
        #[test]
        fn a_score_lies_between_its_bounds(vectors in vectors(), is_cosine: bool) {
            let vectors: Vec<_> =
                vectors.into_iter().filter(|vector| !is_cosine || vector.iter().any(|x| *x != 0.0)).collect();
            prop_assume!(vectors.len() > 1);
            let mut codes = Codes::new(vectors[0].len(), is_cosine);
            vectors[1..].iter().for_each(|vector| codes.push(vector));
            let probe = codes.probe(&vectors[0]);
            codes.bounds(&probe, |slot, low, high| {
                let distance = codes.distance(&probe, slot);
                let score = if is_cosine { 1.0 - distance } else { -distance * distance };
                // The square of a square root is off by a rounding of its own.
                let give = 4.0 * f32::EPSILON * score.abs();
                assert!(low - give <= score && score <= high + give, "{score} is not in {low}..{high}");
            });
        }
    }

    #[test]
    fn a_slot_that_is_freed_is_taken_by_the_last() {
        let mut codes = Codes::new(2, false);
        [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]].iter().for_each(|vector| codes.push(vector));
        codes.swap_remove(0);
        codes.replace(1, &[5.0, 0.0]);
        let probe = codes.probe(&[0.0, 0.0]);
        assert_eq!([0, 1].map(|slot| codes.distance(&probe, slot)), [3.0, 5.0]);
        codes.swap_remove(1);
        assert_eq!((codes.components(), codes.codes.len(), codes.rows.len()), (2, 2, 1));
    }
}
