// Winograd's 3x3 convolution (Lavin and Gray, arXiv 1509.09308) with 4x4 outputs from 6x6 inputs, and what
// backpropagation needs: the adjoints of its three linear maps. With y = A^T [(G w G^T) * (B^T d B)] A for
// tiles d, y and weights w:
//   d's gradient = B [(G w G^T) * (A dy A^T)] B^T,   w's gradient = G^T [(B^T d B) * (A dy A^T)] G summed
//   over tiles
// so A dy A^T is made once and serves both. The points are 0, +-1/sqrt 2, +-sqrt 2 and infinity, which round
// better than the paper's 0, +-1, +-2.
#pragma once

#include "training.h"
#include "training_storage.h"
#include "vector.h"
#include "winograd_maps.h"

namespace diffusion {
namespace KERNELS {

using training::Lifted;
using training::points;
using training::Tiles;
constexpr int out_side = training::outputs_per_side;

constexpr float point_a = 0.70710678118654752f, point_b = 1.41421356237309505f;

// d = B t
static inline void map_input_adjoint(const vec t[6], vec d[6]) {
    const vec sum1 = t[1] + t[2], odd1 = point_a * (t[1] - t[2]);
    const vec sum2 = t[3] + t[4], odd2 = point_b * (t[3] - t[4]);
    d[0] = t[0];
    d[1] = t[5] - (2.0f * odd1 + 0.5f * odd2);
    d[2] = -2.5f * t[0] - (2.0f * sum1 + 0.5f * sum2);
    d[3] = (odd1 + odd2) - 2.5f * t[5];
    d[4] = t[0] + (sum1 + sum2);
    d[5] = t[5];
}

// m = A y
static inline void map_output_adjoint(const vec y[4], vec m[6]) {
    const vec even1 = y[0] + 0.5f * y[2], odd1 = point_a * (y[1] + 0.5f * y[3]);
    const vec even2 = y[0] + 2.0f * y[2], odd2 = point_b * (y[1] + 2.0f * y[3]);
    m[0] = y[0];
    m[1] = even1 + odd1;
    m[2] = even1 - odd1;
    m[3] = even2 + odd2;
    m[4] = even2 - odd2;
    m[5] = y[3];
}

// t = G w
static inline void map_weight(const vec w[3], vec t[6]) {
    const vec even1 = (-1 / 1.5f) * (w[0] + 0.5f * w[2]), odd1 = (-point_a / 1.5f) * w[1];
    const vec even2 = (1 / 6.0f) * (w[0] + 2.0f * w[2]), odd2 = (point_b / 6.0f) * w[1];
    t[0] = w[0];
    t[1] = even1 + odd1;
    t[2] = even1 - odd1;
    t[3] = even2 + odd2;
    t[4] = even2 - odd2;
    t[5] = w[2];
}

// w = G^T t
static inline void map_weight_adjoint(const vec t[6], vec w[3]) {
    const vec sum1 = (-1 / 1.5f) * (t[1] + t[2]), sum2 = (1 / 6.0f) * (t[3] + t[4]);
    w[0] = t[0] + (sum1 + sum2);
    w[1] = (-point_a / 1.5f) * (t[1] - t[2]) + (point_b / 6.0f) * (t[3] - t[4]);
    w[2] = (0.5f * sum1 + 2.0f * sum2) + t[5];
}

// The same map along both sides of a square.
template <int From, int To, void (*map)(const vec *, vec *)>
static inline void map_square(const vec from[From][From], vec to[To][To]) {
    vec half[To][From];
#pragma GCC unroll 6
    for (int x = 0; x < From; x++) {
        vec column[From], mapped[To];
#pragma GCC unroll 6
        for (int y = 0; y < From; y++)
            column[y] = from[y][x];
        map(column, mapped);
#pragma GCC unroll 6
        for (int y = 0; y < To; y++)
            half[y][x] = mapped[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < To; y++)
        map(half[y], to[y]);
}

static inline void store_points(const vec values[points][points], float *to, int64_t plane) {
#pragma GCC unroll 6
    for (int y = 0; y < points; y++)
#pragma GCC unroll 6
        for (int x = 0; x < points; x++)
            store(to + (y * points + x) * plane, values[y][x]);
}

static inline void load_points(const float *from, int64_t plane, vec values[points][points]) {
#pragma GCC unroll 6
    for (int y = 0; y < points; y++)
#pragma GCC unroll 6
        for (int x = 0; x < points; x++)
            values[y][x] = load(from + (y * points + x) * plane);
}

// Where a channel of a tile is in a plane of lifted tiles.
static inline int64_t lifted_place(const Lifted &lifted, int64_t tile, int channel) {
    return (channel / 32 * lifted.tiles + tile) * 32 + channel % 32;
}

// `Side` pixels by side that begin `before` above and left of each tile.
template <typename T, int Side, int Before, void (*map)(const vec *, vec *)>
static void lift_images(const Tiles &tiles, const T *images, int channels, const T *zeros, int64_t first,
                        int count, const Lifted &lifted) {
    for (int i = 0; i < count; i++) {
        const int64_t image = (first + i) / tiles.per_image();
        const int place = static_cast<int>((first + i) % tiles.per_image());
        const int top = place / tiles.columns * out_side - Before,
                  left = place % tiles.columns * out_side - Before;
        const T *base = images + image * tiles.height * tiles.width * channels;
        const T *from[Side][Side];
        for (int y = 0; y < Side; y++)
            for (int x = 0; x < Side; x++) {
                const int row = top + y, column = left + x;
                const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
                from[y][x] =
                    inside ? base + (static_cast<int64_t>(row) * tiles.width + column) * channels : zeros;
            }
        for (int c = 0; c < channels; c += width) {
            vec pixels[Side][Side], values[points][points];
#pragma GCC unroll 6
            for (int y = 0; y < Side; y++)
#pragma GCC unroll 6
                for (int x = 0; x < Side; x++)
                    pixels[y][x] = load(from[y][x] + c);
            map_square<Side, points, map>(pixels, values);
            store_points(values, lifted.values + lifted_place(lifted, i, c), lifted.plane);
        }
    }
}

template <typename T>
static void lift_input(const Tiles &tiles, const T *x, int channels, const T *zeros, int64_t first, int count,
                       const Lifted &lifted) {
    lift_images<T, points, 1, F4::lift>(tiles, x, channels, zeros, first, count, lifted);
}

template <typename T>
static void lift_gradient(const Tiles &tiles, const T *gradient, int channels, const T *zeros, int64_t first,
                          int count, const Lifted &lifted) {
    lift_images<T, out_side, 0, map_output_adjoint>(tiles, gradient, channels, zeros, first, count, lifted);
}

template <typename T>
static void lower_output(const Tiles &tiles, const Lifted &products, int channels, int64_t first, int count,
                         const float *bias, const float *added, const T *residual, T *out) {
    for (int i = 0; i < count; i++) {
        const int64_t image = (first + i) / tiles.per_image();
        const int place = static_cast<int>((first + i) % tiles.per_image());
        const int top = place / tiles.columns * out_side, left = place % tiles.columns * out_side;
        const int64_t base = image * tiles.height * tiles.width * channels;
        for (int c = 0; c < channels; c += width) {
            vec values[points][points], outputs[out_side][out_side];
            load_points(products.values + lifted_place(products, i, c), products.plane, values);
            map_square<points, out_side, F4::lower>(values, outputs);
            vec plus = load(bias + c);
            if (added != nullptr) plus += load(added + image * channels + c);
#pragma GCC unroll 4
            for (int y = 0; y < out_side; y++) {
#pragma GCC unroll 4
                for (int x = 0; x < out_side; x++) {
                    if (top + y >= tiles.height || left + x >= tiles.width) continue;
                    const int64_t at =
                        base + (static_cast<int64_t>(top + y) * tiles.width + left + x) * channels + c;
                    vec value = outputs[y][x] + plus;
                    if (residual != nullptr) value += load(residual + at);
                    store(out + at, value);
                }
            }
        }
    }
}

static void lower_input(const Tiles &tiles, const Lifted &products, int channels, int64_t first, int count,
                        float *images) {
    for (int i = 0; i < count; i++) {
        const int64_t image = (first + i) / tiles.per_image();
        const int place = static_cast<int>((first + i) % tiles.per_image());
        const int row = place / tiles.columns, column = place % tiles.columns;
        const int top = row * out_side - 1, left = column * out_side - 1;
        float *base = images + image * tiles.height * tiles.width * channels;
        for (int c = 0; c < channels; c += width) {
            vec values[points][points], pixels[points][points];
            load_points(products.values + lifted_place(products, i, c), products.plane, values);
            map_square<points, points, map_input_adjoint>(values, pixels);
#pragma GCC unroll 6
            for (int y = 0; y < points; y++) {
                if (top + y < 0 || top + y >= tiles.height) continue;
#pragma GCC unroll 6
                for (int x = 0; x < points; x++) {
                    if (left + x < 0 || left + x >= tiles.width) continue;
                    float *at =
                        base + (static_cast<int64_t>(top + y) * tiles.width + left + x) * channels + c;
                    // The tiles above and to the left have been here.
                    const bool touched = (y < 2 && row > 0) || (x < 2 && column > 0);
                    store(at, touched ? load(at) + pixels[y][x] : pixels[y][x]);
                }
            }
        }
    }
}

static void lift_weights(const float *from, int64_t column_step, int64_t inner_step, int panel, int inner,
                         float *packed, int64_t plane) {
    packed += static_cast<int64_t>(panel) * inner * 32;
    for (int k = 0; k < inner; k++) {
        float taps[9][32];
        const float *base = from + static_cast<int64_t>(panel) * 32 * column_step + k * inner_step;
        for (int i = 0; i < 32; i++)
            for (int tap = 0; tap < 9; tap++)
                taps[tap][i] = base[i * column_step + tap];
        for (int i = 0; i < 32; i += width) {
            vec square[3][3], values[points][points];
            for (int tap = 0; tap < 9; tap++)
                square[tap / 3][tap % 3] = load(taps[tap] + i);
            map_square<3, points, map_weight>(square, values);
            store_points(values, packed + k * 32 + i, plane);
        }
    }
}

static void lower_weights(const float *products, int64_t plane, int panel, int inputs, float *weight) {
    products += static_cast<int64_t>(panel) * inputs * 32;
    for (int k = 0; k < inputs; k++) {
        float taps[9][32];
        for (int i = 0; i < 32; i += width) {
            vec values[points][points], square[3][3];
            load_points(products + k * 32 + i, plane, values);
            map_square<points, 3, map_weight_adjoint>(values, square);
            for (int tap = 0; tap < 9; tap++)
                store(taps[tap] + i, square[tap / 3][tap % 3]);
        }
        float *base = weight + (static_cast<int64_t>(panel) * 32 * inputs + k) * 9;
        for (int i = 0; i < 32; i++)
            for (int tap = 0; tap < 9; tap++)
                base[static_cast<int64_t>(i) * inputs * 9 + tap] = taps[tap][i];
    }
}

// In runs of 64 pixels, so that the sums in f32 stay exact enough.
template <typename T>
static void sum_pixels(const T *image, int64_t pixels, int channels, float *sums) {
    for (int c = 0; c < channels; c += 32) {
        constexpr int vectors = 32 / width;
        vec total[vectors], run[vectors];
        for (int v = 0; v < vectors; v++)
            total[v] = run[v] = vec{};
        for (int64_t i = 0; i < pixels; i++) {
            for (int v = 0; v < vectors; v++)
                run[v] += load(image + i * channels + c + v * width);
            if (i % 64 != 63 && i + 1 < pixels) continue;
            for (int v = 0; v < vectors; v++) {
                total[v] += run[v];
                run[v] = vec{};
            }
        }
        for (int v = 0; v < vectors; v++)
            store(sums + c + v * width, total[v]);
    }
}

}  // namespace KERNELS
}  // namespace diffusion
