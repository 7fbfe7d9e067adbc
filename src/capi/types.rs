//! The structs, constants and callbacks of the C ABI, laid out exactly as `diffusion.h` shows them.
//!
//! Enumerations cross as `int32_t` and are validated, so that no value from C can be an invalid Rust enum. A
//! struct only ever grows at its end; `struct_size` says how much of it the caller knows.
#![allow(non_camel_case_types)]

use std::ffi::c_void;

/// The version of this interface. It changes only when something that existed changes its meaning or layout;
/// additions leave it alone. Compare it with diffusion_abi_version() at start-up.
pub const DIFFUSION_ABI_VERSION: u32 = 1;

/// The most levels a U-Net may have: the length of diffusion_config.hidden_dims.
pub const DIFFUSION_MAX_LEVELS: usize = 8;
const _: () = assert!(DIFFUSION_MAX_LEVELS == crate::process::MAX_LEVELS);

/// diffusion_config.device: CUDA if a usable CUDA device and libtorch's CUDA libraries are there, else the CPU.
pub const DIFFUSION_DEVICE_AUTO: i32 = 0;
/// diffusion_config.device: the CPU.
pub const DIFFUSION_DEVICE_CPU: i32 = 1;
/// diffusion_config.device: the CUDA device numbered diffusion_config.device_index, or DEVICE_UNAVAILABLE.
pub const DIFFUSION_DEVICE_CUDA: i32 = 2;

/// diffusion_config.beta_schedule: Nichol and Dhariwal's cosine (arXiv 2102.09672), each beta clipped to
/// [beta_start, beta_end]. The default, with beta_end 0.999.
pub const DIFFUSION_SCHEDULE_COSINE: i32 = 0;
/// diffusion_config.beta_schedule: evenly spaced from beta_start to beta_end (DDPM, arXiv 2006.11239).
pub const DIFFUSION_SCHEDULE_LINEAR: i32 = 1;
/// diffusion_config.beta_schedule: half a cosine wave from beta_start up to beta_end.
pub const DIFFUSION_SCHEDULE_COSINE_RAMP: i32 = 2;
/// diffusion_config.beta_schedule: squares of an even spacing from sqrt(beta_start) to sqrt(beta_end).
pub const DIFFUSION_SCHEDULE_SCALED_LINEAR: i32 = 3;
/// diffusion_config.beta_schedule: a logistic curve over [-6, 6] from beta_start to beta_end.
pub const DIFFUSION_SCHEDULE_SIGMOID: i32 = 4;
/// diffusion_config.beta_schedule: a table of betas, given to diffusion_create_with_betas or read from a checkpoint.
pub const DIFFUSION_SCHEDULE_GIVEN: i32 = 5;

/// diffusion_config.prediction_type: the network predicts the noise that was added.
pub const DIFFUSION_PREDICTION_EPSILON: i32 = 0;
/// diffusion_config.prediction_type: the network predicts the clean image.
pub const DIFFUSION_PREDICTION_SAMPLE: i32 = 1;
/// diffusion_config.prediction_type: the network predicts the velocity (arXiv 2202.00512).
pub const DIFFUSION_PREDICTION_VELOCITY: i32 = 2;

/// diffusion_config.optimizer: Adam (arXiv 1412.6980); weight_decay is added to the gradient.
pub const DIFFUSION_OPTIMIZER_ADAM: i32 = 0;
/// diffusion_config.optimizer: AdamW (arXiv 1711.05101); weight_decay shrinks the weights directly.
pub const DIFFUSION_OPTIMIZER_ADAMW: i32 = 1;

/// diffusion_config.mixed_precision: train in 32-bit floating point. diffusion_config.inference_precision: sample so.
pub const DIFFUSION_PRECISION_F32: i32 = 0;
/// diffusion_config.mixed_precision: autocast to f16 with a gradient scaler. CUDA only.
/// diffusion_config.inference_precision: CUDA only.
pub const DIFFUSION_PRECISION_F16: i32 = 1;
/// diffusion_config.mixed_precision: autocast to bfloat16; needs no gradient scaler. CPU and CUDA.
/// diffusion_config.inference_precision: on the CPU the weights are held in bfloat16, which halves what is read of them
/// for each image, and computed with in f32.
pub const DIFFUSION_PRECISION_BF16: i32 = 2;
/// diffusion_config.inference_precision: the fastest of the above that keeps to the bound told there. Not for
/// mixed_precision.
pub const DIFFUSION_PRECISION_AUTO: i32 = 3;

