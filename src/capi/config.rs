//! The config structs of the ABI to and from the crate's own types, and their defaults.

use std::time::Duration;

use super::boundary::{input, Array, Need, Versioned};
use super::types::*;
use crate::checkpoint::{SchedulerConfig, WeightType};
use crate::engine::SampleRequest;
use crate::pixels::Format;
use crate::process::{check_finite, DeviceChoice, InferencePrecision, ProcessConfig};
use crate::sampler::{Method, SamplerParams, Spacing, Variance};
use crate::schedule::{BetaSchedule, Prediction, ScheduleConfig, MAX_NOISE_STEPS};
use crate::training::{Loss, Optimizer, Precision, TrainingConfig};
use crate::unet::{BlockKind, ClassEmbedding, UnetConfig};
use crate::{Error, Result};

const BETA_SCHEDULES: [(i32, BetaSchedule); 5] = [
    (DIFFUSION_SCHEDULE_COSINE, BetaSchedule::Cosine),
    (DIFFUSION_SCHEDULE_LINEAR, BetaSchedule::Linear),
    (DIFFUSION_SCHEDULE_COSINE_RAMP, BetaSchedule::CosineRamp),
    (DIFFUSION_SCHEDULE_SCALED_LINEAR, BetaSchedule::ScaledLinear),
    (DIFFUSION_SCHEDULE_SIGMOID, BetaSchedule::Sigmoid),
];
const PREDICTIONS: [(i32, Prediction); 3] = [
    (DIFFUSION_PREDICTION_EPSILON, Prediction::Epsilon),
    (DIFFUSION_PREDICTION_SAMPLE, Prediction::Sample),
    (DIFFUSION_PREDICTION_VELOCITY, Prediction::Velocity),
];
const OPTIMIZERS: [(i32, Optimizer); 2] =
    [(DIFFUSION_OPTIMIZER_ADAM, Optimizer::Adam), (DIFFUSION_OPTIMIZER_ADAMW, Optimizer::AdamW)];
const PRECISIONS: [(i32, Precision); 3] = [
    (DIFFUSION_PRECISION_F32, Precision::F32),
    (DIFFUSION_PRECISION_F16, Precision::F16),
    (DIFFUSION_PRECISION_BF16, Precision::Bf16),
];
const INFERENCE_PRECISIONS: [(i32, InferencePrecision); 4] = [
    (DIFFUSION_PRECISION_F32, InferencePrecision::F32),
    (DIFFUSION_PRECISION_F16, InferencePrecision::F16),
    (DIFFUSION_PRECISION_BF16, InferencePrecision::Bf16),
    (DIFFUSION_PRECISION_AUTO, InferencePrecision::Auto),
];
const METHODS: [(i32, Method); 7] = [
    (DIFFUSION_METHOD_DDPM, Method::Ddpm),
    (DIFFUSION_METHOD_DDIM, Method::Ddim),
    (DIFFUSION_METHOD_DPM_SOLVER_PP_2M, Method::DpmSolverPp2M),
    (DIFFUSION_METHOD_DPM_SOLVER_PP_2M_SDE, Method::DpmSolverPp2MSde),
    (DIFFUSION_METHOD_UNIPC, Method::UniPc),
    (DIFFUSION_METHOD_EULER, Method::Euler),
    (DIFFUSION_METHOD_HEUN, Method::Heun),
];
const LOSSES: [(i32, Loss); 2] = [(DIFFUSION_LOSS_MSE, Loss::Mse), (DIFFUSION_LOSS_HUBER, Loss::Huber)];
const SPACINGS: [(i32, Spacing); 4] = [
    (DIFFUSION_SPACING_LEADING, Spacing::Leading),
    (DIFFUSION_SPACING_TRAILING, Spacing::Trailing),
    (DIFFUSION_SPACING_LINSPACE, Spacing::Linspace),
    (DIFFUSION_SPACING_KARRAS, Spacing::Karras),
];
const VARIANCES: [(i32, Variance); 2] = [
    (DIFFUSION_VARIANCE_FIXED_SMALL, Variance::FixedSmall),
    (DIFFUSION_VARIANCE_FIXED_LARGE, Variance::FixedLarge),
];
const FORMATS: [(i32, Format); 4] = [
    (DIFFUSION_FORMAT_F32, Format::F32),
    (DIFFUSION_FORMAT_F16, Format::F16),
    (DIFFUSION_FORMAT_RGB8, Format::Rgb8),
    (DIFFUSION_FORMAT_RGBA8, Format::Rgba8),
];
const SWITCH: [(i32, bool); 2] = [(0, false), (1, true)];

