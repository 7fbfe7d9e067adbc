// The matrix products between lifted tiles and lifted weights, and between lifted tiles and lifted gradients.
#pragma once

#include "training.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

// A micro-tile is `Rows` by two vectors.
constexpr int training_rows = width == 16 ? 12 : 6;
constexpr int pair = 2 * width;

template <int Rows>
static inline void multiply_rows(const float *left, int64_t left_tiles, int inner, const float *packed,
                                 float *out) {
    vec sums[Rows][2];
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++)
        sums[r][0] = sums[r][1] = vec{};
    for (int k = 0; k < inner; k += 32, left += left_tiles * 32) {
#pragma GCC unroll 2
        for (int j = 0; j < 32; j++, packed += 32) {
            const vec w0 = load(packed), w1 = load(packed + width);
#pragma GCC unroll 12
            for (int r = 0; r < Rows; r++) {
                const float value = left[r * 32 + j];
                sums[r][0] += value * w0;
                sums[r][1] += value * w1;
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
        store(out + r * 32, sums[r][0]);
        store(out + r * 32 + width, sums[r][1]);
    }
}

static void training_multiply(const float *left, int64_t left_tiles, int inner, const float *packed, int rows,
                              float *out) {
    for (int column = 0; column < 32; column += pair) {
        int row = 0;
        while (row < rows) {
            const int rest = rows - row;
            const float *from = left + row * 32;
            const float *weights = packed + column;
            float *to = out + row * 32 + column;
            if (rest >= training_rows) {
                multiply_rows<training_rows>(from, left_tiles, inner, weights, to);
                row += training_rows;
            } else if (rest >= 8) {
                multiply_rows<(training_rows < 8 ? training_rows : 8)>(from, left_tiles, inner, weights, to);
                row += training_rows < 8 ? training_rows : 8;
            } else if (rest >= 4) {
                multiply_rows<4>(from, left_tiles, inner, weights, to);
                row += 4;
            } else {
                multiply_rows<1>(from, left_tiles, inner, weights, to);
                row += 1;
            }
        }
    }
}

static void training_multiply_transposed(const float *left, const float *right, int64_t tiles, bool add,
                                         float *out) {
    constexpr int rows = width == 16 ? 8 : 4;
    for (int column = 0; column < 32; column += pair) {
        for (int row = 0; row < 32; row += rows) {
            vec sums[rows][2];
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sums[r][0] = sums[r][1] = vec{};
            const float *a = left + row, *b = right + column;
            for (int64_t t = 0; t < tiles; t++, a += 32, b += 32) {
                const vec b0 = load(b), b1 = load(b + width);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    sums[r][0] += a[r] * b0;
                    sums[r][1] += a[r] * b1;
                }
            }
            float *to = out + row * 32 + column;
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                for (int v = 0; v < 2; v++) {
                    float *at = to + r * 32 + v * width;
                    store(at, add ? load(at) + sums[r][v] : sums[r][v]);
                }
            }
        }
    }
}

}  // namespace KERNELS
}  // namespace diffusion
