/*
 * What stands between Go and libdiffusion: one C function for each function of the ABI.
 *
 * Each makes its call and copies the message of an error on the same thread, since the message is thread-local and a
 * goroutine may be on another thread by its next call into C. Handles cross as integers: they are keys, and Go's
 * garbage collector must not take them for pointers. Structs cross by value, their pointers as arguments of their own,
 * so that no Go memory that C sees ever holds a Go pointer.
 */
#ifndef DIFFUSION_GO_SHIM_H
#define DIFFUSION_GO_SHIM_H

#include "diffusion.h"

/* A status, and for an error its message in malloc'ed memory, or NULL if there was none left. */
typedef struct diffusion_go_result {
    int32_t status;
    char *message;
} diffusion_go_result;

/* What came of opening a file: see openOK and its like in library.go. detail is malloc'ed, or NULL. */
typedef struct diffusion_go_opened {
    int32_t outcome;
    uint32_t found;
    char *detail;
} diffusion_go_opened;

/* Opens the library at path, checks its ABI version against `wanted`, and fills the table through which all other
 * functions here call. Not for two threads at a time, nor beside any other function here. */
diffusion_go_opened diffusion_go_open(const char *path, uint32_t wanted);
/* The file that the library was loaded from; valid for ever. */
const char *diffusion_go_path(void);
/* Whether this thread is inside a log callback. */
int32_t diffusion_go_in_log(void);

uint32_t diffusion_go_abi_version(void);
const char *diffusion_go_version(void);
const char *diffusion_go_status_string(int32_t status);
diffusion_go_result diffusion_go_device_count(int32_t device, int32_t *count);

diffusion_go_result diffusion_go_config_init(diffusion_config *config);
diffusion_go_result diffusion_go_config_init_cifar10(diffusion_config *config);
diffusion_go_result diffusion_go_create(diffusion_config config, uintptr_t *process);
diffusion_go_result diffusion_go_create_with_betas(diffusion_config config, const double *betas, size_t betas_len,
                                                   uintptr_t *process);
diffusion_go_result diffusion_go_load(const char *path, diffusion_config overrides, int32_t has_overrides,
                                      uintptr_t *process);
diffusion_go_result diffusion_go_save(uintptr_t process, const char *path);
diffusion_go_result diffusion_go_export(uintptr_t process, const char *path, int32_t precision);
diffusion_go_result diffusion_go_destroy(uintptr_t process);
diffusion_go_result diffusion_go_cancel(uintptr_t process);
diffusion_go_result diffusion_go_get_config(uintptr_t process, diffusion_config *config);
diffusion_go_result diffusion_go_get_schedule(uintptr_t process, int32_t which_table, float *out, size_t out_len);
/* sink is what diffusionGoLog is given; 0 ends the log. */
diffusion_go_result diffusion_go_set_log_callback(uintptr_t process, uintptr_t sink);

diffusion_go_result diffusion_go_sample_params_init(diffusion_sample_params *params);
diffusion_go_result diffusion_go_add_noise(uintptr_t process, const float *images, size_t images_len,
                                           const int64_t *timesteps, size_t batch, uint64_t seed, float *noisy,
                                           size_t noisy_len, float *noise, size_t noise_len);
diffusion_go_result diffusion_go_predict_noise(uintptr_t process, const float *images, size_t len,
                                               const int64_t *timesteps, size_t batch, float *out, size_t out_len);
diffusion_go_result diffusion_go_predict_noise_with_classes(uintptr_t process, const float *images, size_t len,
                                                            const int64_t *timesteps, const int64_t *class_labels,
                                                            size_t batch, float *out, size_t out_len);
diffusion_go_result diffusion_go_sample(uintptr_t process, size_t num_samples, uint64_t seed, float *out,
                                        size_t out_len);
diffusion_go_result diffusion_go_sample_ddim(uintptr_t process, size_t num_samples, int32_t ddim_steps, float eta,
                                             uint64_t seed, float *out, size_t out_len);
diffusion_go_result diffusion_go_sample_with(uintptr_t process, diffusion_sample_params params, const uint64_t *seeds,
                                             const float *initial_noise, const int64_t *class_labels, void *out,
                                             size_t out_bytes);
diffusion_go_result diffusion_go_sample_size(uintptr_t process, diffusion_sample_params params, size_t *bytes);

/* link is what diffusionGoProgress is given; 0: no progress. */
diffusion_go_result diffusion_go_sample_submit(uintptr_t process, diffusion_sample_params params,
                                               const uint64_t *seeds, const float *initial_noise,
                                               const int64_t *class_labels, uintptr_t link, uintptr_t *job);
diffusion_go_result diffusion_go_job_poll(uintptr_t job, int32_t *state);
diffusion_go_result diffusion_go_job_wait(uintptr_t job, int64_t timeout_ms);
diffusion_go_result diffusion_go_job_progress(uintptr_t job, uint64_t *done, uint64_t *total);
diffusion_go_result diffusion_go_job_cancel(uintptr_t job);
diffusion_go_result diffusion_go_job_preview(uintptr_t job, void *out, size_t bytes, uint64_t *done);
diffusion_go_result diffusion_go_job_fetch(uintptr_t job, void *out, size_t bytes);
diffusion_go_result diffusion_go_job_destroy(uintptr_t job);

diffusion_go_result diffusion_go_train_step(uintptr_t process, const float *images, size_t images_len, size_t batch,
                                            float *loss);
diffusion_go_result diffusion_go_train_step_with_classes(uintptr_t process, const float *images, size_t images_len,
                                                         const int64_t *class_labels, size_t batch, float *loss);
diffusion_go_result diffusion_go_get_step_count(uintptr_t process, uint64_t *steps);
diffusion_go_result diffusion_go_get_learning_rate(uintptr_t process, double *learning_rate);
diffusion_go_result diffusion_go_set_learning_rate(uintptr_t process, double learning_rate);
diffusion_go_result diffusion_go_get_gradient_scale(uintptr_t process, double *scale);

diffusion_go_result diffusion_go_parameter_count(uintptr_t process, size_t *count);
diffusion_go_result diffusion_go_parameter_describe(uintptr_t process, size_t index, diffusion_parameter *parameter);
diffusion_go_result diffusion_go_parameter_read(uintptr_t process, int32_t weights, const char *name, float *out,
                                                size_t out_len);
diffusion_go_result diffusion_go_parameter_write(uintptr_t process, int32_t weights, const char *name,
                                                 const float *values, size_t values_len);

#endif
