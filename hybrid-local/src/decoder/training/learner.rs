//! A decoder on its way: parameters, their gradients, and the steps that move them.
//!
//! A pass is cut at the network's layers. Forward, what comes out of a layer goes into the next as a value without a history; backward, each
//! layer is gone through by itself, and its history is given up before the one below. So no more than one layer's gradients are in memory
//! at a time and no history is deeper than a layer; with `recompute` there is not even more than one layer's history.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use candle_core::{Result as TensorResult, Tensor, Var, backprop::GradStore};
use hybrid_core::{Error, Result};

use super::{lessons::Lesson, settings::TrainSettings, targets::Targets};
use crate::{
    decoder::{
        adapter::{Adapter, Dropout, LORA_A, LORA_B, LoraConfig, Matrices, Pair, Place, Worn},
        config::DecoderConfig,
        network::{Network, Sequences},
    },
    device::tensor_error,
    learning::{
        gradients::Unproven,
        parameters::{self, Parameters, parameters},
    },
    ops::{
        Operators, Step, squares,
        tape::{Buffers, Slopes},
    },
    random::Random,
    tensors::{Array, Tensors, take_f32},
};

const OPERATION: &str = "train";

/// Gradients by the names of their parameters.
pub(super) type Gradients = BTreeMap<String, Tensor>;

/// A network that learns by AdamW.
#[derive(Debug)]
pub(in crate::decoder) struct Learner<'a> {
    pub(super) network: &'a Network,
    pub(super) config: &'a DecoderConfig,
    pub(super) settings: &'a TrainSettings,
    pub(super) lessons: &'a [Lesson],
    pub(super) parameters: Parameters,
    /// What the network wears, of parameters.
    adapter: Option<Adapter>,
    unproven: Unproven,
    /// What the network without the adapter makes of a pair of answers, by the number of the lesson.
    pub(super) references: RefCell<BTreeMap<usize, [f64; 2]>>,
    /// The memory of passes on tapes, and of the gradients that they find.
    pub(super) buffers: Buffers,
    pub(super) slopes: RefCell<Slopes>,
    /// Whether passes are on tapes.
    pub(super) taped: bool,
}

/// What some lessons are to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::decoder) struct Measure {
    /// The sum over tokens, or over pairs in preference learning.
    pub(in crate::decoder) loss: f64,
    /// Tokens, or pairs.
    pub(in crate::decoder) count: f64,
    /// Pairs of which the better answer is preferred.
    pub(in crate::decoder) preferred: f64,
}

impl Measure {
    pub(super) fn mean(self) -> f64 {
        self.loss / self.count.max(1.0)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.count += other.count;
        self.preferred += other.preferred;
    }
}

/// New matrices: `A` uniform as PEFT's are, `B` zero, so that the network starts as its base.
pub(in crate::decoder) fn initial(config: &LoraConfig, base: &DecoderConfig, seed: u64) -> Matrices {
    let places =
        (0..base.layers()).flat_map(|layer| config.modules.iter().map(move |module| Place { layer, module: *module }));
    let pair = |place: Place| {
        let [output, input] = place.module.shape(base);
        let mut random = Random::of(seed, &format!("begin {place}"), [0, 0]);
        let bound = 1.0 / (input as f64).sqrt();
        let a = (0..config.rank * input).map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32).collect();
        let a = Array::f32([config.rank, input], a);
        (place, Pair { a, b: Array::f32([output, config.rank], vec![0.0; output * config.rank]) })
    };
    Matrices { config: config.clone(), pairs: places.map(pair).collect() }
}

impl<'a> Learner<'a> {
    /// A learner of matrices beside a network that stays as it is.
    pub(in crate::decoder) fn of_matrices(
        network: &'a Network,
        config: &'a DecoderConfig,
        settings: &'a TrainSettings,
        lessons: &'a [Lesson],
        start: &Matrices,
    ) -> Result<Self> {
        let (adapter, parameters) = Adapter::trainable(start, network.device())?;
        Self::new(network, config, settings, lessons, parameters, Some(adapter))
    }

