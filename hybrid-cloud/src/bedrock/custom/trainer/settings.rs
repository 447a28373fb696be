//! What a plan says beside its data: read by name, each in Bedrock's range for the base model; what is left over is refused.

use std::collections::HashMap;

use hybrid_core::{BaseModel, Error, Result, TrainPlan};
use serde_json::Value;

use super::{METHOD, examples::Format};

const OPERATION: &str = "check plan";

/// A plan, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) base: String,
    /// By Bedrock's names; what is absent has Bedrock's default.
    pub(super) hyperparameters: HashMap<String, String>,
    pub(super) format: Format,
    /// The share of the examples that validate.
    pub(super) hold_out: f64,
}

/// One of Bedrock's hyperparameters.
struct Known {
    name: &'static str,
    theirs: &'static str,
    whole: bool,
    least: f64,
    most: f64,
}

const fn whole(name: &'static str, theirs: &'static str, least: u32, most: u32) -> Known {
    Known { name, theirs, whole: true, least: least as f64, most: most as f64 }
}

const fn number(name: &'static str, theirs: &'static str, least: f64, most: f64) -> Known {
    Known { name, theirs, whole: false, least, most }
}

/// What base models of one family are told.
struct Family {
    /// A part of their ids.
    part: &'static str,
    /// How their examples may be written; the first is the default.
    formats: &'static [Format],
    known: &'static [Known],
}

/// From the Bedrock user guide's pages on hyperparameters and on preparing data, 2026-11.
const FAMILIES: &[Family] = &[
    Family {
        part: "amazon.nova",
        formats: &[Format::Conversation, Format::PromptCompletion],
        known: &[
            whole("epochs", "epochCount", 1, 5),
            number("learning_rate", "learningRate", 1e-6, 1e-4),
            whole("warm_up_steps", "learningRateWarmupSteps", 0, 100),
        ],
    },
    Family {
        part: "meta.llama",
        formats: &[Format::Conversation, Format::PromptCompletion],
        known: &[
            whole("epochs", "epochCount", 1, 10),
            whole("batch_size", "batchSize", 1, 1),
            number("learning_rate", "learningRate", 5e-6, 0.1),
        ],
    },
    Family {
        part: "anthropic.claude-3",
        formats: &[Format::Messages],
        known: &[
            whole("epochs", "epochCount", 1, 10),
            whole("batch_size", "batchSize", 4, 256),
            number("learning_rate_multiplier", "learningRateMultiplier", 0.1, 2.0),
            number("early_stopping_threshold", "earlyStoppingThreshold", 0.0, 0.1),
            whole("early_stopping_patience", "earlyStoppingPatience", 1, 10),
        ],
    },
];

/// Where the family is not known, Bedrock has the last word on the ranges.
const OTHERS: Family = Family {
    part: "",
    formats: &[Format::Conversation, Format::PromptCompletion, Format::Messages],
    known: &[
        whole("epochs", "epochCount", 1, 1_000),
        whole("batch_size", "batchSize", 1, 65_536),
        number("learning_rate", "learningRate", 0.0, 1.0),
        whole("warm_up_steps", "learningRateWarmupSteps", 0, 1_000_000),
    ],
};

impl Settings {
    pub(super) fn read(plan: &TrainPlan) -> Result<Self> {
        if plan.method != METHOD {
            return Err(Error::invalid(OPERATION, "the trainer does not know this method")
                .with("method", &plan.method)
                .with("known", METHOD));
        }
        let base = match &plan.base {
            Some(BaseModel::Provider(id)) if !id.trim().is_empty() => id.clone(),
            base => {
                let message = "Bedrock starts from a base model of its own; name one as a provider's, such as amazon.nova-micro-v1:0:128k";
                return Err(Error::invalid(OPERATION, message).with("base", format_args!("{base:?}")));
            }
        };
        let family = FAMILIES.iter().find(|family| base.contains(family.part)).unwrap_or(&OTHERS);
        let mut settings = Self { base, hyperparameters: HashMap::new(), format: family.formats[0], hold_out: 0.0 };
        for (name, value) in &plan.hyperparameters {
            settings.take(family, name, value)?;
        }
        Ok(settings)
    }

    fn take(&mut self, family: &Family, name: &str, value: &Value) -> Result<()> {
        match name {
            "format" => {
                let format = family.formats.iter().find(|format| value == format.name());
                let names = || family.formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
                let expected = || format!("one that the base model learns from: {}", names());
                self.format = *format.ok_or_else(|| refuse(name, value, expected()))?;
            }
            "hold_out" => {
                let share = value.as_f64().filter(|share| (0.0..=0.5).contains(share));
                self.hold_out = share.ok_or_else(|| refuse(name, value, "a number from 0 to 0.5".to_owned()))?;
            }
            _ => {
                let known = family.known.iter().find(|known| known.name == name);
                let known = known.ok_or_else(|| unknown(family, name))?;
                self.hyperparameters.insert(known.theirs.to_owned(), known.write(value)?);
            }
        }
        Ok(())
    }
}