/// diffusion_config.loss: the mean of squared differences (arXiv 2006.11239).
pub const DIFFUSION_LOSS_MSE: i32 = 0;
/// diffusion_config.loss: Huber's: half the square of a difference up to huber_delta, linear beyond.
pub const DIFFUSION_LOSS_HUBER: i32 = 1;

/// diffusion_config.num_class_embeds: labels are any whole numbers, embedded as timesteps are (diffusers'
/// class_embed_type "timestep").
pub const DIFFUSION_CLASSES_AS_TIMESTEPS: i32 = -1;

/// diffusion_get_schedule: beta, the variance of the noise that step t adds.
pub const DIFFUSION_TABLE_BETA: i32 = 0;
/// diffusion_get_schedule: alpha = 1 - beta.
pub const DIFFUSION_TABLE_ALPHA: i32 = 1;
/// diffusion_get_schedule: the product of alpha up to and including t.
pub const DIFFUSION_TABLE_ALPHA_CUMPROD: i32 = 2;
/// diffusion_get_schedule: the square root of alpha_cumprod: how much of the image is left at t.
pub const DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD: i32 = 3;
/// diffusion_get_schedule: the square root of 1 - alpha_cumprod: how much noise there is at t.
pub const DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD: i32 = 4;

/// diffusion_sample_params.method: DDPM ancestral sampling (arXiv 2006.11239).
pub const DIFFUSION_METHOD_DDPM: i32 = 0;
/// diffusion_sample_params.method: DDIM (arXiv 2010.02502).
pub const DIFFUSION_METHOD_DDIM: i32 = 1;
/// diffusion_sample_params.method: DPM-Solver++ 2M (arXiv 2211.01095), deterministic.
pub const DIFFUSION_METHOD_DPM_SOLVER_PP_2M: i32 = 2;
/// diffusion_sample_params.method: the SDE form of DPM-Solver++ 2M.
pub const DIFFUSION_METHOD_DPM_SOLVER_PP_2M_SDE: i32 = 3;
/// diffusion_sample_params.method: UniPC (arXiv 2302.04867).
pub const DIFFUSION_METHOD_UNIPC: i32 = 4;
/// diffusion_sample_params.method: Euler's method on the probability-flow ODE (arXiv 2206.00364).
pub const DIFFUSION_METHOD_EULER: i32 = 5;
/// diffusion_sample_params.method: Heun's second-order method on the same ODE; two network calls a step.
pub const DIFFUSION_METHOD_HEUN: i32 = 6;

/// diffusion_sample_params.spacing, variance and clip_sample: what the process's checkpoint says; for a process that
/// was made by diffusion_create trailing, fixed_small, clip.
pub const DIFFUSION_DEFAULT: i32 = -1;
/// diffusion_sample_params.spacing: multiples of floor(noise_steps / steps), counted from 0. Starts well below the
/// last timestep where steps are few or do not divide noise_steps; here for diffusers' checkpoints.
pub const DIFFUSION_SPACING_LEADING: i32 = 0;
/// diffusion_sample_params.spacing: multiples of noise_steps / steps, counted down from noise_steps - 1; right for
/// any number of steps (arXiv 2305.08891).
pub const DIFFUSION_SPACING_TRAILING: i32 = 1;
/// diffusion_sample_params.spacing: evenly from 0 to noise_steps - 1, both included.
pub const DIFFUSION_SPACING_LINSPACE: i32 = 2;
/// diffusion_sample_params.spacing: noise levels spaced after Karras et al. (arXiv 2206.00364, rho 7).
pub const DIFFUSION_SPACING_KARRAS: i32 = 3;

/// diffusion_sample_params.variance: DDPM's posterior variance.
pub const DIFFUSION_VARIANCE_FIXED_SMALL: i32 = 0;
/// diffusion_sample_params.variance: beta itself.
pub const DIFFUSION_VARIANCE_FIXED_LARGE: i32 = 1;

/// diffusion_sample_params.format: float [num_samples, channels, image_size, image_size], values in [-1, 1].
pub const DIFFUSION_FORMAT_F32: i32 = 0;
/// diffusion_sample_params.format: IEEE half precision (2 bytes), otherwise as DIFFUSION_FORMAT_F32.
pub const DIFFUSION_FORMAT_F16: i32 = 1;
/// diffusion_sample_params.format: bytes [num_samples, image_size, image_size, 3], 0..255, rows from the top.
/// For 1, 3 or 4 channels: gray is repeated, alpha is dropped.
pub const DIFFUSION_FORMAT_RGB8: i32 = 2;
/// diffusion_sample_params.format: bytes [num_samples, image_size, image_size, 4], as DIFFUSION_FORMAT_RGB8 with
/// alpha last; 255 where the model has none.
pub const DIFFUSION_FORMAT_RGBA8: i32 = 3;

