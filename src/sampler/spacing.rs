//! Which noise levels a sampler visits, from the noisiest down.
//!
//! The lists are those of diffusers 0.42.1, whose samplers differ in them, wherever those are sound: see [`Family`]. The
//! names are those of Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed", arXiv
//! 2305.08891, table 2.

use super::level::Level;
use super::{Method, SamplerParams};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// How the timesteps that are visited are spread over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of a whole stride from timestep 0 up. The list ends at timestep 0 and starts up to a stride below the
    /// last timestep; with few steps, or where they do not divide the timesteps, it starts far below, and an image that
    /// is sampled from pure noise suffers ([`SamplerParams::warning`] says so). The default of DDPM and DDIM, for
    /// compatibility.
    Leading,
    /// From the last timestep down at even distances. The better choice for few steps.
    Trailing,
    /// From the last timestep to the first at even distances.
    Linspace,
    /// sigma = (sigma_max^(1/7) + i/(n-1) (sigma_min^(1/7) - sigma_max^(1/7)))^7 (Karras, Aittala, Aila, Laine, arXiv
    /// 2206.00364, equation 5), sigma being sqrt((1 - abar) / abar): most steps where there is little noise. The network
    /// is asked between timesteps.
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

/// The least lambda that a sampler steps from if it measures its steps in lambda or sigma. The last timesteps of the
/// cosine schedule are far beyond: its first two sigmas would be 20291 and 6.36 of 10 steps, a step that no formula
/// bridges. -5.1 is the value that DPM-Solver++'s authors use (`lambda_min_clipped`), and leaves the linear schedule as
/// it is. alpha is 0.006 there.
const LAMBDA_MIN: f64 = -5.1;

/// Karras's rho.
const RHO: f64 = 7.0;

/// The levels at which a sampler with `params` asks the network: at least one, at most `params.steps`, each with less
/// noise than the one before.
pub(crate) fn levels(params: &SamplerParams, schedule: &NoiseSchedule) -> Result<Vec<Level>> {
    let usable = usable(params, schedule);
    let steps = params.steps.min(usable);
    if params.spacing == Spacing::Karras {
        return Ok(karras(schedule, steps, usable));
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

/// Entry `i` of `count` even steps over `0..=usable - 1`. One step alone is the last timestep, where the noise is: numpy
/// and so diffusers have the first one there.
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
    // numpy's arange takes the stride from its first two values. What is rounded to even below may hang on that.
    let stride = (start - total as f64 / steps as f64) - start;
    let rounded = (0..steps).map(|i| (start + i as f64 * stride).round_ties_even());
    // Where lambda is clipped the list may end early.
    rounded.take_while(|&value| value >= 1.0).map(|value| value - 1.0).collect()
}

fn karras(schedule: &NoiseSchedule, steps: usize, usable: usize) -> Vec<Level> {
    let spreads = schedule.spreads();
    let low = spreads.first().copied().unwrap_or(1.0);
    let high = spreads.get(usable - 1).copied().unwrap_or(low);
    let (root_low, root_high) = (low.powf(1.0 / RHO), high.powf(1.0 / RHO));
    let ramp = |i: usize| i as f64 / (steps.max(2) - 1) as f64;
    (0..steps)
        .map(|i| {
            let sigma = (root_high + ramp(i) * (root_low - root_high)).powf(RHO).clamp(low, high);
            Level::of_ratio(timestep_of(&spreads, sigma), sigma)
        })
        .collect()
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
