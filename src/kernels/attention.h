// softmax(q k^T / sqrt head_dim) v, the lanes of a vector being queries: fast for few tokens and for narrow
// heads, and without sums across lanes.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

constexpr int query_vectors = 2;
constexpr int queries = query_vectors * width;

// out[r][query] = sum over k of left[k * left_step + r * left_row] * right[k][query]
template <int Rows>
static inline void outer(const float *left, int64_t left_step, int64_t left_row, const float *right,
                         int depth, float *out) {
    vec sums[Rows][query_vectors];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++)
        for (int v = 0; v < query_vectors; v++)
            sums[r][v] = vec{};
    for (int k = 0; k < depth; k++) {
        const vec right0 = load(right + k * queries), right1 = load(right + k * queries + width);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const float value = left[k * left_step + r * left_row];
            sums[r][0] += value * right0;
            sums[r][1] += value * right1;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++)
        for (int v = 0; v < query_vectors; v++)
            store(out + r * queries + v * width, sums[r][v]);
}

static void product(const float *left, int64_t step, int64_t row, const float *right, int depth, int rows,
                    float *out) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        outer<4>(left + r * row, step, row, right, depth, out + r * queries);
    for (; r < rows; r++)
        outer<1>(left + r * row, step, row, right, depth, out + r * queries);
}

static void attend(const Attention &a, int first, int items, float *scratch) {
    const int d = a.head_dim, tokens = a.tokens, blocks = (tokens + queries - 1) / queries;
    float *keys = scratch;  // [token][d]
    float *values = keys + static_cast<int64_t>(tokens) * d;
    float *scores = values + static_cast<int64_t>(tokens) * d;   // [token][query]
    float *q = scores + static_cast<int64_t>(tokens) * queries;  // [d][query]
    float *mixed = q + d * queries;                              // [d][query]
    const float scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(d)));
    int packed = -1;
    for (int item = first; item < first + items; item++) {
        const int head = item / blocks % a.heads, image = item / blocks / a.heads,
                  begin = item % blocks * queries;
        const float *base = a.qkv + image * a.image + head * d;
        const int inner = a.heads * d;
        if (item / blocks != packed) {
            packed = item / blocks;
            for (int t = 0; t < tokens; t++) {
                const float *row = base + static_cast<int64_t>(t) * a.stride;
                memcpy(keys + static_cast<int64_t>(t) * d, row + inner, d * sizeof(float));
                memcpy(values + static_cast<int64_t>(t) * d, row + 2 * inner, d * sizeof(float));
            }
        }
        const int count = tokens - begin < queries ? tokens - begin : queries;
        for (int i = 0; i < queries; i++) {
            const float *row = base + static_cast<int64_t>(begin + i) * a.stride;
            for (int j = 0; j < d; j++)
                q[j * queries + i] = i < count ? row[j] * scale : 0.0f;
        }
        product(keys, 1, d, q, d, tokens, scores);
        vec most[query_vectors], sum[query_vectors];
        for (int v = 0; v < query_vectors; v++) {
            most[v] = load(scores + v * width);
            sum[v] = vec{};
        }
        for (int t = 1; t < tokens; t++)
            for (int v = 0; v < query_vectors; v++)
                most[v] = larger(most[v], load(scores + t * queries + v * width));
        for (int t = 0; t < tokens; t++) {
            for (int v = 0; v < query_vectors; v++) {
                float *score = scores + t * queries + v * width;
                const vec weight = exponential(load(score) - most[v]);
                sum[v] += weight;
                store(score, weight);
            }
        }
        product(values, d, 1, scores, tokens, d, mixed);
        for (int j = 0; j < d; j++)
            for (int v = 0; v < query_vectors; v++) {
                float *at = mixed + j * queries + v * width;
                store(at, load(at) / sum[v]);
            }
        float *out = a.out + image * a.out_image + static_cast<int64_t>(begin) * a.out_stride + head * d;
        for (int i = 0; i < count; i++)
            for (int j = 0; j < d; j++)
                out[static_cast<int64_t>(i) * a.out_stride + j] = mixed[j * queries + i];
        // What pads the channels must be zeros.
        if (head == a.heads - 1)
            for (int i = 0; i < count; i++)
                for (int j = inner; j < a.out_stride; j++)
                    out[static_cast<int64_t>(i) * a.out_stride + j - head * d] = 0.0f;
    }
}

}  // namespace KERNELS
}  // namespace diffusion
