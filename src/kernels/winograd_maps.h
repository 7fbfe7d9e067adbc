// Winograd's linear maps along one side of a tile (arXiv 1509.09308), of sampling and of training: F4's
// points are 0,
// +-1/sqrt 2, +-sqrt 2 and infinity. `lift` is B^T and `lower` A^T; their adjoints, which training needs,
// are in training_winograd.h.
#pragma once

#include "vector.h"

namespace diffusion {
namespace KERNELS {

struct F4 {
    static constexpr int points = 6, outputs = 4;
    static inline void lift(const vec d[6], vec t[6]) {
        const float a = 0.70710678118654752f, b = 1.41421356237309505f;
        const vec even1 = d[4] - 2.0f * d[2], odd1 = a * (d[3] - 2.0f * d[1]);
        const vec even2 = d[4] - 0.5f * d[2], odd2 = b * (d[3] - 0.5f * d[1]);
        t[0] = (d[0] + d[4]) - 2.5f * d[2];
        t[1] = even1 + odd1;
        t[2] = even1 - odd1;
        t[3] = even2 + odd2;
        t[4] = even2 - odd2;
        t[5] = (d[1] + d[5]) - 2.5f * d[3];
    }
    static inline void lower(const vec m[6], vec y[4]) {
        const float a = 0.70710678118654752f, b = 1.41421356237309505f;
        const vec sum1 = m[1] + m[2], difference1 = m[1] - m[2];
        const vec sum2 = m[3] + m[4], difference2 = m[3] - m[4];
        y[0] = m[0] + sum1 + sum2;
        y[1] = a * difference1 + b * difference2;
        y[2] = 0.5f * sum1 + 2.0f * sum2;
        y[3] = (0.5f * a) * difference1 + ((2.0f * b) * difference2 + m[5]);
    }
};

struct F2 {
    static constexpr int points = 4, outputs = 2;
    static inline void lift(const vec d[4], vec t[4]) {
        t[0] = d[0] - d[2];
        t[1] = d[1] + d[2];
        t[2] = d[2] - d[1];
        t[3] = d[3] - d[1];
    }
    static inline void lower(const vec m[4], vec y[2]) {
        y[0] = m[0] + (m[1] + m[2]);
        y[1] = (m[1] - m[2]) + m[3];
    }
};

struct Doubled {
    static constexpr int points = 3, outputs = 2;
    static inline void lift(const vec d[3], vec t[3]) {
        t[0] = d[0] - d[1];
        t[1] = d[1];
        t[2] = d[2] - d[1];
    }
    static inline void lower(const vec m[3], vec y[2]) {
        y[0] = m[0] + m[1];
        y[1] = m[1] + m[2];
    }
};

}  // namespace KERNELS
}  // namespace diffusion
