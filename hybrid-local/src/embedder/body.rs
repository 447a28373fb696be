//! The network of an embedder, of whatever kind, behind one face.

use candle_core::Tensor;
use hybrid_core::Result;

use crate::{
    Device,
    decoder::States,
    device::tensor_error,
    encoder::{Batch, Encoder, Pooling},
    ops::Spans,
};

const OPERATION: &str = "embed";
/// Tokens of several texts that are worked on at a time: their activations fit into a processor's cache.
const PORTION: usize = 2_048;

/// What turns tokens into rows.
#[derive(Debug)]
pub(super) enum Body {
    Encoder { encoder: Box<Encoder>, first_position: usize, device: Device },
    Decoder(Box<States>),
}

impl Body {
    /// Columns of a row.
    pub(super) fn hidden(&self) -> usize {
        match self {
            Self::Encoder { encoder, .. } => encoder.config().hidden,
            Self::Decoder(states) => states.hidden(),
        }
    }

    /// A vector for each text, in their order. `check` is asked between portions whether to go on.
    ///
    /// Texts of nearly the same length are read together, the longest first, so that the most memory is taken at once or never.
    pub(super) fn vectors(
        &self,
        texts: &[Vec<u32>],
        pooling: Pooling,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| std::cmp::Reverse(texts[text].len()));
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut from = 0;
        while from < order.len() {
            check()?;
            let (mut to, mut tokens) = (from, 0);
            while to < order.len() && (to == from || tokens + texts[order[to]].len() <= PORTION) {
                tokens += texts[order[to]].len();
                to += 1;
            }
            let portion: Vec<&[u32]> = order[from..to].iter().map(|&text| texts[text].as_slice()).collect();
            let pooled = self.pooled(&portion, pooling, check)?;
            for (&text, vector) in order[from..to].iter().zip(pooled) {
                vectors[text] = vector;
            }
            from = to;
        }
        Ok(vectors)
    }

    fn pooled(&self, texts: &[&[u32]], pooling: Pooling, check: &dyn Fn() -> Result<()>) -> Result<Vec<Vec<f32>>> {
        let fail = tensor_error(OPERATION);
        let rows: Tensor = match self {
            Self::Encoder { encoder, first_position, device } => {
                let batch = Batch::of(texts, *first_position, device.tensors()).map_err(fail)?;
                encoder.hidden(&batch, &mut None).map_err(fail)?
            }
            Self::Decoder(states) => states.read(texts, check)?,
        };
        let spans = Spans::of(texts.iter().map(|text| text.len()));
        pooling.of(&rows, &spans).and_then(|pooled| pooled.detach().to_vec2()).map_err(fail)
    }
}
