/*
 * libdiffusion: train and sample image diffusion models inside any process.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 * Generated from src/capi by `make header`; do not edit. Compiles as C99 and later and as C++11 and later.
 *
 * The life of a program:
 *
 *     diffusion_config config;
 *     diffusion_process *process;
 *     diffusion_config_init(&config);
 *     if (diffusion_create(&config, &process) != DIFFUSION_OK) {
 *         fprintf(stderr, "%s\n", diffusion_last_error_message());
 *     }
 *     ... diffusion_train_step, diffusion_sample_ddim, diffusion_save ...
 *     diffusion_destroy(process);
 *
 * Errors. Every function but diffusion_abi_version, diffusion_version, diffusion_status_string and
 * diffusion_last_error_message returns a status: DIFFUSION_OK (0) or one of DIFFUSION_ERROR_*. No function aborts,
 * throws, prints or exits. Memory of the caller is written whole on success and not at all on failure, and only
 * while the caller is inside the call. After an error the process works on. Any call may also return
 * DIFFUSION_ERROR_INTERNAL and, after fork(), DIFFUSION_ERROR_INVALID_HANDLE.
 *
 * Threads. Every function may be called from any thread at any time. Each process computes on a thread of its own;
 * the caller's floating-point mode, stack size and thread-locals do not matter.
 *
 * Images. 32-bit floats in [-1, 1], [batch, channels, height, width], rows from the top, contiguous.
 *
 * Randomness. Image i of a call is determined by (seed, i). No generator of the host's is touched.
 */

#ifndef DIFFUSION_H
#define DIFFUSION_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface. It changes only when something that existed changes its meaning or layout;
 * additions leave it alone. Compare it with diffusion_abi_version() at start-up.
 */
#define DIFFUSION_ABI_VERSION 1

/**
 * The most levels a U-Net may have: the length of diffusion_config.hidden_dims.
 */
#define DIFFUSION_MAX_LEVELS 8

/**
 * diffusion_config.device: CUDA if a usable CUDA device and libtorch's CUDA libraries are there, else the CPU.
 */
#define DIFFUSION_DEVICE_AUTO 0

/**
 * diffusion_config.device: the CPU.
 */
#define DIFFUSION_DEVICE_CPU 1

/**
 * diffusion_config.device: the CUDA device numbered diffusion_config.device_index, or DEVICE_UNAVAILABLE.
 */
#define DIFFUSION_DEVICE_CUDA 2

/**
 * diffusion_config.beta_schedule: Nichol and Dhariwal's cosine (arXiv 2102.09672), each beta clipped to
 * [beta_start, beta_end]. The default, with beta_end 0.999.
 */
#define DIFFUSION_SCHEDULE_COSINE 0

/**
 * diffusion_config.beta_schedule: evenly spaced from beta_start to beta_end (DDPM, arXiv 2006.11239).
 */
#define DIFFUSION_SCHEDULE_LINEAR 1

/**
 * diffusion_config.beta_schedule: half a cosine wave from beta_start up to beta_end.
 */
#define DIFFUSION_SCHEDULE_COSINE_RAMP 2

/**
 * diffusion_config.beta_schedule: squares of an even spacing from sqrt(beta_start) to sqrt(beta_end).
 */
#define DIFFUSION_SCHEDULE_SCALED_LINEAR 3

/**
 * diffusion_config.beta_schedule: a logistic curve over [-6, 6] from beta_start to beta_end.
 */
#define DIFFUSION_SCHEDULE_SIGMOID 4

/**
 * diffusion_config.beta_schedule: a table of betas, given to diffusion_create_with_betas or read from a checkpoint.
 */
#define DIFFUSION_SCHEDULE_GIVEN 5

/**
 * diffusion_config.prediction_type: the network predicts the noise that was added.
 */
#define DIFFUSION_PREDICTION_EPSILON 0

/**
 * diffusion_config.prediction_type: the network predicts the clean image.
 */
#define DIFFUSION_PREDICTION_SAMPLE 1

/**
 * diffusion_config.prediction_type: the network predicts the velocity (arXiv 2202.00512).
 */
#define DIFFUSION_PREDICTION_VELOCITY 2

/**
 * diffusion_config.optimizer: Adam (arXiv 1412.6980); weight_decay is added to the gradient.
 */
#define DIFFUSION_OPTIMIZER_ADAM 0

/**
 * diffusion_config.optimizer: AdamW (arXiv 1711.05101); weight_decay shrinks the weights directly.
 */
#define DIFFUSION_OPTIMIZER_ADAMW 1

/**
 * diffusion_config.mixed_precision: train in 32-bit floating point. diffusion_config.inference_precision: sample so.
 */
#define DIFFUSION_PRECISION_F32 0

/**
 * diffusion_config.mixed_precision: autocast to f16 with a gradient scaler. CUDA only.
 * diffusion_config.inference_precision: CUDA only.
 */
#define DIFFUSION_PRECISION_F16 1

/**
 * diffusion_config.mixed_precision: autocast to bfloat16; needs no gradient scaler. CPU and CUDA.
 * diffusion_config.inference_precision: on the CPU the weights are held in bfloat16, which halves what is read of them
 * for each image, and computed with in f32.
 */
#define DIFFUSION_PRECISION_BF16 2

/**
 * diffusion_config.inference_precision: the fastest of the above that keeps to the bound told there. Not for
 * mixed_precision.
 */
#define DIFFUSION_PRECISION_AUTO 3

/**
 * diffusion_config.loss: the mean of squared differences (arXiv 2006.11239).
 */
#define DIFFUSION_LOSS_MSE 0

/**
 * diffusion_config.loss: Huber's: half the square of a difference up to huber_delta, linear beyond.
 */
#define DIFFUSION_LOSS_HUBER 1

/**
 * diffusion_config.num_class_embeds: labels are any whole numbers, embedded as timesteps are (diffusers'
 * class_embed_type "timestep").
 */
#define DIFFUSION_CLASSES_AS_TIMESTEPS -1

/**
 * diffusion_get_schedule: beta, the variance of the noise that step t adds.
 */
#define DIFFUSION_TABLE_BETA 0

