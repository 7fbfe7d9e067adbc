// The threads that run a plan together, from its first step to its last: one OpenMP team, with a barrier that
// costs less than a microsecond where all are running and gives way where they are not.
#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace diffusion {

class Team {
  public:
    explicit Team(int size) : size(size) {}

    void wait() {
        if (size == 1) return;
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int turn = 0; round_.load(std::memory_order_acquire) == round; turn++) {
            if (turn < 4000)
                __builtin_ia32_pause();
            else
                sched_yield();
        }
    }

    const int size;

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

// A thread's share of `count` things.
struct Share {
    int64_t begin, count;
    Share(int64_t count, int thread, int threads)
        : begin(count * thread / threads), count(count * (thread + 1) / threads - count * thread / threads) {}
};

}  // namespace diffusion
