// Floats that kernels read in whole vectors: aligned, in large pages where they are many.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace diffusion {

class Floats {
  public:
    Floats() = default;
    // Zeros.
    explicit Floats(size_t count) : count_(count) {
        constexpr size_t large = size_t{1} << 21;
        const size_t bytes = count * sizeof(float), alignment = bytes >= large ? large : 64;
        const size_t whole = (bytes + alignment - 1) / alignment * alignment;
        if (whole == 0) return;
        values_ = static_cast<float *>(std::aligned_alloc(alignment, whole));
        if (values_ == nullptr) throw std::bad_alloc();
        // Weights are streamed through once a step: with small pages every 4 KB costs a walk of the page
        // table.
        if (bytes >= large) madvise(values_, whole, MADV_HUGEPAGE);
        std::memset(values_, 0, whole);
    }
    Floats(Floats &&other) noexcept
        : values_(std::exchange(other.values_, nullptr)), count_(std::exchange(other.count_, 0)) {}
    Floats &operator=(Floats &&other) noexcept {
        std::swap(values_, other.values_);
        std::swap(count_, other.count_);
        return *this;
    }
    ~Floats() { std::free(values_); }

    float *data() { return values_; }
    const float *data() const { return values_; }
    size_t size() const { return count_; }
    float &operator[](size_t i) { return values_[i]; }
    // At least `count` floats; what was there is lost.
    void grow(size_t count) {
        if (count > count_) {
            *this = Floats();  // first give back, then take
            *this = Floats(count);
        }
    }

  private:
    float *values_ = nullptr;
    size_t count_ = 0;
};

}  // namespace diffusion