/**
 * diffusion_get_schedule: alpha = 1 - beta.
 */
#define DIFFUSION_TABLE_ALPHA 1

/**
 * diffusion_get_schedule: the product of alpha up to and including t.
 */
#define DIFFUSION_TABLE_ALPHA_CUMPROD 2

/**
 * diffusion_get_schedule: the square root of alpha_cumprod: how much of the image is left at t.
 */
#define DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD 3

/**
 * diffusion_get_schedule: the square root of 1 - alpha_cumprod: how much noise there is at t.
 */
#define DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD 4

/**
 * diffusion_sample_params.method: DDPM ancestral sampling (arXiv 2006.11239).
 */
#define DIFFUSION_METHOD_DDPM 0

/**
 * diffusion_sample_params.method: DDIM (arXiv 2010.02502).
 */
#define DIFFUSION_METHOD_DDIM 1

/**
 * diffusion_sample_params.method: DPM-Solver++ 2M (arXiv 2211.01095), deterministic.
 */
#define DIFFUSION_METHOD_DPM_SOLVER_PP_2M 2

/**
 * diffusion_sample_params.method: the SDE form of DPM-Solver++ 2M.
 */
#define DIFFUSION_METHOD_DPM_SOLVER_PP_2M_SDE 3

/**
 * diffusion_sample_params.method: UniPC (arXiv 2302.04867).
 */
#define DIFFUSION_METHOD_UNIPC 4

/**
 * diffusion_sample_params.method: Euler's method on the probability-flow ODE (arXiv 2206.00364).
 */
#define DIFFUSION_METHOD_EULER 5

/**
 * diffusion_sample_params.method: Heun's second-order method on the same ODE; two network calls a step.
 */
#define DIFFUSION_METHOD_HEUN 6

/**
 * diffusion_sample_params.spacing, variance and clip_sample: what the process's checkpoint says; for a process that
 * was made by diffusion_create trailing, fixed_small, clip.
 */
#define DIFFUSION_DEFAULT -1

/**
 * diffusion_sample_params.spacing: multiples of floor(noise_steps / steps), counted from 0. Starts well below the
 * last timestep where steps are few or do not divide noise_steps; here for diffusers' checkpoints.
 */
#define DIFFUSION_SPACING_LEADING 0

/**
 * diffusion_sample_params.spacing: multiples of noise_steps / steps, counted down from noise_steps - 1; right for
 * any number of steps (arXiv 2305.08891).
 */
#define DIFFUSION_SPACING_TRAILING 1

/**
 * diffusion_sample_params.spacing: evenly from 0 to noise_steps - 1, both included.
 */
#define DIFFUSION_SPACING_LINSPACE 2

/**
 * diffusion_sample_params.spacing: noise levels spaced after Karras et al. (arXiv 2206.00364, rho 7).
 */
#define DIFFUSION_SPACING_KARRAS 3

/**
 * diffusion_sample_params.variance: DDPM's posterior variance.
 */
#define DIFFUSION_VARIANCE_FIXED_SMALL 0

/**
 * diffusion_sample_params.variance: beta itself.
 */
#define DIFFUSION_VARIANCE_FIXED_LARGE 1

/**
 * diffusion_sample_params.format: float [num_samples, channels, image_size, image_size], values in [-1, 1].
 */
#define DIFFUSION_FORMAT_F32 0

/**
 * diffusion_sample_params.format: IEEE half precision (2 bytes), otherwise as DIFFUSION_FORMAT_F32.
 */
#define DIFFUSION_FORMAT_F16 1

/**
 * diffusion_sample_params.format: bytes [num_samples, image_size, image_size, 3], 0..255, rows from the top.
 * For 1, 3 or 4 channels: gray is repeated, alpha is dropped.
 */
#define DIFFUSION_FORMAT_RGB8 2

/**
 * diffusion_sample_params.format: bytes [num_samples, image_size, image_size, 4], as DIFFUSION_FORMAT_RGB8 with
 * alpha last; 255 where the model has none.
 */
#define DIFFUSION_FORMAT_RGBA8 3

/**
 * diffusion_job_poll: the job waits for its first denoising step.
 */
#define DIFFUSION_JOB_QUEUED 0

/**
 * diffusion_job_poll: the job is being computed.
 */
#define DIFFUSION_JOB_RUNNING 1

/**
 * diffusion_job_poll: the images are ready for diffusion_job_fetch.
 */
#define DIFFUSION_JOB_DONE 2

/**
 * diffusion_job_poll: the job ended without a result; diffusion_job_wait returns why.
 */
#define DIFFUSION_JOB_FAILED 3

/**
 * diffusion_job_poll: the job was cancelled, ran out of its time, or its process was destroyed.
 */
#define DIFFUSION_JOB_CANCELLED 4

/**
 * diffusion_parameter_read and _write: the weights that the optimizer trains.
 */
#define DIFFUSION_WEIGHTS_TRAINED 0

/**
 * diffusion_parameter_read and _write: their exponential moving average, which sampling uses; the trained
 * weights themselves where ema_decay is 0.
 */
#define DIFFUSION_WEIGHTS_EMA 1

/**
 * diffusion_log_fn: something is likely to give poor results.
 */
#define DIFFUSION_LOG_WARNING 1

/**
 * diffusion_log_fn: something worth knowing happened.
 */
#define DIFFUSION_LOG_INFO 2

/**
 * The call did what was asked.
 */
#define DIFFUSION_OK 0

/**
 * An argument's value is not allowed; the message names it, its value and what it may be.
 */
#define DIFFUSION_ERROR_INVALID_ARGUMENT 1

/**
 * A pointer that must not be NULL is.
 */
#define DIFFUSION_ERROR_NULL_POINTER 2

/**
 * A handle is NULL, ended, of another type, or from before a fork().
 */
#define DIFFUSION_ERROR_INVALID_HANDLE 3

/**
 * A buffer has not exactly the length that the call needs; the message says which length that is.
 */
#define DIFFUSION_ERROR_BUFFER_SIZE 4

/**
 * Not enough memory on the host or the device. The process works on.
 */
#define DIFFUSION_ERROR_OUT_OF_MEMORY 5

