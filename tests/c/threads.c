/*
 * 256 host threads that do everything at once, under a watchdog: nothing hangs, every call ends with a status
 * that its situation allows, each thread's message is its own, and what is computed among all that is, bit
 * for bit, what a single thread computed before.
 *
 *   THREADS_SECONDS=60   how long (8)
 */
#include "check.h"

#include <dirent.h>
#include <sched.h>

enum { N = TINY_IMAGE, THREADS = 256, SEEDS = 16, METHODS = DIFFUSION_METHOD_HEUN + 1, VICTIMS = 4 };

static diffusion_process *stable, *average, *trained,
    *cancelled;                             /* average: one with EMA weights; never trained on */
static diffusion_process *victims[VICTIMS]; /* destroyed and made again all the time */
static pthread_mutex_t victim_lock = PTHREAD_MUTEX_INITIALIZER; /* for the array, not for the calls */
static char folder[256], model[300];

/* What one thread computed alone. */
static float sampled[METHODS][SEEDS][2 * N], of_average[SEEDS][N];
static float noised[SEEDS][N], noise_of[SEEDS][N], predicted[SEEDS][N];
static float some_image[N], bias[TINY_CHANNELS];
static float table[TINY_STEPS];

enum {
    SAMPLE,
    SAMPLE_WITH,
    SUBMIT,
    SUBMIT_AND_CANCEL,
    ABANDON,
    ADD_NOISE,
    PREDICT,
    READ,
    TRAIN,
    CANCELLED_SAMPLE,
    CANCEL,
    VICTIM,
    DESTROY_VICTIM,
    OWN_PROCESS,
    SAVE,
    LOAD,
    REFUSED,
    OPERATIONS
};
static const char *const operation_names[OPERATIONS] = {"sample_ddim",
                                                        "sample_with",
                                                        "submit, wait, fetch",
                                                        "submit, cancel",
                                                        "submit, destroy",
                                                        "add_noise",
                                                        "predict_noise",
                                                        "read",
                                                        "train_step",
                                                        "sample that is cancelled",
                                                        "cancel",
                                                        "use of a victim",
                                                        "destroy a victim",
                                                        "create, use",
                                                        "save",
                                                        "load",
                                                        "refused"};

typedef struct {
    pthread_t thread;
    int index;
    volatile int doing;   /* one of the above */
    volatile long rounds; /* the watchdog looks at it */
} worker;

static worker workers[THREADS];
static volatile long counts[OPERATIONS], trained_steps, ended_cancelled;
static volatile int stopping;

#define COUNT(counter) __sync_add_and_fetch(&(counter), 1)

static void must_be(int32_t got, int allowed, int operation) {
    check_that(allowed, __FILE__, __LINE__, "%s: is \"%s\"; message: %s", operation_names[operation],
               diffusion_status_string(got), diffusion_last_error_message());
}

static void same(const float *got, const float *want, size_t len, int operation) {
    check_that(same_bits(got, want, len * sizeof(float)), __FILE__, __LINE__,
               "%s: differs from what one thread alone computed, by %g", operation_names[operation],
               max_difference(got, want, len));
}

static diffusion_sample_params method_params(int method, int seed) {
    diffusion_sample_params params = sample_params(2, 6, (uint64_t)seed);
    params.method = method;
    return params;
}

static int32_t use_progress(uint64_t done, uint64_t total, void *user) {
    uint64_t *last = user;
    check_that(done >= *last && done <= total, __FILE__, __LINE__, "progress went from %lu to %lu of %lu",
               (unsigned long)*last, (unsigned long)done, (unsigned long)total);
    *last = done;
    return 0;
}

static diffusion_process *some_victim(uint64_t *state) {
    diffusion_process *p;
    pthread_mutex_lock(&victim_lock);
    p = victims[next_random(state) % VICTIMS];
    pthread_mutex_unlock(&victim_lock);
    return p;
}

