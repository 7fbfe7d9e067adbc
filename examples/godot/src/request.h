/*
 * One image that was asked for: waits for its model, then is a job of the library, and is looked at from the
 * main thread. Nothing here waits.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef DIFFUSION_GODOT_REQUEST_H
#define DIFFUSION_GODOT_REQUEST_H

#include "godot.h"
#include "model.h"

typedef struct request {
    struct request *next; /* for its owner */
    int64_t id;           /* for its owner */
    uint64_t seed;
    int32_t steps, method;
    model *model;
    diffusion_job *job;
    uint64_t done, total; /* denoising steps */
    uint64_t preview_done;
    bool cancelled;
    int error; /* Godot's Error, and a line, once request_poll has said FAILED */
    char message[1024];
} request;

typedef enum request_state {
    REQUEST_SAME,
    REQUEST_PROGRESSED,
    REQUEST_FINISHED,
    REQUEST_FAILED
} request_state;

/* folder as Godot writes it, with res:// or user:// or absolute. */
request *request_begin(const char *folder, int device, int threads, int64_t seed, int64_t steps, int method);
void request_cancel(request *r);
void request_end(request *r);

/* What has become of it since the last poll. */
request_state request_poll(request *r);

/* An Image as it is estimated to become, where there is a new estimate: false if not. The caller ends *image.
 */
bool request_preview(request *r, variant *image);

/* The Image of a FINISHED request. False: it is FAILED. */
bool request_fetch(request *r, variant *image);

#endif
