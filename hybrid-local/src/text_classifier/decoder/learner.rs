use std::collections::BTreeMap;

use candle_core::{Result as TensorResult, Tensor, Var};
use hybrid_core::{Digest, Error, Result};
use tokenizers::Tokenizer;

use super::{config::HeadConfig, model::portions, settings::HeadSettings};
use crate::{
    Device,
    decoder::headed::{HeadBase, HeadLora, Headed, Hung},
    encoder::{Encoded, Marks, Tokens},
    learning::parameters::{self, Parameters, parameters},
    random::Random,
    text_classifier::{
        ClassifierConfig,
        examples::Examples,
        gradients::Unproven,
        loss::{cross_entropy, smooth_targets},
        tensor_error,
        tensors::Tensors,
        training::{Learner, Method, StepAt},
    },
};

/// The deviation of a new head's numbers, as the models' own at the start.
const INITIAL: f64 = 0.02;
pub(super) const HEAD: &str = "head.weight";

/// Makes learners of one base model.
pub(in crate::text_classifier) struct HeadMethod<'a> {
    examples: &'a Examples,
    base: &'a HeadBase,
    settings: &'a HeadSettings,
    device: &'a Device,
    encoded: Vec<Encoded>,
    max_tokens: usize,
    /// Weights that no learner changes, shared by all of them.
    frozen: Option<Headed>,
}

/// A network that learns by AdamW.
pub(in crate::text_classifier) struct HeadLearner<'a> {
    method: &'a HeadMethod<'a>,
    body: Body<'a>,
    parameters: Parameters,
    unproven: Unproven,
}

/// What is under the head.
enum Body<'a> {
    Whole(Box<Headed>),
    Beside(&'a Headed, Hung),
}

impl Body<'_> {
    fn parts(&self) -> (&Headed, Option<&Hung>) {
        match self {
            Self::Whole(network) => (network, None),
            Self::Beside(network, hung) => (network, Some(hung)),
        }
    }
}

impl<'a> HeadMethod<'a> {
    /// # Errors
    /// `ResourceExhausted` if training does not fit into the memory that is free; `InvalidInput` that names a text without tokens.
    pub(in crate::text_classifier) fn new(
        examples: &'a Examples,
        base: &'a HeadBase,
        tokenizer: Tokenizer,
        settings: &'a HeadSettings,
        device: &'a Device,
    ) -> Result<Self> {
        let max_tokens = base.context();
        let tokens = Tokens::new(tokenizer, base.vocabulary(), max_tokens, Marks::IfAny)?;
        let encoded: Vec<Encoded> = examples.texts.iter().map(|text| tokens.encode(text)).collect::<Result<_>>()?;
        if let Some(text) = encoded.iter().position(|text| text.ids.is_empty()) {
            return Err(Error::invalid("read judgments", "the tokenizer makes nothing of the text")
                .with("text", format_args!("{:?}", examples.texts[text])));
        }
        let longest = encoded.iter().map(|text| text.ids.len()).max().unwrap_or_default() as u64;
        base.check_memory(settings.lora.as_ref(), [longest.max(super::model::PORTION as u64), longest])?;
        let frozen = settings.lora.is_some().then(|| base.network(device)).transpose()?;
        Ok(Self { examples, base, settings, device, encoded, max_tokens, frozen })
    }

    /// How many texts have more tokens than are read.
    pub(in crate::text_classifier) fn cut(&self) -> usize {
        self.encoded.iter().filter(|text| text.is_cut()).count()
    }

    /// The head before the first step.
    fn head(&self, phase: usize) -> TensorResult<Var> {
        let shape = [self.examples.labels.len(), self.base.hidden()];
        let seed = self.settings.schedule.seed;
        let values = Random::of(seed, HEAD, [phase as u64, 0]).normal(shape[0] * shape[1], INITIAL);
        Var::from_tensor(&Tensor::from_vec(values, &shape, self.device.tensors())?)
    }
}