static void submit(int operation, uint64_t *state) {
    int seed = (int)(next_random(state) % SEEDS), method = (int)(next_random(state) % METHODS);
    diffusion_sample_params params = method_params(method, seed);
    uint64_t last = 0, done, total;
    float out[2 * N];
    int32_t got, job_state;
    diffusion_job *job = NULL;
    params.progress = use_progress;
    params.user_data = &last;
    got = diffusion_sample_submit(stable, &params, &job);
    must_be(got, got == DIFFUSION_OK, operation);
    if (got != DIFFUSION_OK || operation == ABANDON) {
        if (job != NULL) {
            OK(diffusion_job_destroy(job));
            CHECK_STATUS(diffusion_job_poll(job, &job_state), DIFFUSION_ERROR_INVALID_HANDLE);
        }
        return;
    }
    OK(diffusion_job_poll(job, &job_state));
    OK(diffusion_job_progress(job, &done, &total));
    got = diffusion_job_preview(job, out, sizeof out, &done);
    must_be(got, got == DIFFUSION_OK, operation);
    CHECK(all_in_range(out, 2 * N));
    got = diffusion_job_wait(job, 0);
    must_be(got, got == DIFFUSION_OK || got == DIFFUSION_ERROR_TIMEOUT, operation);
    if (operation == SUBMIT_AND_CANCEL) {
        OK(diffusion_job_cancel(job));
        got = diffusion_job_wait(job, -1);
        must_be(got, got == DIFFUSION_OK || got == DIFFUSION_ERROR_CANCELLED, operation);
    } else {
        got = diffusion_job_wait(job, -1);
        must_be(got, got == DIFFUSION_OK, operation);
    }
    if (got == DIFFUSION_OK) {
        OK(diffusion_job_fetch(job, out, sizeof out));
        same(out, sampled[method][seed], 2 * N, operation);
    } else {
        CHECK_STATUS(diffusion_job_fetch(job, out, sizeof out), DIFFUSION_ERROR_CANCELLED);
    }
    OK(diffusion_job_destroy(job));
}

/* A victim may end before, during and after any call. */
static int may_end(int32_t got) {
    return got == DIFFUSION_OK || got == DIFFUSION_ERROR_CANCELLED || got == DIFFUSION_ERROR_INVALID_HANDLE;
}

static void use_victim(uint64_t *state) {
    diffusion_process *p = some_victim(state);
    diffusion_sample_params params = method_params(DIFFUSION_METHOD_DDIM, 1);
    diffusion_job *job = NULL;
    float out[2 * N];
    uint64_t steps;
    int32_t got = diffusion_get_step_count(p, &steps);
    must_be(got, may_end(got), VICTIM);
    got = diffusion_train_step(p, some_image, N, 1, NULL);
    must_be(got, may_end(got), VICTIM);
    got = diffusion_sample_with(p, &params, out, sizeof out);
    must_be(got, may_end(got), VICTIM);
    got = diffusion_sample_submit(p, &params, &job);
    must_be(got, may_end(got), VICTIM);
    if (got == DIFFUSION_OK) {
        got = diffusion_job_wait(job, -1);
        must_be(got, got == DIFFUSION_OK || got == DIFFUSION_ERROR_CANCELLED, VICTIM);
        OK(diffusion_job_destroy(job));
    }
}

static void destroy_victim(uint64_t *state) {
    diffusion_config config = tiny_config();
    diffusion_process *fresh = must_create(&config), *old;
    size_t which = next_random(state) % VICTIMS;
    pthread_mutex_lock(&victim_lock);
    old = victims[which];
    victims[which] = fresh;
    pthread_mutex_unlock(&victim_lock);
    OK(diffusion_destroy(old));
    CHECK_STATUS(diffusion_destroy(old), DIFFUSION_ERROR_INVALID_HANDLE);
}

/* The message that a thread reads is of its own last error, whatever the others do. */
static void be_refused(uint64_t *state, int index) {
    float out[N];
    char value[32];
    int wrong = -1 - index - (int)(next_random(state) % 1000) * THREADS;
    int32_t got = diffusion_sample_ddim(stable, 1, wrong, 0, 0, out, N);
    must_be(got, got == DIFFUSION_ERROR_INVALID_ARGUMENT, REFUSED);
    sched_yield();
    snprintf(value, sizeof value, "%d", wrong);
    check_message(__FILE__, __LINE__, "a refused call", "ddim_steps", value, NULL);
}

static void own_process(uint64_t *state) {
    diffusion_config config = tiny_config();
    diffusion_process *p = must_create(&config);
    float out[2 * N];
    int seed = (int)(next_random(state) % SEEDS);
    diffusion_sample_params params = method_params(DIFFUSION_METHOD_UNIPC, seed);
    OK(diffusion_sample_with(p, &params, out, sizeof out));
    same(out, sampled[DIFFUSION_METHOD_UNIPC][seed], 2 * N, OWN_PROCESS);
    OK(diffusion_train_step(p, some_image, N, 1, NULL));
    OK(diffusion_destroy(p));
}

static void load_or_save(int operation, int index, uint64_t *state) {
    char path[320];
    float out[2 * N];
    int seed = (int)(next_random(state) % SEEDS);
    diffusion_process *p = NULL;
    /* A few places, so that several threads save to the same one at a time. */
    snprintf(path, sizeof path, "%s/saved-%d", folder, index % 4);
    if (operation == SAVE) {
        OK(diffusion_save(index % 2 ? stable : average, path));
    } else if (OK(diffusion_load(model, NULL, &p))) {
        diffusion_sample_params params = method_params(DIFFUSION_METHOD_EULER, seed);
        OK(diffusion_sample_with(p, &params, out, sizeof out));
        same(out, sampled[DIFFUSION_METHOD_EULER][seed], 2 * N, operation);
        OK(diffusion_destroy(p));
    }
}