/// diffusion_job_poll: the job waits for its first denoising step.
pub const DIFFUSION_JOB_QUEUED: i32 = 0;
/// diffusion_job_poll: the job is being computed.
pub const DIFFUSION_JOB_RUNNING: i32 = 1;
/// diffusion_job_poll: the images are ready for diffusion_job_fetch.
pub const DIFFUSION_JOB_DONE: i32 = 2;
/// diffusion_job_poll: the job ended without a result; diffusion_job_wait returns why.
pub const DIFFUSION_JOB_FAILED: i32 = 3;
/// diffusion_job_poll: the job was cancelled, ran out of its time, or its process was destroyed.
pub const DIFFUSION_JOB_CANCELLED: i32 = 4;

/// diffusion_parameter_read and _write: the weights that the optimizer trains.
pub const DIFFUSION_WEIGHTS_TRAINED: i32 = 0;
/// diffusion_parameter_read and _write: their exponential moving average, which sampling uses; the trained
/// weights themselves where ema_decay is 0.
pub const DIFFUSION_WEIGHTS_EMA: i32 = 1;

/// diffusion_log_fn: something is likely to give poor results.
pub const DIFFUSION_LOG_WARNING: i32 = 1;
/// diffusion_log_fn: something worth knowing happened.
pub const DIFFUSION_LOG_INFO: i32 = 2;

/// A diffusion model with its noise schedule, weights, optimizer and the thread that computes.
///
/// Made by diffusion_create, diffusion_create_with_betas or diffusion_load; ended by diffusion_destroy. The value
/// is a key, not an address: using it after its end, or passing any other value, is an
/// DIFFUSION_ERROR_INVALID_HANDLE and never undefined behaviour. Any thread may use it at any time; calls on one
/// process take their turn, sampling calls are computed together. It does not survive fork(): every call in the
/// child is an error.
pub struct diffusion_process {
    _opaque: [u8; 0],
}

/// A sampling job that runs while its caller does something else.
///
/// Made by diffusion_sample_submit; ended by diffusion_job_destroy, which must be called also after the job's
/// process was destroyed. A key like diffusion_process, usable from any thread.
pub struct diffusion_job {
    _opaque: [u8; 0],
}

