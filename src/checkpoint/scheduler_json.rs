//! `scheduler/scheduler_config.json`: the noise schedule and the sampling options that belong to a network, as
//! diffusers' `DDPMScheduler` and `DDIMScheduler` write them, both ways.

use std::path::Path;

use serde_json::{json, Value};

use super::fields::Fields;
use super::unet_json::{name_of, DIFFUSERS_VERSION};
use crate::error::{Error, Result};
use crate::sampler::{Spacing, Variance};
use crate::schedule::{BetaSchedule, NoiseSchedule, Prediction, ScheduleConfig};

/// What belongs to a network beside its weights: the schedule it was trained on, and how its output is read.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The noise schedule.
    pub schedule: ScheduleConfig,
    /// What the network's output stands for.
    pub prediction: Prediction,
    /// Whether each estimate of x0 is clamped.
    pub clip_sample: bool,
    /// To plus and minus this.
    pub clip_sample_range: f64,
    /// The variance of DDPM's noise.
    pub variance: Variance,
    /// Which timesteps are visited when they are not all.
    pub spacing: Spacing,
    /// Added to each timestep of [`Spacing::Leading`].
    pub steps_offset: usize,
    /// Dynamic thresholding (Imagen, arXiv 2205.11487) with this percentile as a fraction, instead of clamping.
    pub dynamic_thresholding: Option<f64>,
}

impl Default for SchedulerConfig {
    /// `DDPMScheduler()`, which is what a network without a scheduler has been trained with most likely: linear betas
    /// 1e-4 to 0.02 over 1000 steps.
    fn default() -> Self {
        SchedulerConfig {
            schedule: ScheduleConfig {
                kind: BetaSchedule::Linear,
                beta_start: 1e-4,
                beta_end: 0.02,
                noise_steps: 1000,
                rescale_zero_terminal_snr: false,
            },
            prediction: Prediction::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            variance: Variance::FixedSmall,
            spacing: Spacing::Leading,
            steps_offset: 0,
            dynamic_thresholding: None,
        }
    }
}

/// Diffusers' names that both of its schedulers know.
const BETA_SCHEDULES: [(&str, Shape); 4] = [
    ("linear", Shape::Linear),
    ("scaled_linear", Shape::ScaledLinear),
    ("squaredcos_cap_v2", Shape::SquaredCosine),
    ("sigmoid", Shape::Sigmoid),
];

#[derive(Clone, Copy)]
enum Shape {
    Linear,
    ScaledLinear,
    SquaredCosine,
    Sigmoid,
}

const PREDICTIONS: [(&str, Prediction); 3] = [
    ("epsilon", Prediction::Epsilon),
    ("sample", Prediction::Sample),
    ("v_prediction", Prediction::Velocity),
];
/// `fixed_small_log` is the same number by another way. `fixed_large_log` gives NaN in diffusers, and the learned
/// ones need networks with twice the channels.
const VARIANCES: [(&str, Variance); 3] = [
    ("fixed_small", Variance::FixedSmall),
    ("fixed_small_log", Variance::FixedSmall),
    ("fixed_large", Variance::FixedLarge),
];
const SPACINGS: [(&str, Spacing); 3] =
    [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];

/// Our own names of those schedules that diffusers knows only as a list of betas. They are a note beside that list,
/// in a field whose underscore makes diffusers pass it over and keep it.
const NOTE: &str = "_libdiffusion_beta_schedule";
const NOTED: [(&str, BetaSchedule); 3] = [
    ("cosine", BetaSchedule::Cosine),
    ("cosine_ramp", BetaSchedule::CosineRamp),
    ("sigmoid", BetaSchedule::Sigmoid),
];

/// squaredcos_cap_v2 has this for its upper clip, whatever beta_end says, and none below.
const COSINE_CAP: f64 = 0.999;
/// A lower clip that the cosine's betas do not reach in [`crate::schedule::MAX_NOISE_STEPS`] steps.
const NO_LOWER_CLIP: f64 = 1e-12;

/// Below this, diffusers' `sample_max_value` may change what dynamic thresholding does.
const UNLIMITED: f64 = 1e6;