static void read_some(void) {
    diffusion_config config;
    diffusion_parameter parameter;
    float values[TINY_STEPS];
    size_t count;
    double rate;
    config.struct_size = sizeof config;
    parameter.struct_size = sizeof parameter;
    OK(diffusion_get_config(stable, &config));
    CHECK_INT(config.image_size, ==, TINY_SIZE);
    OK(diffusion_get_schedule(stable, DIFFUSION_TABLE_ALPHA_CUMPROD, values, TINY_STEPS));
    same(values, table, TINY_STEPS, READ);
    OK(diffusion_parameter_count(stable, &count));
    OK(diffusion_parameter_describe(stable, count - 1, &parameter));
    CHECK(strcmp(parameter.name, "conv_out.bias") == 0);
    OK(diffusion_parameter_read(stable, 0, "conv_out.bias", values, TINY_CHANNELS));
    same(values, bias, TINY_CHANNELS, READ);
    OK(diffusion_get_learning_rate(trained, &rate));
    OK(diffusion_set_learning_rate(trained, rate));
}

static void once(worker *me, uint64_t *state) {
    /* What takes long comes less often: processes made and files written by one in thirty. */
    uint64_t draw = next_random(state) % 120;
    int operation = draw < 100 ? (int)(draw % SAVE) : draw < 104 ? SAVE : draw < 108 ? LOAD : REFUSED;
    int seed = (int)(next_random(state) % SEEDS), method = (int)(next_random(state) % METHODS);
    float out[2 * N], noise[N];
    int64_t timestep = 7;
    int32_t got;
    diffusion_sample_params params = method_params(method, seed);
    if ((operation == OWN_PROCESS || operation == DESTROY_VICTIM) && next_random(state) % 4 != 0) {
        operation = REFUSED;
    }
    me->doing = operation;
    switch (operation) {
        case SAMPLE:
            got = diffusion_sample_ddim(average, 1, 5, 0, (uint64_t)seed, out, N);
            must_be(got, got == DIFFUSION_OK, operation);
            same(out, of_average[seed], N, operation);
            break;
        case SAMPLE_WITH:
            got = diffusion_sample_with(stable, &params, out, sizeof out);
            must_be(got, got == DIFFUSION_OK, operation);
            same(out, sampled[method][seed], 2 * N, operation);
            break;
        case SUBMIT:
        case SUBMIT_AND_CANCEL:
        case ABANDON:
            submit(operation, state);
            break;
        case ADD_NOISE:
            got = diffusion_add_noise(stable, some_image, N, &timestep, 1, (uint64_t)seed, out, N, noise, N);
            must_be(got, got == DIFFUSION_OK, operation);
            same(out, noised[seed], N, operation);
            same(noise, noise_of[seed], N, operation);
            break;
        case PREDICT:
            timestep = seed;
            got = diffusion_predict_noise(stable, some_image, N, &timestep, 1, out, N);
            must_be(got, got == DIFFUSION_OK, operation);
            same(out, predicted[seed], N, operation);
            break;
        case READ:
            read_some();
            break;
        case TRAIN:
            got = diffusion_train_step(trained, some_image, N, 1, NULL);
            must_be(got, got == DIFFUSION_OK, operation);
            COUNT(trained_steps);
            break;
        case CANCELLED_SAMPLE:
            got = diffusion_sample_with(cancelled, &params, out, sizeof out);
            must_be(got, got == DIFFUSION_OK || got == DIFFUSION_ERROR_CANCELLED, operation);
            if (got == DIFFUSION_OK) {
                same(out, sampled[method][seed], 2 * N, operation);
            } else {
                COUNT(ended_cancelled);
            }
            break;
        case CANCEL:
            got = diffusion_cancel(cancelled);
            must_be(got, got == DIFFUSION_OK, operation);
            break;
        case VICTIM:
            use_victim(state);
            break;
        case DESTROY_VICTIM:
            destroy_victim(state);
            break;
        case OWN_PROCESS:
            own_process(state);
            break;
        case SAVE:
        case LOAD:
            load_or_save(operation, me->index, state);
            break;
        default:
            be_refused(state, me->index);
            break;
    }
    COUNT(counts[operation]);
}

static void *work(void *user) {
    worker *me = user;
    uint64_t state = (uint64_t)me->index * UINT64_C(0x9E3779B97F4A7C15) + 1;
    while (!stopping) {
        once(me, &state);
        me->rounds++;
    }
    me->rounds = -1;
    return NULL;
}