/// What a number of the ABI stands for, or an error that names what it may be.
fn pick<T: Clone>(name: &str, value: i32, table: &[(i32, T)], constants: &str) -> Result<T> {
    table.iter().find(|(number, _)| *number == value).map(|(_, found)| found.clone()).ok_or_else(|| {
        let numbers = table.iter().map(|(number, _)| *number);
        let (low, high) = (numbers.clone().min().unwrap_or(0), numbers.max().unwrap_or(0));
        Error::argument(name, value, format!("one of {constants}, {low}..={high}"))
    })
}

/// The number of the ABI that stands for a value.
fn number<T: PartialEq>(value: &T, table: &[(i32, T)]) -> i32 {
    table.iter().find(|(_, found)| found == value).map_or(DIFFUSION_DEFAULT, |(number, _)| *number)
}

/// A whole number in a range.
fn within(name: &str, value: i32, low: i32, high: i32) -> Result<usize> {
    if (low..=high).contains(&value) {
        return Ok(value as usize);
    }
    Err(Error::argument(name, value, format!("in {low}..={high}")))
}

// SAFETY: repr(C), begins with a u32, and every field takes any bits.
unsafe impl Versioned for diffusion_config {
    /// Up to and including `seed`: what a config cannot do without.
    const LEAST: usize = std::mem::offset_of!(diffusion_config, layers_per_block);
    const NAME: &'static str = "diffusion_config";

    fn defaults() -> Self {
        defaults()
    }
}

// SAFETY: repr(C), begins with a u32, and every field takes any bits: pointers are checked before use.
unsafe impl Versioned for diffusion_sample_params {
    /// Up to and including `seed`.
    const LEAST: usize = std::mem::offset_of!(diffusion_sample_params, seeds);
    const NAME: &'static str = "diffusion_sample_params";

    fn defaults() -> Self {
        sample_defaults()
    }
}

fn levels(dims: &[i32]) -> [i32; DIFFUSION_MAX_LEVELS] {
    let mut all = [0; DIFFUSION_MAX_LEVELS];
    for (to, from) in all.iter_mut().zip(dims) {
        *to = *from;
    }
    all
}

/// What `diffusion_config_init` writes.
pub(super) fn defaults() -> diffusion_config {
    let training = TrainingConfig::default();
    diffusion_config {
        struct_size: size_of::<diffusion_config>() as u32,
        image_size: 32,
        channels: 3,
        hidden_dims_len: 3,
        hidden_dims: levels(&[64, 128, 256]),
        beta_start: 1e-4,
        beta_end: 0.999,
        noise_steps: 1000,
        beta_schedule: DIFFUSION_SCHEDULE_COSINE,
        prediction_type: DIFFUSION_PREDICTION_EPSILON,
        rescale_betas_zero_snr: 0,
        device: DIFFUSION_DEVICE_AUTO,
        device_index: 0,
        num_threads: 0,
        max_batch: 0,
        seed: 0,
        layers_per_block: 2,
        attention_levels: -1,
        attention_head_dim: 0,
        norm_num_groups: 0,
        dropout: 0.0,
        optimizer: number(&training.optimizer, &OPTIMIZERS),
        mixed_precision: number(&training.mixed_precision, &PRECISIONS),
        learning_rate: training.learning_rate,
        adam_beta1: training.adam_beta1,
        adam_beta2: training.adam_beta2,
        adam_epsilon: training.adam_epsilon,
        weight_decay: training.weight_decay,
        gradient_clip: training.gradient_clip,
        ema_decay: training.ema_decay,
        loss: number(&training.loss, &LOSSES),
        num_class_embeds: 0,
        huber_delta: training.huber_delta,
        min_snr_gamma: training.min_snr_gamma,
        warmup_steps: training.warmup_steps as i64,
        decay_steps: training.decay_steps as i64,
        accumulation_steps: training.accumulation_steps as i64,
        inference_precision: DIFFUSION_PRECISION_F32,
        deterministic: 0,
    }
}

