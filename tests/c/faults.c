/*
 * What fails beneath the library: the memory and the files that it asks the system for, at every point of a
 * save and a load; kills; a disk that is full, read-only or taken away; address space that ends; a host that
 * changes signals and floating-point modes under it. After each of them the old or the new checkpoint loads,
 * whole, and the handles work.
 *
 *   FAULTS=all       every allocation instead of some hundreds, and 200 kills (make test-faults-all)
 *
 * This program's own malloc, write, ... stand in for libc's in every library of the process, so nothing is
 * compiled into the library for it. What the library has no say in is spared: glibc, libgomp and Rust's
 * standard library end the program themselves where they get no memory for a thread's variables, team and
 * handle.
 */
#include "check.h"

#include <dirent.h>
#include <link.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <xmmintrin.h>

enum { N = TINY_IMAGE };

static char folder[256];
static int thorough;

/* ------------------------------------------------------------------------------------------------------------------
 * The faults.
 */

enum { MEMORY, WRITE, SYNC, OPEN, READ, MKDIR, RENAME, LINK, CHMOD, KINDS };
static const char *const kind_names[KINDS] = {"allocation", "write",  "fsync", "open", "read",
                                              "mkdir",      "rename", "link",  "chmod"};

static struct {
    volatile int armed, kind, lasting; /* lasting: all from `at` on fail */
    volatile long at, calls, failed, spared;
    pthread_t caller;
} fault;

/* Where glibc and libgomp are. */
static struct {
    uintptr_t from, to;
} spared_code[64];
static size_t spared_ranges;

static int note_range(struct dl_phdr_info *info, size_t size, void *unused) {
    static const char *const names[] = {"/libc.so", "/ld-linux", "/libgomp"};
    size_t i, k;
    (void)size, (void)unused;
    for (k = 0; k < sizeof names / sizeof *names; k++) {
        for (i = 0; strstr(info->dlpi_name, names[k]) != NULL && i < info->dlpi_phnum; i++) {
            const ElfW(Phdr) *part = &info->dlpi_phdr[i];
            if (part->p_type == PT_LOAD && (part->p_flags & PF_X) && spared_ranges < 64) {
                spared_code[spared_ranges].from = info->dlpi_addr + part->p_vaddr;
                spared_code[spared_ranges++].to = info->dlpi_addr + part->p_vaddr + part->p_memsz;
            }
        }
    }
    return 0;
}

static int is_spared(const void *caller) {
    size_t i;
    for (i = 0; i < spared_ranges; i++) {
        if ((uintptr_t)caller >= spared_code[i].from && (uintptr_t)caller < spared_code[i].to) {
            return 1;
        }
    }
    return 0;
}

/* Whether this call is to fail. */
static int fails(int kind, const void *caller, size_t bytes) {
    enum { HANDLE = 48 }; /* of a thread, made by whoever starts it and passing by the library's allocator */
    long nth;
    if (!fault.armed || fault.kind != kind) {
        return 0;
    }
    if (kind == MEMORY &&
        (is_spared(caller) || (bytes == HANDLE && pthread_equal(pthread_self(), fault.caller)))) {
        __sync_add_and_fetch(&fault.spared, 1);
        return 0;
    }
    nth = __sync_fetch_and_add(&fault.calls, 1);
    if (nth < fault.at || (nth > fault.at && !fault.lasting)) {
        return 0;
    }
    __sync_add_and_fetch(&fault.failed, 1);
    errno = kind == MEMORY ? ENOMEM : kind == WRITE ? ENOSPC : EIO;
    return 1;
}

static void arm(int kind, long at, int lasting) {
    fault.kind = kind;
    fault.caller = pthread_self();
    fault.at = at;
    fault.lasting = lasting;
    fault.calls = fault.failed = fault.spared = 0;
    __sync_lock_test_and_set(&fault.armed, 1);
}

