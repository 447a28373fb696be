//! What a call may use, guessed before it begins.

use std::io;

use hybrid_core::{
    BackendProfile, Error, Limits, Money, Price, Result, Task, Usage,
    task::{Chat, Classify, Embed, GenerateImage, MediaSource, Transcribe},
};
use serde::Serialize;

/// Tokens that a provider adds around what is sent: templates, tool instructions.
const TEMPLATE_TOKENS: u64 = 512;
/// What an answer may have where neither the request nor the backend says.
const OUTPUT_TOKENS: u64 = 8192;
/// Bytes of a second of audio at the lowest rate that speech is sent with: Opus at 8 kbit/s.
const AUDIO_BYTES: u64 = 1000;
/// Tokens of a second of audio, for backends that count it so.
const AUDIO_TOKENS: u64 = 50;
/// What audio somewhere else may last, in seconds.
const REMOTE_AUDIO: u64 = 3600;
/// Tokens of an image, for backends that count it so.
const IMAGE_TOKENS: u64 = 8192;

/// What a call may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// The tokens that it is likely to use, for the rate.
    pub(crate) tokens: u64,
    /// The most that it can cost, for the budget; `None` where nothing is charged.
    pub(crate) cost: Option<Money>,
}

impl Estimate {
    /// What `request` may use of a backend with `profile`.
    ///
    /// A token has at least one byte, so the bytes of a text bound its tokens; a quarter of them is likely.
    pub(crate) fn of<T: Estimated>(request: &T::Request, profile: &BackendProfile) -> Result<Self> {
        let bound = T::bound(request, &profile.limits);
        let tokens = (bound.input_tokens / 4).saturating_add(bound.output_tokens);
        let cost = profile.price.as_ref().map(|price| most(price, &bound)).transpose()?;
        Ok(Self { tokens, cost })
    }
}

/// The price of `bound` whether its input is fresh or goes into a cache.
fn most(price: &Price, bound: &Usage) -> Result<Money> {
    let cached = Usage { cache_write_tokens: bound.input_tokens, input_tokens: 0, ..bound.clone() };
    let (fresh, cached) = (price.of(bound)?, price.of(&cached)?);
    if fresh.currency != cached.currency {
        return Err(Error::internal("estimate cost", "a price has two currencies"));
    }
    Ok(if fresh.pico < cached.pico { cached } else { fresh })
}

/// A task whose calls can be estimated.
pub(crate) trait Estimated: Task {
    /// The most that `request` can use of a backend with `limits`.
    fn bound(request: &Self::Request, limits: &Limits) -> Usage;
}

/// The most input tokens that something can have.
fn input(request: &impl Serialize, limits: &Limits) -> u64 {
    written(request).saturating_add(TEMPLATE_TOKENS).min(limits.input_tokens.unwrap_or(u64::MAX))
}

/// The length of a value's JSON, in bytes.
fn written(value: &impl Serialize) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written is as large as can be.
    serde_json::to_writer(&mut count, value).map_or(u64::MAX, |()| count.0)
}

impl Estimated for Chat {
    fn bound(request: &Self::Request, limits: &Limits) -> Usage {
        let asked = request.sampling.max_tokens.map(u64::from);
        let output = asked.unwrap_or(u64::MAX).min(limits.output_tokens.unwrap_or(asked.unwrap_or(OUTPUT_TOKENS)));
        let answers = u64::from(request.sampling.n.unwrap_or(1).max(1));
        Usage {
            input_tokens: input(request, limits),
            output_tokens: output.saturating_mul(answers),
            ..Usage::default()
        }
    }
}

impl Estimated for Classify {
    fn bound(request: &Self::Request, limits: &Limits) -> Usage {
        Usage { input_tokens: input(request, limits), ..Usage::default() }
    }
}

