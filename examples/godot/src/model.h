/*
 * A loaded model, shared by all that use the same folder, device and number of threads. It lives on a thread
 * of its own, which opens the library, loads, waits until nobody needs it any more, and destroys it: all of
 * that takes long.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef DIFFUSION_GODOT_MODEL_H
#define DIFFUSION_GODOT_MODEL_H

#include <stddef.h>

#include "library.h"

typedef struct model model;

typedef enum model_state { MODEL_LOADING, MODEL_READY, MODEL_FAILED } model_state;

/* Starts to load, unless it is there already. device: DIFFUSION_DEVICE_*. NULL: no thread can be made. */
model *model_acquire(const char *folder, int device, int threads);
void model_retain(model *m);
void model_release(model *m);

/* These never wait. Of a READY model: */
model_state model_poll(model *m);
diffusion_process *model_process(const model *m);
int model_image_size(const model *m);

/* Of a FAILED one: Godot's Error and a line that says why. */
int model_error(const model *m);
const char *model_message(const model *m);

/* Waits until the threads of all models are gone, which must have been released. Before the plugin is
 * unloaded. */
void models_join(void);

#endif
