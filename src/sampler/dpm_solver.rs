//! DPM-Solver++ of second order, multistep (2M), and its stochastic form: Lu, Zhou, Bao, Chen, Li, Zhu, arXiv
//! 2211.01095.

use tch::Tensor;

use super::level::Level;
use super::prediction::blend;
use super::{Noise, Solver, Step};
use crate::Result;

/// Steps in lambda = ln(alpha / sigma) with x0 taken as a straight line through its last two estimates.
#[derive(Default)]
pub(super) struct DpmSolver {
    /// Solve the reverse SDE instead of the probability flow.
    pub stochastic: bool,
    /// The last step's level and estimate of x0.
    before: Option<(Level, Tensor)>,
}

impl DpmSolver {
    pub fn new(stochastic: bool) -> Self {
        DpmSolver { stochastic, before: None }
    }
}

impl Solver for DpmSolver {
    fn step(&mut self, step: &Step, noise: Noise) -> Result<Tensor> {
        let (s, t) = (&step.from, &step.to);
        let before = self.before.take();
        let line = extrapolated(step, before.as_ref().map(|(level, x0)| (level, x0)))?;
        self.before = Some((step.from, step.x0.shallow_clone()));
        let h = t.lambda() - s.lambda();
        if !self.stochastic {
            // Algorithm 2.
            return blend(t.sigma / s.sigma, step.x, -t.alpha * (-h).exp_m1(), &line);
        }
        // Section 5, SDE-DPM-Solver++(2M): the noise that the longer way down leaves out is drawn afresh.
        let drawn = -(-2.0 * h).exp_m1();
        let x = blend(t.sigma / s.sigma * (-h).exp(), step.x, t.alpha * drawn, &line)?;
        blend(1.0, &x, t.sigma * drawn.sqrt(), &noise()?)
    }

    fn keep_rows(&mut self, rows: &Tensor) -> Result<()> {
        if let Some((_, x0)) = &mut self.before {
            *x0 = x0.f_index_select(0, rows)?;
        }
        Ok(())
    }
}

/// m0 + D1 / 2 with D1 = (m0 - m1) / r and r the last step over this one, both in lambda: x0 half a step ahead.
/// m0 alone where there is no earlier estimate.
pub(super) fn extrapolated(step: &Step, before: Option<(&Level, &Tensor)>) -> Result<Tensor> {
    let Some((level, x0)) = before else { return Ok(step.x0.shallow_clone()) };
    let r = (step.from.lambda() - level.lambda()) / (step.to.lambda() - step.from.lambda());
    if !(r.is_finite() && r > 0.0) {
        // From pure noise the last step was infinitely long, and its estimate infinitely far away.
        return Ok(step.x0.shallow_clone());
    }
    blend(1.0 + 0.5 / r, step.x0, -0.5 / r, x0)
}
