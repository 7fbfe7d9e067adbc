/* See library.h. */

#define _GNU_SOURCE
#include "library.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "errors.h"

#define SONAME "libdiffusion.so.0"

diffusion_functions diffusion;

static bool is_file(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && !S_ISDIR(about.st_mode);
}

/* The file to open. Links are followed here, since the loader's $ORIGIN, by which libdiffusion finds libtorch
 * beside itself, does not. False: the variable names nothing. */
static bool find_library(char path[PATH_MAX]) {
    char candidate[PATH_MAX];
    const char *variable = getenv("DIFFUSION_LIB");
    if (variable != NULL && variable[0] != '\0') {
        static const char *const forms[] = {"%s/" SONAME, "%s/libdiffusion.so", "%s"};
        for (int i = 0; i < 3; i++) {
            if (snprintf(candidate, sizeof candidate, forms[i], variable) < (int)sizeof candidate &&
                is_file(candidate)) {
                return realpath(candidate, path) != NULL;
            }
        }
        return false;
    }
    Dl_info self;
    if (dladdr((void *)&diffusion, &self) != 0 && self.dli_fname != NULL) {
        const char *slash = strrchr(self.dli_fname, '/');
        int folder = slash == NULL ? 0 : (int)(slash - self.dli_fname) + 1;
        if (snprintf(candidate, sizeof candidate, "%.*s" SONAME, folder, self.dli_fname) <
                (int)sizeof candidate &&
            is_file(candidate) && realpath(candidate, path) != NULL) {
            return true;
        }
    }
    strcpy(path, SONAME);
    return true;
}

static bool open_library(int *godot_error, char *message, size_t bytes) {
    char path[PATH_MAX];
    diffusion_functions found;
    *godot_error = ERR_FILE_MISSING_DEPENDENCIES;
    if (!find_library(path)) {
        snprintf(message, bytes, "DIFFUSION_LIB is %s: must be " SONAME " or a folder with it",
                 getenv("DIFFUSION_LIB"));
        return false;
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        bool by_name = strcmp(path, SONAME) == 0;
        snprintf(message, bytes, "%s: %s", dlerror(),
                 by_name ? "put " SONAME
                           " and its libtorch into the plugin's folder, or set DIFFUSION_LIB to it"
                         : "libtorch's libraries must lie beside it");
        return false;
    }
    *godot_error = ERR_FILE_UNRECOGNIZED;
#define FIND(name)                                                                                        \
    {                                                                                                     \
        void *address = dlsym(handle, #name); /* ISO C has no cast from this to a function */             \
        if (address == NULL) {                                                                            \
            snprintf(message, bytes, "%s has no function " #name ": it is older than this plugin", path); \
            dlclose(handle);                                                                              \
            return false;                                                                                 \
        }                                                                                                 \
        memcpy(&found.name, &address, sizeof address);                                                    \
    }
    DIFFUSION_FUNCTIONS(FIND)
#undef FIND
    if (found.diffusion_abi_version() != DIFFUSION_ABI_VERSION) {
        snprintf(message, bytes, "%s has ABI version %u: this plugin needs %u", path,
                 (unsigned)found.diffusion_abi_version(), (unsigned)DIFFUSION_ABI_VERSION);
        dlclose(handle);
        return false;
    }
    diffusion = found; /* and stays open: its threads and thread-locals cannot be unloaded */
    return true;
}

bool library_open(int *godot_error, char *message, size_t bytes) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static bool opened;
    pthread_mutex_lock(&mutex);
    if (!opened) opened = open_library(godot_error, message, bytes);
    bool is_open = opened;
    pthread_mutex_unlock(&mutex);
    return is_open;
}

int godot_error_of(int32_t status) {
    switch (status) {
        case DIFFUSION_OK:
            return OK;
        case DIFFUSION_ERROR_INVALID_ARGUMENT:
            return ERR_INVALID_PARAMETER;
        case DIFFUSION_ERROR_OUT_OF_MEMORY:
            return ERR_OUT_OF_MEMORY;
        case DIFFUSION_ERROR_DEVICE_UNAVAILABLE:
            return ERR_UNAVAILABLE;
        case DIFFUSION_ERROR_IO:
            return ERR_FILE_CANT_OPEN;
        case DIFFUSION_ERROR_FORMAT:
            return ERR_FILE_CORRUPT;
        case DIFFUSION_ERROR_CANCELLED:
            return ERR_SKIP;
        case DIFFUSION_ERROR_TIMEOUT:
            return ERR_TIMEOUT;
        case DIFFUSION_ERROR_NON_FINITE:
            return ERR_INVALID_DATA;
        case DIFFUSION_ERROR_INTERNAL:
            return ERR_BUG;
        default:
            return FAILED;
    }
}
