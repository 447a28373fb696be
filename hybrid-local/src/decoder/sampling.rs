//! Drawing the next token from the logits.
//!
//! In this order: penalties and biases on the logits, then the temperature, the `top_k` likeliest, the likeliest that make up `top_p`, and
//! those at least `min_p` times as likely as the likeliest.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use hybrid_core::{Error, Hasher, Result, task::Sampling};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::defaults::Defaults;

/// How one answer's tokens are drawn.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    repetition_penalty: f32,
    bias: BTreeMap<u32, f32>,
    /// Tokens that were read or written; the number says how often they were written.
    seen: HashMap<u32, u32>,
    random: ChaCha8Rng,
}

/// A token's chance before anything was taken off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chance {
    pub(super) token: u32,
    /// The natural logarithm of its probability.
    pub(super) logprob: f32,
}

impl Sampler {
    /// A sampler for the answer number `choice` to a prompt; what the request leaves open the model decides.
    pub(super) fn new(sampling: &Sampling, defaults: &Defaults, prompt: &[u32], seed: u64, choice: u32) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(b"decoder");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&choice.to_le_bytes());
        let repetition_penalty = sampling.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
        let read = if repetition_penalty == 1.0 { &[] } else { prompt };
        Self {
            temperature: sampling.temperature.unwrap_or(defaults.temperature),
            top_k: sampling.top_k.or(defaults.top_k).map_or(usize::MAX, |k| k as usize),
            top_p: sampling.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: sampling.min_p.or(defaults.min_p).unwrap_or(0.0),
            frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0),
            presence_penalty: sampling.presence_penalty.unwrap_or(0.0),
            repetition_penalty,
            bias: sampling.logit_bias.clone(),
            seen: read.iter().map(|token| (*token, 0)).collect(),
            random: ChaCha8Rng::from_seed(*hasher.finish().as_bytes()),
        }
    }

    /// Draws a token; the logits are changed on the way. `constrain` takes out those that may not come, whatever speaks for them.
    ///
    /// # Errors
    /// `Internal` if a logit is no finite number; those of `constrain`.
    pub(super) fn draw(&mut self, logits: &mut [f32], constrain: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<u32> {
        check(logits)?;
        self.penalise(logits);
        constrain(logits)?;
        let token = if self.temperature == 0.0 { likeliest(logits) } else { self.at_random(logits) };
        *self.seen.entry(token).or_default() += 1;
        Ok(token)
    }

    fn penalise(&self, logits: &mut [f32]) {
        for (token, written) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            let penalty = self.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            if *written > 0 {
                *logit -= self.presence_penalty + *written as f32 * self.frequency_penalty;
            }
        }
        for (token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    fn at_random(&mut self, logits: &[f32]) -> u32 {
        let best = logits[likeliest(logits) as usize];
        // A share of the best token's probability; what is below the least normal number is never drawn.
        let weight = |logit: f32| f64::from((logit - best) / self.temperature).exp();
        let all = (0..).zip(logits).map(|(token, logit)| (token, weight(*logit)));
        let mut tokens: Vec<(u32, f64)> =
            all.filter(|(_, weight)| *weight >= f64::from(self.min_p).max(1e-30)).collect();
        let order = |one: &(u32, f64), other: &(u32, f64)| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0));
        if self.top_k < tokens.len() {
            tokens.select_nth_unstable_by(self.top_k, order);
            tokens.truncate(self.top_k);
            tokens.sort_unstable_by(order);
        }
        let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            keep_likeliest(&mut tokens, f64::from(self.top_p) * total, order);
        }
        let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut at = total * ((self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64);
        for (token, weight) in &tokens {
            at -= weight;
            if at < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a last bit; the likeliest token is never wrong.
        likeliest(logits)
    }
}

/// Keeps the likeliest tokens, as few as have weights of at least `share` together. Seldom are those many, so that few need be sorted.
fn keep_likeliest(tokens: &mut Vec<(u32, f64)>, share: f64, order: impl Fn(&(u32, f64), &(u32, f64)) -> Ordering) {
    let mut sorted = 64;
    loop {
        let all = sorted >= tokens.len();
        if !all {
            tokens.select_nth_unstable_by(sorted, &order);
        }
        let likeliest = if all { &mut tokens[..] } else { &mut tokens[..sorted] };
        likeliest.sort_unstable_by(&order);
        let mut sum = 0.0;
        let last = likeliest.iter().position(|(_, weight)| {
            sum += weight;
            sum >= share
        });
        match last {
            Some(last) => return tokens.truncate(last + 1),
            None if all => return,
            None => sorted *= 8,
        }
    }
}

/// The chances of `token` and of the `top` likeliest, likeliest first.
pub(super) fn chances(logits: &[f32], token: u32, top: usize) -> (Chance, Vec<Chance>) {
    let best = logits[likeliest(logits) as usize];
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - best).exp()).sum();
    // Rounding may give a sure token a little more than certainty.
    let chance =
        |token: u32| Chance { token, logprob: ((f64::from(logits[token as usize] - best) - sum.ln()) as f32).min(0.0) };
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |one: &u32, other: &u32| logits[*other as usize].total_cmp(&logits[*one as usize]).then(one.cmp(other));
    if top < tokens.len() {
        tokens.select_nth_unstable_by(top, order);
        tokens.truncate(top);
    }
    tokens.sort_unstable_by(order);
    (chance(token), tokens.into_iter().map(chance).collect())
}

