//go:build cgo && unix

/* The shim between Go and libdiffusion; shim.h says what it is for. */

#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Every function of the ABI; a test holds this list against diffusion.h. */
#define DIFFUSION_FUNCTIONS(X)        \
    X(diffusion_status_string)        \
    X(diffusion_abi_version)          \
    X(diffusion_version)              \
    X(diffusion_last_error_message)   \
    X(diffusion_device_count)         \
    X(diffusion_config_init)          \
    X(diffusion_config_init_cifar10)  \
    X(diffusion_create)               \
    X(diffusion_create_with_betas)    \
    X(diffusion_load)                 \
    X(diffusion_save)                 \
    X(diffusion_export)               \
    X(diffusion_destroy)              \
    X(diffusion_cancel)               \
    X(diffusion_get_config)           \
    X(diffusion_get_schedule)         \
    X(diffusion_set_log_callback)     \
    X(diffusion_sample_params_init)   \
    X(diffusion_add_noise)            \
    X(diffusion_predict_noise)        \
    X(diffusion_predict_noise_with_classes) \
    X(diffusion_sample)               \
    X(diffusion_sample_ddim)          \
    X(diffusion_sample_with)          \
    X(diffusion_sample_size)          \
    X(diffusion_sample_submit)        \
    X(diffusion_job_poll)             \
    X(diffusion_job_wait)             \
    X(diffusion_job_progress)         \
    X(diffusion_job_cancel)           \
    X(diffusion_job_fetch)            \
    X(diffusion_job_preview)          \
    X(diffusion_job_destroy)          \
    X(diffusion_train_step)           \
    X(diffusion_train_step_with_classes) \
    X(diffusion_get_step_count)       \
    X(diffusion_get_learning_rate)    \
    X(diffusion_set_learning_rate)    \
    X(diffusion_get_gradient_scale)   \
    X(diffusion_parameter_count)      \
    X(diffusion_parameter_describe)   \
    X(diffusion_parameter_read)       \
    X(diffusion_parameter_write)

typedef struct function_table {
#define FIELD(name) __typeof__(&name) name;
    DIFFUSION_FUNCTIONS(FIELD)
#undef FIELD
} function_table;

static function_table library;

static char *copy(const char *text) {
    return text == NULL ? NULL : strdup(text);
}

#ifdef DIFFUSION_GO_LINK

diffusion_go_opened diffusion_go_open(const char *path, uint32_t wanted) {
    diffusion_go_opened opened = {0, 0, NULL};
    (void)path;
    opened.found = diffusion_abi_version();
    if (opened.found != wanted) {
        opened.outcome = 3;
        return opened;
    }
#define LINK(name) library.name = name;
    DIFFUSION_FUNCTIONS(LINK)
#undef LINK
    return opened;
}

#else

/* A function's address out of dlsym's data pointer, which ISO C has no cast for. */
static void find(void *handle, const char *name, void *function) {
    void *address = dlsym(handle, name);
    memcpy(function, &address, sizeof address);
}

