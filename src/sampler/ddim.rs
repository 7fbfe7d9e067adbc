//! Song, Meng, Ermon, "Denoising diffusion implicit models", arXiv 2010.02502.

use tch::Tensor;

use super::prediction::{blend, eps_of};
use super::{Noise, Solver, Step};
use crate::Result;

/// Equation 12 with the sigma of equation 16: predicted x0, plus the direction that points to x_t, plus noise.
pub(super) struct Ddim {
    /// 0 is deterministic; 1 has the noise of DDPM with the smaller variance.
    pub eta: f64,
    /// Takes the direction from the limited x0 instead of the network's own noise (GLIDE, arXiv 2112.10741).
    pub use_clipped_model_output: bool,
}

impl Solver for Ddim {
    fn step(&mut self, step: &Step, noise: Noise) -> Result<Tensor> {
        let (t, p) = (&step.from, &step.to);
        let eps = if self.use_clipped_model_output { eps_of(step.x, step.x0, t)? } else { step.eps()? };
        let sigma = self.eta * (p.sigma / t.sigma) * t.beta_from(p).sqrt();
        // Never negative but by rounding: sigma^2 <= 1 - abar_p.
        let direction = (p.sigma.powi(2) - sigma.powi(2)).max(0.0).sqrt();
        let x = blend(p.alpha, step.x0, direction, &eps)?;
        if self.eta > 0.0 {
            return blend(1.0, &x, sigma, &noise()?);
        }
        Ok(x)
    }
}
