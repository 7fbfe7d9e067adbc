// Weights as the matrix product reads them: panels of columns, row after row, in f32 or in bf16.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "memory.h"

namespace diffusion {

// The nearest bf16, ties to even; of finite values.
inline uint32_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

class Packed {
  public:
    Packed() = default;
    // Zeros. `columns` is a multiple of `lane`.
    Packed(const Kernels &set, WeightType type, int depth, int columns, int matrices)
        : type_(type), panel_(set.panel), depth_(depth), columns_(columns) {
        each_ = size_t(depth) * (type == WeightType::F32 ? columns : panels() * panel_ / 2);
        values_ = Floats(each_ * matrices);
    }

    // Row k of a panel: `panel` values, of which those behind the last column do not count.
    void put(int matrix, int panel, int k, const float *values) {
        const int wide = std::min(panel_, columns_ - panel * panel_), half = panel_ / 2;
        float *begin = values_.data() + matrix * each_;
        if (type_ == WeightType::F32) {
            begin += size_t(panel) * panel_ * depth_ + size_t(k) * wide;
            std::copy(values, values + wide, begin);
            return;
        }
        // Word j is column j below and column half + j above.
        begin += (size_t(panel) * depth_ + k) * half;
        for (int j = 0; j < half; j++) {
            uint32_t word = to_bf16(values[j]);
            if (half + j < wide) word |= to_bf16(values[half + j]) << 16;
            std::memcpy(begin + j, &word, sizeof word);
        }
    }

    WeightType type() const { return type_; }
    const float *matrix(int i) const { return values_.data() + i * each_; }
    int panels() const { return (columns_ + panel_ - 1) / panel_; }
    int depth() const { return depth_; }
    int columns() const { return columns_; }
    size_t size() const { return values_.size(); }

  private:
    WeightType type_ = WeightType::F32;
    int panel_ = 1, depth_ = 0, columns_ = 0;
    size_t each_ = 0;
    Floats values_;
};

}  // namespace diffusion
