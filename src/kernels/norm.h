// Group norm (arXiv 1803.08494) of one image or of two side by side, then SiLU (arXiv 1702.03118): one pass
// for the statistics, one that writes the result.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

static inline vec silu(vec x) {
    return x / (1.0f + exponential(-x));
}

static void silu_in_place(float *values, int64_t count) {
    for (int64_t i = 0; i < count; i += width)
        store(values + i, silu(load(values + i)));
}

// Mean and sum of squared distances from it, for each channel and block of pixels. The sums are taken around
// the block's first pixel, so that a large mean does not eat the digits of a small variance.
static void norm_statistics(const Norm &norm, int first, int blocks) {
    const int channels = norm.channels(), per_image = norm.blocks();
    for (int block = first; block < first + blocks; block++) {
        const int image = block / per_image, begin = block % per_image * norm_block;
        const int count = norm.pixels - begin < norm_block ? norm.pixels - begin : norm_block;
        float *mean = norm.partial + static_cast<int64_t>(block) * 2 * channels;
        float *squares = mean + channels;
        for (const NormSource &source : norm.sources) {
            const float *pixels =
                source.base + image * source.image + static_cast<int64_t>(begin) * source.channels;
            constexpr int step = 16 / width;  // whole cache lines at a time
            for (int c = 0; c < source.channels; c += 16) {
                vec origin[step], sum[step], square[step];
                for (int v = 0; v < step; v++) {
                    origin[v] = load(pixels + c + v * width);
                    sum[v] = square[v] = vec{};
                }
                for (int i = 1; i < count; i++) {
                    for (int v = 0; v < step; v++) {
                        const vec distance =
                            load(pixels + static_cast<int64_t>(i) * source.channels + c + v * width) -
                            origin[v];
                        sum[v] += distance;
                        square[v] += distance * distance;
                    }
                }
                for (int v = 0; v < step; v++) {
                    const vec shift = sum[v] / static_cast<float>(count);
                    store(mean + c + v * width, origin[v] + shift);
                    store(squares + c + v * width, larger(square[v] - sum[v] * shift, vec{}));
                }
            }
            mean += source.channels;
            squares += source.channels;
        }
    }
}

// What to multiply and to add for each channel of an image.
static void norm_coefficients(const Norm &norm, int image, float *factor, float *shift, double *means,
                              double *variances) {
    const int channels = norm.channels(), blocks = norm.blocks();
    const float *partial = norm.partial + static_cast<int64_t>(image) * blocks * 2 * channels;
    for (int g = 0; g < norm.groups; g++)
        means[g] = variances[g] = 0.0;
    for (int b = 0; b < blocks; b++) {
        const int begin = b * norm_block;
        const double count = norm.pixels - begin < norm_block ? norm.pixels - begin : norm_block;
        const float *mean = partial + static_cast<int64_t>(b) * 2 * channels;
        for (int c = 0; c < channels; c++)
            if (norm.group_of[c] >= 0) means[norm.group_of[c]] += count * mean[c];
    }
    const double number = static_cast<double>(norm.pixels) * norm.group_size;
    for (int g = 0; g < norm.groups; g++)
        means[g] /= number;
    for (int b = 0; b < blocks; b++) {
        const int begin = b * norm_block;
        const double count = norm.pixels - begin < norm_block ? norm.pixels - begin : norm_block;
        const float *mean = partial + static_cast<int64_t>(b) * 2 * channels, *squares = mean + channels;
        for (int c = 0; c < channels; c++) {
            const int g = norm.group_of[c];
            if (g < 0) continue;
            const double distance = mean[c] - means[g];
            variances[g] += squares[c] + count * distance * distance;
        }
    }
    for (int g = 0; g < norm.groups; g++)
        variances[g] = 1.0 / __builtin_sqrt(variances[g] / number + norm.eps);
    const float *added =
        norm.added == nullptr ? nullptr : norm.added + norm.added_row[image] * norm.added_stride;
    for (int c = 0; c < channels; c++) {
        const int g = norm.group_of[c];
        const double inverse = g < 0 ? 0.0 : variances[g], mean = g < 0 ? 0.0 : means[g];
        double times = norm.weight[c] * inverse;
        double plus = norm.bias[c] - mean * times;
        if (added != nullptr && g >= 0) {
            times *= 1.0 + added[c];
            plus = plus * (1.0 + added[c]) + added[channels + c];
        }
        factor[c] = static_cast<float>(times);
        shift[c] = static_cast<float>(plus);
    }
}

static void norm_apply(const Norm &norm, int64_t first, int64_t pixels, float *scratch) {
    const int channels = norm.channels();
    float *factor = scratch, *shift = scratch + channels;
    double *means = reinterpret_cast<double *>(shift + channels);
    while (pixels > 0) {
        const int image = static_cast<int>(first / norm.pixels),
                  place = static_cast<int>(first % norm.pixels);
        int64_t count = norm.pixels - place;
        if (count > pixels) count = pixels;
        norm_coefficients(norm, image, factor, shift, means, means + norm.groups);
        float *out = norm.out + image * norm.out_image + static_cast<int64_t>(place) * channels;
        for (int64_t i = place; i < place + count; i++) {
            int channel = 0;
            for (const NormSource &source : norm.sources) {
                const float *from = source.base + image * source.image + i * source.channels;
                if (norm.silu) {
                    for (int c = 0; c < source.channels; c += width, channel += width)
                        store(out + channel,
                              silu(load(from + c) * load(factor + channel) + load(shift + channel)));
                } else {
                    for (int c = 0; c < source.channels; c += width, channel += width)
                        store(out + channel, load(from + c) * load(factor + channel) + load(shift + channel));
                }
            }
            out += channels;
        }
        first += count;
        pixels -= count;
    }
}

}  // namespace KERNELS
}  // namespace diffusion
