//! What a run takes in memory, estimated before it begins.

use crate::decoder::config::DecoderConfig;

use super::settings::TrainSettings;

/// What is known of a run before it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// The weights, in bytes.
    pub(super) base: u64,
    /// Numbers that are trained.
    pub(super) trained: u64,
    /// Tokens of the largest batch, and of the longest text.
    pub(super) rows: u64,
    pub(super) longest: u64,
}

/// Bytes that the run takes at most.
///
/// Beside the weights these are: for each number trained itself, its two moments, its gradient, what gradients are added up in and, where
/// some lessons are held out, the best so far; for each token what layers keep for their way back; and a portion of logits with its
/// gradient. What a layer keeps was counted over the operators that it is made of.
pub(super) fn needed(config: &DecoderConfig, settings: &TrainSettings, demand: Demand) -> u64 {
    let Demand { base, trained, rows, longest } = demand;
    let copies = 5 + u64::from(settings.hold_out > 0.0);
    // Where all weights are trained they are in the base's bytes already.
    let state = 4 * trained * (copies - u64::from(settings.lora.is_none()));
    let wide = |size: usize| size as u64;
    let (hidden, inner) = (wide(config.hidden), wide(config.intermediate));
    let heads = wide(config.query_size()) + 2 * wide(config.key_value_size());
    let kept = 16 * hidden + 10 * heads + 12 * inner + 5 * wide(config.heads) * longest;
    let layers = wide(config.layers());
    // The way back through one layer takes as much again.
    let rows = 4 * rows * if settings.recompute { 2 * kept + layers * hidden } else { (layers + 1) * kept };
    let logits = 4 * 4 * (8u64 << 20).max(wide(config.vocabulary));
    base + state + rows + logits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decoder::{config::tiny, training::settings::tests::settings};

    #[test]
    fn more_of_anything_needs_more_and_recomputing_needs_less() {
        let config = tiny();
        let of = |method: &str, recompute: bool, demand| {
            needed(&config, &settings(method, &json!({ "recompute": recompute })).unwrap(), demand)
        };
        let some = Demand { base: 1 << 20, trained: 1 << 16, rows: 512, longest: 128 };
        let plain = of("decoder-lora", false, some);
        assert!(of("decoder-lora", true, some) < plain);
        for more in [
            Demand { base: some.base + 1, ..some },
            Demand { trained: some.trained + 1, ..some },
            Demand { rows: some.rows + 1, ..some },
            Demand { longest: some.longest + 1, ..some },
        ] {
            assert!(of("decoder-lora", false, more) > plain, "{more:?}");
        }
        assert!(plain > some.base && plain < 1 << 30);
    }
}
