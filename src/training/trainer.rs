//! One training step (Ho et al., arXiv 2006.11239, algorithm 1): a random timestep for each image, noise, the
//! network's prediction, mean squared error, backpropagation, optimizer, moving average.
//!
//! All randomness is determined by (seed, step), so that training goes on exactly after a restart.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::adam::Adam;
use super::grad_scaler::GradScaler;
use super::{Precision, TrainingConfig};
use crate::memory;
use crate::noise::{Domain, Stream};
use crate::schedule::{NoiseSchedule, Prediction};
use crate::torch::{self, AutocastGuard, GradGuard, LowPrecision};
use crate::unet::{DiffusionModel, Parameters, UnetConfig};
use crate::{Error, Result};

/// What training changes: weights, their average, the optimizer.
pub struct Trainer {
    /// The weights that are trained.
    pub parameters: Parameters,
    /// Their moving average; none where `ema_decay` is 0.
    pub ema: Option<Parameters>,
    /// The optimizer.
    pub adam: Adam,
    /// The gradient scaler; for f16 only.
    pub scaler: Option<GradScaler>,
    /// Steps taken, skipped ones included.
    pub step: u64,
    model: DiffusionModel,
    /// The tensors of `parameters` that training changes, in order.
    tensors: Vec<Tensor>,
    device: Device,
}

/// What a step needs to know besides the images.
pub struct StepContext<'a> {
    /// How to train.
    pub config: &'a TrainingConfig,
    /// The noise schedule.
    pub schedule: &'a NoiseSchedule,
    /// What the network is to predict.
    pub prediction: Prediction,
    /// Determines timesteps, noise and dropout.
    pub seed: u64,
    /// Whether the caller wants the loss, which may have to be waited for.
    pub want_loss: bool,
    /// Whether the step is to end before it changes anything.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Trainer {
    /// A trainer at step 0 for these weights.
    pub fn new(
        unet: &UnetConfig,
        parameters: Parameters,
        config: &TrainingConfig,
        device: Device,
    ) -> Result<Self> {
        parameters.set_requires_grad(true)?;
        let tensors: Vec<Tensor> = parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let _no_grad = GradGuard::set(false);
        Ok(Trainer {
            model: DiffusionModel::new(unet, &parameters)?,
            ema: if config.ema_decay > 0.0 { Some(parameters.deep_copy()?) } else { None },
            adam: Adam::new(&tensors, config.learning_rate, device)?,
            scaler: match config.mixed_precision {
                Precision::F16 => Some(GradScaler::new(device)?),
                Precision::F32 | Precision::Bf16 => None,
            },
            step: 0,
            tensors,
            parameters,
            device,
        })
    }

    /// The weights to sample with.
    pub fn sampling_parameters(&self) -> &Parameters {
        self.ema.as_ref().unwrap_or(&self.parameters)
    }

    /// One step on `images` `[batch, channels, height, width]`. On an error nothing has changed.
    pub fn train_step(&mut self, images: &Tensor, context: &StepContext) -> Result<Option<f32>> {
        let (loss, gradients) = self.gradients(images, context)?;
        let _no_grad = GradGuard::set(false);
        let mut found_inf = match &self.scaler {
            Some(scaler) => Some(scaler.unscale(&gradients)?),
            None if self.device.is_cuda() => Some(not_finite(&loss)?),
            None => None,
        };
        let mut norm = None;
        if context.config.gradient_clip > 0.0 {
            norm = Some(torch::clip_gradients(&gradients, context.config.gradient_clip)?);
        }
        // Where the host need not wait for the device it does not: a bad step is then skipped there.
        let mut value = None;
        if context.want_loss || !self.device.is_cuda() {
            let loss = read_scalar(&loss)?;
            let norm = norm.as_ref().map(read_scalar).transpose()?;
            if self.scaler.is_none() && !(loss.is_finite() && norm.is_none_or(f64::is_finite)) {
                return Err(Error::NonFinite(format!(
                    "the training loss is {loss} at step {}: no weight has changed; a smaller learning_rate or \
                     gradient_clip may help",
                    self.step
                )));
            }
            value = Some(loss as f32);
        } else if let (None, Some(norm)) = (&self.scaler, &norm) {
            found_inf =
                found_inf.map(|found| Ok::<_, Error>(found.f_maximum(&not_finite(norm)?)?)).transpose()?;
        }
        if (context.cancelled)() {
            return Err(Error::Cancelled("train_step was cancelled: no weight has changed".into()));
        }
        self.adam.update(&self.tensors, &gradients, context.config, found_inf.as_ref())?;
        if let (Some(scaler), Some(found)) = (&mut self.scaler, &found_inf) {
            scaler.update(found)?;
        }
        if let Some(ema) = &self.ema {
            let averages: Vec<Tensor> = ema.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
            torch::lerp(&averages, &self.tensors, 1.0 - context.config.ema_decay)?;
        }
        self.step += 1;
        Ok(value)
    }

    /// Loss and gradients, the latter multiplied by the scaler's scale.
    fn gradients(&self, images: &Tensor, context: &StepContext) -> Result<(Tensor, Vec<Tensor>)> {
        let (target, noisy, timesteps) = self.example(images, context)?;
        let dropout = Dropout { seed: context.seed, step: self.step, calls: Cell::new(0) };
        let _grad = GradGuard::set(true);
        let predicted = {
            let _autocast = match context.config.mixed_precision {
                Precision::F32 => None,
                Precision::F16 => Some(AutocastGuard::enter(self.device, LowPrecision::F16)?),
                Precision::Bf16 => Some(AutocastGuard::enter(self.device, LowPrecision::Bf16)?),
            };
            self.model.forward(&noisy, &timesteps, None, Some(&|x: &Tensor, p: f64| dropout.apply(x, p)))?
        };
        let loss = predicted.f_to_kind(Kind::Float)?.f_mse_loss(&target, tch::Reduction::Mean)?;
        if (context.cancelled)() {
            return Err(Error::Cancelled("train_step was cancelled: no weight has changed".into()));
        }
        let scaled = match &self.scaler {
            Some(scaler) => loss.f_mul(&scaler.scale)?,
            None => loss.shallow_clone(),
        };
        let gradients = Tensor::f_run_backward(&[scaled], &self.tensors, false, false)?;
        let _no_grad = GradGuard::set(false);
        let gradients = gradients.into_iter().zip(&self.tensors).map(|(g, p)| laid_out_like(g, p));
        Ok((loss.f_detach()?, gradients.collect::<Result<_>>()?))
    }

    /// What the network is to predict, from what, at which timesteps.
    fn example(&self, images: &Tensor, context: &StepContext) -> Result<(Tensor, Tensor, Tensor)> {
        let shape = images.size();
        let batch = shape.first().copied().unwrap_or(0) as usize;
        let each = images.numel() / batch.max(1);
        let mut noise = memory::zeroed(images.numel())?;
        let mut timesteps = Vec::with_capacity(batch);
        // Two draws a step; the counter's upper half moves on after 2^31 steps.
        let (high, draw) = (self.step >> 31, ((self.step & 0x7fff_ffff) * 2) as u32);
        for (i, image) in noise.chunks_exact_mut(each.max(1)).enumerate() {
            let stream = Stream::new(Domain::Train, context.seed, (i as u64) ^ (high << 40));
            timesteps.push(stream.below(draw, context.schedule.noise_steps() as u64) as i64);
            stream.fill_normal(draw + 1, image);
        }
        let noise = Tensor::f_from_slice(&noise)?.f_view(shape.as_slice())?.f_to_device(self.device)?;
        let noisy = context.schedule.add_noise(images, &noise, &timesteps)?;
        let target = match context.prediction {
            Prediction::Epsilon => noise,
            Prediction::Sample => images.shallow_clone(),
            Prediction::Velocity => context.schedule.velocity(images, &noise, &timesteps)?,
        };
        let timesteps = Tensor::f_from_slice(&timesteps)?.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        Ok((target, noisy, timesteps))
    }
}

