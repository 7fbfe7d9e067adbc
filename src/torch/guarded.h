// How C++ exceptions become the texts that the functions of shim.h and gpu.h return.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

inline char *diffusion_shim_copy(const char *text) {
    char *result = strdup(text);
    // An error must stay an error even where there is no memory left to say which.
    static char no_memory[] = "out of memory";
    return result != nullptr ? result : no_memory;
}

template <typename Body>
char *guarded(Body body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const c10::Error &error) {
        return diffusion_shim_copy(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return diffusion_shim_copy(error.what());
    } catch (...) {
        return diffusion_shim_copy("unknown C++ exception");
    }
}
