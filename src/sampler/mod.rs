//! Samplers: from noise to images, one network evaluation at a time.
//!
//! A sampler never calls the network. It says at which timestep it wants an answer, takes the answer, and hands
//! back the x for which it wants the next one; who drives it may put the images of many samplers into one
//! batch:
//!
//! ```text
//! let mut sampler = params.build(&schedule)?;
//! while let Some(timestep) = sampler.timestep() {
//!     x = sampler.step(&x, &network(&x, timestep), &mut noise)?;
//! }
//! ```
//!
//! x is always in the U-Net's variance-preserving frame, `[n, channels, height, width]`, and starts as N(0, I),
//! whatever frame a paper is written in. The papers differ only in how x at one noise level becomes x at the
//! next: that is `Solver`, one small file each. All that they share is in `Run` below: the list of levels
//! (`spacing`), reading the network's output (`prediction`), and the last step, which for every one of them is
//! x0 itself, since no noise is left to put back.

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod heun;
mod level;
mod prediction;
mod spacing;
mod unipc;

use tch::Tensor;

pub use spacing::Spacing;

use crate::schedule::{NoiseSchedule, Prediction, FAINT_SIGNAL};
use crate::{Error, Result};
use level::Level;
use prediction::{Denoiser, Limit};

/// The sampling of a batch of images as a state machine. May move between threads between two calls.
pub trait Sampler: Send {
    /// How many network evaluations there are in all.
    fn evaluations(&self) -> usize;

    /// The timestep, whole or not, at which the network is to be asked about the current x; None once finished.
    fn timestep(&self) -> Option<f64>;

    /// Takes the network's `output` at (`x`, [`Self::timestep`]), both `[n, c, h, w]`, and returns the x of the
    /// next evaluation or, from the last one, the images, in [-1, 1].
    ///
    /// `noise` gives a fresh standard normal of x's shape, kind and device at each call. It is called at most
    /// once, and never by a deterministic solver or with eta 0.
    ///
    /// # Errors
    /// [`Error::Internal`] after the end, or where the shapes differ; what `noise` or libtorch reports.
    fn step(
        &mut self,
        x: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor>;

    /// The latest estimate of the clean images, for previews: None before the first step.
    fn last_x0(&self) -> Option<&Tensor>;

    /// Goes on with the given rows of the batch alone: an i64 tensor of their indices, in their new order.
    fn keep_rows(&mut self, rows: &Tensor) -> Result<()>;
}

/// The way from one noise level to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Ancestral sampling (arXiv 2006.11239).
    Ddpm,
    /// DDIM (arXiv 2010.02502).
    Ddim,
    /// DPM-Solver++ 2M (arXiv 2211.01095).
    DpmSolverPp2M,
    /// DPM-Solver++ 2M for the SDE (arXiv 2211.01095).
    DpmSolverPp2MSde,
    /// UniPC of second order, `bh2` (arXiv 2302.04867).
    UniPc,
    /// Euler (arXiv 2206.00364); Euler ancestral with `eta` 1.
    Euler,
    /// Heun (arXiv 2206.00364): two evaluations for each step but the last.
    Heun,
}

/// The variance of DDPM's noise (arXiv 2006.11239, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// That of the posterior: right for data of a single point.
    FixedSmall,
    /// That of the forward step: right for data that is N(0, I).
    FixedLarge,
}

