//! Heun's method, of second order: algorithm 1 of Karras, Aittala, Aila, Laine, arXiv 2206.00364, without churn.
//!
//! A step to the next level is Euler's; the slope is then asked again at its end, and the step repeated from
//! its start with the mean of the two slopes. The last step, to the image, is Euler's alone: n levels make 2n -
//! 1 evaluations.

use tch::Tensor;

use super::level::Level;
use super::prediction::{blend, eps_of};
use super::{Noise, Solver, Step};
use crate::Result;

#[derive(Default)]
pub(super) struct Heun {
    /// An Euler step whose end has not been asked yet.
    pending: Option<Pending>,
}

struct Pending {
    from: Level,
    x: Tensor,
    /// dy/ds in Karras's frame, which is the noise in x.
    slope: Tensor,
}

/// The level of each evaluation: the first once, every other one twice.
pub(super) fn evaluations(levels: &[Level]) -> Vec<Level> {
    levels.iter().flat_map(|&level| [level, level]).skip(1).collect()
}

impl Solver for Heun {
    fn step(&mut self, step: &Step, _: Noise) -> Result<Tensor> {
        let slope = eps_of(step.x, step.x0, &step.from)?;
        let Some(start) = self.pending.take() else {
            let x = blend(step.to.alpha, step.x0, step.to.sigma, &slope)?;
            self.pending = Some(Pending { from: step.from, x: step.x.shallow_clone(), slope });
            return Ok(x);
        };
        // x' = alpha' y', y' = y + (s' - s) (slope + slope') / 2, y = x / alpha, s = sigma / alpha.
        let end = &step.from;
        let half = 0.5 * end.alpha * (end.ratio() - start.from.ratio());
        let slopes = start.slope.f_add(&slope)?;
        blend(end.alpha / start.from.alpha, &start.x, half, &slopes)
    }

    fn keep_rows(&mut self, rows: &Tensor) -> Result<()> {
        if let Some(pending) = &mut self.pending {
            pending.x = pending.x.f_index_select(0, rows)?;
            pending.slope = pending.slope.f_index_select(0, rows)?;
        }
        Ok(())
    }
}