fn check(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        None if !logits.is_empty() => Ok(()),
        at => Err(Error::internal(
            "draw token",
            "the network's logits are no finite numbers; its weights are damaged or overflow",
        )
        .with("token", format_args!("{at:?}"))),
    }
}

/// The first of the likeliest tokens.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(&sampling, &Defaults::default(), &[0], 7, 0)
    }

    /// How often each token is drawn in a thousand times.
    fn drawn(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = sampler(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..1_000 {
            counts[sampler.draw(&mut logits.to_vec(), |_| Ok(())).unwrap() as usize] += 1;
            sampler.seen.clear();
        }
        counts
    }

    /// Logits of the chances 0.5, 0.3, 0.15 and 0.05.
    fn logits() -> Vec<f32> {
        [0.5f32, 0.3, 0.15, 0.05].map(f32::ln).into()
    }

    #[test]
    fn without_temperature_the_likeliest_token_is_taken() {
        assert_eq!(drawn(Sampling::default(), &[0.0, 2.0, 2.0, -1.0]), [0, 1_000, 0, 0]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let warm = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling { temperature: Some(1.0), ..Sampling::default() };
            change(&mut sampling);
            drawn(sampling, &logits())
        };
        let near = |counts: Vec<usize>, shares: [f64; 4]| {
            for (count, share) in counts.iter().zip(shares) {
                assert!((*count as f64 / 1_000.0 - share).abs() < 0.05, "{counts:?} {shares:?}");
                assert!(share > 0.0 || *count == 0, "{counts:?} {shares:?}");
            }
        };
        near(warm(|_| {}), [0.5, 0.3, 0.15, 0.05]);
        near(warm(|s| s.temperature = Some(0.5)), [0.685, 0.247, 0.062, 0.007]);
        near(warm(|s| s.top_k = Some(2)), [0.625, 0.375, 0.0, 0.0]);
        near(warm(|s| s.top_p = Some(0.9)), [0.526, 0.316, 0.158, 0.0]);
        near(warm(|s| (s.top_k, s.top_p) = (Some(3), Some(0.5))), [1.0, 0.0, 0.0, 0.0]);
        near(warm(|s| s.top_p = Some(0.0)), [1.0, 0.0, 0.0, 0.0]);
        near(warm(|s| s.min_p = Some(0.5)), [0.625, 0.375, 0.0, 0.0]);
        near(warm(|s| s.logit_bias = [(3, 50.0)].into()), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn what_was_written_is_penalised_and_what_was_read_only_by_the_repetition_penalty() {
        let after = |sampling: Sampling, logits: &[f32]| {
            let mut sampler = sampler(sampling);
            sampler.seen.insert(1, 2);
            let mut logits = logits.to_vec();
            sampler.penalise(&mut logits);
            logits
        };
        let repetition = Sampling { repetition_penalty: Some(2.0), ..Sampling::default() };
        assert_eq!(after(repetition, &[1.0, -1.0, 1.0]), [0.5, -2.0, 1.0]);
        let both = Sampling { presence_penalty: Some(0.5), frequency_penalty: Some(0.25), ..Sampling::default() };
        assert_eq!(after(both, &[1.0, 1.0, 1.0]), [1.0, 0.0, 1.0]);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_each_answer_its_own() {
        let draw = |seed, choice| {
            let sampling = Sampling { temperature: Some(1.0), ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling, &Defaults::default(), &[], seed, choice);
            (0..40).map(|_| sampler.draw(&mut logits(), |_| Ok(())).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn logits_that_are_no_numbers_are_told() {
        for bad in [&[1.0, f32::NAN][..], &[f32::INFINITY], &[]] {
            assert!(sampler(Sampling::default()).draw(&mut bad.to_vec(), |_| Ok(())).is_err());
        }
    }

    #[test]
    fn the_likeliest_are_the_same_however_many_there_are() {
        let logits: Vec<f32> = (0..3_000).map(|i| (i * 7_919 % 3_000) as f32 / 1_500.0).collect();
        for top_p in [0.0, 0.01, 0.2, 0.9, 0.999] {
            let drawn = |constrain: fn(&mut [f32])| {
                let mut sampler =
                    sampler(Sampling { temperature: Some(1.0), top_p: Some(top_p), ..Sampling::default() });
                let draw = |logits: &mut [f32]| {
                    constrain(logits);
                    Ok(())
                };
                (0..300).map(|_| sampler.draw(&mut logits.clone(), draw).unwrap()).collect::<Vec<_>>()
            };
            let mut weights: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
            weights.sort_by(|one, other| other.total_cmp(one));
            let (mut sum, share) = (0.0, f64::from(top_p) * weights.iter().sum::<f64>());
            let least = weights.iter().find(|weight| {
                sum += **weight;
                sum >= share
            });
            let least = least.unwrap() * (1.0 - 1e-6);
            let all = drawn(|_| {});
            assert!(all.iter().all(|token| f64::from(logits[*token as usize]).exp() >= least), "{top_p}");
            assert!(drawn(|logits| logits[500..].fill(f32::NEG_INFINITY)).iter().all(|token| *token < 500));
        }
    }

    #[test]
    fn chances_are_logarithms_of_probabilities() {
        let (own, top) = chances(&logits(), 2, 2);
        assert!((own.logprob - 0.15f32.ln()).abs() < 1e-5);
        assert_eq!(top.iter().map(|chance| chance.token).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(chances(&[1e4, -1e4], 0, 0).0.logprob, 0.0);
    }
}
