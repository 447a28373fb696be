//! The pass of training on the processor: the layers of serving on a tape, which knows the way back.

use candle_core::{Device, Result};

use super::{Adaptable, Network, Norm, Pass, Seen};
use crate::{
    decoder::{
        adapter::Worn,
        config::{Activation, DecoderConfig},
    },
    ops::{
        Causal, Gating,
        tape::{Slopes, Tape, Value},
    },
};

impl Network {
    /// Whether tapes know all operators of such a network: on the processor, without caps of scores and logits.
    pub(in crate::decoder) fn is_taped(config: &DecoderConfig, device: &Device) -> bool {
        device.is_cpu() && config.score_cap.is_none() && config.logit_cap.is_none()
    }

    /// What comes out of layer `at`, `[rows, hidden]`, of a pass over whole sequences.
    pub(in crate::decoder) fn layer_on(&self, tape: &mut Tape, at: usize, x: &Value, pass: &Pass<'_>) -> Result<Value> {
        let (Some(layer), Seen::Whole(sequences)) = (self.layers.get(at), &pass.seen) else {
            candle_core::bail!("the network has no layer {at}, or the pass is none over whole sequences");
        };
        let worn = pass.worn.first();
        let (heads, key_heads, window) = (self.config.heads, self.config.key_value_heads, self.config.windows[at]);
        let (turns, size) = (pass.turns.of(window), self.config.head_size);

        let normed = layer.attention_norm.on(tape, x)?;
        let mut queries = layer.query.on(tape, &normed, worn)?;
        let mut keys = layer.key.on(tape, &normed, worn)?;
        let values = layer.value.on(tape, &normed, worn)?;
        drop(normed);
        if let Some([of_queries, of_keys]) = &layer.head_norms {
            queries = of_queries.on(tape, &queries.in_columns(size))?.in_columns(heads * size);
            keys = of_keys.on(tape, &keys.in_columns(size))?.in_columns(key_heads * size);
        }
        let queries = tape.turn(queries, turns, heads)?;
        let keys = tape.turn(keys, turns, key_heads)?;
        let scale = self.config.query_scale as f32;
        let causal = Causal { spans: sequences.spans.clone(), heads, key_heads, scale, window };
        let attended = tape.attend([queries, keys, values], causal);
        let mut attended = layer.output.on(tape, &attended, worn)?;
        if let Some([norm, _]) = &layer.post_norms {
            attended = norm.on(tape, &attended)?;
        }
        let x = tape.add(x, attended);

        let normed = layer.norm.on(tape, &x)?;
        let gate = layer.gate.on(tape, &normed, worn)?;
        let up = layer.up.on(tape, &normed, worn)?;
        drop(normed);
        let gating = match self.config.activation {
            Activation::Silu => Gating::Silu,
            Activation::Gelu => Gating::Gelu,
        };
        let gated = tape.gate(gate, up, gating);
        let mut fed = layer.down.on(tape, &gated, worn)?;
        drop(gated);
        if let Some([_, norm]) = &layer.post_norms {
            fed = norm.on(tape, &fed)?;
        }
        Ok(tape.add(&x, fed))
    }

    /// The logits of rows that have come out of the last layer, `[rows, vocabulary]`.
    pub(in crate::decoder) fn leave_on(&self, tape: &mut Tape, x: &Value) -> Result<Value> {
        let normed = self.norm.on(tape, x)?;
        self.head.on(tape, &normed, None)
    }

    /// Adds the gradient of what goes into the first layer to that of the embeddings of `tokens`, if these are trained.
    pub(in crate::decoder) fn embed_back(&self, tokens: &[u32], gradient: &[f32], slopes: &mut Slopes) -> Result<()> {
        let Some(table) = self.table.variable() else { return Ok(()) };
        let (hidden, scale) = (self.config.hidden, self.config.embedding_scale as f32);
        slopes.write(table, |out, onto| {
            onto.begin(out);
            for (token, gradient) in tokens.iter().zip(gradient.chunks_exact(hidden)) {
                let row = &mut out[*token as usize * hidden..][..hidden];
                row.iter_mut().zip(gradient).for_each(|(row, gradient)| *row += gradient * scale);
            }
        })
    }

    /// Whether the embeddings are trained.
    pub(in crate::decoder) fn embeddings_are_trained(&self) -> bool {
        self.table.variable().is_some()
    }
}

impl Adaptable {
    fn on(&self, tape: &mut Tape, x: &Value, worn: Option<&Worn<'_>>) -> Result<Value> {
        let beside = worn.and_then(|worn| worn.low_rank(self.place, x.values().len()));
        self.linear.on(tape, x, beside)
    }
}

impl Norm {
    fn on(&self, tape: &mut Tape, x: &Value) -> Result<Value> {
        tape.norm(x, &self.scale, self.offset as f32, self.epsilon as f32)
    }
}