/// What `diffusion_config_init_cifar10` writes.
pub(super) fn cifar10() -> diffusion_config {
    diffusion_config {
        hidden_dims_len: 4,
        hidden_dims: levels(&[128, 256, 256, 256]),
        beta_end: 0.02,
        beta_schedule: DIFFUSION_SCHEDULE_LINEAR,
        attention_levels: 0b10,
        norm_num_groups: 32,
        dropout: 0.1,
        optimizer: DIFFUSION_OPTIMIZER_ADAMW,
        learning_rate: 2e-4,
        weight_decay: 1e-5,
        gradient_clip: 1.0,
        ema_decay: 0.999,
        ..defaults()
    }
}

/// Reads the one field that says how long a table of betas must be.
pub(super) fn noise_steps(config: &diffusion_config) -> Result<usize> {
    within("noise_steps", config.noise_steps, 1, MAX_NOISE_STEPS as i32)
}

/// Reads a config; `betas` replaces its formula.
pub(super) fn to_process_config(
    config: &diffusion_config,
    betas: Option<BetaSchedule>,
) -> Result<ProcessConfig> {
    let noise_steps = noise_steps(config)?;
    let kind = match betas {
        Some(betas) => betas,
        None if config.beta_schedule == DIFFUSION_SCHEDULE_GIVEN => {
            return Err(Error::InvalidArgument(
                "beta_schedule is DIFFUSION_SCHEDULE_GIVEN (5): must be a formula, 0..=4; a table of betas is given \
                 to diffusion_create_with_betas"
                    .into(),
            ))
        }
        None => pick("beta_schedule", config.beta_schedule, &BETA_SCHEDULES, "DIFFUSION_SCHEDULE_*")?,
    };
    let schedule = ScheduleConfig {
        kind,
        beta_start: config.beta_start,
        beta_end: config.beta_end,
        noise_steps,
        rescale_zero_terminal_snr: pick(
            "rescale_betas_zero_snr",
            config.rescale_betas_zero_snr,
            &SWITCH,
            "0 and 1",
        )?,
    };
    let prediction = pick("prediction_type", config.prediction_type, &PREDICTIONS, "DIFFUSION_PREDICTION_*")?;
    let result = ProcessConfig {
        unet: unet_config(config)?,
        // diffusers' leading spacing starts below the last timestep unless the steps divide them: trailing is right
        // for every number of steps, 1 included.
        scheduler: SchedulerConfig {
            schedule,
            prediction,
            spacing: Spacing::Trailing,
            ..SchedulerConfig::default()
        },
        training: training_config(config)?,
        device: device(config)?,
        num_threads: within("num_threads", config.num_threads, 0, 1024)?,
        max_batch: within("max_batch", config.max_batch, 0, 65_536)?,
        seed: config.seed,
        inference_precision: inference_precision(config)?,
        deterministic: deterministic(config)?,
    };
    result.validate()?;
    Ok(result)
}

