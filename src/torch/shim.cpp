// What libtorch has and tch lacks; see shim.h. It links against libtorch_cpu and libc10 only: what it does on
// CUDA goes through libtorch's dispatcher and device-neutral interfaces.

#include "shim.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/version.h>

#include <array>
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "guarded.h"

namespace {

constexpr char no_memory[] = "out of memory";

// Blocks with room for `no_memory`, to be freed by whoever gets one.
std::array<std::atomic<char *>, 64> spares;

void fill_spares() {
    for (auto &spare : spares) {
        if (spare.load() != nullptr) continue;
        char *expected = nullptr, *block = static_cast<char *>(malloc(sizeof no_memory));
        if (block == nullptr) return;
        if (!spare.compare_exchange_strong(expected, block)) free(block);
    }
}

std::vector<at::Tensor> list(const tensor *tensors, size_t count) {
    std::vector<at::Tensor> result;
    result.reserve(count);
    for (size_t i = 0; i < count; i++)
        result.push_back(*tensors[i]);
    return result;
}

}  // namespace

// An error must stay an error also where there is no memory left to say which.
char *diffusion_shim_copy(const char *text) noexcept {
    const size_t bytes = strlen(text) + 1;
    if (auto *result = static_cast<char *>(malloc(bytes))) {
        fill_spares();
        return static_cast<char *>(memcpy(result, text, bytes));
    }
    for (auto &spare : spares)
        if (char *block = spare.exchange(nullptr))
            return static_cast<char *>(memcpy(block, no_memory, sizeof no_memory));
    return nullptr;
}

// torch-sys copies the text of an exception with strdup, and takes NULL for success, with a NULL tensor in
// its hand. build.rs has the linker put this in the place of its strdup (--wrap).
extern "C" char *__wrap_strdup(const char *text) {
    return diffusion_shim_copy(text);
}

void diffusion_shim_prepare(void) {
    fill_spares();
}

void diffusion_shim_free(char *text) {
    free(text);
}

const char *diffusion_shim_torch_version(void) {
    return TORCH_VERSION;
}

const void *diffusion_shim_torch_address(void) {
    return reinterpret_cast<const void *>(&at::globalContext);
}

char *diffusion_shim_cuda(int32_t *devices, int64_t *runtime_version) {
    return guarded([&] {
        const auto &hooks = at::detail::getCUDAHooks();
        *devices = hooks.hasCUDA() ? static_cast<int32_t>(hooks.deviceCount()) : 0;
        *runtime_version = hooks.hasCUDA() ? hooks.versionCUDART() : 0;
    });
}

void diffusion_shim_default_floating_point(void) {
    std::fesetenv(FE_DFL_ENV);
}

bool diffusion_shim_grad_enabled(void) {
    return at::GradMode::is_enabled();
}

char *diffusion_shim_adam(const tensor *parameters, const tensor *gradients, const tensor *exp_avg,
                          const tensor *exp_avg_sq, size_t count, tensor step, double learning_rate,
                          double beta1, double beta2, double weight_decay, double epsilon, bool decoupled,
                          tensor found_inf) {
    return guarded([&] {
        // All parameters take the same steps, so one counter stands for all.
        const std::vector<at::Tensor> steps(count, *step);
        const auto values = list(parameters, count), grads = list(gradients, count);
        const auto first = list(exp_avg, count), second = list(exp_avg_sq, count);
        const auto skip =
            found_inf != nullptr ? std::optional<at::Tensor>(*found_inf) : std::optional<at::Tensor>();
        // Overloads that take the learning rate as a tensor exist too: the type chooses.
        using Maybe = const std::optional<at::Tensor> &;
        using Lists = at::TensorList;
        void (*update)(Lists, Lists, Lists, Lists, Lists, Lists, double, double, double, double, double, bool,
                       bool, Maybe, Maybe) = &at::_fused_adam_;
        if (decoupled) update = &at::_fused_adamw_;
        update(values, grads, first, second, /*max_exp_avg_sqs=*/{}, steps, learning_rate, beta1, beta2,
               weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/std::nullopt,
               skip);
    });
}

char *diffusion_shim_unscale(const tensor *gradients, size_t count, tensor found_inf, tensor inverse_scale) {
    return guarded([&] {
        at::_amp_foreach_non_finite_check_and_unscale_(list(gradients, count), *found_inf, *inverse_scale);
    });
}

char *diffusion_shim_update_scale(tensor scale, tensor growth_tracker, tensor found_inf, double growth,
                                  double backoff, int64_t interval) {
    return guarded(
        [&] { at::_amp_update_scale_(*scale, *growth_tracker, *found_inf, growth, backoff, interval); });
}

char *diffusion_shim_lerp(const tensor *averages, const tensor *values, size_t count, double weight) {
    return guarded([&] { at::_foreach_lerp_(list(averages, count), list(values, count), weight); });
}

char *diffusion_shim_add(const tensor *sums, const tensor *values, size_t count) {
    return guarded([&] { at::_foreach_add_(list(sums, count), list(values, count)); });
}

char *diffusion_shim_clip(const tensor *gradients, size_t count, double max_norm, tensor *norm) {
    return guarded([&] {
        const auto grads = list(gradients, count);
        const auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
        at::_foreach_mul_(grads, (max_norm / (total + 1e-6)).clamp_max(1.0));
        *norm = new at::Tensor(total);
    });
}

char *diffusion_shim_bernoulli(tensor out, double keep, uint64_t seed) {
    return guarded([&] {
        // A clone: the host's own generator keeps its state.
        auto generator = at::globalContext().defaultGenerator(out->device()).clone();
        generator.set_current_seed(seed);
        out->bernoulli_(keep, generator);
    });
}

char *diffusion_shim_autocast_enter(bool cuda, bool half, diffusion_shim_autocast *before) {
    return guarded([&] {
        const auto device = cuda ? at::kCUDA : at::kCPU;
        before->device_type = static_cast<int8_t>(device);
        before->enabled = at::autocast::is_autocast_enabled(device);
        before->dtype = static_cast<int8_t>(at::autocast::get_autocast_dtype(device));
        at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
        at::autocast::set_autocast_enabled(device, true);
        at::autocast::increment_nesting();
    });
}

void diffusion_shim_autocast_leave(const diffusion_shim_autocast *before) {
    char *error = guarded([&] {
        const auto device = static_cast<at::DeviceType>(before->device_type);
        // The cache holds casts of weights that the optimizer is about to change.
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_enabled(device, before->enabled);
        at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(before->dtype));
    });
    if (error != nullptr) diffusion_shim_free(error);
}

char *diffusion_shim_call_progress(int32_t (*callback)(uint64_t, uint64_t, void *), uint64_t done,
                                   uint64_t total, void *user_data, int32_t *answer) {
    return guarded([&] { *answer = callback(done, total, user_data); });
}

char *diffusion_shim_call_log(void (*callback)(int32_t, const char *, void *), int32_t level,
                              const char *message, void *user_data) {
    return guarded([&] { callback(level, message, user_data); });
}
