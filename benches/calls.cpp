// What a call costs beside the arithmetic: the fixed cost of the way from C to the process's thread and back,
// and what many threads that ask for one image each pay compared with one call for all. Prints ratios taken
// in one run.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "diffusion.hpp"

namespace {

double seconds(const std::function<void()> &body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Least and median time of runs of a body, after one that is not counted.
struct Times {
    double least, median;
};

Times times(int runs, const std::function<void()> &body) {
    body();
    std::vector<double> all;
    for (int i = 0; i < runs; i++)
        all.push_back(seconds(body));
    std::sort(all.begin(), all.end());
    return {all.front(), all[all.size() / 2]};
}

void fixed_cost(diffusion::Process &process, std::size_t image) {
    const std::vector<float> images(image, 0.5F);
    const std::vector<std::int64_t> timesteps{500};
    std::vector<float> noisy(image), noise(image);
    const Times t = times(2000, [&] { process.add_noise(images, timesteps, 7, noisy, noise); });
    std::printf(
        "add_noise of one 3x32x32 image, C++ to C++: median %.1f us, least %.1f us (goal: median below 50)\n",
        t.median * 1e6, t.least * 1e6);
}

void concurrency(diffusion::Process &process, std::size_t image, int requests, int steps) {
    std::vector<float> whole(image * static_cast<std::size_t>(requests)), apart(whole.size());
    const auto one_call = [&] {
        process.sample_ddim(static_cast<std::size_t>(requests), steps, 0.0F, 1, whole);
    };
    const auto many_threads = [&] {
        std::vector<std::thread> threads;
        for (int i = 0; i < requests; i++) {
            threads.emplace_back([&, i] {
                const diffusion::span<float> out(apart.data() + image * static_cast<std::size_t>(i), image);
                process.sample_ddim(1, steps, 0.0F, static_cast<std::uint64_t>(i), out);
            });
        }
        for (std::thread &thread : threads)
            thread.join();
    };
    std::vector<double> ratios;
    one_call();
    many_threads();
    for (int i = 0; i < 5; i++) {
        const double together = seconds(one_call);
        ratios.push_back(seconds(many_threads) / together);
    }
    std::sort(ratios.begin(), ratios.end());
    std::printf(
        "%d threads, one image each, against one call for %d (%d steps): median ratio %.2f, least %.2f "
        "(goal: "
        "below 1.3)\n",
        requests, requests, steps, ratios[2], ratios[0]);
}

}  // namespace

int main() {
    try {
        std::printf("%s\n", diffusion::version().c_str());
        diffusion::Config config;
        config.hidden_dims[0] = 32;
        config.hidden_dims[1] = 64;
        config.hidden_dims[2] = 128;
        diffusion::Process process(config);
        const std::size_t image = 3 * 32 * 32;
        fixed_cost(process, image);
        concurrency(process, image, 64, 20);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
