// What the processor can do at most, for docs/BENCHMARKS.md's cost model: multiply-adds in registers alone,
// with each instruction set that it has, and bytes read from a memory that no cache holds. Prints "NAME
// VALUE" lines in GFLOP/s and GB/s: the best of several tries.
//
//     peak THREADS
//
// AMX is left out: no kernel of this library uses it.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// Enough sums side by side to hide the latency of an addition, few enough for 16 registers.
constexpr int chains = 12;
constexpr long rounds = 4'000'000;
constexpr int tries = 20;

// Each kernel returns something that depends on all it did, so that the compiler cannot leave it out.

__attribute__((target("avx2,fma"))) float multiply_avx2() {
    __m256 sums[chains];
    for (int i = 0; i < chains; i++)
        sums[i] = _mm256_set1_ps(static_cast<float>(i));
    const __m256 a = _mm256_set1_ps(0.999F), b = _mm256_set1_ps(0.001F);
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; i++)
            sums[i] = _mm256_fmadd_ps(sums[i], a, b);
    }
    float out = 0;
    for (const __m256 &sum : sums)
        out += _mm256_cvtss_f32(sum);
    return out;
}

__attribute__((target("avx512f"))) float multiply_avx512() {
    __m512 sums[chains];
    for (int i = 0; i < chains; i++)
        sums[i] = _mm512_set1_ps(static_cast<float>(i));
    const __m512 a = _mm512_set1_ps(0.999F), b = _mm512_set1_ps(0.001F);
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; i++)
            sums[i] = _mm512_fmadd_ps(sums[i], a, b);
    }
    float out = 0;
    for (const __m512 &sum : sums)
        out += _mm512_cvtss_f32(sum);
    return out;
}

__attribute__((target("avx512f,avx512bf16"))) float multiply_avx512_bf16() {
    __m512 sums[chains];
    for (int i = 0; i < chains; i++)
        sums[i] = _mm512_set1_ps(static_cast<float>(i));
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5F), _mm512_set1_ps(-0.5F));
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], a, a);
    }
    float out = 0;
    for (const __m512 &sum : sums)
        out += _mm512_cvtss_f32(sum);
    return out;
}

// The least seconds in which all threads did `body(thread)` once, counted from the moment when all were
// there.
template <typename Body>
double best(int threads, Body body) {
    double least = 1e9;
    for (int attempt = 0; attempt < tries; attempt++) {
        std::atomic<int> ready{0};
        std::vector<Clock::time_point> begin(static_cast<std::size_t>(threads)), end(begin.size());
        std::vector<std::thread> team;
        for (int i = 0; i < threads; i++) {
            team.emplace_back([&, i] {
                const auto at = static_cast<std::size_t>(i);
                ready.fetch_add(1);
                while (ready.load() < threads)
                    std::this_thread::yield();
                begin[at] = Clock::now();
                body(i);
                end[at] = Clock::now();
            });
        }
        for (std::thread &thread : team)
            thread.join();
        const auto first = *std::min_element(begin.begin(), begin.end());
        const auto last = *std::max_element(end.begin(), end.end());
        least = std::min(least, std::chrono::duration<double>(last - first).count());
    }
    return least;
}

// flops: of one instruction.
void arithmetic(const char *name, int threads, double flops, float (*kernel)()) {
    std::vector<float> results(static_cast<std::size_t>(threads));
    const double seconds = best(threads, [&](int i) { results[static_cast<std::size_t>(i)] = kernel(); });
    if (std::accumulate(results.begin(), results.end(), 0.0F) == 12345.0F) std::puts("");  // uses the results
    std::printf("%s %.1f\n", name, flops * chains * static_cast<double>(rounds) * threads / seconds * 1e-9);
}

void reading(int threads) {
    // Twice the largest caches of today's servers.
    constexpr std::size_t values = std::size_t{1} << 28;
    const std::vector<float> memory(values, 1.0F);
    std::vector<float> results(static_cast<std::size_t>(threads));
    const double seconds = best(threads, [&](int i) {
        const std::size_t part = values / static_cast<std::size_t>(threads);
        const float *from = memory.data() + part * static_cast<std::size_t>(i);
        __m128 sums[8] = {};
        for (std::size_t at = 0; at + 32 <= part; at += 32) {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < 8; j++)
                sums[j] = _mm_add_ps(sums[j], _mm_loadu_ps(from + at + 4 * j));
        }
        for (const __m128 &sum : sums)
            results[static_cast<std::size_t>(i)] += _mm_cvtss_f32(sum);
    });
    if (std::accumulate(results.begin(), results.end(), 0.0F) == 12345.0F) std::puts("");
    std::printf("memory %.1f\n", static_cast<double>(values * sizeof(float)) / seconds * 1e-9);
}

}  // namespace

int main(int argc, char **argv) {
    const int threads = argc == 2 ? std::atoi(argv[1]) : 0;
    if (threads < 1) {
        std::fputs("peak THREADS: must be a number from 1 on\n", stderr);
        return 1;
    }
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        arithmetic("avx2", threads, 16, multiply_avx2);
    if (__builtin_cpu_supports("avx512f")) arithmetic("avx512", threads, 32, multiply_avx512);
    if (__builtin_cpu_supports("avx512bf16")) arithmetic("avx512_bf16", threads, 64, multiply_avx512_bf16);
    reading(threads);
    return 0;
}
