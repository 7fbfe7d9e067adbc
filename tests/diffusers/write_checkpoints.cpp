// Writes checkpoints with diffusion_save, one for every noise schedule and prediction type, and beside each
// what the library computes from it: expected.safetensors, which scripts/check_in_diffusers.py compares with
// what diffusers computes.
//
//     write_checkpoints FOLDER [CHECKPOINT...]    the CHECKPOINTs, loaded and saved again, are added to the
//     made ones

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "diffusion.hpp"

namespace fs = std::filesystem;

namespace {

struct Array {
    std::string name;
    const char *type;  // as safetensors calls it
    std::vector<std::size_t> shape;
    const void *data;
    std::size_t bytes;
};

// Eight bytes with the header's length, the header in JSON, the arrays one after another.
void write_safetensors(const fs::path &path, const std::vector<Array> &arrays) {
    std::string header = "{";
    std::size_t at = 0;
    for (const Array &array : arrays) {
        header += (at > 0 ? ",\"" : "\"") + array.name + "\":{\"dtype\":\"" + array.type + "\",\"shape\":[";
        for (std::size_t i = 0; i < array.shape.size(); ++i) {
            header += (i > 0 ? "," : "") + std::to_string(array.shape[i]);
        }
        header += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + array.bytes) + "]}";
        at += array.bytes;
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::ofstream file(path, std::ios::binary);
    for (std::uint64_t i = 0, length = header.size(); i < 8; ++i) {
        file.put(static_cast<char>(length >> (8 * i) & 0xff));
    }
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const Array &array : arrays) {
        file.write(static_cast<const char *>(array.data), static_cast<std::streamsize>(array.bytes));
    }
    if (!file.flush()) {
        throw std::runtime_error("cannot write " + path.string());
    }
}

// Numbers in [-1, 1) that look random.
std::vector<float> made_up(std::size_t len) {
    std::vector<float> values(len);
    std::uint32_t state = 1;
    for (float &value : values) {
        state = state * 1664525U + 1013904223U;
        value = static_cast<float>(state >> 8) / 8388608.0F - 1.0F;
    }
    return values;
}

void save(const diffusion::Process &process, const fs::path &folder) {
    process.save(folder);
    const diffusion::Config config = process.config();
    const auto steps = static_cast<std::size_t>(config.noise_steps);
    const auto size = static_cast<std::size_t>(config.image_size);
    const std::vector<std::int64_t> timesteps{0, config.noise_steps / 3, config.noise_steps - 1};
    const std::vector<float> x = made_up(timesteps.size() * config.image_len());
    const std::vector<float> output = process.predict_noise(x, timesteps);
    const std::vector<float> cumprod = process.alphas_cumprod();
    const std::vector<std::size_t> shape{timesteps.size(), static_cast<std::size_t>(config.channels), size,
                                         size};
    write_safetensors(folder / "expected.safetensors",
                      {{"x", "F32", shape, x.data(), x.size() * 4},
                       {"timesteps", "I64", {timesteps.size()}, timesteps.data(), timesteps.size() * 8},
                       {"output", "F32", shape, output.data(), output.size() * 4},
                       {"alphas_cumprod", "F32", {steps}, cumprod.data(), steps * 4}});
}

// A few steps at a large rate, so that the moving average is far from the weights that were trained: a
// checkpoint with the wrong ones would not go unnoticed.
void train(diffusion::Process &process) {
    const std::vector<float> images = made_up(2 * process.config().image_len());
    for (int i = 0; i < 4; ++i) {
        process.train_step(images);
    }
    std::vector<float> trained(8), average(8);
    process.read_parameter("conv_in.bias", trained, DIFFUSION_WEIGHTS_TRAINED);
    process.read_parameter("conv_in.bias", average, DIFFUSION_WEIGHTS_EMA);
    float apart = 0;
    for (std::size_t i = 0; i < trained.size(); ++i) {
        apart = std::fmax(apart, std::fabs(trained[i] - average[i]));
    }
    if (!(apart > 0.005F)) {
        throw std::runtime_error("the moving average is only " + std::to_string(apart) + " from the weights");
    }
}

struct Schedule {
    const char *name;
    std::int32_t kind;
    double beta_start;
    double beta_end;
};

void make(const Schedule &schedule, const std::pair<const char *, std::int32_t> &prediction, bool rescale,
          const fs::path &folder) {
    diffusion::Config config;
    config.device = DIFFUSION_DEVICE_CPU;
    config.num_threads = 1;
    config.image_size = 16;
    config.set_hidden_dims({8, 16});
    config.layers_per_block = 1;
    config.prediction_type = prediction.second;
    config.rescale_betas_zero_snr = rescale ? 1 : 0;
    config.learning_rate = 0.01;
    config.ema_decay = 0.9;
    config.seed = 3;
    const auto finish = [&](diffusion::Process process) {
        train(process);
        save(process,
             folder / (std::string(schedule.name) + "-" + prediction.first + (rescale ? "-zero-snr" : "")));
    };
    if (schedule.kind == DIFFUSION_SCHEDULE_GIVEN) {
        std::vector<double> betas;
        for (int t = 0; t < config.noise_steps; ++t) {
            betas.push_back(0.0001 + 0.03 * (t % 7) / config.noise_steps + 0.00002 * t);
        }
        finish(diffusion::Process(config, betas));
    } else {
        config.beta_schedule = schedule.kind;
        config.beta_start = schedule.beta_start;
        config.beta_end = schedule.beta_end;
        finish(diffusion::Process(config));
    }
}

int run(int argc, char **argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: write_checkpoints FOLDER [CHECKPOINT...]\n");
        return 2;
    }
    const fs::path folder = argv[1];
    fs::create_directories(folder);
    const Schedule schedules[] = {
        {"cosine", DIFFUSION_SCHEDULE_COSINE, 0.0001, 0.999},
        {"cosine-unclipped", DIFFUSION_SCHEDULE_COSINE, 1e-9, 0.999},
        {"cosine-clipped", DIFFUSION_SCHEDULE_COSINE, 0.001, 0.5},
        {"linear", DIFFUSION_SCHEDULE_LINEAR, 0.0001, 0.02},
        {"cosine-ramp", DIFFUSION_SCHEDULE_COSINE_RAMP, 0.0001, 0.02},
        {"scaled-linear", DIFFUSION_SCHEDULE_SCALED_LINEAR, 0.00085, 0.012},
        {"sigmoid", DIFFUSION_SCHEDULE_SIGMOID, 0.0001, 0.02},
        {"given", DIFFUSION_SCHEDULE_GIVEN, 0, 0},
    };
    const std::pair<const char *, std::int32_t> predictions[] = {
        {"epsilon", DIFFUSION_PREDICTION_EPSILON},
        {"sample", DIFFUSION_PREDICTION_SAMPLE},
        {"velocity", DIFFUSION_PREDICTION_VELOCITY},
    };
    for (const Schedule &schedule : schedules) {
        for (const auto &prediction : predictions) {
            make(schedule, prediction, false, folder);
            if (prediction.second != DIFFUSION_PREDICTION_EPSILON) {
                make(schedule, prediction, true, folder);
            }
        }
    }
    for (int i = 2; i < argc; ++i) {
        diffusion::Config config;
        config.device = DIFFUSION_DEVICE_CPU;
        save(diffusion::Process::load(argv[i], config), folder / fs::path(argv[i]).filename());
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "write_checkpoints: %s\n", error.what());
        return 1;
    }
}