impl Estimated for Embed {
    fn bound(request: &Self::Request, limits: &Limits) -> Usage {
        // The limit is each text's, not the request's.
        let input_tokens = written(request).saturating_add(TEMPLATE_TOKENS);
        let most = limits.input_tokens.unwrap_or(u64::MAX).saturating_mul(request.inputs.len() as u64);
        Usage { input_tokens: input_tokens.min(most), ..Usage::default() }
    }
}

impl Estimated for GenerateImage {
    fn bound(request: &Self::Request, limits: &Limits) -> Usage {
        let images = u64::from(request.n.unwrap_or(1).max(1));
        Usage {
            input_tokens: input(request, limits),
            output_tokens: IMAGE_TOKENS.saturating_mul(images),
            images,
            ..Usage::default()
        }
    }
}

impl Estimated for Transcribe {
    fn bound(request: &Self::Request, _: &Limits) -> Usage {
        let seconds = match &request.audio {
            MediaSource::Bytes(bytes) => (bytes.len() as u64).div_ceil(AUDIO_BYTES),
            _ => REMOTE_AUDIO,
        };
        let tokens = seconds.saturating_mul(AUDIO_TOKENS);
        Usage { input_tokens: tokens, output_tokens: tokens, audio_seconds: seconds as f64, ..Usage::default() }
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::{
        Currency, Locality, ServedModel,
        task::{ChatRequest, ClassifyRequest, Sampling},
    };

    use super::*;

    fn profile(limits: Limits, price: Option<Price>) -> BackendProfile {
        BackendProfile {
            name: "b".to_owned(),
            model: ServedModel::named("m"),
            locality: Locality::Device,
            limits,
            price,
        }
    }

    fn price(input: &str, output: &str) -> Price {
        let usd = |decimal| Money::new(Currency::USD, decimal).unwrap();
        Price {
            input: usd(input),
            output: usd(output),
            cache_read: None,
            cache_write: None,
            audio_second: None,
            image: None,
        }
    }

    #[test]
    fn a_call_is_bounded_by_its_bytes_its_own_limit_and_the_backends() {
        let ask = |max_tokens, n| ChatRequest {
            sampling: Sampling { max_tokens, n, ..Sampling::default() },
            ..ChatRequest::user("x".repeat(10_000))
        };
        let limited = Limits { input_tokens: Some(4_000), output_tokens: Some(500), batch: None };
        for (max_tokens, n, limits, output) in [
            (Some(100), None, Limits::default(), 100),
            (Some(100), Some(3), Limits::default(), 300),
            (None, None, Limits::default(), OUTPUT_TOKENS),
            (None, None, limited.clone(), 500),
            (Some(9_000), None, limited.clone(), 500),
        ] {
            assert_eq!(Chat::bound(&ask(max_tokens, n), &limits).output_tokens, output);
        }
        assert!(Chat::bound(&ask(None, None), &Limits::default()).input_tokens > 10_000);
        assert_eq!(Chat::bound(&ask(None, None), &limited).input_tokens, 4_000);
    }

    #[test]
    fn the_most_a_call_can_cost_counts_the_dearer_kind_of_input() {
        let request = ClassifyRequest::one("x".repeat(1_000_000));
        let cost = |price| Estimate::of::<Classify>(&request, &profile(Limits::default(), price)).unwrap().cost;
        assert_eq!(cost(None), None);
        let plain = cost(Some(price("1", "0"))).unwrap();
        assert!(plain.pico >= 1_000_000_000_000 && plain.pico < 1_010_000_000_000, "{plain}");
        let dearer = Price { cache_write: Money::new(Currency::USD, "2").ok(), ..price("1", "0") };
        assert_eq!(cost(Some(dearer)).unwrap().pico, 2 * plain.pico);
        assert!(
            Estimate::of::<Classify>(
                &request,
                &profile(Limits::default(), Some(Price { output: Money::zero(Currency::EUR), ..price("1", "0") }))
            )
            .is_err()
        );
    }
}
