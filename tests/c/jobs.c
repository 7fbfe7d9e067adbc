/*
 * Jobs, threads and ends: submitted jobs in every order of calls, callbacks that use and destroy what they
 * are called from, timeouts, cancelling one of many, destroying under load, fork, tiny stacks, and nothing
 * left after 200 processes. No check depends on how fast the machine is: where something must be under way, a
 * callback or a state says so, and a job that must not end by itself has more steps than a day.
 */
#include "check.h"

#include <dirent.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>

enum { N = TINY_IMAGE };

static diffusion_process *process; /* tiny_config */
static float reference[8 * N];     /* its images of seed 77, by DDIM in 10 steps */

/* A process whose jobs of LONG images take hours: what waits for them is waiting. */
enum { LONG = 20000 };

static diffusion_config slow_config(void) {
    diffusion_config config = tiny_config();
    config.noise_steps = 1000;
    config.max_batch = 8;
    return config;
}

static diffusion_job *submit(diffusion_process *to, size_t images, int32_t steps, uint64_t seed) {
    diffusion_sample_params params = sample_params(images, steps, seed);
    diffusion_job *job = NULL;
    OK(diffusion_sample_submit(to, &params, &job));
    return job;
}

static int32_t state_of(diffusion_job *job) {
    int32_t state = -1;
    OK(diffusion_job_poll(job, &state));
    return state;
}

