// How C++ exceptions become the texts that the functions of shim.h and gpu.h return.
#pragma once

#include <c10/util/Exception.h>

#include <exception>

// A copy of an exception's text, for diffusion_shim_free; shim.cpp has it.
char *diffusion_shim_copy(const char *text) noexcept;

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