/**
 * The device is not there, or this libtorch cannot use it.
 */
#define DIFFUSION_ERROR_DEVICE_UNAVAILABLE 6

/**
 * The operating system refused to read or write a file.
 */
#define DIFFUSION_ERROR_IO 7

/**
 * A file is damaged, or uses something that this library does not support.
 */
#define DIFFUSION_ERROR_FORMAT 8

/**
 * The call or job was cancelled, or its process destroyed.
 */
#define DIFFUSION_ERROR_CANCELLED 9

/**
 * The given time ran out.
 */
#define DIFFUSION_ERROR_TIMEOUT 10

/**
 * NaN or infinity in an input, in the training loss or in the images that came out.
 */
#define DIFFUSION_ERROR_NON_FINITE 11

/**
 * libtorch reported an error that none of the others describes.
 */
#define DIFFUSION_ERROR_TORCH 12

/**
 * A bug in this library; the message says where.
 */
#define DIFFUSION_ERROR_INTERNAL 13

/**
 * A sampling job that runs while its caller does something else.
 *
 * Made by diffusion_sample_submit; ended by diffusion_job_destroy, which must be called also after the job's
 * process was destroyed. A key like diffusion_process, usable from any thread.
 */
typedef struct diffusion_job diffusion_job;

/**
 * A diffusion model with its noise schedule, weights, optimizer and the thread that computes.
 *
 * Made by diffusion_create, diffusion_create_with_betas or diffusion_load; ended by diffusion_destroy. The value
 * is a key, not an address: using it after its end, or passing any other value, is an
 * DIFFUSION_ERROR_INVALID_HANDLE and never undefined behaviour. Any thread may use it at any time; calls on one
 * process take their turn, sampling calls are computed together. It does not survive fork(): every call in the
 * child is an error.
 */
typedef struct diffusion_process diffusion_process;

/**
 * What a process is to be. Fill it with diffusion_config_init, then change what you need.
 *
 * Holds no pointers; copy it freely. See the DIFFUSION_* constants for the fields that are enumerations.
 */
typedef struct diffusion_config {
    /**
     * The size of this struct in bytes as the caller knows it; set by diffusion_config_init.
     */
    uint32_t struct_size;
    /**
     * Height and width of the images in pixels, 1..=4096; a multiple of 2^(hidden_dims_len - 1). Default 32.
     */
    int32_t image_size;
    /**
     * Channels of an image: 1 gray, 3 RGB, 4 RGBA, or any count in 1..=64. Default 3.
     */
    int32_t channels;
    /**
     * How many entries of hidden_dims are used, 1..=8: the number of U-Net levels. Default 3.
     */
    int32_t hidden_dims_len;
    /**
     * Channels of each U-Net level, from full resolution down (diffusers' block_out_channels); each a multiple of 8
     * and of norm_num_groups, at most 8192. Default 64, 128, 256.
     */
    int32_t hidden_dims[DIFFUSION_MAX_LEVELS];
    /**
     * The smallest beta (noise variance of a step), in (0, beta_end). Default 0.0001.
     */
    double beta_start;
    /**
     * The largest beta, in (beta_start, 1). Default 0.999, the cosine schedule's; 0.02 is usual for linear.
     */
    double beta_end;
    /**
     * Timesteps of the noising process, 1..=100000. Default 1000.
     */
    int32_t noise_steps;
    /**
     * One of DIFFUSION_SCHEDULE_*. Default COSINE.
     */
    int32_t beta_schedule;
    /**
     * One of DIFFUSION_PREDICTION_*. Default EPSILON.
     */
    int32_t prediction_type;
    /**
     * 1: rescale the schedule so that the last timestep is pure noise (arXiv 2305.08891); needs a prediction_type
     * other than EPSILON. Default 0.
     */
    int32_t rescale_betas_zero_snr;
    /**
     * One of DIFFUSION_DEVICE_*. Default AUTO.
     */
    int32_t device;
    /**
     * Which CUDA device, in 0..=1023. Default 0.
     */
    int32_t device_index;
    /**
     * Threads that a CPU process computes with, 1..=1024, or 0: as many as libtorch chooses, one a core. Where other
     * programs keep the cores busy, fewer threads or OMP_WAIT_POLICY=passive in the environment are faster. Default 0.
     */
    int32_t num_threads;
    /**
     * The most images in one evaluation of the network when sampling, 1..=65536, or 0: 64 on the CPU, 256 on CUDA.
     * Default 0.
     */
    int32_t max_batch;
    /**
     * Determines the initial weights and all randomness of training. Default 0.
     */
    uint64_t seed;
    /**
     * Residual blocks of each level, 1..=8. Default 2.
     */
    int32_t layers_per_block;
    /**
     * Bit i set: self-attention at level i (0 is full resolution), below 2^hidden_dims_len; or -1: at the first level
     * of at most 16x16 pixels, as in DDPM. The middle of the U-Net has it where at most 32x32 pixels are left.
     * Default -1.
     */
    int32_t attention_levels;
    /**
     * Channels of an attention head, a divisor of the channels of each level that has attention, the middle's
     * included; 0: one head. Default 0.
     */
    int32_t attention_head_dim;
    /**
     * Groups of each group normalisation, a divisor of every hidden_dims entry; 0: the most up to 32 that leave at
     * least 4 channels a group. Default 0.
     */
    int32_t norm_num_groups;
    /**
     * Probability that a feature is dropped in training, [0, 1). Default 0.
     */
    double dropout;
    /**
     * One of DIFFUSION_OPTIMIZER_*. Default ADAM.
     */
    int32_t optimizer;
    /**
     * F32, F16 or BF16 of DIFFUSION_PRECISION_*: the arithmetic of training. Default F32.
     */
    int32_t mixed_precision;
    /**
     * Step size of the optimizer, > 0, before warmup_steps and decay_steps. Default 0.0001.
     */
    double learning_rate;
    /**
     * Decay of the optimizer's average of gradients, [0, 1). Default 0.9.
     */
    double adam_beta1;
    /**
     * Decay of the optimizer's average of squared gradients, [0, 1). Default 0.999.
     */
    double adam_beta2;
    /**
     * Added to the optimizer's denominator, > 0. Default 1e-8.
     */
    double adam_epsilon;
    /**
     * Weight decay, >= 0. Default 0.
     */
    double weight_decay;
    /**
     * The gradient's norm is clipped to this, > 0; 0: no clipping. Default 0.
     */
    double gradient_clip;
    /**
     * Decay of the moving average of the weights, with which sampling is done, [0, 1); 0: none. Default 0.
     */
    double ema_decay;
    /**
     * One of DIFFUSION_LOSS_*. Default MSE.
     */
    int32_t loss;
    /**
     * The classes of a class-conditional network, 1..=1000000, or DIFFUSION_CLASSES_AS_TIMESTEPS; 0: it has no
     * classes. With classes, training and sampling need the class of each image. Default 0.
     */
    int32_t num_class_embeds;
    /**
     * The difference at which the Huber loss becomes linear, > 0. Default 1.
     */
    double huber_delta;
    /**
     * Min-SNR weighting (arXiv 2303.09556): each image's loss is weighed by its timestep's signal-to-noise ratio, cut
     * off here, for the prediction_type; 5 is the paper's choice; 0: off. >= 0. Default 0.
     */
    double min_snr_gamma;
    /**
     * Optimizer steps over which the learning rate rises linearly from 0, >= 0. Default 0.
     */
    int64_t warmup_steps;
    /**
     * The optimizer step, counted from the first of all, at which the learning rate has come down to 0 along half a
     * cosine (arXiv 1608.03983); more than warmup_steps, or 0: it stays as it is. Default 0.
     */
    int64_t decay_steps;
    /**
     * Calls of diffusion_train_step that make one optimizer step, with the mean of their gradients, >= 1. Default 1.
     */
    int64_t accumulation_steps;
    /**
     * One of DIFFUSION_PRECISION_*: what sampling and diffusion_predict_noise compute in. With BF16 and AUTO a
     * prediction differs from F32's by at most 0.05 of its largest value, in practice by 0.01 to 0.02. Networks for
     * which the CPU has no inference plan (class labels, other activations than SiLU) are computed in F32 there.
     * Default F32.
     */
    int32_t inference_precision;
    /**
     * 1: on CUDA too an image is the same bit for bit whatever batch it was computed in, at the price of evaluating
     * full batches of max_batch images always; 0: it is the same within 1e-4 there. On the CPU it is the same bit for
     * bit either way. Default 0.
     */
    int32_t deterministic;
} diffusion_config;

