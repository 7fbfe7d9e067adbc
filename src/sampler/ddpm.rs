//! Ancestral sampling: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", arXiv 2006.11239.

use tch::Tensor;

use super::prediction::blend;
use super::{Noise, Solver, Step, Variance};
use crate::Result;

/// diffusers' floor of the variance, which it would take the logarithm of.
const MIN_VARIANCE: f64 = 1e-20;

/// Draws x at the next level from the posterior q(x_p | x_t, x0), equations 6 and 7, generalised to any two
/// levels.
pub(super) struct Ddpm {
    pub variance: Variance,
}

impl Solver for Ddpm {
    fn step(&mut self, step: &Step, noise: Noise) -> Result<Tensor> {
        let (t, p) = (&step.from, &step.to);
        // beta is 1 - abar_t / abar_p, and sigma^2 is 1 - abar.
        let beta = t.beta_from(p);
        let kept = (p.sigma / t.sigma).powi(2);
        let mean = blend(p.alpha * beta / t.sigma.powi(2), step.x0, (1.0 - beta).sqrt() * kept, step.x)?;
        let variance = match self.variance {
            Variance::FixedSmall => (kept * beta).max(MIN_VARIANCE),
            Variance::FixedLarge => beta,
        };
        blend(1.0, &mean, variance.sqrt(), &noise()?)
    }
}
