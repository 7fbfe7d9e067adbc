/*
 * Everything that a caller can get wrong, one call each: the status, the message (the argument's name, its
 * value and what it may be), every output unchanged byte for byte, and the process working on afterwards.
 *
 * diffusion.h promises this for handles of any value, for lengths of any value and for struct tails; files of
 * any content are checkpoints.c's. DIFFUSION_ERROR_TORCH and _INTERNAL are not here: no input is documented
 * to give them.
 */
#include "refused.h"

#include <signal.h>
#include <sys/resource.h>

/* ------------------------------------------------------------------------------------------------------------------
 */

static void *message_of_new_thread(void *unused) {
    char text[256];
    (void)unused;
    CHECK(strcmp(diffusion_last_error_message(), "") == 0);
    CHECK(diffusion_config_init(NULL) == NULLED);
    snprintf(text, sizeof text, "%s", diffusion_last_error_message());
    CHECK(strstr(text, "config") != NULL);
    return NULL;
}

static void test_names_and_messages(void) {
    static const int32_t unknown[] = {-1, 14, 15, 255, 256, INT32_MAX, INT32_MIN};
    char before[1024];
    pthread_t thread;
    int32_t status, other;
    size_t i;
    SECTION("status names, versions, messages");
    for (status = 0; status <= DIFFUSION_ERROR_INTERNAL; status++) {
        const char *name = diffusion_status_string(status), *letter;
        CHECK(name != NULL && name[0] != 0 && strcmp(name, "unknown status") != 0);
        for (letter = name; *letter; letter++) {
            check_that((*letter >= 'a' && *letter <= 'z') || *letter == ' ' || *letter == '-', __FILE__,
                       __LINE__, "status %d is called \"%s\": not lower-case words", (int)status, name);
        }
        for (other = 0; other < status; other++) {
            CHECK(strcmp(name, diffusion_status_string(other)) != 0);
        }
        CHECK(diffusion_status_string(status) == name);
    }
    CHECK(strcmp(diffusion_status_string(DIFFUSION_ERROR_INVALID_HANDLE), "invalid handle") == 0);
    for (i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        CHECK(strcmp(diffusion_status_string(unknown[i]), "unknown status") == 0);
    }
    CHECK_INT(diffusion_abi_version(), ==, DIFFUSION_ABI_VERSION);
    CHECK(strstr(diffusion_version(), "libdiffusion 0.") != NULL);
    CHECK(strstr(diffusion_version(), "libtorch 2.") != NULL);
    CHECK(strstr(diffusion_version(), "CUDA") != NULL);

    /* Messages belong to their thread, and a success leaves them. */
    CHECK(diffusion_sample_params_init(NULL) == NULLED);
    snprintf(before, sizeof before, "%s", diffusion_last_error_message());
    CHECK(strstr(before, "params") != NULL);
    CHECK(pthread_create(&thread, NULL, message_of_new_thread, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK(strcmp(diffusion_last_error_message(), before) == 0);
    OK(diffusion_config_init(&o.config));
    CHECK(strcmp(diffusion_last_error_message(), before) == 0);
}

static void test_defaults(void) {
    diffusion_config c;
    diffusion_sample_params s;
    SECTION("defaults");
    memset(&c, 0xA5, sizeof c);
    OK(diffusion_config_init(&c));
    CHECK_INT(c.struct_size, ==, sizeof c);
    CHECK_INT(c.image_size, ==, 32);
    CHECK_INT(c.channels, ==, 3);
    CHECK_INT(c.hidden_dims_len, ==, 3);
    CHECK_INT(c.hidden_dims[0], ==, 64);
    CHECK_INT(c.hidden_dims[1], ==, 128);
    CHECK_INT(c.hidden_dims[2], ==, 256);
    CHECK_NEAR(c.beta_start, 1e-4, 0);
    CHECK_NEAR(c.beta_end, 0.999, 0);
    CHECK_INT(c.noise_steps, ==, 1000);
    CHECK_INT(c.beta_schedule, ==, DIFFUSION_SCHEDULE_COSINE);
    CHECK_INT(c.prediction_type, ==, DIFFUSION_PREDICTION_EPSILON);
    CHECK_INT(c.rescale_betas_zero_snr, ==, 0);
    CHECK_INT(c.device, ==, DIFFUSION_DEVICE_AUTO);
    CHECK_INT(c.device_index, ==, 0);
    CHECK_INT(c.num_threads, ==, 0);
    CHECK_INT(c.max_batch, ==, 0);
    CHECK_INT(c.seed, ==, 0);
    CHECK_INT(c.layers_per_block, ==, 2);
    CHECK_INT(c.attention_levels, ==, -1);
    CHECK_INT(c.attention_head_dim, ==, 0);
    CHECK_INT(c.norm_num_groups, ==, 0);
    CHECK_NEAR(c.dropout, 0, 0);
    CHECK_INT(c.optimizer, ==, DIFFUSION_OPTIMIZER_ADAM);
    CHECK_INT(c.mixed_precision, ==, DIFFUSION_PRECISION_F32);
    CHECK_NEAR(c.learning_rate, 1e-4, 0);
    CHECK_NEAR(c.adam_beta1, 0.9, 0);
    CHECK_NEAR(c.adam_beta2, 0.999, 0);
    CHECK_NEAR(c.adam_epsilon, 1e-8, 0);
    CHECK_NEAR(c.weight_decay, 0, 0);
    CHECK_NEAR(c.gradient_clip, 0, 0);
    CHECK_NEAR(c.ema_decay, 0, 0);
    CHECK_INT(c.inference_precision, ==, DIFFUSION_PRECISION_F32);
    CHECK_INT(c.deterministic, ==, 0);

    memset(&c, 0xA5, sizeof c);
    OK(diffusion_config_init_cifar10(&c));
    CHECK_INT(c.struct_size, ==, sizeof c);
    CHECK_INT(c.image_size, ==, 32);
    CHECK_INT(c.channels, ==, 3);
    CHECK_INT(c.hidden_dims_len, ==, 4);
    CHECK_INT(c.hidden_dims[0], ==, 128);
    CHECK_INT(c.hidden_dims[1], ==, 256);
    CHECK_INT(c.hidden_dims[2], ==, 256);
    CHECK_INT(c.hidden_dims[3], ==, 256);
    CHECK_INT(c.attention_levels, ==, 2);
    CHECK_INT(c.beta_schedule, ==, DIFFUSION_SCHEDULE_LINEAR);
    CHECK_NEAR(c.beta_start, 1e-4, 0);
    CHECK_NEAR(c.beta_end, 0.02, 0);
    CHECK_INT(c.noise_steps, ==, 1000);
    CHECK_INT(c.optimizer, ==, DIFFUSION_OPTIMIZER_ADAMW);
    CHECK_NEAR(c.learning_rate, 2e-4, 0);
    CHECK_NEAR(c.weight_decay, 1e-5, 0);
    CHECK_NEAR(c.gradient_clip, 1, 0);
    CHECK_NEAR(c.ema_decay, 0.999, 0);
    CHECK_NEAR(c.dropout, 0.1, 0);

    memset(&s, 0xA5, sizeof s);
    OK(diffusion_sample_params_init(&s));
    CHECK_INT(s.struct_size, ==, sizeof s);
    CHECK_INT(s.method, ==, DIFFUSION_METHOD_DDIM);
    CHECK_INT(s.num_samples, ==, 1);
    CHECK_INT(s.seed, ==, 0);
    CHECK(s.seeds == NULL && s.seeds_len == 0 && s.initial_noise == NULL && s.initial_noise_len == 0);
    CHECK_INT(s.steps, ==, 0);
    CHECK_INT(s.spacing, ==, DIFFUSION_DEFAULT);
    CHECK_NEAR(s.eta, 0, 0);
    CHECK_INT(s.variance, ==, DIFFUSION_DEFAULT);
    CHECK_INT(s.clip_sample, ==, DIFFUSION_DEFAULT);
    CHECK_INT(s.use_clipped_model_output, ==, 0);
    CHECK_INT(s.format, ==, DIFFUSION_FORMAT_F32);
    CHECK_NEAR(s.dynamic_thresholding, 0, 0);
    CHECK_INT(s.timeout_ms, ==, 0);
    CHECK(s.progress == NULL && s.user_data == NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

/* One call of every function that takes a process, right in all but the handle. */
static int32_t use_save(diffusion_process *p) {
    char path[300];
    snprintf(path, sizeof path, "%s/never", folder);
    return diffusion_save(p, path);
}
static int32_t use_export(diffusion_process *p) {
    char path[300];
    snprintf(path, sizeof path, "%s/never", folder);
    return diffusion_export(p, path, DIFFUSION_PRECISION_F16);
}
static int32_t use_destroy(diffusion_process *p) {
    return diffusion_destroy(p);
}
static int32_t use_cancel(diffusion_process *p) {
    return diffusion_cancel(p);
}
static int32_t use_get_config(diffusion_process *p) {
    return diffusion_get_config(p, &o.config);
}
static int32_t use_get_schedule(diffusion_process *p) {
    return diffusion_get_schedule(p, 0, o.table, TINY_STEPS);
}
static int32_t use_set_log(diffusion_process *p) {
    return diffusion_set_log_callback(p, NULL, NULL);
}
static int32_t use_add_noise(diffusion_process *p) {
    return diffusion_add_noise(p, images, TINY_IMAGE, timesteps, 1, 0, o.noisy, TINY_IMAGE, o.noise,
                               TINY_IMAGE);
}
static int32_t use_predict(diffusion_process *p) {
    return diffusion_predict_noise(p, images, TINY_IMAGE, timesteps, 1, o.out, TINY_IMAGE);
}
static int32_t use_sample(diffusion_process *p) {
    return diffusion_sample(p, 1, 0, o.out, TINY_IMAGE);
}
static int32_t use_sample_ddim(diffusion_process *p) {
    return diffusion_sample_ddim(p, 1, 2, 0, 0, o.out, TINY_IMAGE);
}
static int32_t use_sample_with(diffusion_process *p) {
    diffusion_sample_params params = sample_params(1, 2, 0);
    return diffusion_sample_with(p, &params, o.out, TINY_IMAGE * sizeof(float));
}
static int32_t use_sample_size(diffusion_process *p) {
    diffusion_sample_params params = sample_params(1, 2, 0);
    return diffusion_sample_size(p, &params, &o.size);
}
static int32_t use_submit(diffusion_process *p) {
    diffusion_sample_params params = sample_params(1, 2, 0);
    return diffusion_sample_submit(p, &params, &o.job);
}
static int32_t use_train(diffusion_process *p) {
    return diffusion_train_step(p, images, TINY_IMAGE, 1, &o.loss);
}
static int32_t use_step_count(diffusion_process *p) {
    return diffusion_get_step_count(p, &o.steps);
}
static int32_t use_get_rate(diffusion_process *p) {
    return diffusion_get_learning_rate(p, &o.real);
}
static int32_t use_set_rate(diffusion_process *p) {
    return diffusion_set_learning_rate(p, 1e-3);
}
static int32_t use_scale(diffusion_process *p) {
    return diffusion_get_gradient_scale(p, &o.real);
}
static int32_t use_parameter_count(diffusion_process *p) {
    return diffusion_parameter_count(p, &o.size);
}
static int32_t use_describe(diffusion_process *p) {
    return diffusion_parameter_describe(p, 0, &o.parameter);
}
static int32_t use_read(diffusion_process *p) {
    return diffusion_parameter_read(p, 0, "conv_in.weight", o.out, CONV_IN);
}
static int32_t use_write(diffusion_process *p) {
    return diffusion_parameter_write(p, 0, "conv_in.weight", conv_in, CONV_IN);
}

static const struct {
    const char *name;
    int32_t (*call)(diffusion_process *);
} process_calls[] = {
    {"step_count", use_step_count},
    {"save", use_save},
    {"export", use_export},
    {"cancel", use_cancel},
    {"get_config", use_get_config},
    {"get_schedule", use_get_schedule},
    {"set_log_callback", use_set_log},
    {"add_noise", use_add_noise},
    {"predict_noise", use_predict},
    {"sample", use_sample},
    {"sample_ddim", use_sample_ddim},
    {"sample_with", use_sample_with},
    {"sample_size", use_sample_size},
    {"sample_submit", use_submit},
    {"train_step", use_train},
    {"get_learning_rate", use_get_rate},
    {"set_learning_rate", use_set_rate},
    {"get_gradient_scale", use_scale},
    {"parameter_count", use_parameter_count},
    {"parameter_describe", use_describe},
    {"parameter_read", use_read},
    {"parameter_write", use_write},
    {"destroy", use_destroy},
};
enum { PROCESS_CALLS = sizeof process_calls / sizeof *process_calls };

static int32_t use_poll(diffusion_job *j) {
    return diffusion_job_poll(j, &o.number);
}
static int32_t use_wait(diffusion_job *j) {
    return diffusion_job_wait(j, -1);
}
static int32_t use_progress(diffusion_job *j) {
    return diffusion_job_progress(j, &o.done, &o.total);
}
static int32_t use_job_cancel(diffusion_job *j) {
    return diffusion_job_cancel(j);
}
static int32_t use_fetch(diffusion_job *j) {
    return diffusion_job_fetch(j, o.out, TINY_IMAGE * sizeof(float));
}
static int32_t use_preview(diffusion_job *j) {
    return diffusion_job_preview(j, o.out, TINY_IMAGE * sizeof(float), &o.done);
}
static int32_t use_job_destroy(diffusion_job *j) {
    return diffusion_job_destroy(j);
}

static const struct {
    const char *name;
    int32_t (*call)(diffusion_job *);
} job_calls[] = {
    {"poll", use_poll},   {"wait", use_wait},       {"progress", use_progress},   {"cancel", use_job_cancel},
    {"fetch", use_fetch}, {"preview", use_preview}, {"destroy", use_job_destroy},
};
enum { JOB_CALLS = sizeof job_calls / sizeof *job_calls };

/* One call with a handle that is none; false, and only the first such is reported, if the call did not refuse
 * it. */
static int refuse_one(const char *call, int32_t got, const char *type, const char *what, const void *handle) {
    return check_that(got == DIFFUSION_ERROR_INVALID_HANDLE, __FILE__, __LINE__, "%s with %s %p: is \"%s\"",
                      call, what, handle, diffusion_status_string(got)) &&
           check_that(strstr(diffusion_last_error_message(), type) != NULL, __FILE__, __LINE__,
                      "%s with %s: message does not name %s: %s", call, what, type,
                      diffusion_last_error_message()) &&
           check_that(memcmp(&o, &o_before, sizeof o) == 0, __FILE__, __LINE__,
                      "%s with %s %p wrote to an output", call, what, handle);
}

/*
 * The first `calls` functions of each type with a handle that is none. Stops at the first that takes it: what
 * follows would only damage what the handle was mistaken for (the last is destroy).
 */
static int refuse_handle(const void *handle, const char *what, int calls) {
    int i, good = 1;
    memcpy(&o_before, &o, sizeof o);
    for (i = 0; good && i < calls && i < PROCESS_CALLS; i++) {
        good = refuse_one(process_calls[i].name, process_calls[i].call((diffusion_process *)handle),
                          "process", what, handle);
    }
    for (i = 0; good && i < calls && i < JOB_CALLS; i++) {
        good = refuse_one(job_calls[i].name, job_calls[i].call((diffusion_job *)handle), "job", what, handle);
    }
    CHECK(alive());
    return good;
}

static void test_handles(void) {
    diffusion_config config = tiny_config();
    diffusion_process *stale, *again;
    diffusion_job *job = NULL, *old;
    diffusion_sample_params params = sample_params(1, 2, 0);
    uint64_t state = 12345, bits;
    float on_stack = 0;
    void *memory = must_alloc(4096);
    uintptr_t number;
    int i;
    SECTION("handles: NULL, random bits, addresses, stale, of the other type");
    memset(memory, 0, 4096);
    refuse_handle(NULL, "NULL", 99);
    refuse_handle(memory, "an allocation", 99);
    refuse_handle(&on_stack, "an address on the stack", 99);
    refuse_handle(&o, "a static address", 99);
    memset(memory, 0xFF, 4096);
    refuse_handle(memory, "an allocation of ones", 99);
    refuse_handle((void *)UINTPTR_MAX, "all ones", 99);
    refuse_handle((void *)(uintptr_t)INTPTR_MIN, "the sign bit", 99);
    free(memory);
    memory = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    refuse_handle(memory, "unreadable memory", 99);
    munmap(memory, 4096);
    for (number = 1; number <= 4096; number++) {
        if (number != (uintptr_t)process) {
            refuse_handle((void *)number, "a small number", number < 64 ? 99 : 1);
        }
    }
    for (i = 0; i < 4000; i++) {
        refuse_handle((void *)(uintptr_t)next_random(&state), "random bits", i < 100 ? 99 : 1);
    }
    /* The only live handle is `process`: none of its neighbours may be taken for it. */
    for (i = 0; i < 64; i++) {
        refuse_handle((void *)((uintptr_t)process ^ ((uintptr_t)1 << i)),
                      "a live handle with one bit changed", 99);
        bits = (uint64_t)(uintptr_t)process;
        bits = i == 0 ? ~bits : (bits << i) | (bits >> (64 - i));
        if (bits != (uint64_t)(uintptr_t)process) {
            refuse_handle((void *)(uintptr_t)bits, "a live handle with its bits moved", 99);
        }
    }

    stale = must_create(&config);
    OK(diffusion_destroy(stale));
    refuse_handle(stale, "a destroyed process", 99);
    for (i = 0; i < 4; i++) {
        again = must_create(&config);
        CHECK(again != stale && again != process);
        refuse_handle(stale, "a destroyed process whose place may be taken", 99);
        OK(diffusion_destroy(again));
        CHECK_STATUS(diffusion_destroy(again), DIFFUSION_ERROR_INVALID_HANDLE);
    }

    OK(diffusion_sample_submit(process, &params, &job));
    OK(diffusion_job_wait(job, -1));
    for (i = 0; i < PROCESS_CALLS; i++) {
        memcpy(&o_before, &o, sizeof o);
        check_refused(process_calls[i].call((diffusion_process *)job), DIFFUSION_ERROR_INVALID_HANDLE,
                      __FILE__, __LINE__, process_calls[i].name, "process", NULL, NULL);
    }
    for (i = 0; i < JOB_CALLS; i++) {
        memcpy(&o_before, &o, sizeof o);
        check_refused(job_calls[i].call((diffusion_job *)process), DIFFUSION_ERROR_INVALID_HANDLE, __FILE__,
                      __LINE__, job_calls[i].name, "job", NULL, NULL);
    }
    OK(diffusion_job_fetch(job, o.out, TINY_IMAGE * sizeof(float)));
    OK(diffusion_job_destroy(job));
    old = job;
    refuse_handle(old, "a destroyed job", 99);
    OK(diffusion_sample_submit(process, &params, &job));
    CHECK(job != old);
    refuse_handle(old, "a destroyed job whose place may be taken", 99);
    OK(diffusion_job_destroy(job));
    CHECK_STATUS(diffusion_job_destroy(job), DIFFUSION_ERROR_INVALID_HANDLE);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_null_pointers(void) {
    diffusion_config config = tiny_config();
    diffusion_sample_params params = sample_params(1, 2, 0);
    diffusion_job *job = NULL;
    double betas[TINY_STEPS];
    char path[300];
    size_t i;
    uint64_t seen_done = 0, seen_total = 0;
    SECTION("NULL pointers");
    for (i = 0; i < TINY_STEPS; i++) {
        betas[i] = 0.01;
    }
    snprintf(path, sizeof path, "%s/none", folder);
    REFUSED(diffusion_device_count(DIFFUSION_DEVICE_CPU, NULL), NULLED, "count", NULL, NULL);
    REFUSED(diffusion_config_init(NULL), NULLED, "config", NULL, NULL);
    REFUSED(diffusion_config_init_cifar10(NULL), NULLED, "config", NULL, NULL);
    REFUSED(diffusion_sample_params_init(NULL), NULLED, "params", NULL, NULL);
    REFUSED(diffusion_create(NULL, &o.process), NULLED, "config", NULL, NULL);
    REFUSED(diffusion_create(&config, NULL), NULLED, "process", NULL, NULL);
    REFUSED(diffusion_create_with_betas(NULL, betas, TINY_STEPS, &o.process), NULLED, "config", NULL, NULL);
    REFUSED(diffusion_create_with_betas(&config, NULL, TINY_STEPS, &o.process), NULLED, "betas", NULL, NULL);
    REFUSED(diffusion_create_with_betas(&config, betas, TINY_STEPS, NULL), NULLED, "process", NULL, NULL);
    REFUSED(diffusion_load(NULL, NULL, &o.process), NULLED, "path", NULL, NULL);
    REFUSED(diffusion_load(path, NULL, NULL), NULLED, "process", NULL, NULL);
    REFUSED(diffusion_save(process, NULL), NULLED, "path", NULL, NULL);
    REFUSED(diffusion_export(process, NULL, DIFFUSION_PRECISION_F32), NULLED, "path", NULL, NULL);
    REFUSED(diffusion_get_config(process, NULL), NULLED, "config", NULL, NULL);
    REFUSED(diffusion_get_schedule(process, DIFFUSION_TABLE_BETA, NULL, TINY_STEPS), NULLED, "out", NULL,
            NULL);
    REFUSED(diffusion_add_noise(process, NULL, TINY_IMAGE, timesteps, 1, 0, o.noisy, TINY_IMAGE, o.noise,
                                TINY_IMAGE),
            NULLED, "images", NULL, NULL);
    REFUSED(diffusion_add_noise(process, images, TINY_IMAGE, NULL, 1, 0, o.noisy, TINY_IMAGE, o.noise,
                                TINY_IMAGE),
            NULLED, "timesteps", NULL, NULL);
    REFUSED(diffusion_add_noise(process, images, TINY_IMAGE, timesteps, 1, 0, NULL, TINY_IMAGE, o.noise,
                                TINY_IMAGE),
            NULLED, "noisy", NULL, NULL);
    REFUSED(diffusion_add_noise(process, images, TINY_IMAGE, timesteps, 1, 0, o.noisy, TINY_IMAGE, NULL,
                                TINY_IMAGE),
            NULLED, "noise", NULL, NULL);
    REFUSED(diffusion_predict_noise(process, NULL, TINY_IMAGE, timesteps, 1, o.out, TINY_IMAGE), NULLED,
            "images", NULL, NULL);
    REFUSED(diffusion_predict_noise(process, images, TINY_IMAGE, NULL, 1, o.out, TINY_IMAGE), NULLED,
            "timesteps", NULL, NULL);
    REFUSED(diffusion_predict_noise(process, images, TINY_IMAGE, timesteps, 1, NULL, TINY_IMAGE), NULLED,
            "out", NULL, NULL);
    REFUSED(diffusion_sample(process, 1, 0, NULL, TINY_IMAGE), NULLED, "out", NULL, NULL);
    REFUSED(diffusion_sample_ddim(process, 1, 2, 0, 0, NULL, TINY_IMAGE), NULLED, "out", NULL, NULL);
    REFUSED(diffusion_sample_with(process, NULL, o.out, TINY_IMAGE * sizeof(float)), NULLED, "params", NULL,
            NULL);
    REFUSED(diffusion_sample_with(process, &params, NULL, TINY_IMAGE * sizeof(float)), NULLED, "out", NULL,
            NULL);
    REFUSED(diffusion_sample_size(process, NULL, &o.size), NULLED, "params", NULL, NULL);
    REFUSED(diffusion_sample_size(process, &params, NULL), NULLED, "bytes", NULL, NULL);
    REFUSED(diffusion_sample_submit(process, NULL, &o.job), NULLED, "params", NULL, NULL);
    REFUSED(diffusion_sample_submit(process, &params, NULL), NULLED, "job", NULL, NULL);
    REFUSED(diffusion_train_step(process, NULL, TINY_IMAGE, 1, &o.loss), NULLED, "images", NULL, NULL);
    REFUSED(diffusion_get_step_count(process, NULL), NULLED, "steps", NULL, NULL);
    REFUSED(diffusion_get_learning_rate(process, NULL), NULLED, "learning_rate", NULL, NULL);
    REFUSED(diffusion_get_gradient_scale(process, NULL), NULLED, "scale", NULL, NULL);
    REFUSED(diffusion_parameter_count(process, NULL), NULLED, "count", NULL, NULL);
    REFUSED(diffusion_parameter_describe(process, 0, NULL), NULLED, "parameter", NULL, NULL);
    REFUSED(diffusion_parameter_read(process, 0, NULL, o.out, CONV_IN), NULLED, "name", NULL, NULL);
    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight", NULL, CONV_IN), NULLED, "out", NULL, NULL);
    REFUSED(diffusion_parameter_write(process, 0, NULL, conv_in, CONV_IN), NULLED, "name", NULL, NULL);
    REFUSED(diffusion_parameter_write(process, 0, "conv_in.weight", NULL, CONV_IN), NULLED, "values", NULL,
            NULL);

    OK(diffusion_sample_submit(process, &params, &job));
    REFUSED(diffusion_job_poll(job, NULL), NULLED, "state", NULL, NULL);
    OK(diffusion_job_wait(job, -1));
    REFUSED(diffusion_job_fetch(job, NULL, TINY_IMAGE * sizeof(float)), NULLED, "out", NULL, NULL);
    REFUSED(diffusion_job_preview(job, NULL, TINY_IMAGE * sizeof(float), NULL), NULLED, "out", NULL, NULL);
    OK(diffusion_job_preview(job, o.out, TINY_IMAGE * sizeof(float), NULL));
    OK(diffusion_job_progress(job, NULL, NULL));
    OK(diffusion_job_progress(job, &seen_done, NULL));
    OK(diffusion_job_progress(job, NULL, &seen_total));
    CHECK_INT(seen_done, ==, seen_total);
    OK(diffusion_job_destroy(job));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

#define BAD_CONFIG(change, name, value, allowed)                                  \
    do {                                                                          \
        diffusion_config c = tiny_config();                                       \
        change;                                                                   \
        REFUSED(diffusion_create(&c, &o.process), INVALID, name, value, allowed); \
    } while (0)

static void test_config_integers(void) {
    SECTION("config: integers and enumerations");
    BAD_CONFIG(c.image_size = 0, "image_size", "0", "4096");
    BAD_CONFIG(c.image_size = -8, "image_size", "-8", "4096");
    BAD_CONFIG(c.image_size = 4098, "image_size", "4098", "4096");
    BAD_CONFIG(c.image_size = INT32_MAX, "image_size", "2147483647", "4096");
    BAD_CONFIG(c.image_size = INT32_MIN, "image_size", "-2147483648", "4096");
    BAD_CONFIG(c.image_size = 9, "image_size", "9", "2");
    BAD_CONFIG(c.image_size = 12; c.hidden_dims_len = 4; c.hidden_dims[2] = 16;
               c.hidden_dims[3] = 16, "image_size", "12", "8");
    BAD_CONFIG(c.image_size = 1, "image_size", "1", "2");
    BAD_CONFIG(c.channels = 0, "channels", "0", "64");
    BAD_CONFIG(c.channels = -3, "channels", "-3", "64");
    BAD_CONFIG(c.channels = 65, "channels", "65", "64");
    BAD_CONFIG(c.channels = INT32_MAX, "channels", "2147483647", "64");
    BAD_CONFIG(c.hidden_dims_len = 0, "hidden_dims_len", "0", "8");
    BAD_CONFIG(c.hidden_dims_len = -1, "hidden_dims_len", "-1", "8");
    BAD_CONFIG(c.hidden_dims_len = 9, "hidden_dims_len", "9", "8");
    BAD_CONFIG(c.hidden_dims_len = INT32_MAX, "hidden_dims_len", "2147483647", "8");
    BAD_CONFIG(c.hidden_dims_len = INT32_MIN, "hidden_dims_len", "-2147483648", "8");
    BAD_CONFIG(c.hidden_dims[1] = 0, "hidden_dims", "0", "8192");
    BAD_CONFIG(c.hidden_dims[0] = -8, "hidden_dims", "-8", "8192");
    BAD_CONFIG(c.hidden_dims[0] = 4, "hidden_dims", "4", "8");
    BAD_CONFIG(c.hidden_dims[1] = 20, "hidden_dims", "20", "8");
    BAD_CONFIG(c.hidden_dims[1] = 8200, "hidden_dims", "8200", "8192");
    BAD_CONFIG(c.hidden_dims[1] = INT32_MAX, "hidden_dims", "2147483647", "8192");
    BAD_CONFIG(c.hidden_dims_len = 3, "hidden_dims", "0", "8192"); /* the third entry is still 0 */
    BAD_CONFIG(c.norm_num_groups = 16, "norm_num_groups|hidden_dims", "8", "16");
    BAD_CONFIG(c.norm_num_groups = 8; c.hidden_dims[1] = 12, "norm_num_groups|hidden_dims", "12", "8");
    BAD_CONFIG(c.norm_num_groups = 3, "norm_num_groups|hidden_dims", "3", "8");
    BAD_CONFIG(c.norm_num_groups = -1, "norm_num_groups", "-1", NULL);
    BAD_CONFIG(c.norm_num_groups = INT32_MIN, "norm_num_groups", "-2147483648", NULL);
    BAD_CONFIG(c.noise_steps = 0, "noise_steps", "0", "100000");
    BAD_CONFIG(c.noise_steps = -1, "noise_steps", "-1", "100000");
    BAD_CONFIG(c.noise_steps = 100001, "noise_steps", "100001", "100000");
    BAD_CONFIG(c.noise_steps = INT32_MAX, "noise_steps", "2147483647", "100000");
    BAD_CONFIG(c.beta_schedule = -1, "beta_schedule", "-1", NULL);
    BAD_CONFIG(c.beta_schedule = 6, "beta_schedule", "6", NULL);
    BAD_CONFIG(c.beta_schedule = INT32_MAX, "beta_schedule", "2147483647", NULL);
    BAD_CONFIG(c.beta_schedule = DIFFUSION_SCHEDULE_GIVEN, "beta_schedule", NULL, NULL);
    BAD_CONFIG(c.prediction_type = -1, "prediction_type", "-1", NULL);
    BAD_CONFIG(c.prediction_type = 3, "prediction_type", "3", NULL);
    BAD_CONFIG(c.rescale_betas_zero_snr = 1, "rescale_betas_zero_snr|prediction_type", NULL, NULL);
    BAD_CONFIG(c.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
               c.rescale_betas_zero_snr = 2, "rescale_betas_zero_snr", "2", "1");
    BAD_CONFIG(c.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
               c.rescale_betas_zero_snr = -1, "rescale_betas_zero_snr", "-1", "1");
    BAD_CONFIG(c.device = -1, "device", "-1", NULL);
    BAD_CONFIG(c.device = 3, "device", "3", NULL);
    BAD_CONFIG(c.device = INT32_MIN, "device", "-2147483648", NULL);
    BAD_CONFIG(c.device_index = -1, "device_index", "-1", "1023");
    BAD_CONFIG(c.device_index = 1024, "device_index", "1024", "1023");
    BAD_CONFIG(c.device_index = INT32_MAX, "device_index", "2147483647", "1023");
    BAD_CONFIG(c.num_threads = -1, "num_threads", "-1", "1024");
    BAD_CONFIG(c.num_threads = 1025, "num_threads", "1025", "1024");
    BAD_CONFIG(c.max_batch = -1, "max_batch", "-1", "65536");
    BAD_CONFIG(c.max_batch = 65537, "max_batch", "65537", "65536");
    BAD_CONFIG(c.layers_per_block = 0, "layers_per_block", "0", "8");
    BAD_CONFIG(c.layers_per_block = 9, "layers_per_block", "9", "8");
    BAD_CONFIG(c.layers_per_block = -1, "layers_per_block", "-1", "8");
    BAD_CONFIG(c.attention_levels = -2, "attention_levels", "-2", NULL);
    BAD_CONFIG(c.attention_levels = 4, "attention_levels", "4", NULL);
    BAD_CONFIG(c.attention_levels = INT32_MAX, "attention_levels", "2147483647", NULL);
    BAD_CONFIG(c.attention_head_dim = -1, "attention_head_dim", "-1", NULL);
    BAD_CONFIG(c.attention_head_dim = 5, "attention_head_dim", "5", "8");
    BAD_CONFIG(c.attention_head_dim = 5; c.attention_levels = 2, "attention_head_dim", "5", "16");
    BAD_CONFIG(c.attention_head_dim = 32; c.attention_levels = 2, "attention_head_dim", "32", "16");
    BAD_CONFIG(c.attention_head_dim = 5;
               c.attention_levels = 0, "attention_head_dim", "5", "16"); /* the middle's */
    BAD_CONFIG(c.attention_head_dim = 16; c.attention_levels = 1, "attention_head_dim", "16", "8");
    BAD_CONFIG(c.optimizer = -1, "optimizer", "-1", NULL);
    BAD_CONFIG(c.optimizer = 2, "optimizer", "2", NULL);
    BAD_CONFIG(c.mixed_precision = -1, "mixed_precision", "-1", NULL);
    BAD_CONFIG(c.mixed_precision = 3, "mixed_precision", "3", NULL);
    BAD_CONFIG(c.device = DIFFUSION_DEVICE_CPU;
               c.mixed_precision = DIFFUSION_PRECISION_F16, "mixed_precision", NULL, "CUDA");
    BAD_CONFIG(c.inference_precision = -1, "inference_precision", "-1", NULL);
    BAD_CONFIG(c.inference_precision = 4, "inference_precision", "4", NULL);
    BAD_CONFIG(c.device = DIFFUSION_DEVICE_CPU;
               c.inference_precision = DIFFUSION_PRECISION_F16, "inference_precision", NULL, "CUDA");
    BAD_CONFIG(c.deterministic = 2, "deterministic", "2", NULL);
}

/* Entries of hidden_dims that are not used may hold anything; read back they are 0. */
static void test_unused_entries(void) {
    diffusion_config config = tiny_config();
    int i;
    SECTION("config: unused hidden_dims");
    for (i = 2; i < DIFFUSION_MAX_LEVELS; i++) {
        config.hidden_dims[i] = -7 * i;
    }
    OK(diffusion_create(&config, &o.process));
    config.struct_size = sizeof config;
    OK(diffusion_get_config(o.process, &config));
    CHECK_INT(config.hidden_dims_len, ==, 2);
    for (i = 2; i < DIFFUSION_MAX_LEVELS; i++) {
        CHECK_INT(config.hidden_dims[i], ==, 0);
    }
    OK(diffusion_destroy(o.process));
}

static void test_config_reals(void) {
    /* Every double of the config, where it lies, what 0 and 1 are to it, and a bound that the message must
     * state. */
    static const struct {
        const char *name;
        size_t offset;
        int zero_good, one_good;
    } reals[] = {
        {"beta_start", offsetof(diffusion_config, beta_start), 0, 0},
        {"beta_end", offsetof(diffusion_config, beta_end), 0, 0},
        {"dropout", offsetof(diffusion_config, dropout), 1, 0},
        {"learning_rate", offsetof(diffusion_config, learning_rate), 0, 1},
        {"adam_beta1", offsetof(diffusion_config, adam_beta1), 1, 0},
        {"adam_beta2", offsetof(diffusion_config, adam_beta2), 1, 0},
        {"adam_epsilon", offsetof(diffusion_config, adam_epsilon), 0, 1},
        {"weight_decay", offsetof(diffusion_config, weight_decay), 1, 1},
        {"gradient_clip", offsetof(diffusion_config, gradient_clip), 1, 1},
        {"ema_decay", offsetof(diffusion_config, ema_decay), 1, 0},
    };
    size_t i;
    SECTION("config: real numbers");
    for (i = 0; i < sizeof reals / sizeof *reals; i++) {
#define SET(to) *(double *)((char *)&c + reals[i].offset) = (to)
        BAD_CONFIG(SET(NAN), reals[i].name, NULL, NULL);
        BAD_CONFIG(SET(-NAN), reals[i].name, NULL, NULL);
        BAD_CONFIG(SET(INFINITY), reals[i].name, "inf", NULL);
        BAD_CONFIG(SET(-INFINITY), reals[i].name, "-inf", NULL);
        BAD_CONFIG(SET(-0.25), reals[i].name, "-0.25", NULL);
        BAD_CONFIG(SET(-1e300), reals[i].name, NULL, NULL);
        if (!reals[i].zero_good) {
            BAD_CONFIG(SET(0.0), reals[i].name, "0", NULL);
            BAD_CONFIG(SET(-0.0), reals[i].name, NULL, NULL);
        }
        if (!reals[i].one_good) {
            BAD_CONFIG(SET(1.0), reals[i].name, "1", NULL);
            BAD_CONFIG(SET(1.5), reals[i].name, "1.5", NULL);
        }
#undef SET
    }
    BAD_CONFIG(c.beta_start = 0.25; c.beta_end = 0.25, "beta_start|beta_end", "0.25", NULL);
    BAD_CONFIG(c.beta_start = 0.5; c.beta_end = 0.25, "beta_start|beta_end", "0.5", "0.25");
    BAD_CONFIG(c.beta_schedule = DIFFUSION_SCHEDULE_LINEAR; c.beta_start = 0.02;
               c.beta_end = 1e-4, "beta_start|beta_end", "0.02", "0.0001");
}

static void test_betas(void) {
    diffusion_config config = tiny_config();
    static const double wrong[] = {0.0, -0.1, 1.0000001, 2.0, NAN, INFINITY, -INFINITY};
    double *betas = must_guard(TINY_STEPS * sizeof(double));
    size_t i, at;
    SECTION("betas");
    for (i = 0; i < TINY_STEPS; i++) {
        betas[i] = 0.02;
    }
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        for (at = 0; at < TINY_STEPS; at += TINY_STEPS - 1) {
            betas[at] = wrong[i];
            REFUSED(diffusion_create_with_betas(&config, betas, TINY_STEPS, &o.process), INVALID, "betas",
                    at == 0 ? NULL : "49", "1");
            betas[at] = 0.02;
        }
    }
    REFUSED(diffusion_create_with_betas(&config, betas, TINY_STEPS - 1, &o.process), SIZED, "betas", "49",
            "50");
    REFUSED(diffusion_create_with_betas(&config, betas, 0, &o.process), SIZED, "betas", "0", "50");
    REFUSED_EITHER(diffusion_create_with_betas(&config, betas, SIZE_MAX, &o.process), SIZED, INVALID, "betas",
                   NULL, "50");
    REFUSED_EITHER(diffusion_create_with_betas(&config, betas, SIZE_MAX / 8 + 1, &o.process), SIZED, INVALID,
                   "betas", NULL, "50");
    config.noise_steps = 0;
    REFUSED(diffusion_create_with_betas(&config, betas, 0, &o.process), INVALID, "noise_steps", "0",
            "100000");
    config = tiny_config();
    config.channels = 0;
    REFUSED(diffusion_create_with_betas(&config, betas, TINY_STEPS, &o.process), INVALID, "channels", "0",
            "64");
    config = tiny_config();
    config.beta_start = NAN; /* the header: ignored */
    config.beta_end = -3;
    config.beta_schedule = 99;
    betas[TINY_STEPS - 1] = 1.0;
    OK(diffusion_create_with_betas(&config, betas, TINY_STEPS, &o.process));
    OK(diffusion_destroy(o.process));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_struct_sizes(void) {
    static const uint32_t wrong[] = {0, 1, 3, 4, 7, 8};
    struct {
        diffusion_config config;
        unsigned char tail[64];
    } large;
    struct {
        diffusion_sample_params params;
        unsigned char tail[64];
    } large_params;
    struct {
        diffusion_parameter parameter;
        unsigned char tail[64];
    } large_parameter;
    /* What the library says is readable ends where the page does: one byte more is a crash. */
    diffusion_config *edge = must_guard(sizeof(diffusion_config));
    diffusion_sample_params *edge_params = must_guard(sizeof(diffusion_sample_params));
    diffusion_config read_back;
    char *garbage = must_alloc(1 << 16);
    size_t i;
    SECTION("struct_size");
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char value[16];
        snprintf(value, sizeof value, "%u", (unsigned)wrong[i]);
        BAD_CONFIG(c.struct_size = wrong[i], "struct_size", value, NULL);
        o.config.struct_size = wrong[i];
        REFUSED(diffusion_get_config(process, &o.config), INVALID, "struct_size", value, NULL);
        o.parameter.struct_size = wrong[i];
        REFUSED(diffusion_parameter_describe(process, 0, &o.parameter), INVALID, "struct_size", value, NULL);
        o.params = sample_params(1, 2, 0);
        o.params.struct_size = wrong[i];
        REFUSED(diffusion_sample_with(process, &o.params, o.out, TINY_IMAGE * sizeof(float)), INVALID,
                "struct_size", value, NULL);
        REFUSED(diffusion_sample_submit(process, &o.params, &o.job), INVALID, "struct_size", value, NULL);
        REFUSED(diffusion_sample_size(process, &o.params, &o.size), INVALID, "struct_size", value, NULL);
    }
    *edge = tiny_config();
    OK(diffusion_create(edge, &o.process));
    OK(diffusion_get_config(process, edge));
    OK(diffusion_destroy(o.process));
    *edge_params = sample_params(1, 2, 0);
    OK(diffusion_sample_with(process, edge_params, o.out, TINY_IMAGE * sizeof(float)));

    memset(&large, 0, sizeof large);
    large.config = tiny_config();
    large.config.struct_size = sizeof large;
    OK(diffusion_create(&large.config, &o.process));
    OK(diffusion_destroy(o.process));
    for (i = 0; i < sizeof large.tail; i += 21) {
        large.tail[i] = 1;
        REFUSED(diffusion_create(&large.config, &o.process), INVALID, "struct_size|config", NULL, NULL);
        large.tail[i] = 0;
    }
    memset(&large_params, 0, sizeof large_params);
    large_params.params = sample_params(1, 2, 0);
    large_params.params.struct_size = sizeof large_params;
    OK(diffusion_sample_with(process, &large_params.params, o.out, TINY_IMAGE * sizeof(float)));
    large_params.tail[63] = 0x80;
    REFUSED(diffusion_sample_with(process, &large_params.params, o.out, TINY_IMAGE * sizeof(float)), INVALID,
            "struct_size|params", NULL, NULL);
    REFUSED(diffusion_sample_submit(process, &large_params.params, &o.job), INVALID, "struct_size|params",
            NULL, NULL);

    /* Structs that the library fills: a caller from the future gets what this library has. */
    memset(&large, 0, sizeof large);
    large.config.struct_size = sizeof large;
    OK(diffusion_get_config(process, &large.config));
    CHECK_INT(large.config.image_size, ==, TINY_SIZE);
    for (i = 0; i < sizeof large.tail; i++) {
        CHECK_INT(large.tail[i], ==, 0);
    }
    memset(&large_parameter, 0, sizeof large_parameter);
    large_parameter.parameter.struct_size = sizeof large_parameter;
    OK(diffusion_parameter_describe(process, 0, &large_parameter.parameter));
    CHECK(strcmp(large_parameter.parameter.name, "conv_in.weight") == 0);
    for (i = 0; i < sizeof large_parameter.tail; i++) {
        CHECK_INT(large_parameter.tail[i], ==, 0);
    }

    /* One field short of today's struct: honoured or refused, but never written past. */
    memset(&read_back, 0xA5, sizeof read_back);
    read_back.struct_size = offsetof(diffusion_config, ema_decay);
    if (diffusion_get_config(process, &read_back) == DIFFUSION_OK) {
        CHECK_INT(read_back.image_size, ==, TINY_SIZE);
    } else {
        check_message(__FILE__, __LINE__, "get_config", "struct_size", NULL, NULL);
    }
    for (i = offsetof(diffusion_config, ema_decay); i < sizeof read_back; i++) {
        CHECK_INT(((unsigned char *)&read_back)[i], ==, 0xA5);
    }

    /* A struct that nobody initialised: the size is as random as the rest. */
    memset(garbage, 0xA5, 1 << 16);
    REFUSED(diffusion_create((diffusion_config *)(void *)garbage, &o.process), INVALID, "struct_size", NULL,
            NULL);
    memset(garbage, 0xFF, 1 << 16);
    REFUSED(diffusion_create((diffusion_config *)(void *)garbage, &o.process), INVALID, "struct_size", NULL,
            NULL);
    REFUSED(diffusion_sample_with(process, (diffusion_sample_params *)(void *)garbage, o.out,
                                  TINY_IMAGE * sizeof(float)),
            INVALID, "struct_size", NULL, NULL);
    free(garbage);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_buffers(void) {
    /* Batches whose number of floats or bytes wraps around to something that looks right, or does not fit at
     * all. */
    static const size_t huge[] = {SIZE_MAX,
                                  SIZE_MAX / 2,
                                  SIZE_MAX / 4,
                                  SIZE_MAX / TINY_IMAGE,
                                  SIZE_MAX / TINY_IMAGE + 1,
                                  SIZE_MAX / TINY_IMAGE / 4 + 1,
                                  (size_t)1 << 63,
                                  (size_t)1 << 58,
                                  (size_t)1 << 56,
                                  (size_t)1 << 55};
    static const size_t near[] = {
        0, 1, TINY_IMAGE - 1, TINY_IMAGE + 1, 2 * TINY_IMAGE, SIZE_MAX, SIZE_MAX / 4 + 1};
    diffusion_sample_params params = sample_params(1, 2, 0);
    diffusion_job *job = NULL;
    char value[32];
    size_t i, n = TINY_IMAGE;
    SECTION("buffers too short and too long, sizes that overflow");
    for (i = 0; i < sizeof near / sizeof *near; i++) {
        size_t len = near[i], bytes = n * sizeof(float);
        snprintf(value, sizeof value, "%zu", len);
        REFUSED(diffusion_add_noise(process, images, len, timesteps, 1, 0, o.noisy, n, o.noise, n), SIZED,
                "images", value, "192");
        REFUSED(diffusion_add_noise(process, images, n, timesteps, 1, 0, o.noisy, len, o.noise, n), SIZED,
                "noisy", value, "192");
        REFUSED(diffusion_add_noise(process, images, n, timesteps, 1, 0, o.noisy, n, o.noise, len), SIZED,
                "noise", value, "192");
        REFUSED(diffusion_predict_noise(process, images, len, timesteps, 1, o.out, n), SIZED, "len", value,
                "192");
        REFUSED(diffusion_predict_noise(process, images, n, timesteps, 1, o.out, len), SIZED, "out", value,
                "192");
        REFUSED(diffusion_sample(process, 1, 0, o.out, len), SIZED, "out", value, "192");
        REFUSED(diffusion_sample_ddim(process, 1, 2, 0, 0, o.out, len), SIZED, "out", value, "192");
        REFUSED(diffusion_train_step(process, images, len, 1, &o.loss), SIZED, "images", value, "192");
        if (len != bytes) {
            REFUSED(diffusion_sample_with(process, &params, o.out, len), SIZED, "out", value, "768");
        }
    }
    REFUSED(diffusion_sample_with(process, &params, o.out, n * sizeof(float) - 1), SIZED, "out", "767",
            "768");
    REFUSED(diffusion_sample_with(process, &params, o.out, n * sizeof(float) + 1), SIZED, "out", "769",
            "768");
    params.format = DIFFUSION_FORMAT_RGBA8;
    REFUSED(diffusion_sample_with(process, &params, o.out, n * sizeof(float)), SIZED, "out", "768", "256");
    params.format = DIFFUSION_FORMAT_F32;

    REFUSED(diffusion_add_noise(process, images, 0, timesteps, 0, 0, o.noisy, 0, o.noise, 0), INVALID,
            "batch", "0", NULL);
    REFUSED(diffusion_predict_noise(process, images, 0, timesteps, 0, o.out, 0), INVALID, "batch", "0", NULL);
    REFUSED(diffusion_train_step(process, images, 0, 0, &o.loss), INVALID, "batch", "0", NULL);
    REFUSED(diffusion_sample(process, 0, 0, o.out, 0), INVALID, "num_samples", "0", "1048576");
    REFUSED(diffusion_sample_ddim(process, 0, 2, 0, 0, o.out, 0), INVALID, "num_samples", "0", "1048576");
    for (i = 0; i < sizeof huge / sizeof *huge; i++) {
        size_t batch = huge[i], product = batch * n; /* wraps around, as a careless multiplication would */
        snprintf(value, sizeof value, "%zu", batch);
        REFUSED_EITHER(diffusion_add_noise(process, images, product, timesteps, batch, 0, o.noisy, product,
                                           o.noise, product),
                       INVALID, SIZED, "batch", value, NULL);
        REFUSED_EITHER(diffusion_predict_noise(process, images, product, timesteps, batch, o.out, product),
                       INVALID, SIZED, "batch", value, NULL);
        REFUSED_EITHER(diffusion_train_step(process, images, product, batch, &o.loss), INVALID, SIZED,
                       "batch", value, NULL);
        REFUSED(diffusion_sample(process, batch, 0, o.out, product), INVALID, "num_samples", value,
                "1048576");
        REFUSED(diffusion_sample_ddim(process, batch, 2, 0, 0, o.out, product), INVALID, "num_samples", value,
                "1048576");
        params.num_samples = batch;
        REFUSED(diffusion_sample_with(process, &params, o.out, product * sizeof(float)), INVALID,
                "num_samples", value, "1048576");
        REFUSED(diffusion_sample_submit(process, &params, &o.job), INVALID, "num_samples", value, "1048576");
        REFUSED(diffusion_sample_size(process, &params, &o.size), INVALID, "num_samples", value, "1048576");
    }
    REFUSED(diffusion_sample(process, 1048577, 0, o.out, (size_t)1048577 * n), INVALID, "num_samples",
            "1048577", "1048576");

    REFUSED(diffusion_get_schedule(process, 0, o.table, TINY_STEPS - 1), SIZED, "out", "49", "50");
    REFUSED(diffusion_get_schedule(process, 0, o.table, TINY_STEPS + 1), SIZED, "out", "51", "50");
    REFUSED(diffusion_get_schedule(process, 0, o.table, 0), SIZED, "out", "0", "50");
    REFUSED(diffusion_get_schedule(process, 0, o.table, SIZE_MAX), SIZED, "out", NULL, "50");
    REFUSED(diffusion_get_schedule(process, -1, o.table, TINY_STEPS), INVALID, "which_table", "-1", NULL);
    REFUSED(diffusion_get_schedule(process, 5, o.table, TINY_STEPS), INVALID, "which_table", "5", NULL);
    REFUSED(diffusion_get_schedule(process, INT32_MAX, o.table, TINY_STEPS), INVALID, "which_table",
            "2147483647", NULL);

    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight", o.out, CONV_IN - 1), SIZED, "out", "215",
            "216");
    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight", o.out, CONV_IN + 1), SIZED, "out", "217",
            "216");
    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight", o.out, 0), SIZED, "out", "0", "216");
    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight", o.out, SIZE_MAX), SIZED, "out", NULL,
            "216");
    REFUSED(diffusion_parameter_write(process, 0, "conv_in.weight", conv_in, CONV_IN - 1), SIZED, "values",
            "215", "216");
    REFUSED(diffusion_parameter_write(process, 0, "conv_in.weight", conv_in, CONV_IN + 1), SIZED, "values",
            "217", "216");
    REFUSED(diffusion_parameter_write(process, 1, "conv_in.weight", conv_in, SIZE_MAX / 4 + 1), SIZED,
            "values", NULL, "216");

    params = sample_params(1, 2, 0);
    OK(diffusion_sample_submit(process, &params, &job));
    OK(diffusion_job_wait(job, -1));
    REFUSED(diffusion_job_fetch(job, o.out, 767), SIZED, "bytes", "767", "768");
    REFUSED(diffusion_job_preview(job, o.out, 767, NULL), SIZED, "bytes", "767", "768");
    REFUSED(diffusion_job_fetch(job, o.out, 769), SIZED, "bytes", "769", "768");
    REFUSED(diffusion_job_fetch(job, o.out, 0), SIZED, "bytes", "0", "768");
    REFUSED(diffusion_job_fetch(job, o.out, SIZE_MAX), SIZED, "bytes", NULL, "768");
    OK(diffusion_job_fetch(job, o.out, 768));
    OK(diffusion_job_destroy(job));
}

static void test_values(void) {
    static const float broken[] = {NAN, -NAN, INFINITY, -INFINITY};
    static const size_t places[] = {0, 1, TINY_IMAGE / 2, TINY_IMAGE, 2 * TINY_IMAGE - 1};
    static const int64_t wrong_times[] = {-1,        TINY_STEPS, TINY_STEPS + 1,
                                          INT64_MAX, INT64_MIN,  INT64_C(1) << 32};
    static const int32_t wrong_steps[] = {0, -1, TINY_STEPS + 1, INT32_MAX, INT32_MIN};
    static const double wrong_rates[] = {0.0, -1e-4, NAN, INFINITY, -INFINITY};
    float *values = must_guard(CONV_IN * sizeof(float));
    char value[32], name[400];
    double rate = 0;
    size_t i, j, n = 2 * TINY_IMAGE;
    diffusion_sample_params params;
    SECTION("NaN and infinity, timesteps, steps, eta, names");
    for (i = 0; i < sizeof broken / sizeof *broken; i++) {
        for (j = 0; j < sizeof places / sizeof *places; j++) {
            float saved = images[places[j]];
            images[places[j]] = broken[i];
            REFUSED(diffusion_add_noise(process, images, n, timesteps, 2, 0, o.noisy, n, o.noise, n),
                    DIFFUSION_ERROR_NON_FINITE, "images", NULL, NULL);
            REFUSED(diffusion_predict_noise(process, images, n, timesteps, 2, o.out, n),
                    DIFFUSION_ERROR_NON_FINITE, "images", NULL, NULL);
            REFUSED(diffusion_train_step(process, images, n, 2, &o.loss), DIFFUSION_ERROR_NON_FINITE,
                    "images", NULL, NULL);
            REFUSED(diffusion_train_step(process, images, n, 2, NULL), DIFFUSION_ERROR_NON_FINITE, "images",
                    NULL, NULL);
            params = sample_params(2, 2, 0);
            params.initial_noise = images;
            params.initial_noise_len = n;
            REFUSED(diffusion_sample_with(process, &params, o.out, n * sizeof(float)),
                    DIFFUSION_ERROR_NON_FINITE, "initial_noise", NULL, NULL);
            REFUSED(diffusion_sample_submit(process, &params, &o.job), DIFFUSION_ERROR_NON_FINITE,
                    "initial_noise", NULL, NULL);
            images[places[j]] = saved;
        }
        memcpy(values, conv_in, CONV_IN * sizeof(float));
        values[i * 71] = broken[i];
        REFUSED(diffusion_parameter_write(process, 0, "conv_in.weight", values, CONV_IN),
                DIFFUSION_ERROR_NON_FINITE, "values", NULL, NULL);
    }
    OK(diffusion_parameter_read(process, 0, "conv_in.weight", values, CONV_IN));
    CHECK(same_bits(values, conv_in, CONV_IN * sizeof(float)));

    for (i = 0; i < sizeof wrong_times / sizeof *wrong_times; i++) {
        int64_t saved = timesteps[i % 2];
        snprintf(value, sizeof value, "%lld", (long long)wrong_times[i]);
        timesteps[i % 2] = wrong_times[i];
        REFUSED(diffusion_add_noise(process, images, n, timesteps, 2, 0, o.noisy, n, o.noise, n), INVALID,
                "timesteps", value, "50");
        REFUSED(diffusion_predict_noise(process, images, n, timesteps, 2, o.out, n), INVALID, "timesteps",
                value, "50");
        timesteps[i % 2] = saved;
    }
    for (i = 0; i < sizeof wrong_steps / sizeof *wrong_steps; i++) {
        snprintf(value, sizeof value, "%d", (int)wrong_steps[i]);
        REFUSED(diffusion_sample_ddim(process, 1, wrong_steps[i], 0, 0, o.out, TINY_IMAGE), INVALID,
                "ddim_steps", value, "50");
        params = sample_params(1, wrong_steps[i], 0);
        if (wrong_steps[i] != 0) {
            params.method = i % 2 == 0 ? DIFFUSION_METHOD_DDIM : DIFFUSION_METHOD_HEUN;
            snprintf(value, sizeof value, "steps is %d", (int)wrong_steps[i]);
            REFUSED(diffusion_sample_with(process, &params, o.out, TINY_IMAGE * 4), INVALID, "steps", value,
                    "50");
            CHECK(strncmp(diffusion_last_error_message(), value, strlen(value)) == 0);
        }
    }
    REFUSED(diffusion_sample_ddim(process, 1, 2, -0.5f, 0, o.out, TINY_IMAGE), INVALID, "eta", "-0.5", "1");
    REFUSED(diffusion_sample_ddim(process, 1, 2, 1.5f, 0, o.out, TINY_IMAGE), INVALID, "eta", "1.5", "1");
    REFUSED(diffusion_sample_ddim(process, 1, 2, NAN, 0, o.out, TINY_IMAGE), INVALID, "eta", NULL, "1");
    REFUSED(diffusion_sample_ddim(process, 1, 2, INFINITY, 0, o.out, TINY_IMAGE), INVALID, "eta", "inf", "1");

    for (i = 0; i < sizeof wrong_rates / sizeof *wrong_rates; i++) {
        REFUSED(diffusion_set_learning_rate(process, wrong_rates[i]), INVALID, "learning_rate", NULL, "0");
    }
    OK(diffusion_get_learning_rate(process, &rate));
    CHECK_NEAR(rate, 1e-4, 0);

    REFUSED(diffusion_parameter_read(process, 2, "conv_in.weight", o.out, CONV_IN), INVALID, "weights", "2",
            NULL);
    REFUSED(diffusion_parameter_read(process, -1, "conv_in.weight", o.out, CONV_IN), INVALID, "weights", "-1",
            NULL);
    REFUSED(diffusion_parameter_write(process, INT32_MIN, "conv_in.weight", conv_in, CONV_IN), INVALID,
            "weights", "-2147483648", NULL);
    REFUSED(diffusion_parameter_read(process, 0, "no.such.tensor", o.out, CONV_IN), INVALID, "name", NULL,
            "no.such.tensor");
    REFUSED(diffusion_parameter_write(process, 0, "conv_in.weigh", conv_in, CONV_IN), INVALID, "name", NULL,
            "conv_in.weigh");
    REFUSED(diffusion_parameter_read(process, 0, "", o.out, CONV_IN), INVALID, "name", NULL, NULL);
    REFUSED(diffusion_parameter_read(process, 0, "conv_in.weight\xFF\xFE", o.out, CONV_IN), INVALID, "name",
            NULL, NULL);
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    REFUSED(diffusion_parameter_read(process, 0, name, o.out, CONV_IN), INVALID, "name", NULL, NULL);
    REFUSED(diffusion_parameter_read(process, 0, "line\nbreak", o.out, CONV_IN), INVALID, "name", NULL, NULL);
    OK(diffusion_parameter_count(process, &i));
    o.parameter.struct_size = sizeof o.parameter;
    snprintf(value, sizeof value, "%zu", i);
    REFUSED(diffusion_parameter_describe(process, i, &o.parameter), INVALID, "index", value, NULL);
    REFUSED(diffusion_parameter_describe(process, SIZE_MAX, &o.parameter), INVALID, "index", NULL, value);

    REFUSED(diffusion_device_count(DIFFUSION_DEVICE_AUTO, &o.number), INVALID, "device", "0", NULL);
    REFUSED(diffusion_device_count(-1, &o.number), INVALID, "device", "-1", NULL);
    REFUSED(diffusion_device_count(3, &o.number), INVALID, "device", "3", NULL);
    OK(diffusion_device_count(DIFFUSION_DEVICE_CPU, &o.number));
    CHECK_INT(o.number, ==, 1);
}

#define BAD_PARAMS(change, status, name, value, allowed)                                                 \
    do {                                                                                                 \
        diffusion_sample_params s = sample_params(2, 2, 0);                                              \
        change;                                                                                          \
        REFUSED(diffusion_sample_with(process, &s, o.out, 2 * TINY_IMAGE * sizeof(float)), status, name, \
                value, allowed);                                                                         \
        REFUSED(diffusion_sample_submit(process, &s, &o.job), status, name, value, allowed);             \
    } while (0)

static void test_params(void) {
    static const uint64_t seeds[3] = {1, 2, 3};
    diffusion_config config = tiny_config();
    diffusion_process *two_channels;
    diffusion_sample_params s = sample_params(2, 2, 0);
    SECTION("sampling parameters");
    BAD_PARAMS(s.method = -1, INVALID, "method", "-1", NULL);
    BAD_PARAMS(s.method = 7, INVALID, "method", "7", NULL);
    BAD_PARAMS(s.method = INT32_MAX, INVALID, "method", "2147483647", NULL);
    BAD_PARAMS(s.num_samples = 0, INVALID, "num_samples", "0", "1048576");
    BAD_PARAMS(s.num_samples = 1048577, INVALID, "num_samples", "1048577", "1048576");
    BAD_PARAMS(s.seeds = seeds; s.seeds_len = 1, SIZED, "seeds", "1", "2");
    BAD_PARAMS(s.seeds = seeds; s.seeds_len = 3, SIZED, "seeds", "3", "2");
    BAD_PARAMS(s.seeds = seeds; s.seeds_len = SIZE_MAX / 8 + 1, SIZED, "seeds", NULL, "2");
    BAD_PARAMS(s.seeds_len = 2, NULLED, "seeds", NULL, NULL);
    BAD_PARAMS(s.initial_noise = images;
               s.initial_noise_len = 2 * TINY_IMAGE - 1, SIZED, "initial_noise", "383", "384");
    BAD_PARAMS(s.initial_noise = images;
               s.initial_noise_len = 2 * TINY_IMAGE + 1, SIZED, "initial_noise", "385", "384");
    BAD_PARAMS(s.initial_noise = images;
               s.initial_noise_len = TINY_IMAGE, SIZED, "initial_noise", "192", "384");
    BAD_PARAMS(s.initial_noise = images; s.initial_noise_len = SIZE_MAX, SIZED, "initial_noise", NULL, "384");
    BAD_PARAMS(s.initial_noise_len = 2 * TINY_IMAGE, NULLED, "initial_noise", NULL, NULL);
    BAD_PARAMS(s.steps = -1, INVALID, "steps", "-1", "50");
    BAD_PARAMS(s.steps = 51, INVALID, "steps", "51", "50");
    BAD_PARAMS(s.spacing = -2, INVALID, "spacing", "-2", NULL);
    BAD_PARAMS(s.spacing = 4, INVALID, "spacing", "4", NULL);
    BAD_PARAMS(s.eta = -0.25, INVALID, "eta", "-0.25", "1");
    BAD_PARAMS(s.eta = 1.25, INVALID, "eta", "1.25", "1");
    BAD_PARAMS(s.eta = NAN, INVALID, "eta", NULL, "1");
    BAD_PARAMS(s.eta = INFINITY, INVALID, "eta", "inf", "1");
    BAD_PARAMS(s.variance = -2, INVALID, "variance", "-2", NULL);
    BAD_PARAMS(s.variance = 2, INVALID, "variance", "2", NULL);
    BAD_PARAMS(s.clip_sample = -2, INVALID, "clip_sample", "-2", NULL);
    BAD_PARAMS(s.clip_sample = 2, INVALID, "clip_sample", "2", NULL);
    BAD_PARAMS(s.use_clipped_model_output = -1, INVALID, "use_clipped_model_output", "-1", NULL);
    BAD_PARAMS(s.use_clipped_model_output = 2, INVALID, "use_clipped_model_output", "2", NULL);
    BAD_PARAMS(s.format = -1, INVALID, "format", "-1", NULL);
    BAD_PARAMS(s.format = 4, INVALID, "format", "4", NULL);
    BAD_PARAMS(s.dynamic_thresholding = -0.5, INVALID, "dynamic_thresholding", "-0.5", NULL);
    BAD_PARAMS(s.dynamic_thresholding = 1.0, INVALID, "dynamic_thresholding", "1", NULL);
    BAD_PARAMS(s.dynamic_thresholding = NAN, INVALID, "dynamic_thresholding", NULL, NULL);
    BAD_PARAMS(s.timeout_ms = -1, INVALID, "timeout_ms", "-1", NULL);
    BAD_PARAMS(s.timeout_ms = INT64_MIN, INVALID, "timeout_ms", NULL, NULL);
    s.timeout_ms = INT64_MAX; /* never, in practice: no arithmetic on it may overflow */
    OK(diffusion_sample_with(process, &s, o.out, 2 * TINY_IMAGE * sizeof(float)));

    config.channels = 2;
    two_channels = must_create(&config);
    s = sample_params(1, 2, 0);
    s.format = DIFFUSION_FORMAT_RGB8;
    REFUSED(diffusion_sample_size(two_channels, &s, &o.size), INVALID, "format", NULL, NULL);
    REFUSED(diffusion_sample_with(two_channels, &s, o.bytes, 8 * 8 * 3), INVALID, "format", NULL, NULL);
    s.format = DIFFUSION_FORMAT_RGBA8;
    REFUSED(diffusion_sample_submit(two_channels, &s, &o.job), INVALID, "format", NULL, NULL);
    s.format = DIFFUSION_FORMAT_F16;
    OK(diffusion_sample_size(two_channels, &s, &o.size));
    CHECK_INT(o.size, ==, 2 * 8 * 8 * 2);
    OK(diffusion_destroy(two_channels));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static int32_t stop_at_once(uint64_t done, uint64_t total, void *user) {
    (void)done, (void)total, (void)user;
    return 1;
}

static void test_devices_and_ends(void) {
    diffusion_config config = tiny_config();
    diffusion_sample_params params;
    diffusion_process *broken;
    float bias[TINY_CHANNELS] = {1e38f, -1e38f, 1e38f}, *scale = must_alloc(8 * sizeof(float));
    float *before = must_alloc(CONV_IN * 4), *after = must_alloc(CONV_IN * 4);
    int32_t cuda = -1;
    uint64_t steps = 99;
    size_t i, n = 64;
    SECTION("devices; cancelled, out of time, not finite");
    OK(diffusion_device_count(DIFFUSION_DEVICE_CUDA, &cuda));
    CHECK_INT(cuda, >=, 0);
    config.device = DIFFUSION_DEVICE_CUDA;
    config.device_index = cuda;
    REFUSED(diffusion_create(&config, &o.process), DIFFUSION_ERROR_DEVICE_UNAVAILABLE, "device", NULL, NULL);
    config.device_index = 1023;
    REFUSED(diffusion_create(&config, &o.process), DIFFUSION_ERROR_DEVICE_UNAVAILABLE, "device", NULL, NULL);
    config.device = DIFFUSION_DEVICE_AUTO;
    config.device_index = 0;
    OK(diffusion_create(&config, &o.process));
    o.config.struct_size = sizeof o.config;
    OK(diffusion_get_config(o.process, &o.config));
    CHECK_INT(o.config.device, ==, cuda > 0 ? DIFFUSION_DEVICE_CUDA : DIFFUSION_DEVICE_CPU);
    OK(diffusion_destroy(o.process));

    params = sample_params(2, 20, 0);
    params.progress = stop_at_once;
    REFUSED(diffusion_sample_with(process, &params, o.out, 2 * TINY_IMAGE * sizeof(float)),
            DIFFUSION_ERROR_CANCELLED, NULL, NULL, NULL);

    /* A thousand network calls of 64 images: no machine does them in a millisecond. */
    config = tiny_config();
    config.noise_steps = 1000;
    config.max_batch = 16;
    broken = must_create(&config);
    params = sample_params(n, 1000, 0);
    params.timeout_ms = 1;
    REFUSED(diffusion_sample_with(broken, &params, o.bytes, n * TINY_IMAGE * sizeof(float)),
            DIFFUSION_ERROR_TIMEOUT, NULL, NULL, NULL);
    OK(diffusion_sample_ddim(broken, 1, 2, 0, 0, o.out, TINY_IMAGE));

    /* Weights that are finite but overflow: the network's answer is not. */
    for (i = 0; i < 8; i++) {
        scale[i] = 3e38f;
    }
    OK(diffusion_parameter_write(broken, DIFFUSION_WEIGHTS_TRAINED, "conv_norm_out.weight", scale, 8));
    OK(diffusion_parameter_write(broken, DIFFUSION_WEIGHTS_TRAINED, "conv_out.bias", bias, TINY_CHANNELS));
    REFUSED(diffusion_sample(broken, 1, 0, o.out, TINY_IMAGE), DIFFUSION_ERROR_NON_FINITE, NULL, NULL, NULL);
    REFUSED(diffusion_sample_ddim(broken, 2, 3, 0, 0, o.out, 2 * TINY_IMAGE), DIFFUSION_ERROR_NON_FINITE,
            NULL, NULL, NULL);
    OK(diffusion_parameter_read(broken, 0, "conv_in.weight", before, CONV_IN));
    REFUSED(diffusion_train_step(broken, images, TINY_IMAGE, 1, &o.loss), DIFFUSION_ERROR_NON_FINITE, "loss",
            NULL, NULL);
    OK(diffusion_parameter_read(broken, 0, "conv_in.weight", after, CONV_IN));
    CHECK(same_bits(before, after, CONV_IN * 4));
    OK(diffusion_get_step_count(broken, &steps));
    CHECK_INT(steps, ==, 0);
    OK(diffusion_destroy(broken));
    free(scale);
    free(before);
    free(after);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

/* Bytes of address space that this program uses. */
static size_t address_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%lu", &pages) != 1) {
        printf("/proc/self/statm: %s\n", strerror(errno));
        exit(2);
    }
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void limit_memory(size_t more) {
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = more == 0 ? limit.rlim_max : address_space() + more;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

/* In a program of its own: memory ends, the library reports it and works on when there is memory again. */
static int memory_program(void) {
    diffusion_config config = tiny_config(), large = tiny_config(), wide = tiny_config();
    diffusion_process *mine = must_create(&config), *big, *none = NULL;
    size_t big_image = (size_t)1024 * 1024, batch = 64, n = batch * big_image, i;
    int64_t *times = must_alloc(batch * sizeof *times);
    float *in, *noisy, *noise, out[TINY_IMAGE];
    int32_t got;
    alarm(300);
    CHECK(diffusion_sample_ddim(mine, 1, 2, 0, 0, out, TINY_IMAGE) ==
          DIFFUSION_OK); /* threads are made by now */
    /* Weights of 8192 x 8192 x 3 x 3: 2.4 GB a tensor. */
    for (i = 0; i < 2; i++) {
        wide.hidden_dims[i] = 8192;
    }
    limit_memory((size_t)1 << 30);
    CHECK_STATUS(diffusion_create(&wide, &none), DIFFUSION_ERROR_OUT_OF_MEMORY);
    CHECK(none == NULL);
    CHECK_STATUS(diffusion_sample_ddim(mine, 1, 2, 0, 0, out, TINY_IMAGE), DIFFUSION_OK);
    limit_memory(0);

    /* 256 MB an argument: reserved here, then no room for the library's copies. */
    large.image_size = 1024;
    large.channels = 1;
    large.hidden_dims_len = 1;
    large.attention_levels = 0;
    big = must_create(&large);
    in = mmap(NULL, n * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    noisy = mmap(NULL, n * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    noise = mmap(NULL, n * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(in != MAP_FAILED && noisy != MAP_FAILED && noise != MAP_FAILED);
    for (i = 0; i < batch; i++) {
        times[i] = 0;
    }
    limit_memory((size_t)100 << 20);
    CHECK_STATUS(diffusion_add_noise(big, in, n, times, batch, 0, noisy, n, noise, n),
                 DIFFUSION_ERROR_OUT_OF_MEMORY);
    CHECK_STATUS(diffusion_predict_noise(big, in, n, times, batch, noisy, n), DIFFUSION_ERROR_OUT_OF_MEMORY);
    CHECK_STATUS(diffusion_train_step(big, in, n, batch, NULL), DIFFUSION_ERROR_OUT_OF_MEMORY);
    CHECK_STATUS(diffusion_sample_ddim(big, batch, 2, 0, 0, noisy, n), DIFFUSION_ERROR_OUT_OF_MEMORY);
    CHECK(noisy[0] == 0 && noise[n - 1] == 0);
    limit_memory(0);
    got = diffusion_add_noise(big, in, big_image, times, 1, 0, noisy, big_image, noise, big_image);
    CHECK_STATUS(got, DIFFUSION_OK);
    CHECK_STATUS(diffusion_destroy(big), DIFFUSION_OK);
    CHECK_STATUS(diffusion_destroy(mine), DIFFUSION_OK);
    return check_done("errors memory");
}

/* In a program of its own, whose output is looked at: the library never prints, whatever goes wrong. */
static int silent_program(void) {
    diffusion_config config = tiny_config();
    diffusion_process *mine = NULL, *none = NULL;
    diffusion_sample_params params = sample_params(1, 3, 0);
    float out[TINY_IMAGE], huge[8], loss;
    int i;
    alarm(300);
    if (diffusion_create(&config, &mine) != DIFFUSION_OK) {
        return 1;
    }
    for (i = 0; i < 8; i++) {
        huge[i] = 3e38f;
    }
    fill_random(out, TINY_IMAGE, 1);
    config.image_size = -1;
    diffusion_create(&config, &none);
    diffusion_load("/", NULL, &none);
    diffusion_load("/dev/null", NULL, &none);
    diffusion_destroy(none);
    diffusion_sample(mine, SIZE_MAX / 2, 0, out, 5);
    diffusion_train_step(mine, out, TINY_IMAGE, 1, &loss);
    params.progress = stop_at_once;
    diffusion_sample_with(mine, &params, out, sizeof out);
    diffusion_parameter_write(mine, 0, "conv_norm_out.weight", huge, 8);
    diffusion_sample(mine, 1, 0, out, TINY_IMAGE);
    config = tiny_config();
    config.device = DIFFUSION_DEVICE_CUDA;
    config.device_index = 1023;
    diffusion_create(&config, &none);
    config = tiny_config();
    config.hidden_dims[0] = config.hidden_dims[1] = 8192;
    limit_memory((size_t)1 << 30);
    diffusion_create(&config, &none);
    return diffusion_destroy(mine) != DIFFUSION_OK;
}

static void test_programs_of_their_own(void) {
    char path[300];
    unsigned char *content;
    size_t bytes;
    int output;
    SECTION("memory that ends; no word printed");
    if (!CHECK_SANITIZED) {
        CHECK_EXIT(run_self("memory", NULL, -1));
    }
    snprintf(path, sizeof path, "%s/output", folder);
    output = open(path, O_CREAT | O_RDWR | O_TRUNC, 0666);
    CHECK(output >= 0);
    CHECK_EXIT(run_self("silent", NULL, output));
    close(output);
    content = get_file(path, &bytes);
    check_that(bytes == 0, __FILE__, __LINE__, "the library printed: %s", (char *)content);
    free(content);
}

/* The host's own: signal handlers and the working folder. */
static void test_host_untouched(void (*before[])(int), const char *cwd) {
    char now[1024];
    int i;
    SECTION("what is the host's is untouched");
    for (i = 1; i < 32; i++) {
        struct sigaction action;
        if (sigaction(i, NULL, &action) == 0) {
            check_that(action.sa_handler == before[i], __FILE__, __LINE__,
                       "the handler of signal %d has changed", i);
        }
    }
    CHECK(getcwd(now, sizeof now) != NULL && strcmp(now, cwd) == 0);
}

int main(int argc, char **argv) {
    void (*handlers[32])(int);
    char cwd[1024];
    int i;
    for (i = 1; i < 32; i++) {
        struct sigaction action;
        handlers[i] = sigaction(i, NULL, &action) == 0 ? action.sa_handler : SIG_DFL;
    }
    if (argc > 1 && strcmp(argv[1], "memory") == 0) {
        return memory_program();
    }
    if (argc > 1 && strcmp(argv[1], "silent") == 0) {
        return silent_program();
    }
    if (getcwd(cwd, sizeof cwd) == NULL) {
        return 2;
    }
    make_fixture();
    test_names_and_messages();
    test_defaults();
    test_handles();
    test_null_pointers();
    test_config_integers();
    test_config_reals();
    test_unused_entries();
    test_betas();
    test_struct_sizes();
    test_buffers();
    test_values();
    test_params();
    test_devices_and_ends();
    test_programs_of_their_own();
    test_host_untouched(handlers, cwd);
    end_fixture();
    return check_done("errors");
}