/* Waits until some denoising step of the job is done. */
static void until_running(diffusion_job *job) {
    uint64_t done = 0, total = 0;
    while (diffusion_job_progress(job, &done, &total) == DIFFUSION_OK && done == 0) {
        usleep(1000);
    }
    CHECK(done > 0 && done <= total);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_life(void) {
    diffusion_process *slow;
    diffusion_config config = slow_config();
    diffusion_job *job, *second;
    float out[8 * N], canary[8 * N];
    uint64_t done = 0, total = 0;
    int32_t state;
    int i;
    SECTION("submit, poll, wait, progress, fetch, cancel, destroy in many orders");
    job = submit(process, 8, 10, 77);
    OK(diffusion_job_wait(job, -1));
    CHECK_INT(state_of(job), ==, DIFFUSION_JOB_DONE);
    OK(diffusion_job_progress(job, &done, &total));
    CHECK_INT(total, ==, 80);
    CHECK_INT(done, ==, 80);
    for (i = 0; i < 2; i++) { /* fetched twice, both times whole */
        memset(out, 0, sizeof out);
        OK(diffusion_job_fetch(job, out, sizeof out));
        CHECK_BELOW(max_difference(out, reference, 8 * N), 1e-4);
    }
    OK(diffusion_job_wait(job, 0));
    OK(diffusion_job_wait(job, INT64_MAX));
    OK(diffusion_job_wait(job, INT64_MIN));
    OK(diffusion_job_cancel(job)); /* it has ended already: done it stays */
    CHECK_INT(state_of(job), ==, DIFFUSION_JOB_DONE);
    OK(diffusion_job_wait(job, -1));
    OK(diffusion_job_fetch(job, out, sizeof out));
    OK(diffusion_job_destroy(job));
    CHECK_STATUS(diffusion_job_wait(job, -1), DIFFUSION_ERROR_INVALID_HANDLE);

    job = submit(process, 1, 10, 77); /* destroyed at once; and after a look */
    OK(diffusion_job_destroy(job));
    job = submit(process, 1, 10, 77);
    state = state_of(job);
    CHECK(state == DIFFUSION_JOB_QUEUED || state == DIFFUSION_JOB_RUNNING || state == DIFFUSION_JOB_DONE);
    OK(diffusion_job_cancel(job));
    OK(diffusion_job_cancel(job));
    state = state_of(job);
    CHECK(state == DIFFUSION_JOB_CANCELLED || state == DIFFUSION_JOB_DONE);
    OK(diffusion_job_destroy(job));

    slow = must_create(&config);
    job = submit(slow, LONG, 1000, 1);
    memset(out, 0xA5, sizeof out);
    memcpy(canary, out, sizeof out);
    CHECK_STATUS(diffusion_job_wait(job, 0), DIFFUSION_ERROR_TIMEOUT);
    CHECK_STATUS(diffusion_job_wait(job, 5), DIFFUSION_ERROR_TIMEOUT);
    state = state_of(job);
    CHECK(state == DIFFUSION_JOB_QUEUED || state == DIFFUSION_JOB_RUNNING);
    CHECK_STATUS(diffusion_job_fetch(job, out, sizeof out), DIFFUSION_ERROR_BUFFER_SIZE);
    {
        size_t bytes = (size_t)LONG * N * sizeof(float);
        char *large =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK_STATUS(diffusion_job_fetch(job, large, bytes), DIFFUSION_ERROR_INVALID_ARGUMENT);
        check_message(__FILE__, __LINE__, "fetch before the end", "job", NULL, NULL);
        CHECK(large[0] == 0 && large[bytes - 1] == 0);
        until_running(job);
        CHECK_INT(state_of(job), ==, DIFFUSION_JOB_RUNNING);
        OK(diffusion_job_progress(job, &done, &total));
        CHECK_INT(total, ==, (uint64_t)LONG * 1000);
        CHECK_INT(done, <, total);
        OK(diffusion_job_cancel(job));
        CHECK_STATUS(diffusion_job_wait(job, -1), DIFFUSION_ERROR_CANCELLED);
        CHECK_INT(state_of(job), ==, DIFFUSION_JOB_CANCELLED);
        CHECK_STATUS(diffusion_job_fetch(job, large, bytes), DIFFUSION_ERROR_CANCELLED);
        CHECK(large[0] == 0 && large[bytes - 1] == 0);
        OK(diffusion_job_progress(job, &done, &total));
        OK(diffusion_job_destroy(job));
        munmap(large, bytes);
    }
    CHECK(same_bits(out, canary, sizeof out));

    /* A job behind a long one is computed with it, not after it; so is all else that does not change weights.
     */
    job = submit(slow, LONG, 1000, 1);
    until_running(job);
    second = submit(slow, 2, 3, 1);
    OK(diffusion_job_wait(second, -1));
    {
        float noise[N];
        int64_t timestep = 500;
        char folder[256], path[300];
        double rate;
        must_tempdir(folder);
        snprintf(path, sizeof path, "%s/beside", folder);
        OK(diffusion_add_noise(slow, reference, N, &timestep, 1, 0, out, N, noise, N));
        OK(diffusion_predict_noise(slow, reference, N, &timestep, 1, out, N));
        OK(diffusion_parameter_read(slow, 0, "conv_out.bias", out, TINY_CHANNELS));
        OK(diffusion_get_learning_rate(slow, &rate));
        OK(diffusion_set_learning_rate(slow, rate));
        OK(diffusion_save(slow, path));
        must_shell("rm -rf '%s'", folder);
        /* Another process has its turn too. */
        OK(diffusion_sample_ddim(process, 8, 10, 0, 77, out, 8 * N));
        CHECK(same_bits(out, reference, sizeof out));
    }
    CHECK_INT(state_of(job), ==, DIFFUSION_JOB_RUNNING);
    OK(diffusion_job_destroy(second));
    OK(diffusion_job_destroy(job));
    /* And the process is free again. */
    OK(diffusion_sample_ddim(slow, 1, 2, 0, 1, out, N));
    OK(diffusion_destroy(slow));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

typedef struct seen {
    pthread_t thread;
    uint64_t last, total, calls;
    int monotone, right_thread;
    uint64_t stop_after; /* calls; 0: never */
    int32_t answer;      /* what stops */
    diffusion_process *process;
    diffusion_job *job;
    int action;
    int32_t status;
} seen;

static int32_t watch(uint64_t done, uint64_t total, void *user) {
    seen *s = user;
    s->right_thread = s->right_thread && pthread_equal(s->thread, pthread_self());
    s->monotone = s->monotone && done >= s->last && done <= total && (s->calls == 0 || total == s->total);
    s->last = done;
    s->total = total;
    s->calls++;
    return s->stop_after != 0 && s->calls >= s->stop_after ? s->answer : 0;
}

static seen start_watching(void) {
    seen s;
    memset(&s, 0, sizeof s);
    s.thread = pthread_self();
    s.monotone = s.right_thread = 1;
    return s;
}

static void test_progress(void) {
    static const int32_t answers[] = {1, -1, INT32_MAX, INT32_MIN, 256};
    static const uint64_t evaluations[] = {10, 10, 10, 10, 10, 10, 0};
    diffusion_sample_params params = sample_params(3, 10, 77);
    diffusion_job *job = NULL;
    float out[8 * N], canary[8 * N];
    size_t i;
    int32_t method;
    seen s;
    SECTION("progress: on the caller's thread, growing, stopping");
    params.progress = watch;
    params.user_data = &s;
    for (method = DIFFUSION_METHOD_DDPM; method <= DIFFUSION_METHOD_HEUN; method++) {
        s = start_watching();
        params.method = method;
        OK(diffusion_sample_with(process, &params, out, 3 * N * sizeof(float)));
        CHECK(s.calls >= 1 && s.monotone && s.right_thread);
        CHECK_INT(s.last, ==, s.total);
        if (evaluations[method] != 0) {
            CHECK_INT(s.total, ==, 3 * evaluations[method]);
        } else {
            CHECK(s.total > 3 * 10 && s.total <= 3 * 20);
        }
    }
    params.method = DIFFUSION_METHOD_DDIM;
    s = start_watching();
    OK(diffusion_sample_with(process, &params, out, 3 * N * sizeof(float)));
    CHECK_BELOW(max_difference(out, reference, 3 * N), 1e-4);
    CHECK_INT(s.calls, <=, 12);

    memset(out, 0xA5, sizeof out);
    memcpy(canary, out, sizeof out);
    for (i = 0; i < sizeof answers / sizeof *answers; i++) {
        s = start_watching();
        s.stop_after = 1 + i;
        s.answer = answers[i];
        CHECK_STATUS(diffusion_sample_with(process, &params, out, 3 * N * sizeof(float)),
                     DIFFUSION_ERROR_CANCELLED);
        CHECK_INT(s.calls, ==, 1 + i); /* not called again */
        CHECK(same_bits(out, canary, sizeof out));
    }

    /* A job calls it from wait, in the thread that waits. */
    s = start_watching();
    OK(diffusion_sample_submit(process, &params, &job));
    OK(diffusion_job_wait(job, -1));
    CHECK(s.monotone && s.right_thread);
    OK(diffusion_job_destroy(job));
    s = start_watching();
    s.stop_after = 1;
    s.answer = 1;
    {
        diffusion_config config = slow_config();
        diffusion_process *slow = must_create(&config);
        params.num_samples = LONG;
        params.steps = 1000;
        OK(diffusion_sample_submit(slow, &params, &job));
        CHECK_STATUS(diffusion_job_wait(job, -1), DIFFUSION_ERROR_CANCELLED);
        CHECK_INT(state_of(job), ==, DIFFUSION_JOB_CANCELLED);
        CHECK(s.right_thread && s.calls == 1);
        OK(diffusion_job_destroy(job));
        OK(diffusion_destroy(slow));
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 */

enum { NEST, DESTROY_PROCESS, CANCEL_PROCESS, CANCEL_JOB, DESTROY_JOB, ACTIONS };

/* Uses, and ends, what it is called from. */
static int32_t act(uint64_t done, uint64_t total, void *user) {
    seen *s = user;
    int32_t answer = watch(done, total, user);
    if (s->calls != 1) {
        return answer;
    }
    switch (s->action) {
        case NEST: {
            float out[2 * N], noise[N];
            int64_t timestep = 3;
            uint64_t steps;
            diffusion_job *job = NULL;
            diffusion_sample_params params = sample_params(1, 10, 77);
            seen inner = start_watching();
            params.progress = watch;
            params.user_data = &inner;
            OK(diffusion_get_step_count(s->process, &steps));
            OK(diffusion_add_noise(s->process, reference, N, &timestep, 1, 0, out, N, noise, N));
            OK(diffusion_predict_noise(s->process, reference, N, &timestep, 1, out, N));
            OK(diffusion_sample_with(s->process, &params, out, N * sizeof(float)));
            CHECK_BELOW(max_difference(out, reference, N), 1e-4);
            CHECK(inner.calls > 0);
            OK(diffusion_sample_submit(s->process, &params, &job));
            OK(diffusion_job_wait(job, -1));
            OK(diffusion_job_destroy(job));
            s->status = DIFFUSION_OK;
            break;
        }
        case DESTROY_PROCESS:
            s->status = diffusion_destroy(s->process);
            break;
        case CANCEL_PROCESS:
            s->status = diffusion_cancel(s->process);
            break;
        case CANCEL_JOB:
            s->status = diffusion_job_cancel(s->job);
            break;
        default:
            s->status = diffusion_job_destroy(s->job);
            break;
    }
    return answer;
}

static void test_callbacks_that_act(void) {
    diffusion_config config = slow_config();
    float out[8 * N], canary[8 * N];
    int action, blocking;
    SECTION("progress callbacks that use, cancel and destroy the process or job they are called from");
    memset(canary, 0xA5, sizeof canary);
    for (action = NEST; action < ACTIONS; action++) {
        for (blocking = 0; blocking < 2; blocking++) {
            /* Long enough that the callback comes before the end; with NEST it must end by itself. */
            size_t images = action == NEST ? 2 : LONG;
            diffusion_sample_params params = sample_params(images, action == NEST ? 40 : 1000, 5);
            seen s = start_watching();
            int32_t ended;
            if (blocking && action >= CANCEL_JOB) {
                continue;
            }
            s.action = action;
            s.status = -1;
            config.noise_steps = action == NEST ? TINY_STEPS : 1000;
            s.process = must_create(&config);
            params.progress = act;
            params.user_data = &s;
            memcpy(out, canary, sizeof out);
            if (blocking) {
                float *to = action == NEST ? out
                                           : mmap(NULL, images * N * 4, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                ended = diffusion_sample_with(s.process, &params, to, images * N * sizeof(float));
                if (action != NEST) {
                    CHECK(to[0] == 0);
                    munmap(to, images * N * 4);
                }
            } else {
                OK(diffusion_sample_submit(s.process, &params, &s.job));
                ended = diffusion_job_wait(s.job, -1);
            }
            check_that(ended == (action == NEST ? DIFFUSION_OK : DIFFUSION_ERROR_CANCELLED), __FILE__,
                       __LINE__, "action %d, blocking %d: ended as %s", action, blocking,
                       diffusion_status_string(ended));
            check_that(s.status == DIFFUSION_OK, __FILE__, __LINE__,
                       "action %d, blocking %d: the call in it was %s", action, blocking,
                       diffusion_status_string(s.status));
            if (!blocking && action != DESTROY_JOB) {
                CHECK_INT(state_of(s.job), ==, action == NEST ? DIFFUSION_JOB_DONE : DIFFUSION_JOB_CANCELLED);
                OK(diffusion_job_destroy(s.job));
            } else if (!blocking) {
                CHECK_STATUS(diffusion_job_destroy(s.job), DIFFUSION_ERROR_INVALID_HANDLE);
            }
            if (action == DESTROY_PROCESS) {
                CHECK_STATUS(diffusion_destroy(s.process), DIFFUSION_ERROR_INVALID_HANDLE);
            } else {
                OK(diffusion_sample_ddim(s.process, 1, 2, 0, 1, out, N));
                OK(diffusion_destroy(s.process));
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_timeouts(void) {
    diffusion_config config = slow_config();
    diffusion_process *slow = must_create(&config);
    diffusion_sample_params params = sample_params(LONG, 1000, 1);
    size_t bytes = (size_t)LONG * N * sizeof(float);
    char *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    diffusion_job *job = NULL, *other;
    float image[N];
    SECTION("timeout_ms");
    params.timeout_ms = 20;
    CHECK_STATUS(diffusion_sample_with(slow, &params, out, bytes), DIFFUSION_ERROR_TIMEOUT);
    CHECK(out[0] == 0 && out[bytes - 1] == 0);
    OK(diffusion_sample_submit(slow, &params, &job));
    other = submit(slow, LONG, 1000, 2);
    CHECK_STATUS(diffusion_job_wait(job, -1), DIFFUSION_ERROR_TIMEOUT);
    CHECK_INT(state_of(job), ==, DIFFUSION_JOB_CANCELLED);
    CHECK_STATUS(diffusion_job_fetch(job, out, bytes), DIFFUSION_ERROR_TIMEOUT);
    CHECK(state_of(other) != DIFFUSION_JOB_CANCELLED);
    OK(diffusion_job_destroy(job));
    OK(diffusion_job_destroy(other));
    /* Nobody waits: it ends all the same. */
    OK(diffusion_sample_submit(slow, &params, &job));
    while (state_of(job) != DIFFUSION_JOB_CANCELLED) {
        usleep(1000);
    }
    OK(diffusion_job_destroy(job));
    params = sample_params(1, 2, 0);
    params.timeout_ms = INT64_MAX;
    OK(diffusion_sample_with(slow, &params, image, sizeof image));
    OK(diffusion_destroy(slow));
    munmap(out, bytes);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void test_merged(void) {
    enum { JOBS = 9 };
    diffusion_job *jobs[JOBS], *late, *endless;
    diffusion_config config = slow_config();
    diffusion_process *slow = must_create(&config);
    float out[8 * N], lone[8 * N], ddpm[8 * N];
    size_t i;
    diffusion_sample_params params;
    SECTION("merged jobs: one cancelled, one late, different methods; the others are right");
    OK(diffusion_sample_ddim(slow, 8, 40, 0, 77, lone, 8 * N));
    params = sample_params(8, 60, 78);
    params.method = DIFFUSION_METHOD_DDPM;
    OK(diffusion_sample_with(slow, &params, ddpm, sizeof ddpm));
    endless = submit(slow, LONG, 1000, 3);
    for (i = 0; i < JOBS; i++) {
        if (i % 3 == 2) {
            OK(diffusion_sample_submit(slow, &params, &jobs[i]));
        } else {
            jobs[i] = submit(slow, i % 8 + 1, 40, 77);
        }
    }
    until_running(endless);
    late = submit(slow, 8, 40, 77);
    OK(diffusion_job_cancel(jobs[4]));
    OK(diffusion_job_cancel(endless));
    CHECK_STATUS(diffusion_job_wait(endless, -1), DIFFUSION_ERROR_CANCELLED);
    for (i = 0; i < JOBS; i++) {
        size_t n = i % 3 == 2 ? 8 : i % 8 + 1;
        int32_t ended = diffusion_job_wait(jobs[i], -1);
        if (i == 4) {
            CHECK(ended == DIFFUSION_ERROR_CANCELLED || ended == DIFFUSION_OK);
        } else if (check_status(ended, DIFFUSION_OK, __FILE__, __LINE__, "a merged job")) {
            OK(diffusion_job_fetch(jobs[i], out, n * N * sizeof(float)));
            check_that(max_difference(out, i % 3 == 2 ? ddpm : lone, n * N) < 1e-4, __FILE__, __LINE__,
                       "job %d of %d: off by %g", (int)i, JOBS,
                       max_difference(out, i % 3 == 2 ? ddpm : lone, n * N));
        }
        OK(diffusion_job_destroy(jobs[i]));
    }
    OK(diffusion_job_wait(late, -1));
    OK(diffusion_job_fetch(late, out, sizeof out));
    CHECK_BELOW(max_difference(out, lone, 8 * N), 1e-4);
    OK(diffusion_job_destroy(late));
    OK(diffusion_job_destroy(endless));
    OK(diffusion_destroy(slow));
}

typedef struct blocked {
    diffusion_process *process;
    pthread_t thread;
    volatile int started;
    int32_t status;
} blocked;

/* More jobs and more processes at once than anyone plans for. */
static void test_many(void) {
    enum { JOBS = 3000, PROCESSES = 24 };
    static diffusion_job *jobs[JOBS];
    diffusion_process *processes[PROCESSES];
    diffusion_config config = tiny_config();
    float out[N];
    int i, j;
    SECTION("3000 jobs, 24 processes");
    for (i = 0; i < JOBS; i++) {
        jobs[i] = submit(process, 1, 1 + i % 3, 77);
    }
    for (i = 0; i < JOBS; i += 2) { /* half of them in the middle of it all */
        OK(diffusion_job_destroy(jobs[i]));
    }
    for (i = 1; i < JOBS; i += 2) {
        OK(diffusion_job_wait(jobs[i], -1));
        OK(diffusion_job_destroy(jobs[i]));
    }
    for (i = 0; i < PROCESSES; i++) {
        processes[i] = must_create(&config);
        jobs[i] = submit(processes[i], 1, 10, 77);
        for (j = 0; j < i; j++) {
            CHECK(processes[i] != processes[j] && jobs[i] != jobs[j]);
        }
    }
    for (i = PROCESSES - 1; i >= 0; i--) {
        OK(diffusion_job_wait(jobs[i], -1));
        OK(diffusion_job_fetch(jobs[i], out, sizeof out));
        CHECK_BELOW(max_difference(out, reference, N), 1e-4);
        OK(diffusion_job_destroy(jobs[i]));
        OK(diffusion_destroy(processes[i]));
    }
}

typedef struct waiter {
    diffusion_job *job;
    pthread_t thread;
    int32_t ended;
} waiter;

typedef struct meter {
    pthread_mutex_t lock;
    uint64_t calls, last;
    int inside, alone, monotone;
    waiter *waiters;
    size_t count;
    int known;
} meter;

static int32_t measure(uint64_t done, uint64_t total, void *user) {
    meter *m = user;
    size_t i, known = 0;
    m->alone = m->alone && __sync_add_and_fetch(&m->inside, 1) == 1;
    pthread_mutex_lock(&m->lock);
    for (i = 0; i < m->count; i++) {
        known += pthread_equal(pthread_self(), m->waiters[i].thread) != 0;
    }
    m->known = m->known && known == 1;
    m->monotone = m->monotone && done >= m->last && done <= total;
    m->last = done;
    m->calls++;
    pthread_mutex_unlock(&m->lock);
    sched_yield();
    __sync_sub_and_fetch(&m->inside, 1);
    return 0;
}

static void *wait_once(void *user) {
    waiter *w = user;
    pthread_mutex_lock(&check_lock); /* until all threads are known */
    pthread_mutex_unlock(&check_lock);
    w->ended = diffusion_job_wait(w->job, -1);
    return NULL;
}

static void test_several_waiters(void) {
    enum { WAITERS = 5 };
    waiter waiters[WAITERS];
    meter m;
    diffusion_sample_params params = sample_params(4, 50, 77);
    diffusion_job *job = NULL;
    int i;
    SECTION("several threads wait for one job: its progress is called by one at a time");
    memset(&m, 0, sizeof m);
    pthread_mutex_init(&m.lock, NULL);
    m.alone = m.monotone = m.known = 1;
    m.waiters = waiters;
    m.count = WAITERS;
    params.progress = measure;
    params.user_data = &m;
    OK(diffusion_sample_submit(process, &params, &job));
    pthread_mutex_lock(&check_lock);
    for (i = 0; i < WAITERS; i++) {
        waiters[i].job = job;
        waiters[i].ended = -1;
        if (pthread_create(&waiters[i].thread, NULL, wait_once, &waiters[i]) != 0) {
            exit(2);
        }
    }
    pthread_mutex_unlock(&check_lock);
    for (i = 0; i < WAITERS; i++) {
        pthread_join(waiters[i].thread, NULL);
        CHECK_INT(waiters[i].ended, ==, DIFFUSION_OK);
    }
    CHECK(m.alone && m.monotone && m.known);
    OK(diffusion_job_destroy(job));
    pthread_mutex_destroy(&m.lock);
}

/* A training step that waits behind a job and is cancelled has changed nothing; one that was not has. */
static void *train_once(void *user) {
    blocked *b = user;
    __sync_lock_test_and_set(&b->started, 1);
    b->status = diffusion_train_step(b->process, reference, N, 1, NULL);
    return NULL;
}

static void test_cancelled_training(void) {
    diffusion_config config = slow_config();
    diffusion_process *slow = must_create(&config);
    uint64_t taken = 0, steps = 0;
    int round;
    SECTION("a training step cancelled while it waits");
    for (round = 0; round < 10; round++) {
        diffusion_job *job = submit(slow, LONG, 1000, 1);
        blocked b;
        memset(&b, 0, sizeof b);
        b.process = slow;
        until_running(job);
        CHECK(pthread_create(&b.thread, NULL, train_once, &b) == 0);
        while (!__sync_fetch_and_add(&b.started, 0)) {
            sched_yield();
        }
        usleep((useconds_t)(round * 2000)); /* before it is queued, or after: both must be right */
        OK(diffusion_cancel(slow));
        pthread_join(b.thread, NULL);
        CHECK(b.status == DIFFUSION_OK || b.status == DIFFUSION_ERROR_CANCELLED);
        taken += b.status == DIFFUSION_OK;
        OK(diffusion_get_step_count(slow, &steps));
        CHECK_INT(steps, ==, taken);
        OK(diffusion_job_destroy(job));
    }
    OK(diffusion_destroy(slow));
}

/* Training is a barrier: a job submitted before sees the old weights, one submitted after it the new ones. */
static void test_barrier(void) {
    diffusion_config config = tiny_config();
    diffusion_process *a, *b;
    diffusion_job *before, *after;
    float old[N], new[N], out[N], bias[TINY_CHANNELS] = {2, 2, 2};
    SECTION("training and writing weights wait for the jobs before them");
    config.learning_rate = 0.05;
    a = must_create(&config);
    b = must_create(&config);
    OK(diffusion_sample_ddim(a, 1, 40, 0, 5, old, N));
    before = submit(b, 1, 40, 5);
    OK(diffusion_train_step(b, reference, 4 * N, 4, NULL));
    OK(diffusion_parameter_write(b, DIFFUSION_WEIGHTS_TRAINED, "conv_out.bias", bias, TINY_CHANNELS));
    after = submit(b, 1, 40, 5);
    OK(diffusion_train_step(a, reference, 4 * N, 4, NULL));
    OK(diffusion_parameter_write(a, DIFFUSION_WEIGHTS_TRAINED, "conv_out.bias", bias, TINY_CHANNELS));
    OK(diffusion_sample_ddim(a, 1, 40, 0, 5, new, N));
    CHECK(max_difference(old, new, N) > 1e-2);
    OK(diffusion_job_wait(before, -1));
    OK(diffusion_job_fetch(before, out, sizeof out));
    CHECK_BELOW(max_difference(out, old, N), 1e-4);
    OK(diffusion_job_wait(after, -1));
    OK(diffusion_job_fetch(after, out, sizeof out));
    CHECK_BELOW(max_difference(out, new, N), 1e-4);
    OK(diffusion_job_destroy(before));
    OK(diffusion_job_destroy(after));
    OK(diffusion_destroy(a));
    OK(diffusion_destroy(b));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void *wait_for(void *job) {
    return (void *)(intptr_t)diffusion_job_wait(job, -1);
}

static int32_t mark_started(uint64_t done, uint64_t total, void *user) {
    (void)done, (void)total;
    __sync_lock_test_and_set(&((blocked *)user)->started, 1);
    return 0;
}

static void *sample_for_ever(void *user) {
    blocked *b = user;
    size_t bytes = (size_t)LONG * N * sizeof(float);
    char *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    diffusion_sample_params params = sample_params(LONG, 1000, 1);
    params.progress = mark_started;
    params.user_data = b;
    b->status = diffusion_sample_with(b->process, &params, out, bytes);
    CHECK(out[0] == 0 && out[bytes - 1] == 0);
    munmap(out, bytes);
    return NULL;
}

static void test_ending_under_load(void) {
    enum { BLOCKED = 4, JOBS = 5 };
    int destroy;
    SECTION("diffusion_cancel and diffusion_destroy with calls, jobs and waiters under way");
    for (destroy = 0; destroy < 2; destroy++) {
        diffusion_config config = slow_config();
        diffusion_process *slow = must_create(&config);
        diffusion_job *jobs[JOBS], *finished = submit(slow, 2, 3, 1);
        pthread_t waiters[JOBS];
        blocked calls[BLOCKED];
        float first[2 * N], again[2 * N];
        int i;
        OK(diffusion_job_wait(finished, -1));
        OK(diffusion_job_fetch(finished, first, sizeof first));
        for (i = 0; i < BLOCKED; i++) {
            memset(&calls[i], 0, sizeof calls[i]);
            calls[i].process = slow;
            CHECK(pthread_create(&calls[i].thread, NULL, sample_for_ever, &calls[i]) == 0);
        }
        for (i = 0; i < JOBS; i++) {
            jobs[i] = submit(slow, LONG, 1000, (uint64_t)i);
            CHECK(pthread_create(&waiters[i], NULL, wait_for, jobs[i]) == 0);
        }
        while (!__sync_fetch_and_add(&calls[0].started, 0)) {
            usleep(1000);
        }
        if (destroy) {
            OK(diffusion_destroy(slow));
        } else {
            /* A call that has not begun when cancel comes is not cancelled by it: go on until all have ended.
             */
            for (i = 0; i < BLOCKED; i++) {
                while (!__sync_fetch_and_add(&calls[i].started, 0)) {
                    usleep(1000);
                }
            }
            OK(diffusion_cancel(slow));
        }
        for (i = 0; i < BLOCKED; i++) {
            pthread_join(calls[i].thread, NULL);
            check_that(calls[i].status == DIFFUSION_ERROR_CANCELLED ||
                           (destroy && calls[i].status == DIFFUSION_ERROR_INVALID_HANDLE),
                       __FILE__, __LINE__, "a blocking call ended as %s",
                       diffusion_status_string(calls[i].status));
        }
        for (i = 0; i < JOBS; i++) {
            void *ended;
            pthread_join(waiters[i], &ended);
            CHECK_INT((intptr_t)ended, ==, DIFFUSION_ERROR_CANCELLED);
            CHECK_INT(state_of(jobs[i]), ==, DIFFUSION_JOB_CANCELLED);
            CHECK_STATUS(diffusion_job_wait(jobs[i], 0), DIFFUSION_ERROR_CANCELLED);
            OK(diffusion_job_cancel(jobs[i]));
            OK(diffusion_job_progress(jobs[i], NULL, NULL));
            OK(diffusion_job_destroy(jobs[i]));
        }
        /* What was finished before stays so, also without its process. */
        CHECK_INT(state_of(finished), ==, DIFFUSION_JOB_DONE);
        OK(diffusion_job_fetch(finished, again, sizeof again));
        CHECK(same_bits(first, again, sizeof first));
        OK(diffusion_job_destroy(finished));
        if (destroy) {
            CHECK_STATUS(diffusion_destroy(slow), DIFFUSION_ERROR_INVALID_HANDLE);
        } else {
            OK(diffusion_sample_ddim(slow, 2, 3, 0, 1, again, 2 * N));
            CHECK_BELOW(max_difference(first, again, 2 * N), 1e-4);
            OK(diffusion_destroy(slow));
        }
    }
}

/* Calls of every kind until the handle ends; nothing but these three answers. */
static void *hammer(void *user) {
    blocked *b = user;
    float image[N], out[N], noise[N];
    int64_t timestep = 2;
    uint64_t steps;
    int round;
    memset(image, 0, sizeof image);
    for (round = 0;; round++) {
        diffusion_sample_params params = sample_params(1, 2, (uint64_t)round);
        diffusion_job *job = NULL;
        int32_t status;
        switch (round % 6) {
            case 0:
                status = diffusion_get_step_count(b->process, &steps);
                break;
            case 1:
                status = diffusion_add_noise(b->process, image, N, &timestep, 1, 0, out, N, noise, N);
                break;
            case 2:
                status = diffusion_train_step(b->process, image, N, 1, NULL);
                break;
            case 3:
                status = diffusion_sample_ddim(b->process, 1, 2, 0, 0, out, N);
                break;
            case 4:
                status = diffusion_sample_submit(b->process, &params, &job);
                if (status == DIFFUSION_OK) {
                    int32_t ended = diffusion_job_wait(job, -1);
                    CHECK(ended == DIFFUSION_OK || ended == DIFFUSION_ERROR_CANCELLED);
                    CHECK_STATUS(diffusion_job_destroy(job), DIFFUSION_OK);
                }
                break;
            default:
                status = diffusion_parameter_read(b->process, 0, "conv_out.bias", out, TINY_CHANNELS);
                break;
        }
        __sync_lock_test_and_set(&b->started, 1);
        if (status != DIFFUSION_OK) {
            check_that(status == DIFFUSION_ERROR_INVALID_HANDLE || status == DIFFUSION_ERROR_CANCELLED,
                       __FILE__, __LINE__, "call %d of a process being destroyed: %s: %s", round % 6,
                       diffusion_status_string(status), diffusion_last_error_message());
            if (status == DIFFUSION_ERROR_INVALID_HANDLE) {
                return NULL;
            }
        }
    }
}

static void *destroy_it(void *handle) {
    return (void *)(intptr_t)diffusion_destroy(handle);
}

static void test_destroy_races(void) {
    enum { THREADS = 6, ENDERS = 3 };
    int round, i;
    SECTION("destroyed by several threads while others call it");
    for (round = 0; round < 8; round++) {
        diffusion_config config = tiny_config();
        diffusion_process *victim = must_create(&config);
        blocked users[THREADS];
        pthread_t enders[ENDERS];
        int won = 0;
        for (i = 0; i < THREADS; i++) {
            memset(&users[i], 0, sizeof users[i]);
            users[i].process = victim;
            CHECK(pthread_create(&users[i].thread, NULL, hammer, &users[i]) == 0);
        }
        while (!__sync_fetch_and_add(&users[round % THREADS].started, 0)) {
            sched_yield();
        }
        for (i = 0; i < ENDERS; i++) {
            CHECK(pthread_create(&enders[i], NULL, destroy_it, victim) == 0);
        }
        for (i = 0; i < ENDERS; i++) {
            void *ended;
            pthread_join(enders[i], &ended);
            won += (intptr_t)ended == DIFFUSION_OK;
            CHECK((intptr_t)ended == DIFFUSION_OK || (intptr_t)ended == DIFFUSION_ERROR_INVALID_HANDLE);
        }
        CHECK_INT(won, ==, 1);
        for (i = 0; i < THREADS; i++) {
            pthread_join(users[i].thread, NULL);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 */

enum { CROWD = 64 };
static float crowd[CROWD * N];

static void *one_image(void *which) {
    uint64_t i = (uint64_t)(uintptr_t)which;
    CHECK_STATUS(diffusion_sample_ddim(process, 1, 10, 0, 1000 + i, crowd + i * N, N), DIFFUSION_OK);
    return NULL;
}

static void test_crowd(void) {
    pthread_t threads[CROWD];
    static float at_once[CROWD * N];
    uint64_t seeds[CROWD];
    diffusion_sample_params params = sample_params(CROWD, 10, 0);
    uintptr_t i;
    SECTION("64 threads, an image each: the same as one call for 64");
    for (i = 0; i < CROWD; i++) {
        seeds[i] = 1000 + i;
    }
    for (i = 0; i < CROWD; i++) {
        CHECK(pthread_create(&threads[i], NULL, one_image, (void *)i) == 0);
    }
    for (i = 0; i < CROWD; i++) {
        pthread_join(threads[i], NULL);
    }
    params.seeds = seeds;
    params.seeds_len = CROWD;
    OK(diffusion_sample_with(process, &params, at_once, sizeof at_once));
    for (i = 0; i < CROWD; i++) {
        CHECK_BELOW(max_difference(crowd + i * N, at_once + i * N, N), 1e-4);
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 */

typedef struct log_seen {
    diffusion_process *process;
    pthread_t thread;
    int calls, warnings, right_thread;
    int32_t reentrant, saved;
    char message[512];
} log_seen;

static void on_log(int32_t level, const char *message, void *user) {
    log_seen *l = user;
    uint64_t steps;
    l->calls++;
    l->right_thread = pthread_equal(l->thread, pthread_self());
    if (level == DIFFUSION_LOG_WARNING) {
        l->warnings++;
        snprintf(l->message, sizeof l->message, "%s", message);
    }
    CHECK(level == DIFFUSION_LOG_WARNING || level == DIFFUSION_LOG_INFO);
    CHECK(diffusion_abi_version() == DIFFUSION_ABI_VERSION && diffusion_version()[0] != 0);
    CHECK(strcmp(diffusion_status_string(0), "unknown status") != 0);
    l->reentrant = diffusion_get_step_count(l->process, &steps);
    l->saved = diffusion_destroy(l->process);
}

static void test_log(void) {
    diffusion_config config = tiny_config();
    diffusion_process *noisy, *clean;
    float table[TINY_STEPS];
    log_seen l;
    diffusion_sample_params params;
    float out[2 * TINY_IMAGE];
    char figure[16];
    SECTION("the log: a schedule that leaves some of the image");
    config.beta_schedule = DIFFUSION_SCHEDULE_LINEAR;
    config.beta_end = 0.02;
    noisy = must_create(&config);
    OK(diffusion_get_schedule(noisy, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, table, TINY_STEPS));
    CHECK(table[TINY_STEPS - 1] > 0.1f);
    memset(&l, 0, sizeof l);
    l.process = noisy;
    l.thread = pthread_self();
    OK(diffusion_set_log_callback(noisy, on_log, &l));
    CHECK_INT(l.warnings, ==, 1);
    CHECK(l.right_thread);
    snprintf(figure, sizeof figure, "%.2f", floor(table[TINY_STEPS - 1] * 100) / 100);
    check_that(strstr(l.message, figure) != NULL ||
                   strstr(l.message,
                          (snprintf(figure, sizeof figure, "%.2f", table[TINY_STEPS - 1]), figure)) != NULL,
               __FILE__, __LINE__, "the warning does not say %s: %s", figure, l.message);
    CHECK_STATUS(l.reentrant, DIFFUSION_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(l.saved, DIFFUSION_ERROR_INVALID_ARGUMENT);
    /* Delivered once. */
    memset(l.message, 0, sizeof l.message);
    l.warnings = 0;
    OK(diffusion_set_log_callback(noisy, NULL, NULL));
    OK(diffusion_set_log_callback(noisy, on_log, &l));
    CHECK_INT(l.warnings, ==, 0);
    OK(diffusion_destroy(noisy)); /* with the callback set */

    config = tiny_config();
    clean = must_create(&config);
    memset(&l, 0, sizeof l);
    l.process = clean;
    OK(diffusion_set_log_callback(clean, on_log, &l));
    CHECK_INT(l.warnings, ==, 0);

    SECTION("the log: sampling that starts off pure noise");
    OK(diffusion_get_schedule(clean, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, table, TINY_STEPS));
    params = sample_params(2, 3, 0);
    OK(diffusion_sample_with(clean, &params, out, sizeof out)); /* trailing, as new processes have it */
    CHECK_INT(l.warnings, ==, 0);
    params.spacing = DIFFUSION_SPACING_LEADING; /* timesteps 32, 16 and 0 of 50 */
    OK(diffusion_sample_with(clean, &params, out, sizeof out));
    CHECK_INT(l.warnings, ==, 1);
    CHECK(!l.right_thread);
    CHECK_STATUS(l.reentrant, DIFFUSION_ERROR_INVALID_ARGUMENT);
    snprintf(figure, sizeof figure, "%.3f", table[32]);
    check_that(strstr(l.message, "timestep 32 of 50") != NULL && strstr(l.message, figure) != NULL, __FILE__,
               __LINE__, "the warning does not say 32 of 50 and %s: %s", figure, l.message);
    params.seed = 1;
    OK(diffusion_sample_with(clean, &params, out, sizeof out)); /* the same again: said once */
    CHECK_INT(l.warnings, ==, 1);
    params.steps = 4; /* 36 of 50 */
    OK(diffusion_sample_with(clean, &params, out, sizeof out));
    CHECK_INT(l.warnings, ==, 2);
    OK(diffusion_destroy(clean));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static long entries(const char *folder) {
    long count = 0;
    DIR *dir = opendir(folder);
    while (dir != NULL && readdir(dir) != NULL) {
        count++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return count;
}

static long resident(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1) {
        exit(2);
    }
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Threads end a moment after they were joined, in the kernel's own time: wait for it, but not for ever. */
static long threads_at_most(long most) {
    long now = 0;
    int i;
    for (i = 0; i < 3000 && (now = entries("/proc/self/task")) > most; i++) {
        usleep(10000);
    }
    return now;
}

static void one_life(int round) {
    diffusion_config config = tiny_config();
    diffusion_process *p;
    diffusion_job *job;
    float image[N], out[N];
    config.ema_decay = 0.5;
    p = must_create(&config);
    memset(image, 0, sizeof image);
    OK(diffusion_train_step(p, image, N, 1, NULL));
    OK(diffusion_sample_ddim(p, 1, 2, 0, 1, out, N));
    job = submit(p, 2, 5, 1); /* destroyed before, after and without its end */
    if (round % 3 == 0) {
        OK(diffusion_job_wait(job, -1));
    }
    if (round % 2 == 0) {
        OK(diffusion_job_destroy(job));
        OK(diffusion_destroy(p));
    } else {
        OK(diffusion_destroy(p));
        OK(diffusion_job_destroy(job));
    }
    CHECK(diffusion_train_step(p, image, N, 1, NULL) == DIFFUSION_ERROR_INVALID_HANDLE);
}

static void test_no_growth(void) {
    long memory, threads, files, after;
    int i;
    SECTION("200 processes: no memory, thread or file more than after 30");
    for (i = 0; i < 30; i++) {
        one_life(i);
    }
    threads = threads_at_most(0);
    files = entries("/proc/self/fd");
    memory = resident();
    for (i = 0; i < 200; i++) {
        one_life(i);
    }
    CHECK_INT(threads_at_most(threads), <=, threads);
    CHECK_INT(entries("/proc/self/fd"), <=, files);
    after = resident();
    printf("    resident %ld KB, then %ld KB\n", memory, after);
    /* A leaked process would be 20 MB in 200; the allocator's own drift is a few. */
    CHECK_INT(after - memory, <, 12 * 1024);
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void *on_small_stack(void *user) {
    /* Buffers outside the stack, no stdio: the 16 KB are the library's. */
    static float image[N], out[2 * N], noise[N];
    static diffusion_config config;
    static diffusion_sample_params params;
    static char missing[] = "/proc/no/such/checkpoint";
    int32_t *status = user;
    int64_t timestep = 1;
    diffusion_process *p = NULL, *none = NULL;
    diffusion_job *job = NULL;
    int i = 0;
    status[i++] = diffusion_config_init(&config);
    config.image_size = TINY_SIZE;
    config.hidden_dims_len = 2;
    config.hidden_dims[0] = 8;
    config.hidden_dims[1] = 16;
    config.noise_steps = TINY_STEPS;
    config.device = DIFFUSION_DEVICE_CPU;
    status[i++] = diffusion_create(&config, &p);
    status[i++] = diffusion_add_noise(p, image, N, &timestep, 1, 0, out, N, noise, N);
    status[i++] = diffusion_predict_noise(p, image, N, &timestep, 1, out, N);
    status[i++] = diffusion_sample_ddim(p, 1, 2, 0, 0, out, N);
    status[i++] = diffusion_train_step(p, image, N, 1, NULL);
    status[i++] = diffusion_sample_params_init(&params);
    params.num_samples = 2;
    params.steps = 3;
    status[i++] = diffusion_sample_submit(p, &params, &job);
    status[i++] = diffusion_job_wait(job, -1);
    status[i++] = diffusion_job_fetch(job, out, sizeof out);
    status[i++] = diffusion_job_destroy(job);
    status[i++] = diffusion_load(missing, NULL, &none) != DIFFUSION_ERROR_IO;
    status[i++] = diffusion_sample_ddim(p, 1, -1, 0, 0, out, N) != DIFFUSION_ERROR_INVALID_ARGUMENT;
    status[i++] = diffusion_last_error_message()[0] == 0;
    status[i++] = diffusion_destroy(p);
    status[i] = -1;
    return NULL;
}

/* What the system takes of a thread's stack for itself and all libraries' thread-local variables. */
static void *do_nothing(void *unused) {
    return unused;
}

static size_t reserved_stack(void) {
    size_t size;
    for (size = 16 * 1024; size < 4 * 1024 * 1024; size += 4096) {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        if (pthread_attr_setstacksize(&attributes, size) == 0 &&
            pthread_create(&thread, &attributes, do_nothing, NULL) == 0) {
            pthread_join(thread, NULL);
            break;
        }
    }
    return size;
}

static void test_small_stack(void) {
    static const size_t sizes[] = {64 * 1024, 16 * 1024};
    size_t k, reserved = reserved_stack();
    SECTION("threads with stacks of 64 and 16 KB beyond what the system needs");
    for (k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int32_t status[32] = {0};
        pthread_attr_t attributes;
        pthread_t thread;
        int i, error;
        pthread_attr_init(&attributes);
        CHECK_INT(pthread_attr_setstacksize(&attributes, reserved + sizes[k]), ==, 0);
        error = pthread_create(&thread, &attributes, on_small_stack, status);
        if (!check_that(error == 0, __FILE__, __LINE__, "a thread with %zu bytes of stack: %s",
                        reserved + sizes[k], strerror(error))) {
            continue;
        }
        pthread_join(thread, NULL);
        for (i = 0; i < 32 && status[i] != -1; i++) {
            check_that(status[i] == 0, __FILE__, __LINE__, "call %d on a stack of %zu: %s", i, sizes[k],
                       diffusion_status_string(status[i]));
        }
        CHECK_INT(i, ==, 15);
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 */

/* The exit code says what went wrong; nothing of stdio, whose locks another thread may have held at the fork.
 */
static int in_child(diffusion_process *p, diffusion_job *job, const diffusion_config *config) {
    static float image[N], out[N], noise[N];
    diffusion_process *mine = NULL;
    int64_t timestep = 1;
    int32_t state;
    uint64_t steps;
    alarm(60); /* a hang becomes a death */
    if (diffusion_get_step_count(p, &steps) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 10;
    }
    if (diffusion_last_error_message()[0] == 0) {
        return 11;
    }
    if (diffusion_add_noise(p, image, N, &timestep, 1, 0, out, N, noise, N) !=
        DIFFUSION_ERROR_INVALID_HANDLE) {
        return 12;
    }
    if (diffusion_sample(p, 1, 0, out, N) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 13;
    }
    if (diffusion_job_poll(job, &state) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 14;
    }
    if (diffusion_job_wait(job, -1) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 15;
    }
    if (diffusion_job_destroy(job) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 16;
    }
    if (diffusion_destroy(p) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 17;
    }
    if (diffusion_create(config, &mine) != DIFFUSION_ERROR_INVALID_HANDLE) {
        return 18;
    }
    if (strstr(diffusion_last_error_message(), "fork") == NULL) {
        return 19;
    }
    return 0;
}

static void test_fork(void) {
    diffusion_config config = slow_config();
    diffusion_process *slow = must_create(&config);
    diffusion_job *job;
    float out[8 * N];
    int i;
    SECTION("fork: the child gets errors, the parent goes on");
    job = submit(slow, LONG, 1000, 1);
    until_running(job);
    for (i = 0; i < 6; i++) {
        int status = -1;
        pid_t child;
        fflush(stdout);
        child = fork();
        if (child == 0) {
            int code = in_child(slow, job, &config);
            /* The threads that know of the parent's memory are gone: to a sanitizer all of it would be lost.
             */
            if (i % 2 == 0 || CHECK_SANITIZED) {
                _exit(code);
            }
            exit(code); /* with the exit handlers of all libraries */
        }
        CHECK(child > 0);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
        CHECK_EXIT(status);
    }
    CHECK_INT(state_of(job), ==, DIFFUSION_JOB_RUNNING);
    OK(diffusion_job_destroy(job));
    OK(diffusion_destroy(slow));
    OK(diffusion_sample_ddim(process, 8, 10, 0, 77, out, 8 * N));
    CHECK(same_bits(out, reference, sizeof out));
}

/* A server that forks its workers before the first call: the library works in each of them. */
static void test_fork_before_use(void) {
    int status = -1;
    pid_t child;
    SECTION("fork before the first call: the child is a program like any other");
    fflush(stdout);
    child = fork();
    if (child == 0) {
        diffusion_config config;
        diffusion_process *mine = NULL;
        float out[N];
        alarm(120);
        config = tiny_config();
        if (diffusion_create(&config, &mine) != DIFFUSION_OK) {
            _exit(10);
        }
        if (diffusion_sample_ddim(mine, 1, 3, 0, 0, out, N) != DIFFUSION_OK) {
            _exit(11);
        }
        _exit(diffusion_destroy(mine) != DIFFUSION_OK);
    }
    waitpid(child, &status, 0);
    CHECK_EXIT(status);
}

/* main ends while a process computes and a job is under way: no crash, no hang. */
static int exit_program(void) {
    diffusion_config config = slow_config();
    diffusion_process *slow = must_create(&config);
    diffusion_job *job = submit(slow, LONG, 1000, 1);
    alarm(120);
    until_running(job);
    return check_failed != 0;
}

/* What a preview's callback looks at. */
typedef struct {
    diffusion_job *job;
    uint64_t calls;
    float first[2 * N], image[2 * N];
    int gray_first, stale, failed;
} preview_watch;

static int32_t on_watch(uint64_t done, uint64_t total, void *data) {
    preview_watch *w = data;
    uint64_t seen = 0;
    int i;
    (void)total;
    w->failed |= diffusion_job_preview(w->job, w->image, sizeof w->image, &seen) != DIFFUSION_OK;
    w->stale |= seen > done + 2;
    if (w->calls++ == 0 && seen > 0) {
        memcpy(w->first, w->image, sizeof w->first);
    }
    for (i = 0; i < 2 * N; i++) {
        w->failed |= !(w->image[i] >= -1.0F && w->image[i] <= 1.0F);
    }
    return 0;
}

static void test_preview(void) {
    diffusion_process *slow;
    diffusion_config config = slow_config();
    diffusion_sample_params params = sample_params(2, 1, 3);
    diffusion_job *job;
    static preview_watch w;
    float out[2 * N], start[2 * N], eps[2 * N], alphas[1000], sigmas[1000];
    int64_t last[2] = {999, 999};
    uint64_t done = 7;
    uint64_t seen[2];
    int i, round;
    SECTION("previews: gray at first, then each step's estimate, the images at the end");
    slow = must_create(&config);
    OK(diffusion_get_schedule(slow, DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD, alphas, 1000));
    OK(diffusion_get_schedule(slow, DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD, sigmas, 1000));
    for (i = 0; i < 2 * N; i++) {
        start[i] = (float)((i * 37) % 101 - 50) / 30.0F;
    }
    OK(diffusion_predict_noise(slow, start, 2 * N, last, 2, eps, 2 * N));

    /* A long job in lock step with nothing: its first estimate is x0 of the network's answer at the start. */
    params = sample_params(2, 1000, 3);
    params.initial_noise = start;
    params.initial_noise_len = 2 * N;
    params.progress = on_watch;
    params.user_data = &w;
    OK(diffusion_sample_submit(slow, &params, &job));
    OK(diffusion_job_preview(job, out, sizeof out, &done));
    CHECK_INT(done, ==, 0);
    for (i = 0; i < 2 * N; i++) {
        w.gray_first |= out[i] != 0.0F;
    }
    CHECK(!w.gray_first);
    w.job = job;
    OK(diffusion_job_wait(job, -1));
    CHECK(!w.failed);
    CHECK(!w.stale);
    CHECK_INT(w.calls, >, 10);
    OK(diffusion_job_preview(job, out, sizeof out, &done));
    CHECK_INT(done, ==, 2000);
    OK(diffusion_job_fetch(job, w.image, sizeof out));
    CHECK(same_bits(out, w.image, sizeof out));
    OK(diffusion_job_destroy(job));

    /* The very first estimate, where the first look was early enough to be given it. */
    for (round = 0; round < 50; round++) {
        OK(diffusion_sample_submit(slow, &params, &job));
        OK(diffusion_job_preview(job, out, sizeof out, &seen[0]));
        do {
            OK(diffusion_job_preview(job, out, sizeof out, &seen[0]));
        } while (seen[0] == 0);
        OK(diffusion_job_cancel(job));
        CHECK_STATUS(diffusion_job_preview(job, out, sizeof out, &seen[1]), DIFFUSION_ERROR_CANCELLED);
        OK(diffusion_job_destroy(job));
        if (seen[0] == 2) {
            break;
        }
    }
    CHECK_INT(seen[0], ==, 2);
    for (i = 0; i < 2 * N && seen[0] == 2; i++) {
        double x0 = ((double)start[i] - (double)sigmas[999] * (double)eps[i]) / (double)alphas[999];
        x0 = x0 > 1 ? 1 : x0 < -1 ? -1 : x0;
        CHECK(fabs(x0 - (double)out[i]) < 1e-3);
    }
    OK(diffusion_destroy(slow));
}

int main(int argc, char **argv) {
    diffusion_config config;
    int round;
    if (argc > 1 && strcmp(argv[1], "exit") == 0) {
        return exit_program();
    }
    test_fork_before_use();
    config = tiny_config();
    process = must_create(&config);
    OK(diffusion_sample_ddim(process, 8, 10, 0, 77, reference, 8 * N));
    test_life();
    test_progress();
    test_callbacks_that_act();
    test_preview();
    test_timeouts();
    test_merged();
    test_many();
    test_several_waiters();
    test_cancelled_training();
    test_barrier();
    test_ending_under_load();
    test_destroy_races();
    test_crowd();
    test_log();
    if (!CHECK_SANITIZED) {
        test_small_stack();
    }
    test_fork();
    SECTION("the program ends while a job runs, 12 times");
    for (round = 0; round < 12; round++) {
        CHECK_EXIT(run_self("exit", NULL, -1));
    }
    if (!CHECK_SANITIZED) {
        test_no_growth();
    }
    OK(diffusion_destroy(process));
    return check_done("jobs");
}
