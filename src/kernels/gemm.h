// The matrix product: rows of images or tiles times packed weights. Rows are read where they lie, so that a
// convolution needs no im2col buffer.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace diffusion {
namespace KERNELS {

// Accumulators that the registers hold, beside the operands: max_rows x panel_vectors.
constexpr int max_rows = width == 16 ? 14 : 6;
// As many where each row has a pointer of its own, which takes a register too.
constexpr int max_scattered = width == 16 ? 8 : 6;
constexpr int panel_vectors = 2;
constexpr int panel = panel_vectors * width;
// Rows whose values stay in the second-level cache while all panels pass by.
constexpr int row_chunk = 96;

// Rows that lie one behind the other. Three registers address fourteen of them.
template <int Rows>
struct EvenRows {
    const char *first, *sixth, *eleventh;
    int64_t step;

    EvenRows(const float *base, int64_t row, int64_t floats)
        : first(reinterpret_cast<const char *>(base + row * floats)), step(floats * 4) {
        sixth = first + 5 * step;
        eleventh = first + 10 * step;
    }
    // Keeps the compiler from giving each row a pointer of its own after all.
    inline void next() {
        first += sizeof(float);
        if (Rows > 5) sixth += sizeof(float);
        if (Rows > 10) eleventh += sizeof(float);
        asm("" : "+r"(first), "+r"(sixth), "+r"(eleventh));
    }
    inline float at(int row) const {
        const char *base = row < 5 ? first : row < 10 ? sixth : eleventh;
        return *reinterpret_cast<const float *>(base + step * (row % 5));
    }
};

// Rows anywhere.
template <int Rows>
struct ScatteredRows {
    const float *from[Rows];

    inline void next() {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++)
            from[r]++;
    }
    inline float at(int row) const { return *from[row]; }
};

// Weights as they are.
struct Whole {
    static constexpr bool narrow = false;
    template <int Vectors>
    static constexpr int floats = Vectors * width;  // of memory for each row

    template <int Vectors>
    static inline void read(const float *from, vec (&w)[Vectors]) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; v++)
            w[v] = load(from + v * width);
    }
};

// bf16, the upper half of an f32: the first vector's numbers are in the lower halves of the words, the
// second's in the upper ones.
struct Halves {
    static constexpr bool narrow = true;
    template <int Vectors>
    static constexpr int floats = width;

    template <int Vectors>
    static inline void read(const float *from, vec (&w)[Vectors]) {
        ivec words, lower;
        memcpy(&words, from, sizeof words);
        lower = words << 16;
        memcpy(&w[0], &lower, sizeof lower);
        if constexpr (Vectors == 2) {
            words &= -65536;
            memcpy(&w[1], &words, sizeof words);
        }
    }
};

template <typename Weights, int Rows, int Vectors, typename Access>
static inline const float *accumulate(Access rows, const float *weights, int depth, const float *&fetch,
                                      int lines, vec (&sums)[Rows][Vectors]) {
    for (int k = 0; k < depth; k += lane) {
        for (int line = 0; line < lines; line++, fetch += 16)
            __builtin_prefetch(fetch, 0, 2);
#pragma GCC unroll 4
        for (int i = 0; i < lane; i++, weights += Weights::template floats<Vectors>, rows.next()) {
            vec w[Vectors];
            Weights::read(weights, w);
#pragma GCC unroll 14
            for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < Vectors; v++)
                    sums[r][v] += rows.at(r) * w[v];
        }
    }
    return weights;
}

template <typename Weights, int Rows, int Vectors>
static void tile(const Product &product, const float *weights, const float *fetch, int lines, int row,
                 int column) {
    vec sums[Rows][Vectors];
#pragma GCC unroll 14
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; v++)
            sums[r][v] = vec{};
    for (int s = 0; s < product.count; s++) {
        const Source &source = product.sources[s];
        if (source.offsets == nullptr) {
            weights = accumulate<Weights>(EvenRows<Rows>(source.base, row, source.depth), weights,
                                          source.depth, fetch, lines, sums);
        } else if constexpr (Rows <= max_scattered) {
            ScatteredRows<Rows> rows;
#pragma GCC unroll 8
            for (int r = 0; r < Rows; r++) {
                const int image = (row + r) / product.rows_per_image;
                const int32_t offset = source.offsets[row + r - image * product.rows_per_image];
                rows.from[r] = offset < 0 ? product.zeros : source.base + image * source.image + offset;
            }
            weights = accumulate<Weights>(rows, weights, source.depth, fetch, lines, sums);
        }
    }
    const int64_t place = static_cast<int64_t>(row) * product.columns + column;
    const Epilogue *end = product.epilogue;
