use candle_core::{Tensor, Var};
use hybrid_core::Result;

use super::{Bag, HashedConfig, HashedModel, HashedSettings, Head, Vocabulary, forward, logits, sum_rows};
use crate::{
    Device,
    random::Random,
    text_classifier::{
        ClassifierConfig,
        examples::Examples,
        gradients::check,
        loss::{cross_entropy, smooth_targets},
        tensor_error,
        tensors::{Array, Tensors, take_f32},
        training::{Learner, Method, StepAt},
    },
};

/// The deviation of embeddings at the start: small, so that a row says nothing before it has learnt something.
const INITIAL: f64 = 0.01;
/// How much slower the head learns than the embeddings, which see few texts each.
const HEAD_RATE: f64 = 0.05;

/// Makes learners of the hashed network.
pub(in crate::text_classifier) struct HashedMethod<'a> {
    pub(in crate::text_classifier) examples: &'a Examples,
    pub(in crate::text_classifier) settings: HashedSettings,
    pub(in crate::text_classifier) device: &'a Device,
}

/// A network that learns by plain gradient descent, as fastText does.
///
/// Adaptive optimisers scale every n-gram's step to the same size, and with it the say of one seen once to that of one seen a hundred
/// times; on a few hundred texts that costs accuracy. The table stays on the host, and a step moves only the rows that its batch touches.
pub(in crate::text_classifier) struct HashedLearner<'a> {
    method: &'a HashedMethod<'a>,
    vocabulary: Vocabulary,
    bags: Vec<Bag>,
    table: Vec<f32>,
    weight: Var,
    bias: Var,
    /// Whether gradients have been seen to reach all parameters.
    checked: bool,
}

impl<'a> Method for &'a HashedMethod<'a> {
    type Learner = HashedLearner<'a>;

    fn begin(&self, phase: usize, members: &[usize]) -> Result<HashedLearner<'a>> {
        let (settings, examples) = (self.settings, self.examples);
        let member_texts = members.iter().map(|&text| examples.texts[text].as_str());
        let vocabulary = Vocabulary::of(settings.features, settings.min_count, member_texts);
        let bags = examples.texts.iter().map(|text| vocabulary.bag(text)).collect();
        let (dimension, labels) = (settings.dimension, examples.labels.len());
        let random = |purpose| Random::of(settings.schedule.seed, purpose, [phase as u64, 0]);
        let table = random("embeddings").normal(vocabulary.len() * dimension, INITIAL);
        let weight = random("head").normal(dimension * labels, 1.0 / (dimension as f64).sqrt());
        let fail = tensor_error("begin training");
        let device = self.device.tensors();
        Ok(HashedLearner {
            method: self,
            vocabulary,
            bags,
            table,
            weight: Var::from_vec(weight, (dimension, labels), device).map_err(fail)?,
            bias: Var::from_vec(vec![0f32; labels], labels, device).map_err(fail)?,
            checked: false,
        })
    }
}

impl HashedLearner<'_> {
    fn head(&self) -> Head {
        Head { weight: self.weight.as_tensor().clone(), bias: self.bias.as_tensor().clone() }
    }

    /// The network, finished, with its temperature.
    pub(in crate::text_classifier) fn into_model(self, temperature: f64) -> Result<HashedModel> {
        let HashedMethod { examples, settings, device } = self.method;
        let head = self.head();
        let config = HashedConfig {
            classifier: ClassifierConfig { labels: examples.labels.clone(), temperature },
            features: settings.features,
            rows: self.vocabulary.len(),
            dimension: settings.dimension,
        };
        let Self { vocabulary, table: embeddings, .. } = self;
        Ok(HashedModel { config, vocabulary, embeddings, head, device: (*device).clone() })
    }

    /// One step down the gradient. The tensor library carries it from the loss to the sums; from a sum to a row it is the row's weight.
    fn step_on(&mut self, bags: &[Bag], targets: &[usize], rate: f64) -> candle_core::Result<Result<f64>> {
        let HashedMethod { settings, device, .. } = self.method;
        let sums = self.sums(bags, device.tensors())?;
        let loss = self.loss(&sums, targets)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let gradients = loss.backward()?;
        if !self.checked && value.is_finite() {
            let parameters = [("embeddings", &sums), ("head.weight", &self.weight), ("head.bias", &self.bias)];
            if let Err(error) = check(parameters, &gradients) {
                return Ok(Err(error));
            }
            self.checked = true;
        }
        for var in [&self.weight, &self.bias] {
            if let Some(gradient) = gradients.get(var) {
                var.set(&(var.as_tensor() - (gradient * (rate * HEAD_RATE))?)?)?;
            }
        }
        if let Some(gradient) = gradients.get(&sums) {
            for (bag, gradient) in bags.iter().zip(gradient.to_vec2::<f32>()?) {
                for &(row, weight) in bag {
                    let from = row as usize * settings.dimension;
                    for (value, gradient) in self.table[from..from + settings.dimension].iter_mut().zip(&gradient) {
                        *value -= rate as f32 * weight * gradient;
                    }
                }
            }
        }
        Ok(Ok(value))
    }

    fn sums(&self, bags: &[Bag], device: &candle_core::Device) -> candle_core::Result<Var> {
        let dimension = self.method.settings.dimension;
        let sums = bags.iter().flat_map(|bag| sum_rows(bag, &self.table, dimension)).collect();
        Var::from_vec(sums, (bags.len(), dimension), device)
    }

    fn loss(&self, sums: &Tensor, targets: &[usize]) -> candle_core::Result<Tensor> {
        let HashedMethod { examples, settings, device } = self.method;
        let labels = examples.labels.len();
        let smooth = smooth_targets(targets, labels, settings.label_smoothing);
        let smooth = Tensor::from_vec(smooth, (targets.len(), labels), device.tensors())?;
        cross_entropy(&forward(sums, &self.head())?, &smooth)
    }
}

