// What a call costs beside the arithmetic: the fixed cost of the way from C to the process's thread and back,
// what many threads that ask for one image each pay compared with one call for all, and when an image is
// ready that is asked for while others are being made, and what the `deterministic` option costs. Prints
// ratios taken in one run; each checks first that the images are the same.
//
//     calls [THREADS]    THREADS: that compute, 0 (the default): as many as the library chooses

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "diffusion.hpp"

namespace {

using Floats = std::vector<float>;

double seconds(const std::function<void()> &body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Times {
    double least, median;
};

Times of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return {values.front(), values[values.size() / 2]};
}

// The requests of this program: DDIM in so many steps, image i from seeds[i].
diffusion::SampleParams request(std::vector<std::uint64_t> seeds, int steps) {
    diffusion::SampleParams params;
    params.num_samples = seeds.size();
    params.seeds = std::move(seeds);
    params.steps = steps;
    return params;
}

std::vector<std::uint64_t> seeds_to(std::size_t count) {
    std::vector<std::uint64_t> seeds(count);
    for (std::size_t i = 0; i < count; i++)
        seeds[i] = i;
    return seeds;
}

void require_same(const Floats &a, const Floats &b, const std::string &what) {
    if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) != 0)
        throw std::runtime_error(what + ": the images are not the same bit for bit");
}

void fixed_cost(diffusion::Process &process) {
    const std::size_t image = process.image_len();
    const Floats images(image, 0.5F);
    const std::vector<std::int64_t> timesteps{500};
    Floats noisy(image), noise(image);
    std::vector<double> all;
    for (int i = 0; i < 2000; i++)
        all.push_back(seconds([&] { process.add_noise(images, timesteps, 7, noisy, noise); }));
    const Times t = of(all);
    std::printf("add_noise of one image, C++ to C++: median %.1f us, least %.1f us (goal: median below 50)\n",
                t.median * 1e6, t.least * 1e6);
}

// Threads that ask for one image each, all at once, against one call for all.
void concurrency(diffusion::Process &process, std::size_t requests, int steps, int rounds, double goal) {
    Floats together, apart(requests * process.image_len());
    const auto one_call = [&] { together = process.sample_with(request(seeds_to(requests), steps)); };
    const auto many_threads = [&] {
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < requests; i++) {
            threads.emplace_back([&, i] {
                const std::size_t image = process.image_len();
                process.sample_into(request({i}, steps),
                                    diffusion::span<float>(apart.data() + i * image, image));
            });
        }
        for (std::thread &thread : threads)
            thread.join();
    };
    one_call();
    many_threads();
    require_same(together, apart, "one call against many threads");
    std::vector<double> ratios;
    for (int i = 0; i < rounds; i++) {
        const double whole = seconds(one_call);
        ratios.push_back(seconds(many_threads) / whole);
    }
    const Times t = of(ratios);
    std::printf(
        "%zu threads, one image each, against one call for %zu (%d steps): takes median %.2f, least %.2f "
        "times as long "
        "(goal: at most %.2f); the images are the same bit for bit\n",
        requests, requests, steps, t.median, t.least, goal);
}

// One image is asked for while a batch is under way: until it is ready, against starting the batch anew with
// it.
void late_joiner(diffusion::Process &process, std::size_t batch, int steps, int rounds) {
    const diffusion::SampleParams before = request(seeds_to(batch), steps);
    const diffusion::SampleParams late = request({batch}, steps);
    const diffusion::SampleParams anew = request(seeds_to(batch + 1), steps);
    for (const int quarter : {1, 2, 3}) {
        std::vector<double> ratios;
        for (int i = 0; i <= rounds; i++) {
            diffusion::Job running = process.submit(before);
            const std::uint64_t joined_at = batch * static_cast<std::uint64_t>(steps * quarter / 4);
            while (running.progress().done < joined_at)
                std::this_thread::sleep_for(std::chrono::microseconds(200));
            Floats image;
            const double joined = seconds([&] { image = process.sample_with(late); });
            const Floats first = running.get();
            Floats all;
            const double restarted = seconds([&] { all = process.sample_with(anew); });
            Floats expected(first);
            expected.insert(expected.end(), image.begin(), image.end());
            require_same(all, expected, "a late joiner against a batch begun with it");
            if (i > 0) ratios.push_back(joined / restarted);
        }
        const Times t = of(ratios);
        std::printf(
            "an image that joins %zu others after %d of %d steps is ready after median %.2f, least %.2f of "
            "the "
            "time of the batch begun anew with it (goal: at most 1)\n",
            batch, steps * quarter / 4, steps, t.median, t.least);
    }
}

// What the `deterministic` option costs.
void determinism(diffusion::Config config, std::size_t batch, int steps, int rounds) {
    diffusion::Process usual(config);
    config.deterministic = 1;
    diffusion::Process bound(config);
    const diffusion::SampleParams params = request(seeds_to(batch), steps);
    require_same(usual.sample_with(params), bound.sample_with(params), "deterministic against not");
    std::vector<double> ratios;
    for (int i = 0; i < rounds; i++) {
        const double free = seconds([&] { usual.sample_with(params); });
        ratios.push_back(seconds([&] { bound.sample_with(params); }) / free);
    }
    const Times t = of(ratios);
    std::printf(
        "%zu images with `deterministic`, against without it (%d steps): takes median %.2f, least %.2f times "
        "as long; the images are the same bit for bit\n",
        batch, steps, t.median, t.least);
}

}  // namespace

int main(int argc, char **argv) {
    try {
        std::printf("%s\n", diffusion::version().c_str());
        diffusion::Config config;
        config.set_hidden_dims({32, 64, 128});
        config.num_threads = argc > 1 ? std::atoi(argv[1]) : 0;
        config.device = DIFFUSION_DEVICE_CPU;
        diffusion::Process process(config);
        std::printf("images of 3x%dx%d, widths 32, 64, 128\n", config.image_size, config.image_size);
        fixed_cost(process);
        concurrency(process, 32, 10, 5, 1.15);
        concurrency(process, 64, 10, 3, 1.3);
        late_joiner(process, 8, 20, 3);
        determinism(config, 8, 10, 5);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