impl<'a> Method for &'a HeadMethod<'a> {
    type Learner = HeadLearner<'a>;

    fn begin(&self, phase: usize, _members: &[usize]) -> Result<HeadLearner<'a>> {
        let HeadMethod { base, settings, device, frozen, .. } = *self;
        let (body, mut variables) = match (&settings.lora, frozen) {
            (Some(lora), Some(network)) => {
                // Each phase starts with matrices of its own.
                let seed = settings.schedule.seed.wrapping_add(phase as u64);
                let (hung, variables) = base.matrices(lora, seed, device)?;
                (Body::Beside(network, hung), variables)
            }
            _ => {
                let (network, variables) = base.trainable(device)?;
                (Body::Whole(Box::new(network)), variables)
            }
        };
        variables.insert(HEAD.to_owned(), self.head(phase).map_err(tensor_error("begin training"))?);
        let parameters = parameters(variables)?;
        let unproven = Unproven::new(parameters.keys());
        Ok(HeadLearner { method: self, body, parameters, unproven })
    }
}

impl HeadLearner<'_> {
    fn encoded(&self, texts: &[usize]) -> Vec<&[u32]> {
        texts.iter().map(|&text| self.method.encoded[text].ids.as_slice()).collect()
    }

    /// The mean loss of a batch; adds its gradients, a portion of the texts at a time.
    fn learn(&self, batch: &[usize], at: StepAt, gradients: &mut BTreeMap<String, Tensor>) -> TensorResult<f64> {
        let HeadMethod { examples, settings, device, .. } = self.method;
        let share = settings.lora.as_ref().map_or(0.0, HeadLora::dropout);
        let (network, hung) = self.body.parts();
        let labels = examples.labels.len();
        let mut sum = 0.0;
        for (number, part) in portions(&self.encoded(batch)).into_iter().enumerate() {
            let part = &batch[part];
            let index = [(at.phase as u64) << 32 | at.step as u64, number as u64];
            let dropout = (share > 0.0).then_some((share, settings.schedule.seed, index));
            let logits = network.logits(&self.encoded(part), self.parameters[HEAD].value.as_tensor(), hung, dropout)?;
            let targets: Vec<_> = part.iter().map(|&text| examples.targets[text]).collect();
            let smooth = smooth_targets(&targets, labels, settings.label_smoothing);
            let smooth = Tensor::from_vec(smooth, (part.len(), labels), device.tensors())?;
            let loss = (cross_entropy(&logits, &smooth)? * (part.len() as f64 / batch.len() as f64))?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            sum += value;
            if !value.is_finite() {
                break;
            }
            let mut found = loss.backward()?;
            for (name, parameter) in &self.parameters {
                if let Some(gradient) = found.remove(parameter.value.as_tensor()) {
                    let whole = match gradients.remove(name) {
                        Some(before) => (before + gradient)?,
                        None => gradient,
                    };
                    gradients.insert(name.clone(), whole);
                }
            }
        }
        Ok(sum)
    }

    /// The version: its configuration with the digests of the base's files, the tensors that were trained, and the head.
    pub(in crate::text_classifier) fn finish(
        &self,
        temperature: f64,
        base: BTreeMap<String, Digest>,
    ) -> Result<(HeadConfig, Tensors, Tensors)> {
        let HeadMethod { examples, settings, max_tokens, .. } = self.method;
        let config = HeadConfig {
            classifier: ClassifierConfig { labels: examples.labels.clone(), temperature },
            max_tokens: *max_tokens,
            adapter: settings.lora.is_some(),
            base,
        };
        let mut body = parameters::values(&self.parameters)?;
        let head = body.remove(HEAD).map(|head| (crate::decoder::headed::SCORE.to_owned(), head));
        Ok((config, body, head.into_iter().collect()))
    }
}

impl Learner for HeadLearner<'_> {
    fn step(&mut self, batch: &[usize], at: StepAt) -> Result<f64> {
        let fail = tensor_error("train");
        let mut gradients = BTreeMap::new();
        let loss = self.learn(batch, at, &mut gradients).map_err(fail)?;
        if loss.is_finite() {
            let weighs = self.encoded(batch).iter().any(|text| text.len() > 1);
            self.unproven.check(weighs, |name| gradients.get(name))?;
            let optimiser = &self.method.settings.optimiser;
            optimiser.step(&self.parameters, |name, _| gradients.get(name).cloned(), at).map_err(fail)?;
        }
        Ok(loss)
    }

    fn logits(&self, texts: &[usize]) -> Result<Vec<Vec<f32>>> {
        let (network, hung) = self.body.parts();
        super::model::logits(network, self.parameters[HEAD].value.as_tensor(), hung, &self.encoded(texts))
    }

    fn state(&self) -> Result<Tensors> {
        parameters::state(&self.parameters)
    }

    fn restore(&mut self, mut state: Tensors) -> Result<()> {
        parameters::restore(&self.parameters, &mut state)
    }
}
