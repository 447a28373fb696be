//! Many texts, some at a time.

use std::cmp::Reverse;

use hybrid_core::Result;
use rayon::prelude::*;

use crate::Device;

/// Tokens of several texts that one thread works on at a time: their activations fit into a core's cache. It does not depend on the number
/// of threads, nor do the results.
const OF_A_THREAD: usize = 128;
/// Tokens of several texts that all threads, or a device, work on at a time.
const OF_ALL: usize = 2_048;

/// How portions are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Portions {
    /// Small ones, each by a thread of the processor; where there are fewer than threads, they share the products of one.
    SideBySide,
    OneAfterAnother,
}

impl Portions {
    pub(crate) fn of(device: &Device) -> Self {
        if device.tensors().is_cpu() { Self::SideBySide } else { Self::OneAfterAnother }
    }
}

/// Gives texts of these lengths to `work`, some at a time, and puts what it gives for each into the texts' order.
///
/// Texts of nearly the same length are read together, the longest first, so that the most memory is taken at once or never.
///
/// # Errors
/// `work`'s own; no more is begun after one.
pub(crate) fn in_portions<R: Send>(
    lengths: &[usize],
    portions: Portions,
    work: impl Fn(&[usize]) -> Result<Vec<R>> + Sync,
) -> Result<Vec<R>> {
    let limit = match portions {
        Portions::SideBySide => OF_A_THREAD,
        Portions::OneAfterAnother => OF_ALL,
    };
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| Reverse(lengths[text]));
    let (mut parts, mut rest) = (Vec::new(), &order[..]);
    while !rest.is_empty() {
        let mut tokens = 0;
        let together = rest.iter().take_while(|&&text| {
            tokens += lengths[text];
            tokens <= limit
        });
        let (texts, others) = rest.split_at(together.count().max(1));
        parts.push(texts);
        rest = others;
    }
    let results: Result<Vec<Vec<R>>> = match portions {
        Portions::SideBySide => parts.par_iter().with_max_len(1).map(|texts| work(texts)).collect(),
        Portions::OneAfterAnother => parts.iter().map(|texts| work(texts)).collect(),
    };
    let mut results: Vec<(usize, R)> = order.iter().copied().zip(results?.into_iter().flatten()).collect();
    results.sort_by_key(|(text, _)| *text);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use hybrid_core::Error;

    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_texts_and_no_portion_is_too_large() {
        let lengths = [3, 200, 1, 64, 64, 127, 1, 500, 2];
        let work = |texts: &[usize]| {
            let tokens: usize = texts.iter().map(|&text| lengths[text]).sum();
            assert!(texts.len() == 1 || tokens <= OF_A_THREAD, "{texts:?}");
            Ok(texts.iter().map(|&text| text * 10 + texts.len()).collect())
        };
        let results = in_portions(&lengths, Portions::SideBySide, work).unwrap();
        assert_eq!(results, [4, 11, 24, 32, 42, 51, 64, 71, 84], "the longest alone, the shortest together");
        assert!(in_portions(&[], Portions::SideBySide, |_| Ok(vec![()])).unwrap().is_empty());
        let failing = |_: &[usize]| Err::<Vec<()>, _>(Error::cancelled("test", "given up"));
        assert!(in_portions(&lengths, Portions::SideBySide, failing).is_err());
    }
}
