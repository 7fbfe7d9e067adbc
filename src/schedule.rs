//! The noise schedule: how much of the image and how much noise x_t holds at each timestep.
//!
//! q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), abar_t = prod_{s<=t} (1 - beta_s) (Ho, Jain, Abbeel, "Denoising
//! diffusion probabilistic models", arXiv 2006.11239, equation 4). Timesteps count from 0: abar_0 already holds one
//! step of noise. Everything is computed and kept in f64; f32 is what leaves the module.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The most timesteps that a schedule may have.
pub const MAX_NOISE_STEPS: usize = 100_000;

/// The least beta of a table. Less cannot be told from no noise at all, and leaves sqrt(1 - abar) without meaning in f32.
const MIN_BETA: f64 = 1e-20;

/// Above this sqrt(abar) at the first timestep of sampling, the start from pure noise is visibly off the data.
pub(crate) const FAINT_SIGNAL: f64 = 0.1;

/// How the noise variance beta_t grows from the first timestep to the last.
#[derive(Clone, Debug, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from beta_start to beta_end (arXiv 2006.11239: 1e-4 to 0.02 over 1000 steps).
    Linear,
    /// beta_t = 1 - abar((t+1)/T) / abar(t/T) with abar(u) = cos^2((u + 0.008) / 1.008 * pi/2), clipped to [beta_start,
    /// beta_end] (Nichol, Dhariwal, "Improved DDPM", arXiv 2102.09672, equation 17; the paper clips at 0.999).
    Cosine,
    /// beta_start + (beta_end - beta_start) (1 - cos(pi t/(T-1))) / 2: half a cosine wave between the two.
    CosineRamp,
    /// The squares of evenly spaced roots of beta (latent diffusion, arXiv 2112.10752; diffusers' `scaled_linear`).
    ScaledLinear,
    /// beta_start + (beta_end - beta_start) sigmoid(-6..6) (GeoDiff, arXiv 2203.02923; diffusers' `sigmoid`).
    Sigmoid,
    /// The caller's own betas, one per timestep (diffusers' `trained_betas`). beta_start and beta_end are not used.
    Given(Vec<f64>),
}

/// What the network's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise eps (arXiv 2006.11239).
    Epsilon,
    /// The clean image x0.
    Sample,
    /// The velocity v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans, Ho, arXiv 2202.00512).
    Velocity,
}

/// One of the five tables that a schedule is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleTable {
    /// beta_t.
    Betas,
    /// alpha_t = 1 - beta_t.
    Alphas,
    /// abar_t, the product of the alphas up to and with t.
    AlphaCumprod,
    /// sqrt(abar_t): how much of the image x_t holds.
    SqrtAlphaCumprod,
    /// sqrt(1 - abar_t): how much noise x_t holds.
    SqrtOneMinusAlphaCumprod,
}

/// What a [`NoiseSchedule`] is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleConfig {
    /// The shape of the schedule.
    pub kind: BetaSchedule,
    /// The noise variance of the first timestep, in (0, beta_end). The cosine's lower clip.
    pub beta_start: f64,
    /// The noise variance of the last timestep, in (beta_start, 1). The cosine's upper clip.
    pub beta_end: f64,
    /// How many timesteps there are, 1 to [`MAX_NOISE_STEPS`].
    pub noise_steps: usize,
    /// Shifts and scales sqrt(abar) so that the last timestep is pure noise (Lin, Liu, Li, Yang, arXiv 2305.08891,
    /// algorithm 1). Of use with [`Prediction::Velocity`] or [`Prediction::Sample`]: predicting the noise says nothing
    /// of the image where there is only noise.
    pub rescale_zero_terminal_snr: bool,
}

impl Default for ScheduleConfig {
    /// The cosine schedule over 1000 steps, which ends in pure noise for any number of steps.
    fn default() -> Self {
        ScheduleConfig {
            kind: BetaSchedule::Cosine,
            beta_start: 1e-4,
            beta_end: 0.999,
            noise_steps: 1000,
            rescale_zero_terminal_snr: false,
        }
    }
}

