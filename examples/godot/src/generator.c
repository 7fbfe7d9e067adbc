/* DiffusionGenerator, a Node that makes images while the game runs. SPDX-License-Identifier: MIT OR
 * Apache-2.0 */

#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "plugin.h"
#include "request.h"

typedef struct generator {
    GDExtensionObjectPtr object;
    char *model_path;
    int64_t device, threads, method;
    bool previews;
    int64_t last_id;
    request *requests; /* oldest first; only poll takes them out */
    model *kept;       /* the model used last, so that it stays loaded between requests */
    bool polling;
    bool freed; /* by a handler of its own signal: poll does the rest */
} generator;

static void *generator_create(GDExtensionObjectPtr object) {
    generator *g = calloc(1, sizeof *g);
    g->object = object;
    g->model_path = strdup("");
    g->threads = 1;
    g->method = DIFFUSION_METHOD_DDIM;
    g->previews = true;
    return g;
}

static void generator_destroy(void *self) {
    generator *g = self;
    if (g->polling) {
        g->freed = true;
        return;
    }
    while (g->requests != NULL) {
        request *next = g->requests->next;
        request_end(g->requests);
        g->requests = next;
    }
    if (g->kept != NULL) model_release(g->kept);
    free(g->model_path);
    free(g);
}

/* A poll of each frame is wanted only while something is under way. */
static void set_polled(generator *g, bool polled) {
    godot_do(g->object, "set_process_internal", variant_of_bool(polled));
}

static void emit_end(generator *g, request *r, request_state state) {
    variant image;
    if (state == REQUEST_FINISHED && request_fetch(r, &image)) {
        godot_do(g->object, "emit_signal", variant_of_string("finished"), variant_of_int(r->id), image);
        return;
    }
    if (r->error != ERR_SKIP) godot_push_error(r->message, "DiffusionGenerator.generate");
    godot_do(g->object, "emit_signal", variant_of_string("failed"), variant_of_int(r->id),
             variant_of_int(r->error), variant_of_string(r->message));
}

static void emit_progress(generator *g, request *r) {
    variant image;
    godot_do(g->object, "emit_signal", variant_of_string("progress"), variant_of_int(r->id),
             variant_of_int((int64_t)r->done), variant_of_int((int64_t)r->total));
    if (!g->freed && g->previews && !r->cancelled && request_preview(r, &image)) {
        godot_do(g->object, "emit_signal", variant_of_string("preview"), variant_of_int(r->id), image);
    }
}

/* Handlers may ask for more, cancel, and free the generator. */
static void generator_poll(generator *g) {
    if (g->polling) return;
    g->polling = true;
    request **place = &g->requests;
    while (*place != NULL && !g->freed) {
        request *r = *place;
        request_state state = request_poll(r);
        if (state == REQUEST_FINISHED || state == REQUEST_FAILED) {
            *place = r->next;
            emit_end(g, r, state);
            request_end(r);
            continue;
        }
        if (state == REQUEST_PROGRESSED) emit_progress(g, r);
        place = &r->next;
    }
    g->polling = false;
    if (g->freed) {
        generator_destroy(g);
    } else if (g->requests == NULL) {
        set_polled(g, false);
    }
}

static void generator_notification(GDExtensionClassInstancePtr self, int32_t what, GDExtensionBool reversed) {
    enum { INTERNAL_PROCESS = 25 }; /* Node.NOTIFICATION_INTERNAL_PROCESS */
    (void)reversed;
    if (what == INTERNAL_PROCESS) generator_poll(self);
}

/* ---- Methods */

static void method_generate(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    generator *g = self;
    const int64_t *seed = arguments[0], *steps = arguments[1];
    request **end = &g->requests;
    request *r = request_begin(g->model_path, (int)g->device, (int)g->threads, *seed, *steps, (int)g->method);
    r->id = ++g->last_id;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = r;
    if (r->model != NULL) model_retain(r->model);
    if (g->kept != NULL) model_release(g->kept);
    g->kept = r->model;
    set_polled(g, true);
    *(int64_t *)answer = r->id;
}

