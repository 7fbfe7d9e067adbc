/*
 * A library that never gets on: it loads a model, and destroys it, only when it is let, and its jobs never
 * end. A plugin that waited for it on the main thread would stop the game for good. STUCK is a folder: files
 * "load" and "destroy" in it let the two through; "calls" there says which function was called, and on which
 * thread.
 */
#define _GNU_SOURCE
#include <diffusion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void path_of(char path[4096], const char *name) {
    const char *folder = getenv("STUCK");
    snprintf(path, 4096, "%s/%s", folder != NULL ? folder : ".", name);
}

static void called(const char *function) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    char path[4096];
    path_of(path, "calls");
    pthread_mutex_lock(&mutex);
    FILE *calls = fopen(path, "a");
    if (calls == NULL) abort();
    fprintf(calls, "%s %s\n", syscall(SYS_gettid) == getpid() ? "main" : "other", function);
    fclose(calls);
    pthread_mutex_unlock(&mutex);
}

static void wait_for_ever_or(const char *name) {
    char path[4096];
    path_of(path, name);
    while (access(path, F_OK) != 0)
        usleep(1000);
}

static char handle; /* its address stands for the process and for every job */

uint32_t diffusion_abi_version(void) {
    called(__func__);
    return DIFFUSION_ABI_VERSION;
}

const char *diffusion_version(void) {
    called(__func__);
    return "stuck";
}

const char *diffusion_last_error_message(void) {
    called(__func__);
    return "stuck";
}

int32_t diffusion_config_init(diffusion_config *config) {
    called(__func__);
    memset(config, 0, sizeof *config);
    config->struct_size = sizeof *config;
    return DIFFUSION_OK;
}

int32_t diffusion_load(const char *path, const diffusion_config *overrides, diffusion_process **process) {
    (void)path, (void)overrides;
    called(__func__);
    wait_for_ever_or("load");
    *process = (diffusion_process *)&handle;
    return DIFFUSION_OK;
}

int32_t diffusion_destroy(diffusion_process *process) {
    (void)process;
    called(__func__);
    wait_for_ever_or("destroy");
    return DIFFUSION_OK;
}

int32_t diffusion_get_config(diffusion_process *process, diffusion_config *config) {
    (void)process;
    called(__func__);
    config->image_size = 8;
    return DIFFUSION_OK;
}

int32_t diffusion_sample_params_init(diffusion_sample_params *params) {
    called(__func__);
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    return DIFFUSION_OK;
}

int32_t diffusion_sample_submit(diffusion_process *process, const diffusion_sample_params *params,
                                diffusion_job **job) {
    (void)process, (void)params;
    called(__func__);
    *job = (diffusion_job *)&handle;
    return DIFFUSION_OK;
}

int32_t diffusion_job_poll(diffusion_job *job, int32_t *state) {
    (void)job;
    called(__func__);
    *state = DIFFUSION_JOB_RUNNING; /* a cancelled one too: it is never noticed */
    return DIFFUSION_OK;
}

int32_t diffusion_job_progress(diffusion_job *job, uint64_t *done, uint64_t *total) {
    (void)job;
    called(__func__);
    *done = 1;
    *total = 2;
    return DIFFUSION_OK;
}

int32_t diffusion_job_wait(diffusion_job *job, int64_t timeout_ms) {
    (void)job;
    called(__func__);
    if (timeout_ms != 0) wait_for_ever_or("never");
    return DIFFUSION_ERROR_TIMEOUT;
}

int32_t diffusion_job_cancel(diffusion_job *job) {
    (void)job;
    called(__func__);
    return DIFFUSION_OK;
}

int32_t diffusion_job_fetch(diffusion_job *job, void *out, size_t bytes) {
    (void)job, (void)out, (void)bytes;
    called(__func__);
    return DIFFUSION_ERROR_INVALID_ARGUMENT;
}

int32_t diffusion_job_preview(diffusion_job *job, void *out, size_t bytes, uint64_t *done) {
    (void)job;
    called(__func__);
    memset(out, 128, bytes);
    *done = 1;
    return DIFFUSION_OK;
}

int32_t diffusion_job_destroy(diffusion_job *job) {
    (void)job;
    called(__func__);
    return DIFFUSION_OK;
}
