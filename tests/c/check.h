/*
 * What the C test programs share: checks that say where and with which values they failed, a net that is
 * small enough for seconds on two slow cores, and one closing line with the exit code that belongs to it.
 *
 * The tests know include/diffusion.h and nothing of the code behind it. A failed check does not end the
 * program: what comes after it is often what explains it.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "diffusion.h"

/* 1 under the address sanitizer (`make sanitize`), which needs memory and stacks of its own: limits on them
 * mean nothing. */
#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if __has_feature(address_sanitizer) || defined(__SANITIZE_ADDRESS__)
#define CHECK_SANITIZED 1
#else
#define CHECK_SANITIZED 0
#endif

static pthread_mutex_t check_lock = PTHREAD_MUTEX_INITIALIZER;
static long check_passed, check_failed;

/* Counts one check; prints only failures, so that a good run stays short. Any thread may call it. */
static inline int check_that(int good, const char *file, int line, const char *format, ...) {
    pthread_mutex_lock(&check_lock);
    if (good) {
        check_passed++;
    } else {
        va_list arguments;
        check_failed++;
        printf("%s:%d: ", file, line);
        va_start(arguments, format);
        vprintf(format, arguments);
        va_end(arguments);
        printf("\n");
        fflush(stdout);
    }
    pthread_mutex_unlock(&check_lock);
    return good;
}

/* Reads the status and, at once, the message that belongs to it: any later call may replace it. */
static inline int check_status(int32_t got, int32_t want, const char *file, int line, const char *call) {
    return check_that(got == want, file, line, "%s: is \"%s\", should be \"%s\"; message: %s", call,
                      diffusion_status_string(got), diffusion_status_string(want),
                      got == DIFFUSION_OK ? "" : diffusion_last_error_message());
}

/* Whether text holds word as a whole number or word: "0" is in "is 0:" and "is 0.0" but not in "1000" or
 * "0.5". */
static inline int has_word(const char *text, const char *word) {
    size_t length = strlen(word);
    const char *at;
    for (at = text; (at = strstr(at, word)) != NULL; at++) {
        char before = at == text ? ' ' : at[-1];
        const char *after = at + length;
        int starts =
            !((before >= '0' && before <= '9') || (before >= 'a' && before <= 'z') || before == '_' ||
              (before >= 'A' && before <= 'Z') || (before == '.' && word[0] >= '0' && word[0] <= '9') ||
              (before == '-' && word[0] >= '0' && word[0] <= '9'));
        int ends = !((*after >= '0' && *after <= '9') || (*after >= 'a' && *after <= 'z') || *after == '_' ||
                     (*after >= 'A' && *after <= 'Z'));
        if (*after == '.' && after[1] >= '0' && after[1] <= '9') {
            ends = after[1] == '0' && !(after[2] >= '0' && after[2] <= '9');
        }
        if (starts && ends) {
            return 1;
        }
    }
    return 0;
}

/*
 * The last message is one line, holds the argument's name, its value as a word and what it may be. NULL: not
 * looked for. Of the name, a '|' separates alternatives.
 */
static inline void check_message(const char *file, int line, const char *call, const char *name,
                                 const char *value, const char *allowed) {
    const char *message = diffusion_last_error_message();
    int named = name == NULL;
    if (!check_that(message != NULL && message[0] != 0, file, line, "%s: no message", call)) {
        return;
    }
    check_that(strchr(message, '\n') == NULL, file, line, "%s: more than one line: %s", call, message);
    if (name != NULL) {
        char names[256];
        char *next = names, *one;
        snprintf(names, sizeof names, "%s", name);
        while (!named && (one = next) != NULL) {
            next = strchr(one, '|');
            if (next != NULL) {
                *next++ = 0;
            }
            named = strstr(message, one) != NULL;
        }
    }
    check_that(named, file, line, "%s: message does not name \"%s\": %s", call, name ? name : "", message);
    check_that(value == NULL || has_word(message, value), file, line,
               "%s: message does not say the value %s: %s", call, value ? value : "", message);
    check_that(allowed == NULL || strstr(message, allowed) != NULL, file, line,
               "%s: message does not say what is allowed (%s): %s", call, allowed ? allowed : "", message);
}

#define CHECK(condition) check_that(!!(condition), __FILE__, __LINE__, "%s", #condition)
#define CHECK_INT(got, op, want)                                                                            \
    do {                                                                                                    \
        long long check_got = (long long)(got), check_want = (long long)(want);                             \
        check_that(check_got op check_want, __FILE__, __LINE__, "%s is %lld, should be " #op " %lld", #got, \
                   check_got, check_want);                                                                  \
    } while (0)
