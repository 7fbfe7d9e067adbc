/* See request.h. */

#define _GNU_SOURCE
#include "request.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "errors.h"

/* The folder on the disk. In an exported game res:// is inside the game's package, which libdiffusion does
 * not read: there it stands for the folder of the executable. */
static void folder_on_disk(const char *folder, char path[PATH_MAX]) {
    variant local = variant_of_string(folder);
    variant settings = godot_singleton("ProjectSettings");
    variant global = godot_call_with(&settings, "globalize_path", &local, 1);
    char *utf8 = utf8_of_variant(&global);
    char executable[PATH_MAX] = "";
    variant_end(&settings);
    variant_end(&global);
    if (utf8[0] != '/' && strncmp(folder, "res://", 6) == 0 &&
        readlink("/proc/self/exe", executable, sizeof executable - 1) > 0) {
        strrchr(executable, '/')[1] = '\0';
    }
    if (snprintf(path, PATH_MAX, "%s%s", executable, utf8) >= PATH_MAX) path[0] = '\0';
    free(utf8);
}

static int32_t to_int32(int64_t value) {
    return value < INT32_MIN ? INT32_MIN : value > INT32_MAX ? INT32_MAX : (int32_t)value;
}

request *request_begin(const char *folder, int device, int threads, int64_t seed, int64_t steps, int method) {
    request *r = calloc(1, sizeof *r);
    char path[PATH_MAX];
    r->seed = (uint64_t)seed;
    r->steps = to_int32(steps); /* libdiffusion says what it may be */
    r->method = method;
    if (folder[0] != '\0') {
        folder_on_disk(folder, path);
        r->model = model_acquire(path, device, threads);
    }
    return r;
}

void request_cancel(request *r) {
    r->cancelled = true;
    if (r->job != NULL) diffusion.diffusion_job_cancel(r->job);
}

void request_end(request *r) {
    if (r->job != NULL) diffusion.diffusion_job_destroy(r->job);
    if (r->model != NULL) model_release(r->model);
    free(r);
}

static request_state fail(request *r, int error, const char *message) {
    r->error = error;
    snprintf(r->message, sizeof r->message, "%s", message);
    return REQUEST_FAILED;
}

static request_state refuse(request *r, int32_t status) {
    return fail(r, godot_error_of(status), diffusion.diffusion_last_error_message());
}

static int32_t submit(request *r) {
    diffusion_sample_params params;
    int32_t status = diffusion.diffusion_sample_params_init(&params);
    if (status != DIFFUSION_OK) return status;
    params.seed = r->seed;
    params.steps = r->steps;
    params.method = r->method;
    params.format = DIFFUSION_FORMAT_RGBA8;
    return diffusion.diffusion_sample_submit(model_process(r->model), &params, &r->job);
}

request_state request_poll(request *r) {
    if (r->job == NULL) {
        if (r->cancelled) return fail(r, ERR_SKIP, "cancelled");
        if (r->model == NULL)
            return fail(r, ERR_UNCONFIGURED, "model_path is empty: must be the folder of a model");
        switch (model_poll(r->model)) {
            case MODEL_LOADING:
                return REQUEST_SAME;
            case MODEL_FAILED:
                return fail(r, model_error(r->model), model_message(r->model));
            case MODEL_READY:
                break;
        }
        int32_t status = submit(r);
        if (status != DIFFUSION_OK) return refuse(r, status);
    }
    int32_t state = 0;
    uint64_t done = 0;
    int32_t status = diffusion.diffusion_job_poll(r->job, &state);
    if (status == DIFFUSION_OK) status = diffusion.diffusion_job_progress(r->job, &done, &r->total);
    if (status != DIFFUSION_OK) return refuse(r, status);
    switch (state) {
        case DIFFUSION_JOB_DONE:
            return r->cancelled ? fail(r, ERR_SKIP, "cancelled") : REQUEST_FINISHED;
        case DIFFUSION_JOB_FAILED:
        case DIFFUSION_JOB_CANCELLED:
            return refuse(r,
                          diffusion.diffusion_job_wait(r->job, 0)); /* has ended: says how, without waiting */
        default:
            if (done == r->done) return REQUEST_SAME;
            r->done = done;
            return REQUEST_PROGRESSED;
    }
}

static size_t image_bytes(const request *r) {
    size_t size = (size_t)model_image_size(r->model);
    return size * size * 4;
}

bool request_preview(request *r, variant *image) {
    uint64_t done = 0;
    uint8_t *pixels = malloc(image_bytes(r));
    bool is_new = pixels != NULL &&
                  diffusion.diffusion_job_preview(r->job, pixels, image_bytes(r), &done) == DIFFUSION_OK &&
                  done > r->preview_done;
    if (is_new) {
        r->preview_done = done;
        *image = image_of_rgba8(pixels, model_image_size(r->model));
    }
    free(pixels);
    return is_new;
}

bool request_fetch(request *r, variant *image) {
    uint8_t *pixels = malloc(image_bytes(r));
    if (pixels == NULL) {
        fail(r, ERR_OUT_OF_MEMORY, "not enough memory for the image");
        return false;
    }
    int32_t status = diffusion.diffusion_job_fetch(r->job, pixels, image_bytes(r));
    if (status == DIFFUSION_OK) *image = image_of_rgba8(pixels, model_image_size(r->model));
    free(pixels);
    if (status != DIFFUSION_OK) refuse(r, status);
    return status == DIFFUSION_OK;
}
