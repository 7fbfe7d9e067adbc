/* Godot's Error, as far as the plugin reports it. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef DIFFUSION_GODOT_ERRORS_H
#define DIFFUSION_GODOT_ERRORS_H

enum {
    OK = 0,
    FAILED = 1,
    ERR_UNAVAILABLE = 2,
    ERR_UNCONFIGURED = 3,
    ERR_OUT_OF_MEMORY = 6,
    ERR_FILE_CANT_OPEN = 12,
    ERR_FILE_UNRECOGNIZED = 15,
    ERR_FILE_CORRUPT = 16,
    ERR_FILE_MISSING_DEPENDENCIES = 17,
    ERR_TIMEOUT = 24,
    ERR_INVALID_DATA = 30,
    ERR_INVALID_PARAMETER = 31,
    ERR_DOES_NOT_EXIST = 33,
    ERR_SKIP = 45,
    ERR_BUG = 47,
};

#endif