/// The config in the JSON of `file`.
///
/// # Errors
/// `Format` that names the file, the field, its value and what is supported.
pub fn scheduler_from_json(value: &Value, file: &Path) -> Result<SchedulerConfig> {
    let fields = Fields::new(value, file)?;
    let default = SchedulerConfig::default();
    fields.choice("_class_name", (), &[("DDPMScheduler", ()), ("DDIMScheduler", ())])?;
    let config = SchedulerConfig {
        schedule: schedule(&fields, file)?,
        prediction: prediction(&fields)?,
        clip_sample: fields.flag("clip_sample", true)?,
        clip_sample_range: fields.number("clip_sample_range", default.clip_sample_range)?,
        variance: fields.choice("variance_type", default.variance, &VARIANCES)?,
        spacing: fields.choice("timestep_spacing", default.spacing, &SPACINGS)?,
        steps_offset: fields.size("steps_offset", 0)?,
        dynamic_thresholding: None,
    };
    let config = thresholding(config, &fields)?;
    if !(config.clip_sample_range.is_finite() && config.clip_sample_range > 0.0) {
        let allowed = "finite and above 0";
        return Err(fields.wrong("clip_sample_range", &json!(config.clip_sample_range), allowed));
    }
    if !fields.flag("set_alpha_to_one", true)? {
        return Err(fields.wrong("set_alpha_to_one", &json!(false), "true to be supported here"));
    }
    // Of 2022: whether the caller's arrays are PyTorch's or NumPy's.
    fields.ignore(&["tensor_format"]);
    fields.finish()?;
    Ok(config)
}

fn schedule(fields: &Fields, file: &Path) -> Result<ScheduleConfig> {
    let shape = fields.choice("beta_schedule", Shape::Linear, &BETA_SCHEDULES)?;
    let betas = fields.numbers("trained_betas")?;
    let mut config = ScheduleConfig {
        kind: match shape {
            Shape::Linear => BetaSchedule::Linear,
            Shape::ScaledLinear => BetaSchedule::ScaledLinear,
            Shape::SquaredCosine => BetaSchedule::Cosine,
            Shape::Sigmoid => BetaSchedule::Sigmoid,
        },
        beta_start: fields.number("beta_start", 1e-4)?,
        beta_end: fields.number("beta_end", 0.02)?,
        noise_steps: fields.size("num_train_timesteps", 1000)?,
        rescale_zero_terminal_snr: fields.flag("rescale_betas_zero_snr", false)?,
    };
    if let Some(betas) = betas {
        config.kind = noted(fields, &config, &betas).unwrap_or(BetaSchedule::Given(betas));
    } else if config.kind == BetaSchedule::Cosine {
        config.beta_end = COSINE_CAP;
        // A beta_start that clips nothing is kept, so that what was saved is what is loaded.
        let unclipped = ScheduleConfig { beta_start: NO_LOWER_CLIP, ..config.clone() };
        let betas = own_betas(&unclipped).map_err(|error| Error::format(file, error))?;
        if !(config.beta_start > 0.0 && unclipped_cosine(&config, &betas)) {
            config.beta_start = NO_LOWER_CLIP;
        }
    }
    NoiseSchedule::new(&config).map_err(|error| Error::format(file, error))?;
    Ok(config)
}

/// The schedule that the note names, if its betas are still the file's: someone may have edited those.
fn noted(fields: &Fields, config: &ScheduleConfig, betas: &[f64]) -> Option<BetaSchedule> {
    let name = fields.value(NOTE)?.as_str()?;
    let (_, kind) = NOTED.into_iter().find(|(known, _)| *known == name)?;
    if betas.len() != config.noise_steps {
        return None;
    }
    let named = ScheduleConfig { kind: kind.clone(), ..config.clone() };
    // Another machine's cosine may differ in the last bit.
    let same = |(own, theirs): (&f64, &f64)| (own - theirs).abs() <= 1e-12 * own.abs();
    own_betas(&named).ok()?.iter().zip(betas).all(same).then_some(kind)
}

/// The betas of a schedule as they are before any rescaling, which diffusers does itself.
fn own_betas(config: &ScheduleConfig) -> Result<Vec<f64>> {
    let config = ScheduleConfig { rescale_zero_terminal_snr: false, ..config.clone() };
    Ok(NoiseSchedule::new(&config)?.beta_schedule)
}

