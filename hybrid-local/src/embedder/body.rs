//! The network of an embedder, of whatever kind, behind one face.

use candle_core::Tensor;
use hybrid_core::Result;

use super::modern::Modern;
use crate::{
    Device,
    decoder::States,
    device::tensor_error,
    encoder::{Batch, Encoder, Pooling, Portions, in_portions},
    ops::Spans,
};

const OPERATION: &str = "embed";

/// What turns tokens into rows.
#[derive(Debug)]
pub(super) enum Body {
    Encoder { encoder: Box<Encoder>, first_position: usize, device: Device },
    Modern(Box<Modern>),
    Decoder(Box<States>),
}

impl Body {
    /// Columns of a row.
    pub(super) fn hidden(&self) -> usize {
        match self {
            Self::Encoder { encoder, .. } => encoder.config().hidden,
            Self::Modern(network) => network.hidden(),
            Self::Decoder(states) => states.hidden(),
        }
    }

    /// A vector for each text, in their order. `check` is asked between portions whether to go on.
    pub(super) fn vectors(
        &self,
        texts: &[Vec<u32>],
        pooling: Pooling,
        check: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<Vec<Vec<f32>>> {
        let fail = tensor_error(OPERATION);
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let portions = match self {
            Self::Encoder { device, .. } => Portions::of(device),
            Self::Modern(network) => Portions::of(network.device()),
            // It makes passes of its own.
            Self::Decoder(_) => Portions::OneAfterAnother,
        };
        in_portions(&lengths, portions, |portion| {
            check()?;
            let texts: Vec<&[u32]> = portion.iter().map(|&text| texts[text].as_slice()).collect();
            let rows: Tensor = match self {
                Self::Encoder { encoder, first_position, device } => {
                    let batch = Batch::of(&texts, *first_position, device.tensors()).map_err(fail)?;
                    encoder.hidden(&batch, &mut None).map_err(fail)?
                }
                Self::Modern(network) => network.rows(&texts).map_err(fail)?,
                Self::Decoder(states) => states.read(&texts, check)?,
            };
            let spans = Spans::of(texts.iter().map(|text| text.len()));
            pooling.of(&rows, &spans).and_then(|pooled| pooled.detach().to_vec2()).map_err(fail)
        })
    }
}
