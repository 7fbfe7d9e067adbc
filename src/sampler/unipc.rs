//! UniPC-2 with B(h) = e^h - 1 (`bh2`), predicting x0: Zhao, Bai, Rao, Zhou, Lu, arXiv 2302.04867.
//!
//! Its predictor, UniP-2, is DPM-Solver++ 2M's step. The corrector UniC uses the network's answer at the
//! predicted point twice, first to repeat the step that led there with one order more, which costs no
//! evaluation of its own.

use tch::Tensor;

use super::dpm_solver::extrapolated;
use super::level::Level;
use super::prediction::blend;
use super::{Noise, Solver, Step};
use crate::Result;

#[derive(Default)]
pub(super) struct UniPc {
    /// The step that led to the point where the network has just been asked.
    last: Option<Last>,
}

struct Last {
    from: Level,
    /// The corrected x it started from.
    x: Tensor,
    /// x0 as the network saw it there.
    x0: Tensor,
    /// Level and x0 of one step earlier, if the step used them.
    before: Option<(Level, Tensor)>,
}

impl Solver for UniPc {
    fn step(&mut self, step: &Step, _: Noise) -> Result<Tensor> {
        let last = self.last.take();
        let x = match &last {
            Some(last) => last.corrected(step)?,
            None => step.x.shallow_clone(),
        };
        let before = last.map(|last| (last.from, last.x0));
        let line = extrapolated(step, before.as_ref().map(|(level, x0)| (level, x0)))?;
        let next = base(&step.from, &step.to, &x, &line)?;
        self.last = Some(Last { from: step.from, x, x0: step.x0.shallow_clone(), before });
        Ok(next)
    }

    fn keep_rows(&mut self, rows: &Tensor) -> Result<()> {
        if let Some(last) = &mut self.last {
            last.x = last.x.f_index_select(0, rows)?;
            last.x0 = last.x0.f_index_select(0, rows)?;
            if let Some((_, x0)) = &mut last.before {
                *x0 = x0.f_index_select(0, rows)?;
            }
        }
        Ok(())
    }
}

impl Last {
    /// UniC, equation 9 and appendix E.1's data form: the step from here to `step.from` again, knowing x0 there.
    fn corrected(&self, step: &Step) -> Result<Tensor> {
        let h = step.from.lambda() - self.from.lambda();
        let ahead = blend(1.0, step.x0, -1.0, &self.x0)?;
        let ratio = self.before.as_ref().map(|(level, x0)| ((level.lambda() - self.from.lambda()) / h, x0));
        let change = match ratio {
            Some((r, x0)) if r.is_finite() && r < 0.0 => {
                // The coefficients that make the step exact for x0 quadratic in lambda: rho1 + rho2 = b1 and
                // r rho1 + rho2 = b2, with b_k = k! phi_{k+1}(-h) / phi_1(-h).
                let (b1, b2) = (phi(2, -h) / phi(1, -h), 2.0 * phi(3, -h) / phi(1, -h));
                let rho1 = (b1 - b2) / (1.0 - r);
                let behind = blend(1.0, x0, -1.0, &self.x0)?;
                blend(rho1 / r, &behind, b1 - rho1, &ahead)?
            }
            _ => ahead.f_mul_scalar(0.5)?,
        };
        base(&self.from, &step.from, &self.x, &self.x0.f_add(&change)?)
    }
}

/// The exact solution from `s` to `t` for an x0 that stays as it is.
fn base(s: &Level, t: &Level, x: &Tensor, x0: &Tensor) -> Result<Tensor> {
    blend(t.sigma / s.sigma, x, -t.alpha * (s.lambda() - t.lambda()).exp_m1(), x0)
}

/// phi_k(z) = sum over j of z^j / (j + k)!, so that phi_1(z) = (e^z - 1) / z and phi_{k+1}(z) = (phi_k(z) -
/// 1/k!) / z.
fn phi(k: u32, z: f64) -> f64 {
    let factorial = |n: u32| (1..=n).map(f64::from).product::<f64>();
    if z.abs() < 1.0 {
        // The recursion would cancel.
        return (0..20).map(|j| z.powi(j) / factorial(j as u32 + k)).sum();
    }
    (1..k).fold(z.exp_m1() / z, |phi, k| (phi - 1.0 / factorial(k)) / z)
}

#[cfg(test)]
mod tests {
    use super::phi;

    #[test]
    fn phi_is_the_same_by_series_and_by_recursion() {
        for k in 1..=3 {
            for z in [-1.0, 1.0] {
                let inside = phi(k, z * (1.0 - 1e-12));
                assert!((inside / phi(k, z) - 1.0).abs() < 1e-11, "phi_{k}({z})");
            }
            assert_eq!(phi(k, 0.0), [1.0, 0.5, 1.0 / 6.0][k as usize - 1]);
        }
    }
}