fn prediction(fields: &Fields) -> Result<Prediction> {
    // Of 2022: prediction_type's forerunner.
    let default = match fields.flag("predict_epsilon", true)? {
        true => Prediction::Epsilon,
        false => Prediction::Sample,
    };
    fields.choice("prediction_type", default, &PREDICTIONS)
}

/// Diffusers' thresholding divides by at most `sample_max_value`. That is 1 by default, which leaves a clamp to ±1.
fn thresholding(config: SchedulerConfig, fields: &Fields) -> Result<SchedulerConfig> {
    let ratio = fields.number("dynamic_thresholding_ratio", 0.995)?;
    let limit = fields.number("sample_max_value", 1.0)?;
    if !fields.flag("thresholding", false)? {
        return Ok(config);
    }
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(fields.wrong("dynamic_thresholding_ratio", &json!(ratio), "above 0 and at most 1"));
    }
    if limit == 1.0 {
        return Ok(SchedulerConfig { clip_sample: true, clip_sample_range: 1.0, ..config });
    }
    if limit < UNLIMITED {
        let allowed = format!("1, or at least {UNLIMITED}, with thresholding to be supported here");
        return Err(fields.wrong("sample_max_value", &json!(limit), allowed));
    }
    Ok(SchedulerConfig { dynamic_thresholding: Some(ratio), ..config })
}

/// What diffusers' schedulers read back as the same: as a `DDPMScheduler`, which `DDIMPipeline` converts.
///
/// A schedule that not both of diffusers' schedulers have by name is written as its betas.
///
/// # Errors
/// `InvalidArgument` for Karras spacing, which those schedulers do not have, and for a schedule that is not valid.
pub fn scheduler_to_json(config: &SchedulerConfig) -> Result<Value> {
    let schedule = &config.schedule;
    let betas = own_betas(schedule)?;
    let name = match schedule.kind {
        BetaSchedule::Linear => Some("linear"),
        BetaSchedule::ScaledLinear => Some("scaled_linear"),
        BetaSchedule::Cosine if unclipped_cosine(schedule, &betas) => Some("squaredcos_cap_v2"),
        // DDIMScheduler does not know "sigmoid", which DDPMScheduler has.
        BetaSchedule::Cosine | BetaSchedule::CosineRamp | BetaSchedule::Sigmoid | BetaSchedule::Given(_) => {
            None
        }
    };
    let note = NOTED.iter().find(|(_, kind)| name.is_none() && *kind == schedule.kind).map(|(note, _)| *note);
    let spacing = SPACINGS.iter().find(|(_, spacing)| *spacing == config.spacing).map(|(name, _)| *name);
    let Some(spacing) = spacing else {
        let allowed = "leading, trailing or linspace in a checkpoint";
        return Err(Error::argument("timestep_spacing", format!("{:?}", config.spacing), allowed));
    };
    let mut value = json!({
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": schedule.beta_end,
        "beta_schedule": name.unwrap_or("linear"),
        "beta_start": schedule.beta_start,
        "clip_sample": config.clip_sample,
        "clip_sample_range": config.clip_sample_range,
        "dynamic_thresholding_ratio": config.dynamic_thresholding.unwrap_or(0.995),
        "num_train_timesteps": schedule.noise_steps,
        "prediction_type": name_of(&PREDICTIONS, config.prediction),
        "rescale_betas_zero_snr": schedule.rescale_zero_terminal_snr,
        "sample_max_value": if config.dynamic_thresholding.is_some() { 1e3 * UNLIMITED } else { 1.0 },
        "steps_offset": config.steps_offset,
        "thresholding": config.dynamic_thresholding.is_some(),
        "timestep_spacing": spacing,
        "trained_betas": name.is_none().then_some(betas),
        "variance_type": name_of(&VARIANCES, config.variance),
    });
    if let (Some(note), Value::Object(fields)) = (note, &mut value) {
        fields.insert(NOTE.to_owned(), json!(note));
    }
    Ok(value)
}

/// Whether a cosine schedule is squaredcos_cap_v2: capped there, and nowhere raised to beta_start.
fn unclipped_cosine(schedule: &ScheduleConfig, betas: &[f64]) -> bool {
    schedule.beta_end == COSINE_CAP && betas.iter().all(|&beta| beta > schedule.beta_start)
}
