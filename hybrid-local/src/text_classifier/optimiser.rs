//! How parameters are moved: AdamW with a rate of its own for the head.

use candle_core::{Tensor, Var};
use hybrid_core::Result;

use super::{settings::Settings, training::StepAt};
use crate::{
    learning::parameters::Parameters,
    ops::{Step, squares},
};

/// How parameters are moved.
#[derive(Clone, Debug)]
pub(super) struct Optimiser {
    learning_rate: f64,
    head_learning_rate: f64,
    weight_decay: f64,
    warm_up: f64,
    clip_norm: f64,
}

impl Optimiser {
    pub(super) fn read(settings: &Settings<'_>, learning_rate: f64) -> Result<Self> {
        Ok(Self {
            learning_rate: settings.number("learning_rate", learning_rate, 1e-8..=1.0)?,
            head_learning_rate: settings.number("head_learning_rate", 1e-3, 1e-8..=1.0)?,
            weight_decay: settings.number("weight_decay", 0.01, 0.0..=1.0)?,
            warm_up: settings.number("warm_up", 0.1, 0.0..=0.9)?,
            clip_norm: settings.number("clip_norm", 1.0, 1e-3..=1e6)?,
        })
    }

    /// Moves the parameters that have a gradient, all of one step.
    pub(super) fn step(
        &self,
        parameters: &Parameters,
        gradient: impl Fn(&str, &Var) -> Option<Tensor>,
        at: StepAt,
    ) -> candle_core::Result<()> {
        let mut reached = Vec::with_capacity(parameters.len());
        let mut sum = 0.0;
        for (name, parameter) in parameters {
            if let Some(gradient) = gradient(name, &parameter.value) {
                sum += squares(&gradient)?;
                reached.push((name, parameter, gradient));
            }
        }
        let clip = (self.clip_norm / (sum.sqrt() + 1e-12)).min(1.0);
        let step = Step { number: at.step + 1, clip };
        for (name, parameter, gradient) in reached {
            // Those of the head have names that begin so.
            let rate = if name.starts_with("head.") { self.head_learning_rate } else { self.learning_rate };
            parameter.update(&gradient, step, rate * self.rate_share(at.step, at.planned), self.weight_decay)?;
        }
        Ok(())
    }

    /// The learning rate's share at a step: rising to one over the warm-up, then falling to zero, both in a line.
    fn rate_share(&self, step: usize, planned: usize) -> f64 {
        let warm_up = (self.warm_up * planned as f64).ceil();
        let step = step as f64;
        if step < warm_up { (step + 1.0) / warm_up } else { (planned as f64 - step) / (planned as f64 - warm_up) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_in_a_line() {
        let optimiser = |warm_up: f64| {
            let values = [("warm_up".to_owned(), json!(warm_up))].into();
            Optimiser::read(&Settings::new(&values), 1e-3).unwrap()
        };
        let shares: Vec<_> = (0..10).map(|step| optimiser(0.2).rate_share(step, 10)).collect();
        assert_eq!(shares[..3], [0.5, 1.0, 1.0]);
        assert!((shares[9] - 0.125).abs() < 1e-12 && shares[2..].is_sorted_by(|a, b| a > b));
        assert_eq!(optimiser(0.0).rate_share(0, 10), 1.0);
    }
}