/**
 * Receives a process's log: level is one of DIFFUSION_LOG_*, message is UTF-8 and valid during the call only.
 *
 * Warnings come of a schedule that leaves some of the image at its last timestep, and of sampling that starts so far
 * before the last timestep that some of the image should be left: each is said once.
 *
 * Called on the process's own thread, or on the thread that sets it for what was logged before, one call at a
 * time. It must be quick and must not call any function of this library but diffusion_version,
 * diffusion_abi_version and diffusion_status_string: others return DIFFUSION_ERROR_INVALID_ARGUMENT from there.
 * A C++ exception that leaves it is lost; a longjmp or the thread's end must not leave it.
 */
typedef void (*diffusion_log_fn)(int32_t level, const char *message, void *user_data);

/**
 * Called during a blocking call or diffusion_job_wait, on the thread that made that call, about once for each
 * denoising step, with no lock held: it may use the library, the same process and job included.
 *
 * done and total count denoising steps of images: total is num_samples times the network evaluations of each.
 * Return 0 to go on; any other value cancels the job, if it has not just ended, and the call returns
 * DIFFUSION_ERROR_CANCELLED. A C++ exception that leaves it cancels too, and the message has its text; a longjmp
 * or the thread's end (pthread_exit, pthread_cancel) must not leave it: that is undefined behaviour.
 */
typedef int32_t (*diffusion_progress_fn)(uint64_t done, uint64_t total, void *user_data);

/**
 * What and how to sample. Fill it with diffusion_sample_params_init, then change what you need.
 *
 * The pointers are read during the call that takes the struct and not kept, except progress and its user_data of a
 * submitted job, which are used by diffusion_job_wait.
 */
typedef struct diffusion_sample_params {
    /**
     * The size of this struct in bytes as the caller knows it; set by diffusion_sample_params_init.
     */
    uint32_t struct_size;
    /**
     * One of DIFFUSION_METHOD_*. Default DDIM.
     */
    int32_t method;
    /**
     * Images to make, 1..=1048576. Default 1.
     */
    size_t num_samples;
    /**
     * Image i is determined by (seed, i). Default 0.
     */
    uint64_t seed;
    /**
     * NULL, or num_samples seeds: image i is then what seed seeds[i] gives as its image 0. Default NULL.
     */
    const uint64_t *seeds;
    /**
     * The number of entries in seeds: num_samples, or 0 where seeds is NULL.
     */
    size_t seeds_len;
    /**
     * NULL, or the noise to start from, float [num_samples, channels, image_size, image_size], in place of the
     * seeds'. Default NULL.
     */
    const float *initial_noise;
    /**
     * The number of floats in initial_noise: all of them, or 0 where initial_noise is NULL.
     */
    size_t initial_noise_len;
    /**
     * Denoising steps, 1..=noise_steps; 0: 50 (or noise_steps, if that is less), and for DDPM noise_steps. Default 0.
     */
    int32_t steps;
    /**
     * One of DIFFUSION_SPACING_*, or DIFFUSION_DEFAULT. Default DIFFUSION_DEFAULT.
     */
    int32_t spacing;
    /**
     * In [0, 1], DDIM's and Euler's randomness: with 0 they are deterministic, with 1 DDIM is as random as DDPM and Euler
     * is its ancestral form. Without effect on other methods. Default 0.
     */
    double eta;
    /**
     * DDPM's variance: one of DIFFUSION_VARIANCE_*, or DIFFUSION_DEFAULT. Default DIFFUSION_DEFAULT.
     */
    int32_t variance;
    /**
     * 1: clamp the estimate of the clean image to [-1, 1] at each step; 0: do not; or DIFFUSION_DEFAULT. The final
     * images are always clamped. Default DIFFUSION_DEFAULT.
     */
    int32_t clip_sample;
    /**
     * DDIM: 1: recompute the noise from the clipped estimate. Default 0.
     */
    int32_t use_clipped_model_output;
    /**
     * One of DIFFUSION_FORMAT_*: what is written into the caller's buffer. Default F32.
     */
    int32_t format;
    /**
     * Dynamic thresholding (arXiv 2205.11487): the percentile in (0, 1) of each image's magnitudes to clamp to, in
     * place of clip_sample; 0: off. Default 0.
     */
    double dynamic_thresholding;
    /**
     * Milliseconds after which the job ends with DIFFUSION_ERROR_TIMEOUT, > 0; 0: never. Default 0.
     */
    int64_t timeout_ms;
    /**
     * NULL, or called as the job proceeds. Default NULL.
     */
    diffusion_progress_fn progress;
    /**
     * Passed to progress.
     */
    void *user_data;
    /**
     * The class of each image, num_samples of them, for a network with classes; NULL for one without. Default NULL.
     */
    const int64_t *class_labels;
    /**
     * The number of entries in class_labels: num_samples, or 0 where class_labels is NULL.
     */
    size_t class_labels_len;
} diffusion_sample_params;