/// The tables of a diffusion process, each of `[noise_steps]`, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// beta_t, the variance of the noise that step t adds.
    pub beta_schedule: Vec<f64>,
    /// alpha_t = 1 - beta_t.
    pub alphas: Vec<f64>,
    /// abar_t, the product of the alphas up to and with t.
    pub alpha_cumprod: Vec<f64>,
    /// sqrt(abar_t).
    pub sqrt_alpha_cumprod: Vec<f64>,
    /// sqrt(1 - abar_t).
    pub sqrt_one_minus_alpha_cumprod: Vec<f64>,
    /// ln abar_t: exact where abar_t itself underflows, which the default betas over 100,000 steps do. Negative infinity
    /// where a beta of 1 has left nothing of the image.
    log_alpha_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// Computes the tables.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `noise_steps`, `beta_start`, `beta_end` or a given beta is out of its range (NaN
    /// is in none).
    pub fn new(config: &ScheduleConfig) -> Result<Self> {
        let steps = config.noise_steps;
        if !(1..=MAX_NOISE_STEPS).contains(&steps) {
            return Err(Error::argument("noise_steps", steps, format_args!("in 1..={MAX_NOISE_STEPS}")));
        }
        let mut betas = betas(config)?;
        if config.rescale_zero_terminal_snr {
            betas = rescale_zero_terminal_snr(&betas)?;
        }
        Ok(Self::from_betas(betas))
    }

    fn from_betas(beta_schedule: Vec<f64>) -> Self {
        let alphas: Vec<f64> = beta_schedule.iter().map(|beta| 1.0 - beta).collect();
        // Sums of logarithms keep what products of numbers next to 1, or below 1e-308, would lose.
        let log_alpha_cumprod = running(&beta_schedule, 0.0, |sum, beta| sum + (-beta).ln_1p());
        let alpha_cumprod: Vec<f64> = log_alpha_cumprod.iter().map(|log| log.exp()).collect();
        NoiseSchedule {
            sqrt_alpha_cumprod: alpha_cumprod.iter().map(|abar| abar.sqrt()).collect(),
            sqrt_one_minus_alpha_cumprod: log_alpha_cumprod.iter().map(|log| (-log.exp_m1()).sqrt()).collect(),
            beta_schedule,
            alphas,
            alpha_cumprod,
            log_alpha_cumprod,
        }
    }

    /// How many timesteps there are; they are numbered `0..noise_steps`.
    pub fn noise_steps(&self) -> usize {
        self.beta_schedule.len()
    }

    /// One of the tables as f32, `[noise_steps]`.
    pub fn table(&self, table: ScheduleTable) -> Vec<f32> {
        let values = match table {
            ScheduleTable::Betas => &self.beta_schedule,
            ScheduleTable::Alphas => &self.alphas,
            ScheduleTable::AlphaCumprod => &self.alpha_cumprod,
            ScheduleTable::SqrtAlphaCumprod => &self.sqrt_alpha_cumprod,
            ScheduleTable::SqrtOneMinusAlphaCumprod => &self.sqrt_one_minus_alpha_cumprod,
        };
        values.iter().map(|&value| value as f32).collect()
    }

    /// sqrt(abar) of the last timestep: how much of the image is left where sampling starts from none of it.
    pub fn terminal_signal(&self) -> f64 {
        self.sqrt_alpha_cumprod.last().copied().unwrap_or(1.0)
    }

    /// What to tell the user of a schedule whose last timestep is far from pure noise; None where it is near.
    pub fn warning(&self) -> Option<String> {
        let signal = self.terminal_signal();
        (signal > FAINT_SIGNAL).then(|| {
            format!(
                "sqrt(alpha_cumprod) is {signal:.3} at the last of {} timesteps: above {FAINT_SIGNAL}, sampling from pure \
                 noise starts off the data; raise beta_end or noise_steps, or use the cosine schedule with beta_end 0.999",
                self.noise_steps()
            )
        })
    }

    /// abar at a timestep in `0..=noise_steps - 1`, which may lie between two of the table: there
    /// sqrt((1 - abar) / abar) is interpolated linearly, as diffusers does for its Euler and Heun samplers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] outside that range, or for NaN.
    pub fn alpha_cumprod_at(&self, timestep: f64) -> Result<f64> {
        Ok(self.log_alpha_cumprod_at(timestep)?.exp())
    }

    /// ln abar at a timestep, as [`Self::alpha_cumprod_at`].
    pub(crate) fn log_alpha_cumprod_at(&self, timestep: f64) -> Result<f64> {
        let below = timestep.floor();
        // NaN and negative timesteps become an index whose floor is not the timestep's own.
        let index = below as usize;
        let low = self.log_alpha_cumprod.get(index).filter(|_| index as f64 == below);
        let high = self.log_alpha_cumprod.get(index.saturating_add(1));
        let weight = timestep - below;
        match (low, high) {
            (Some(&low), _) if weight == 0.0 => Ok(low),
            (Some(&low), Some(&high)) => Ok(log_alpha_cumprod_of(between(spread(low), spread(high), weight))),
            _ => Err(Error::argument("timestep", timestep, format_args!("in 0..={}", self.noise_steps() - 1))),
        }
    }

    /// sqrt((1 - abar) / abar) of each timestep: the noise level sigma of Karras et al. (arXiv 2206.00364), infinite
    /// where nothing of the image is left.
    pub(crate) fn spreads(&self) -> Vec<f64> {
        self.log_alpha_cumprod.iter().map(|&log| spread(log)).collect()
    }

    /// The signal-to-noise ratio abar / (1 - abar) at a timestep (for min-SNR weighting, arXiv 2303.09556).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the timestep is not in `0..noise_steps`.
    pub fn snr(&self, timestep: i64) -> Result<f64> {
        let index = self.index("timestep", timestep)?;
        let log = self.log_alpha_cumprod.get(index).copied().unwrap_or_default();
        Ok(log.exp() / -log.exp_m1())
    }

    /// x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, with image i at `timesteps[i]`.
    ///
    /// `images` and `noise` are `[batch, channels, height, width]` on one device; so is the result.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where shapes or the number of timesteps differ, or a timestep is not in
    /// `0..noise_steps`.
    pub fn add_noise(&self, images: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        let (signal, spread) = self.coefficients(images, noise, timesteps)?;
        Ok(images.f_mul(&signal)?.f_add_(&noise.f_mul(&spread)?)?)
    }

    /// v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0, what a network with [`Prediction::Velocity`] is to say of
    /// [`Self::add_noise`]'s x_t (arXiv 2202.00512, section 4). Shapes and errors are those of [`Self::add_noise`].
    pub fn velocity(&self, images: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        let (signal, spread) = self.coefficients(images, noise, timesteps)?;
        Ok(noise.f_mul(&signal)?.f_sub_(&images.f_mul(&spread)?)?)
    }

    /// sqrt(abar) and sqrt(1 - abar) of each image, `[batch, 1, 1, 1]` beside `images`.
    fn coefficients(&self, images: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<(Tensor, Tensor)> {
        let shape = images.size();
        if noise.size() != shape {
            // libtorch would broadcast, and give every image the same noise.
            return Err(Error::argument(
                "the shape of noise",
                format_args!("{:?}", noise.size()),
                format_args!("that of images, {shape:?}"),
            ));
        }
        let batch = shape.first().copied().unwrap_or_default();
        if usize::try_from(batch) != Ok(timesteps.len()) {
            return Err(Error::argument("the number of timesteps", timesteps.len(), format_args!("{batch}, one per image")));
        }
        let mut values = Vec::with_capacity(2 * timesteps.len());
        for table in [&self.sqrt_alpha_cumprod, &self.sqrt_one_minus_alpha_cumprod] {
            for (image, &timestep) in timesteps.iter().enumerate() {
                let index = self.index(format_args!("timesteps[{image}]"), timestep)?;
                values.push(table.get(index).copied().unwrap_or_default() as f32);
            }
        }
        let mut column = vec![1; shape.len() + 1];
        column[0] = 2;
        if let Some(second) = column.get_mut(1) {
            *second = batch;
        }
        // One small copy to the device for both.
        let both = Tensor::f_from_slice(&values)?.f_to_device(images.device())?.f_to_kind(images.kind())?.f_view(&column[..])?;
        Ok((both.f_select(0, 0)?, both.f_select(0, 1)?))
    }

    fn index(&self, name: impl std::fmt::Display, timestep: i64) -> Result<usize> {
        usize::try_from(timestep).ok().filter(|&index| index < self.noise_steps()).ok_or_else(|| {
            Error::argument(&name.to_string(), timestep, format_args!("in 0..={}", self.noise_steps() - 1))
        })
    }
}