/// What a process is to be. Fill it with diffusion_config_init, then change what you need.
///
/// Holds no pointers; copy it freely. See the DIFFUSION_* constants for the fields that are enumerations.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct diffusion_config {
    /// The size of this struct in bytes as the caller knows it; set by diffusion_config_init.
    pub struct_size: u32,
    /// Height and width of the images in pixels, 1..=4096; a multiple of 2^(hidden_dims_len - 1). Default 32.
    pub image_size: i32,
    /// Channels of an image: 1 gray, 3 RGB, 4 RGBA, or any count in 1..=64. Default 3.
    pub channels: i32,
    /// How many entries of hidden_dims are used, 1..=8: the number of U-Net levels. Default 3.
    pub hidden_dims_len: i32,
    /// Channels of each U-Net level, from full resolution down (diffusers' block_out_channels); each a multiple of 8
    /// and of norm_num_groups, at most 8192. Default 64, 128, 256.
    pub hidden_dims: [i32; DIFFUSION_MAX_LEVELS],
    /// The smallest beta (noise variance of a step), in (0, beta_end). Default 0.0001.
    pub beta_start: f64,
    /// The largest beta, in (beta_start, 1). Default 0.999, the cosine schedule's; 0.02 is usual for linear.
    pub beta_end: f64,
    /// Timesteps of the noising process, 1..=100000. Default 1000.
    pub noise_steps: i32,
    /// One of DIFFUSION_SCHEDULE_*. Default COSINE.
    pub beta_schedule: i32,
    /// One of DIFFUSION_PREDICTION_*. Default EPSILON.
    pub prediction_type: i32,
    /// 1: rescale the schedule so that the last timestep is pure noise (arXiv 2305.08891); needs a prediction_type
    /// other than EPSILON. Default 0.
    pub rescale_betas_zero_snr: i32,
    /// One of DIFFUSION_DEVICE_*. Default AUTO.
    pub device: i32,
    /// Which CUDA device, in 0..=1023. Default 0.
    pub device_index: i32,
    /// Threads that a CPU process computes with, 1..=1024, or 0: as many as libtorch chooses, one a core. Where other
    /// programs keep the cores busy, fewer threads or OMP_WAIT_POLICY=passive in the environment are faster. Default 0.
    pub num_threads: i32,
    /// The most images in one evaluation of the network when sampling, 1..=65536, or 0: 64 on the CPU, 256 on CUDA.
    /// Default 0.
    pub max_batch: i32,
    /// Determines the initial weights and all randomness of training. Default 0.
    pub seed: u64,

    /// Residual blocks of each level, 1..=8. Default 2.
    pub layers_per_block: i32,
    /// Bit i set: self-attention at level i (0 is full resolution), below 2^hidden_dims_len; or -1: at the first level
    /// of at most 16x16 pixels, as in DDPM. The middle of the U-Net has it where at most 32x32 pixels are left.
    /// Default -1.
    pub attention_levels: i32,
    /// Channels of an attention head, a divisor of the channels of each level that has attention, the middle's
    /// included; 0: one head. Default 0.
    pub attention_head_dim: i32,
    /// Groups of each group normalisation, a divisor of every hidden_dims entry; 0: the most up to 32 that leave at
    /// least 4 channels a group. Default 0.
    pub norm_num_groups: i32,
    /// Probability that a feature is dropped in training, [0, 1). Default 0.
    pub dropout: f64,

    /// One of DIFFUSION_OPTIMIZER_*. Default ADAM.
    pub optimizer: i32,
    /// F32, F16 or BF16 of DIFFUSION_PRECISION_*: the arithmetic of training. Default F32.
    pub mixed_precision: i32,
    /// Step size of the optimizer, > 0, before warmup_steps and decay_steps. Default 0.0001.
    pub learning_rate: f64,
    /// Decay of the optimizer's average of gradients, [0, 1). Default 0.9.
    pub adam_beta1: f64,
    /// Decay of the optimizer's average of squared gradients, [0, 1). Default 0.999.
    pub adam_beta2: f64,
    /// Added to the optimizer's denominator, > 0. Default 1e-8.
    pub adam_epsilon: f64,
    /// Weight decay, >= 0. Default 0.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this, > 0; 0: no clipping. Default 0.
    pub gradient_clip: f64,
    /// Decay of the moving average of the weights, with which sampling is done, [0, 1); 0: none. Default 0.
    pub ema_decay: f64,

    /// One of DIFFUSION_LOSS_*. Default MSE.
    pub loss: i32,
    /// The classes of a class-conditional network, 1..=1000000, or DIFFUSION_CLASSES_AS_TIMESTEPS; 0: it has no
    /// classes. With classes, training and sampling need the class of each image. Default 0.
    pub num_class_embeds: i32,
    /// The difference at which the Huber loss becomes linear, > 0. Default 1.
    pub huber_delta: f64,
    /// Min-SNR weighting (arXiv 2303.09556): each image's loss is weighed by its timestep's signal-to-noise ratio, cut
    /// off here, for the prediction_type; 5 is the paper's choice; 0: off. >= 0. Default 0.
    pub min_snr_gamma: f64,
    /// Optimizer steps over which the learning rate rises linearly from 0, >= 0. Default 0.
    pub warmup_steps: i64,
    /// The optimizer step, counted from the first of all, at which the learning rate has come down to 0 along half a
    /// cosine (arXiv 1608.03983); more than warmup_steps, or 0: it stays as it is. Default 0.
    pub decay_steps: i64,
    /// Calls of diffusion_train_step that make one optimizer step, with the mean of their gradients, >= 1. Default 1.
    pub accumulation_steps: i64,

    /// One of DIFFUSION_PRECISION_*: what sampling and diffusion_predict_noise compute in. With BF16 and AUTO a
    /// prediction differs from F32's by at most 0.05 of its largest value, in practice by 0.01 to 0.02. Networks for
    /// which the CPU has no inference plan (class labels, other activations than SiLU) are computed in F32 there.
    /// Default F32.
    pub inference_precision: i32,
    /// 1: on CUDA too an image is the same bit for bit whatever batch it was computed in, at the price of evaluating
    /// full batches of max_batch images always; 0: it is the same within 1e-4 there. On the CPU it is the same bit for
    /// bit either way. Default 0.
    pub deterministic: i32,
}

/// Called during a blocking call or diffusion_job_wait, on the thread that made that call, about once for each
/// denoising step, with no lock held: it may use the library, the same process and job included.
///
/// done and total count denoising steps of images: total is num_samples times the network evaluations of each.
/// Return 0 to go on; any other value cancels the job, if it has not just ended, and the call returns
/// DIFFUSION_ERROR_CANCELLED. A C++ exception that leaves it cancels too, and the message has its text; a longjmp
/// or the thread's end (pthread_exit, pthread_cancel) must not leave it: that is undefined behaviour.
pub type diffusion_progress_fn =
    Option<unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> i32>;