/**
 * What one tensor of the U-Net's parameters is called and how large it is.
 */
typedef struct diffusion_parameter {
    /**
     * The size of this struct in bytes as the caller knows it; set it to sizeof(diffusion_parameter).
     */
    uint32_t struct_size;
    /**
     * The number of dimensions, 1..=4.
     */
    int32_t rank;
    /**
     * The dimensions; entries from rank on are 1.
     */
    int64_t shape[4];
    /**
     * The number of floats: the product of shape.
     */
    size_t len;
    /**
     * diffusers' name of it, e.g. "down_blocks.0.resnets.0.conv1.weight", NUL-terminated.
     */
    char name[128];
} diffusion_parameter;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * A short lower-case English name of a status, e.g. "invalid handle"; "unknown status" for any other number. Never
 * NULL, never freed, valid for ever.
 */
const char *diffusion_status_string(int32_t status);

/**
 * The interface version of the loaded library, to be compared with DIFFUSION_ABI_VERSION of the header.
 */
uint32_t diffusion_abi_version(void);

/**
 * The versions of the library, libtorch and CUDA (or "no CUDA"), for logs: "libdiffusion 0.1.0, libtorch 2.11.0,
 * CUDA 13.0". Never NULL, never freed, valid for ever.
 */
const char *diffusion_version(void);

/**
 * Why the last function that returned an error on this thread did: one line of UTF-8 that names the argument, its
 * value and what it may be. "" if none did. Never NULL; valid until the next call of this library that fails on this
 * thread, or the thread's end.
 */
const char *diffusion_last_error_message(void);

/**
 * Writes how many devices of a kind can be used: for DIFFUSION_DEVICE_CPU 1; for DIFFUSION_DEVICE_CUDA the number
 * of CUDA devices, 0 where there are none or libtorch's CUDA libraries are missing.
 *
 * Errors: INVALID_ARGUMENT (device), NULL_POINTER.
 *
 * Pointers: `count` is NULL or valid for a write.
 */
int32_t diffusion_device_count(int32_t device, int32_t *count);

/**
 * Fills a config with the defaults that the fields' comments name.
 *
 * Writes sizeof(diffusion_config) bytes as this header has it; later versions of the library write no more.
 * Errors: NULL_POINTER.
 *
 * Pointers: `config` is NULL or valid for a write.
 */
int32_t diffusion_config_init(struct diffusion_config *config);

/**
 * Fills a config with DDPM's CIFAR-10 set-up: 32x32 RGB, hidden_dims 128, 256, 256, 256 with attention at 16x16
 * (the 35.7 million parameters of google/ddpm-cifar10-32), linear schedule 0.0001..0.02, AdamW at 0.0002 with weight
 * decay 0.00001, gradient_clip 1, ema_decay 0.999, dropout 0.1.
 *
 * Errors: NULL_POINTER.
 *
 * Pointers: `config` is NULL or valid for a write.
 */
int32_t diffusion_config_init_cifar10(struct diffusion_config *config);

/**
 * Makes a process with fresh weights, determined by config->seed.
 *
 * On success *process is a handle that must be given to diffusion_destroy. On failure it is not written.
 * Errors: INVALID_ARGUMENT (any field), NULL_POINTER, DEVICE_UNAVAILABLE, OUT_OF_MEMORY, TORCH.
 *
 * Pointers: `config` is NULL or points to config->struct_size readable bytes; `process` is NULL or valid for a write.
 */
int32_t diffusion_create(const struct diffusion_config *config, struct diffusion_process **process);

/**
 * As diffusion_create, with a table of betas in place of a formula: betas[t] in (0, 1] is the variance of the noise
 * that step t adds. config->noise_steps must be betas_len; beta_start, beta_end and beta_schedule are ignored.
 *
 * Errors: as diffusion_create, and BUFFER_SIZE (betas_len is not noise_steps).
 *
 * Pointers: As diffusion_create; `betas` is NULL or points to betas_len readable doubles.
 */
int32_t diffusion_create_with_betas(const struct diffusion_config *config,
                                    const double *betas,
                                    size_t betas_len,
                                    struct diffusion_process **process);

/**
 * Makes a process from a checkpoint folder: one that diffusion_save wrote, or a diffusers folder with a UNet2DModel
 * (a DDPMPipeline's or DDIMPipeline's, or the model's own).
 *
 * overrides may be NULL. Otherwise each field of it that differs from what diffusion_config_init gives replaces the
 * checkpoint's value (device, max_batch, learning_rate, ...), and every other field keeps the checkpoint's. What
 * makes up the network and the noise schedule cannot be replaced: such a field that contradicts the checkpoint is
 * an INVALID_ARGUMENT. A checkpoint without training state starts training afresh, at step 0.
 * Nothing in a checkpoint is ever executed.
 *
 * Errors: INVALID_ARGUMENT, NULL_POINTER, IO (unreadable), FORMAT (damaged, or uses a feature that is not
 * supported; the message names the file and what in it), DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
 *
 * Pointers: `path` is NULL or a NUL-terminated UTF-8 string; `overrides` is NULL or points to overrides->struct_size readable
 * bytes; `process` is NULL or valid for a write.
 */
