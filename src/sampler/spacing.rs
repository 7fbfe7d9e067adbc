//! Which noise levels a sampler visits, from the noisiest down.
//!
//! The lists are those of diffusers 0.42.1, whose samplers differ in them, wherever those are sound: see
//! [`Family`]. The names are those of Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps
//! are flawed", arXiv 2305.08891, table 2.

use super::level::Level;
use super::{Method, SamplerParams};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// How the timesteps that are visited are spread over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of a whole stride from timestep 0 up. The list ends at timestep 0 and starts up to a stride
    /// below the last timestep; with few steps, or where they do not divide the timesteps, it starts far below,
    /// and an image that is sampled from pure noise suffers ([`SamplerParams::warning`] says so). The default
    /// of DDPM and DDIM, for compatibility.
    Leading,
    /// From the last timestep down at even distances. The better choice for few steps.
    Trailing,
    /// From the last timestep to the first at even distances.
    Linspace,
    /// sigma = (sigma_max^(1/7) + i/(n-1) (sigma_min^(1/7) - sigma_max^(1/7)))^7 (Karras, Aittala, Aila, Laine,
    /// arXiv 2206.00364, equation 5), sigma being sqrt((1 - abar) / abar): most steps where there is little
    /// noise. The network is asked between timesteps.
    Karras,
}

/// Samplers fall into three families by the way in which they choose timesteps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// DDPM and DDIM: n whole timesteps.
    Whole,
    /// DPM-Solver++ and UniPC: whole timesteps, of n + 1 intervals the last of which leads to the image.
    Multistep,
    /// Euler and Heun: n timesteps that need not be whole.
    Continuous,
}

/// The least lambda that a sampler steps from if it measures its steps in lambda or sigma. The last timesteps
/// of the cosine schedule are far beyond: its first two sigmas would be 20291 and 6.36 of 10 steps, a step that
/// no formula bridges. -5.1 is the value that DPM-Solver++'s authors use (`lambda_min_clipped`), and leaves the
/// linear schedule as it is. alpha is 0.006 there.
const LAMBDA_MIN: f64 = -5.1;

/// Karras's rho.
const RHO: f64 = 7.0;

/// The levels at which a sampler with `params` asks the network: at least one, at most `params.steps`, each
/// with less noise than the one before.
pub(crate) fn levels(params: &SamplerParams, schedule: &NoiseSchedule) -> Result<Vec<Level>> {
    let usable = usable(params, schedule);
    let steps = params.steps.min(usable);
    if params.spacing == Spacing::Karras {
        return karras(schedule, steps, usable);
    }
    let mut timesteps = timesteps(params, schedule.noise_steps(), usable, steps);
    if params.spacing == Spacing::Leading {
        let highest = timesteps.first().copied().unwrap_or_default() as usize;
        let room = (usable - 1).saturating_sub(highest);
        if params.steps_offset > room {
            return Err(Error::argument(
                "steps_offset",
                params.steps_offset,
                format_args!("in 0..={room} with {} of {} timesteps", params.steps, schedule.noise_steps()),
            ));
        }
        timesteps.iter_mut().for_each(|timestep| *timestep += params.steps_offset as f64);
    }
    timesteps.into_iter().map(|timestep| Level::at(schedule, timestep)).collect()
}

fn family(method: Method) -> Family {
    match method {
        Method::Ddpm | Method::Ddim => Family::Whole,
        Method::DpmSolverPp2M | Method::DpmSolverPp2MSde | Method::UniPc => Family::Multistep,
        Method::Euler | Method::Heun => Family::Continuous,
    }
}

/// How many timesteps, from 0 up, may be visited.
fn usable(params: &SamplerParams, schedule: &NoiseSchedule) -> usize {
    // DDPM, DDIM and Euler have no step that is too long: with whole timesteps they use the table to its end.
    let by_lambda = !matches!(params.method, Method::Ddpm | Method::Ddim | Method::Euler);
    if !by_lambda && params.spacing != Spacing::Karras {
        return schedule.noise_steps();
    }
    schedule.spreads().partition_point(|spread| -spread.ln() >= LAMBDA_MIN).max(1)
}