/// Receives a process's log: level is one of DIFFUSION_LOG_*, message is UTF-8 and valid during the call only.
///
/// Warnings come of a schedule that leaves some of the image at its last timestep, and of sampling that starts so far
/// before the last timestep that some of the image should be left: each is said once.
///
/// Called on the process's own thread, or on the thread that sets it for what was logged before, one call at a
/// time. It must be quick and must not call any function of this library but diffusion_version,
/// diffusion_abi_version and diffusion_status_string: others return DIFFUSION_ERROR_INVALID_ARGUMENT from there.
/// A C++ exception that leaves it is lost; a longjmp or the thread's end must not leave it.
pub type diffusion_log_fn =
    Option<unsafe extern "C" fn(level: i32, message: *const std::ffi::c_char, user_data: *mut c_void)>;

/// What and how to sample. Fill it with diffusion_sample_params_init, then change what you need.
///
/// The pointers are read during the call that takes the struct and not kept, except progress and its user_data of a
/// submitted job, which are used by diffusion_job_wait.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct diffusion_sample_params {
    /// The size of this struct in bytes as the caller knows it; set by diffusion_sample_params_init.
    pub struct_size: u32,
    /// One of DIFFUSION_METHOD_*. Default DDIM.
    pub method: i32,
    /// Images to make, 1..=1048576. Default 1.
    pub num_samples: usize,
    /// Image i is determined by (seed, i). Default 0.
    pub seed: u64,
    /// NULL, or num_samples seeds: image i is then what seed seeds[i] gives as its image 0. Default NULL.
    pub seeds: *const u64,
    /// The number of entries in seeds: num_samples, or 0 where seeds is NULL.
    pub seeds_len: usize,
    /// NULL, or the noise to start from, float [num_samples, channels, image_size, image_size], in place of the
    /// seeds'. Default NULL.
    pub initial_noise: *const f32,
    /// The number of floats in initial_noise: all of them, or 0 where initial_noise is NULL.
    pub initial_noise_len: usize,
    /// Denoising steps, 1..=noise_steps; 0: 50 (or noise_steps, if that is less), and for DDPM noise_steps. Default 0.
    pub steps: i32,
    /// One of DIFFUSION_SPACING_*, or DIFFUSION_DEFAULT. Default DIFFUSION_DEFAULT.
    pub spacing: i32,
    /// In [0, 1], DDIM's and Euler's randomness: with 0 they are deterministic, with 1 DDIM is as random as DDPM and Euler
    /// is its ancestral form. Without effect on other methods. Default 0.
    pub eta: f64,
    /// DDPM's variance: one of DIFFUSION_VARIANCE_*, or DIFFUSION_DEFAULT. Default DIFFUSION_DEFAULT.
    pub variance: i32,
    /// 1: clamp the estimate of the clean image to [-1, 1] at each step; 0: do not; or DIFFUSION_DEFAULT. The final
    /// images are always clamped. Default DIFFUSION_DEFAULT.
    pub clip_sample: i32,
    /// DDIM: 1: recompute the noise from the clipped estimate. Default 0.
    pub use_clipped_model_output: i32,
    /// One of DIFFUSION_FORMAT_*: what is written into the caller's buffer. Default F32.
    pub format: i32,
    /// Dynamic thresholding (arXiv 2205.11487): the percentile in (0, 1) of each image's magnitudes to clamp to, in
    /// place of clip_sample; 0: off. Default 0.
    pub dynamic_thresholding: f64,
    /// Milliseconds after which the job ends with DIFFUSION_ERROR_TIMEOUT, > 0; 0: never. Default 0.
    pub timeout_ms: i64,
    /// NULL, or called as the job proceeds. Default NULL.
    pub progress: diffusion_progress_fn,
    /// Passed to progress.
    pub user_data: *mut c_void,
    /// The class of each image, num_samples of them, for a network with classes; NULL for one without. Default NULL.
    pub class_labels: *const i64,
    /// The number of entries in class_labels: num_samples, or 0 where class_labels is NULL.
    pub class_labels_len: usize,
}

/// What one tensor of the U-Net's parameters is called and how large it is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct diffusion_parameter {
    /// The size of this struct in bytes as the caller knows it; set it to sizeof(diffusion_parameter).
    pub struct_size: u32,
    /// The number of dimensions, 1..=4.
    pub rank: i32,
    /// The dimensions; entries from rank on are 1.
    pub shape: [i64; 4],
    /// The number of floats: the product of shape.
    pub len: usize,
    /// diffusers' name of it, e.g. "down_blocks.0.resnets.0.conv1.weight", NUL-terminated.
    pub name: [std::ffi::c_char; 128],
}
