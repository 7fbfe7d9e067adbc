// The kernels of the inference plan and what they are told. Images are [image][pixel][channel] in f32, the
// channels padded with zeros to whole multiples of `lane`, so that no kernel has a rest to care for.
//
// A result never depends on how the work is split: each value is made by the same operations in the same
// order whatever the batch, the number of threads and the place among its neighbours.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diffusion {

constexpr int lane = 16;

// What happens to a finished sum on its way to memory:
// (sum + bias[channel] + added[added_row[image]][channel] + residual[image][pixel][channel]) * scale
struct Epilogue {
    float *out;         // [image][pixel][channel]
    int64_t out_image;  // floats of an image
    const float *bias;
    const float *added;  // may be null
    int64_t added_stride;
    const int32_t *added_row;
    const float *residual;  // may be null, may be `out`; laid out as that
    float scale;
};

// One run of a matrix product's inner dimension: row `r` of image `i` begins at base + i * image +
// offsets[r], or is `zeros` where the offset is negative. Without offsets the rows lie one behind the other.
struct Source {
    const float *base;
    int64_t image;
    const int32_t *offsets;
    int depth;
};

// What weights are held in; the arithmetic is f32's.
enum class WeightType { F32, BF16 };

// out[row][column] = sum over sources and depth of source[row][k] * weights[k][column]
struct Product {
    const Source *sources;  // all with offsets, or all without
    int count;
    int rows_per_image;
    const float *zeros;
    const float *weights;  // see Packed
    WeightType weight_type;
    int depth;  // of all sources together
    int columns;
    const Epilogue *epilogue;  // else, if null:
    float *out;                // [row][columns]
};

// The ways to a 3x3 convolution by fewer multiplications, see winograd.h.
enum class Lifting { F4, F2, Doubled };

struct LiftingShape {
    int points;   // per side of a tile: there are points * points matrix products
    int outputs;  // per side of a tile
    double weights[6][3];
};

const LiftingShape &lifting_shape(Lifting lifting);

struct Lift {
    const float *source;
    int64_t image;
    const int32_t *offsets;  // [tile of an image][points * points], negative: zeros
    int tiles_per_image;
    int channels;
    const float *zeros;
    float *lifted;  // [points * points][tile][channels], `plane` floats apart
    int64_t plane;
};

struct Lower {
    const float *products;  // [points * points][tile][channels]
    int64_t plane;
    const int32_t *offsets;  // [tile of an image][outputs * outputs], negative: outside the image
    int tiles_per_image;
    int channels;
    Epilogue epilogue;
};

// Pixels in a block of the statistics: the order of summation rests on it.
constexpr int norm_block = 64;

struct NormSource {
    const float *base;
    int64_t image;
    int channels;
};

struct Norm {
    NormSource sources[2];  // side by side; the second may have no channels
    int pixels;
    const int32_t *group_of;  // [channel], negative where padded
    int groups;
    int group_size;
    double eps;
    const float *weight, *bias;  // [channel], zero where padded
    // y = y * (1 + scale) + shift with rows of `added` as [scale..., shift...], each `channels` wide
    const float *added;
    int64_t added_stride;
    const int32_t *added_row;
    bool silu;
    float *partial;  // [image][block][mean, sum of squares][channel]
    float *out;      // [image][pixel][channel]
    int64_t out_image;

    int channels() const { return sources[0].channels + sources[1].channels; }
    int blocks() const { return (pixels + norm_block - 1) / norm_block; }
};

struct Attention {
    const float *qkv;  // [image][token][stride], q at 0, k at heads * head_dim, v at twice that
    int64_t image;
    int stride;
    int heads, head_dim, tokens;
    float *out;  // [image][token][out_stride]
    int64_t out_image;
    int out_stride;
};

// One set for each instruction set.
struct Kernels {
    const char *name;
    int panel;    // columns of a panel of packed weights
    int queries;  // that attention treats at once
    void (*multiply)(const Product &, int first_row, int rows, int first_panel, int panels);
    void (*lift)(Lifting, const Lift &, int first_tile, int tiles);
    void (*lower)(Lifting, const Lower &, int first_tile, int tiles);
    // Statistics of blocks, counted through all images.
    void (*norm_statistics)(const Norm &, int first_block, int blocks);
    // Pixels, counted through all images. scratch: [2 * channels + 2 * groups as doubles]
    void (*norm_apply)(const Norm &, int64_t first_pixel, int64_t pixels, float *scratch);
    // Items: [image][head][block of queries]. scratch: attention_scratch floats
    void (*attend)(const Attention &, int first, int items, float *scratch);
    void (*silu)(float *values, int64_t count);  // a multiple of `lane`
};

// Floats of scratch memory that `attend` needs.
size_t attention_scratch(const Kernels &kernels, int tokens, int head_dim);

// What kernels are compiled for.
enum class InstructionSet { Portable, Avx2, Avx512 };

// The best for this processor; DIFFUSION_KERNELS=avx512|avx2|portable in the environment asks for another.
InstructionSet instruction_set();

const Kernels &kernels();

}  // namespace diffusion
