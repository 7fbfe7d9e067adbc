// Samples textures from a trained model and writes them as one PNG.
//
//     make_textures --model models/textures --count 16 --out textures.png

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cli.hpp"
#include "diffusion.hpp"
#include "image_io.hpp"
#include "interrupt.hpp"
#include "progress.hpp"

namespace {

struct Options {
    std::string model = "models/textures";
    bool untrained = false;
    std::string out = "textures.png";
    std::string separate;
    std::size_t count = 16;
    std::size_t columns = 0;
    std::string method = "ddim";
    std::int32_t steps = 0;
    double eta = 0;
    std::uint64_t seed = 0;
    std::string device = "auto";
    std::int32_t threads = 0;
    std::size_t scale = 0;
    std::size_t tile = 1;
};

void add_options(CLI::App &app, Options &o) {
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    auto *model = app.add_option("--model", o.model, "Checkpoint folder: train_textures' or diffusers'")
                      ->type_name("FOLDER")
                      ->capture_default_str();
    app.add_flag("--untrained", o.untrained, "Use fresh 32x32 weights, which give noise, in place of --model")
        ->excludes(model);
    app.add_option("--out", o.out, "Picture to write")->type_name("PNG")->capture_default_str();
    app.add_option("--separate", o.separate,
                   "Folder for each texture by itself as well: 0000.png, 0001.png, ...")
        ->type_name("FOLDER");
    app.add_option("--count", o.count, "Textures to make")->check(CLI::Range(1, 4096))->capture_default_str();
    app.add_option("--columns", o.columns, "Textures in a row. Default: as square as it goes")
        ->check(CLI::Range(1, 4096));
    app.add_option("--method", o.method, "Sampler")
        ->check(CLI::IsMember(examples::names(examples::methods)))
        ->capture_default_str();
    app.add_option("--steps", o.steps, "Denoising steps. Default: 50; for ddpm all of the model's")
        ->check(examples::whole_number(1));
    app.add_option("--eta", o.eta, "DDIM's randomness, 0 to 1")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
    app.add_option("--seed", o.seed, "Texture i is determined by the seed and i")
        ->check(examples::whole_number(0))
        ->capture_default_str();
    app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
    app.add_option("--threads", o.threads, "Threads that the CPU computes with. Default: one a core")
        ->check(CLI::Range(1, 1024));
    app.add_option("--scale", o.scale, "Pixels of the picture per pixel of a texture. Default: enough to see")
        ->check(CLI::Range(1, 64));
    app.add_option("--tile", o.tile, "Repeat each texture so many times each way, to show its seams")
        ->check(CLI::Range(1, 16))
        ->capture_default_str();
}

diffusion::Process open_model(const Options &o) {
    diffusion::Config config;
    examples::set_device(config, o.device);
    config.num_threads = o.threads;
    if (o.untrained) {
        config.seed = o.seed;
        return diffusion::Process(config);
    }
    return diffusion::Process::load(o.model, config);
}

// Unscaled and without margin, as scripts/quality reads them.
void write_separately(const std::filesystem::path &folder, const std::vector<examples::Image> &textures) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
        throw std::runtime_error("--separate is " + folder.string() + ": " + error.message());
    }
    for (std::size_t i = 0; i < textures.size(); ++i) {
        std::string name = std::to_string(i);
        name.insert(0, name.size() < 4 ? 4 - name.size() : 0, '0');
        examples::write_png(folder / (name + ".png"), textures[i]);
    }
}

int make(const Options &o) {
    examples::catch_interrupts();
    const diffusion::Process process = open_model(o);
    const diffusion::Config config = process.config();
    std::printf("%s, on %s\n", diffusion::version().c_str(), examples::device_name(config).c_str());
    std::fflush(stdout);

    diffusion::SampleParams params;
    params.num_samples = o.count;
    params.method = examples::methods.at(o.method);
    params.steps = o.steps;
    params.eta = o.eta;
    params.seed = o.seed;
    params.format = DIFFUSION_FORMAT_RGB8;

    // Made at the first report, which knows how many denoising steps there are.
    std::optional<examples::ProgressDisplay> display;
    params.progress = [&](diffusion::Progress progress) {
        if (!display) {
            display.emplace("denoising", progress.done, progress.total);
        }
        display->update(progress.done, "");
        return !examples::interrupted();
    };

    std::vector<std::uint8_t> bytes;
    try {
        bytes = process.sample_bytes(params);
    } catch (const diffusion::Cancelled &) {
        if (!examples::interrupted()) {
            throw;
        }
        display.reset();
        std::fprintf(stderr, "make_textures: cancelled, nothing written\n");
        return examples::interrupt_exit_code();
    }
    display.reset();

    const auto size = static_cast<std::size_t>(config.image_size);
    const std::size_t scale = o.scale > 0 ? o.scale : std::max<std::size_t>(1, 128 / (size * o.tile));
    std::vector<examples::Image> textures = examples::split_rgb8(bytes, size);
    if (!o.separate.empty()) {
        write_separately(o.separate, textures);
    }
    for (examples::Image &texture : textures) {
        texture = examples::enlarge(examples::repeat(texture, o.tile), scale);
    }
    const std::size_t square = static_cast<std::size_t>(std::ceil(std::sqrt(static_cast<double>(o.count))));
    const std::size_t columns = std::min(o.count, o.columns > 0 ? o.columns : square);
    examples::write_png(o.out, examples::grid(textures, columns, 4));
    std::printf("open %s to see %zu textures of %zux%zu\n", o.out.c_str(), o.count, size, size);
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    CLI::App app("Samples textures from a diffusion model and writes them as one PNG.", "make_textures");
    Options options;
    add_options(app, options);
    return examples::run(app, argc, argv, [&] { return make(options); });
}