/* A thread whose call has not ended for minutes hangs: the processors are shared, but not that much. */
static void *watch(void *unused) {
    static long seen[THREADS];
    static int still[THREADS];
    (void)unused;
    for (;;) {
        int i;
        sleep(5);
        for (i = 0; i < THREADS; i++) {
            long rounds = workers[i].rounds;
            if (rounds == -1) {
                continue;
            }
            still[i] = rounds == seen[i] ? still[i] + 1 : 0;
            seen[i] = rounds;
            if (still[i] >= 120) {
                printf("threads: thread %d hangs in \"%s\"\n", i, operation_names[workers[i].doing]);
                fflush(stdout);
                abort();
            }
        }
    }
}

static void compute_alone(void) {
    diffusion_config config = tiny_config();
    int seed, method;
    int64_t timestep = 7;
    fill_random(some_image, N, 5);
    stable = must_create(&config);
    cancelled = must_create(&config);
    trained = must_create(&config);
    for (seed = 0; seed < VICTIMS; seed++) {
        victims[seed] = must_create(&config);
    }
    config.ema_decay = 0.5;
    config.seed = 2;
    average = must_create(&config);
    OK(diffusion_train_step(average, some_image, N, 1, NULL));
    for (seed = 0; seed < SEEDS; seed++) {
        int64_t at = seed;
        for (method = 0; method < METHODS; method++) {
            diffusion_sample_params params = method_params(method, seed);
            OK(diffusion_sample_with(stable, &params, sampled[method][seed], 2 * N * sizeof(float)));
        }
        OK(diffusion_sample_ddim(average, 1, 5, 0, (uint64_t)seed, of_average[seed], N));
        OK(diffusion_add_noise(stable, some_image, N, &timestep, 1, (uint64_t)seed, noised[seed], N,
                               noise_of[seed], N));
        OK(diffusion_predict_noise(stable, some_image, N, &at, 1, predicted[seed], N));
    }
    OK(diffusion_get_schedule(stable, DIFFUSION_TABLE_ALPHA_CUMPROD, table, TINY_STEPS));
    OK(diffusion_parameter_read(stable, 0, "conv_out.bias", bias, TINY_CHANNELS));
    OK(diffusion_save(stable, model));
}

static long threads_now(void) {
    long count = -2;
    DIR *dir = opendir("/proc/self/task");
    while (dir != NULL && readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

int main(void) {
    const char *wanted = getenv("THREADS_SECONDS");
    long duration = wanted != NULL ? atol(wanted) : 8, total = 0, most, i;
    diffusion_config config;
    pthread_attr_t small;
    pthread_t watchdog;
    uint64_t steps = 0;
    must_tempdir(folder);
    snprintf(model, sizeof model, "%s/model", folder);
    SECTION("what one thread computes alone");
    compute_alone();
    printf("  %d threads for %ld seconds\n", THREADS, duration);
    fflush(stdout);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 512 * 1024);
    for (i = 0; i < THREADS; i++) {
        workers[i].index = (int)i;
        if (pthread_create(&workers[i].thread, &small, work, &workers[i]) != 0) {
            printf("pthread_create: %s\n", strerror(errno));
            return 2;
        }
    }
    if (pthread_create(&watchdog, NULL, watch, NULL) != 0) {
        return 2;
    }
    for (i = 0; i < duration; i++) {
        sleep(1);
        if (i % 10 == 9) {
            int k;
            for (total = 0, k = 0; k < OPERATIONS; k++) {
                total += counts[k];
            }
            printf("    %ld s: %ld operations\n", i + 1, total);
            fflush(stdout);
        }
    }
    stopping = 1;
    for (i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    for (total = 0, i = 0; i < OPERATIONS; i++) {
        printf("    %-24s %ld\n", operation_names[i], counts[i]);
        total += counts[i];
        check_that(counts[i] > 0, __FILE__, __LINE__, "%s never came", operation_names[i]);
    }
    printf("    %ld operations in all, %ld samplings ended as cancelled\n", total, ended_cancelled);
    OK(diffusion_get_step_count(trained, &steps));
    CHECK_INT(steps, ==, trained_steps);
    /* This one, the watchdog, and for each process that lives as many as it computes with. */
    OK(diffusion_config_init(&config));
    OK(diffusion_get_config(stable, &config));
    most = 2 + (VICTIMS + 4) * (long)config.num_threads;
    for (i = 0; i < 3000 && threads_now() > most; i++) {
        usleep(10000);
    }
    CHECK_INT(threads_now(), <=, most);
    for (i = 0; i < VICTIMS; i++) {
        OK(diffusion_destroy(victims[i]));
    }
    OK(diffusion_destroy(stable));
    OK(diffusion_destroy(average));
    OK(diffusion_destroy(trained));
    OK(diffusion_destroy(cancelled));
    must_shell("rm -rf '%s'", folder);
    return check_done("threads");
}