/// Dropout of one step: the masks of its calls are determined by (seed, step, call).
struct Dropout {
    seed: u64,
    step: u64,
    calls: Cell<u64>,
}

impl Dropout {
    fn apply(&self, x: &Tensor, p: f64) -> Result<Tensor> {
        let call = self.calls.replace(self.calls.get() + 1);
        let seed = Stream::new(Domain::Dropout, self.seed, self.step).below(call as u32, u64::MAX);
        let mask = x.f_detach()?.f_empty_like()?;
        torch::bernoulli(&mask, 1.0 - p, seed)?;
        Ok(x.f_mul(&mask)?.f_mul_scalar(1.0 / (1.0 - p))?)
    }
}

/// A gradient with its parameter's strides. Autograd hands out whatever layout the backward kernel made, and the
/// fused optimizer walks both as flat memory: with other strides it would update the wrong weights.
fn laid_out_like(gradient: Tensor, parameter: &Tensor) -> Result<Tensor> {
    if gradient.stride() == parameter.stride() {
        return Ok(gradient);
    }
    let mut copy = parameter.f_empty_like()?;
    copy.f_copy_(&gradient)?;
    Ok(copy)
}

/// 1 where a scalar is NaN or infinite, else 0; on its device, without waiting.
fn not_finite(scalar: &Tensor) -> Result<Tensor> {
    Ok(scalar.f_isfinite()?.f_logical_not()?.f_to_kind(Kind::Float)?)
}

fn read_scalar(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.f_double_value(&[])?)
}
