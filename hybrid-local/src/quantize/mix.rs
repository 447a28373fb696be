use std::{fmt, str::FromStr};

use candle_core::quantized::GgmlDType;
use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::decoder::tensors::{Role, TensorSpec};

/// How many bits a model's numbers get: a format for most matrices, and more for those where an error costs most.
///
/// In the mixes `_M`, and in [`Q4_0`](Self::Q4_0) for the first two, embeddings and output layer get `Q6_K`; in the mixes `_M` so do the
/// attention's values and the feed-forward's last matrices in half of the layers, the first eighth, the last eighth and every third between,
/// as llama.cpp chooses them. Norms and biases stay in single precision.
///
/// As text the field's names: `f16`, `q8_0`, `q6_k`, `q5_k_m`, `q4_k_m`, `q4_0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Mix {
    /// Half precision: 16 bits a number.
    F16,
    /// 8.5 bits a number.
    Q8_0,
    /// 6.56 bits a number.
    Q6K,
    /// 5.5 bits a number, some 6.56.
    Q5KM,
    /// 4.5 bits a number, some 6.56: what is published most.
    Q4KM,
    /// 4.5 bits a number in the simplest form.
    Q4_0,
}

const NAMES: [(Mix, &str); 6] = [
    (Mix::F16, "f16"),
    (Mix::Q8_0, "q8_0"),
    (Mix::Q6K, "q6_k"),
    (Mix::Q5KM, "q5_k_m"),
    (Mix::Q4KM, "q4_k_m"),
    (Mix::Q4_0, "q4_0"),
];

impl Mix {
    /// What llama.cpp calls it in `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
        }
    }

    /// The format that a tensor has.
    pub(crate) fn format(self, tensor: &TensorSpec, layers: usize) -> GgmlDType {
        Self::fitting(self.wanted(tensor, layers), tensor.shape.last().copied().unwrap_or_default())
    }

    /// The format that a tensor is to have in a model of `layers` layers, whatever its shape.
    pub(super) fn wanted(self, tensor: &TensorSpec, layers: usize) -> GgmlDType {
        let base = match self {
            Self::F16 => GgmlDType::F16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q5KM => GgmlDType::Q5K,
            Self::Q4KM => GgmlDType::Q4K,
            Self::Q4_0 => GgmlDType::Q4_0,
        };
        let small = matches!(self, Self::Q5KM | Self::Q4KM | Self::Q4_0);
        match tensor.role {
            Role::Norm | Role::Bias => GgmlDType::F32,
            Role::Embeddings | Role::Output if small => GgmlDType::Q6K,
            Role::Value | Role::Down
                if matches!(self, Self::Q5KM | Self::Q4KM) && tensor.layer.is_some_and(|at| is_costly(at, layers)) =>
            {
                GgmlDType::Q6K
            }
            // One matrix for all: between what its parts would get.
            Role::Heads if self == Self::Q4KM => GgmlDType::Q5K,
            Role::Heads if self == Self::Q5KM => GgmlDType::Q6K,
            _ => base,
        }
    }

    /// The format that comes nearest to `wanted` among those whose blocks fill rows of `columns` numbers, as llama.cpp falls back; but for
    /// an odd number of blocks of 5 bits, which the tensor library cannot multiply.
    pub(super) fn fitting(wanted: GgmlDType, columns: usize) -> GgmlDType {
        let fits = |format: &GgmlDType| match format {
            GgmlDType::Q5_0 | GgmlDType::Q5_1 => columns.is_multiple_of(2 * format.block_size()),
            _ => columns.is_multiple_of(format.block_size()),
        };
        let next = match wanted {
            GgmlDType::Q4K => GgmlDType::Q5_0,
            GgmlDType::Q5K => GgmlDType::Q5_1,
            _ => GgmlDType::Q8_0,
        };
        [wanted, next, GgmlDType::Q8_0].into_iter().find(fits).unwrap_or(GgmlDType::F16)
    }
}

/// Whether an error in a layer costs more than in others: the choice of llama.cpp's mixes.
fn is_costly(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A format's name as llama.cpp writes it.
pub(super) fn format_name(format: GgmlDType) -> &'static str {
    match format {
        GgmlDType::F32 => "F32",
        GgmlDType::F16 => "F16",
        GgmlDType::BF16 => "BF16",
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q4_1 => "Q4_1",
        GgmlDType::Q5_0 => "Q5_0",
        GgmlDType::Q5_1 => "Q5_1",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q8_1 => "Q8_1",
        GgmlDType::Q2K => "Q2_K",
        GgmlDType::Q3K => "Q3_K",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        GgmlDType::Q8K => "Q8_K",
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(mix, _)| mix == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Mix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(_, name)| text.eq_ignore_ascii_case(name));
        found.map(|(mix, _)| *mix).ok_or_else(|| {
            Error::invalid("choose quantization", "the name is not known")
                .with("name", format_args!("{text:?}"))
                .with("known", NAMES.map(|(_, name)| name).join(", "))
        })
    }
}

impl TryFrom<String> for Mix {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mix> for String {
    fn from(mix: Mix) -> Self {
        mix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(role: Role, layer: Option<usize>) -> TensorSpec {
        TensorSpec { name: String::new(), role, layer, shape: vec![256, 256] }
    }

    #[test]
    fn what_costs_most_gets_more_bits() {
        let layers = 16;
        let of = |mix: Mix, role, layer| mix.wanted(&tensor(role, layer), layers);
        assert_eq!(of(Mix::Q4KM, Role::Embeddings, None), GgmlDType::Q6K);
        assert_eq!(of(Mix::Q4_0, Role::Output, None), GgmlDType::Q6K);
        assert_eq!(of(Mix::Q8_0, Role::Output, None), GgmlDType::Q8_0);
        assert_eq!(of(Mix::Q4KM, Role::Norm, Some(1)), GgmlDType::F32);
        let better: Vec<usize> =
            (0..layers).filter(|layer| of(Mix::Q4KM, Role::Down, Some(*layer)) == GgmlDType::Q6K).collect();
        assert_eq!(better, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(of(Mix::Q5KM, Role::Value, Some(2)), GgmlDType::Q5K);
        assert_eq!(of(Mix::Q4KM, Role::Query, Some(0)), GgmlDType::Q4K);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_a_format_whose_blocks_they_fill() {
        assert_eq!(Mix::fitting(GgmlDType::Q4K, 512), GgmlDType::Q4K);
        assert_eq!(Mix::fitting(GgmlDType::Q4K, 64), GgmlDType::Q5_0);
        assert_eq!(Mix::fitting(GgmlDType::Q5K, 192), GgmlDType::Q5_1);
        assert_eq!(Mix::fitting(GgmlDType::Q5K, 96), GgmlDType::Q8_0);
        assert_eq!(Mix::fitting(GgmlDType::Q6K, 96), GgmlDType::Q8_0);
        assert_eq!(Mix::fitting(GgmlDType::Q4_0, 40), GgmlDType::F16);
    }

    #[test]
    fn mixes_have_the_fields_names() {
        for (mix, name) in NAMES {
            assert_eq!(name.to_uppercase().parse::<Mix>().unwrap(), mix);
            assert_eq!(serde_json::to_value(mix).unwrap(), name);
        }
        assert!("q3_k".parse::<Mix>().unwrap_err().to_string().contains("q4_k_m"));
    }
}