int32_t diffusion_load(const char *path,
                       const struct diffusion_config *overrides,
                       struct diffusion_process **process);

/**
 * Writes a checkpoint folder: diffusers' layout, which DDPMPipeline.from_pretrained and DDIMPipeline.from_pretrained
 * open (with the moving average as its weights, where there is one), and beside it the training state, from which
 * training goes on exactly where it was.
 *
 * A crash at any moment leaves the old checkpoint or the new one, whole. An existing folder is replaced if it is
 * empty or holds a checkpoint, whose other files stay; any other is refused. Waits for training calls made before;
 * runs between the denoising steps of sampling jobs.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (path is a folder with something else in it), IO,
 * CANCELLED.
 *
 * Pointers: `path` is NULL or a NUL-terminated UTF-8 string.
 */
int32_t diffusion_save(struct diffusion_process *process,
                       const char *path);

/**
 * Writes the model alone, to be shipped: the folder of diffusion_save with the weights that sampling uses in a
 * smaller format and without training state.
 *
 * precision is one of DIFFUSION_PRECISION_*: F16 and BF16 halve the file; computing is done in 32 bits all the same.
 * Errors: as diffusion_save, and INVALID_ARGUMENT (precision), NON_FINITE (a weight is beyond what f16 can hold).
 *
 * Pointers: `path` is NULL or a NUL-terminated UTF-8 string.
 */
int32_t diffusion_export(struct diffusion_process *process,
                         const char *path,
                         int32_t precision);

/**
 * Ends a process. Calls that are under way in other threads, and its jobs, end with DIFFUSION_ERROR_CANCELLED;
 * this call waits until its thread is gone and its memory is free, which can take as long as one step of denoising
 * or training. Job handles stay valid until diffusion_job_destroy.
 *
 * Errors: INVALID_HANDLE (also for NULL and for a second call).
 */
int32_t diffusion_destroy(struct diffusion_process *process);

/**
 * Ends every call and job of the process that is waiting or under way with DIFFUSION_ERROR_CANCELLED and returns at
 * once. A training step that is under way ends as cancelled if it has not yet changed the weights, else it succeeds.
 * The process works on.
 *
 * Errors: INVALID_HANDLE.
 */
int32_t diffusion_cancel(struct diffusion_process *process);

/**
 * Writes what the process is: every field resolved, nothing left at AUTO or 0-for-default. Set config->struct_size
 * first (diffusion_config_init does); no more than that is written.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (struct_size).
 *
 * Pointers: `config` is NULL or points to config->struct_size writable bytes.
 */
int32_t diffusion_get_config(struct diffusion_process *process, struct diffusion_config *config);

/**
 * Writes one of the schedule's tables, float [noise_steps]; out_len must be noise_steps. Never waits.
 *
 * which_table is one of DIFFUSION_TABLE_*. Computed in double precision, stored as float.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (which_table), NULL_POINTER, BUFFER_SIZE.
 *
 * Pointers: `out` is NULL or points to out_len writable floats.
 */
int32_t diffusion_get_schedule(struct diffusion_process *process, int32_t which_table, float *out, size_t out_len);

/**
 * Sets who receives the process's log, in place of nobody or of an earlier callback; NULL ends it. What was logged
 * since the process was made and not delivered yet is delivered first, on this thread. When the function returns,
 * the earlier callback is not running and will not be called again.
 *
 * Errors: INVALID_HANDLE.
 *
 * Pointers: `callback` is NULL or callable, with `user_data`, from any thread until it is replaced or the process destroyed.
 */
int32_t diffusion_set_log_callback(struct diffusion_process *process, diffusion_log_fn callback, void *user_data);

/**
 * Fills sampling parameters with the defaults that the fields' comments name.
 *
 * Writes sizeof(diffusion_sample_params) bytes as this header has it; later versions of the library write no more.
 * Errors: NULL_POINTER.
 *
 * Pointers: `params` is NULL or valid for a write.
 */
int32_t diffusion_sample_params_init(struct diffusion_sample_params *params);

/**
 * Noises images to given timesteps: noisy = sqrt_alpha_cumprod[t] * image + sqrt_one_minus_alpha_cumprod[t] * noise,
 * with noise from N(0, 1) that is determined for image i by (seed, i).
 *
 * images, noisy and noise: float [batch, channels, image_size, image_size]; all lengths must be exactly that.
 * timesteps: [batch], each in 0..noise_steps. noisy may be images itself; noise must not overlap either.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (batch is 0, a timestep), NULL_POINTER, BUFFER_SIZE, NON_FINITE,
 * CANCELLED, OUT_OF_MEMORY.
 *
 * Pointers: Each pointer is NULL or points to as many values as its length says (timesteps: batch), readable or, for noisy
 * and noise, writable.
 */
int32_t diffusion_add_noise(struct diffusion_process *process,
                            const float *images,
                            size_t images_len,
                            const int64_t *timesteps,
                            size_t batch,
                            uint64_t seed,
                            float *noisy,
                            size_t noisy_len,
                            float *noise,
                            size_t noise_len);

/**
 * Evaluates the U-Net: what it predicts (by prediction_type: the noise, the clean image or the velocity) for noisy
 * images at given timesteps. With the moving average's weights where ema_decay is not 0.
 *
 * images and out: float [batch, channels, image_size, image_size]; both lengths must be exactly that.
 * timesteps: [batch], each in 0..noise_steps. Waits for training calls made before; runs between the denoising steps
 * of sampling jobs.
 * Errors: as diffusion_add_noise.
 *
 * Pointers: Each pointer is NULL or points to as many values as its length says (timesteps: batch), readable or, for out,
 * writable.
 */
int32_t diffusion_predict_noise(struct diffusion_process *process,
                                const float *images,
                                size_t len,
                                const int64_t *timesteps,
                                size_t batch,
                                float *out,
                                size_t out_len);

