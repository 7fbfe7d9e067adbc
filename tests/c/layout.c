/*
 * The layout that was released: where every field of every struct lies and how large it is, on machines with
 * 64-bit pointers. A program compiled years ago relies on it. A new field is added at an end (and here, with
 * a new size); nothing in this file ever changes otherwise. Nothing to run: a difference does not compile.
 */
#include <stddef.h>
#include <stdint.h>

#include "diffusion.h"

#define JOIN(a, b) a##b
#define NAMED(line) JOIN(layout_, line)
/* C99 has no static assertion: an array of negative length is its error. */
#define HOLDS(condition) typedef char NAMED(__LINE__)[(condition) ? 1 : -1]
#define SIZE(type, bytes) HOLDS(sizeof(type) == (bytes))
#define FIELD(type, field, offset, bytes) \
    HOLDS(offsetof(type, field) == (offset) && sizeof(((type *)0)->field) == (bytes))

#if UINTPTR_MAX == UINT64_MAX
SIZE(diffusion_config, 248);
FIELD(diffusion_config, struct_size, 0, 4);
FIELD(diffusion_config, image_size, 4, 4);
FIELD(diffusion_config, channels, 8, 4);
FIELD(diffusion_config, hidden_dims_len, 12, 4);
FIELD(diffusion_config, hidden_dims, 16, 32);
FIELD(diffusion_config, beta_start, 48, 8);
FIELD(diffusion_config, beta_end, 56, 8);
FIELD(diffusion_config, noise_steps, 64, 4);
FIELD(diffusion_config, beta_schedule, 68, 4);
FIELD(diffusion_config, prediction_type, 72, 4);
FIELD(diffusion_config, rescale_betas_zero_snr, 76, 4);
FIELD(diffusion_config, device, 80, 4);
FIELD(diffusion_config, device_index, 84, 4);
FIELD(diffusion_config, num_threads, 88, 4);
FIELD(diffusion_config, max_batch, 92, 4);
FIELD(diffusion_config, seed, 96, 8);
FIELD(diffusion_config, layers_per_block, 104, 4);
FIELD(diffusion_config, attention_levels, 108, 4);
FIELD(diffusion_config, attention_head_dim, 112, 4);
FIELD(diffusion_config, norm_num_groups, 116, 4);
FIELD(diffusion_config, dropout, 120, 8);
FIELD(diffusion_config, optimizer, 128, 4);
FIELD(diffusion_config, mixed_precision, 132, 4);
FIELD(diffusion_config, learning_rate, 136, 8);
FIELD(diffusion_config, adam_beta1, 144, 8);
FIELD(diffusion_config, adam_beta2, 152, 8);
FIELD(diffusion_config, adam_epsilon, 160, 8);
FIELD(diffusion_config, weight_decay, 168, 8);
FIELD(diffusion_config, gradient_clip, 176, 8);
FIELD(diffusion_config, ema_decay, 184, 8);
FIELD(diffusion_config, loss, 192, 4);
FIELD(diffusion_config, num_class_embeds, 196, 4);
FIELD(diffusion_config, huber_delta, 200, 8);
FIELD(diffusion_config, min_snr_gamma, 208, 8);
FIELD(diffusion_config, warmup_steps, 216, 8);
FIELD(diffusion_config, decay_steps, 224, 8);
FIELD(diffusion_config, accumulation_steps, 232, 8);
FIELD(diffusion_config, inference_precision, 240, 4);
FIELD(diffusion_config, deterministic, 244, 4);
SIZE(diffusion_sample_params, 136);
FIELD(diffusion_sample_params, struct_size, 0, 4);
FIELD(diffusion_sample_params, method, 4, 4);
FIELD(diffusion_sample_params, num_samples, 8, 8);
FIELD(diffusion_sample_params, seed, 16, 8);
FIELD(diffusion_sample_params, seeds, 24, 8);
FIELD(diffusion_sample_params, seeds_len, 32, 8);
FIELD(diffusion_sample_params, initial_noise, 40, 8);
FIELD(diffusion_sample_params, initial_noise_len, 48, 8);
FIELD(diffusion_sample_params, steps, 56, 4);
FIELD(diffusion_sample_params, spacing, 60, 4);
FIELD(diffusion_sample_params, eta, 64, 8);
FIELD(diffusion_sample_params, variance, 72, 4);
FIELD(diffusion_sample_params, clip_sample, 76, 4);
FIELD(diffusion_sample_params, use_clipped_model_output, 80, 4);
FIELD(diffusion_sample_params, format, 84, 4);
FIELD(diffusion_sample_params, dynamic_thresholding, 88, 8);
FIELD(diffusion_sample_params, timeout_ms, 96, 8);
FIELD(diffusion_sample_params, progress, 104, 8);
FIELD(diffusion_sample_params, user_data, 112, 8);
FIELD(diffusion_sample_params, class_labels, 120, 8);
FIELD(diffusion_sample_params, class_labels_len, 128, 8);
SIZE(diffusion_parameter, 176);
FIELD(diffusion_parameter, struct_size, 0, 4);
FIELD(diffusion_parameter, rank, 4, 4);
FIELD(diffusion_parameter, shape, 8, 32);
FIELD(diffusion_parameter, len, 40, 8);
FIELD(diffusion_parameter, name, 48, 128);
#endif

