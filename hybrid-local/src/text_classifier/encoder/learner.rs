use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use hybrid_core::{Error, Result};

use super::{config::BertConfig, model::logits, network::Network, settings::BertSettings};
use crate::{
    Device,
    encoder::{Base, Batch, Dropout, Encoded, Marks, Tokens, on_device},
    learning::parameters::{self, Parameter, Parameters},
    ops::Operators,
    random::Random,
    text_classifier::{
        ClassifierConfig,
        examples::Examples,
        files::check_memory,
        gradients::Unproven,
        loss::{cross_entropy, smooth_targets},
        tensor_error,
        tensors::Tensors,
        training::{Learner, Method, StepAt},
    },
};

/// The deviation of new weights, as BERT's own at the start.
const INITIAL: f64 = 0.02;

/// Makes learners of one base model.
pub(in crate::text_classifier) struct BertMethod<'a> {
    examples: &'a Examples,
    base: &'a Base,
    settings: &'a BertSettings,
    device: &'a Device,
    encoded: Vec<Encoded>,
    max_tokens: usize,
    /// What no learner changes, shared by all of them.
    frozen: BTreeMap<String, Tensor>,
}

/// A network that learns by AdamW.
pub(in crate::text_classifier) struct BertLearner<'a> {
    method: &'a BertMethod<'a>,
    pub(super) network: Network,
    pub(super) parameters: Parameters,
    unproven: Unproven,
}

impl<'a> BertMethod<'a> {
    /// # Errors
    /// `InvalidInput` if more tokens are to be read than the base has positions for, `ResourceExhausted` if training does not fit into the
    /// memory that is free.
    pub(in crate::text_classifier) fn new(
        examples: &'a Examples,
        base: &'a Base,
        settings: &'a BertSettings,
        device: &'a Device,
    ) -> Result<Self> {
        let positions = base.config.max_tokens();
        let max_tokens = settings.max_tokens.unwrap_or(positions);
        if max_tokens > positions {
            return Err(Error::invalid("check plan", "the base model has fewer positions than tokens are to be read")
                .with("name", "max_tokens")
                .with("value", max_tokens)
                .with("limit", positions));
        }
        if settings.lora.is_none() {
            // Parameters, their two moments, their gradients and what a gradient is added up in, beside the base.
            let numbers: usize = base.config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            check_memory("train", 5 * 4 * numbers as u64, None)?;
        }
        let tokens = Tokens::read(&base.tokenizer, base.config.vocabulary, max_tokens, Marks::Needed)?;
        let encoded = examples.texts.iter().map(|text| tokens.encode(text)).collect::<Result<_>>()?;
        let mut frozen = BTreeMap::new();
        if settings.lora.is_some() {
            for (name, _) in base.config.tensors() {
                let tensor = on_device(&base.tensors, &name, device)?;
                frozen.insert(name, tensor);
            }
        }
        Ok(Self { examples, base, settings, device, encoded, max_tokens, frozen })
    }

    /// How many texts have more tokens than are read.
    pub(in crate::text_classifier) fn cut(&self) -> usize {
        self.encoded.iter().filter(|text| text.is_cut()).count()
    }

    /// The parameters with their shapes.
    fn trained(&self) -> Vec<(String, Vec<usize>)> {
        let config = &self.base.config;
        let mut trained = match &self.settings.lora {
            Some(lora) => config.lora_tensors(lora),
            None => config.tensors(),
        };
        trained.extend(config.head_tensors(self.examples.labels.len()));
        trained
    }

    /// A parameter before the first step.
    fn initial(&self, name: &str, shape: &[usize], phase: usize) -> Result<Tensor> {
        if self.base.tensors.contains_key(name) {
            return on_device(&self.base.tensors, name, self.device);
        }
        let count = shape.iter().product();
        let deviation = match name.rsplit('.').next() {
            // With B at zero the network starts as its base.
            Some("lora_b" | "bias") => 0.0,
            Some("lora_a") => 1.0 / (shape[1] as f64).sqrt(),
            _ => INITIAL,
        };
        let values = if deviation > 0.0 {
            Random::of(self.settings.schedule.seed, name, [phase as u64, 0]).normal(count, deviation)
        } else {
            vec![0.0; count]
        };
        Tensor::from_vec(values, shape, self.device.tensors()).map_err(tensor_error("begin training"))
    }
}

impl<'a> Method for &'a BertMethod<'a> {
    type Learner = BertLearner<'a>;

    fn begin(&self, phase: usize, _members: &[usize]) -> Result<BertLearner<'a>> {
        BertLearner::begin(self, phase, Operators::of(self.device.tensors()))
    }
}

