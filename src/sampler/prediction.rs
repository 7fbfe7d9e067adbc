//! From what the network says to what samplers need: an estimate of the clean image x0, and of the noise eps.
//!
//! The three meanings of the output are related by x = alpha x0 + sigma eps and v = alpha eps - sigma x0
//! (Salimans, Ho, arXiv 2202.00512, appendix D). The estimate of x0 is then kept within the range of images,
//! without which errors of the network at high noise, where 1 / alpha is large, carry the sample away.

use tch::Tensor;

use super::level::Level;
use crate::schedule::Prediction;
use crate::Result;

/// Reads the network's output, with the options that do not depend on the sampler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denoiser {
    /// What the output stands for.
    pub prediction: Prediction,
    /// What is done to x0.
    pub limit: Limit,
}

/// How an estimate of x0 is kept within the range of images.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// Not at all.
    Off,
    /// Clamped to plus and minus this.
    Clip(f64),
    /// Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3) with this percentile, as a fraction.
    Dynamic(f64),
}

impl Denoiser {
    /// The limited estimate of x0 from the network's `output` at `x`, all `[n, c, h, w]`.
    pub fn x0(&self, x: &Tensor, output: &Tensor, at: &Level) -> Result<Tensor> {
        let x0 = match self.prediction {
            // Where alpha is below the rounding of x, the noise says nothing of the image: its range's middle
            // is left.
            Prediction::Epsilon if at.alpha <= f64::from(f32::EPSILON) => x.f_zeros_like()?,
            Prediction::Epsilon => blend(1.0 / at.alpha, x, -at.sigma / at.alpha, output)?,
            Prediction::Sample => output.shallow_clone(),
            Prediction::Velocity => blend(at.alpha, x, -at.sigma, output)?,
        };
        match self.limit {
            Limit::Off => Ok(x0),
            Limit::Clip(range) => Ok(x0.f_clamp(-range, range)?),
            Limit::Dynamic(fraction) => dynamic_threshold(&x0, fraction),
        }
    }

    /// The estimate of eps from the network's `output` at `x`, whatever was done to x0.
    pub fn eps(&self, x: &Tensor, output: &Tensor, at: &Level) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok(output.shallow_clone()),
            Prediction::Sample => eps_of(x, output, at),
            Prediction::Velocity => blend(at.sigma, x, at.alpha, output),
        }
    }
}

/// The noise that `x` holds if `x0` is its image.
pub(crate) fn eps_of(x: &Tensor, x0: &Tensor, at: &Level) -> Result<Tensor> {
    blend(1.0 / at.sigma, x, -at.alpha / at.sigma, x0)
}

/// a x + b y. The coefficients are f64 and are rounded once, to the tensors' kind.
pub(crate) fn blend(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    Ok(x.f_mul_scalar(a)?.f_add_(&y.f_mul_scalar(b)?)?)
}

/// Clamps each image to the given percentile of its own magnitudes, where that is above 1, and divides by it.
/// Where it is not above 1 this is a clamp to [-1, 1]. (diffusers' `sample_max_value` of 1 undoes the division;
/// it has no counterpart here.)
fn dynamic_threshold(x0: &Tensor, fraction: f64) -> Result<Tensor> {
    let magnitudes = x0.f_flatten(1, -1)?.f_abs()?;
    let count = magnitudes.size().last().copied().unwrap_or_default();
    // Linear between the two order statistics around the percentile, as torch.quantile, which refuses large
    // batches.
    let rank = fraction * (count - 1).max(0) as f64;
    let kept = count - rank.floor() as i64;
    let (largest, _) = magnitudes.f_topk(kept, 1, true, true)?;
    let low = largest.f_select(1, kept - 1)?;
    let high = largest.f_select(1, (kept - 2).max(0))?;
    let mut column = vec![-1];
    column.resize(x0.dim(), 1);
    let bound =
        blend(1.0 - rank.fract(), &low, rank.fract(), &high)?.f_clamp_min(1.0)?.f_view(&column[..])?;
    Ok(x0.f_minimum(&bound)?.f_maximum(&bound.f_neg()?)?.f_div_(&bound)?)
}