/// sqrt((1 - abar) / abar) from ln abar.
pub(crate) fn spread(log_alpha_cumprod: f64) -> f64 {
    (-log_alpha_cumprod).exp_m1().sqrt()
}

/// The inverse of [`spread`].
pub(crate) fn log_alpha_cumprod_of(spread: f64) -> f64 {
    -(spread * spread).ln_1p()
}

/// Linear interpolation; towards infinity, a curve that meets both ends.
fn between(low: f64, high: f64, weight: f64) -> f64 {
    if high.is_finite() {
        low + (high - low) * weight
    } else {
        low / (1.0 - weight)
    }
}

fn betas(config: &ScheduleConfig) -> Result<Vec<f64>> {
    let steps = config.noise_steps;
    if let BetaSchedule::Given(given) = &config.kind {
        return checked(given, steps);
    }
    let (start, end) = (config.beta_start, config.beta_end);
    if !(MIN_BETA..1.0).contains(&end) {
        return Err(Error::argument("beta_end", end, "in (0, 1)"));
    }
    if !(MIN_BETA..end).contains(&start) {
        return Err(Error::argument("beta_start", start, format_args!("in (0, beta_end), and beta_end is {end}")));
    }
    // From 0 at the first timestep to 1 at the last; a single timestep is the first.
    let along = |t: usize| t as f64 / (steps.max(2) - 1) as f64;
    let beta = |t: usize| match &config.kind {
        BetaSchedule::Linear => start + (end - start) * along(t),
        BetaSchedule::ScaledLinear => (start.sqrt() + (end.sqrt() - start.sqrt()) * along(t)).powi(2),
        BetaSchedule::CosineRamp => start + (end - start) * 0.5 * (1.0 - (std::f64::consts::PI * along(t)).cos()),
        BetaSchedule::Sigmoid => start + (end - start) / (1.0 + (6.0 - 12.0 * along(t)).exp()),
        BetaSchedule::Cosine | BetaSchedule::Given(_) => {
            let abar = |t: usize| {
                let u = t as f64 / steps as f64;
                ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
            };
            (1.0 - abar(t + 1) / abar(t)).clamp(start, end)
        }
    };
    Ok((0..steps).map(beta).collect())
}

