//! One training step (Ho et al., arXiv 2006.11239, algorithm 1): a random timestep for each image, noise, the
//! network's prediction, the loss, backpropagation, optimizer, moving average.
//!
//! All randomness is determined by (seed, call), so that training goes on exactly after a restart.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::adam::Adam;
use super::grad_scaler::GradScaler;
use super::{Loss, Precision, TrainingConfig};
use crate::noise::{self, Domain, Stream};
use crate::schedule::{NoiseSchedule, Prediction};
use crate::torch::cuda::upload;
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
    /// Optimizer steps taken, skipped ones included.
    pub step: u64,
    /// Calls of [`Self::train_step`] that succeeded: what timesteps, noise and dropout follow from.
    pub calls: u64,
    /// Gradients of the calls since the last optimizer step, where several make one.
    pub accumulated: Option<Accumulated>,
    model: DiffusionModel,
    /// The tensors of `parameters` that training changes, in order.
    tensors: Vec<Tensor>,
    device: Device,
}

/// The part of an optimizer step that has been computed.
pub struct Accumulated {
    /// Sums of the calls' gradients, each divided by `accumulation_steps`, in the parameters' order.
    pub gradients: Vec<Tensor>,
    /// The sum of the calls' losses, a scalar: not finite where any of them was not.
    pub loss: Tensor,
    /// How many calls.
    pub calls: u64,
}

