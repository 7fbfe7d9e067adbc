//! A noise level: the one thing about a timestep that a sampler's formulas need.
//!
//! x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1: the variance-preserving frame in which the U-Net lives.
//! The papers' other frames are views of it: the noise-to-signal ratio sigma / alpha is Karras's sigma (arXiv
//! 2206.00364), and half the logarithm of the signal-to-noise ratio is DPM-Solver's lambda (arXiv 2206.00927).

use crate::schedule::{log_alpha_cumprod_of, NoiseSchedule};
use crate::Result;

/// A point of the way from noise to image at which the network is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    /// What the network is told, in `0..=noise_steps - 1`; between two timesteps where the spacing is continuous.
    pub timestep: f64,
    /// sqrt(abar), how much of the image x holds: 0 where abar is 0 or below what f64 has.
    pub alpha: f64,
    /// sqrt(1 - abar), how much noise x holds: never 0.
    pub sigma: f64,
    /// ln abar, which does not underflow; negative infinity where abar is 0.
    log_abar: f64,
}

impl Level {
    /// The level of a timestep.
    pub fn at(schedule: &NoiseSchedule, timestep: f64) -> Result<Level> {
        Ok(Level::new(timestep, schedule.log_alpha_cumprod_at(timestep)?))
    }

    /// The level whose sigma / alpha is `ratio`, with the timestep that it has in the schedule.
    pub fn of_ratio(timestep: f64, ratio: f64) -> Level {
        Level::new(timestep, log_alpha_cumprod_of(ratio))
    }

    fn new(timestep: f64, log_abar: f64) -> Level {
        Level { timestep, log_abar, alpha: (0.5 * log_abar).exp(), sigma: (-log_abar.exp_m1()).sqrt() }
    }

    /// lambda = ln(alpha / sigma).
    pub fn lambda(&self) -> f64 {
        0.5 * self.log_abar - self.sigma.ln()
    }

    /// sigma / alpha, Karras's sigma.
    pub fn ratio(&self) -> f64 {
        (-self.lambda()).exp()
    }

    /// 1 - abar / abar of `cleaner`: the beta of the one step that would lead from `cleaner` here.
    pub fn beta_from(&self, cleaner: &Level) -> f64 {
        if cleaner.log_abar == f64::NEG_INFINITY {
            // Neither holds anything of the image. Any beta would do; 1 draws the noise afresh.
            return 1.0;
        }
        -(self.log_abar - cleaner.log_abar).exp_m1()
    }
}