fn unet_config(config: &diffusion_config) -> Result<UnetConfig> {
    let image_size = within("image_size", config.image_size, 1, 4096)?;
    let channels = within("channels", config.channels, 1, 64)?;
    let len = within("hidden_dims_len", config.hidden_dims_len, 1, DIFFUSION_MAX_LEVELS as i32)?;
    let dims = (config.hidden_dims.iter().take(len).enumerate())
        .map(|(i, &dim)| within(&format!("hidden_dims[{i}]"), dim, 1, 8192))
        .collect::<Result<Vec<_>>>()?;
    let mut unet = UnetConfig::from_hidden_dims(image_size, channels, &dims)?;
    unet.layers_per_block = within("layers_per_block", config.layers_per_block, 1, 8)?;
    if config.attention_levels != -1 {
        let mask = within("attention_levels", config.attention_levels, 0, (1 << len) - 1)?;
        let kind =
            |level: usize| if mask >> level & 1 == 1 { BlockKind::Attention } else { BlockKind::Plain };
        unet.down_blocks = (0..len).map(kind).collect();
        unet.up_blocks = (0..len).rev().map(kind).collect();
    }
    unet.attention_head_dim = match within("attention_head_dim", config.attention_head_dim, 0, 8192)? {
        0 => None,
        dim => Some(dim),
    };
    check_heads(&unet)?;
    if config.norm_num_groups != 0 {
        unet.norm_num_groups = within("norm_num_groups", config.norm_num_groups, 1, 8192)?;
    }
    if !(0.0..1.0).contains(&config.dropout) {
        return Err(Error::argument("dropout", config.dropout, "in [0, 1)"));
    }
    unet.dropout = config.dropout;
    unet.class_embedding = match config.num_class_embeds {
        0 => ClassEmbedding::None,
        DIFFUSION_CLASSES_AS_TIMESTEPS => ClassEmbedding::Timestep,
        classes @ 1..=1_000_000 => ClassEmbedding::Table(classes as usize),
        other => {
            let allowed = "0, in 1..=1000000 or DIFFUSION_CLASSES_AS_TIMESTEPS (-1)";
            return Err(Error::argument("num_class_embeds", other, allowed));
        }
    };
    Ok(unet)
}

/// The type of exported weights.
pub(super) fn weight_type(precision: i32) -> Result<WeightType> {
    Ok(match pick("precision", precision, &PRECISIONS, "DIFFUSION_PRECISION_*")? {
        Precision::F32 => WeightType::F32,
        Precision::F16 => WeightType::F16,
        Precision::Bf16 => WeightType::BF16,
    })
}

/// Heads that do not fill their level would leave channels out; diffusers' checkpoints may, a new network need not.
fn check_heads(unet: &UnetConfig) -> Result<()> {
    let Some(dim) = unet.attention_head_dim else { return Ok(()) };
    let middle = unet.block_out_channels.len().saturating_sub(1);
    let levels = unet.block_out_channels.iter().zip(&unet.down_blocks).enumerate();
    for (level, (&width, &kind)) in levels {
        let attentive = kind == BlockKind::Attention || (level == middle && unet.add_attention);
        if attentive && width % dim != 0 {
            let allowed = format!("a divisor of hidden_dims[{level}] ({width}), which has attention, or 0");
            return Err(Error::argument("attention_head_dim", dim, allowed));
        }
    }
    Ok(())
}

fn training_config(config: &diffusion_config) -> Result<TrainingConfig> {
    Ok(TrainingConfig {
        optimizer: pick("optimizer", config.optimizer, &OPTIMIZERS, "DIFFUSION_OPTIMIZER_*")?,
        mixed_precision: pick(
            "mixed_precision",
            config.mixed_precision,
            &PRECISIONS,
            "DIFFUSION_PRECISION_*",
        )?,
        learning_rate: config.learning_rate,
        adam_beta1: config.adam_beta1,
        adam_beta2: config.adam_beta2,
        adam_epsilon: config.adam_epsilon,
        weight_decay: config.weight_decay,
        gradient_clip: config.gradient_clip,
        ema_decay: config.ema_decay,
        loss: pick("loss", config.loss, &LOSSES, "DIFFUSION_LOSS_*")?,
        huber_delta: config.huber_delta,
        min_snr_gamma: config.min_snr_gamma,
        warmup_steps: steps("warmup_steps", config.warmup_steps, 0)?,
        decay_steps: steps("decay_steps", config.decay_steps, 0)?,
        accumulation_steps: steps("accumulation_steps", config.accumulation_steps, 1)?,
    })
}

fn inference_precision(config: &diffusion_config) -> Result<InferencePrecision> {
    let value = config.inference_precision;
    pick("inference_precision", value, &INFERENCE_PRECISIONS, "DIFFUSION_PRECISION_*")
}

fn deterministic(config: &diffusion_config) -> Result<bool> {
    pick("deterministic", config.deterministic, &SWITCH, "0 and 1")
}

/// A number of steps.
fn steps(name: &str, value: i64, least: i64) -> Result<u64> {
    match value >= least {
        true => Ok(value as u64),
        false => Err(Error::argument(name, value, format!("at least {least}"))),
    }
}

