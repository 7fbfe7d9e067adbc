// What libtorch has and tch lacks. Each function returns NULL, or the text of the C++ exception it caught, to
// be freed with diffusion_shim_free. Tensors are borrowed; lists are arrays of pointers to them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <ATen/ATen.h>
typedef at::Tensor *tensor;
extern "C" {
#else
typedef void *tensor;
#endif

void diffusion_shim_free(char *text);
// To be called while there is memory: what later errors need when there is none.
void diffusion_shim_prepare(void);
const char *diffusion_shim_torch_version(void);
// An address inside libtorch_cpu.so, to find the folder that it was loaded from.
const void *diffusion_shim_torch_address(void);
char *diffusion_shim_cuda(int32_t *devices, int64_t *runtime_version);
// The floating-point environment of the C standard, whatever thread this one inherited its own from.
void diffusion_shim_default_floating_point(void);

bool diffusion_shim_grad_enabled(void);

char *diffusion_shim_adam(const tensor *parameters, const tensor *gradients, const tensor *exp_avg,
                          const tensor *exp_avg_sq, size_t count, tensor step, double learning_rate,
                          double beta1, double beta2, double weight_decay, double epsilon, bool decoupled,
                          tensor found_inf);
char *diffusion_shim_unscale(const tensor *gradients, size_t count, tensor found_inf, tensor inverse_scale);
char *diffusion_shim_update_scale(tensor scale, tensor growth_tracker, tensor found_inf, double growth,
                                  double backoff, int64_t interval);
char *diffusion_shim_lerp(const tensor *averages, const tensor *values, size_t count, double weight);
// sums[i] += values[i].
char *diffusion_shim_add(const tensor *sums, const tensor *values, size_t count);
// Scales the gradients so that their common norm is at most max_norm; *norm is a new scalar tensor.
char *diffusion_shim_clip(const tensor *gradients, size_t count, double max_norm, tensor *norm);
// Fills with 1 (probability keep) and 0, from a generator of its own.
char *diffusion_shim_bernoulli(tensor out, double keep, uint64_t seed);

typedef struct diffusion_shim_autocast {
    int8_t device_type, dtype;
    bool enabled;
} diffusion_shim_autocast;
char *diffusion_shim_autocast_enter(bool cuda, bool half, diffusion_shim_autocast *before);
void diffusion_shim_autocast_leave(const diffusion_shim_autocast *before);

// Call a host's callback: a C++ host's exception must not unwind through Rust, and ends here.
char *diffusion_shim_call_progress(int32_t (*callback)(uint64_t, uint64_t, void *), uint64_t done,
                                   uint64_t total, void *user_data, int32_t *answer);
char *diffusion_shim_call_log(void (*callback)(int32_t, const char *, void *), int32_t level,
                              const char *message, void *user_data);

#ifdef __cplusplus
}
#endif