/// Everything that decides how an image is sampled, but the seed. Plain data: two that are equal make samplers
/// in lock step, whose images can share one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerParams {
    /// The sampler.
    pub method: Method,
    /// How many noise levels are visited, 1 to noise_steps. A sampler that steps in lambda (DPM-Solver++,
    /// UniPC, Heun, or any with Karras spacing) leaves out timesteps with lambda below -5.1, and visits fewer
    /// if fewer are left.
    pub steps: usize,
    /// How much of the noise is drawn afresh at each step, 0 to 1: used by DDIM and Euler.
    pub eta: f64,
    /// How the levels are chosen.
    pub spacing: Spacing,
    /// The variance of DDPM's noise.
    pub variance: Variance,
    /// Clamp each estimate of x0 to plus and minus `clip_sample_range`. The result is clamped to [-1, 1] in any
    /// case.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// DDIM: take the noise from the limited x0 instead of the network's own.
    pub use_clipped_model_output: bool,
    /// Dynamic thresholding (Imagen, arXiv 2205.11487) with this percentile as a fraction in (0, 1], 0.995 in
    /// the paper: instead of `clip_sample`.
    pub dynamic_thresholding: Option<f64>,
    /// What the network's output stands for.
    pub prediction: Prediction,
    /// Added to each timestep of [`Spacing::Leading`].
    pub steps_offset: usize,
}

impl SamplerParams {
    /// `method` in `steps` steps, with diffusers' defaults of that method, and x0 clipped.
    pub fn new(method: Method, steps: usize) -> Self {
        let spacing = match method {
            Method::Ddpm | Method::Ddim => Spacing::Leading,
            _ => Spacing::Linspace,
        };
        SamplerParams {
            method,
            steps,
            eta: 0.0,
            spacing,
            variance: Variance::FixedSmall,
            clip_sample: true,
            clip_sample_range: 1.0,
            use_clipped_model_output: false,
            dynamic_thresholding: None,
            prediction: Prediction::Epsilon,
            steps_offset: 0,
        }
    }

    /// DDPM over all timesteps.
    pub fn ddpm(noise_steps: usize) -> Self {
        SamplerParams::new(Method::Ddpm, noise_steps)
    }

    /// DDIM in `steps` steps: deterministic with `eta` 0, like DDPM with `eta` 1.
    pub fn ddim(steps: usize, eta: f64) -> Self {
        SamplerParams { eta, ..SamplerParams::new(Method::Ddim, steps) }
    }

    /// Whether a sampler can be built for `schedule`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the parameter, its value and its range.
    pub fn validate(&self, schedule: &NoiseSchedule) -> Result<()> {
        self.levels(schedule).map(|_| ())
    }

    /// A sampler at its start.
    ///
    /// # Errors
    /// Those of [`Self::validate`].
    pub fn build(&self, schedule: &NoiseSchedule) -> Result<Box<dyn Sampler>> {
        let levels = self.levels(schedule)?;
        let denoiser = Denoiser { prediction: self.prediction, limit: self.limit() };
        let solver: Box<dyn Solver> = match self.method {
            Method::Ddpm => Box::new(ddpm::Ddpm { variance: self.variance }),
            Method::Ddim => Box::new(ddim::Ddim {
                eta: self.eta,
                use_clipped_model_output: self.use_clipped_model_output,
            }),
            Method::DpmSolverPp2M => Box::new(dpm_solver::DpmSolver::new(false)),
            Method::DpmSolverPp2MSde => Box::new(dpm_solver::DpmSolver::new(true)),
            Method::UniPc => Box::new(unipc::UniPc::default()),
            Method::Euler => Box::new(euler::euler(self.eta)),
            Method::Heun => Box::new(heun::Heun::default()),
        };
        let levels = if self.method == Method::Heun { heun::evaluations(&levels) } else { levels };
        Ok(Box::new(Run { levels, position: 0, denoiser, solver, x0: None }))
    }

    /// What to tell the user of a list of timesteps that starts where x is not yet pure noise, though sampling
    /// starts from pure noise; None where all is well, or the parameters are not valid.
    pub fn warning(&self, schedule: &NoiseSchedule) -> Option<String> {
        let first = self.levels(schedule).ok()?.first().copied()?;
        (first.alpha > FAINT_SIGNAL).then(|| {
            format!(
                "sampling starts from pure noise at timestep {} of {}, where sqrt(alpha_cumprod) is {:.3}: above \
                 {FAINT_SIGNAL} images suffer; use trailing spacing, or a number of steps that divides the timesteps",
                first.timestep,
                schedule.noise_steps(),
                first.alpha
            )
        })
    }

