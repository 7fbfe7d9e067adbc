// Convolutions by fewer multiplications (Winograd; Lavin and Gray, arXiv 1509.09308): tiles of the input are
// "lifted" to points*points numbers each, which are multiplied by likewise lifted weights, summed over the
// channels by one matrix product for each point, and "lowered" to the tile of the output.
//
//   F4       3x3, 4x4 outputs from 6x6 inputs: 36 products for what takes 144. The points are 0, +-1/sqrt 2,
//   +-sqrt 2 and
//            infinity, which round better than the paper's 0, +-1, +-2.
//   F2       3x3, 2x2 outputs from 4x4 inputs: 16 products for what takes 36. Its weights are 16/36 of F4's.
//   Doubled  3x3 on an image whose pixels were doubled, read from the small image: 2x2 outputs from 3x3
//   pixels, 9 products
//            for what takes 36. Along a line y0 = a*x0 + (b+c)*x1 and y1 = (a+b)*x1 + c*x2 share (a+b+c)*x1.
#pragma once

#include "kernels.h"
#include "vector.h"
#include "winograd_maps.h"

namespace diffusion {
namespace KERNELS {

template <typename Way>
static void lift_tiles(const Lift &lift, int first, int tiles) {
    constexpr int P = Way::points;
    for (int tile = first; tile < first + tiles; tile++) {
        const float *base = lift.source + (tile / lift.tiles_per_image) * lift.image;
        const int32_t *offsets = lift.offsets + (tile % lift.tiles_per_image) * (P * P);
        const float *from[P * P];
        for (int i = 0; i < P * P; i++)
            from[i] = offsets[i] < 0 ? lift.zeros : base + offsets[i];
        float *to = lift.lifted + static_cast<int64_t>(tile) * lift.channels;
        for (int c = 0; c < lift.channels; c += width) {
            vec half[P][P];
#pragma GCC unroll 6
            for (int x = 0; x < P; x++) {
                vec column[P], lifted[P];
#pragma GCC unroll 6
                for (int y = 0; y < P; y++)
                    column[y] = load(from[y * P + x] + c);
                Way::lift(column, lifted);
#pragma GCC unroll 6
                for (int y = 0; y < P; y++)
                    half[y][x] = lifted[y];
            }
#pragma GCC unroll 6
            for (int y = 0; y < P; y++) {
                vec lifted[P];
                Way::lift(half[y], lifted);
#pragma GCC unroll 6
                for (int x = 0; x < P; x++)
                    store(to + (y * P + x) * lift.plane + c, lifted[x]);
            }
        }
    }
}

template <typename Way>
static void lower_tiles(const Lower &lower, int first, int tiles) {
    constexpr int P = Way::points, Q = Way::outputs;
    const Epilogue &end = lower.epilogue;
    for (int tile = first; tile < first + tiles; tile++) {
        const int image = tile / lower.tiles_per_image;
        const int32_t *offsets = lower.offsets + (tile % lower.tiles_per_image) * (Q * Q);
        const float *from = lower.products + static_cast<int64_t>(tile) * lower.channels;
        float *out = end.out + image * end.out_image;
        const float *residual = end.residual == nullptr ? nullptr : end.residual + image * end.out_image;
        const float *added =
            end.added == nullptr ? nullptr : end.added + end.added_row[image] * end.added_stride;
        for (int c = 0; c < lower.channels; c += width) {
            vec bias = load(end.bias + c);
            if (added != nullptr) bias += load(added + c);
            vec half[Q][P];
#pragma GCC unroll 6
            for (int x = 0; x < P; x++) {
                vec column[P], lowered[Q];
#pragma GCC unroll 6
                for (int y = 0; y < P; y++)
                    column[y] = load(from + (y * P + x) * lower.plane + c);
                Way::lower(column, lowered);
#pragma GCC unroll 4
                for (int y = 0; y < Q; y++)
                    half[y][x] = lowered[y];
            }
#pragma GCC unroll 4
            for (int y = 0; y < Q; y++) {
                vec lowered[Q];
                Way::lower(half[y], lowered);
#pragma GCC unroll 4
                for (int x = 0; x < Q; x++) {
                    const int32_t offset = offsets[y * Q + x];
                    if (offset < 0) continue;
                    vec value = lowered[x] + bias;
                    if (residual != nullptr) value += load(residual + offset + c);
                    store(out + offset + c, value * end.scale);
                }
            }
        }
    }
}

static void lift(Lifting way, const Lift &lift, int first, int tiles) {
    switch (way) {
        case Lifting::F4:
            return lift_tiles<F4>(lift, first, tiles);
        case Lifting::F2:
            return lift_tiles<F2>(lift, first, tiles);
        case Lifting::Doubled:
            return lift_tiles<Doubled>(lift, first, tiles);
    }
}

static void lower(Lifting way, const Lower &lower, int first, int tiles) {
    switch (way) {
        case Lifting::F4:
            return lower_tiles<F4>(lower, first, tiles);
        case Lifting::F2:
            return lower_tiles<F2>(lower, first, tiles);
        case Lifting::Doubled:
            return lower_tiles<Doubled>(lower, first, tiles);
    }
}

}  // namespace KERNELS
}  // namespace diffusion