impl<'a> BertLearner<'a> {
    pub(super) fn begin(method: &'a BertMethod<'a>, phase: usize, operators: Operators) -> Result<Self> {
        let fail = tensor_error("begin training");
        let mut parameters = Parameters::new();
        for (name, shape) in method.trained() {
            let value = Var::from_tensor(&method.initial(&name, &shape, phase)?).map_err(fail)?;
            parameters.insert(name, Parameter::new(value)?);
        }
        let tensor = |name: &str| match (parameters.get(name), method.frozen.get(name)) {
            (Some(parameter), _) => Ok(parameter.value.as_tensor().clone()),
            (None, Some(frozen)) => Ok(frozen.clone()),
            (None, None) => Err(Error::internal("begin training", "the network lacks a tensor").with("tensor", name)),
        };
        let BertSettings { pooling, lora, .. } = method.settings;
        let network = Network::of(&method.base.config, *pooling, lora.as_ref(), operators, tensor)?;
        let unproven = Unproven::new(parameters.keys());
        Ok(Self { method, network, parameters, unproven })
    }

    /// The mean loss of a batch, with its way back to the parameters.
    pub(super) fn loss(&self, batch: &[usize], dropout: Option<Dropout>) -> candle_core::Result<Tensor> {
        let BertMethod { examples, base, settings, device, encoded, .. } = self.method;
        let ids: Vec<_> = batch.iter().map(|&text| encoded[text].ids.as_slice()).collect();
        let targets: Vec<_> = batch.iter().map(|&text| examples.targets[text]).collect();
        let labels = examples.labels.len();
        let smooth = smooth_targets(&targets, labels, settings.label_smoothing);
        let smooth = Tensor::from_vec(smooth, (targets.len(), labels), device.tensors())?;
        let batch = Batch::of(&ids, base.config.first_position, device.tensors())?;
        cross_entropy(&self.network.logits(&batch, dropout)?, &smooth)
    }

    /// The version: its configuration, and the tensors that were trained.
    pub(in crate::text_classifier) fn finish(self, temperature: f64) -> Result<(BertConfig, Tensors)> {
        let BertMethod { examples, base, settings, max_tokens, .. } = self.method;
        let config = BertConfig {
            classifier: ClassifierConfig { labels: examples.labels.clone(), temperature },
            encoder: base.config.clone(),
            pooling: settings.pooling,
            max_tokens: *max_tokens,
            lora: settings.lora.clone(),
            base: base.digests.clone(),
        };
        Ok((config, parameters::values(&self.parameters)?))
    }
}

impl Learner for BertLearner<'_> {
    fn step(&mut self, batch: &[usize], at: StepAt) -> Result<f64> {
        let settings = self.method.settings;
        let index = [at.phase as u64, at.step as u64];
        let dropout = (settings.dropout > 0.0)
            .then(|| Dropout { share: settings.dropout, random: Random::of(settings.schedule.seed, "dropout", index) });
        let fail = tensor_error("train");
        let loss = self.loss(batch, dropout).map_err(fail)?;
        let value = f64::from(loss.to_scalar::<f32>().map_err(fail)?);
        if value.is_finite() {
            let gradients = loss.backward().map_err(fail)?;
            self.unproven.check(true, |name| gradients.get(&self.parameters[name].value))?;
            let gradient = |_: &str, value: &Var| gradients.get(value).cloned();
            settings.optimiser.step(&self.parameters, gradient, at).map_err(fail)?;
        }
        Ok(value)
    }

    fn logits(&self, texts: &[usize]) -> Result<Vec<Vec<f32>>> {
        let BertMethod { base, device, encoded, .. } = self.method;
        let texts: Vec<_> = texts.iter().map(|&text| &encoded[text]).collect();
        logits(&self.network, &texts, base.config.first_position, device)
    }

    fn state(&self) -> Result<Tensors> {
        parameters::state(&self.parameters)
    }

    fn restore(&mut self, mut state: Tensors) -> Result<()> {
        parameters::restore(&self.parameters, &mut state)
    }
}

/// The files' tensors of a finished version: `model.safetensors` and, where low-rank matrices were trained, `adapter.safetensors`.
pub(in crate::text_classifier) fn version_tensors(
    trained: Tensors,
    base: Base,
    has_adapter: bool,
) -> (Tensors, Option<Tensors>) {
    if !has_adapter {
        return (trained, None);
    }
    let mut encoder = base.tensors;
    encoder.retain(|name, _| !name.starts_with("head."));
    (encoder, Some(trained))
}
