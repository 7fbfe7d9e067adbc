// An inference plan: a network as a list of steps over buffers in one arena, its weights laid out for the
// kernels. The interface for src/torch/plan.rs: functions return NULL or the text of an error, to be freed
// with diffusion_shim_free.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct diffusion_plan diffusion_plan;
// The number of a buffer of images; negative: none.
typedef int32_t plan_buffer;

// A convolution of one image, or of two side by side.
typedef struct plan_conv {
    plan_buffer source, second;
    const float *weight;  // [outputs, inputs, kernel, kernel]
    const float *bias;    // [outputs]
    int32_t outputs, kernel, stride, pad_begin, pad_end;
    bool doubled;        // every pixel counts four times
    int32_t projection;  // added to every pixel; negative: none
    plan_buffer residual;
    float scale;  // of the sum
} plan_conv;

// Group norm of one image, or of two side by side.
typedef struct plan_norm {
    plan_buffer source, second;
    const float *weight, *bias;  // [channels]
    int32_t groups;
    double eps;
    bool silu;
    int32_t projection;  // scales and shifts; negative: none
} plan_norm;

// An empty plan. bf16: the convolutions' weights are held in bf16; the arithmetic is f32's either way.
char *diffusion_plan_new(int32_t embedding_width, bool bf16, diffusion_plan **plan);
void diffusion_plan_free(diffusion_plan *plan);
char *diffusion_plan_input(diffusion_plan *plan, int32_t channels, int32_t height, int32_t width,
                           plan_buffer *out);
// A linear map of the embedding: weight [parts * outputs, embedding_width], bias [parts * outputs].
char *diffusion_plan_projection(diffusion_plan *plan, const float *weight, const float *bias, int32_t parts,
                                int32_t outputs, int32_t *projection);
char *diffusion_plan_conv(diffusion_plan *plan, const plan_conv *conv, plan_buffer *out);
char *diffusion_plan_norm(diffusion_plan *plan, const plan_norm *norm, plan_buffer *out);
// q, k and v side by side, [3 * heads * head_dim] channels -> [heads * head_dim].
char *diffusion_plan_attention(diffusion_plan *plan, plan_buffer qkv, int32_t heads, int32_t head_dim,
                               plan_buffer *out);
// Ends the making of a plan; `result` is what it computes.
char *diffusion_plan_finish(diffusion_plan *plan, plan_buffer result);
// x [batch, channels, height, width] and the activated embeddings [rows, embedding_width], of which image i
// has number row[i] -> out [batch, channels, height, width].
char *diffusion_plan_run(diffusion_plan *plan, const float *x, int32_t batch, const float *embedding,
                         int32_t rows, const int32_t *row, float *out);
// Floats that the plan holds: weights and working memory.
size_t diffusion_plan_floats(const diffusion_plan *plan);

#ifdef __cplusplus
}
#endif