/* False for NaN on either side. */
#define CHECK_NEAR(got, want, tolerance)                                                             \
    do {                                                                                             \
        double check_got = (got), check_want = (want), check_by = (tolerance);                       \
        check_that(fabs(check_got - check_want) <= check_by, __FILE__, __LINE__,                     \
                   "%s is %.9g, should be %.9g within %.3g", #got, check_got, check_want, check_by); \
    } while (0)
#define CHECK_BELOW(got, limit)                                                                           \
    do {                                                                                                  \
        double check_got = (got), check_limit = (limit);                                                  \
        check_that(check_got < check_limit, __FILE__, __LINE__, "%s is %.9g, should be below %.9g", #got, \
                   check_got, check_limit);                                                               \
    } while (0)
#define CHECK_STATUS(call, want) check_status((call), (want), __FILE__, __LINE__, #call)
#define OK(call) CHECK_STATUS(call, DIFFUSION_OK)
/* Names the part that follows: under a watchdog it is the last line that says where a hang was. */
#define SECTION(title) (printf("  %s\n", (title)), (void)fflush(stdout))

/* The last line and the exit code. */
static inline int check_done(const char *program) {
    printf("%s: %ld passed, %ld failed\n", program, check_passed, check_failed);
    fflush(stdout);
    return check_failed != 0 || check_passed == 0;
}

/* The device under test: the CPU, or with DIFFUSION_TEST_DEVICE=cuda the first CUDA device. */
static inline int32_t check_device(void) {
    const char *device = getenv("DIFFUSION_TEST_DEVICE");
    return device != NULL && strcmp(device, "cuda") == 0 ? DIFFUSION_DEVICE_CUDA : DIFFUSION_DEVICE_CPU;
}

/* Two levels on 3x8x8 images over 50 timesteps: some 20 thousand weights, with attention at 4x4. */
enum {
    TINY_SIZE = 8,
    TINY_CHANNELS = 3,
    TINY_IMAGE = TINY_CHANNELS * TINY_SIZE * TINY_SIZE,
    TINY_STEPS = 50
};

static inline diffusion_config tiny_config(void) {
    diffusion_config config;
    if (diffusion_config_init(&config) != DIFFUSION_OK) {
        printf("diffusion_config_init: %s\n", diffusion_last_error_message());
        exit(2);
    }
    config.image_size = TINY_SIZE;
    config.channels = TINY_CHANNELS;
    config.hidden_dims_len = 2;
    memset(config.hidden_dims, 0, sizeof config.hidden_dims);
    config.hidden_dims[0] = 8;
    config.hidden_dims[1] = 16;
    config.noise_steps = TINY_STEPS;
    config.device = check_device();
    config.seed = 1;
    return config;
}

/* A process, or the end of the program: nothing after it would mean anything. */
static inline diffusion_process *must_create(const diffusion_config *config) {
    diffusion_process *process = NULL;
    if (diffusion_create(config, &process) != DIFFUSION_OK) {
        printf("diffusion_create: %s\n", diffusion_last_error_message());
        exit(2);
    }
    return process;
}

static inline diffusion_sample_params sample_params(size_t num_samples, int32_t steps, uint64_t seed) {
    diffusion_sample_params params;
    if (diffusion_sample_params_init(&params) != DIFFUSION_OK) {
        printf("diffusion_sample_params_init: %s\n", diffusion_last_error_message());
        exit(2);
    }
    params.num_samples = num_samples;
    params.steps = steps;
    params.seed = seed;
    return params;
}

static inline void *must_alloc(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (memory == NULL) {
        printf("out of memory in the test itself\n");
        exit(2);
    }
    return memory;
}

/* bytes that end exactly where an unreadable page begins: reading or writing one too many is a crash. */
static inline void *must_guard(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + room, page, PROT_NONE) != 0) {
        printf("mmap: %s\n", strerror(errno));
        exit(2);
    }
    return base + room - bytes;
}

/* xorshift64*: the tests' own randomness, the same everywhere. */
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545F4914F6CDD1D);
}

/* values[n], uniform in [-1, 1). */
static inline void fill_random(float *values, size_t n, uint64_t seed) {
    uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    size_t i;
    for (i = 0; i < n; i++) {
        values[i] = (float)((double)(next_random(&state) >> 11) / 4503599627370496.0 - 1.0);
    }
}

/* The largest |a - b|; infinite if either holds a value that is not finite. */
static inline double max_difference(const float *a, const float *b, size_t n) {
    double largest = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        double difference = fabs((double)a[i] - (double)b[i]);
        if (!(difference <= 1e30)) {
            return HUGE_VAL;
        }
        if (difference > largest) {
            largest = difference;
        }
    }
    return largest;
}

static inline int same_bits(const void *a, const void *b, size_t bytes) {
    return memcmp(a, b, bytes) == 0;
}

static inline int all_finite(const float *values, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        if (!isfinite(values[i])) {
            return 0;
        }
    }
    return 1;
}

/* Every value in [-1, 1]; false for NaN. */
static inline int all_in_range(const float *values, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        if (!(values[i] >= -1.0f && values[i] <= 1.0f)) {
            return 0;
        }
    }
    return 1;
}

/* A folder of this run's own under $TMPDIR; path must hold 256 characters. */
static inline void must_tempdir(char *path) {
    const char *root = getenv("TMPDIR");
    snprintf(path, 256, "%s/diffusion-test-XXXXXX", root != NULL && root[0] != 0 ? root : "/tmp");
    if (mkdtemp(path) == NULL) {
        printf("mkdtemp %s: %s\n", path, strerror(errno));
        exit(2);
    }
}

/* Runs a shell command made by printf rules: folders are copied and removed with the tools that everyone has.
 */
static inline void must_shell(const char *format, ...) {
    char command[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    if (system(command) != 0) {
        printf("failed: %s\n", command);
        exit(2);
    }
}

/*
 * Runs this program again with the given arguments and returns its wait status: for what must happen in a
 * process of its own (a limit on memory, a crash, output that is looked at).
 */
static inline int run_self(const char *mode, const char *argument, int output) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        char self[] = "/proc/self/exe";
        if (output >= 0) {
            dup2(output, 1);
            dup2(output, 2);
        }
        execl(self, "self", mode, argument, (char *)NULL);
        _exit(127);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

#define CHECK_EXIT(status)                                                                               \
    do {                                                                                                 \
        int check_got = (status);                                                                        \
        check_that(WIFEXITED(check_got) && WEXITSTATUS(check_got) == 0, __FILE__, __LINE__, "%s: %s %d", \
                   #status, WIFSIGNALED(check_got) ? "died of signal" : "exit code",                     \
                   WIFSIGNALED(check_got) ? WTERMSIG(check_got) : WEXITSTATUS(check_got));               \
    } while (0)

#endif /* CHECK_H */
