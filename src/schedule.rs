//! The noise schedule: how much of the image and how much noise x_t holds at each timestep.
//!
//! q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), abar_t = prod_{s<=t} (1 - beta_s) (Ho, Jain, Abbeel,
//! "Denoising diffusion probabilistic models", arXiv 2006.11239, equation 4). Timesteps count from 0: abar_0
//! already holds one step of noise. Everything is computed and kept in f64; f32 is what leaves the module.

use tch::Tensor;

use crate::torch::cuda::upload;
use crate::{Error, Result};

/// The most timesteps that a schedule may have.
pub const MAX_NOISE_STEPS: usize = 100_000;

/// The least beta of a table. Less cannot be told from no noise at all, and leaves sqrt(1 - abar) without
/// meaning in f32.
const MIN_BETA: f64 = 1e-20;

/// Above this sqrt(abar) at the first timestep of sampling, the start from pure noise is visibly off the data.
pub(crate) const FAINT_SIGNAL: f64 = 0.1;

/// How the noise variance beta_t grows from the first timestep to the last.
#[derive(Clone, Debug, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from beta_start to beta_end (arXiv 2006.11239: 1e-4 to 0.02 over 1000 steps).
    Linear,
    /// beta_t = 1 - abar((t+1)/T) / abar(t/T) with abar(u) = cos^2((u + 0.008) / 1.008 * pi/2), clipped to
    /// [beta_start, beta_end] (Nichol, Dhariwal, "Improved DDPM", arXiv 2102.09672, equation 17; the paper
    /// clips at 0.999).
    Cosine,
    /// beta_start + (beta_end - beta_start) (1 - cos(pi t/(T-1))) / 2: half a cosine wave between the two.
    CosineRamp,
    /// The squares of evenly spaced roots of beta (latent diffusion, arXiv 2112.10752; diffusers'
    /// `scaled_linear`).
    ScaledLinear,
    /// beta_start + (beta_end - beta_start) sigmoid(-6..6) (GeoDiff, arXiv 2203.02923; diffusers' `sigmoid`).
    Sigmoid,
    /// The caller's own betas, one per timestep (diffusers' `trained_betas`). beta_start and beta_end are not
    /// used.
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
    /// Shifts and scales sqrt(abar) so that the last timestep is pure noise (Lin, Liu, Li, Yang, arXiv
    /// 2305.08891, algorithm 1). Of use with [`Prediction::Velocity`] or [`Prediction::Sample`]: predicting the
    /// noise says nothing of the image where there is only noise.
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
    /// ln abar_t: exact where abar_t itself underflows, which the default betas over 100,000 steps do. Negative
    /// infinity where a beta of 1 has left nothing of the image.
    log_alpha_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// Computes the tables.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `noise_steps`, `beta_start`, `beta_end` or a given beta is out of its
    /// range (NaN is in none).
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
            sqrt_one_minus_alpha_cumprod: log_alpha_cumprod
                .iter()
                .map(|log| (-log.exp_m1()).sqrt())
                .collect(),
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
                "sqrt(alpha_cumprod) is {signal:.3} at the last of {} timesteps: above {FAINT_SIGNAL}, sampling from \
                 pure noise starts off the data; raise beta_end or noise_steps, or use the cosine schedule with \
                 beta_end 0.999",
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
            _ => {
                Err(Error::argument("timestep", timestep, format_args!("in 0..={}", self.noise_steps() - 1)))
            }
        }
    }

    /// sqrt((1 - abar) / abar) of each timestep: the noise level sigma of Karras et al. (arXiv 2206.00364),
    /// infinite where nothing of the image is left.
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

    /// What the loss of a network that predicts `prediction` weighs at a timestep, in Min-SNR-`gamma` (arXiv 2303.09556,
    /// section 3.4): min(snr, gamma), divided by what that kind of target weighs by itself: 1 for the image, snr for
    /// the noise, snr + 1 for the velocity.
    ///
    /// # Errors
    /// Those of [`Self::snr`].
    pub fn min_snr_weight(&self, timestep: i64, gamma: f64, prediction: Prediction) -> Result<f64> {
        let snr = self.snr(timestep)?;
        Ok(match prediction {
            Prediction::Sample => snr.min(gamma),
            // Not min(snr, gamma) / snr, which is 0 / 0 where nothing of the image is left.
            Prediction::Epsilon => (gamma / snr).min(1.0),
            Prediction::Velocity => snr.min(gamma) / (snr + 1.0),
        })
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
    /// [`Self::add_noise`]'s x_t (arXiv 2202.00512, section 4). Shapes and errors are those of
    /// [`Self::add_noise`].
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
            return Err(Error::argument(
                "the number of timesteps",
                timesteps.len(),
                format_args!("{batch}, one per image"),
            ));
        }
        let mut values = Vec::with_capacity(2 * timesteps.len());
        for table in [&self.sqrt_alpha_cumprod, &self.sqrt_one_minus_alpha_cumprod] {
            for (image, &timestep) in timesteps.iter().enumerate() {
                let index = self.index(format_args!("timesteps[{image}]"), timestep)?;
                values.push(table.get(index).copied().unwrap_or_default() as f32);
            }
        }
        let mut column = vec![2, batch];
        column.resize(shape.len() + 1, 1);
        // One small copy to the device for both.
        let both = upload(&values, &column, images.device())?.f_to_kind(images.kind())?;
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
        return Err(Error::argument(
            "beta_start",
            start,
            format_args!("in (0, beta_end), and beta_end is {end}"),
        ));
    }
    // From 0 at the first timestep to 1 at the last; a single timestep is the first.
    let along = |t: usize| t as f64 / (steps.max(2) - 1) as f64;
    let beta = |t: usize| match &config.kind {
        BetaSchedule::Linear => start + (end - start) * along(t),
        BetaSchedule::ScaledLinear => (start.sqrt() + (end.sqrt() - start.sqrt()) * along(t)).powi(2),
        BetaSchedule::CosineRamp => {
            start + (end - start) * 0.5 * (1.0 - (std::f64::consts::PI * along(t)).cos())
        }
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
        return Err(Error::argument(
            "the number of betas",
            given.len(),
            format_args!("noise_steps, which is {steps}"),
        ));
    }
    match given.iter().enumerate().find(|(_, beta)| !(MIN_BETA..=1.0).contains(*beta)) {
        Some((t, beta)) => Err(Error::argument(&format!("betas[{t}]"), beta, "in (0, 1]")),
        None => Ok(given.to_vec()),
    }
}