    /// A learner of a network whose weights are `parameters`.
    pub(in crate::decoder) fn of_network(
        network: &'a Network,
        config: &'a DecoderConfig,
        settings: &'a TrainSettings,
        lessons: &'a [Lesson],
        parameters: BTreeMap<String, Var>,
    ) -> Result<Self> {
        Self::new(network, config, settings, lessons, parameters, None)
    }

    fn new(
        network: &'a Network,
        config: &'a DecoderConfig,
        settings: &'a TrainSettings,
        lessons: &'a [Lesson],
        values: BTreeMap<String, Var>,
        adapter: Option<Adapter>,
    ) -> Result<Self> {
        let parameters = parameters(values)?;
        let unproven = Unproven::new(parameters.keys());
        Ok(Self {
            network,
            config,
            settings,
            lessons,
            parameters,
            adapter,
            unproven,
            references: RefCell::default(),
            buffers: Buffers::default(),
            slopes: RefCell::default(),
            taped: Network::is_taped(config, network.device()),
        })
    }

    /// Learns from the batches of a step, the `step`th from 0 of `planned`, and says what they were to the network before.
    ///
    /// # Errors
    /// `InvalidInput` if loss or gradients are not finite; `Internal` that names a parameter that the loss does not reach.
    pub(in crate::decoder) fn step(&mut self, batches: &[Vec<usize>], step: usize, planned: usize) -> Result<Measure> {
        // From within the pool of threads: whoever asks it for each operator from outside waits to be woken each time.
        rayon::scope(|_| self.step_within(batches, step, planned))
    }

    fn step_within(&mut self, batches: &[Vec<usize>], step: usize, planned: usize) -> Result<Measure> {
        let fail = tensor_error(OPERATION);
        let count = batches.iter().map(|batch| self.count(batch)).sum::<f64>();
        let (mut measure, mut gradients) = (Measure::default(), Gradients::new());
        for (i, batch) in batches.iter().enumerate() {
            let learnt = self.learn(batch, count, [step as u64, i as u64], &mut gradients).map_err(fail)?;
            if !learnt.loss.is_finite() {
                return Err(Error::invalid(
                    OPERATION,
                    "the loss is not finite; lower the hyperparameter learning_rate",
                )
                .with("step", step)
                .with("loss", learnt.loss));
            }
            measure.add(learnt);
        }
        // What is learnt at a text's second token or later is said by rows that see another.
        let mut sequences = batches.iter().flatten().flat_map(|lesson| &self.lessons[*lesson].sequences);
        let weighs = sequences.any(|sequence| sequence.learnt.iter().skip(2).any(|learnt| *learnt));
        self.unproven.check(weighs, |name| gradients.get(name))?;
        let mut sum = 0.0;
        for (name, gradient) in &gradients {
            let squares = squares(gradient).map_err(fail)?;
            if !squares.is_finite() {
                return Err(Error::invalid(
                    OPERATION,
                    "a gradient is not finite; lower the hyperparameter learning_rate",
                )
                .with("step", step)
                .with("parameter", name));
            }
            sum += squares;
        }
        let clip = (self.settings.clip_norm / (sum.sqrt() + 1e-6)).min(1.0);
        let learning = self.settings.rate(step, planned);
        for (name, gradient) in &gradients {
            let step = Step { number: step + 1, clip };
            self.parameters[name].update(gradient, step, learning, self.settings.weight_decay).map_err(fail)?;
        }
        Ok(measure)
    }

