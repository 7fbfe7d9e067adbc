//! How a layer asks for its parameters.
//!
//! The architecture exists in one place only: the `build` functions of the layers. Walked with a [`Recorder`]
//! they say which parameters a config has; walked with [`Parameters`](super::Parameters) they make the
//! network. So a name or a shape cannot differ between the two.

use std::cell::RefCell;

use tch::Tensor;

use super::parameters::{Init, ParameterSpec};
use crate::error::Result;

/// Whatever answers a layer's question for a parameter.
pub(super) trait Source {
    /// The tensor that `spec` describes.
    fn tensor(&self, spec: ParameterSpec) -> Result<Tensor>;
}

/// A place in the network's tree of names, such as `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    source: &'a dyn Source,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The top of the tree.
    pub(super) fn root(source: &'a dyn Source) -> Self {
        Scope { source, prefix: String::new() }
    }

    /// The place `name` below this one.
    pub(super) fn at(&self, name: &str) -> Scope<'a> {
        Scope { source: self.source, prefix: self.full_name(name) }
    }

    /// The `index`-th entry of the list `name` below this place.
    pub(super) fn nth(&self, name: &str, index: usize) -> Scope<'a> {
        self.at(&format!("{name}.{index}"))
    }

    /// The parameter `name` of this place, which training changes.
    pub(super) fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.ask(name, shape, init, true)
    }

    /// The parameter `name` of this place, which stays as it was drawn.
    pub(super) fn constant(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.ask(name, shape, init, false)
    }

    fn ask(&self, name: &str, shape: &[usize], init: Init, trainable: bool) -> Result<Tensor> {
        let shape = shape.iter().map(|&n| n as i64).collect();
        self.source.tensor(ParameterSpec { name: self.full_name(name), shape, init, trainable })
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

/// Notes what it is asked for and hands out undefined tensors, which own no memory: the network that comes of it
/// is good for nothing and is dropped.
#[derive(Default)]
pub(super) struct Recorder(RefCell<Vec<ParameterSpec>>);

impl Recorder {
    /// What was asked for, in order.
    pub(super) fn into_specs(self) -> Vec<ParameterSpec> {
        self.0.into_inner()
    }
}

impl Source for Recorder {
    fn tensor(&self, spec: ParameterSpec) -> Result<Tensor> {
        self.0.borrow_mut().push(spec);
        Ok(Tensor::new())
    }
}
