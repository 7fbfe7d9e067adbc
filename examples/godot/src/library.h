/*
 * libdiffusion, opened while the game runs. The plugin must not be linked against it: Godot opens plugins
 * with RTLD_DEEPBIND, under which libtorch and the C++ library of the process would each use their own copies
 * of one thing.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef DIFFUSION_GODOT_LIBRARY_H
#define DIFFUSION_GODOT_LIBRARY_H

#include <diffusion.h>
#include <stdbool.h>

/* The functions of diffusion.h that the plugin uses. */
#define DIFFUSION_FUNCTIONS(X)      \
    X(diffusion_abi_version)        \
    X(diffusion_version)            \
    X(diffusion_last_error_message) \
    X(diffusion_config_init)        \
    X(diffusion_load)               \
    X(diffusion_destroy)            \
    X(diffusion_get_config)         \
    X(diffusion_sample_params_init) \
    X(diffusion_sample_submit)      \
    X(diffusion_job_poll)           \
    X(diffusion_job_wait)           \
    X(diffusion_job_progress)       \
    X(diffusion_job_cancel)         \
    X(diffusion_job_fetch)          \
    X(diffusion_job_preview)        \
    X(diffusion_job_destroy)

typedef struct diffusion_functions {
#define FIELD(name) __typeof__(&name) name;
    DIFFUSION_FUNCTIONS(FIELD)
#undef FIELD
} diffusion_functions;

/* Only to be used after library_open has said true. */
extern diffusion_functions diffusion;

/*
 * Opens libdiffusion if that has not been done: the file or folder that DIFFUSION_LIB names, else
 * libdiffusion.so.0 in the plugin's own folder, else the system's. Takes the better part of a second the
 * first time: not for the main thread. False: *godot_error and message, of so many bytes, say why.
 */
bool library_open(int *godot_error, char *message, size_t bytes);

/* Which of Godot's Error a status of libdiffusion is. */
int godot_error_of(int32_t status);

#endif
