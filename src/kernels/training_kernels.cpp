// Compiled once for each instruction set, with KERNELS as its name, like kernels.cpp: only what is in that
// namespace may be used here.
#include "training.h"
#include "training_gemm.h"
#include "training_norm.h"
#include "training_storage.h"
#include "training_winograd.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

namespace diffusion {
namespace KERNELS {

template <typename T>
constexpr training::ImageKernels<T> image_kernels() {
    return {lift_input<T>, lift_gradient<T>,      lower_output<T>,
            sum_pixels<T>, training_normalise<T>, training_normalise_backward<T>,
            round_to<T>};
}

extern const training::Kernels training_table;
const training::Kernels training_table = {
    TEXT(KERNELS), image_kernels<float>(), image_kernels<training::Bf16>(), lower_input, lift_weights,
    lower_weights, training_multiply,      training_multiply_transposed};

}  // namespace KERNELS
}  // namespace diffusion
