// How the numbers of an image are read and written: f32, or bf16 rounded to nearest even.
#pragma once

#include "training.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

using training::Bf16;

typedef uint32_t uvec __attribute__((vector_size(width * sizeof(uint32_t))));
typedef uint16_t halfwords __attribute__((vector_size(width * sizeof(uint16_t))));

static inline vec load(const Bf16 *from) {
    halfwords half;
    memcpy(&half, from, sizeof half);
    const uvec bits = __builtin_convertvector(half, uvec) << 16;
    vec value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void store(Bf16 *to, vec value) {
    uvec bits;
    memcpy(&bits, &value, sizeof bits);
    const uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding would carry a NaN of all ones into a zero.
    const uvec result = value == value ? rounded : uvec{} + 0x7fc0;
    const halfwords half = __builtin_convertvector(result, halfwords);
    memcpy(to, &half, sizeof half);
}

template <typename T>
static void round_to(const float *from, int64_t count, T *to) {
    for (int64_t i = 0; i < count; i += width)
        store(to + i, load(from + i));
}

}  // namespace KERNELS
}  // namespace diffusion
