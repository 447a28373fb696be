//! A plan's settings.

use std::f64::consts::PI;

use hybrid_core::{Result, TrainPlan};

use crate::{
    decoder::adapter::LoraConfig,
    learning::settings::{Settings, refuse},
};

pub(super) const LORA: &str = "decoder-lora";
pub(super) const FULL: &str = "decoder-full";
pub(super) const DPO: &str = "decoder-dpo";
pub(super) const METHODS: [&str; 3] = [LORA, FULL, DPO];

/// The settings of a run.
#[derive(Clone, Debug)]
pub(in crate::decoder) struct TrainSettings {
    pub(super) seed: u64,
    /// Low-rank matrices; `None` where all weights are trained.
    pub(super) lora: Option<LoraConfig>,
    /// What preference learning is scaled by; `None` where answers are learnt as they are.
    pub(super) beta: Option<f64>,
    pub(super) epochs: usize,
    /// At most so many steps, if not zero.
    pub(super) max_steps: usize,
    pub(super) batch_size: usize,
    pub(super) accumulate: usize,
    pub(super) packing: bool,
    pub(super) max_tokens: usize,
    pub(super) long: Long,
    pub(super) learn: Learn,
    pub(super) learning_rate: f64,
    pub(super) schedule: Schedule,
    pub(super) warm_up: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_norm: f64,
    pub(super) hold_out: f64,
    /// Zero for once an epoch.
    pub(super) evaluate_steps: usize,
    pub(super) patience: usize,
    pub(super) checkpoint_steps: usize,
    pub(super) recompute: bool,
    pub(super) merged: bool,
}

/// What becomes of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Long {
    Refuse,
    Cut,
    Skip,
}

/// Which tokens of a conversation are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learn {
    /// The last answer's.
    Last,
    /// Those of all the model's own messages.
    Answers,
    All,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    Cosine,
    Linear,
    Constant,
}

impl TrainSettings {
    /// Reads a plan of a known method.
    ///
    /// # Errors
    /// `InvalidInput` that names the hyperparameter.
    pub(in crate::decoder) fn read(plan: &TrainPlan) -> Result<Self> {
        let settings = Settings::new(&plan.hyperparameters);
        let (full, preference) = (plan.method == FULL, plan.method == DPO);
        let learning_rate = match &*plan.method {
            FULL => 2e-5,
            DPO => 5e-5,
            _ => 2e-4,
        };
        let merged = || Ok::<_, hybrid_core::Error>(settings.one_of("output", &["adapter", "merged"])? == "merged");
        let read = Self {
            seed: plan.seed,
            lora: (!full).then(|| LoraConfig::read(&settings)).transpose()?,
            beta: preference.then(|| settings.number("beta", 0.1, 1e-3..=10.0)).transpose()?,
            epochs: settings.whole("epochs", if preference { 1 } else { 3 }, 1..=1_000)?,
            max_steps: settings.whole("max_steps", 0, 0..=100_000_000)?,
            batch_size: settings.whole("batch_size", 4, 1..=1_024)?,
            accumulate: settings.whole("accumulate", 1, 1..=1_024)?,
            packing: settings.flag("packing", false)?,
            max_tokens: settings.whole("max_tokens", 2_048, 8..=1 << 20)?,
            long: match settings.one_of("long", &["refuse", "cut", "skip"])? {
                "cut" => Long::Cut,
                "skip" => Long::Skip,
                _ => Long::Refuse,
            },
            learn: match settings.one_of("learn", &["last", "answers", "all"])? {
                "answers" => Learn::Answers,
                "all" => Learn::All,
                _ => Learn::Last,
            },
            learning_rate: settings.number("learning_rate", learning_rate, 1e-9..=1.0)?,
            schedule: match settings.one_of("schedule", &["cosine", "linear", "constant"])? {
                "linear" => Schedule::Linear,
                "constant" => Schedule::Constant,
                _ => Schedule::Cosine,
            },
            warm_up: settings.number("warm_up", 0.05, 0.0..=0.9)?,
            weight_decay: settings.number("weight_decay", if full { 0.01 } else { 0.0 }, 0.0..=1.0)?,
            clip_norm: settings.number("clip_norm", 1.0, 1e-4..=1e6)?,
            hold_out: settings.number("hold_out", 0.1, 0.0..=0.5)?,
            evaluate_steps: settings.whole("evaluate_steps", 0, 0..=1_000_000)?,
            patience: settings.whole("patience", 3, 0..=1_000)?,
            checkpoint_steps: settings.whole("checkpoint_steps", 100, 1..=1_000_000)?,
            recompute: settings.flag("recompute", false)?,
            merged: full || merged()?,
        };
        if preference && read.learn != Learn::Last {
            return Err(refuse("learn", "answers", "of a pair the last answer alone is learnt; leave it out"));
        }
        settings.finish()?;
        Ok(read)
    }

