// The kernels of training on the CPU: 3x3 convolutions by Winograd's algorithm and group norm with SiLU,
// forward and backward. Images are [image][pixel][channel] (channels-last), in f32 or bf16; sums, weights and
// gradients of weights are f32 always.
//
// Every value is made by the same operations in the same order whatever the number of threads, so that
// training goes on bit for bit after a restart.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diffusion {
namespace training {

struct Bf16 {
    uint16_t bits;
};

// A 3x3 convolution with stride 1 and a border of one zero. Channels are multiples of `channel_step`.
struct Convolution {
    int64_t images;
    int height, width, inputs, outputs;
    bool bf16;  // how images are stored
    int threads;
};

constexpr int channel_step = 32;

// out = convolution(x) + bias + added[image] + residual; `added` [images][outputs] and `residual` may be
// null. weight: [outputs][inputs][3][3].
void convolve(const Convolution &shape, const void *x, const float *weight, const float *bias,
              const float *added, const void *residual, void *out);

// The gradients of x (unless null), of the weight, and of `added`, whose sum over the images is the bias's.
void convolve_backward(const Convolution &shape, const void *x, const float *weight, const void *gradient,
                       void *x_gradient, float *weight_gradient, float *added_gradient);

// Group norm, then SiLU if asked for. Channels are a multiple of 16.
struct Norm {
    int64_t images;
    int64_t pixels;  // of an image
    int channels, groups;
    double eps;
    bool silu;
    bool bf16;
    int threads;
};

// statistics: [images][groups][mean, 1 / deviation], which the backward pass reads.
void normalise(const Norm &norm, const void *x, const float *weight, const float *bias, void *out,
               float *statistics);

// The gradients of x, weight and bias.
void normalise_backward(const Norm &norm, const void *x, const float *weight, const float *bias,
                        const float *statistics, const void *gradient, void *x_gradient,
                        float *weight_gradient, float *bias_gradient);

// --- What the drivers above call: one set for each instruction set
// ------------------------------------------------

// Numbers per side of a lifted tile, and outputs per side.
constexpr int points = 6, outputs_per_side = 4;

// Where tiles lie in images.
struct Tiles {
    int height, width;  // of an image
    int rows, columns;  // of tiles in an image
    int per_image() const { return rows * columns; }
};

// Lifted tiles: [points * points][channels / 32][tiles][32], the points `plane` floats apart.
struct Lifted {
    float *values;
    int64_t plane;
    int64_t tiles;
};

template <typename T>
struct ImageKernels {
    // Tiles `first`..`first + count`, counted through all images, become tiles 0..count of `lifted`. zeros:
    // as many as there are channels.
    void (*lift_input)(const Tiles &, const T *x, int channels, const T *zeros, int64_t first, int count,
                       const Lifted &lifted);
    void (*lift_gradient)(const Tiles &, const T *gradient, int channels, const T *zeros, int64_t first,
                          int count, const Lifted &lifted);
    void (*lower_output)(const Tiles &, const Lifted &products, int channels, int64_t first, int count,
                         const float *bias, const float *added, const T *residual, T *out);
    // Sums over the pixels of one image.
    void (*sum_pixels)(const T *image, int64_t pixels, int channels, float *sums);
    // One image. scratch: [4 * channels]
    void (*normalise)(const Norm &, const T *x, const float *weight, const float *bias, T *out,
                      float *statistics, double *scratch);
    // sums: [2][channels], this image's part of the gradients of weight and bias.
    void (*normalise_backward)(const Norm &, const T *x, const float *weight, const float *bias,
                               const float *statistics, const T *gradient, T *x_gradient, double *sums,
                               double *scratch);
    void (*round)(const float *from, int64_t count, T *to);
};

struct Kernels {
    const char *name;
    ImageKernels<float> f32;
    ImageKernels<Bf16> bf16;
    // Adds the tiles of a gradient to the images that they overlap in. Tiles of an image come in order: the
    // first to touch a pixel writes it.
    void (*lower_input)(const Tiles &, const Lifted &products, int channels, int64_t first, int count,
                        float *images);
    // Packs panel number `panel`, 32 columns of the matrix by which tiles are multiplied, for all points.
    // packed: [points * points][columns / 32][inner][32], the points `plane` floats apart. The nine taps of a
    // column and an inner channel begin at from[column * column_step + inner * inner_step].
    void (*lift_weights)(const float *from, int64_t column_step, int64_t inner_step, int panel, int inner,
                         float *packed, int64_t plane);
    // From products [points * points][panel of 32 outputs][inputs][32] to weight[outputs][inputs][3][3].
    void (*lower_weights)(const float *products, int64_t plane, int panel, int inputs, float *weight);
    // out[row][32 columns] = sum over inner of left[row][inner] * packed[inner][column]; left: one point's
    // [inner / 32][tiles][32].
    void (*multiply)(const float *left, int64_t left_tiles, int inner, const float *packed, int rows,
                     float *out);
    // out[row][32 columns] (+)= sum over tiles of left[tile][row] * right[tile][column]; 32 rows.
    void (*multiply_transposed)(const float *left, const float *right, int64_t tiles, bool add, float *out);
};

const Kernels &kernels();

}  // namespace training
}  // namespace diffusion