/// What a step needs to know besides the images.
pub struct StepContext<'a> {
    /// The class of each image, for a network that has classes.
    pub class_labels: Option<&'a [i64]>,
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
    /// A trainer at step 0 for these weights; with EMA, for a copy of them, and they become the average.
    pub fn new(
        unet: &UnetConfig,
        parameters: Parameters,
        config: &TrainingConfig,
        device: Device,
    ) -> Result<Self> {
        let _no_grad = GradGuard::set(false);
        let (parameters, ema) = match config.ema_decay > 0.0 {
            true => (parameters.deep_copy()?, Some(parameters)),
            false => (parameters, None),
        };
        parameters.set_requires_grad(true)?;
        let tensors: Vec<Tensor> = parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
        Ok(Trainer {
            model: DiffusionModel::new(unet, &parameters)?,
            ema,
            adam: Adam::new(&tensors, config.learning_rate, device)?,
            scaler: match config.mixed_precision {
                Precision::F16 => Some(GradScaler::new(device)?),
                Precision::F32 | Precision::Bf16 => None,
            },
            step: 0,
            calls: 0,
            accumulated: None,
            tensors,
            parameters,
            device,
        })
    }

    /// One step on `images` `[batch, channels, height, width]`, or one of the `accumulation_steps` parts of a step; the
    /// loss of these images. On an error nothing has changed.
    pub fn train_step(&mut self, images: &Tensor, context: &StepContext) -> Result<Option<f32>> {
        let (loss, gradients) = self.gradients(images, context)?;
        let _no_grad = GradGuard::set(false);
        let so_far = self.accumulated.as_ref().map_or(0, |accumulated| accumulated.calls);
        let value = match so_far + 1 < context.config.accumulation_steps {
            true => self.accumulate(&loss, gradients, context)?,
            false => self.update(&loss, &gradients, context)?,
        };
        self.calls += 1;
        Ok(value)
    }

    /// Keeps the gradients of one call for the optimizer step that a later one makes.
    fn accumulate(
        &mut self,
        loss: &Tensor,
        gradients: Vec<Tensor>,
        context: &StepContext,
    ) -> Result<Option<f32>> {
        let value = match context.want_loss || !self.device.is_cuda() {
            true => Some(self.checked_loss(loss, None)?),
            false => None,
        };
        not_cancelled(context)?;
        match &mut self.accumulated {
            None => self.accumulated = Some(Accumulated { gradients, loss: loss.shallow_clone(), calls: 1 }),
            Some(before) => {
                let total = before.loss.f_add(loss)?;
                torch::add(&before.gradients, &gradients)?;
                before.loss = total;
                before.calls += 1;
            }
        }
        Ok(value)
    }

    /// Moves the weights by the gradients of this call and of those before it.
    fn update(&mut self, loss: &Tensor, gradients: &[Tensor], context: &StepContext) -> Result<Option<f32>> {
        let mut total = loss.shallow_clone();
        if let Some(before) = &self.accumulated {
            torch::add(gradients, &before.gradients)?;
            total = total.f_add(&before.loss)?;
        }
        let mut found_inf = match &self.scaler {
            Some(scaler) => Some(scaler.unscale(gradients)?),
            None if self.device.is_cuda() => Some(not_finite(&total)?),
            None => None,
        };
        let mut norm = None;
        if context.config.gradient_clip > 0.0 {
            norm = Some(torch::clip_gradients(gradients, context.config.gradient_clip)?);
        }
        // Where the host need not wait for the device it does not: a bad step is then skipped there.
        let mut value = None;
        if context.want_loss || !self.device.is_cuda() {
            value = Some(self.checked_loss(loss, norm.as_ref())?);
        } else if let (None, Some(norm)) = (&self.scaler, &norm) {
            found_inf =
                found_inf.map(|found| Ok::<_, Error>(found.f_maximum(&not_finite(norm)?)?)).transpose()?;
        }
        not_cancelled(context)?;
        let factor = context.config.learning_rate_factor(self.step);
        self.adam.update(&self.tensors, gradients, context.config, factor, found_inf.as_ref())?;
        if let (Some(scaler), Some(found)) = (&mut self.scaler, &found_inf) {
            scaler.update(found)?;
        }
        if let Some(ema) = &self.ema {
            let averages: Vec<Tensor> = ema.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
            torch::lerp(&averages, &self.tensors, 1.0 - context.config.ema_decay)?;
        }
        self.step += 1;
        self.accumulated = None;
        Ok(value)
    }

    /// The value of a loss, or why there must be no step with it.
    fn checked_loss(&self, loss: &Tensor, norm: Option<&Tensor>) -> Result<f32> {
        let loss = read_scalar(loss)?;
        let norm = norm.map(read_scalar).transpose()?;
        if self.scaler.is_none() && !(loss.is_finite() && norm.is_none_or(f64::is_finite)) {
            return Err(Error::NonFinite(format!(
                "the training loss is {loss} at step {}: no weight has changed; a smaller learning_rate or \
                 gradient_clip may help",
                self.step
            )));
        }
        Ok(loss as f32)
    }

    /// Loss and gradients, the latter divided by `accumulation_steps` and multiplied by the scaler's scale.
    fn gradients(&self, images: &Tensor, context: &StepContext) -> Result<(Tensor, Vec<Tensor>)> {
        let Example { target, noisy, timesteps, weights } = self.example(images, context)?;
        let labels = context.class_labels;
        let labels = labels.map(|l| upload(l, &[l.len() as i64], self.device)).transpose()?;
        let dropout = Dropout { seed: context.seed, call: self.calls, layers: Cell::new(0) };
        let _grad = GradGuard::set(true);
        let predicted = {
            let _autocast = match context.config.mixed_precision {
                Precision::F32 => None,
                Precision::F16 => Some(AutocastGuard::enter(self.device, LowPrecision::F16)?),
                Precision::Bf16 => Some(AutocastGuard::enter(self.device, LowPrecision::Bf16)?),
            };
            let drop = |x: &Tensor, p: f64| dropout.apply(x, p);
            self.model.forward(&noisy, &timesteps, labels.as_ref(), Some(&drop))?
        };
        let loss = loss(&predicted.f_to_kind(Kind::Float)?, &target, weights.as_ref(), context.config)?;
        not_cancelled(context)?;
        let mut scaled = loss.shallow_clone();
        if context.config.accumulation_steps > 1 {
            scaled = scaled.f_div_scalar(context.config.accumulation_steps as f64)?;
        }
        if let Some(scaler) = &self.scaler {
            scaled = scaled.f_mul(&scaler.scale)?;
        }
        let gradients = Tensor::f_run_backward(&[scaled], &self.tensors, false, false)?;
        let _no_grad = GradGuard::set(false);
        let gradients = gradients.into_iter().zip(&self.tensors).map(|(g, p)| laid_out_like(g, p));
        Ok((loss.f_detach()?, gradients.collect::<Result<_>>()?))
    }

    /// What the network is to predict, from what, at which timesteps.
    fn example(&self, images: &Tensor, context: &StepContext) -> Result<Example> {
        let shape = images.size();
        let batch = shape.first().copied().unwrap_or(0) as usize;
        let each = images.numel() / batch.max(1);
        let (mut streams, mut timesteps) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
        // Two draws a call; the counter's upper half moves on after 2^31 calls.
        let (high, draw) = (self.calls >> 31, ((self.calls & 0x7fff_ffff) * 2) as u32);
        for i in 0..batch as u64 {
            let stream = Stream::new(Domain::Train, context.seed, i ^ (high << 40));
            timesteps.push(stream.below(draw, context.schedule.noise_steps() as u64) as i64);
            streams.push(stream);
        }
        let noise = noise::device::normal(&streams, draw + 1, each, self.device)?.f_view(shape.as_slice())?;
        let noisy = context.schedule.add_noise(images, &noise, &timesteps)?;
        let target = match context.prediction {
            Prediction::Epsilon => noise,
            Prediction::Sample => images.shallow_clone(),
            Prediction::Velocity => context.schedule.velocity(images, &noise, &timesteps)?,
        };
        let weights = match context.config.min_snr_gamma {
            0.0 => None,
            gamma => {
                let weights: Vec<f32> = (timesteps.iter())
                    .map(|&t| Ok(context.schedule.min_snr_weight(t, gamma, context.prediction)? as f32))
                    .collect::<Result<_>>()?;
                Some(upload(&weights, &[batch as i64], self.device)?)
            }
        };
        let timesteps = upload(&timesteps, &[batch as i64], self.device)?.f_to_kind(Kind::Float)?;
        Ok(Example { target, noisy, timesteps, weights })
    }
}