    fn limit(&self) -> Limit {
        match self.dynamic_thresholding {
            Some(fraction) => Limit::Dynamic(fraction),
            None if self.clip_sample => Limit::Clip(self.clip_sample_range),
            None => Limit::Off,
        }
    }

    fn levels(&self, schedule: &NoiseSchedule) -> Result<Vec<Level>> {
        if !(1..=schedule.noise_steps()).contains(&self.steps) {
            return Err(Error::argument(
                "steps",
                self.steps,
                format_args!("in 1..={}", schedule.noise_steps()),
            ));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::argument("eta", self.eta, "in [0, 1]"));
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return Err(Error::argument("clip_sample_range", self.clip_sample_range, "above 0 and finite"));
        }
        match self.dynamic_thresholding {
            Some(fraction) if !(fraction > 0.0 && fraction <= 1.0) => {
                Err(Error::argument("dynamic_thresholding", fraction, "in (0, 1]"))
            }
            _ => spacing::levels(self, schedule),
        }
    }
}

/// Where a solver gets its noise.
type Noise<'a> = &'a mut dyn FnMut() -> Result<Tensor>;

/// The part of a sampler that differs from paper to paper.
trait Solver: Send {
    /// x at the level `step.to`.
    fn step(&mut self, step: &Step, noise: Noise) -> Result<Tensor>;

    /// As [`Sampler::keep_rows`], for what the solver remembers of earlier steps.
    fn keep_rows(&mut self, _rows: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// One evaluation, read. Every tensor is `[n, c, h, w]`.
struct Step<'a> {
    x: &'a Tensor,
    output: &'a Tensor,
    /// The limited estimate of the clean image.
    x0: &'a Tensor,
    denoiser: &'a Denoiser,
    /// The level of x.
    from: Level,
    /// The level to go to, which has noise: the way to none is not the solvers' part.
    to: Level,
}

impl Step<'_> {
    /// The network's own estimate of the noise, which does not know of any limit on x0.
    fn eps(&self) -> Result<Tensor> {
        self.denoiser.eps(self.x, self.output, &self.from)
    }
}

/// A [`Solver`] on its way through its levels.
struct Run {
    /// The level of each evaluation.
    levels: Vec<Level>,
    position: usize,
    denoiser: Denoiser,
    solver: Box<dyn Solver>,
    x0: Option<Tensor>,
}

impl Sampler for Run {
    fn evaluations(&self) -> usize {
        self.levels.len()
    }

    fn timestep(&self) -> Option<f64> {
        self.levels.get(self.position).map(|level| level.timestep)
    }

    fn step(
        &mut self,
        x: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(&from) = self.levels.get(self.position) else {
            return Err(Error::Internal("a sampler was stepped after its end".to_owned()));
        };
        if x.size() != output.size() {
            // libtorch would broadcast.
            let text = format!("the network answered {:?} with {:?}", x.size(), output.size());
            return Err(Error::Internal(text));
        }
        // A network under autocast answers in half precision.
        let output = &output.f_to_kind(x.kind())?;
        let x0 = self.denoiser.x0(x, output, &from)?;
        let next = match self.levels.get(self.position + 1) {
            Some(&to) => {
                let step = Step { x, output, x0: &x0, denoiser: &self.denoiser, from, to };
                self.solver.step(&step, noise)?
            }
            None => x0.f_clamp(-1.0, 1.0)?,
        };
        self.x0 = Some(x0);
        self.position += 1;
        Ok(next)
    }

    fn last_x0(&self) -> Option<&Tensor> {
        self.x0.as_ref()
    }

    fn keep_rows(&mut self, rows: &Tensor) -> Result<()> {
        if let Some(x0) = &mut self.x0 {
            *x0 = x0.f_index_select(0, rows)?;
        }
        self.solver.keep_rows(rows)
    }
}
