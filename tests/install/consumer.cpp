// A C++17 program that uses an installed libdiffusion: consumer MODEL PREFIX CHECKOUT
#include <diffusion.hpp>

#include "images.h"

int main(int argc, char **argv) try {
    if (argc != 4) return std::fprintf(stderr, "usage: %s MODEL PREFIX CHECKOUT\n", argv[0]), 2;
    const std::size_t count = 3;
    auto process = diffusion::Process::load(argv[1]);
    const std::vector<float> images = process.sample_ddim(count, 8, 0.0f, 7);
    if (!are_pictures(images.data(), count, images.size() / count) || strangers(argv[2], argv[3]) != 0)
        return 1;
    std::printf("%s: %zu pictures\n", diffusion::version().c_str(), count);
    return 0;
} catch (const diffusion::Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
