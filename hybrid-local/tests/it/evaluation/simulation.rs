//! How often the verdict is wrong where the truth is known.

use hybrid_core::Verdict;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{Table, golden, report};

const CASES: usize = 400;

struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut bytes = [9; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(ChaCha8Rng::from_seed(bytes))
    }

    /// One answer, wrong or not, for each case.
    fn wrong(&mut self, share: impl Fn(usize) -> f64) -> Vec<bool> {
        (0..CASES).map(|i| (self.0.next_u64() as f64 / u64::MAX as f64) < share(i)).collect()
    }
}

/// Two versions that err on a tenth of the cases together and on some each for itself, as versions of one model do.
fn pair(dice: &mut Dice, candidate: impl Fn(usize) -> f64, incumbent: impl Fn(usize) -> f64) -> (Table, Table) {
    let hard = dice.wrong(|_| 0.1);
    let (new, old) = (dice.wrong(candidate), dice.wrong(incumbent));
    (Table::wrong_on("new", CASES, |i| hard[i] || new[i]), Table::wrong_on("old", CASES, |i| hard[i] || old[i]))
}

struct Counts {
    promoted: usize,
    refused: usize,
}

async fn run(rounds: u64, candidate: impl Fn(usize) -> f64, incumbent: impl Fn(usize) -> f64) -> Counts {
    let golden = golden(CASES);
    let mut counts = Counts { promoted: 0, refused: 0 };
    for seed in 0..rounds {
        let (new, old) = pair(&mut Dice::new(seed), &candidate, &incumbent);
        match report(&golden, &new, Some(&old)).await.verdict {
            Verdict::Promote => counts.promoted += 1,
            Verdict::Refuse(_) => counts.refused += 1,
            _ => {}
        }
    }
    counts
}

#[tokio::test]
async fn an_equal_candidate_is_refused_in_at_most_one_of_twenty_evaluations() {
    let counts = run(500, |_| 0.08, |_| 0.08).await;
    // Half of α for all cases together and half of α for the slices are the bound: 5 % of 500.
    assert!(counts.refused <= 25, "{} refused", counts.refused);
    // Half of α: 12.5 of 500, with room for chance.
    assert!(counts.promoted <= 20, "{} promoted", counts.promoted);
    // The test is not so cautious that it never speaks.
    assert!(counts.refused + counts.promoted >= 5, "{} and {}", counts.refused, counts.promoted);
}

#[tokio::test]
async fn a_candidate_that_is_better_by_six_points_is_promoted_most_times() {
    let counts = run(100, |_| 0.03, |_| 0.10).await;
    assert!(counts.promoted >= 85 && counts.refused <= 1, "{} promoted, {} refused", counts.promoted, counts.refused);
}

#[tokio::test]
async fn a_candidate_that_forgets_one_label_is_refused_though_it_is_better_elsewhere() {
    let counts = run(100, |i| if i % 4 == 0 { 0.3 } else { 0.01 }, |i| if i % 4 == 0 { 0.05 } else { 0.15 }).await;
    assert!(counts.refused >= 97, "{} refused, {} promoted", counts.refused, counts.promoted);
}
