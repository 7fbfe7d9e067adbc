/*
 * DiffusionTexture, an ImageTexture that makes its image itself: it is determined by model_path, seed and
 * steps, and made anew when one of them changes. SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "plugin.h"
#include "request.h"

typedef struct texture {
    GDExtensionObjectPtr object;
    char *model_path;
    int64_t seed, steps;
    request *request;
    bool connected; /* to SceneTree.process_frame, while a request is under way */
    bool queued;    /* generate() is called at the end of this frame */
    bool polling;
    bool freed; /* by a handler of its own signal: poll does the rest */
} texture;

static void *texture_create(GDExtensionObjectPtr object) {
    texture *t = calloc(1, sizeof *t);
    t->object = object;
    t->model_path = strdup("");
    t->steps = 20;
    return t;
}

static void texture_destroy(void *self) {
    texture *t = self;
    if (t->polling) {
        t->freed = true;
        return;
    }
    if (t->request != NULL) request_end(t->request);
    free(t->model_path);
    free(t);
}

/* A resource has no frames of its own: it borrows the scene tree's. */
static void set_polled(texture *t, bool polled) {
    if (t->connected == polled) return;
    variant engine = godot_singleton("Engine");
    variant tree = godot_call_with(&engine, "get_main_loop", NULL, 0);
    GDExtensionObjectPtr main_loop = variant_to_object(&tree);
    if (main_loop != NULL) {
        godot_do(main_loop, polled ? "connect" : "disconnect", variant_of_string("process_frame"),
                 variant_of_callable(t->object, "poll"));
        t->connected = polled;
    }
    variant_end(&tree);
    variant_end(&engine);
}

static void show(texture *t, variant image) {
    godot_do(t->object, "set_image", image); /* emits Resource's changed */
}

static void texture_poll(texture *t) {
    variant image;
    if (t->polling || t->request == NULL) return;
    t->polling = true;
    request *r = t->request;
    request_state state = request_poll(r);
    if (state == REQUEST_PROGRESSED) {
        if (request_preview(r, &image)) show(t, image);
    } else if (state != REQUEST_SAME) {
        t->request = NULL;
        set_polled(t, false);
        if (state == REQUEST_FINISHED && request_fetch(r, &image)) {
            variant shown = variant_of_object(variant_to_object(&image));
            show(t, shown);
            if (t->freed) {
                variant_end(&image);
            } else {
                godot_do(t->object, "emit_signal", variant_of_string("finished"), image);
            }
        } else {
            if (r->error != ERR_SKIP) godot_push_error(r->message, "DiffusionTexture.generate");
            godot_do(t->object, "emit_signal", variant_of_string("failed"), variant_of_int(r->error),
                     variant_of_string(r->message));
        }
        request_end(r);
    }
    t->polling = false;
    if (t->freed) texture_destroy(t);
}

/* ---- Methods */

static void method_generate(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    texture *t = self;
    (void)arguments, (void)answer;
    request *old = t->request;
    t->queued = false;
    t->request =
        request_begin(t->model_path, DIFFUSION_DEVICE_AUTO, 1, t->seed, t->steps, DIFFUSION_METHOD_DDIM);
    if (old != NULL) request_end(old); /* after the new one has the model, which then stays loaded */
    set_polled(t, true);
}

static void method_cancel(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    texture *t = self;
    (void)arguments, (void)answer;
    if (t->request != NULL) request_cancel(t->request);
}

static void method_is_generating(void *self, const GDExtensionConstTypePtr *arguments,
                                 GDExtensionTypePtr answer) {
    const texture *t = self;
    (void)arguments;
    *(GDExtensionBool *)answer = t->request != NULL || t->queued;
}

static void method_poll(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    (void)arguments, (void)answer;
    texture_poll(self);
}

static const method methods[] = {
    {.name = "generate", .function = method_generate},
    {.name = "cancel", .function = method_cancel},
    {.name = "is_generating", .function = method_is_generating, .answer = GDEXTENSION_VARIANT_TYPE_BOOL},
    {.name = "poll", .function = method_poll},
};

/* ---- Properties */

/* Several properties set in a row, as when a scene is loaded, make one image. May be called on a loading
 * thread. */
static void queue(void *self) {
    texture *t = self;
    if (t->model_path[0] == '\0' || t->queued) return;
    t->queued = true;
    godot_do(t->object, "call_deferred", variant_of_string("generate"));
}

static const property properties[] = {
    {"model_path", GDEXTENSION_VARIANT_TYPE_STRING, offsetof(texture, model_path), queue, HINT_DIR, NULL},
    {"seed", GDEXTENSION_VARIANT_TYPE_INT, offsetof(texture, seed), queue, HINT_NONE, NULL},
    {"steps", GDEXTENSION_VARIANT_TYPE_INT, offsetof(texture, steps), queue, HINT_RANGE,
     "1,100,1,or_greater"},
};

static const signal_type signals[] = {
    {"finished", 1, {{GDEXTENSION_VARIANT_TYPE_OBJECT, "image", "Image"}}},
    {"failed",
     2,
     {{GDEXTENSION_VARIANT_TYPE_INT, "code", NULL}, {GDEXTENSION_VARIANT_TYPE_STRING, "message", NULL}}},
};

const class_type texture_class = {
    .name = "DiffusionTexture",
    .parent = "ImageTexture",
    .create = texture_create,
    .destroy = texture_destroy,
    CLASS_TABLES,
};
