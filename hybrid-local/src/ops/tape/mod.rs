//! A way back through operators on the processor, with the memory of what is needed alone.
//!
//! The tensor library keeps all that goes into an operator and all that comes out until the last gradient is there, and adds each gradient
//! to a tensor of zeros. Here an operator keeps what its own way back reads, gives it up once it has been there, works in place where
//! nobody else reads, and lets products add to gradients that are there already.

mod buffers;
mod linear;
mod rows;

use std::{collections::HashMap, sync::Arc};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, TensorId};

use super::{
    kernels::{Onto, add_all},
    optimiser::slice_mut,
};

pub(crate) use buffers::{Buffer, Buffers};
pub(crate) use linear::{LowRank, Weight};

/// Numbers on their way through operators, `[rows, columns]`.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    id: usize,
    columns: usize,
    values: Arc<Buffer>,
}

/// The operators that values have come through.
#[derive(Default)]
pub(crate) struct Tape {
    buffers: Buffers,
    /// Of each value whether its gradient is asked for.
    wanted: Vec<bool>,
    backs: Vec<Back>,
}

/// An operator's way back.
type Back = Box<dyn FnOnce(&mut Flow<'_>) -> Result<()>>;

/// Gradients on their way back.
struct Flow<'a> {
    buffers: &'a Buffers,
    wanted: &'a [bool],
    of_values: Vec<Option<Arc<Buffer>>>,
    slopes: &'a mut Slopes,
}

/// The gradients of parameters, in tensors that are used again.
#[derive(Debug, Default)]
pub(crate) struct Slopes {
    found: HashMap<TensorId, Tensor>,
    spare: HashMap<TensorId, Tensor>,
}

impl Value {
    pub(crate) fn values(&self) -> &Arc<Buffer> {
        &self.values
    }

    /// The same numbers as rows of another length; their gradient is the same.
    #[must_use]
    pub(crate) fn in_columns(self, columns: usize) -> Self {
        Self { columns, ..self }
    }
}

impl Tape {
    pub(crate) fn new(buffers: &Buffers) -> Self {
        Self { buffers: buffers.clone(), ..Self::default() }
    }

    /// A value to begin with.
    pub(crate) fn enter(&mut self, values: Arc<Buffer>, columns: usize, wanted: bool) -> Value {
        self.wanted.push(wanted);
        Value { id: self.wanted.len() - 1, columns, values }
    }

    /// What comes out of an operator, with the operator's way back if anything asks for it.
    fn leave(
        &mut self,
        values: Arc<Buffer>,
        columns: usize,
        wanted: bool,
        back: impl FnOnce(&mut Flow<'_>, Arc<Buffer>) -> Result<()> + 'static,
    ) -> Value {
        let value = self.enter(values, columns, wanted);
        if wanted {
            let id = value.id;
            self.backs.push(Box::new(move |flow| match flow.of_values[id].take() {
                Some(gradient) => back(flow, gradient),
                None => Ok(()),
            }));
        }
        value
    }

    fn wants(&self, value: &Value) -> bool {
        self.wanted[value.id]
    }

    /// Goes back from `value`, whose gradient is given, and gives the gradient of the first value that was entered, if it was asked for. Parameters'
    /// gradients are added to `slopes`.
    pub(crate) fn back(self, value: Value, gradient: Arc<Buffer>, slopes: &mut Slopes) -> Result<Option<Arc<Buffer>>> {
        let Self { buffers, wanted, mut backs } = self;
        let Value { id, values, .. } = value;
        // Nobody reads what came out at the end.
        drop(values);
        let mut flow = Flow { buffers: &buffers, wanted: &wanted, of_values: vec![None; wanted.len()], slopes };
        flow.of_values[id] = Some(gradient);
        while let Some(back) = backs.pop() {
            back(&mut flow)?;
        }
        Ok(flow.of_values.swap_remove(0))
    }
}

impl Flow<'_> {
    fn wants(&self, id: usize) -> bool {
        self.wanted[id]
    }

    /// Lets `write` put `len` floats into a value's gradient, onto what is there, if it is asked for.
    fn write(&mut self, id: usize, len: usize, write: impl FnOnce(&mut [f32], Onto)) {
        if !self.wants(id) {
            return;
        }
        let (mut buffer, onto) = match self.of_values[id].take() {
            Some(there) => (Arc::try_unwrap(there).unwrap_or_else(|shared| self.buffers.copy(&shared)), Onto::Before),
            None => (self.buffers.take(len), Onto::Nothing),
        };
        write(&mut buffer, onto);
        self.of_values[id] = Some(Arc::new(buffer));
    }

    /// Adds a whole gradient to a value's, or makes it that.
    fn give(&mut self, id: usize, gradient: Arc<Buffer>) {
        if !self.wants(id) {
            return;
        }
        match &self.of_values[id] {
            None => self.of_values[id] = Some(gradient),
            Some(_) => self.write(id, gradient.len(), |out, _| add_all(out, &gradient)),
        }
    }
}

impl Slopes {
    /// Forgets all gradients, but not their memory.
    pub(crate) fn begin(&mut self) {
        self.spare.extend(self.found.drain());
    }

    pub(crate) fn of(&self, parameter: &Tensor) -> Option<&Tensor> {
        self.found.get(&parameter.id())
    }

    /// Lets `write` put floats into a parameter's gradient, onto what is there.
    pub(crate) fn write(&mut self, parameter: &Tensor, write: impl FnOnce(&mut [f32], Onto)) -> Result<()> {
        let id = parameter.id();
        let (gradient, onto) = match (self.found.get(&id), self.spare.remove(&id)) {
            (Some(found), _) => (found.clone(), Onto::Before),
            (None, Some(spare)) => (spare, Onto::Nothing),
            (None, None) => (parameter.zeros_like()?.detach(), Onto::Nothing),
        };
        let edit = Edit(std::sync::Mutex::new(Some(|out: &mut [f32]| write(out, onto))));
        gradient.inplace_op1(&edit)?;
        self.found.insert(id, gradient);
        Ok(())
    }
}

/// Anything done once to a tensor's floats.
struct Edit<F>(std::sync::Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let edit = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(edit) = edit {
            edit(slice_mut(storage, layout)?);
        }
        Ok(())
    }
}
