// The operations of src/kernels/training.h, recorded for backpropagation. Each function returns NULL, or the
// text of the C++ exception it caught, like those of shim.h.
#pragma once

#include "shim.h"

#ifdef __cplusplus
extern "C" {
#endif

// *out = convolution(x, weight) + bias + added + residual: 3x3, stride 1, padding 1, channels multiples of
// 32, on the CPU. x: [B, in, H, W] in f32 or bf16, the rest of the weights f32. added: [B, out] or NULL.
// residual: [B, out, H, W] in x's format, or NULL.
char *diffusion_shim_convolve(tensor x, tensor weight, tensor bias, tensor added, tensor residual,
                              tensor *out);
// *out = group norm of x, then SiLU if asked for; channels are a multiple of 16.
char *diffusion_shim_normalise(tensor x, tensor weight, tensor bias, int64_t groups, double eps, bool silu,
                               tensor *out);
// x in channels-last memory; recorded.
char *diffusion_shim_channels_last(tensor x, tensor *out);

#ifdef __cplusplus
}
#endif