HOLDS(DIFFUSION_ABI_VERSION == 1);
HOLDS(DIFFUSION_MAX_LEVELS == 8);
HOLDS(DIFFUSION_DEVICE_AUTO == 0);
HOLDS(DIFFUSION_DEVICE_CPU == 1);
HOLDS(DIFFUSION_DEVICE_CUDA == 2);
HOLDS(DIFFUSION_SCHEDULE_COSINE == 0);
HOLDS(DIFFUSION_SCHEDULE_LINEAR == 1);
HOLDS(DIFFUSION_SCHEDULE_COSINE_RAMP == 2);
HOLDS(DIFFUSION_SCHEDULE_SCALED_LINEAR == 3);
HOLDS(DIFFUSION_SCHEDULE_SIGMOID == 4);
HOLDS(DIFFUSION_SCHEDULE_GIVEN == 5);
HOLDS(DIFFUSION_PREDICTION_EPSILON == 0);
HOLDS(DIFFUSION_PREDICTION_SAMPLE == 1);
HOLDS(DIFFUSION_PREDICTION_VELOCITY == 2);
HOLDS(DIFFUSION_OPTIMIZER_ADAM == 0);
HOLDS(DIFFUSION_OPTIMIZER_ADAMW == 1);
HOLDS(DIFFUSION_PRECISION_F32 == 0);
HOLDS(DIFFUSION_PRECISION_F16 == 1);
HOLDS(DIFFUSION_PRECISION_BF16 == 2);
HOLDS(DIFFUSION_PRECISION_AUTO == 3);
HOLDS(DIFFUSION_LOSS_MSE == 0);
HOLDS(DIFFUSION_LOSS_HUBER == 1);
HOLDS(DIFFUSION_CLASSES_AS_TIMESTEPS == -1);
HOLDS(DIFFUSION_TABLE_BETA == 0);
HOLDS(DIFFUSION_TABLE_ALPHA == 1);
HOLDS(DIFFUSION_TABLE_ALPHA_CUMPROD == 2);
HOLDS(DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD == 3);
HOLDS(DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD == 4);
HOLDS(DIFFUSION_METHOD_DDPM == 0);
HOLDS(DIFFUSION_METHOD_DDIM == 1);
HOLDS(DIFFUSION_METHOD_DPM_SOLVER_PP_2M == 2);
HOLDS(DIFFUSION_METHOD_DPM_SOLVER_PP_2M_SDE == 3);
HOLDS(DIFFUSION_METHOD_UNIPC == 4);
HOLDS(DIFFUSION_METHOD_EULER == 5);
HOLDS(DIFFUSION_METHOD_HEUN == 6);
HOLDS(DIFFUSION_DEFAULT == -1);
HOLDS(DIFFUSION_SPACING_LEADING == 0);
HOLDS(DIFFUSION_SPACING_TRAILING == 1);
HOLDS(DIFFUSION_SPACING_LINSPACE == 2);
HOLDS(DIFFUSION_SPACING_KARRAS == 3);
HOLDS(DIFFUSION_VARIANCE_FIXED_SMALL == 0);
HOLDS(DIFFUSION_VARIANCE_FIXED_LARGE == 1);
HOLDS(DIFFUSION_FORMAT_F32 == 0);
HOLDS(DIFFUSION_FORMAT_F16 == 1);
HOLDS(DIFFUSION_FORMAT_RGB8 == 2);
HOLDS(DIFFUSION_FORMAT_RGBA8 == 3);
HOLDS(DIFFUSION_JOB_QUEUED == 0);
HOLDS(DIFFUSION_JOB_RUNNING == 1);
HOLDS(DIFFUSION_JOB_DONE == 2);
HOLDS(DIFFUSION_JOB_FAILED == 3);
HOLDS(DIFFUSION_JOB_CANCELLED == 4);
HOLDS(DIFFUSION_WEIGHTS_TRAINED == 0);
HOLDS(DIFFUSION_WEIGHTS_EMA == 1);
HOLDS(DIFFUSION_LOG_WARNING == 1);
HOLDS(DIFFUSION_LOG_INFO == 2);
HOLDS(DIFFUSION_OK == 0);
HOLDS(DIFFUSION_ERROR_INVALID_ARGUMENT == 1);
HOLDS(DIFFUSION_ERROR_NULL_POINTER == 2);
HOLDS(DIFFUSION_ERROR_INVALID_HANDLE == 3);
HOLDS(DIFFUSION_ERROR_BUFFER_SIZE == 4);
HOLDS(DIFFUSION_ERROR_OUT_OF_MEMORY == 5);
HOLDS(DIFFUSION_ERROR_DEVICE_UNAVAILABLE == 6);
HOLDS(DIFFUSION_ERROR_IO == 7);
HOLDS(DIFFUSION_ERROR_FORMAT == 8);
HOLDS(DIFFUSION_ERROR_CANCELLED == 9);
HOLDS(DIFFUSION_ERROR_TIMEOUT == 10);
HOLDS(DIFFUSION_ERROR_NON_FINITE == 11);
HOLDS(DIFFUSION_ERROR_TORCH == 12);
HOLDS(DIFFUSION_ERROR_INTERNAL == 13);