static void method_cancel(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    const int64_t *id = arguments[0];
    *(int64_t *)answer = ERR_DOES_NOT_EXIST;
    for (request *r = ((generator *)self)->requests; r != NULL; r = r->next) {
        if (r->id == *id && !r->cancelled) {
            request_cancel(r);
            *(int64_t *)answer = OK;
        }
    }
}

static void method_pending_count(void *self, const GDExtensionConstTypePtr *arguments,
                                 GDExtensionTypePtr answer) {
    int64_t count = 0;
    (void)arguments;
    for (const request *r = ((generator *)self)->requests; r != NULL; r = r->next) {
        count++;
    }
    *(int64_t *)answer = count;
}

static void method_poll(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    (void)arguments, (void)answer;
    generator_poll(self);
}

static const method methods[] = {
    {.name = "generate",
     .function = method_generate,
     .answer = GDEXTENSION_VARIANT_TYPE_INT,
     .argument_count = 2,
     .arguments = {{GDEXTENSION_VARIANT_TYPE_INT, "seed", NULL},
                   {GDEXTENSION_VARIANT_TYPE_INT, "steps", NULL}},
     .default_count = 1,
     .defaults = {20}},
    {.name = "cancel",
     .function = method_cancel,
     .answer = GDEXTENSION_VARIANT_TYPE_INT,
     .argument_count = 1,
     .arguments = {{GDEXTENSION_VARIANT_TYPE_INT, "request_id", NULL}}},
    {.name = "pending_count", .function = method_pending_count, .answer = GDEXTENSION_VARIANT_TYPE_INT},
    {.name = "poll", .function = method_poll},
};

/* ---- Properties: they hold for what is asked for afterwards. */

static const property properties[] = {
    {"model_path", GDEXTENSION_VARIANT_TYPE_STRING, offsetof(generator, model_path), NULL, HINT_DIR, NULL},
    {"method", GDEXTENSION_VARIANT_TYPE_INT, offsetof(generator, method), NULL, HINT_ENUM,
     "DDPM,DDIM,DPM-Solver++ 2M,DPM-Solver++ 2M SDE,UniPC,Euler,Heun"},
    {"device", GDEXTENSION_VARIANT_TYPE_INT, offsetof(generator, device), NULL, HINT_ENUM, "Auto,CPU,CUDA"},
    {"threads", GDEXTENSION_VARIANT_TYPE_INT, offsetof(generator, threads), NULL, HINT_RANGE,
     "0,64,1,or_greater"},
    {"previews", GDEXTENSION_VARIANT_TYPE_BOOL, offsetof(generator, previews), NULL, HINT_NONE, NULL},
};

#define REQUEST_ID {GDEXTENSION_VARIANT_TYPE_INT, "request_id", NULL}
#define IMAGE {GDEXTENSION_VARIANT_TYPE_OBJECT, "image", "Image"}

static const signal_type signals[] = {
    {"progress",
     3,
     {REQUEST_ID,
      {GDEXTENSION_VARIANT_TYPE_INT, "done", NULL},
      {GDEXTENSION_VARIANT_TYPE_INT, "total", NULL}}},
    {"preview", 2, {REQUEST_ID, IMAGE}},
    {"finished", 2, {REQUEST_ID, IMAGE}},
    {"failed",
     3,
     {REQUEST_ID,
      {GDEXTENSION_VARIANT_TYPE_INT, "code", NULL},
      {GDEXTENSION_VARIANT_TYPE_STRING, "message", NULL}}},
};

const class_type generator_class = {
    .name = "DiffusionGenerator",
    .parent = "Node",
    .create = generator_create,
    .destroy = generator_destroy,
    .notification = generator_notification,
    CLASS_TABLES,
};