fn device(config: &diffusion_config) -> Result<DeviceChoice> {
    let index = within("device_index", config.device_index, 0, 1023)? as i32;
    match config.device {
        DIFFUSION_DEVICE_AUTO => Ok(DeviceChoice::Auto(index)),
        DIFFUSION_DEVICE_CPU => Ok(DeviceChoice::Cpu),
        DIFFUSION_DEVICE_CUDA => Ok(DeviceChoice::Cuda(index)),
        other => Err(Error::argument("device", other, "one of DIFFUSION_DEVICE_*, 0..=2")),
    }
}

/// Writes what a process is, as far as the struct can say it.
pub(super) fn from_process_config(config: &ProcessConfig) -> diffusion_config {
    let (unet, schedule, training) = (&config.unet, &config.scheduler.schedule, &config.training);
    let dims: Vec<i32> = unet.block_out_channels.iter().map(|&dim| dim as i32).collect();
    let attentive = |kind: &BlockKind| i32::from(*kind == BlockKind::Attention);
    let attention = unet.down_blocks.iter().zip(0..).map(|(kind, level)| attentive(kind) << level).sum();
    let (device, device_index) = match config.device {
        DeviceChoice::Auto(index) => (DIFFUSION_DEVICE_AUTO, index),
        DeviceChoice::Cpu => (DIFFUSION_DEVICE_CPU, 0),
        DeviceChoice::Cuda(index) => (DIFFUSION_DEVICE_CUDA, index),
    };
    diffusion_config {
        struct_size: size_of::<diffusion_config>() as u32,
        image_size: config.image_size() as i32,
        channels: config.channels() as i32,
        hidden_dims_len: dims.len() as i32,
        hidden_dims: levels(&dims),
        beta_start: schedule.beta_start,
        beta_end: schedule.beta_end,
        noise_steps: schedule.noise_steps as i32,
        beta_schedule: match schedule.kind {
            BetaSchedule::Given(_) => DIFFUSION_SCHEDULE_GIVEN,
            ref formula => number(formula, &BETA_SCHEDULES),
        },
        prediction_type: number(&config.scheduler.prediction, &PREDICTIONS),
        rescale_betas_zero_snr: i32::from(schedule.rescale_zero_terminal_snr),
        device,
        device_index,
        num_threads: config.num_threads as i32,
        max_batch: config.max_batch as i32,
        seed: config.seed,
        layers_per_block: unet.layers_per_block as i32,
        attention_levels: attention,
        attention_head_dim: unet.attention_head_dim.unwrap_or(0) as i32,
        norm_num_groups: unet.norm_num_groups as i32,
        dropout: unet.dropout,
        optimizer: number(&training.optimizer, &OPTIMIZERS),
        mixed_precision: number(&training.mixed_precision, &PRECISIONS),
        learning_rate: training.learning_rate,
        adam_beta1: training.adam_beta1,
        adam_beta2: training.adam_beta2,
        adam_epsilon: training.adam_epsilon,
        weight_decay: training.weight_decay,
        gradient_clip: training.gradient_clip,
        ema_decay: training.ema_decay,
        loss: number(&training.loss, &LOSSES),
        num_class_embeds: match unet.class_embedding {
            ClassEmbedding::None => 0,
            ClassEmbedding::Table(classes) => classes as i32,
            ClassEmbedding::Timestep | ClassEmbedding::Identity => DIFFUSION_CLASSES_AS_TIMESTEPS,
        },
        huber_delta: training.huber_delta,
        min_snr_gamma: training.min_snr_gamma,
        warmup_steps: training.warmup_steps as i64,
        decay_steps: training.decay_steps as i64,
        accumulation_steps: training.accumulation_steps as i64,
        inference_precision: number(&config.inference_precision, &INFERENCE_PRECISIONS),
        deterministic: i32::from(config.deterministic),
    }
}

/// What a caller of `diffusion_load` wants changed: the fields that differ from the defaults.
pub(super) struct Overrides(diffusion_config);

/// Takes over a field that the caller changed.
macro_rules! take {
    ($given:expr, $config:expr, $($field:ident),*) => {{
        let defaults = defaults();
        $(if $given.$field != defaults.$field { $config.$field = $given.$field; })*
    }};
}

