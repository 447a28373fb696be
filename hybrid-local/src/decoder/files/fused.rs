//! Matrices that lie in a file as rows of a larger one: Phi 3 has queries, keys and values in one, gate and up in another.

use crate::decoder::config::{DecoderConfig, Family};

/// How many rows each of the parts has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused {
    queries: usize,
    keys: usize,
    wide: usize,
}

/// Where a matrix's rows are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The larger matrix, by the name of Hugging Face's files.
    pub(crate) name: String,
    /// The first of its rows in the larger one.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Rows of the larger one.
    pub(crate) all: usize,
}

impl Fused {
    /// The parts of a model's files, if they have any.
    pub(crate) fn of(config: &DecoderConfig) -> Option<Self> {
        let sizes = Self { queries: config.query_size(), keys: config.key_value_size(), wide: config.intermediate };
        (config.family == Family::Phi3).then_some(sizes)
    }

    /// Where the matrix `name` is, if it is a part.
    pub(crate) fn place(self, name: &str) -> Option<Place> {
        let Self { queries, keys, wide } = self;
        let heads = queries + 2 * keys;
        let parts = [
            ("self_attn.q_proj.", "self_attn.qkv_proj.", 0, queries, heads),
            ("self_attn.k_proj.", "self_attn.qkv_proj.", queries, keys, heads),
            ("self_attn.v_proj.", "self_attn.qkv_proj.", queries + keys, keys, heads),
            ("mlp.gate_proj.", "mlp.gate_up_proj.", 0, wide, 2 * wide),
            ("mlp.up_proj.", "mlp.gate_up_proj.", wide, wide, 2 * wide),
        ];
        let (part, whole, first, rows, all) = parts.into_iter().find(|(part, ..)| name.contains(part))?;
        Some(Place { name: name.replace(part, whole), first, rows, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::config::tiny;

    #[test]
    fn parts_lie_behind_each_other_in_their_whole() {
        let fused = Fused::of(&DecoderConfig { family: Family::Phi3, ..tiny() }).unwrap();
        let place = |part: &str| {
            let place = fused.place(&format!("model.layers.7.{part}.weight")).unwrap();
            (place.name.trim_start_matches("model.layers.7.").to_owned(), place.first, place.rows, place.all)
        };
        let qkv = |first, rows| ("self_attn.qkv_proj.weight".to_owned(), first, rows, 32);
        assert_eq!([place("self_attn.q_proj"), place("self_attn.k_proj")], [qkv(0, 16), qkv(16, 8)]);
        assert_eq!(place("self_attn.v_proj"), qkv(24, 8));
        assert_eq!(place("mlp.up_proj"), ("mlp.gate_up_proj.weight".to_owned(), 24, 24, 48));
        assert_eq!(fused.place("model.layers.7.mlp.down_proj.weight"), None);
        assert!(Fused::of(&tiny()).is_none());
    }
}