fn checked(given: &[f64], steps: usize) -> Result<Vec<f64>> {
    if given.len() != steps {
        return Err(Error::argument("the number of betas", given.len(), format_args!("noise_steps, which is {steps}")));
    }
    match given.iter().enumerate().find(|(_, beta)| !(MIN_BETA..=1.0).contains(*beta)) {
        Some((t, beta)) => Err(Error::argument(&format!("betas[{t}]"), beta, "in (0, 1]")),
        None => Ok(given.to_vec()),
    }
}

/// Algorithm 1 of arXiv 2305.08891: sqrt(abar) is moved so that its last value is 0 and stretched so that its first
/// value stays.
fn rescale_zero_terminal_snr(betas: &[f64]) -> Result<Vec<f64>> {
    let roots = running(betas, 1.0, |product, beta| product * (1.0 - beta).sqrt());
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Ok(Vec::new()) };
    if betas.len() == 1 {
        // The first is the last: there is nothing to keep.
        return Ok(vec![1.0]);
    }
    if last >= first {
        return Err(Error::argument("beta_end", "too small", "large enough that abar falls, to rescale to zero SNR"));
    }
    let abar: Vec<f64> = roots.iter().map(|root| ((root - last) * first / (first - last)).powi(2)).collect();
    let mut before = 1.0;
    let rescaled = abar.iter().map(|&abar| {
        // Past the point where nothing is left there is nothing to divide by, and every beta is 1.
        let beta = if before > 0.0 { 1.0 - abar / before } else { 1.0 };
        before = abar;
        beta
    });
    Ok(rescaled.collect())
}

/// The running result of `fold` over `values`.
fn running(values: &[f64], start: f64, fold: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let mut state = start;
    values
        .iter()
        .map(|&value| {
            state = fold(state, value);
            state
        })
        .collect()
}

#[cfg(test)]
mod tests;