diffusion_go_opened diffusion_go_open(const char *path, uint32_t wanted) {
    diffusion_go_opened opened = {0, 0, NULL};
    function_table found;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        opened.outcome = 1;
        opened.detail = copy(dlerror());
        return opened;
    }
    find(handle, "diffusion_abi_version", &found.diffusion_abi_version);
    if (found.diffusion_abi_version == NULL) {
        opened.outcome = 2;
    } else if ((opened.found = found.diffusion_abi_version()) != wanted) {
        opened.outcome = 3;
    } else {
#define FIND(name)                                    \
    find(handle, #name, &found.name);                 \
    if (opened.outcome == 0 && found.name == NULL) {  \
        opened.outcome = 4;                           \
        opened.detail = copy(#name);                  \
    }
        DIFFUSION_FUNCTIONS(FIND)
#undef FIND
    }
    if (opened.outcome == 0) {
        library = found;
    } else {
        dlclose(handle);
    }
    return opened;
}

#endif

const char *diffusion_go_path(void) {
    Dl_info info;
    void *address;
    memcpy(&address, &library.diffusion_abi_version, sizeof address);
    return dladdr(address, &info) != 0 && info.dli_fname != NULL ? info.dli_fname : "";
}

/* Go's side of the callbacks, in callbacks.go. They never unwind into here. */
extern int32_t diffusionGoProgress(uint64_t done, uint64_t total, uintptr_t link);
extern void diffusionGoLog(int32_t level, const char *message, uintptr_t sink);

static __thread int32_t in_log;

int32_t diffusion_go_in_log(void) {
    return in_log;
}

static int32_t on_progress(uint64_t done, uint64_t total, void *user_data) {
    return diffusionGoProgress(done, total, (uintptr_t)user_data);
}

static void on_log(int32_t level, const char *message, void *user_data) {
    in_log = 1;
    diffusionGoLog(level, message, (uintptr_t)user_data);
    in_log = 0;
}

/* The end of each call: the status and, on this same thread, the message. */
static diffusion_go_result result(int32_t status) {
    diffusion_go_result r = {status, NULL};
    if (status != DIFFUSION_OK) {
        r.message = copy(library.diffusion_last_error_message());
    }
    return r;
}

static diffusion_process *as_process(uintptr_t key) {
    return (diffusion_process *)key;
}

static diffusion_job *as_job(uintptr_t key) {
    return (diffusion_job *)key;
}

uint32_t diffusion_go_abi_version(void) {
    return library.diffusion_abi_version();
}

const char *diffusion_go_version(void) {
    return library.diffusion_version();
}

const char *diffusion_go_status_string(int32_t status) {
    return library.diffusion_status_string(status);
}

diffusion_go_result diffusion_go_device_count(int32_t device, int32_t *count) {
    return result(library.diffusion_device_count(device, count));
}

diffusion_go_result diffusion_go_config_init(diffusion_config *config) {
    return result(library.diffusion_config_init(config));
}

diffusion_go_result diffusion_go_config_init_cifar10(diffusion_config *config) {
    return result(library.diffusion_config_init_cifar10(config));
}

diffusion_go_result diffusion_go_create(diffusion_config config, uintptr_t *process) {
    diffusion_process *made = NULL;
    diffusion_go_result r = result(library.diffusion_create(&config, &made));
    *process = (uintptr_t)made;
    return r;
}

diffusion_go_result diffusion_go_create_with_betas(diffusion_config config, const double *betas, size_t betas_len,
                                                   uintptr_t *process) {
    diffusion_process *made = NULL;
    diffusion_go_result r = result(library.diffusion_create_with_betas(&config, betas, betas_len, &made));
    *process = (uintptr_t)made;
    return r;
}

diffusion_go_result diffusion_go_load(const char *path, diffusion_config overrides, int32_t has_overrides,
                                      uintptr_t *process) {
    diffusion_process *made = NULL;
    diffusion_go_result r = result(library.diffusion_load(path, has_overrides ? &overrides : NULL, &made));
    *process = (uintptr_t)made;
    return r;
}

diffusion_go_result diffusion_go_save(uintptr_t process, const char *path) {
    return result(library.diffusion_save(as_process(process), path));
}

diffusion_go_result diffusion_go_export(uintptr_t process, const char *path, int32_t precision) {
    return result(library.diffusion_export(as_process(process), path, precision));
}

diffusion_go_result diffusion_go_destroy(uintptr_t process) {
    return result(library.diffusion_destroy(as_process(process)));
}

diffusion_go_result diffusion_go_cancel(uintptr_t process) {
    return result(library.diffusion_cancel(as_process(process)));
}

diffusion_go_result diffusion_go_get_config(uintptr_t process, diffusion_config *config) {
    config->struct_size = sizeof *config;
    return result(library.diffusion_get_config(as_process(process), config));
}

diffusion_go_result diffusion_go_get_schedule(uintptr_t process, int32_t which_table, float *out, size_t out_len) {
    return result(library.diffusion_get_schedule(as_process(process), which_table, out, out_len));
}

diffusion_go_result diffusion_go_set_log_callback(uintptr_t process, uintptr_t sink) {
    return result(library.diffusion_set_log_callback(as_process(process), sink == 0 ? NULL : on_log, (void *)sink));
}

diffusion_go_result diffusion_go_sample_params_init(diffusion_sample_params *params) {
    return result(library.diffusion_sample_params_init(params));
}

diffusion_go_result diffusion_go_add_noise(uintptr_t process, const float *images, size_t images_len,
                                           const int64_t *timesteps, size_t batch, uint64_t seed, float *noisy,
                                           size_t noisy_len, float *noise, size_t noise_len) {
    return result(library.diffusion_add_noise(as_process(process), images, images_len, timesteps, batch, seed, noisy,
                                              noisy_len, noise, noise_len));
}

diffusion_go_result diffusion_go_predict_noise(uintptr_t process, const float *images, size_t len,
                                               const int64_t *timesteps, size_t batch, float *out, size_t out_len) {
    return result(library.diffusion_predict_noise(as_process(process), images, len, timesteps, batch, out, out_len));
}

diffusion_go_result diffusion_go_predict_noise_with_classes(uintptr_t process, const float *images, size_t len,
                                                            const int64_t *timesteps, const int64_t *class_labels,
                                                            size_t batch, float *out, size_t out_len) {
    return result(library.diffusion_predict_noise_with_classes(as_process(process), images, len, timesteps, class_labels,
                                                               batch, out, out_len));
}

diffusion_go_result diffusion_go_sample(uintptr_t process, size_t num_samples, uint64_t seed, float *out,
                                        size_t out_len) {
    return result(library.diffusion_sample(as_process(process), num_samples, seed, out, out_len));
}

diffusion_go_result diffusion_go_sample_ddim(uintptr_t process, size_t num_samples, int32_t ddim_steps, float eta,
                                             uint64_t seed, float *out, size_t out_len) {
    return result(
        library.diffusion_sample_ddim(as_process(process), num_samples, ddim_steps, eta, seed, out, out_len));
}

diffusion_go_result diffusion_go_sample_with(uintptr_t process, diffusion_sample_params params, const uint64_t *seeds,
                                             const float *initial_noise, const int64_t *class_labels, void *out,
                                             size_t out_bytes) {
    params.seeds = seeds;
    params.initial_noise = initial_noise;
    params.class_labels = class_labels;
    return result(library.diffusion_sample_with(as_process(process), &params, out, out_bytes));
}

diffusion_go_result diffusion_go_sample_size(uintptr_t process, diffusion_sample_params params, size_t *bytes) {
    /* The size does not depend on what the pointers point to. */
    params.seeds_len = 0;
    params.initial_noise_len = 0;
    params.class_labels_len = 0;
    return result(library.diffusion_sample_size(as_process(process), &params, bytes));
}

diffusion_go_result diffusion_go_sample_submit(uintptr_t process, diffusion_sample_params params,
                                               const uint64_t *seeds, const float *initial_noise,
                                               const int64_t *class_labels, uintptr_t link, uintptr_t *job) {
    diffusion_job *made = NULL;
    diffusion_go_result r;
    params.seeds = seeds;
    params.initial_noise = initial_noise;
    params.class_labels = class_labels;
    params.progress = link == 0 ? NULL : on_progress;
    params.user_data = (void *)link;
    r = result(library.diffusion_sample_submit(as_process(process), &params, &made));
    *job = (uintptr_t)made;
    return r;
}

diffusion_go_result diffusion_go_job_poll(uintptr_t job, int32_t *state) {
    return result(library.diffusion_job_poll(as_job(job), state));
}

diffusion_go_result diffusion_go_job_wait(uintptr_t job, int64_t timeout_ms) {
    return result(library.diffusion_job_wait(as_job(job), timeout_ms));
}

diffusion_go_result diffusion_go_job_progress(uintptr_t job, uint64_t *done, uint64_t *total) {
    return result(library.diffusion_job_progress(as_job(job), done, total));
}

diffusion_go_result diffusion_go_job_cancel(uintptr_t job) {
    return result(library.diffusion_job_cancel(as_job(job)));
}

diffusion_go_result diffusion_go_job_preview(uintptr_t job, void *out, size_t bytes, uint64_t *done) {
    return result(library.diffusion_job_preview(as_job(job), out, bytes, done));
}

diffusion_go_result diffusion_go_job_fetch(uintptr_t job, void *out, size_t bytes) {
    return result(library.diffusion_job_fetch(as_job(job), out, bytes));
}

diffusion_go_result diffusion_go_job_destroy(uintptr_t job) {
    return result(library.diffusion_job_destroy(as_job(job)));
}

diffusion_go_result diffusion_go_train_step(uintptr_t process, const float *images, size_t images_len, size_t batch,
                                            float *loss) {
    return result(library.diffusion_train_step(as_process(process), images, images_len, batch, loss));
}

diffusion_go_result diffusion_go_train_step_with_classes(uintptr_t process, const float *images, size_t images_len,
                                                         const int64_t *class_labels, size_t batch, float *loss) {
    return result(library.diffusion_train_step_with_classes(as_process(process), images, images_len, class_labels,
                                                            batch, loss));
}

diffusion_go_result diffusion_go_get_step_count(uintptr_t process, uint64_t *steps) {
    return result(library.diffusion_get_step_count(as_process(process), steps));
}

diffusion_go_result diffusion_go_get_learning_rate(uintptr_t process, double *learning_rate) {
    return result(library.diffusion_get_learning_rate(as_process(process), learning_rate));
}

diffusion_go_result diffusion_go_set_learning_rate(uintptr_t process, double learning_rate) {
    return result(library.diffusion_set_learning_rate(as_process(process), learning_rate));
}

diffusion_go_result diffusion_go_get_gradient_scale(uintptr_t process, double *scale) {
    return result(library.diffusion_get_gradient_scale(as_process(process), scale));
}

diffusion_go_result diffusion_go_parameter_count(uintptr_t process, size_t *count) {
    return result(library.diffusion_parameter_count(as_process(process), count));
}

diffusion_go_result diffusion_go_parameter_describe(uintptr_t process, size_t index, diffusion_parameter *parameter) {
    parameter->struct_size = sizeof *parameter;
    return result(library.diffusion_parameter_describe(as_process(process), index, parameter));
}

diffusion_go_result diffusion_go_parameter_read(uintptr_t process, int32_t weights, const char *name, float *out,
                                                size_t out_len) {
    return result(library.diffusion_parameter_read(as_process(process), weights, name, out, out_len));
}

diffusion_go_result diffusion_go_parameter_write(uintptr_t process, int32_t weights, const char *name,
                                                 const float *values, size_t values_len) {
    return result(library.diffusion_parameter_write(as_process(process), weights, name, values, values_len));
}
