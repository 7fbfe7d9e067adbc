// The matrix product: rows of images or tiles times packed weights. Rows are read where they lie, through a
// pointer for each row and run of the inner dimension, so that a convolution needs no im2col buffer.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

// Accumulators that the registers hold, beside the operands: max_rows x panel_vectors.
constexpr int max_rows = width == 16 ? 8 : 6;
constexpr int panel_vectors = width == 4 ? 2 : 2;
constexpr int panel = panel_vectors * width;
// Rows whose values stay in the second-level cache while all panels pass by.
constexpr int row_chunk = 96;

template <int Rows, int Vectors>
static inline void tile(const Product &product, const float *weights, int row, int column) {
    vec sums[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; v++)
            sums[r][v] = vec{};
    int images[Rows], places[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
        images[r] = (row + r) / product.rows_per_image;
        places[r] = (row + r) % product.rows_per_image;
    }
    for (int s = 0; s < product.count; s++) {
        const Source &source = product.sources[s];
        const float *from[Rows];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++) {
            const int32_t offset = source.offsets[places[r]];
            from[r] = offset < 0 ? product.zeros : source.base + images[r] * source.image + offset;
        }
        const int depth = source.depth;
        for (int k = 0; k < depth; k++, weights += Vectors * width) {
            vec w[Vectors];
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; v++)
                w[v] = load(weights + v * width);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < Vectors; v++)
                    sums[r][v] += from[r][k] * w[v];
        }
    }
    const Epilogue *end = product.epilogue;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
        if (end == nullptr) {
            float *out = product.out + static_cast<int64_t>(row + r) * product.columns + column;
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; v++)
                store(out + v * width, sums[r][v]);
            continue;
        }
        const int64_t place = static_cast<int64_t>(places[r]) * product.columns + column;
        float *out = end->out + images[r] * end->out_image + place;
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; v++) {
            vec value = sums[r][v] + load(end->bias + column + v * width);
            if (end->added != nullptr)
                value +=
                    load(end->added + end->added_row[images[r]] * end->added_stride + column + v * width);
            if (end->residual != nullptr)
                value += load(end->residual + images[r] * end->residual_image + place + v * width);
            store(out + v * width, value * end->scale);
        }
    }
}

template <int Vectors>
static void tiles(const Product &product, const float *weights, int row, int rows, int column) {
    while (rows > 0) {
        // Rows that do not come out even are spread over the last two tiles: 7 is better as 4 + 3 than as 6
        // + 1.
        int take = rows <= max_rows ? rows : rows < 2 * max_rows ? (rows + 1) / 2 : max_rows;
        switch (take) {
            case 1:
                tile<1, Vectors>(product, weights, row, column);
                break;
            case 2:
                tile<2, Vectors>(product, weights, row, column);
                break;
            case 3:
                tile<3, Vectors>(product, weights, row, column);
                break;
            case 4:
                tile<4, Vectors>(product, weights, row, column);
                break;
            case 5:
                tile<5, Vectors>(product, weights, row, column);
                break;
            case 6:
                tile<6, Vectors>(product, weights, row, column);
                break;
#if defined(__AVX512F__)
            case 7:
                tile<7, Vectors>(product, weights, row, column);
                break;
            default:
                tile<8, Vectors>(product, weights, row, column);
#endif
        }
        row += take;
        rows -= take;
    }
}

static void multiply(const Product &product, int first_row, int rows, int first_panel, int panels) {
    while (rows > 0) {
        const int chunk = rows < row_chunk ? rows : row_chunk;
        for (int p = first_panel; p < first_panel + panels; p++) {
            const float *weights = product.weights + static_cast<int64_t>(p) * panel * product.depth;
            const int column = p * panel;
            if (product.columns - column >= panel)
                tiles<panel_vectors>(product, weights, first_row, chunk, column);
            else
                tiles<1>(product, weights, first_row, chunk, column);
        }
        first_row += chunk;
        rows -= chunk;
    }
}

}  // namespace KERNELS
}  // namespace diffusion