/// `steps` timesteps below `usable`, highest first.
fn timesteps(params: &SamplerParams, total: usize, usable: usize, steps: usize) -> Vec<f64> {
    let family = family(params.method);
    if steps == usable {
        return (0..usable).rev().map(|timestep| timestep as f64).collect();
    }
    // steps < usable from here on, so strides are at least 1 and no timestep comes twice.
    match (params.spacing, family) {
        (Spacing::Leading, Family::Multistep) => {
            let stride = usable / (steps + 1);
            (1..=steps).rev().map(|i| (i * stride) as f64).collect()
        }
        (Spacing::Leading, _) => {
            let stride = usable / steps;
            (0..steps).rev().map(|i| (i * stride) as f64).collect()
        }
        (Spacing::Trailing, _) => trailing(total, usable, steps),
        (Spacing::Linspace | Spacing::Karras, Family::Multistep) => {
            (1..=steps).rev().map(|i| linspace(usable, steps + 1, i).round_ties_even()).collect()
        }
        (Spacing::Linspace | Spacing::Karras, _) => {
            let whole = family == Family::Whole;
            let timestep = |i| linspace(usable, steps, i);
            (0..steps)
                .rev()
                .map(|i| if whole { timestep(i).round_ties_even() } else { timestep(i) })
                .collect()
        }
    }
}

/// Entry `i` of `count` even steps over `0..=usable - 1`. One step alone is the last timestep, where the noise
/// is: numpy and so diffusers have the first one there.
fn linspace(usable: usize, count: usize, i: usize) -> f64 {
    let last = (usable - 1) as f64;
    if i + 1 == count {
        return last;
    }
    i as f64 * (last / (count - 1) as f64)
}

/// `usable`, `usable - total / steps`, ... rounded, each less 1.
fn trailing(total: usize, usable: usize, steps: usize) -> Vec<f64> {
    let start = usable as f64;
    // numpy's arange takes the stride from its first two values, and a tie may be broken by that. (With 62
    // numbers of steps out of 1000 it also adds one entry too many, which diffusers then reads as timestep -1.)
    let stride = (start - total as f64 / steps as f64) - start;
    let rounded = (0..steps).map(|i| (start + i as f64 * stride).round_ties_even());
    // Where lambda is clipped the list may end early.
    rounded.take_while(|&value| value >= 1.0).map(|value| value - 1.0).collect()
}

fn karras(schedule: &NoiseSchedule, steps: usize, usable: usize) -> Result<Vec<Level>> {
    let spreads = schedule.spreads();
    let low = spreads.first().copied().unwrap_or(1.0);
    let high = spreads.get(usable - 1).copied().unwrap_or(low);
    let (root_low, root_high) = (low.powf(1.0 / RHO), high.powf(1.0 / RHO));
    let level = |i: usize| {
        if i == 0 {
            // The ends are in the table; and the highest may be infinite where there is but one.
            return Level::at(schedule, (usable - 1) as f64);
        }
        if i + 1 == steps {
            return Level::at(schedule, 0.0);
        }
        let sigma = (root_high + i as f64 / (steps - 1) as f64 * (root_low - root_high)).powf(RHO);
        Ok(Level::of_ratio(timestep_of(&spreads, sigma), sigma))
    };
    (0..steps).map(level).collect()
}