impl Learner for HashedLearner<'_> {
    fn step(&mut self, batch: &[usize], at: StepAt) -> Result<f64> {
        let HashedMethod { examples, settings, .. } = self.method;
        let targets: Vec<_> = batch.iter().map(|&text| examples.targets[text]).collect();
        let mut bags: Vec<Bag> = batch.iter().map(|&text| self.bags[text].clone()).collect();
        if settings.ngram_dropout > 0.0 {
            let mut random = Random::of(settings.schedule.seed, "dropout", [at.phase as u64, at.step as u64]);
            bags.iter_mut().for_each(|bag| drop_out(bag, settings.ngram_dropout, &mut random));
        }
        let rate = settings.learning_rate * at.remaining();
        self.step_on(&bags, &targets, rate).map_err(tensor_error("train"))?
    }

    fn logits(&self, texts: &[usize]) -> Result<Vec<Vec<f32>>> {
        let bags = texts.iter().map(|&text| &self.bags[text]);
        logits(bags, &self.table, self.method.settings.dimension, &self.head(), self.method.device)
    }

    fn state(&self) -> Result<Tensors> {
        let (rows, dimension, labels) =
            (self.vocabulary.len(), self.method.settings.dimension, self.method.examples.labels.len());
        let values = |var: &Var| var.flatten_all()?.to_vec1::<f32>();
        let fail = tensor_error("save checkpoint");
        Ok([
            ("embeddings", Array::f32([rows, dimension], self.table.clone())),
            ("head.weight", Array::f32([dimension, labels], values(&self.weight).map_err(fail)?)),
            ("head.bias", Array::f32([labels], values(&self.bias).map_err(fail)?)),
        ]
        .map(|(name, array)| (name.to_owned(), array))
        .into())
    }

    fn restore(&mut self, mut state: Tensors) -> Result<()> {
        let (rows, dimension, labels) =
            (self.vocabulary.len(), self.method.settings.dimension, self.method.examples.labels.len());
        self.table = take_f32(&mut state, "embeddings", &[rows, dimension])?;
        let weight = take_f32(&mut state, "head.weight", &[dimension, labels])?;
        let bias = take_f32(&mut state, "head.bias", &[labels])?;
        let device = self.method.device.tensors();
        let set = || {
            self.weight.set(&Tensor::from_vec(weight, (dimension, labels), device)?)?;
            self.bias.set(&Tensor::from_vec(bias, labels, device)?)
        };
        set().map_err(tensor_error("restore checkpoint"))
    }
}

/// Leaves out each n-gram with probability `share` and makes up for it with the rest.
fn drop_out(bag: &mut Bag, share: f64, random: &mut Random) {
    bag.retain_mut(|(_, weight)| {
        *weight /= (1.0 - share) as f32;
        random.uniform() >= share
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text_classifier::{settings::Settings, training::StepAt};

    #[test]
    fn a_step_goes_down_the_gradient_that_finite_differences_say() {
        let examples = Examples {
            labels: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
            texts: ["one two", "two three three", "four"].map(str::to_owned).to_vec(),
            targets: vec![0, 1, 2],
        };
        let values = [("dimension".to_owned(), 4.into()), ("char_max".to_owned(), 2.into())].into();
        let settings = HashedSettings::read(&Settings::new(&values), 3).unwrap();
        let device = Device::cpu();
        let method = HashedMethod { examples: &examples, settings, device: &device };
        let batch = [0, 1, 2];
        let loss_at = |place: &str, index: usize, change: f32| {
            let mut learner = (&method).begin(0, &batch).unwrap();
            let mut state = learner.state().unwrap();
            let Some(Array { values: crate::text_classifier::tensors::Values::F32(values), .. }) = state.get_mut(place)
            else {
                panic!("no {place}")
            };
            values[index] += change;
            learner.restore(state).unwrap();
            let sums = learner.sums(&learner.bags, device.tensors()).unwrap();
            f64::from(learner.loss(&sums, &batch).unwrap().to_scalar::<f32>().unwrap())
        };
        let mut learner = (&method).begin(0, &batch).unwrap();
        let before = learner.state().unwrap();
        learner.step(&batch, StepAt { phase: 0, step: 0, planned: 10 }).unwrap();
        let after = learner.state().unwrap();
        let floats = |state: &Tensors, place: &str| match &state[place].values {
            crate::text_classifier::tensors::Values::F32(values) => values.clone(),
            crate::text_classifier::tensors::Values::U32(_) => panic!("no floats"),
        };
        for (place, rate) in [("embeddings", 10.0), ("head.weight", 10.0 * HEAD_RATE), ("head.bias", 10.0 * HEAD_RATE)]
        {
            let (before, after) = (floats(&before, place), floats(&after, place));
            let mut moved = 0;
            for i in (0..before.len()).step_by(3) {
                let gradient = f64::from(before[i] - after[i]) / rate;
                let expected = (loss_at(place, i, 0.02) - loss_at(place, i, -0.02)) / 0.04;
                assert!(
                    (gradient - expected).abs() < 2e-4 + 0.01 * expected.abs(),
                    "{place}[{i}]: {gradient}, {expected}"
                );
                moved += usize::from(gradient.abs() > 1e-4);
            }
            assert!(moved > 0, "{place} did not move");
        }
    }
}
