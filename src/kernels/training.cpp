// The drivers of training's kernels: which work is whose, and the buffers between the kernels. Values never
// depend on how the work is split: see training.h.
#include "training.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "kernels.h"
#include "memory.h"

namespace diffusion {

namespace avx512 {
extern const training::Kernels training_table;
}
namespace avx2 {
extern const training::Kernels training_table;
}
namespace portable {
extern const training::Kernels training_table;
}

namespace training {

namespace {

constexpr int all_points = points * points;
// Lifted tiles that a thread treats at once: they and the products stay in its second-level cache or close to
// it.
constexpr int64_t block_tiles = 64;
// Tiles whose lifted inputs and gradients are kept for one product over all of them.
constexpr int64_t chunk_tiles = 256;

template <typename T>
const ImageKernels<T> &image_kernels();
template <>
const ImageKernels<float> &image_kernels<float>() {
    return kernels().f32;
}
template <>
const ImageKernels<Bf16> &image_kernels<Bf16>() {
    return kernels().bf16;
}

Tiles tiles_of(const Convolution &shape) {
    const auto count = [](int side) { return (side + outputs_per_side - 1) / outputs_per_side; };
    return {shape.height, shape.width, count(shape.height), count(shape.width)};
}

// A plane is moved on by a cache line, or all points of a tile would compete for the same few places of the
// cache.
int64_t plane_of(int64_t tiles, int channels) {
    return tiles * channels + 16;
}

// Kept from call to call, as fresh memory costs a page fault every 4 KB.
struct Buffers {
    Floats weights, inputs, gradients, products, lifted, sums, zeros;
};

Buffers &buffers() {
    static thread_local Buffers kept;
    return kept;
}

template <typename T>
void convolve_in(const Convolution &shape, const T *x, const float *weight, const float *bias,
                 const float *added, const T *residual, T *out) {
    const Kernels &k = kernels();
    const ImageKernels<T> &images = image_kernels<T>();
    const Tiles tiles = tiles_of(shape);
    const int64_t total = shape.images * tiles.per_image();
    const int64_t share = (total + shape.threads - 1) / shape.threads;
    const int64_t block = std::min(block_tiles, (share + 3) / 4 * 4);
    const int64_t blocks = (total + block - 1) / block;
    const int panels = shape.outputs / 32;
    const int64_t weight_plane = static_cast<int64_t>(shape.inputs) * shape.outputs;
    const int64_t in_plane = plane_of(block, shape.inputs), out_plane = plane_of(block, shape.outputs);
    Buffers &kept = buffers();
    kept.weights.grow(all_points * weight_plane);
    kept.lifted.grow(shape.threads * all_points * in_plane);
    kept.products.grow(shape.threads * all_points * out_plane);
    kept.zeros.grow(std::max(shape.inputs, shape.outputs));
    const T *zeros = reinterpret_cast<const T *>(kept.zeros.data());
    float *packed = kept.weights.data();
#pragma omp parallel num_threads(shape.threads)
    {
        const int thread = omp_get_thread_num();
#pragma omp for schedule(static)
        for (int panel = 0; panel < panels; panel++)
            k.lift_weights(weight, shape.inputs * 9, 9, panel, shape.inputs, packed, weight_plane);
        const Lifted lifted = {kept.lifted.data() + thread * all_points * in_plane, in_plane, block};
        const Lifted products = {kept.products.data() + thread * all_points * out_plane, out_plane, block};
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t first = b * block;
            const int count = static_cast<int>(std::min(block, total - first));
            images.lift_input(tiles, x, shape.inputs, zeros, first, count, lifted);
            for (int p = 0; p < all_points; p++)
                for (int panel = 0; panel < panels; panel++)
                    k.multiply(lifted.values + p * in_plane, block, shape.inputs,
                               packed + p * weight_plane + static_cast<int64_t>(panel) * shape.inputs * 32,
                               count, products.values + p * out_plane + panel * block * 32);
            images.lower_output(tiles, products, shape.outputs, first, count, bias, added, residual, out);
        }
    }
}

template <typename T>
void convolve_backward_in(const Convolution &shape, const T *x, const float *weight, const T *gradient,
                          T *x_gradient, float *weight_gradient, float *added_gradient) {
    const Kernels &k = kernels();
    const ImageKernels<T> &images = image_kernels<T>();
    const Tiles tiles = tiles_of(shape);
    const int per_image = tiles.per_image();
    // A chunk has whole images: what is added to the weights' gradients must not depend on the number of
    // threads.
    const int64_t chunk_images = std::min<int64_t>(shape.images, (chunk_tiles + per_image - 1) / per_image);
    const int64_t chunk = chunk_images * per_image;
    const int64_t share = (chunk_images + shape.threads - 1) / shape.threads;
    // A thread has whole images too, since their tiles' gradients overlap.
    const int64_t unit_images = std::max<int64_t>(1, std::min<int64_t>(share, block_tiles / per_image));
    const int64_t block = std::min<int64_t>(block_tiles, unit_images * per_image);
    const int in_panels = shape.inputs / 32, out_panels = shape.outputs / 32;
    const int64_t matrix = static_cast<int64_t>(shape.inputs) * shape.outputs;
    const int64_t in_plane = plane_of(chunk, shape.inputs), out_plane = plane_of(chunk, shape.outputs);
    const int64_t product_plane = plane_of(block, shape.inputs);
    const int64_t image_pixels = static_cast<int64_t>(shape.height) * shape.width;
    const int64_t image_inputs = image_pixels * shape.inputs;
    constexpr bool rounded = !std::is_same<T, float>::value;
    Buffers &kept = buffers();
    kept.weights.grow(all_points * matrix);
    kept.sums.grow(all_points * matrix);
    kept.inputs.grow(all_points * in_plane);
    kept.gradients.grow(all_points * out_plane);
    kept.products.grow(shape.threads * all_points * product_plane);
    if (rounded) kept.lifted.grow(shape.threads * unit_images * image_inputs);
    kept.zeros.grow(std::max(shape.inputs, shape.outputs));
    const T *zeros = reinterpret_cast<const T *>(kept.zeros.data());
    float *packed = kept.weights.data(), *sums = kept.sums.data();
    float *inputs = kept.inputs.data(), *gradients = kept.gradients.data();
#pragma omp parallel num_threads(shape.threads)
    {
        const int thread = omp_get_thread_num();
        const Lifted products = {kept.products.data() + thread * all_points * product_plane, product_plane,
                                 block};
        float *exact = rounded ? kept.lifted.data() + thread * unit_images * image_inputs : nullptr;
        if (x_gradient != nullptr) {
#pragma omp for schedule(static) nowait
            for (int panel = 0; panel < in_panels; panel++)
                k.lift_weights(weight, 9, shape.inputs * 9, panel, shape.outputs, packed, matrix);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < shape.images; i++)
            images.sum_pixels(gradient + i * image_pixels * shape.outputs, image_pixels, shape.outputs,
                              added_gradient + i * shape.outputs);
        for (int64_t from = 0; from < shape.images; from += chunk_images) {
            const int64_t here = std::min(chunk_images, shape.images - from), here_tiles = here * per_image;
            const int64_t units = (here + unit_images - 1) / unit_images;
#pragma omp for schedule(dynamic)
            for (int64_t unit = 0; unit < units; unit++) {
                const int64_t begin = unit * unit_images * per_image;
                const int64_t end = std::min(begin + unit_images * per_image, here_tiles);
                float *target = nullptr;
                if (x_gradient != nullptr) {
                    // lower_input counts images from the first of all.
                    const int64_t image = from + unit * unit_images;
                    if constexpr (rounded)
                        target = exact - image * image_inputs;
                    else
                        target = x_gradient;
                }
                for (int64_t tile = begin; tile < end; tile += block) {
                    const int count = static_cast<int>(std::min(block, end - tile));
                    const int64_t first = from * per_image + tile;
                    images.lift_input(tiles, x, shape.inputs, zeros, first, count,
                                      {inputs + tile * 32, in_plane, chunk});
                    images.lift_gradient(tiles, gradient, shape.outputs, zeros, first, count,
                                         {gradients + tile * 32, out_plane, chunk});
                    if (x_gradient == nullptr) continue;
                    for (int p = 0; p < all_points; p++)
                        for (int panel = 0; panel < in_panels; panel++)
                            k.multiply(gradients + p * out_plane + tile * 32, chunk, shape.outputs,
                                       packed + p * matrix + static_cast<int64_t>(panel) * shape.outputs * 32,
                                       count, products.values + p * product_plane + panel * block * 32);
                    k.lower_input(tiles, products, shape.inputs, first, count, target);
                }
                if constexpr (rounded)
                    if (x_gradient != nullptr)
                        images.round(exact, (end - begin) / per_image * image_inputs,
                                     x_gradient + (from + unit * unit_images) * image_inputs);
            }
            // sums: [point][panel of outputs][input][32]
#pragma omp for schedule(static)
            for (int item = 0; item < all_points * in_panels; item++) {
                const int p = item / in_panels, row = item % in_panels;
                for (int panel = 0; panel < out_panels; panel++)
                    k.multiply_transposed(
                        inputs + p * in_plane + row * chunk * 32,
                        gradients + p * out_plane + panel * chunk * 32, here_tiles, from > 0,
                        sums + p * matrix + (static_cast<int64_t>(panel) * shape.inputs + row * 32) * 32);
            }
        }
#pragma omp for schedule(static)
        for (int panel = 0; panel < out_panels; panel++)
            k.lower_weights(sums, matrix, panel, shape.inputs, weight_gradient);
    }
}

template <typename T>
void normalise_in(const Norm &norm, const T *x, const float *weight, const float *bias, T *out,
                  float *statistics) {
    const ImageKernels<T> &images = image_kernels<T>();
    const int64_t image = norm.pixels * norm.channels;
    std::unique_ptr<double[]> scratch(new double[norm.threads * 4 * norm.channels]);
#pragma omp parallel for schedule(static) num_threads(norm.threads)
    for (int64_t i = 0; i < norm.images; i++)
        images.normalise(norm, x + i * image, weight, bias, out + i * image, statistics + i * norm.groups * 2,
                         scratch.get() + omp_get_thread_num() * 4 * norm.channels);
}

template <typename T>
void normalise_backward_in(const Norm &norm, const T *x, const float *weight, const float *bias,
                           const float *statistics, const T *gradient, T *x_gradient, float *weight_gradient,
                           float *bias_gradient) {
    const ImageKernels<T> &images = image_kernels<T>();
    const int64_t image = norm.pixels * norm.channels, channels = norm.channels;
    std::unique_ptr<double[]> memory(new double[(norm.threads * 4 + norm.images * 2) * channels]);
    double *sums = memory.get(), *scratch = sums + norm.images * 2 * channels;
#pragma omp parallel for schedule(static) num_threads(norm.threads)
    for (int64_t i = 0; i < norm.images; i++)
        images.normalise_backward(norm, x + i * image, weight, bias, statistics + i * norm.groups * 2,
                                  gradient + i * image, x_gradient + i * image, sums + i * 2 * channels,
                                  scratch + omp_get_thread_num() * 4 * channels);
    for (int64_t c = 0; c < channels; c++) {
        double product = 0.0, sum = 0.0;
        for (int64_t i = 0; i < norm.images; i++) {
            product += sums[i * 2 * channels + c];
            sum += sums[(i * 2 + 1) * channels + c];
        }
        weight_gradient[c] = static_cast<float>(product);
        bias_gradient[c] = static_cast<float>(sum);
    }
}

}  // namespace

const Kernels &kernels() {
    switch (instruction_set()) {
        case InstructionSet::Avx512:
            return avx512::training_table;
        case InstructionSet::Avx2:
            return avx2::training_table;
        case InstructionSet::Portable:
            break;
    }
    return portable::training_table;
}

void convolve(const Convolution &shape, const void *x, const float *weight, const float *bias,
              const float *added, const void *residual, void *out) {
    if (shape.bf16)
        convolve_in(shape, static_cast<const Bf16 *>(x), weight, bias, added,
                    static_cast<const Bf16 *>(residual), static_cast<Bf16 *>(out));
    else
        convolve_in(shape, static_cast<const float *>(x), weight, bias, added,
                    static_cast<const float *>(residual), static_cast<float *>(out));
}

void convolve_backward(const Convolution &shape, const void *x, const float *weight, const void *gradient,
                       void *x_gradient, float *weight_gradient, float *added_gradient) {
    if (shape.bf16)
        convolve_backward_in(shape, static_cast<const Bf16 *>(x), weight, static_cast<const Bf16 *>(gradient),
                             static_cast<Bf16 *>(x_gradient), weight_gradient, added_gradient);
    else
        convolve_backward_in(shape, static_cast<const float *>(x), weight,
                             static_cast<const float *>(gradient), static_cast<float *>(x_gradient),
                             weight_gradient, added_gradient);
}

void normalise(const Norm &norm, const void *x, const float *weight, const float *bias, void *out,
               float *statistics) {
    if (norm.bf16)
        normalise_in(norm, static_cast<const Bf16 *>(x), weight, bias, static_cast<Bf16 *>(out), statistics);
    else
        normalise_in(norm, static_cast<const float *>(x), weight, bias, static_cast<float *>(out),
                     statistics);
}

void normalise_backward(const Norm &norm, const void *x, const float *weight, const float *bias,
                        const float *statistics, const void *gradient, void *x_gradient,
                        float *weight_gradient, float *bias_gradient) {
    if (norm.bf16)
        normalise_backward_in(norm, static_cast<const Bf16 *>(x), weight, bias, statistics,
                              static_cast<const Bf16 *>(gradient), static_cast<Bf16 *>(x_gradient),
                              weight_gradient, bias_gradient);
    else
        normalise_backward_in(norm, static_cast<const float *>(x), weight, bias, statistics,
                              static_cast<const float *>(gradient), static_cast<float *>(x_gradient),
                              weight_gradient, bias_gradient);
}

}  // namespace training
}  // namespace diffusion
