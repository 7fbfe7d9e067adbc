//! Adam (Kingma and Ba, arXiv 1412.6980) and AdamW (Loshchilov and Hutter, arXiv 1711.05101): the averages and how
//! they are kept; the arithmetic is libtorch's fused kernel.

use tch::{Device, Kind, Tensor};

use super::{Optimizer, TrainingConfig};
use crate::torch::{self, AdamStep};
use crate::Result;

/// The state of the optimizer.
pub struct Adam {
    /// Moving average of each parameter's gradient, in the parameters' order.
    pub exp_avg: Vec<Tensor>,
    /// Moving average of each parameter's squared gradient.
    pub exp_avg_sq: Vec<Tensor>,
    /// Updates made: a scalar f32 on the parameters' device, since a step that overflowed there does not count.
    pub step: Tensor,
    /// Step size, before warm-up and decay.
    pub learning_rate: f64,
}

impl Adam {
    /// A fresh optimizer for these parameters.
    pub fn new(parameters: &[Tensor], learning_rate: f64, device: Device) -> Result<Self> {
        let zeros = || parameters.iter().map(|p| Ok(p.f_zeros_like()?)).collect::<Result<Vec<_>>>();
        Ok(Adam {
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            step: Tensor::f_zeros([], (Kind::Float, device))?,
            learning_rate,
        })
    }

    /// One update in place with `rate_factor` times the learning rate; none where `found_inf` is a non-zero scalar.
    pub fn update(
        &mut self,
        parameters: &[Tensor],
        gradients: &[Tensor],
        config: &TrainingConfig,
        rate_factor: f64,
        found_inf: Option<&Tensor>,
    ) -> Result<()> {
        let counted = match found_inf {
            None => self.step.f_add_scalar(1.0)?,
            Some(found) => self.step.f_add_scalar(1.0)?.f_sub(found)?,
        };
        let how = AdamStep {
            learning_rate: self.learning_rate * rate_factor,
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
            decoupled: config.optimizer == Optimizer::AdamW,
        };
        torch::adam_step(parameters, gradients, &self.exp_avg, &self.exp_avg_sq, &counted, how, found_inf)?;
        self.step = counted;
        Ok(())
    }
}