/// What one call trains on.
struct Example {
    /// What the network is to predict, `[batch, channels, height, width]`.
    target: Tensor,
    /// From what; the same shape.
    noisy: Tensor,
    /// `[batch]`, f32.
    timesteps: Tensor,
    /// What each image's loss counts, `[batch]`; none where all count 1.
    weights: Option<Tensor>,
}

/// The mean over the batch of each image's mean loss times its weight: a scalar.
fn loss(
    predicted: &Tensor,
    target: &Tensor,
    weights: Option<&Tensor>,
    config: &TrainingConfig,
) -> Result<Tensor> {
    let pointwise = |reduction| match config.loss {
        Loss::Mse => predicted.f_mse_loss(target, reduction),
        Loss::Huber => predicted.f_huber_loss(target, reduction, config.huber_delta),
    };
    let Some(weights) = weights else { return Ok(pointwise(tch::Reduction::Mean)?) };
    let each = pointwise(tch::Reduction::None)?.f_mean_dim(&[1i64, 2, 3][..], false, Kind::Float)?;
    Ok(each.f_mul(weights)?.f_mean(Kind::Float)?)
}

/// An error where the step is to end before it changes anything.
fn not_cancelled(context: &StepContext) -> Result<()> {
    match (context.cancelled)() {
        true => Err(Error::Cancelled("train_step was cancelled: no weight has changed".into())),
        false => Ok(()),
    }
}

/// Dropout of one call: the masks are determined by (seed, call, layer).
struct Dropout {
    seed: u64,
    call: u64,
    layers: Cell<u64>,
}

impl Dropout {
    fn apply(&self, x: &Tensor, p: f64) -> Result<Tensor> {
        let layer = self.layers.replace(self.layers.get() + 1);
        let seed = Stream::new(Domain::Dropout, self.seed, self.call).below(layer as u32, u64::MAX);
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