/**
 * As diffusion_predict_noise, for a network with classes: class_labels [batch] has the class of each image, in
 * 0..num_class_embeds (any whole number up to 2^24 with DIFFUSION_CLASSES_AS_TIMESTEPS).
 *
 * Errors: as diffusion_predict_noise, and INVALID_ARGUMENT (a label that does not exist, or the network has no
 * classes).
 *
 * Pointers: As diffusion_predict_noise; `class_labels` is NULL or points to `batch` readable numbers.
 */
int32_t diffusion_predict_noise_with_classes(struct diffusion_process *process,
                                             const float *images,
                                             size_t len,
                                             const int64_t *timesteps,
                                             const int64_t *class_labels,
                                             size_t batch,
                                             float *out,
                                             size_t out_len);

/**
 * Samples images by DDPM ancestral sampling over all noise_steps.
 *
 * out: float [num_samples, channels, image_size, image_size] in [-1, 1]; out_len must be exactly that. Image i is
 * determined by (seed, i), whatever it is computed together with.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (num_samples), NULL_POINTER, BUFFER_SIZE, CANCELLED, OUT_OF_MEMORY,
 * NON_FINITE (the network's answer was NaN or infinite: its weights are broken).
 *
 * Pointers: `out` is NULL or points to out_len writable floats.
 */
int32_t diffusion_sample(struct diffusion_process *process,
                         size_t num_samples,
                         uint64_t seed,
                         float *out,
                         size_t out_len);

/**
 * Samples images by DDIM (arXiv 2010.02502) over ddim_steps of the noise_steps.
 *
 * ddim_steps in 1..=noise_steps; eta in [0, 1]: 0 is deterministic from the starting noise, 1 is as random as DDPM.
 * Otherwise as diffusion_sample.
 *
 * Pointers: `out` is NULL or points to out_len writable floats.
 */
int32_t diffusion_sample_ddim(struct diffusion_process *process,
                              size_t num_samples,
                              int32_t ddim_steps,
                              float eta,
                              uint64_t seed,
                              float *out,
                              size_t out_len);

/**
 * Samples images with every choice there is, and waits for them; see diffusion_sample_params.
 *
 * out has the format of params->format; out_bytes must be exactly what diffusion_sample_size says. If
 * params->progress is set it is called from this thread. Any number of threads may sample from one process at a
 * time: their images are computed together.
 * Errors: as diffusion_sample, any field of params, and TIMEOUT.
 *
 * Pointers: `params` is NULL or points to params->struct_size readable bytes, its pointers being as its fields say; `out` is
 * NULL or points to out_bytes writable bytes.
 */
int32_t diffusion_sample_with(struct diffusion_process *process,
                              const struct diffusion_sample_params *params,
                              void *out,
                              size_t out_bytes);

/**
 * Writes how many bytes diffusion_sample_with and diffusion_job_fetch write for these parameters. Never waits.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER, INVALID_ARGUMENT (num_samples, or a format that does not fit the channels).
 *
 * Pointers: `params` is NULL or points to params->struct_size readable bytes; `bytes` is NULL or valid for a write.
 */
int32_t diffusion_sample_size(struct diffusion_process *process,
                              const struct diffusion_sample_params *params,
                              size_t *bytes);

/**
 * Starts sampling and returns at once. Jobs of one process are computed together: each denoising step takes in
 * whatever has arrived meanwhile.
 *
 * On success *job is a handle that must be given to diffusion_job_destroy. If params->progress is set it is called
 * by diffusion_job_wait, in its thread.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (any field), NULL_POINTER, BUFFER_SIZE, NON_FINITE (initial_noise).
 *
 * Pointers: `params` is NULL or points to params->struct_size readable bytes, its pointers being as its fields say; `job` is
 * NULL or valid for a write.
 */
int32_t diffusion_sample_submit(struct diffusion_process *process,
                                const struct diffusion_sample_params *params,
                                struct diffusion_job **job);

/**
 * Writes the job's state, one of DIFFUSION_JOB_*, and never waits.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER.
 *
 * Pointers: `state` is NULL or valid for a write.
 */
int32_t diffusion_job_poll(struct diffusion_job *job, int32_t *state);

/**
 * Waits until the job has ended, at most timeout_ms milliseconds (0: only looks; negative: without limit), and
 * returns how it ended: DIFFUSION_OK if the images are ready, else the job's error.
 *
 * DIFFUSION_ERROR_TIMEOUT with the job still in state QUEUED or RUNNING means that the wait is over, not the job.
 * Calls the job's progress callback from this thread; if several threads wait, one of them.
 * Errors: INVALID_HANDLE, TIMEOUT, CANCELLED, and whatever diffusion_sample_with returns.
 */
int32_t diffusion_job_wait(struct diffusion_job *job, int64_t timeout_ms);

/**
 * Writes how far the job is, in denoising steps of images, and never waits. Either pointer may be NULL.
 *
 * Errors: INVALID_HANDLE.
 *
 * Pointers: `done` and `total` are each NULL or valid for a write.
 */
int32_t diffusion_job_progress(struct diffusion_job *job, uint64_t *done, uint64_t *total);

/**
 * Ends the job, if it has not ended already, with DIFFUSION_ERROR_CANCELLED, and returns at once. Whoever waits for
 * it wakes; the other jobs of its process go on.
 *
 * Errors: INVALID_HANDLE.
 */
int32_t diffusion_job_cancel(struct diffusion_job *job);

/**
 * Copies the images of a finished job out, in the format that its parameters named. May be called again.
 *
 * bytes must be exactly what diffusion_sample_size says for its parameters. Never waits.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (the job has not ended), NULL_POINTER, BUFFER_SIZE, or the error that the
 * job ended with.
 *
 * Pointers: `out` is NULL or points to `bytes` writable bytes.
 */
int32_t diffusion_job_fetch(struct diffusion_job *job,
                            void *out,
                            size_t bytes);

