/*
 * What errors.c and checkpoints.c share: one call that must fail is a status, a message that says which
 * argument, its value and what it may be, every output unchanged byte for byte, and a process that works on.
 */
#ifndef REFUSED_H
#define REFUSED_H

#include "check.h"

/* Whatever a call of this program may write, in one piece: a failing call must change none of it. */
static struct outputs {
    uint64_t before[8];
    float noisy[2 * TINY_IMAGE];
    float noise[2 * TINY_IMAGE];
    float out[4 * TINY_IMAGE];
    float table[TINY_STEPS + 2];
    diffusion_process *process;
    diffusion_job *job;
    diffusion_config config;
    diffusion_sample_params params;
    diffusion_parameter parameter;
    unsigned char bytes[64 * 1024];
    float loss;
    double real;
    uint64_t done, total, steps;
    size_t size;
    int32_t number;
    uint64_t after[8];
} o, o_before;

static diffusion_process *process; /* the process that must work on after every failure */
static float *images;              /* two images, an unreadable page behind them */
static int64_t *timesteps;         /* two of them, likewise */
static float *conv_in;             /* conv_in.weight's values */
enum { CONV_IN = 8 * 3 * 3 * 3 };  /* how many those are */
static char folder[256];           /* where checkpoints of this run go */

/* A call through the engine that must succeed, with arguments and outputs of its own. */
static inline int alive(void) {
    static const float image[TINY_IMAGE];
    static const int64_t timestep = 5;
    static float noisy[TINY_IMAGE], noise[TINY_IMAGE];
    return diffusion_add_noise(process, image, TINY_IMAGE, &timestep, 1, 7, noisy, TINY_IMAGE, noise,
                               TINY_IMAGE) == DIFFUSION_OK;
}

static inline void check_refused(int32_t got, int32_t want, const char *file, int line, const char *call,
                                 const char *name, const char *value, const char *allowed) {
    int works;
    if (check_status(got, want, file, line, call) && want != DIFFUSION_OK) {
        check_message(file, line, call, name, value, allowed);
    }
    check_that(memcmp(&o, &o_before, sizeof o) == 0, file, line, "%s: wrote to an output although it failed",
               call);
    works = alive();
    check_that(works, file, line, "%s: the process does not work afterwards: %s", call,
               works ? "" : diffusion_last_error_message());
}

/* The call fails with this status, says these words, writes nothing and breaks nothing. NULL words: not
 * looked for. */
#define REFUSED(call, want, name, value, allowed)                                            \
    do {                                                                                     \
        int32_t refused_got;                                                                 \
        memcpy(&o_before, &o, sizeof o);                                                     \
        refused_got = (call);                                                                \
        check_refused(refused_got, (want), __FILE__, __LINE__, #call, name, value, allowed); \
    } while (0)

/* As REFUSED where the header leaves the choice between two statuses. */
#define REFUSED_EITHER(call, one, other, name, value, allowed)                                          \
    do {                                                                                                \
        int32_t refused_got;                                                                            \
        memcpy(&o_before, &o, sizeof o);                                                                \
        refused_got = (call);                                                                           \
        check_refused(refused_got, refused_got == (other) ? (other) : (one), __FILE__, __LINE__, #call, \
                      name, value, allowed);                                                            \
    } while (0)

#define INVALID DIFFUSION_ERROR_INVALID_ARGUMENT
#define NULLED DIFFUSION_ERROR_NULL_POINTER
#define SIZED DIFFUSION_ERROR_BUFFER_SIZE

static inline void put_file(const char *path, const void *content, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || (bytes != 0 && fwrite(content, 1, bytes, file) != bytes) || fclose(file) != 0) {
        printf("%s: %s\n", path, strerror(errno));
        exit(2);
    }
}

static inline unsigned char *get_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    unsigned char *content;
    long size;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0 ||
        fseek(file, 0, SEEK_SET) != 0) {
        printf("%s: %s\n", path, strerror(errno));
        exit(2);
    }
    content = must_alloc((size_t)size + 1);
    *bytes = fread(content, 1, (size_t)size, file);
    content[*bytes] = 0;
    fclose(file);
    return content;
}

/* The fixture: one process, two images, two timesteps, a folder. */
static inline void make_fixture(void) {
    diffusion_config config = tiny_config();
    must_tempdir(folder);
    memset(&o, 0xA5, sizeof o);
    process = must_create(&config);
    images = must_guard(2 * TINY_IMAGE * sizeof(float));
    timesteps = must_guard(2 * sizeof(int64_t));
    conv_in = must_guard(CONV_IN * sizeof(float));
    fill_random(images, 2 * TINY_IMAGE, 3);
    timesteps[0] = 1;
    timesteps[1] = TINY_STEPS - 1;
    OK(diffusion_parameter_read(process, DIFFUSION_WEIGHTS_TRAINED, "conv_in.weight", conv_in, CONV_IN));
}

static inline void end_fixture(void) {
    OK(diffusion_destroy(process));
    must_shell("rm -rf '%s'", folder);
}

#endif /* REFUSED_H */