/// Algorithm 1 of arXiv 2305.08891: sqrt(abar) is moved so that its last value is 0 and stretched so that its
/// first value stays.
fn rescale_zero_terminal_snr(betas: &[f64]) -> Result<Vec<f64>> {
    let roots = running(betas, 1.0, |product, beta| product * (1.0 - beta).sqrt());
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Ok(Vec::new()) };
    if betas.len() == 1 {
        // The first is the last: there is nothing to keep.
        return Ok(vec![1.0]);
    }
    if last >= first {
        return Err(Error::argument(
            "beta_end",
            "too small",
            "large enough that abar falls, to rescale to zero SNR",
        ));
    }
    let abar: Vec<f64> = roots.iter().map(|root| ((root - last) * first / (first - last)).powi(2)).collect();
    let mut before = 1.0;
    let mut rescaled = Vec::with_capacity(betas.len());
    for abar in abar {
        // Past the point where nothing is left there is nothing to divide by, and every beta is 1.
        rescaled.push(if before > 0.0 { 1.0 - abar / before } else { 1.0 });
        before = abar;
    }
    Ok(rescaled)
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
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn schedule(kind: BetaSchedule, beta_start: f64, beta_end: f64, noise_steps: usize) -> NoiseSchedule {
        let config =
            ScheduleConfig { kind, beta_start, beta_end, noise_steps, rescale_zero_terminal_snr: false };
        NoiseSchedule::new(&config).expect("a valid schedule")
    }

    fn refused(config: ScheduleConfig) -> String {
        NoiseSchedule::new(&config).expect_err("an invalid schedule").to_string()
    }

    #[track_caller]
    fn close(got: f64, wanted: f64, tolerance: f64) {
        assert!((got - wanted).abs() <= tolerance, "{got} is not {wanted}");
    }

    #[test]
    fn formulas_at_single_points() {
        let linear = schedule(BetaSchedule::Linear, 1e-4, 0.02, 1000);
        close(linear.beta_schedule[0], 1e-4, 1e-18);
        close(linear.beta_schedule[999], 0.02, 1e-16);
        close(linear.beta_schedule[500], 1e-4 + 500.0 * 0.0199 / 999.0, 1e-16);
        let scaled = schedule(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000);
        let root = 0.00085f64.sqrt() + 250.0 / 999.0 * (0.012f64.sqrt() - 0.00085f64.sqrt());
        close(scaled.beta_schedule[250], root * root, 1e-16);
        let ramp = schedule(BetaSchedule::CosineRamp, 1e-4, 0.02, 101);
        close(ramp.beta_schedule[50], (1e-4 + 0.02) / 2.0, 1e-16);
        close(ramp.beta_schedule[100], 0.02, 1e-16);
        let sigmoid = schedule(BetaSchedule::Sigmoid, 1e-4, 0.02, 101);
        close(sigmoid.beta_schedule[50], (1e-4 + 0.02) / 2.0, 1e-16);
        close(sigmoid.beta_schedule[0], 1e-4 + 0.0199 / (1.0 + 6f64.exp()), 1e-16);
    }

    #[test]
    fn cosine_is_the_papers_between_its_clips() {
        let cosine = schedule(BetaSchedule::Cosine, 1e-12, 0.999, 1000);
        let f = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        for t in [0usize, 1, 10, 499, 900, 998] {
            // The products of the betas telescope to the paper's abar.
            close(cosine.alpha_cumprod[t], f((t + 1) as f64 / 1000.0) / f(0.0), 1e-14);
        }
        assert_eq!(cosine.beta_schedule[999], 0.999);
        // The lower clip only touches the first timesteps: 4.13e-5 becomes 1e-4.
        let clipped = schedule(BetaSchedule::Cosine, 1e-4, 0.999, 1000);
        assert_eq!(clipped.beta_schedule[0], 1e-4);
        assert_eq!(clipped.beta_schedule[500], cosine.beta_schedule[500]);
    }

    #[test]
    fn tables_agree_with_their_definitions() {
        for kind in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Sigmoid] {
            let schedule = schedule(kind, 1e-4, 0.02, 300);
            let mut product = 1.0;
            for t in 0..300 {
                product *= 1.0 - schedule.beta_schedule[t];
                assert_eq!(schedule.alphas[t], 1.0 - schedule.beta_schedule[t]);
                close(schedule.alpha_cumprod[t], product, 1e-14);
                close(schedule.sqrt_alpha_cumprod[t], product.sqrt(), 1e-14);
                close(schedule.sqrt_one_minus_alpha_cumprod[t], (1.0 - product).sqrt(), 1e-12);
                close(
                    schedule.snr(t as i64).expect("in range"),
                    product / (1.0 - product),
                    1e-9 / (1.0 - product),
                );
            }
            assert_eq!(schedule.table(ScheduleTable::AlphaCumprod)[7], schedule.alpha_cumprod[7] as f32);
            assert_eq!(schedule.table(ScheduleTable::Betas).len(), schedule.noise_steps());
        }
    }

    #[test]
    fn the_end_of_the_known_schedules() {
        // NUMERICS.md's figures: linear .0064, cosine with beta_end 0.02 .0565, .26, .44, .63.
        close(schedule(BetaSchedule::Linear, 1e-4, 0.02, 1000).terminal_signal(), 0.0064, 5e-5);
        for (steps, signal) in [(1000, 0.0565), (200, 0.26), (100, 0.44), (50, 0.63)] {
            let clipped = schedule(BetaSchedule::Cosine, 1e-4, 0.02, steps);
            close(clipped.terminal_signal(), signal, 5e-3);
            assert_eq!(clipped.warning().is_some(), steps < 1000);
        }
        assert!(schedule(BetaSchedule::Cosine, 1e-4, 0.02, 50).warning().expect("far off").contains("0.63"));
        for noise_steps in [1, 2, 3, 10, 50, 1000, 4000] {
            let cosine =
                NoiseSchedule::new(&ScheduleConfig { noise_steps, ..Default::default() }).expect("valid");
            assert_eq!(cosine.warning(), None, "{noise_steps} steps");
        }
    }

    #[test]
    fn zero_terminal_snr_ends_at_zero_and_starts_where_it_did() {
        for kind in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::ScaledLinear] {
            for noise_steps in [2, 10, 1000] {
                let config = ScheduleConfig { kind: kind.clone(), noise_steps, ..Default::default() };
                let plain = NoiseSchedule::new(&config).expect("valid");
                let config = ScheduleConfig { rescale_zero_terminal_snr: true, ..config };
                let rescaled = NoiseSchedule::new(&config).expect("valid");
                assert_eq!(rescaled.terminal_signal(), 0.0);
                close(rescaled.alpha_cumprod[0], plain.alpha_cumprod[0], 1e-12);
                let (first, last) = (plain.sqrt_alpha_cumprod[0], plain.terminal_signal());
                let middle = (plain.sqrt_alpha_cumprod[noise_steps / 2] - last) * first / (first - last);
                close(rescaled.sqrt_alpha_cumprod[noise_steps / 2], middle, 1e-12);
            }
        }
        let one = ScheduleConfig { noise_steps: 1, rescale_zero_terminal_snr: true, ..Default::default() };
        assert_eq!(NoiseSchedule::new(&one).expect("valid").alpha_cumprod, [0.0]);
    }

    #[test]
    fn nothing_is_nan_at_the_edges() {
        let kinds = [
            schedule(BetaSchedule::Linear, 1e-4, 0.02, 100_000),
            schedule(BetaSchedule::Linear, 0.5, 0.9, 2000),
            schedule(BetaSchedule::Linear, 1e-19, 1e-18, 10),
            schedule(BetaSchedule::Given(vec![1.0, 1.0, 0.5]), 0.0, 0.0, 3),
        ];
        for schedule in &kinds {
            for table in [&schedule.alpha_cumprod, &schedule.sqrt_one_minus_alpha_cumprod, &schedule.alphas] {
                assert!(table.iter().all(|value| (0.0..=1.0).contains(value)));
            }
            assert!(schedule.sqrt_one_minus_alpha_cumprod[0] > 0.0);
        }
        for kind in [BetaSchedule::Linear, BetaSchedule::CosineRamp, BetaSchedule::ScaledLinear] {
            close(schedule(kind, 1e-4, 0.02, 1).beta_schedule[0], 1e-4, 1e-18);
        }
    }

    #[test]
    fn refusals_name_argument_value_and_range() {
        let with = |beta_start, beta_end| {
            refused(ScheduleConfig { kind: BetaSchedule::Linear, beta_start, beta_end, ..Default::default() })
        };
        assert_eq!(with(0.5, 0.02), "beta_start is 0.5: must be in (0, beta_end), and beta_end is 0.02");
        assert_eq!(with(0.02, 0.02), "beta_start is 0.02: must be in (0, beta_end), and beta_end is 0.02");
        assert_eq!(with(0.0, 0.02), "beta_start is 0: must be in (0, beta_end), and beta_end is 0.02");
        assert_eq!(with(f64::NAN, 0.02), "beta_start is NaN: must be in (0, beta_end), and beta_end is 0.02");
        assert_eq!(with(1e-4, 1.0), "beta_end is 1: must be in (0, 1)");
        assert_eq!(with(1e-4, f64::NAN), "beta_end is NaN: must be in (0, 1)");
        assert_eq!(with(1e-4, f64::INFINITY), "beta_end is inf: must be in (0, 1)");
        for (noise_steps, start) in [(0, "noise_steps is 0"), (100_001, "noise_steps is 100001")] {
            let text = refused(ScheduleConfig { noise_steps, ..Default::default() });
            assert_eq!(text, format!("{start}: must be in 1..=100000"));
        }
        let given = |betas: Vec<f64>| {
            refused(ScheduleConfig { kind: BetaSchedule::Given(betas), noise_steps: 2, ..Default::default() })
        };
        assert_eq!(given(vec![0.1]), "the number of betas is 1: must be noise_steps, which is 2");
        assert_eq!(given(vec![0.1, 0.0]), "betas[1] is 0: must be in (0, 1]");
        assert_eq!(given(vec![f64::NAN, 0.1]), "betas[0] is NaN: must be in (0, 1]");
    }

    #[test]
    fn between_timesteps_sigma_is_a_straight_line() {
        let schedule = schedule(BetaSchedule::Linear, 1e-4, 0.02, 10);
        let sigma = |t: f64| {
            let abar = schedule.alpha_cumprod_at(t).expect("in range");
            ((1.0 - abar) / abar).sqrt()
        };
        for t in [0.0, 3.0, 8.0] {
            close(sigma(t + 0.25), 0.75 * sigma(t) + 0.25 * sigma(t + 1.0), 1e-12);
        }
        assert_eq!(schedule.alpha_cumprod_at(9.0).expect("in range"), schedule.alpha_cumprod[9]);
        for outside in [-0.1, 9.1, 10.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let text = schedule.alpha_cumprod_at(outside).expect_err("outside").to_string();
            assert_eq!(text, format!("timestep is {outside}: must be in 0..=9"));
        }
        assert!(schedule.snr(-1).is_err() && schedule.snr(10).is_err());
    }

    #[test]
    fn add_noise_and_velocity_image_by_image() {
        let schedule = schedule(BetaSchedule::Linear, 1e-4, 0.02, 1000);
        let images =
            Tensor::linspace(-1.0, 1.0, 3 * 2 * 4 * 4, (Kind::Double, Device::Cpu)).view([3, 2, 4, 4]);
        let noise = images.sin() * 2.0;
        let timesteps = [0, 500, 999];
        let noisy = schedule.add_noise(&images, &noise, &timesteps).expect("noise");
        let velocity = schedule.velocity(&images, &noise, &timesteps).expect("velocity");
        for (row, &t) in timesteps.iter().enumerate() {
            // The coefficients are rounded to f32, once.
            let signal = f64::from(schedule.sqrt_alpha_cumprod[t as usize] as f32);
            let spread = f64::from(schedule.sqrt_one_minus_alpha_cumprod[t as usize] as f32);
            let (x0, eps) = (images.get(row as i64), noise.get(row as i64));
            let expected = &x0 * signal + &eps * spread;
            assert!((expected - noisy.get(row as i64)).abs().max().double_value(&[]) < 1e-15);
            let expected = &eps * signal - &x0 * spread;
            assert!((expected - velocity.get(row as i64)).abs().max().double_value(&[]) < 1e-15);
        }
    }

    #[test]
    fn add_noise_refuses_what_does_not_fit() {
        let schedule = schedule(BetaSchedule::Linear, 1e-4, 0.02, 1000);
        let images = Tensor::zeros([2, 1, 2, 2], (Kind::Float, Device::Cpu));
        let text =
            |timesteps: &[i64]| schedule.add_noise(&images, &images, timesteps).expect_err("bad").to_string();
        assert_eq!(text(&[0, 1000]), "timesteps[1] is 1000: must be in 0..=999");
        assert_eq!(text(&[-1, 0]), "timesteps[0] is -1: must be in 0..=999");
        assert_eq!(text(&[0]), "the number of timesteps is 1: must be 2, one per image");
        let single = images.get(0);
        let text = schedule.add_noise(&images, &single, &[0, 0]).expect_err("bad").to_string();
        assert_eq!(text, "the shape of noise is [1, 2, 2]: must be that of images, [2, 1, 2, 2]");
    }
}