    /// The learning rate at a step, from 0, of `planned`: rising in a line over the warm-up, then as the schedule says.
    pub(super) fn rate(&self, step: usize, planned: usize) -> f64 {
        let (step, planned) = (step as f64, planned as f64);
        let warm_up = (self.warm_up * planned).ceil();
        if step < warm_up {
            return self.learning_rate * (step + 1.0) / warm_up;
        }
        let done = (step - warm_up) / (planned - warm_up).max(1.0);
        self.learning_rate
            * match self.schedule {
                Schedule::Cosine => 0.5 * (1.0 + (PI * done).cos()),
                Schedule::Linear => 1.0 - done,
                Schedule::Constant => 1.0,
            }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hybrid_core::DatasetRef;
    use serde_json::{Value, json};

    use super::*;
    use crate::decoder::adapter::Module;

    pub(in crate::decoder::training) fn settings(method: &str, values: &Value) -> Result<TrainSettings> {
        TrainSettings::read(&TrainPlan {
            model: "baker".parse()?,
            method: method.to_owned(),
            base: None,
            dataset: DatasetRef { name: "none".parse()?, segments: vec![] },
            hyperparameters: serde_json::from_value(values.clone()).unwrap(),
            seed: 7,
        })
    }

    #[test]
    fn modules_are_those_named_in_their_order() {
        let lora = settings(LORA, &json!({"lora_targets": ["v_proj", "q_proj"]})).unwrap().lora.unwrap();
        assert_eq!(lora.modules, [Module::Query, Module::Value]);
    }

    #[test]
    fn methods_know_their_own_settings_alone() {
        for (method, setting) in [(FULL, "lora_rank"), (FULL, "output"), (LORA, "beta"), (FULL, "beta")] {
            let error = settings(method, &json!({ setting: 1 })).unwrap_err();
            assert_eq!(error.context("name"), Some(setting), "{error}");
        }
        assert!(settings(DPO, &json!({"learn": "all"})).is_err());
        assert_eq!(settings(DPO, &json!({})).unwrap().beta, Some(0.1));
        assert!(settings(FULL, &json!({})).unwrap().merged && !settings(LORA, &json!({})).unwrap().merged);
    }

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_as_the_schedule_says() {
        let rates = |schedule: &str| {
            let settings = settings(LORA, &json!({"schedule": schedule, "warm_up": 0.2, "learning_rate": 0.1}));
            let settings = settings.unwrap();
            (0..10).map(|step| settings.rate(step, 10) * 10.0).collect::<Vec<_>>()
        };
        for schedule in ["cosine", "linear", "constant"] {
            let rates = rates(schedule);
            assert!((rates[0] - 0.5).abs() < 1e-12 && (rates[1] - 1.0).abs() < 1e-12 && (rates[2] - 1.0).abs() < 1e-12);
        }
        assert!((rates("linear")[6] - 0.5).abs() < 1e-12 && (rates("cosine")[6] - 0.5).abs() < 1e-12);
        assert!(rates("cosine")[9] < rates("linear")[9] && rates("constant")[9] > 0.99);
    }
}
