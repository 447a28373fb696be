//! What a run takes in memory, estimated before it begins.

use crate::decoder::config::DecoderConfig;

use super::settings::TrainSettings;

/// What is known of a run before it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// The weights, in bytes.
    pub(super) base: u64,
    /// What the way back has of one matrix in single precision, in bytes.
    pub(super) unpacked: u64,
    /// Numbers that are trained.
    pub(super) trained: u64,
    /// Tokens of the largest batch, and of the longest text.
    pub(super) rows: u64,
    pub(super) longest: u64,
    /// Whether passes are on tapes.
    pub(super) taped: bool,
}

/// Logits that are in memory at a time, if one row has no more.
pub(super) const LOGITS: u64 = 8 << 20;
/// What a process has beside all that grows: its program, the tokenizer, what products lay out for themselves, and what the allocator holds back.
const PROCESS: u64 = 96 << 20;

/// Bytes that the run takes at most.
///
/// Beside the weights these are: of those in blocks one matrix as it is unpacked; for each number trained itself, its two moments and its gradient, where some lessons are held out the best
/// so far, and what a checkpoint is written of; for each token what layers keep for their way back; and a portion of logits. The tests in
/// `footprint` hold it against processes that train.
pub(super) fn needed(config: &DecoderConfig, settings: &TrainSettings, demand: Demand) -> u64 {
    let Demand { base, unpacked, trained, rows, longest, taped } = demand;
    let held_out = u64::from(settings.hold_out > 0.0);
    // Where all weights are trained they are in the base's bytes already; gradients that are not added up in place are there twice.
    let copies = 3 + u64::from(settings.lora.is_some()) + u64::from(!taped) + held_out;
    // A checkpoint is a copy of values, moments and the best, and the bytes of its file.
    let checkpoint = 2 * (3 + held_out);
    let state = 4 * trained * (copies + checkpoint);
    let kept = if taped { kept_on_tape(config, settings) } else { kept(config, longest) };
    let (layers, hidden) = (config.layers() as u64, config.hidden as u64);
    // The way back through one layer takes as much again.
    let rows_bytes = 4 * rows * if settings.recompute { 2 * kept + layers * hidden } else { (layers + 1) * kept };
    // Buffers that are used again may be larger than what is in them by a quarter.
    let rows_bytes = rows_bytes / 4 * if taped { 5 } else { 4 };
    let vocabulary = config.vocabulary as u64;
    let portion = rows.min((LOGITS / vocabulary.max(1)).max(1)) * vocabulary;
    let logits = 4 * portion * if taped { 1 } else { 4 };
    PROCESS + base + unpacked + state + rows_bytes + logits
}

/// Numbers that a layer keeps for each token: what products, norms, attention and gate read on their way back.
fn kept_on_tape(config: &DecoderConfig, settings: &TrainSettings) -> u64 {
    let wide = |size: usize| size as u64;
    let (hidden, inner) = (wide(config.hidden), wide(config.intermediate));
    let (queries, keys) = (wide(config.query_size()), wide(config.key_value_size()));
    let norms = if config.head_norms { queries + keys } else { 0 } + if config.post_norms { 2 * hidden } else { 0 };
    let narrow = settings.lora.as_ref().map_or(0, |lora| wide(lora.rank * lora.modules.len()));
    let dropped = if settings.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0) { 6 * hidden + inner } else { 0 };
    4 * hidden + 2 * queries + 2 * keys + 3 * inner + norms + narrow + dropped
}

/// Bytes that all layers keep for the way back of `rows` tokens through the tensor library's operators, in texts of at most `longest`; the way back
/// through one layer takes as much again.
pub(in crate::decoder) fn activation_bytes(config: &DecoderConfig, rows: u64, longest: u64) -> u64 {
    4 * rows * (config.layers() as u64 + 1) * kept(config, longest)
}

/// The same of the tensor library's operators, counted over those that a layer is made of.
fn kept(config: &DecoderConfig, longest: u64) -> u64 {
    let wide = |size: usize| size as u64;
    let heads = wide(config.query_size()) + 2 * wide(config.key_value_size());
    16 * wide(config.hidden) + 10 * heads + 12 * wide(config.intermediate) + 5 * wide(config.heads) * longest
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
        let some = Demand { base: 1 << 20, unpacked: 1 << 16, trained: 1 << 16, rows: 512, longest: 128, taped: false };
        let plain = of("decoder-lora", false, some);
        assert!(of("decoder-lora", true, some) < plain);
        for more in [
            Demand { base: some.base + 1, ..some },
            Demand { unpacked: some.unpacked + 1, ..some },
            Demand { trained: some.trained + 1, ..some },
            Demand { rows: some.rows + 1, ..some },
            Demand { longest: some.longest + 1, ..some },
        ] {
            let on_tape = |demand: Demand| of("decoder-lora", false, Demand { taped: true, ..demand });
            assert!(on_tape(more) >= on_tape(some), "{more:?}");
            assert!(of("decoder-lora", false, more) > plain, "{more:?}");
        }
        assert!(plain > some.base && plain < 1 << 30);
        assert!(of("decoder-lora", false, Demand { taped: true, ..some }) < plain);
    }
}
