/*
 * Mixed jobs, one after the other, for as long as one likes: memory, threads and open files stay what they
 * were.
 *
 *   SOAK_JOBS=20000   how many (2000)
 *
 * Memory is looked at twice, with nothing under way: the bytes that are given out and not given back, counted
 * by this program's own malloc and free, which a leak raises by its own size; and the resident pages. A line
 * is laid through the samples of each by least squares.
 */
#include "check.h"

#include <dirent.h>
#include <malloc.h>

enum { N = TINY_IMAGE, SAMPLES = 40, KINDS = 12 };

static diffusion_process *process;
static char folder[256], path[300];
static float image[4 * N];
static long done_of_kind[KINDS], processes_made;

static long entries(const char *of) {
    long count = -2;
    DIR *dir = opendir(of);
    while (dir != NULL && readdir(dir) != NULL) {
        count++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return count;
}

static double resident(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1) {
        exit(2);
    }
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* In the place of libc's, for every library of the process. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static volatile long given_out, blocks_out;

static void *count_in(void *block) {
    __sync_add_and_fetch(&given_out, (long)malloc_usable_size(block));
    __sync_add_and_fetch(&blocks_out, block != NULL);
    return block;
}

static void count_out(void *block) {
    __sync_sub_and_fetch(&given_out, (long)malloc_usable_size(block));
    __sync_sub_and_fetch(&blocks_out, block != NULL);
}

void *malloc(size_t bytes) {
    return count_in(__libc_malloc(bytes));
}
void *calloc(size_t count, size_t bytes) {
    return count_in(__libc_calloc(count, bytes));
}
void *realloc(void *block, size_t bytes) {
    long before = (long)malloc_usable_size(block);
    void *moved = __libc_realloc(block, bytes);
    if (moved != NULL || bytes == 0) {
        __sync_sub_and_fetch(&given_out, before);
        __sync_sub_and_fetch(&blocks_out, block != NULL);
        count_in(moved);
    }
    return moved;
}
void *memalign(size_t alignment, size_t bytes) {
    return count_in(__libc_memalign(alignment, bytes));
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    return count_in(__libc_memalign(alignment, bytes));
}
int posix_memalign(void **block, size_t alignment, size_t bytes) {
    *block = count_in(__libc_memalign(alignment, bytes));
    return *block != NULL ? 0 : ENOMEM;
}
void free(void *block) {
    count_out(block);
    __libc_free(block);
}

/* A thread that was joined is gone from the kernel's list a moment later. */
static long threads_at_most(long most) {
    long now = 0;
    int i;
    for (i = 0; i < 3000 && (now = entries("/proc/self/task")) > most; i++) {
        usleep(10000);
    }
    return now;
}

static int32_t cancel_halfway(uint64_t done, uint64_t total, void *unused) {
    (void)unused;
    return done * 2 > total;
}

static void one_job(uint64_t i, uint64_t *state) {
    int kind = (int)(next_random(state) % KINDS);
    size_t images = next_random(state) % 4 + 1;
    diffusion_sample_params params = sample_params(images, 2 + (int32_t)(i % 7), i);
    diffusion_job *job = NULL;
    static unsigned char out[4 * N * sizeof(float)];
    static float noise[4 * N];
    int64_t times[4] = {1, 2, 3, 4};
    diffusion_process *other = NULL;
    diffusion_config config;
    size_t bytes;
    params.method = (int32_t)(i % (DIFFUSION_METHOD_HEUN + 1));
    params.format = (int32_t)(i % (DIFFUSION_FORMAT_RGBA8 + 1));
    OK(diffusion_sample_size(process, &params, &bytes));
    switch (kind) {
        case 0:
            OK(diffusion_sample_with(process, &params, out, bytes));
            break;
        case 1: /* the usual one, with a preview */
            OK(diffusion_sample_submit(process, &params, &job));
            OK(diffusion_job_preview(job, out, bytes, NULL));
            OK(diffusion_job_wait(job, -1));
            OK(diffusion_job_fetch(job, out, bytes));
            OK(diffusion_job_destroy(job));
            break;
        case 2: /* never fetched */
            OK(diffusion_sample_submit(process, &params, &job));
            OK(diffusion_job_destroy(job));
            break;
        case 3:
            OK(diffusion_sample_submit(process, &params, &job));
            OK(diffusion_job_cancel(job));
            diffusion_job_wait(job, -1);
            OK(diffusion_job_destroy(job));
            break;
        case 4:
            params.progress = cancel_halfway;
            diffusion_sample_with(process, &params, out,
                                  bytes); /* or it was done before it was halfway seen */
            break;
        case 5:
            params.timeout_ms = 1;
            params.steps = TINY_STEPS;
            diffusion_sample_with(process, &params, out, bytes);
            break;
        case 6:
            OK(diffusion_train_step(process, image, images * N, images, NULL));
            break;
        case 7:
            OK(diffusion_add_noise(process, image, images * N, times, images, i, (float *)(void *)out,
                                   images * N, noise, images * N));
            OK(diffusion_predict_noise(process, image, images * N, times, images, noise, images * N));
            break;
        case 8: /* errors, with messages of their own */
            CHECK_STATUS(diffusion_sample_ddim(process, 1, -(int32_t)i - 1, 0, 0, noise, N),
                         DIFFUSION_ERROR_INVALID_ARGUMENT);
            CHECK_STATUS(diffusion_load("/no/such/folder", NULL, &other), DIFFUSION_ERROR_IO);
            break;
        case 9: /* a whole life */
            config = tiny_config();
            config.seed = i;
            config.ema_decay = i % 2 ? 0.5 : 0;
            other = must_create(&config);
            processes_made++;
            OK(diffusion_train_step(other, image, N, 1, NULL));
            OK(diffusion_sample_submit(other, &params, &job));
            OK(diffusion_destroy(other));
            OK(diffusion_job_destroy(job));
            break;
        case 10:
            OK(diffusion_save(process, path));
            break;
        default:
            if (OK(diffusion_load(path, NULL, &other))) {
                processes_made++;
                OK(diffusion_destroy(other));
            }
            break;
    }
    done_of_kind[kind]++;
}

/* Nothing is under way when this returns: what was abandoned or cancelled has been dropped. */
static void settle(long threads) {
    float out[N];
    OK(diffusion_sample_ddim(process, 1, 2, 0, 0, out, N));
    OK(diffusion_train_step(process, image, N, 1, NULL)); /* waits until no job is left */
    OK(diffusion_sample_ddim(process, 1, 2, 0, 0, out, N));
    threads_at_most(threads);
}

/* The slope of the line through the samples, and its standard error, both by sample. */
static void fit(const double *y, int n, double *slope, double *error) {
    double mean = 0, sxy = 0, sxx = 0, rest = 0;
    int i;
    for (i = 0; i < n; i++) {
        mean += y[i] / n;
    }
    for (i = 0; i < n; i++) {
        double x = i - (n - 1) / 2.0;
        sxy += x * (y[i] - mean);
        sxx += x * x;
    }
    *slope = sxy / sxx;
    for (i = 0; i < n; i++) {
        double off = y[i] - mean - *slope * (i - (n - 1) / 2.0);
        rest += off * off;
    }
    *error = sqrt(rest / (n - 2) / sxx);
}

int main(void) {
    const char *wanted = getenv("SOAK_JOBS");
    long jobs = wanted != NULL ? atol(wanted) : 2000, warm_up, each, threads, files, i, k;
    double memory[SAMPLES], blocks[SAMPLES], pages[SAMPLES], slope, error, growth;
    diffusion_config config = tiny_config();
    uint64_t state = 17;
    if (jobs < 400) {
        printf("SOAK_JOBS is %ld: must be at least 400\n", jobs);
        return 2;
    }
    warm_up = jobs / 4;
    each = jobs / SAMPLES;
    must_tempdir(folder);
    snprintf(path, sizeof path, "%s/model", folder);
    fill_random(image, 4 * N, 1);
    config.ema_decay = 0.9;
    process = must_create(&config);
    OK(diffusion_save(process, path));
    printf("  %ld jobs to warm up\n", warm_up);
    fflush(stdout);
    for (i = 0; i < warm_up; i++) {
        one_job((uint64_t)i, &state);
    }
    settle(0);
    memset(done_of_kind, 0, sizeof done_of_kind);
    threads = entries("/proc/self/task");
    files = entries("/proc/self/fd");
    printf("  %ld jobs of %d kinds\n", each * SAMPLES, KINDS);
    fflush(stdout);
    for (k = 0; k < SAMPLES; k++) {
        for (i = 0; i < each; i++) {
            one_job((uint64_t)(warm_up + k * each + i), &state);
        }
        settle(threads);
        memory[k] = (double)given_out;
        blocks[k] = (double)blocks_out;
        malloc_trim(0);
        pages[k] = resident();
        CHECK_INT(threads_at_most(threads), <=, threads);
        CHECK_INT(entries("/proc/self/fd"), ==, files);
        if (k % (SAMPLES / 8) == SAMPLES / 8 - 1) {
            printf("    %6ld jobs: %.0f KB given out, %.0f KB resident, %ld threads, %ld files\n",
                   (k + 1) * each, memory[k] / 1024, pages[k] / 1024, entries("/proc/self/task"),
                   entries("/proc/self/fd"));
            fflush(stdout);
        }
    }
    for (k = 0; k < KINDS; k++) {
        CHECK(done_of_kind[k] > 0);
    }
    fit(memory, SAMPLES, &slope, &error);
    printf("    given out: %+.2f bytes a job (standard error %.2f)\n", slope / (double)each,
           error / (double)each);
    /* What jobs or processes lose is blocks. */
    fit(blocks, SAMPLES, &slope, &error);
    printf("    blocks:    %+.4f a job (standard error %.4f)\n", slope / (double)each, error / (double)each);
    growth = blocks[SAMPLES - 1] - blocks[0];
    check_that(growth < (double)jobs / 100 + 32, __FILE__, __LINE__,
               "%.0f blocks more are given out after %ld jobs, with %ld processes made", growth,
               each * SAMPLES, processes_made);
    /* MKL, inside libtorch, keeps 34 bytes for every thread that ever multiplied matrices, in a table that
     * doubles: each process is two such threads, its own and its team's. */
    growth = memory[SAMPLES - 1] - memory[0];
    check_that(growth < (double)(jobs + 2 * 2 * 34 * processes_made + (16 << 10)), __FILE__, __LINE__,
               "the bytes given out grew by %.0f over %ld jobs, with %ld processes made", growth,
               each * SAMPLES, processes_made);
    fit(pages, SAMPLES, &slope, &error);
    growth = slope * (SAMPLES - 1);
    printf("    resident:  %+.2f bytes a job (standard error %.2f)\n", slope / (double)each,
           error / (double)each);
    check_that(growth < 3 * error * (SAMPLES - 1) + 2 * 1024 * 1024, __FILE__, __LINE__,
               "resident memory grew by %.0f bytes over %ld jobs", growth, each * SAMPLES);
    OK(diffusion_destroy(process));
    must_shell("rm -rf '%s'", folder);
    return check_done("soak");
}