impl Known {
    fn write(&self, value: &Value) -> Result<String> {
        let Self { name, whole, least, most, theirs: _ } = *self;
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        let text = if whole { value.as_u64().map(|number| number.to_string()) } else { number.map(|n| n.to_string()) };
        let kind = if whole { "a whole number" } else { "a number" };
        text.filter(|_| number.is_some()).ok_or_else(|| refuse(name, value, format!("{kind} from {least} to {most}")))
    }
}

fn refuse(name: &str, value: &Value, expected: String) -> Error {
    let message = format!("the hyperparameter has to be {expected}");
    Error::invalid(OPERATION, message).with("name", name).with("value", value)
}

fn unknown(family: &Family, name: &str) -> Error {
    let known: Vec<_> = family.known.iter().map(|known| known.name).chain(["format", "hold_out"]).collect();
    Error::invalid(OPERATION, "the base model does not know this hyperparameter")
        .with("name", name)
        .with("known", known.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hybrid_core::DatasetRef;
    use serde_json::json;

    use super::*;

    const CLAUDE: &str = "anthropic.claude-3-haiku-20240307-v1:0:200k";

    fn read(base: &str, hyperparameters: &[(&str, Value)]) -> Result<Settings> {
        let hyperparameters: BTreeMap<_, _> =
            hyperparameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Settings::read(&TrainPlan {
            model: "bakery".parse().unwrap(),
            method: METHOD.to_owned(),
            base: Some(BaseModel::Provider(base.to_owned())),
            dataset: DatasetRef { name: "d".parse().unwrap(), segments: vec![] },
            hyperparameters,
            seed: 1,
        })
    }

    #[test]
    fn bedrock_is_told_by_its_own_names_and_as_text() {
        let nova = read(
            "amazon.nova-lite-v1:0:300k",
            &[("epochs", json!(3)), ("learning_rate", json!(1e-5)), ("warm_up_steps", json!(0))],
        )
        .unwrap();
        let told = |name: &str| nova.hyperparameters.get(name).map(String::as_str);
        assert_eq!(told("epochCount"), Some("3"));
        assert_eq!(told("learningRate"), Some("0.00001"));
        assert_eq!(told("learningRateWarmupSteps"), Some("0"));
        assert_eq!((nova.format, nova.hold_out), (Format::Conversation, 0.0));
        assert!(read("amazon.nova-lite-v1:0:300k", &[]).unwrap().hyperparameters.is_empty());
        assert_eq!(read(CLAUDE, &[]).unwrap().format, Format::Messages);
        assert_eq!(read("somebody.new-v1", &[("format", json!("messages"))]).unwrap().format, Format::Messages);
    }

    #[test]
    fn what_the_base_model_would_refuse_is_named_with_its_range() {
        let (nova, llama) = ("amazon.nova-lite-v1:0", "arn:aws:bedrock:us-west-2::foundation-model/meta.llama3-1-8b");
        for (base, name, value, says) in [
            (nova, "epochs", json!(6), "from 1 to 5"),
            (nova, "epochs", json!(1.5), "a whole number"),
            (nova, "learning_rate", json!("1e-5"), "from 0.000001 to 0.0001"),
            (nova, "batch_size", json!(1), "does not know"),
            (llama, "batch_size", json!(2), "from 1 to 1"),
            (llama, "warm_up_steps", json!(2), "does not know"),
            (CLAUDE, "batch_size", json!(2), "from 4 to 256"),
            (CLAUDE, "format", json!("conversation"), "learns from: messages"),
            (nova, "format", json!("messages"), "learns from: conversation, prompt_completion"),
            ("somebody.new-v1", "epochs", json!(0), "from 1"),
            (nova, "format", json!("csv"), "prompt_completion"),
            (nova, "hold_out", json!(0.6), "from 0 to 0.5"),
        ] {
            let error = read(base, &[(name, value)]).unwrap_err();
            assert_eq!(error.context("name"), Some(name), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_base_that_is_not_the_providers_is_refused() {
        let mut plan = TrainPlan {
            model: "bakery".parse().unwrap(),
            method: METHOD.to_owned(),
            base: None,
            dataset: DatasetRef { name: "d".parse().unwrap(), segments: vec![] },
            hyperparameters: BTreeMap::new(),
            seed: 1,
        };
        for base in [None, Some(BaseModel::Hub("a/b".into())), Some(BaseModel::Provider(" ".into()))] {
            plan.base = base;
            assert!(Settings::read(&plan).unwrap_err().to_string().contains("a base model of its own"));
        }
    }
}