/// The timestep, whole or not, at which the ascending `spreads`, joined by straight lines, are `sigma`.
fn timestep_of(spreads: &[f64], sigma: f64) -> f64 {
    let above = spreads.partition_point(|&spread| spread <= sigma);
    let below = above.saturating_sub(1);
    match (spreads.get(below), spreads.get(above)) {
        (Some(&low), Some(&high)) if high.is_finite() && high > low => {
            below as f64 + (sigma - low) / (high - low)
        }
        _ => below as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{BetaSchedule, ScheduleConfig};

    fn schedule(kind: BetaSchedule, beta_end: f64, noise_steps: usize) -> NoiseSchedule {
        NoiseSchedule::new(&ScheduleConfig { kind, beta_end, noise_steps, ..Default::default() })
            .expect("valid")
    }

    fn list(method: Method, spacing: Spacing, steps: usize, schedule: &NoiseSchedule) -> Vec<f64> {
        let params = SamplerParams { spacing, ..SamplerParams::new(method, steps) };
        levels(&params, schedule).expect("levels").iter().map(|level| level.timestep).collect()
    }

    /// Lists printed by diffusers 0.42.1's schedulers for 1000 timesteps of the linear schedule.
    #[test]
    fn lists_of_diffusers() {
        let linear = schedule(BetaSchedule::Linear, 0.02, 1000);
        let list = |method, spacing, steps| list(method, spacing, steps, &linear);
        assert_eq!(list(Method::Ddim, Spacing::Leading, 4), [750.0, 500.0, 250.0, 0.0]);
        assert_eq!(list(Method::Ddim, Spacing::Leading, 7), [852.0, 710.0, 568.0, 426.0, 284.0, 142.0, 0.0]);
        assert_eq!(list(Method::Ddim, Spacing::Trailing, 4), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(
            list(Method::Ddpm, Spacing::Trailing, 7),
            [999.0, 856.0, 713.0, 570.0, 428.0, 285.0, 142.0]
        );
        assert_eq!(list(Method::Ddim, Spacing::Linspace, 5), [999.0, 749.0, 500.0, 250.0, 0.0]);
        assert_eq!(list(Method::DpmSolverPp2M, Spacing::Linspace, 5), [999.0, 799.0, 599.0, 400.0, 200.0]);
        assert_eq!(list(Method::UniPc, Spacing::Leading, 5), [830.0, 664.0, 498.0, 332.0, 166.0]);
        assert_eq!(list(Method::DpmSolverPp2MSde, Spacing::Trailing, 5), [999.0, 799.0, 599.0, 399.0, 199.0]);
        assert_eq!(list(Method::Euler, Spacing::Linspace, 5), [999.0, 749.25, 499.5, 249.75, 0.0]);
        // 1000 - 3 * 1000/48 is 937.5, but a hair less in numpy's arithmetic.
        let by_48 = list(Method::Ddim, Spacing::Trailing, 48);
        assert_eq!(by_48[..5], [999.0, 978.0, 957.0, 936.0, 916.0]);
        // numpy's own list has 62 entries for 61 steps, the last of them timestep -1.
        let by_61 = list(Method::Ddim, Spacing::Trailing, 61);
        assert_eq!((by_61.len(), by_61.last()), (61, Some(&15.0)));
    }

    #[test]
    fn cosine_is_clipped_where_steps_are_measured_in_lambda() {
        let cosine = schedule(BetaSchedule::Cosine, 0.999, 1000);
        for spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace, Spacing::Karras] {
            for method in [Method::DpmSolverPp2M, Method::DpmSolverPp2MSde, Method::UniPc, Method::Heun] {
                for steps in [1, 10, 700, 1000] {
                    let params = SamplerParams { spacing, ..SamplerParams::new(method, steps) };
                    for level in levels(&params, &cosine).expect("levels") {
                        assert!(level.lambda() >= LAMBDA_MIN - 1e-9);
                    }
                }
            }
            let first = list(Method::Ddim, spacing, 1000, &cosine)[0];
            assert_eq!(first, if spacing == Spacing::Karras { 995.0 } else { 999.0 });
        }
        // diffusers' list with lambda_min_clipped = -5.1.
        assert_eq!(
            list(Method::DpmSolverPp2M, Spacing::Linspace, 5, &cosine),
            [995.0, 796.0, 597.0, 398.0, 199.0]
        );
        assert_eq!(
            list(Method::DpmSolverPp2M, Spacing::Trailing, 5, &cosine),
            [995.0, 795.0, 595.0, 395.0, 195.0]
        );
    }

    #[test]
    fn karras_levels_are_the_papers() {
        let linear = schedule(BetaSchedule::Linear, 0.02, 1000);
        let params = SamplerParams { spacing: Spacing::Karras, ..SamplerParams::new(Method::Euler, 9) };
        let levels = levels(&params, &linear).expect("levels");
        let sigma = |t: usize| ((1.0 - linear.alpha_cumprod[t]) / linear.alpha_cumprod[t]).sqrt();
        for (i, level) in levels.iter().enumerate() {
            let (high, low) = (sigma(999).powf(1.0 / 7.0), sigma(0).powf(1.0 / 7.0));
            let wanted = (high + i as f64 / 8.0 * (low - high)).powi(7);
            assert!((level.ratio() / wanted - 1.0).abs() < 1e-9);
            // The timestep that the network is told has that level.
            let abar = linear.alpha_cumprod_at(level.timestep).expect("in range");
            assert!((((1.0 - abar) / abar).sqrt() / wanted - 1.0).abs() < 1e-9);
        }
    }
}
