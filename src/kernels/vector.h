// A vector of floats as wide as the instruction set that this translation unit is compiled for, in the
// language of GCC's and Clang's vector extensions: the kernels are written once and compiled once for each
// instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace diffusion {
namespace KERNELS {

#if defined(__AVX512F__)
constexpr int width = 16;
#elif defined(__AVX2__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif

typedef float vec __attribute__((vector_size(width * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(width * sizeof(int32_t))));
typedef float unaligned_vec __attribute__((vector_size(width * sizeof(float)), aligned(4), may_alias));

static inline vec load(const float *from) {
    return *reinterpret_cast<const unaligned_vec *>(from);
}

static inline void store(float *to, vec value) {
    *reinterpret_cast<unaligned_vec *>(to) = value;
}

static inline vec splat(float value) {
    return value - vec{};  // x - 0 is x, signed zeros included
}

static inline vec larger(vec a, vec b) {
    return a > b ? a : b;
}

static inline vec smaller(vec a, vec b) {
    return a < b ? a : b;
}

// e^x to 2 units in the last place, for x in [-87, 88]; beyond, the value at the end of that range. The
// reduction and the polynomial are those of Cephes' expf.
static inline vec exponential(vec x) {
    x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
    const vec shift = splat(12582912.0f);
    const vec shifted = x * 1.44269504088896341f + shift;
    const vec n = shifted - shift;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    ivec bits, power;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &shifted, sizeof power);
    bits += power << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

}  // namespace KERNELS
}  // namespace diffusion
