//! AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use super::{
    fused::{cpu_slice, slice},
    kernels::{self, vectorised},
};

const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;
/// Elements of one share of work.
const SHARE: usize = 32 << 10;

/// How far one step goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) learning: f64,
    /// The share of a weight that a step of learning rate 1 takes away.
    pub(crate) decay: f64,
}

/// What is the same for all parameters of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Counts from 1.
    pub(crate) number: usize,
    /// What gradients are multiplied by, so that they are not too long together.
    pub(crate) clip: f64,
}

/// Moves a parameter and its moments `[2, …]`: the running means of its gradients and of their squares.
pub(crate) fn update(parameter: &Var, moments: &Var, gradient: &Tensor, step: Step, rates: Rates) -> Result<()> {
    let corrections = BETAS.map(|beta| 1.0 - beta.powi(i32::try_from(step.number).unwrap_or(i32::MAX)));
    if parameter.device().is_cpu() {
        moments.inplace_op2(&gradient.contiguous()?, &Average { clip: step.clip as f32 })?;
        return parameter.inplace_op2(moments.as_tensor(), &Move { corrections, rates });
    }
    let gradient = (gradient * step.clip)?;
    let average = |index: usize, values: Tensor| -> Result<Tensor> {
        moments.get(index)?.affine(BETAS[index], 0.0)? + values.affine(1.0 - BETAS[index], 0.0)?
    };
    let (mean, square) = (average(0, gradient.clone())?, average(1, gradient.sqr()?)?);
    moments.set(&Tensor::stack(&[&mean, &square], 0)?)?;
    let root = ((square / corrections[1])?.sqrt()? + EPSILON)?;
    let step = ((mean / root)? * (rates.learning / corrections[0]))?;
    let shrunk = parameter.as_detached_tensor().affine(1.0 - rates.learning * rates.decay, 0.0)?;
    parameter.set(&(shrunk - step)?)
}

/// The sum of a tensor's squares.
pub(crate) fn squares(tensor: &Tensor) -> Result<f64> {
    if tensor.device().is_cpu() {
        let tensor = tensor.contiguous()?;
        let read = tensor.storage_and_layout();
        return Ok(kernels::squares(cpu_slice(&read)?));
    }
    tensor.sqr()?.sum_all()?.to_scalar::<f32>().map(f64::from)
}

struct Average {
    clip: f32,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "average gradients"
    }

    fn cpu_fwd(
        &self,
        moments: &mut CpuStorage,
        of_moments: &Layout,
        gradient: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let gradient = slice(gradient, layout)?;
        let (means, squares) = slice_mut(moments, of_moments)?.split_at_mut(gradient.len());
        let clip = self.clip;
        let [of_mean, of_square] = BETAS.map(|beta| beta as f32);
        let shares = means.par_chunks_mut(SHARE).zip(squares.par_chunks_mut(SHARE)).zip(gradient.par_chunks(SHARE));
        shares.for_each(|((means, squares), gradient)| {
            vectorised(|| {
                for ((mean, square), gradient) in means.iter_mut().zip(squares).zip(gradient) {
                    let gradient = gradient * clip;
                    *mean = of_mean * *mean + (1.0 - of_mean) * gradient;
                    *square = of_square * *square + (1.0 - of_square) * gradient * gradient;
                }
            });
        });
        Ok(())
    }
}

struct Move {
    corrections: [f64; 2],
    rates: Rates,
}

impl InplaceOp2 for Move {
    fn name(&self) -> &'static str {
        "move parameter"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        of_parameter: &Layout,
        moments: &CpuStorage,
        of_moments: &Layout,
    ) -> Result<()> {
        let parameter = slice_mut(parameter, of_parameter)?;
        let (means, squares) = slice(moments, of_moments)?.split_at(parameter.len());
        let Rates { learning, decay } = self.rates;
        let (keep, rate) = ((1.0 - learning * decay) as f32, (learning / self.corrections[0]) as f32);
        let (correct, epsilon) = ((1.0 / self.corrections[1]) as f32, EPSILON as f32);
        let shares = parameter.par_chunks_mut(SHARE).zip(means.par_chunks(SHARE)).zip(squares.par_chunks(SHARE));
        shares.for_each(|((parameter, means), squares)| {
            vectorised(|| {
                for ((value, mean), square) in parameter.iter_mut().zip(means).zip(squares) {
                    *value = *value * keep - rate * mean / ((square * correct).sqrt() + epsilon);
                }
            });
        });
        Ok(())
    }
}

pub(super) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&mut values[from..to]),
        _ => candle_core::bail!("the operator needs floats that lie in one piece, not {layout:?}"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn two_steps_are_those_worked_out_in_double_precision() {
        let start = [1.0f32, -2.0, 0.5];
        let gradients = [[0.1f32, -0.2, 3.0], [0.3, 0.1, -1.0]];
        let (step, rates) = (|number| Step { number, clip: 0.5 }, Rates { learning: 0.01, decay: 0.1 });
        let parameter = Var::new(&start, &Device::Cpu).unwrap();
        let moments = Var::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut exact = start.map(f64::from);
        let mut means = [[0f64; 3]; 2];
        for (i, gradient) in gradients.iter().enumerate() {
            let gradient_tensor = Tensor::new(gradient, &Device::Cpu).unwrap();
            update(&parameter, &moments, &gradient_tensor, step(i + 1), rates).unwrap();
            for j in 0..3 {
                let gradient = f64::from(gradient[j]) * 0.5;
                means[0][j] = 0.9 * means[0][j] + 0.1 * gradient;
                means[1][j] = 0.999 * means[1][j] + 0.001 * gradient * gradient;
                let corrected = [0.9f64, 0.999].map(|beta| 1.0 - beta.powi(i as i32 + 1));
                let root = (means[1][j] / corrected[1]).sqrt() + 1e-8;
                exact[j] = exact[j] * (1.0 - 0.01 * 0.1) - 0.01 * means[0][j] / corrected[0] / root;
            }
        }
        for (value, exact) in parameter.to_vec1::<f32>().unwrap().iter().zip(exact) {
            assert!((f64::from(*value) - exact).abs() < 1e-6, "{value} {exact}");
        }
        assert!((squares(&Tensor::new(&gradients[0], &Device::Cpu).unwrap()).unwrap() - 9.05).abs() < 1e-5);
    }
}