    /// What lessons are to the network, in batches of `size` tokens at most or of one lesson.
    pub(in crate::decoder) fn measure(&self, batch: &[usize]) -> Result<Measure> {
        let measure = || {
            let lessons = self.lessons(batch);
            let targets = Targets::of(&lessons);
            let adapter = self.adapter.as_ref().map(Adapter::detached);
            let nll = self.losses(&lessons, &targets, adapter.as_ref())?;
            self.judge(batch, &targets, &nll, self.count(batch)).map(|(measure, _)| measure)
        };
        measure().map_err(tensor_error("evaluate"))
    }

    pub(super) fn lessons(&self, batch: &[usize]) -> Vec<&'a Lesson> {
        batch.iter().map(|lesson| &self.lessons[*lesson]).collect()
    }

    /// What a batch counts: its tokens to be learnt, or its pairs.
    pub(super) fn count(&self, batch: &[usize]) -> f64 {
        match self.settings.beta {
            Some(_) => batch.len() as f64,
            None => self.lessons(batch).iter().flat_map(|lesson| &lesson.sequences).map(|s| s.count() as f64).sum(),
        }
    }

    /// Adds a batch's share of the gradients of the mean loss over `count` tokens or pairs.
    pub(super) fn learn(
        &self,
        batch: &[usize],
        count: f64,
        index: [u64; 2],
        gradients: &mut Gradients,
    ) -> TensorResult<Measure> {
        let lessons = self.lessons(batch);
        let targets = Targets::of(&lessons);
        let sequences = sequences(&lessons);
        let dropout = self.settings.lora.as_ref().map_or(0.0, |lora| lora.dropout);
        let dropout = (dropout > 0.0).then_some(Dropout { share: dropout, seed: self.settings.seed, index });
        let pass = self.network.pass(&sequences, worn(self.adapter.as_ref(), &sequences, dropout))?;

        if self.taped {
            return self.learn_on_tape(batch, &targets, &pass, &sequences, count, gradients);
        }
        let entered = self.network.enter(&sequences)?;
        let mut inputs: Vec<Tensor> = Vec::new();
        let mut outputs: Vec<Option<Tensor>> = Vec::new();
        let mut x = entered.clone();
        for at in 0..self.config.layers() {
            // Where nothing below is trained, nobody asks for the gradient of what goes in.
            let input =
                if at == 0 && !entered.track_op() { x.detach() } else { Var::from_tensor(&x.detach())?.into_inner() };
            let output = self.network.through(at, input.clone(), &pass)?;
            x = output.detach();
            inputs.push(input);
            outputs.push((!self.settings.recompute).then_some(output));
        }

        let rows = Tensor::from_slice(&targets.rows, targets.rows.len(), x.device())?;
        let top = x.index_select(&rows, 0)?;
        let (measure, of_top) = self.at_top(batch, &targets, &top, count, gradients)?;
        let mut gradient = x.zeros_like()?.index_add(&rows, &of_top, 0)?;
        for at in (0..self.config.layers()).rev() {
            let (Some(input), Some(output)) = (inputs.pop(), outputs.pop()) else { break };
            let output = match output {
                Some(output) => output,
                None => self.network.through(at, input.clone(), &pass)?,
            };
            let mut found = back(&output, &gradient)?;
            drop(output);
            self.collect(&mut found, gradients)?;
            match found.remove(&input) {
                Some(below) => gradient = below,
                None => return Ok(measure),
            }
        }
        if entered.track_op() {
            self.collect(&mut back(&entered, &gradient)?, gradients)?;
        }
        Ok(measure)
    }

    /// The loss of rows that have come out of the last layer, and its gradient; in portions, as logits are many.
    fn at_top(
        &self,
        batch: &[usize],
        targets: &Targets,
        top: &Tensor,
        count: f64,
        gradients: &mut Gradients,
    ) -> TensorResult<(Measure, Tensor)> {
        let (known, weights) = self.weights(batch, targets, top, count)?;
        let (mut loss, mut parts) = (0.0, Vec::new());
        for (from, length) in self.portions(targets.rows.len()) {
            let part = Var::from_tensor(&top.narrow(0, from, length)?)?;
            let own = from..from + length;
            let (tokens, weights) = (targets.tokens[own.clone()].into(), Arc::from(&weights[own]));
            let logits = self.network.leave(part.as_tensor())?;
            let losses = Operators::of(logits.device()).cross_entropy(&logits, tokens, weights)?.sum_all()?;
            loss += f64::from(losses.to_scalar::<f32>()?);
            let mut found = losses.backward()?;
            self.collect(&mut found, gradients)?;
            parts.push(match found.remove(part.as_tensor()) {
                Some(gradient) => gradient,
                None => candle_core::bail!("the loss does not reach the last layer"),
            });
        }
        let measure = known.unwrap_or_else(|| Measure { loss: loss * count, count: self.count(batch), preferred: 0.0 });
        Ok((measure, Tensor::cat(&parts, 0)?))
    }

    /// Moves the gradients found of parameters to those that there are.
    fn collect(&self, found: &mut GradStore, gradients: &mut Gradients) -> TensorResult<()> {
        for (name, parameter) in &self.parameters {
            if let Some(gradient) = found.remove(parameter.value.as_tensor()) {
                let sum = match gradients.remove(name) {
                    Some(before) => (before + gradient)?,
                    None => gradient,
                };
                gradients.insert(name.clone(), sum);
            }
        }
        Ok(())
    }

    /// The parameters' values, on the host.
    pub(in crate::decoder) fn values(&self) -> Result<Tensors> {
        parameters::values(&self.parameters)
    }

    /// Sets the parameters to these values.
    pub(in crate::decoder) fn set_values(&mut self, values: Tensors) -> Result<()> {
        parameters::set_values(&self.parameters, values)
    }

    /// All that [`restore`](Self::restore) needs to go on.
    pub(super) fn state(&self) -> Result<Tensors> {
        parameters::state(&self.parameters)
    }

    /// Goes on from a state after `steps` steps.
    pub(super) fn restore(&mut self, state: &mut Tensors, steps: usize) -> Result<()> {
        parameters::restore(&self.parameters, state)?;
        // What was seen of a gradient in the attempts before need not be seen again.
        if steps > 1 {
            self.unproven.clear();
        }
        Ok(())
    }

    /// The parameters as an adapter, if that is what is learnt.
    pub(in crate::decoder) fn matrices(
        values: &mut Tensors,
        config: &LoraConfig,
        base: &DecoderConfig,
    ) -> Result<Matrices> {
        let mut pairs = BTreeMap::new();
        for layer in 0..base.layers() {
            for module in &config.modules {
                let place = Place { layer, module: *module };
                let [output, input] = module.shape(base);
                let mut take = |name: &str, shape: [usize; 2]| {
                    take_f32(values, &format!("{place}.{name}"), &shape).map(|values| Array::f32(shape, values))
                };
                pairs.insert(
                    place,
                    Pair { a: take(LORA_A, [config.rank, input])?, b: take(LORA_B, [output, config.rank])? },
                );
            }
        }
        Ok(Matrices { config: config.clone(), pairs })
    }
}

pub(super) fn sequences(lessons: &[&Lesson]) -> Sequences {
    let sequences = lessons.iter().flat_map(|lesson| &lesson.sequences);
    Sequences::new(sequences.map(|sequence| sequence.tokens.as_slice()))
}

pub(super) fn worn<'a>(adapter: Option<&'a Adapter>, sequences: &Sequences, dropout: Option<Dropout>) -> Vec<Worn<'a>> {
    let rows = 0..sequences.tokens().len();
    adapter.into_iter().map(|adapter| Worn { rows: rows.clone(), adapter, dropout }).collect()
}

/// The gradients of what `output` was made of, from the gradient of `output`.
fn back(output: &Tensor, gradient: &Tensor) -> TensorResult<GradStore> {
    (output * gradient.detach())?.sum_all()?.backward()
}