/// Refuses a field that the caller changed to something else than the checkpoint's.
macro_rules! keep {
    ($given:expr, $config:expr, $($field:ident),*) => {{
        let defaults = defaults();
        $(if $given.$field != defaults.$field && $given.$field != $config.$field {
            return Err(Error::InvalidArgument(format!(
                concat!("overrides.", stringify!($field), " is {:?}: must be the checkpoint's {:?} or left as \
                 diffusion_config_init made it; the network and the schedule cannot be overridden"),
                $given.$field, $config.$field
            )));
        })*
    }};
}

impl Overrides {
    pub(super) fn none() -> Self {
        Overrides(defaults())
    }

    pub(super) fn new(config: diffusion_config) -> Self {
        Overrides(config)
    }

    /// Where to load to.
    pub(super) fn device(&self) -> Result<DeviceChoice> {
        device(&self.0)
    }

    /// Changes what a checkpoint says.
    pub(super) fn apply(&self, config: &mut ProcessConfig) -> Result<()> {
        let given = &self.0;
        let mut merged = from_process_config(config);
        keep!(
            given,
            merged,
            image_size,
            channels,
            hidden_dims_len,
            hidden_dims,
            beta_start,
            beta_end,
            noise_steps,
            beta_schedule,
            prediction_type,
            rescale_betas_zero_snr,
            layers_per_block,
            attention_levels,
            attention_head_dim,
            norm_num_groups,
            num_class_embeds
        );
        take!(
            given,
            merged,
            num_threads,
            max_batch,
            seed,
            dropout,
            optimizer,
            mixed_precision,
            learning_rate,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            weight_decay,
            gradient_clip,
            ema_decay,
            loss,
            huber_delta,
            min_snr_gamma,
            warmup_steps,
            decay_steps,
            accumulation_steps,
            inference_precision,
            deterministic
        );
        config.num_threads = within("num_threads", merged.num_threads, 0, 1024)?;
        config.max_batch = within("max_batch", merged.max_batch, 0, 65_536)?;
        config.seed = merged.seed;
        if !(0.0..1.0).contains(&merged.dropout) {
            return Err(Error::argument("dropout", merged.dropout, "in [0, 1)"));
        }
        config.unet.dropout = merged.dropout;
        config.training = training_config(&merged)?;
        config.inference_precision = inference_precision(&merged)?;
        config.deterministic = deterministic(&merged)?;
        Ok(())
    }
}

/// What `diffusion_sample_params_init` writes.
pub(super) fn sample_defaults() -> diffusion_sample_params {
    diffusion_sample_params {
        struct_size: size_of::<diffusion_sample_params>() as u32,
        method: DIFFUSION_METHOD_DDIM,
        num_samples: 1,
        seed: 0,
        seeds: std::ptr::null(),
        seeds_len: 0,
        initial_noise: std::ptr::null(),
        initial_noise_len: 0,
        steps: 0,
        spacing: DIFFUSION_DEFAULT,
        eta: 0.0,
        variance: DIFFUSION_DEFAULT,
        clip_sample: DIFFUSION_DEFAULT,
        use_clipped_model_output: 0,
        format: DIFFUSION_FORMAT_F32,
        dynamic_thresholding: 0.0,
        timeout_ms: 0,
        progress: None,
        user_data: std::ptr::null_mut(),
        class_labels: std::ptr::null(),
        class_labels_len: 0,
    }
}

/// The two fields that decide the size of the result.
pub(super) fn format_and_count(params: &diffusion_sample_params) -> Result<(Format, usize)> {
    const MOST: usize = 1 << 20;
    if !(1..=MOST).contains(&params.num_samples) {
        return Err(Error::argument("num_samples", params.num_samples, format!("in 1..={MOST}")));
    }
    Ok((pick("format", params.format, &FORMATS, "DIFFUSION_FORMAT_*")?, params.num_samples))
}

