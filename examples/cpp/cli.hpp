// What the examples' command lines have in common: names for diffusion.h's enumerations, the way of a failure
// (one line, exit code 1), and --device.

#ifndef EXAMPLES_CLI_HPP
#define EXAMPLES_CLI_HPP

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "diffusion.hpp"

namespace examples {

using Choices = std::map<std::string, std::int32_t>;

inline const Choices schedules{
    {"cosine", DIFFUSION_SCHEDULE_COSINE},           {"linear", DIFFUSION_SCHEDULE_LINEAR},
    {"cosine-ramp", DIFFUSION_SCHEDULE_COSINE_RAMP}, {"scaled-linear", DIFFUSION_SCHEDULE_SCALED_LINEAR},
    {"sigmoid", DIFFUSION_SCHEDULE_SIGMOID},
};
inline const Choices predictions{
    {"epsilon", DIFFUSION_PREDICTION_EPSILON},
    {"sample", DIFFUSION_PREDICTION_SAMPLE},
    {"velocity", DIFFUSION_PREDICTION_VELOCITY},
};
inline const Choices precisions{
    {"f32", DIFFUSION_PRECISION_F32},
    {"f16", DIFFUSION_PRECISION_F16},
    {"bf16", DIFFUSION_PRECISION_BF16},
};
inline const Choices methods{
    {"ddpm", DIFFUSION_METHOD_DDPM},
    {"ddim", DIFFUSION_METHOD_DDIM},
    {"dpm-solver++", DIFFUSION_METHOD_DPM_SOLVER_PP_2M},
    {"dpm-solver++-sde", DIFFUSION_METHOD_DPM_SOLVER_PP_2M_SDE},
    {"unipc", DIFFUSION_METHOD_UNIPC},
    {"euler", DIFFUSION_METHOD_EULER},
    {"heun", DIFFUSION_METHOD_HEUN},
};

inline std::vector<std::string> names(const Choices &choices) {
    std::vector<std::string> all;
    for (const auto &[name, value] : choices) {
        all.push_back(name);
    }
    return all;
}

// CLI11 2.1 reads -1 as the largest unsigned number, and its own check of a sign quotes the largest double.
inline CLI::Validator whole_number(std::uint64_t least) {
    return {[least](const std::string &text) {
                std::uint64_t value = 0;
                const char *const end = text.data() + text.size();
                const auto [next, error] = std::from_chars(text.data(), end, value);
                const bool good = error == std::errc() && next == end && value >= least;
                return good ? std::string()
                            : text + ": must be a whole number from " + std::to_string(least) + " on";
            },
            ""};
}
inline const CLI::Validator above_zero(
    [](const std::string &text) {
        char *end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        return std::isfinite(value) && value > 0 ? std::string() : text + ": must be above 0";
    },
    "");

// auto, cpu, cuda or cuda:N into config.device and config.device_index.
inline void set_device(diffusion::Config &config, const std::string &text) {
    if (text == "auto") {
        config.device = DIFFUSION_DEVICE_AUTO;
    } else if (text == "cpu") {
        config.device = DIFFUSION_DEVICE_CPU;
    } else if (text == "cuda") {
        config.device = DIFFUSION_DEVICE_CUDA;
    } else {
        const std::string prefix = "cuda:";
        int index = -1;
        const char *end = text.data() + text.size();
        if (text.compare(0, prefix.size(), prefix) != 0 ||
            std::from_chars(text.data() + prefix.size(), end, index).ptr != end || index < 0) {
            throw std::runtime_error("--device is " + text + ": must be auto, cpu, cuda or cuda:N");
        }
        config.device = DIFFUSION_DEVICE_CUDA;
        config.device_index = index;
    }
}

// "64,128" -> {64, 128}
inline std::vector<std::int32_t> parse_list(const std::string &option, const std::string &text) {
    std::vector<std::int32_t> values;
    const char *at = text.data();
    const char *const end = at + text.size();
    while (true) {
        const auto [next, error] = std::from_chars(at, end, values.emplace_back());
        if (error != std::errc() || (next != end && *next != ',')) {
            throw std::runtime_error(option + " is " + text + ": must be whole numbers between commas");
        }
        if (next == end) {
            return values;
        }
        at = next + 1;
    }
}

inline std::string device_name(const diffusion::Config &config) {
    return config.device == DIFFUSION_DEVICE_CUDA ? "CUDA device " + std::to_string(config.device_index)
                                                  : "CPU";
}

inline int fail(const std::string &program, std::string message) {
    for (char &c : message) {
        c = c == '\n' ? ' ' : c;
    }
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", program.c_str(), message.c_str());
    return 1;
}

// Parses the command line into app's variables and runs the body, whose result is the exit code.
template <typename Body>
int run(CLI::App &app, int argc, char **argv, Body body) {
    const std::string program = app.get_name();
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp &) {
        std::fputs(app.help().c_str(), stdout);
        return 0;
    } catch (const CLI::ParseError &error) {
        return fail(program, std::string(error.what()) + " (--help lists the options)");
    }
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(program, "not enough memory");
    } catch (const std::exception &error) {
        return fail(program, error.what());
    }
}

}  // namespace examples

#endif  // EXAMPLES_CLI_HPP