/**
 * Writes the images of a job as they are now estimated to become (each sampler's x0), in the job's own format, and in
 * *done how many denoising steps of the job the estimate stems from, counted as in diffusion_job_progress.
 *
 * May be called at any time and never waits. Estimates are kept from the first call on, so that jobs that nobody looks
 * at pay nothing: that call, and any before the next denoising step, get mid-gray images and a *done of 0; an image
 * of the job that has not begun is mid-gray too. Of a finished job it gives what diffusion_job_fetch gives.
 * bytes must be exactly what diffusion_sample_size says for the job's parameters; done may be NULL.
 * Errors: INVALID_HANDLE, NULL_POINTER, BUFFER_SIZE, OUT_OF_MEMORY, or the error that the job ended with.
 *
 * Pointers: `out` is NULL or points to `bytes` writable bytes; `done` is NULL or valid for a write.
 */
int32_t diffusion_job_preview(struct diffusion_job *job,
                              void *out,
                              size_t bytes,
                              uint64_t *done);

/**
 * Ends the handle, and with it the job if it is still under way. The images of a finished job are freed.
 *
 * Threads that wait for the job return DIFFUSION_ERROR_CANCELLED. Errors: INVALID_HANDLE (also for NULL and for a
 * second call).
 */
int32_t diffusion_job_destroy(struct diffusion_job *job);

/**
 * One optimizer step on a batch of images: a random timestep for each, add_noise, the U-Net's prediction, the loss,
 * backpropagation, clipping, optimizer, moving average. With config.accumulation_steps above 1 so many calls make
 * one step: the earlier ones only add to its gradient.
 *
 * images: float [batch, channels, image_size, image_size], meant to be in [-1, 1]; images_len must be exactly that.
 * loss, that of these images, may be NULL: on CUDA the call then need not wait for the device. Timesteps and noise are
 * determined by config.seed and the number of calls so far. Waits for the sampling jobs submitted before; those submitted later see the new
 * weights.
 *
 * With f16, a step whose gradients overflow changes no weight, lowers the gradient scale and succeeds.
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (batch is 0), NULL_POINTER (also where the network has classes, which
 * diffusion_train_step_with_classes takes), BUFFER_SIZE, NON_FINITE (images, or with f32 and bf16 the loss: nothing has
 * changed), CANCELLED (nothing has changed), OUT_OF_MEMORY.
 *
 * Pointers: `images` is NULL or points to images_len readable floats; `loss` is NULL or valid for a write.
 */
int32_t diffusion_train_step(struct diffusion_process *process,
                             const float *images,
                             size_t images_len,
                             size_t batch,
                             float *loss);

/**
 * As diffusion_train_step, for a network with classes: class_labels [batch] has the class of each image, in
 * 0..num_class_embeds (any whole number up to 2^24 with DIFFUSION_CLASSES_AS_TIMESTEPS).
 *
 * Errors: as diffusion_train_step, and INVALID_ARGUMENT (a label that does not exist, or the network has no classes).
 *
 * Pointers: As diffusion_train_step; `class_labels` is NULL or points to `batch` readable numbers.
 */
int32_t diffusion_train_step_with_classes(struct diffusion_process *process,
                                          const float *images,
                                          size_t images_len,
                                          const int64_t *class_labels,
                                          size_t batch,
                                          float *loss);

/**
 * Writes how many optimizer steps have been taken since the weights were made, those before the last save included.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER.
 *
 * Pointers: `steps` is NULL or valid for a write.
 */
int32_t diffusion_get_step_count(struct diffusion_process *process, uint64_t *steps);

/**
 * Writes the optimizer's learning rate, before warmup_steps and decay_steps.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER.
 *
 * Pointers: `learning_rate` is NULL or valid for a write.
 */
int32_t diffusion_get_learning_rate(struct diffusion_process *process, double *learning_rate);

/**
 * Sets the optimizer's learning rate, > 0, before warmup_steps and decay_steps, from the next training step on.
 *
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (learning_rate).
 */
int32_t diffusion_set_learning_rate(struct diffusion_process *process, double learning_rate);

/**
 * Writes the factor by which the loss is scaled so that f16 gradients do not vanish; 1 unless mixed_precision is
 * F16.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER.
 *
 * Pointers: `scale` is NULL or valid for a write.
 */
int32_t diffusion_get_gradient_scale(struct diffusion_process *process, double *scale);

/**
 * Writes how many tensors the U-Net's parameters are. Never waits.
 *
 * Errors: INVALID_HANDLE, NULL_POINTER.
 *
 * Pointers: `count` is NULL or valid for a write.
 */
int32_t diffusion_parameter_count(struct diffusion_process *process, size_t *count);

/**
 * Writes the name and shape of the tensor at an index below diffusion_parameter_count, in diffusers' order. Set
 * parameter->struct_size first. Never waits.
 *
 * Errors: INVALID_HANDLE, INVALID_ARGUMENT (index, struct_size), NULL_POINTER.
 *
 * Pointers: `parameter` is NULL or points to parameter->struct_size writable bytes.
 */
int32_t diffusion_parameter_describe(struct diffusion_process *process,
                                     size_t index,
                                     struct diffusion_parameter *parameter);

/**
 * Copies the values of the tensor called name out; out_len must be its diffusion_parameter.len. weights is one of
 * DIFFUSION_WEIGHTS_*.
 *
 * Waits for training calls made before. Errors: INVALID_HANDLE, INVALID_ARGUMENT (weights, name), NULL_POINTER,
 * BUFFER_SIZE, CANCELLED.
 *
 * Pointers: `name` is NULL or a NUL-terminated string; `out` is NULL or points to out_len writable floats.
 */
int32_t diffusion_parameter_read(struct diffusion_process *process,
                                 int32_t weights,
                                 const char *name,
                                 float *out,
                                 size_t out_len);

/**
 * Replaces the values of the tensor called name; values_len must be its diffusion_parameter.len. weights is one of
 * DIFFUSION_WEIGHTS_*: to set both, call twice. The optimizer's averages stay.
 *
 * Waits for the sampling jobs and training calls made before. Errors: as diffusion_parameter_read, and NON_FINITE.
 *
 * Pointers: `name` is NULL or a NUL-terminated string; `values` is NULL or points to values_len readable floats.
 */
int32_t diffusion_parameter_write(struct diffusion_process *process,
                                  int32_t weights,
                                  const char *name,
                                  const float *values,
                                  size_t values_len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DIFFUSION_H */