/// Reads sampling parameters, copying what they point to. `progress` is left to the caller, who knows on which
/// thread it may run.
///
/// # Safety
/// The pointers in `params` are as its fields say.
pub(super) unsafe fn sample_request(
    config: &ProcessConfig,
    params: &diffusion_sample_params,
) -> Result<SampleRequest> {
    let (format, num_samples) = format_and_count(params)?;
    let floats = config.result_bytes("num_samples", Format::F32, num_samples)? / size_of::<f32>();
    config.result_bytes("num_samples", format, num_samples)?;
    let mut seeds = Vec::new();
    if !params.seeds.is_null() || params.seeds_len != 0 {
        let need = Need::new(num_samples, "num_samples");
        let seeds_in =
            Array { name: "seeds", pointer: params.seeds, length: "seeds_len", len: params.seeds_len };
        // SAFETY: passed on from the caller.
        seeds = unsafe { input(seeds_in, &need) }?;
    }
    let mut class_labels = Vec::new();
    if !params.class_labels.is_null() || params.class_labels_len != 0 {
        let labels_in = Array {
            name: "class_labels",
            pointer: params.class_labels,
            length: "class_labels_len",
            len: params.class_labels_len,
        };
        // SAFETY: passed on from the caller.
        class_labels = unsafe { input(labels_in, &Need::new(num_samples, "num_samples")) }?;
    }
    config.check_class_labels((!class_labels.is_empty()).then_some(&class_labels))?;
    let mut initial_noise = None;
    if !params.initial_noise.is_null() || params.initial_noise_len != 0 {
        let need = Need::new(floats, "all values of all images");
        let noise = Array {
            name: "initial_noise",
            pointer: params.initial_noise,
            length: "initial_noise_len",
            len: params.initial_noise_len,
        };
        // SAFETY: passed on from the caller.
        let values = unsafe { input(noise, &need) }?;
        check_finite("initial_noise", &values)?;
        initial_noise = Some(values);
    }
    if params.timeout_ms < 0 {
        return Err(Error::argument("timeout_ms", params.timeout_ms, "at least 0 (0: no limit)"));
    }
    let timeout = (params.timeout_ms > 0).then(|| Duration::from_millis(params.timeout_ms as u64));
    let sampler = sampler_params(config, params)?;
    Ok(SampleRequest {
        sampler,
        num_samples,
        seed: params.seed,
        seeds,
        class_labels,
        initial_noise,
        format,
        timeout,
        progress: None,
    })
}

fn sampler_params(config: &ProcessConfig, params: &diffusion_sample_params) -> Result<SamplerParams> {
    let scheduler = &config.scheduler;
    let noise_steps = scheduler.schedule.noise_steps;
    let method = pick("method", params.method, &METHODS, "DIFFUSION_METHOD_*")?;
    let steps = match params.steps {
        0 if method == Method::Ddpm => noise_steps,
        0 => noise_steps.min(50),
        steps => usize::try_from(steps)
            .map_err(|_| Error::argument("steps", steps, format!("in 1..={noise_steps}")))?,
    };
    let dynamic_thresholding = match params.dynamic_thresholding {
        0.0 => scheduler.dynamic_thresholding,
        percentile if (0.0..1.0).contains(&percentile) => Some(percentile),
        other => return Err(Error::argument("dynamic_thresholding", other, "0 or in (0, 1)")),
    };
    let default_or = |value: i32| (value != DIFFUSION_DEFAULT).then_some(value);
    Ok(SamplerParams {
        method,
        steps,
        eta: params.eta,
        spacing: match default_or(params.spacing) {
            None => scheduler.spacing,
            Some(value) => pick("spacing", value, &SPACINGS, "DIFFUSION_SPACING_* or DIFFUSION_DEFAULT")?,
        },
        variance: match default_or(params.variance) {
            None => scheduler.variance,
            Some(value) => pick("variance", value, &VARIANCES, "DIFFUSION_VARIANCE_* or DIFFUSION_DEFAULT")?,
        },
        clip_sample: match default_or(params.clip_sample) {
            None => scheduler.clip_sample,
            Some(value) => pick("clip_sample", value, &SWITCH, "0, 1 and DIFFUSION_DEFAULT")?,
        },
        clip_sample_range: scheduler.clip_sample_range,
        use_clipped_model_output: pick(
            "use_clipped_model_output",
            params.use_clipped_model_output,
            &SWITCH,
            "0 and 1",
        )?,
        dynamic_thresholding,
        prediction: scheduler.prediction,
        steps_offset: scheduler.steps_offset,
    })
}
