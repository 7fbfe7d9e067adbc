//! Training: the loss, the optimizer and its averages, one step at a time.
//!
//! - [`adam`]: Adam and AdamW over all parameters at once
//! - [`grad_scaler`]: keeps half-precision gradients representable
//! - [`trainer`]: the step itself: timesteps, noise, prediction, loss, backpropagation, update

pub mod adam;
pub mod grad_scaler;
pub mod trainer;

use crate::{Error, Result};

/// Which optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam (arXiv 1412.6980); weight decay is added to the gradient.
    Adam,
    /// AdamW (arXiv 1711.05101); weight decay shrinks the weights.
    AdamW,
}

/// The arithmetic of the forward and backward pass. Weights, averages and the loss are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Autocast to half precision with a gradient scaler; CUDA only.
    F16,
    /// Autocast to bfloat16.
    Bf16,
}

/// How to train.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainingConfig {
    /// Which optimizer.
    pub optimizer: Optimizer,
    /// The arithmetic of the passes.
    pub mixed_precision: Precision,
    /// Step size, > 0.
    pub learning_rate: f64,
    /// Decay of the average of gradients, [0, 1).
    pub adam_beta1: f64,
    /// Decay of the average of squared gradients, [0, 1).
    pub adam_beta2: f64,
    /// Added to the optimizer's denominator, > 0.
    pub adam_epsilon: f64,
    /// Weight decay, >= 0.
    pub weight_decay: f64,
    /// The most that the norm of all gradients together may be; 0: no limit.
    pub gradient_clip: f64,
    /// Decay of the moving average of the weights, [0, 1); 0: no average.
    pub ema_decay: f64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        TrainingConfig {
            optimizer: Optimizer::Adam,
            mixed_precision: Precision::F32,
            learning_rate: 1e-4,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            gradient_clip: 0.0,
            ema_decay: 0.0,
        }
    }
}

impl TrainingConfig {
    /// Checks every number against its range.
    pub fn validate(&self) -> Result<()> {
        check_learning_rate(self.learning_rate)?;
        for (name, value) in
            [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("ema_decay", self.ema_decay)]
        {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::argument(name, value, "in [0, 1)"));
            }
        }
        if !(self.adam_epsilon > 0.0 && self.adam_epsilon.is_finite()) {
            return Err(Error::argument("adam_epsilon", self.adam_epsilon, "finite and greater than 0"));
        }
        for (name, value) in [("weight_decay", self.weight_decay), ("gradient_clip", self.gradient_clip)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::argument(name, value, "finite and at least 0"));
            }
        }
        Ok(())
    }
}

/// Checks a learning rate.
pub fn check_learning_rate(value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::argument("learning_rate", value, "finite and greater than 0"))
}