#pragma GCC unroll 14
    for (int r = 0; r < Rows; r++) {
        const int64_t at = place + static_cast<int64_t>(r) * product.columns;
        if (end == nullptr) {
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; v++)
                store(product.out + at + v * width, sums[r][v]);
            continue;
        }
        const float *added = nullptr;
        if (end->added != nullptr)
            added = end->added + end->added_row[(row + r) / product.rows_per_image] * end->added_stride;
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; v++) {
            vec value = sums[r][v] + load(end->bias + column + v * width);
            if (added != nullptr) value += load(added + column + v * width);
            if (end->residual != nullptr) value += load(end->residual + at + v * width);
            store(end->out + at + v * width, value * end->scale);
        }
    }
}

// Calls tile<Rows, Vectors> with a number of rows that is known when it runs only.
template <typename Weights, int Vectors, int Rows>
static inline void tile_of(int rows, const Product &product, const float *weights, const float *fetch,
                           int lines, int row, int column) {
    if (rows == Rows)
        tile<Weights, Rows, Vectors>(product, weights, fetch, lines, row, column);
    else if constexpr (Rows > 1)
        tile_of<Weights, Vectors, Rows - 1>(rows, product, weights, fetch, lines, row, column);
}

// What a panel's tiles fetch meanwhile: the next panel's weights, each tile a part of them.
struct Fetch {
    const float *from;
    int lines;  // for each `lane` rows of weights
};

// Rows go in even tiles: 15 is better as 8 + 7 than as 14 + 1.
template <typename Weights, int Vectors>
static void tiles(const Product &product, const float *weights, Fetch fetch, int row, int rows, int column) {
    const int most = product.sources[0].offsets == nullptr ? max_rows : max_scattered;
    const int count = (rows + most - 1) / most, lines = (fetch.lines + count - 1) / count;
    for (int i = 0; i < count; i++) {
        const int begin = rows * i / count, take = rows * (i + 1) / count - begin;
        tile_of<Weights, Vectors, max_rows>(take, product, weights, fetch.from, lines, row + begin, column);
        fetch.from += static_cast<int64_t>(product.depth) / lane * lines * 16;
    }
}

// Depth up to which halves are widened once for all tiles, if there are some; deeper ones would not stay in
// the cache.
constexpr int most_widened = 512;

template <typename Weights, int Vectors>
static void panel_of(const Product &product, const float *weights, int row, int rows, int column) {
    constexpr int floats = Weights::template floats<Vectors>;
    const Fetch fetch = {weights + static_cast<int64_t>(product.depth) * floats, floats * lane / 16};
    if (Weights::narrow && rows > 2 * max_rows && product.depth <= most_widened) {
        alignas(64) float whole[most_widened * Vectors * width];
        for (int k = 0; k < product.depth; k++) {
            vec w[Vectors];
            Weights::read(weights + k * floats, w);
            for (int v = 0; v < Vectors; v++)
                store(whole + (k * Vectors + v) * width, w[v]);
        }
        tiles<Whole, Vectors>(product, whole, fetch, row, rows, column);
    } else {
        tiles<Weights, Vectors>(product, weights, fetch, row, rows, column);
    }
}

template <typename Weights>
static void multiply_by(const Product &product, int first_row, int rows, int first_panel, int panels) {
    while (rows > 0) {
        const int chunk = rows < row_chunk ? rows : row_chunk;
        for (int p = first_panel; p < first_panel + panels; p++) {
            const int64_t before = static_cast<int64_t>(p) * product.depth;
            const float *weights = product.weights + before * Weights::template floats<panel_vectors>;
            const int column = p * panel;
            if (product.columns - column >= panel)
                panel_of<Weights, panel_vectors>(product, weights, first_row, chunk, column);
            else
                panel_of<Weights, 1>(product, weights, first_row, chunk, column);
        }
        first_row += chunk;
        rows -= chunk;
    }
}

static void multiply(const Product &product, int first_row, int rows, int first_panel, int panels) {
    if (product.weight_type == WeightType::F32)
        multiply_by<Whole>(product, first_row, rows, first_panel, panels);
    else
        multiply_by<Halves>(product, first_row, rows, first_panel, panels);
}

}  // namespace KERNELS
}  // namespace diffusion
