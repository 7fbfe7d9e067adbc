//! The network: diffusers' `UNet2DModel`, described once.
//!
//! ```text
//! config.rs      what the network is: every field of UNet2DModel's config.json, and what it may be
//! parameters.rs  the weights, named and ordered as in diffusers' state_dict
//! scope.rs       how a layer says which parameters it has: building and describing are the same walk
//! layers.rs      convolution, linear map, group norm: a few lines over libtorch each
//! embedding.rs   timestep and class label -> one vector per image
//! resnet.rs      the residual block (Ho et al. 2020, arXiv 2006.11239, after PixelCNN++ and Wide ResNet)
//! attention.rs   self-attention over the pixels of a feature map
//! blocks.rs      a level on the way down, the middle, a level on the way up
//! model.rs       DiffusionModel: the way of an image through all of it
//! gpu.rs         GpuModel: the same network with the weights laid out for a GPU and its steps captured as graphs
//! plan.rs        InferencePlan: the same network laid out for the CPU kernels of src/kernels
//! ```
//!
//! A [`DiffusionModel`] is a view: it shares the storage of the [`Parameters`] that it was made from, so that an
//! optimizer step on those is seen by the next forward. It is made in microseconds; copying weights
//! (EMA, another device, another number type) is [`Parameters`]' business.

mod attention;
mod blocks;
mod config;
mod embedding;
mod gpu;
mod layers;
mod model;
mod parameters;
mod plan;
mod resnet;
mod scope;

pub use config::{
    Activation, BlockKind, ClassEmbedding, Resample, TimeEmbedding, TimeScaleShift, UnetConfig,
};
pub use gpu::{Batches, GpuModel, MAX_GRAPHS};
pub use model::{DiffusionModel, Dropout};
pub use parameters::{Init, ParameterSpec, Parameters};
pub use plan::{InferencePlan, PlanWeights};
