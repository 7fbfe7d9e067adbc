// libdiffusion as one of the programs that tools/bench compares: makes a network's folder, or loads one and
// does as it is told over its standard input. tools/bench/protocol.py describes the lines;
// tools/bench/peer.py is what answers them for the other libraries.
//
//     contestant create FOLDER IMAGE_SIZE CHANNELS WIDTH...
//     contestant serve FOLDER TASK PRECISION THREADS DEVICE

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "diffusion.hpp"

namespace {

using Floats = std::vector<float>;

// Peers that train draw the timesteps and the noise of the same seed.
constexpr std::uint64_t training_seed = 7;

void create(const std::string &folder, const std::vector<std::string> &numbers) {
    diffusion::Config config;
    config.device = DIFFUSION_DEVICE_CPU;
    config.image_size = std::stoi(numbers.at(0));
    config.channels = std::stoi(numbers.at(1));
    std::vector<std::int32_t> widths;
    for (std::size_t i = 2; i < numbers.size(); i++)
        widths.push_back(std::stoi(numbers[i]));
    config.set_hidden_dims(widths);
    config.beta_schedule = DIFFUSION_SCHEDULE_LINEAR;
    config.beta_start = 1e-4;
    config.beta_end = 0.02;
    diffusion::Process(config).export_model(folder, DIFFUSION_PRECISION_F32);
}

// The precision of sampling, where this version of the library lets one choose it.
template <typename C>
auto choose_precision(C &config, std::int32_t precision, int)
    -> decltype(config.inference_precision = precision, bool()) {
    config.inference_precision = precision;
    return true;
}
template <typename C>
bool choose_precision(C &, std::int32_t precision, long) {
    return precision == DIFFUSION_PRECISION_F32;
}

std::int32_t precision_of(const std::string &name) {
    if (name == "f32") return DIFFUSION_PRECISION_F32;
    if (name == "bf16") return DIFFUSION_PRECISION_BF16;
    throw std::runtime_error("precision is " + name + ": must be f32 or bf16");
}

diffusion::Process load(const std::string &folder, const std::string &task, const std::string &precision,
                        const std::string &threads, const std::string &device) {
    diffusion::Config config;
    config.num_threads = std::stoi(threads);
    config.seed = training_seed;
    config.device = device == "cuda" ? DIFFUSION_DEVICE_CUDA : DIFFUSION_DEVICE_CPU;
    const std::int32_t wanted = precision_of(precision);
    if (task == "train") {
        config.mixed_precision = wanted;
    } else if (!choose_precision(config, wanted, 0)) {
        throw std::runtime_error("this version of the library does not sample in " + precision);
    }
    return diffusion::Process::load(folder, config);
}

// What `load` prepared: does the task once and leaves the result in `out`.
struct Work {
    Floats input, out;
    std::function<void()> once;
};

void read(const std::string &path, Floats &values) {
    std::ifstream file(path, std::ios::binary);
    const auto bytes = static_cast<std::streamsize>(values.size() * sizeof(float));
    if (!file.read(reinterpret_cast<char *>(values.data()), bytes))
        throw std::runtime_error("cannot read " + path);
}

void write(const std::string &path, const Floats &values) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

void prepare(Work &work, diffusion::Process &process, const std::string &task, std::istream &words) {
    std::size_t batch = 0;
    std::int32_t number = 0;
    std::string path;
    if (!(words >> batch >> number >> path)) throw std::runtime_error("load takes BATCH NUMBER PATH");
    work.input.assign(batch * process.image_len(), 0.0F);
    work.out.assign(work.input.size(), 0.0F);
    read(path, work.input);
    if (task == "step") {
        const std::vector<std::int64_t> timesteps(batch, number);
        work.once = [&, timesteps] { process.predict_noise(work.input, timesteps, work.out); };
    } else if (task == "ddim") {
        diffusion::SampleParams params;
        params.num_samples = batch;
        params.steps = number;
        params.initial_noise = work.input;
        work.once = [&, params] { process.sample_into(params, diffusion::span<float>(work.out)); };
    } else if (task == "train") {
        work.out.clear();
        work.once = [&] { work.out.push_back(process.train_step(work.input)); };
    } else {
        throw std::runtime_error("task is " + task + ": must be step, ddim or train");
    }
}

std::string run(Work &work, const std::string &task, int times) {
    if (!work.once) throw std::runtime_error("run comes after load");
    if (task == "train") work.out.clear();
    std::ostringstream answer;
    for (int i = 0; i < times; i++) {
        const auto start = std::chrono::steady_clock::now();
        work.once();
        answer << ' ' << std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return answer.str();
}

void serve(diffusion::Process &process, const std::string &task) {
    Work work;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string command, answer;
        words >> command;
        try {
            if (command == "load") {
                prepare(work, process, task, words);
            } else if (command == "run") {
                int times = 0;
                words >> times;
                answer = run(work, task, times);
            } else if (command == "save") {
                std::string path;
                words >> path;
                write(path, work.out);
            } else {
                throw std::runtime_error("the command is " + command + ": must be load, run or save");
            }
            std::cout << "ok" << answer << std::endl;
        } catch (const std::exception &error) {
            std::cout << "error " << error.what() << std::endl;
        }
    }
}

}  // namespace

int main(int argc, char **argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    try {
        if (arguments.size() >= 5 && arguments[0] == "create") {
            create(arguments[1], {arguments.begin() + 2, arguments.end()});
            return 0;
        }
        if (arguments.size() == 6 && arguments[0] == "serve") {
            diffusion::Process process =
                load(arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
            std::cout << "ok " << diffusion::version() << std::endl;
            serve(process, arguments[2]);
            return 0;
        }
        throw std::runtime_error(
            "contestant create FOLDER IMAGE_SIZE CHANNELS WIDTH... | "
            "contestant serve FOLDER TASK PRECISION THREADS DEVICE");
    } catch (const std::exception &error) {
        std::cout << "error " << error.what() << std::endl;
        return 1;
    }
}
