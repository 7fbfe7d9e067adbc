// Group norm (arXiv 1803.08494), then SiLU (arXiv 1702.03118), of one image, and its gradients. Two passes
// over the image each way, of which the second finds it in the cache. SiLU's argument is made again in the
// backward pass: of the forward pass only x and the groups' statistics are kept.
#pragma once

#include "training.h"
#include "training_storage.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

// Sums in f32 are kept as short as this many pixels and go on in f64.
constexpr int64_t sum_block = 64;
// Channels that are summed side by side.
constexpr int sum_vectors = 16 / width;

static inline vec logistic(vec x) {
    return 1.0f / (1.0f + exponential(-x));
}

// Adds a run of `norm.channels` sums to those in f64.
static inline void keep(const vec sums[sum_vectors], double *kept) {
    for (int v = 0; v < sum_vectors; v++)
        for (int i = 0; i < width; i++)
            kept[v * width + i] += static_cast<double>(sums[v][i]);
}

// y = x * factor[channel] + shift[channel]
static inline void affine(const training::Norm &norm, const float *statistics, const float *weight,
                          const float *bias, float *factor, float *shift) {
    const int size = norm.channels / norm.groups;
    for (int c = 0; c < norm.channels; c++) {
        const float *group = statistics + c / size * 2;
        factor[c] = group[1] * weight[c];
        shift[c] = bias[c] - group[0] * factor[c];
    }
}

// scratch of both: 4 * channels doubles.
template <typename T>
static void training_normalise(const training::Norm &norm, const T *x, const float *weight, const float *bias,
                               T *out, float *statistics, double *scratch) {
    const int channels = norm.channels, size = channels / norm.groups;
    double *sums = scratch, *squares = scratch + channels;
    memset(scratch, 0, 2 * channels * sizeof *scratch);
    // Around each channel's first value, so that a large mean does not eat the digits of a small variance.
    for (int64_t begin = 0; begin < norm.pixels; begin += sum_block) {
        const int64_t end = begin + sum_block < norm.pixels ? begin + sum_block : norm.pixels;
        for (int c = 0; c < channels; c += 16) {
            vec origin[sum_vectors], sum[sum_vectors], square[sum_vectors];
            for (int v = 0; v < sum_vectors; v++) {
                origin[v] = load(x + c + v * width);
                sum[v] = square[v] = vec{};
            }
            for (int64_t i = begin; i < end; i++)
                for (int v = 0; v < sum_vectors; v++) {
                    const vec distance = load(x + i * channels + c + v * width) - origin[v];
                    sum[v] += distance;
                    square[v] += distance * distance;
                }
            keep(sum, sums + c);
            keep(square, squares + c);
        }
    }
    const double pixels = static_cast<double>(norm.pixels);
    float first[16];
    for (int g = 0; g < norm.groups; g++) {
        double mean = 0.0, variance = 0.0;
        for (int c = g * size; c < (g + 1) * size; c++) {
            if (c % 16 == 0 || c == g * size)
                for (int v = 0; v < sum_vectors; v++)
                    store(first + v * width, load(x + c / 16 * 16 + v * width));
            variance += squares[c] - sums[c] * sums[c] / pixels;
            sums[c] = static_cast<double>(first[c % 16]) + sums[c] / pixels;  // the channel's mean
            mean += sums[c] / size;
        }
        for (int c = g * size; c < (g + 1) * size; c++)
            variance += pixels * (sums[c] - mean) * (sums[c] - mean);
        statistics[2 * g] = static_cast<float>(mean);
        statistics[2 * g + 1] =
            static_cast<float>(1.0 / __builtin_sqrt(variance / (pixels * size) + norm.eps));
    }
    float *factor = reinterpret_cast<float *>(scratch + 2 * channels), *shift = factor + channels;
    affine(norm, statistics, weight, bias, factor, shift);
    for (int64_t i = 0; i < norm.pixels; i++, x += channels, out += channels) {
        if (norm.silu) {
            for (int c = 0; c < channels; c += width) {
                const vec value = load(x + c) * load(factor + c) + load(shift + c);
                store(out + c, value * logistic(value));
            }
        } else {
            for (int c = 0; c < channels; c += width)
                store(out + c, load(x + c) * load(factor + c) + load(shift + c));
        }
    }
}

template <typename T>
static void training_normalise_backward(const training::Norm &norm, const T *x, const float *weight,
                                        const float *bias, const float *statistics, const T *gradient,
                                        T *x_gradient, double *sums, double *scratch) {
    const int channels = norm.channels, size = channels / norm.groups;
    double *products = sums,
           *plain = sums + channels;  // with the normalised x: the weight's; without: the bias's
    memset(sums, 0, 2 * channels * sizeof *sums);
    float *factor = reinterpret_cast<float *>(scratch), *shift = factor + channels;
    float *inverse = shift + channels, *moved = inverse + channels;  // normalised x = x * inverse + moved
    affine(norm, statistics, weight, bias, factor, shift);
    for (int c = 0; c < channels; c++) {
        const float *group = statistics + c / size * 2;
        inverse[c] = group[1];
        moved[c] = -group[0] * group[1];
    }
    for (int64_t begin = 0; begin < norm.pixels; begin += sum_block) {
        const int64_t end = begin + sum_block < norm.pixels ? begin + sum_block : norm.pixels;
        for (int c = 0; c < channels; c += 16) {
            vec product[sum_vectors], sum[sum_vectors];
            for (int v = 0; v < sum_vectors; v++)
                product[v] = sum[v] = vec{};
            for (int64_t i = begin; i < end; i++)
                for (int v = 0; v < sum_vectors; v++) {
                    const int at = c + v * width;
                    const vec value = load(x + i * channels + at);
                    vec inner = load(gradient + i * channels + at);
                    if (norm.silu) {
                        const vec argument = value * load(factor + at) + load(shift + at);
                        const vec gate = logistic(argument);
                        inner *= gate * (1.0f + argument * (1.0f - gate));
                    }
                    product[v] += inner * (value * load(inverse + at) + load(moved + at));
                    sum[v] += inner;
                    store(x_gradient + i * channels + at, inner);
                }
            keep(product, products + c);
            keep(sum, plain + c);
        }
    }
    // gradient of x = inner * by_inner + x * by_x + rest, for each channel
    float *by_inner = factor, *by_x = shift, *rest = inverse;
    const double number = static_cast<double>(norm.pixels) * size;
    for (int g = 0; g < norm.groups; g++) {
        double product = 0.0, sum = 0.0;
        for (int c = g * size; c < (g + 1) * size; c++) {
            product += weight[c] * products[c];
            sum += weight[c] * plain[c];
        }
        const double mean = statistics[2 * g], deviation = statistics[2 * g + 1];
        const double slope = -deviation * deviation * product / number;
        for (int c = g * size; c < (g + 1) * size; c++) {
            by_inner[c] = static_cast<float>(deviation * weight[c]);
            by_x[c] = static_cast<float>(slope);
            rest[c] = static_cast<float>(-deviation * sum / number - mean * slope);
        }
    }
    for (int64_t i = 0; i < norm.pixels; i++, x += channels, x_gradient += channels)
        for (int c = 0; c < channels; c += width)
            store(x_gradient + c,
                  load(x_gradient + c) * load(by_inner + c) + load(x + c) * load(by_x + c) + load(rest + c));
}

}  // namespace KERNELS
}  // namespace diffusion