static void disarm(void) {
    __sync_lock_test_and_set(&fault.armed, 0);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
#define CALLER __builtin_return_address(0)

void *malloc(size_t bytes) {
    return fails(MEMORY, CALLER, bytes) ? NULL : __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
    return fails(MEMORY, CALLER, count * bytes) ? NULL : __libc_calloc(count, bytes);
}
void *realloc(void *block, size_t bytes) {
    return fails(MEMORY, CALLER, bytes) ? NULL : __libc_realloc(block, bytes);
}
void *memalign(size_t alignment, size_t bytes) {
    return fails(MEMORY, CALLER, bytes) ? NULL : __libc_memalign(alignment, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    return fails(MEMORY, CALLER, bytes) ? NULL : __libc_memalign(alignment, bytes);
}
int posix_memalign(void **block, size_t alignment, size_t bytes) {
    void *made = fails(MEMORY, CALLER, bytes) ? NULL : __libc_memalign(alignment, bytes);
    if (made == NULL) {
        return ENOMEM;
    }
    *block = made;
    return 0;
}

/* Straight to the kernel: these may be called before this program has found anything. */
ssize_t write(int file, const void *from, size_t bytes) {
    return fails(WRITE, NULL, 0) ? -1 : syscall(SYS_write, file, from, bytes);
}
ssize_t read(int file, void *to, size_t bytes) {
    return fails(READ, NULL, 0) ? -1 : syscall(SYS_read, file, to, bytes);
}
int fsync(int file) {
    return fails(SYNC, NULL, 0) ? -1 : (int)syscall(SYS_fsync, file);
}
int open64(const char *path, int flags, ...) {
    va_list arguments;
    int mode;
    va_start(arguments, flags);
    mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return fails(OPEN, NULL, 0) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int mkdir(const char *path, mode_t mode) {
    return fails(MKDIR, NULL, 0) ? -1 : (int)syscall(SYS_mkdir, path, mode);
}
int rename(const char *from, const char *to) {
    return fails(RENAME, NULL, 0) ? -1 : (int)syscall(SYS_rename, from, to);
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    return fails(LINK, NULL, 0) ? -1 : (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
}
int chmod(const char *path, mode_t mode) {
    return fails(CHMOD, NULL, 0) ? -1 : (int)syscall(SYS_chmod, path, mode);
}

/* ------------------------------------------------------------------------------------------------------------------
 * What must hold after each of them.
 */

static diffusion_config small_config(uint64_t seed) {
    diffusion_config config = tiny_config();
    config.ema_decay = 0.5;
    config.seed = seed;
    return config;
}

/* Every tensor of a process, trained and averaged, one after the other. */
static float *all_weights(diffusion_process *p, size_t *len) {
    size_t count = 0, total = 0, i;
    float *values = NULL;
    int32_t which;
    OK(diffusion_parameter_count(p, &count));
    for (which = 0; which < 2; which++) {
        for (i = 0; i < count; i++) {
            diffusion_parameter parameter;
            parameter.struct_size = sizeof parameter;
            OK(diffusion_parameter_describe(p, i, &parameter));
            values = realloc(values, (total + parameter.len) * sizeof(float));
            OK(diffusion_parameter_read(p, which, parameter.name, values + total, parameter.len));
            total += parameter.len;
        }
    }
    *len = total;
    return values;
}

static int same_weights(diffusion_process *p, const float *values, size_t len) {
    size_t mine;
    float *weights = all_weights(p, &mine);
    int same = mine == len && same_bits(weights, values, len * sizeof(float));
    free(weights);
    return same;
}

/* Two processes that are told apart by every weight, and what they are. */
static struct {
    diffusion_process *process;
    float *weights, image[N];
    size_t len;
} one, two;

static void make_two(void) {
    int i;
    for (i = 0; i < 2; i++) {
        diffusion_config config = small_config((uint64_t)(i + 1));
        diffusion_process *p = must_create(&config);
        float images[N];
        fill_random(images, N, 3);
        OK(diffusion_train_step(p, images, N, 1, NULL));
        if (i == 0) {
            one.process = p;
            one.weights = all_weights(p, &one.len);
            OK(diffusion_sample_ddim(p, 1, 2, 0, 5, one.image, N));
        } else {
            two.process = p;
            two.weights = all_weights(p, &two.len);
            OK(diffusion_sample_ddim(p, 1, 2, 0, 5, two.image, N));
        }
    }
}

static void free_two(void) {
    OK(diffusion_destroy(one.process));
    OK(diffusion_destroy(two.process));
    free(one.weights);
    free(two.weights);
}

/* 1 or 2: whose checkpoint is at path; 0: none that loads. */
static int whose(const char *path) {
    diffusion_process *loaded = NULL;
    int who = 0;
    if (diffusion_load(path, NULL, &loaded) == DIFFUSION_OK) {
        who = same_weights(loaded, one.weights, one.len)   ? 1
              : same_weights(loaded, two.weights, two.len) ? 2
                                                           : -1;
        OK(diffusion_destroy(loaded));
    }
    return who;
}

static void check_works(diffusion_process *p, const float *image, const char *after) {
    float out[N];
    int32_t got = diffusion_sample_ddim(p, 1, 2, 0, 5, out, N);
    check_that(got == DIFFUSION_OK && same_bits(out, image, sizeof out), __FILE__, __LINE__,
               "after %s the process does not sample as before: %s", after, diffusion_status_string(got));
}

static size_t entries(const char *path) {
    size_t count = 0;
    DIR *dir = opendir(path);
    while (dir != NULL && readdir(dir) != NULL) {
        count++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return count;
}

/* Saves two over one's checkpoint while the nth call of a kind fails; 0 where there are fewer calls. */
static int save_with_fault(const char *path, int kind, long nth, int lasting) {
    char what[128];
    int32_t got;
    int now, reached;
    long failed;
    OK(diffusion_save(one.process, path));
    arm(kind, nth, lasting);
    got = diffusion_save(two.process, path);
    disarm();
    failed = fault.failed;
    reached = fault.calls > nth;
    snprintf(what, sizeof what, "saving with %s %s %ld failing", lasting ? "every" : "the", kind_names[kind],
             nth);
    now = whose(path);
    check_that(now == 1 || now == 2, __FILE__, __LINE__, "after %s no checkpoint loads: %s", what,
               diffusion_last_error_message());
    check_that(got != DIFFUSION_OK || now == 2, __FILE__, __LINE__, "%s succeeded, and the old one is there",
               what);
    check_that(got == DIFFUSION_OK || (failed > 0 && (got == DIFFUSION_ERROR_OUT_OF_MEMORY ||
                                                      (kind != MEMORY && got == DIFFUSION_ERROR_IO))),
               __FILE__, __LINE__, "%s: is \"%s\"; message: %s", what, diffusion_status_string(got),
               diffusion_last_error_message());
    check_works(two.process, two.image, what);
    return reached;
}

/* The same for loading one's checkpoint. */
static int load_with_fault(const char *path, int kind, long nth, int lasting) {
    diffusion_process *loaded = NULL;
    char what[128];
    int32_t got;
    int reached;
    arm(kind, nth, lasting);
    got = diffusion_load(path, NULL, &loaded);
    disarm();
    reached = fault.calls > nth;
    snprintf(what, sizeof what, "loading with %s %s %ld failing", lasting ? "every" : "the", kind_names[kind],
             nth);
    if (got == DIFFUSION_OK) {
        check_that(same_weights(loaded, one.weights, one.len), __FILE__, __LINE__, "%s gives other weights",
                   what);
        check_works(loaded, one.image, what);
        OK(diffusion_destroy(loaded));
    } else {
        check_that(
            loaded == NULL && fault.failed > 0 &&
                (got == DIFFUSION_ERROR_OUT_OF_MEMORY || (kind != MEMORY && got == DIFFUSION_ERROR_IO)),
            __FILE__, __LINE__, "%s: is \"%s\"; message: %s", what, diffusion_status_string(got),
            diffusion_last_error_message());
    }
    check_works(one.process, one.image, what);
    return reached;
}

/* ------------------------------------------------------------------------------------------------------------------
 */

/* The point that a program of its own is at, so that its parent knows where it died. */
typedef struct {
    volatile long at, done, failed, spared, statuses;
} tally;

static tally *share(const char *path) {
    int file = open(path, O_CREAT | O_RDWR, 0600);
    tally *shared;
    if (file < 0 || ftruncate(file, sizeof(tally)) != 0) {
        exit(2);
    }
    shared = mmap(NULL, sizeof(tally), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return shared;
}

/* "FOLDER loading lasting step": from where the tally stands to the end. */
static int memory_program(const char *argument) {
    char root[256], path[300], name[300];
    int loading, lasting, reached = 1;
    long step;
    tally *t;
    if (sscanf(argument, "%255s %d %d %ld", root, &loading, &lasting, &step) != 4) {
        return 2;
    }
    alarm(thorough ? 3000 : 500);
    snprintf(name, sizeof name, "%s/tally", root);
    snprintf(path, sizeof path, "%s/memory", root);
    t = share(name);
    make_two();
    OK(diffusion_save(one.process, path));
    CHECK(whose(path) == 1);
    while (reached) {
        reached = loading ? load_with_fault(path, MEMORY, t->at, lasting)
                          : save_with_fault(path, MEMORY, t->at, lasting);
        t->done++;
        t->failed += fault.failed;
        t->spared += fault.spared;
        t->at += step;
    }
    free_two();
    return check_done("faults: memory");
}

static void test_memory(void) {
    static const char *const names[] = {"saving", "loading"};
    char argument[400], name[300];
    int loading, lasting;
    SECTION("each allocation of a save and a load fails, alone and with all that follow");
    snprintf(name, sizeof name, "%s/tally", folder);
    for (loading = 0; loading < 2; loading++) {
        for (lasting = 0; lasting < 2; lasting++) {
            tally *t = share(name);
            int deaths = 0, status;
            long step = thorough ? 1 : lasting ? 97 : 37;
            memset(t, 0, sizeof *t);
            snprintf(argument, sizeof argument, "%s %d %d %ld", folder, loading, lasting, step);
            do {
                status = run_self("memory", argument, -1);
                if (!check_that(WIFEXITED(status) && WEXITSTATUS(status) == 0, __FILE__, __LINE__,
                                "%s with %s allocation %ld failing: the program ended with status %x",
                                names[loading], lasting ? "every" : "the", t->at, status)) {
                    t->at += step;
                }
            } while (WIFSIGNALED(status) && ++deaths < 20);
            printf(
                "    %s, %s: %ld of %ld allocations tried, %ld failed (%ld of glibc's and libgomp's "
                "spared)\n",
                names[loading], lasting ? "all from it on" : "it alone", t->done, t->at, t->failed,
                t->spared);
            munmap(t, sizeof *t);
        }
    }
}

static void test_files(void) {
    char path[300], readme[350];
    int kind, lasting;
    long nth, total = 0;
    SECTION(
        "each write, fsync, open, mkdir, rename, link and chmod of a save fails, each open and read of a "
        "load");
    snprintf(path, sizeof path, "%s/files", folder);
    snprintf(readme, sizeof readme, "%s/files/README.md", folder);
    OK(diffusion_save(one.process, path));
    must_shell("echo kept > '%s'", readme); /* so that a save has something to link */
    for (kind = WRITE; kind < KINDS; kind++) {
        for (lasting = 0; lasting < 2; lasting++) {
            for (nth = 0; save_with_fault(path, kind, nth, lasting); nth++) {
                total++;
            }
        }
        check_that(nth > 0 || kind == READ || kind == RENAME, __FILE__, __LINE__, "a save makes no %s",
                   kind_names[kind]);
    }
    OK(diffusion_save(one.process, path));
    for (kind = WRITE; kind < KINDS; kind++) {
        for (lasting = 0; lasting < 2; lasting++) {
            for (nth = 0; load_with_fault(path, kind, nth, lasting); nth++) {
                total++;
            }
        }
        check_that(nth > 0 || kind != READ, __FILE__, __LINE__, "a load makes no %s", kind_names[kind]);
    }
    OK(diffusion_save(one.process, path)); /* what the failures left goes away */
    CHECK(access(readme, F_OK) == 0);
    must_shell("rm -rf '%s'", path);
    must_shell("test -z \"$(ls -A '%s' | grep '^[.]files')\"", folder);
    printf("    %ld faults\n", total);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Kills. A program that has not used the library yet forks children that do: they start at once.
 */

/* Every part of the checkpoint says which step it is of: the counter, the trained weights and the average. */
static int mark(diffusion_process *p, uint64_t step) {
    float bias[TINY_CHANNELS];
    int i;
    for (i = 0; i < TINY_CHANNELS; i++) {
        bias[i] = (float)step;
    }
    return diffusion_parameter_write(p, DIFFUSION_WEIGHTS_TRAINED, "conv_out.bias", bias, TINY_CHANNELS) ==
               DIFFUSION_OK &&
           diffusion_parameter_write(p, DIFFUSION_WEIGHTS_EMA, "conv_out.bias", bias, TINY_CHANNELS) ==
               DIFFUSION_OK;
}

/* Takes a training step from the checkpoint at path and saves; a byte before, a byte after, and waits for its
 * end. */
static int train_and_save(const char *path, int out) {
    diffusion_process *p = NULL;
    float images[N];
    uint64_t step;
    fill_random(images, N, 3);
    return diffusion_load(path, NULL, &p) == DIFFUSION_OK &&
                   diffusion_train_step(p, images, N, 1, NULL) == DIFFUSION_OK &&
                   diffusion_get_step_count(p, &step) == DIFFUSION_OK && mark(p, step) &&
                   write(out, "b", 1) == 1 && diffusion_save(p, path) == DIFFUSION_OK &&
                   write(out, "a", 1) == 1
               ? pause()
               : 1;
}

/* The exit code is 0 if a whole checkpoint of that step or the one before it is there; 1 + the step, mod 2,
 * is told. */
static int look(const char *path, uint64_t step, int out) {
    diffusion_process *p = NULL;
    float trained[TINY_CHANNELS], average[TINY_CHANNELS];
    uint64_t found = 0;
    if (diffusion_load(path, NULL, &p) != DIFFUSION_OK ||
        diffusion_get_step_count(p, &found) != DIFFUSION_OK ||
        diffusion_parameter_read(p, 0, "conv_out.bias", trained, TINY_CHANNELS) != DIFFUSION_OK ||
        diffusion_parameter_read(p, 1, "conv_out.bias", average, TINY_CHANNELS) != DIFFUSION_OK) {
        return 3;
    }
    if ((found != step && found + 1 != step) || trained[0] != (float)found || average[0] != (float)found) {
        return 4;
    }
    return write(out, &found, sizeof found) == (ssize_t)sizeof found ? 0 : 5;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int wait_for(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static int kills_program(const char *path) {
    enum { MEASURED = 5 };
    int rounds = thorough ? 200 : 40, round, killed = 0, old = 0, new = 0;
    uint64_t state = 11, step = 0, found = 0;
    double shortest = 1e9;
    pid_t child;
    alarm(900);
    child = fork(); /* the first checkpoint */
    if (child == 0) {
        diffusion_config config = small_config(1);
        diffusion_process *p = must_create(&config);
        _exit(!mark(p, 0) || diffusion_save(p, path) != DIFFUSION_OK);
    }
    CHECK_EXIT(wait_for(child));
    for (round = -MEASURED; round < rounds && check_failed == 0; round++) {
        int pipes[2], status;
        char byte;
        double start;
        if (pipe(pipes) != 0) {
            return 2;
        }
        fflush(stdout);
        child = fork();
        if (child == 0) {
            close(pipes[0]);
            _exit(train_and_save(path, pipes[1]));
        }
        close(pipes[1]);
        step++;
        CHECK(read(pipes[0], &byte, 1) == 1);
        start = seconds();
        if (round < 0) { /* how long a save takes here and now */
            CHECK(read(pipes[0], &byte, 1) == 1);
            shortest = seconds() - start < shortest ? seconds() - start : shortest;
        } else {
            double until = (double)(next_random(&state) % 1000) / 1000 * shortest;
            struct timespec pause;
            pause.tv_sec = (time_t)until;
            pause.tv_nsec = (long)((until - (double)pause.tv_sec) * 1e9);
            nanosleep(&pause, NULL);
            killed++;
        }
        kill(child, SIGKILL);
        close(pipes[0]);
        status = wait_for(child);
        check_that(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, __FILE__, __LINE__,
                   "round %d: the saver ended with status %x", round, status);
        if (pipe(pipes) != 0) {
            return 2;
        }
        child = fork();
        if (child == 0) {
            close(pipes[0]);
            _exit(look(path, step, pipes[1]));
        }
        close(pipes[1]);
        status = wait_for(child);
        check_that(WIFEXITED(status) && WEXITSTATUS(status) == 0, __FILE__, __LINE__,
                   "round %d: what is there after the kill: code %x (3: nothing that loads, 4: a mixture)",
                   round, status);
        CHECK(read(pipes[0], &found, sizeof found) == (ssize_t)sizeof found);
        close(pipes[0]);
        old += round >= 0 && found + 1 == step;
        new += round >= 0 && found == step;
        step = found;
    }
    printf("    %d kills: %d left the old checkpoint, %d the new one\n", killed, old, new);
    return check_done("faults: kills");
}

/* ------------------------------------------------------------------------------------------------------------------
 * Disks.
 */

static size_t folder_bytes(const char *path) {
    char command[600];
    unsigned long bytes = 0;
    FILE *pipe;
    snprintf(command, sizeof command, "du -sb '%s' | cut -f1", path);
    pipe = popen(command, "r");
    if (pipe == NULL || fscanf(pipe, "%lu", &bytes) != 1) {
        exit(2);
    }
    pclose(pipe);
    return bytes;
}

/* A limit on the size of a file: what is longer cannot be written, wherever in it that is. */
static int limit_program(const char *path) {
    struct rlimit limit;
    size_t whole, at, rounds = 0, refused = 0;
    make_two();
    OK(diffusion_save(one.process, path));
    whole = folder_bytes(path);
    getrlimit(RLIMIT_FSIZE, &limit);
    for (at = 0; at < whole; at += whole / 24, rounds++) {
        int32_t got;
        OK(diffusion_save(one.process, path));
        limit.rlim_cur = at;
        CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        got = diffusion_save(two.process, path);
        limit.rlim_cur = limit.rlim_max;
        CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        refused += got == DIFFUSION_ERROR_IO;
        CHECK(got == DIFFUSION_OK || got == DIFFUSION_ERROR_IO);
        CHECK_INT(whose(path), ==, got == DIFFUSION_OK ? 2 : 1);
    }
    CHECK(refused > rounds / 4);
    check_works(two.process, two.image, "a limit on files");
    printf("    %zu of %zu saves met the limit on a file's size\n", refused, rounds);
    free_two();
    return check_done("faults: limit");
}

/* A disk of its own, full but for a little more each time. Needs the right to mount. */
static int full_program(const char *mount_point) {
    char path[400], filler[400];
    size_t whole, left, rounds = 0, refused = 0;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", mount_point, "tmpfs", 0, "size=32m") != 0) {
        printf("    no right to mount a disk here (%s): only the limit on a file's size is tested\n",
               strerror(errno));
        return 0;
    }
    snprintf(path, sizeof path, "%s/model", mount_point);
    snprintf(filler, sizeof filler, "%s/filler", mount_point);
    make_two();
    OK(diffusion_save(one.process, path));
    whole = folder_bytes(path);
    for (left = 0; left < 2 * whole; left += whole / 12, rounds++) {
        int32_t got;
        OK(diffusion_save(one.process, path));
        must_shell("cat /dev/zero > '%s' 2>/dev/null; truncate -s -%zu '%s'", filler, left, filler);
        got = diffusion_save(two.process, path);
        refused += got == DIFFUSION_ERROR_IO;
        if (got != DIFFUSION_OK) {
            CHECK_STATUS(got, DIFFUSION_ERROR_IO);
            check_that(strstr(diffusion_last_error_message(), "space") != NULL, __FILE__, __LINE__,
                       "a full disk is reported as: %s", diffusion_last_error_message());
        }
        CHECK_INT(whose(path), ==, got == DIFFUSION_OK ? 2 : 1);
        must_shell("rm '%s'", filler);
    }
    CHECK(refused > 8 && refused < rounds);
    OK(diffusion_save(two.process, path));
    CHECK_INT(whose(path), ==, 2);
    must_shell("test \"$(ls -A '%s')\" = model", mount_point); /* and nothing is left over */
    printf("    %zu of %zu saves met the full disk\n", refused, rounds);
    /* Mounted read-only: nothing can be written, everything read. */
    CHECK(mount(NULL, mount_point, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
    CHECK_STATUS(diffusion_save(one.process, path), DIFFUSION_ERROR_IO);
    CHECK_STATUS(diffusion_export(one.process, path, DIFFUSION_PRECISION_F16), DIFFUSION_ERROR_IO);
    CHECK_INT(whose(path), ==, 2);
    free_two();
    umount(mount_point);
    return check_done("faults: full");
}

/* A folder that one may read and not write, for a user whom that stops. */
static int readonly_program(const char *parent) {
    char path[400];
    snprintf(path, sizeof path, "%s/model", parent);
    make_two();
    OK(diffusion_save(one.process, path));
    if (geteuid() == 0) {
        must_shell("chown -R nobody '%s'", parent);
        CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    }
    must_shell("chmod 555 '%s'", parent);
    CHECK_STATUS(diffusion_save(two.process, path), DIFFUSION_ERROR_IO);
    CHECK(strstr(diffusion_last_error_message(), "ermission") != NULL);
    CHECK_INT(whose(path), ==, 1);
    must_shell("chmod 755 '%s'; chmod 000 '%s'/unet/config.json", parent, path);
    CHECK_STATUS(diffusion_load(path, NULL, &(diffusion_process *){NULL}), DIFFUSION_ERROR_IO);
    must_shell("chmod 644 '%s'/unet/config.json", path);
    OK(diffusion_save(two.process, path));
    CHECK_INT(whose(path), ==, 2);
    must_shell("rm -rf '%s'", path);
    free_two();
    return check_done("faults: readonly");
}

/* Somebody removes the folder, again and again, while it is saved and loaded. */
static void test_disappearing(void) {
    char parent[300], path[350];
    int rounds = thorough ? 400 : 60, round, saved = 0, loaded = 0;
    pid_t child;
    SECTION("a folder that goes away while it is written and read");
    snprintf(parent, sizeof parent, "%s/away", folder);
    snprintf(path, sizeof path, "%s/model", parent);
    CHECK(mkdir(parent, 0777) == 0);
    child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c",
              "while :; do rm -rf \"$0\"/* \"$0\"/.[!.]*; mkdir -p \"$0\"; done 2>/dev/null", parent,
              (char *)NULL);
        _exit(127);
    }
    for (round = 0; round < rounds; round++) {
        diffusion_process *p = NULL;
        int32_t got = diffusion_save(one.process, path);
        saved += got == DIFFUSION_OK;
        /* A folder that is half gone is not known for a checkpoint, and what is not one is never replaced. */
        check_that(got == DIFFUSION_OK || got == DIFFUSION_ERROR_IO ||
                       (got == DIFFUSION_ERROR_INVALID_ARGUMENT &&
                        strstr(diffusion_last_error_message(), "a folder that holds something else") != NULL),
                   __FILE__, __LINE__, "saving: %s: %s", diffusion_status_string(got),
                   diffusion_last_error_message());
        got = diffusion_load(path, NULL, &p);
        if (got == DIFFUSION_OK) {
            loaded++; /* without its training state, where only that was gone: the images are the same */
            check_works(p, one.image, "a load of a folder that goes away");
            OK(diffusion_destroy(p));
        } else {
            check_that(got == DIFFUSION_ERROR_IO || got == DIFFUSION_ERROR_FORMAT, __FILE__, __LINE__,
                       "loading: %s: %s", diffusion_status_string(got), diffusion_last_error_message());
        }
    }
    kill(child, SIGKILL);
    wait_for(child);
    must_shell("rm -rf '%s'", parent);
    CHECK_STATUS(diffusion_save(one.process, path), DIFFUSION_ERROR_IO);
    CHECK(mkdir(parent, 0777) == 0);
    OK(diffusion_save(one.process, path));
    CHECK_INT(whose(path), ==, 1);
    printf("    of %d rounds %d saved and %d loaded\n", rounds, saved, loaded);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Address space that ends.
 */

static void limit_memory(size_t more) {
    struct rlimit limit;
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%lu", &pages) != 1 || getrlimit(RLIMIT_AS, &limit) != 0) {
        exit(2);
    }
    fclose(file);
    limit.rlim_cur = more == SIZE_MAX ? limit.rlim_max : pages * (size_t)sysconf(_SC_PAGESIZE) + more;
    if (setrlimit(RLIMIT_AS, &limit) != 0) {
        exit(2);
    }
}

/* Every kind of call with less and less room: it succeeds or is out of memory, and a twin that was never
 * short of it has the same weights in the end. */
static int scarce_program(const char *path) {
    enum { BATCH = 128, TRAINED = 16, SIZE = 32, IMAGE = 3 * SIZE * SIZE, KINDS_OF_CALL = 8, ROOMS = 9 };
    static float in[BATCH * IMAGE], out[BATCH * IMAGE], noise[BATCH * IMAGE], before[IMAGE], after[IMAGE];
    static const char *const names[] = {"add_noise",  "predict_noise", "sample", "job",
                                        "train_step", "save",          "load",   "create"};
    int64_t times[BATCH] = {0};
    diffusion_config config = tiny_config();
    diffusion_process *p, *twin;
    uint64_t steps = 0, taken = 0;
    size_t rooms[ROOMS], i, kind, len;
    int succeeded[KINDS_OF_CALL] = {0}, out_of_memory[KINDS_OF_CALL] = {0};
    float *weights;
    alarm(500);
    mallopt(M_MMAP_THRESHOLD, 32 << 10); /* so that what is large meets the limit, not malloc's own stock */
    mallopt(M_TRIM_THRESHOLD, 0);
    config.image_size = SIZE;
    config.hidden_dims[0] = 16;
    config.hidden_dims[1] = 32;
    config.max_batch = TRAINED;
    fill_random(in, BATCH * IMAGE, 4);
    p = must_create(&config);
    twin = must_create(&config);
    OK(diffusion_train_step(p, in, TRAINED * IMAGE, TRAINED,
                            NULL)); /* libgomp has its threads from here on */
    OK(diffusion_sample_ddim(p, BATCH, 2, 0, 9, out, BATCH * IMAGE));
    OK(diffusion_save(p, path));
    taken = 1;
    for (i = 0; i < ROOMS; i++) {
        rooms[i] = i == 0 ? 0 : (size_t)4096 << 2 * i; /* 16 KB .. 256 MB */
    }
    for (i = 0; i < ROOMS; i++) {
        for (kind = 0; kind < KINDS_OF_CALL; kind++) {
            diffusion_process *other = NULL;
            diffusion_job *job = NULL;
            diffusion_sample_params params = sample_params(BATCH, 2, 9);
            int32_t got = -1;
            limit_memory(rooms[i]);
            switch (kind) {
                case 0:
                    got = diffusion_add_noise(p, in, BATCH * IMAGE, times, BATCH, 0, out, BATCH * IMAGE,
                                              noise, BATCH * IMAGE);
                    break;
                case 1:
                    got = diffusion_predict_noise(p, in, BATCH * IMAGE, times, BATCH, out, BATCH * IMAGE);
                    break;
                case 2:
                    got = diffusion_sample_ddim(p, BATCH, 2, 0, 9, out, BATCH * IMAGE);
                    break;
                case 3:
                    got = diffusion_sample_submit(p, &params, &job);
                    if (got == DIFFUSION_OK) {
                        got = diffusion_job_wait(job, -1);
                        diffusion_job_destroy(job);
                    }
                    break;
                case 4:
                    got = diffusion_train_step(p, in, TRAINED * IMAGE, TRAINED, NULL);
                    taken += got == DIFFUSION_OK;
                    break;
                case 5:
                    got = diffusion_save(p, path);
                    break;
                case 6:
                    got = diffusion_load(path, NULL, &other);
                    break;
                default:
                    got = diffusion_create(&config, &other);
                    break;
            }
            limit_memory(SIZE_MAX);
            check_that(got == DIFFUSION_OK || got == DIFFUSION_ERROR_OUT_OF_MEMORY, __FILE__, __LINE__,
                       "%s with %zu KB left: is \"%s\"; message: %s", names[kind], rooms[i] >> 10,
                       diffusion_status_string(got), diffusion_last_error_message());
            succeeded[kind] += got == DIFFUSION_OK;
            out_of_memory[kind] += got == DIFFUSION_ERROR_OUT_OF_MEMORY;
            if (other != NULL) {
                OK(diffusion_destroy(other));
            }
        }
        OK(diffusion_get_step_count(p, &steps));
        CHECK_INT(steps, ==, taken);
    }
    for (kind = 0; kind < KINDS_OF_CALL; kind++) {
        printf("    %-14s %2d of %d out of memory\n", names[kind], out_of_memory[kind], ROOMS);
        /* The parts of a save are small enough for the library's reserve. */
        check_that(succeeded[kind] > 0 && (out_of_memory[kind] > 0 || kind == 5), __FILE__, __LINE__,
                   "%s: %d succeeded, %d were out of memory: both should occur", names[kind], succeeded[kind],
                   out_of_memory[kind]);
    }
    for (steps = 0; steps < taken; steps++) {
        OK(diffusion_train_step(twin, in, TRAINED * IMAGE, TRAINED, NULL));
    }
    weights = all_weights(twin, &len);
    CHECK(same_weights(p, weights, len));
    free(weights);
    OK(diffusion_sample_ddim(p, 1, 3, 0, 2, after, IMAGE));
    OK(diffusion_sample_ddim(twin, 1, 3, 0, 2, before, IMAGE));
    CHECK(same_bits(before, after, sizeof before));
    OK(diffusion_destroy(p));
    OK(diffusion_destroy(twin));
    return check_done("faults: scarce");
}

/* ------------------------------------------------------------------------------------------------------------------
 * The host.
 */

static void test_handles(void) {
    enum { HANDLES = 1000 };
    static diffusion_process *processes[HANDLES];
    diffusion_config config = small_config(1);
    float first[N], out[N];
    uint64_t state = 3;
    size_t files, threads;
    int i, wrong = 0;
    SECTION("1,000 processes at once, ended in any order");
    threads = entries("/proc/self/task");
    files = entries("/proc/self/fd");
    for (i = 0; i < HANDLES; i++) {
        processes[i] = must_create(&config);
    }
    for (i = 0; i < HANDLES; i++) {
        wrong += diffusion_sample_ddim(processes[i], 1, 2, 0, 1, out, N) != DIFFUSION_OK ||
                 (i > 0 && !same_bits(out, first, sizeof out));
        if (i == 0) {
            memcpy(first, out, sizeof out);
        }
    }
    CHECK_INT(wrong, ==, 0);
    for (i = HANDLES - 1; i > 0; i--) {
        int k = (int)(next_random(&state) % (uint64_t)(i + 1));
        diffusion_process *swap = processes[i];
        processes[i] = processes[k];
        processes[k] = swap;
    }
    for (i = 0; i < HANDLES; i++) {
        wrong += diffusion_destroy(processes[i]) != DIFFUSION_OK;
        wrong += diffusion_destroy(processes[i]) != DIFFUSION_ERROR_INVALID_HANDLE;
    }
    CHECK_INT(wrong, ==, 0);
    for (i = 0; i < 3000 && entries("/proc/self/task") > threads; i++) {
        usleep(10000); /* the kernel's own time */
    }
    CHECK_INT(entries("/proc/self/task"), <=, threads);
    CHECK_INT(entries("/proc/self/fd"), <=, files);
}

static volatile sig_atomic_t profiled, interrupted, astray;
static pthread_t host_threads[2];

static void on_signal(int number) {
    if (number == SIGPROF) {
        profiled++;
    } else {
        interrupted++;
        astray += !pthread_equal(pthread_self(), host_threads[0]) &&
                  !pthread_equal(pthread_self(), host_threads[1]);
    }
}

static volatile int interrupting;

static void *keep_interrupting(void *unused) {
    while (interrupting) {
        kill(getpid(), SIGINT);
        usleep(500);
    }
    return unused;
}

static void test_signals(void) {
    struct sigaction action, old_profile, old_interrupt;
    struct itimerval every, never;
    static float calm[8 * N], out[8 * N];
    diffusion_config config = small_config(7);
    diffusion_process *a = must_create(&config), *b = must_create(&config);
    size_t len;
    float *weights;
    pthread_t thread;
    int i;
    SECTION("SIGPROF and SIGINT all the time: the same images and weights, and Ctrl-C is the host's");
    OK(diffusion_sample_ddim(a, 8, 40, 0, 3, calm, 8 * N));
    for (i = 0; i < 10; i++) {
        OK(diffusion_train_step(a, calm, 8 * N, 8, NULL));
    }
    weights = all_weights(a, &len);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* without SA_RESTART */
    sigaction(SIGPROF, &action, &old_profile);
    sigaction(SIGINT, &action, &old_interrupt);
    memset(&never, 0, sizeof never);
    memset(&every, 0, sizeof every);
    every.it_interval.tv_usec = every.it_value.tv_usec = 1000;
    host_threads[0] = host_threads[1] = pthread_self();
    interrupting = 1;
    CHECK(pthread_create(&host_threads[1], NULL, keep_interrupting, NULL) == 0);
    thread = host_threads[1];
    setitimer(ITIMER_PROF, &every, NULL);
    for (i = 0; i < 10 || profiled < 10; i++) {
        OK(diffusion_sample_ddim(b, 8, 40, 0, 3, out, 8 * N));
        if (i < 10) {
            CHECK(i > 0 || same_bits(out, calm, sizeof out));
            OK(diffusion_train_step(b, calm, 8 * N, 8, NULL));
        }
    }
    setitimer(ITIMER_PROF, &never, NULL);
    interrupting = 0;
    pthread_join(thread, NULL);
    sigaction(SIGPROF, &old_profile, NULL);
    sigaction(SIGINT, &old_interrupt, NULL);
    CHECK(same_weights(b, weights, len));
    CHECK_INT(astray, ==, 0);
    CHECK(profiled > 0 && interrupted > 0);
    printf("    %d SIGPROF, %d SIGINT\n", (int)profiled, (int)interrupted);
    free(weights);
    OK(diffusion_destroy(a));
    OK(diffusion_destroy(b));
}

/* numerics.c has the rounding modes; here denormals, which games and audio hosts flush to zero. */
static void test_denormals(void) {
    enum { FTZ = 0x8000, DAZ = 0x0040, UP = 0x4000 };
    static const unsigned modes[] = {FTZ, DAZ, FTZ | DAZ, FTZ | DAZ | UP};
    static float plain[8 * N], out[8 * N];
    diffusion_config config = small_config(8);
    diffusion_process *a = must_create(&config), *b;
    unsigned host = _mm_getcsr();
    float loss, loss_plain;
    size_t i, len;
    float *weights;
    SECTION("denormals flushed to zero by the host: of no effect, and left as they were");
    OK(diffusion_sample_ddim(a, 8, 10, 0, 3, plain, 8 * N));
    /* Gradients this small are denormal: they would be lost. */
    for (i = 0; i < 8 * N; i++) {
        out[i] = plain[i] * 1e-40F;
    }
    OK(diffusion_train_step(a, out, 8 * N, 8, &loss_plain));
    weights = all_weights(a, &len);
    for (i = 0; i < sizeof modes / sizeof *modes; i++) {
        static float again[8 * N];
        _mm_setcsr(host | modes[i]);
        b = must_create(&config);
        OK(diffusion_sample_ddim(b, 8, 10, 0, 3, again, 8 * N));
        OK(diffusion_train_step(b, out, 8 * N, 8, &loss));
        CHECK((_mm_getcsr() & ~0x3FU) == ((host | modes[i]) & ~0x3FU));
        _mm_setcsr(host);
        CHECK(same_bits(again, plain, sizeof plain));
        CHECK(same_bits(&loss, &loss_plain, sizeof loss) && same_weights(b, weights, len));
        OK(diffusion_destroy(b));
    }
    free(weights);
    OK(diffusion_destroy(a));
}

/* ------------------------------------------------------------------------------------------------------------------
 */

static void in_program(const char *mode, const char *below) {
    char argument[300];
    snprintf(argument, sizeof argument, "%s/%s", folder, below);
    CHECK_EXIT(run_self(mode, argument, -1));
}

int main(int argc, char **argv) {
    const char *wanted = getenv("FAULTS");
    char path[300];
    thorough = wanted != NULL && strcmp(wanted, "all") == 0;
    dl_iterate_phdr(note_range, NULL);
    if (argc > 2) {
        return strcmp(argv[1], "memory") == 0     ? memory_program(argv[2])
               : strcmp(argv[1], "kills") == 0    ? kills_program(argv[2])
               : strcmp(argv[1], "limit") == 0    ? limit_program(argv[2])
               : strcmp(argv[1], "full") == 0     ? full_program(argv[2])
               : strcmp(argv[1], "readonly") == 0 ? readonly_program(argv[2])
               : strcmp(argv[1], "scarce") == 0   ? scarce_program(argv[2])
                                                  : 2;
    }
    must_tempdir(folder);
    SECTION("kill -9 at random moments of a save");
    in_program("kills", "killed");
    SECTION("a limit on the size of files, a full disk, a read-only one");
    in_program("limit", "limited");
    snprintf(path, sizeof path, "%s/full", folder);
    CHECK(mkdir(path, 0777) == 0);
    in_program("full", "full");
    snprintf(path, sizeof path, "%s/readonly", folder);
    CHECK(mkdir(path, 0777) == 0 && chmod(folder, 0755) == 0);
    in_program("readonly", "readonly");
    SECTION("address space that ends, for every kind of call");
    in_program("scarce", "scarce");
    test_memory();
    make_two();
    test_files();
    test_disappearing();
    test_signals();
    test_denormals();
    test_handles();
    free_two();
    must_shell("rm -rf '%s'", folder);
    return check_done("faults");
}
