// Trains a diffusion model on pictures: a folder of PNGs, CIFAR-10's binary batches or an MNIST-style IDX
// file.
//
//     train_textures --png my_textures --out my_model --size 32 --steps 20000
//
// The folder --out becomes a checkpoint that diffusion::Process::load, make_textures and Python's diffusers
// open. Beside the checkpoint's own files it gets loss.csv, loss_curve.png and samples_<step>.png. Ctrl-C
// saves; the same command goes on from there, with the batches that it would have had.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numbers>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "cli.hpp"
#include "dataset.hpp"
#include "diffusion.hpp"
#include "image_io.hpp"
#include "interrupt.hpp"
#include "plot.hpp"
#include "progress.hpp"

namespace fs = std::filesystem;

namespace {

struct Options {
    std::vector<std::string> png;
    std::string cifar10;
    std::string idx;
    std::size_t scale_down = 1;
    std::vector<std::string> augment;

    std::string out = "trained";
    std::string export_to;
    bool fresh = false;
    bool resume = false;
    std::uint64_t steps = 20000;
    std::size_t batch = 32;
    std::uint64_t save_every = 1000;
    std::uint64_t sample_every = 1000;
    std::uint64_t loss_every = 1;

    double learning_rate = 0;
    std::uint64_t warmup = 0;
    bool cosine_decay = false;

    std::uint64_t seed = 0;
    std::string device = "auto";

    // What the command line says about the network, in the order given; the rest is the preset's or the
    // checkpoint's.
    std::vector<std::function<void(diffusion::Config &)>> network;
};

// Adds an option that sets something of the process's configuration, if it is given.
template <typename T, typename Apply>
CLI::Option *network_option(CLI::App &app, Options &options, const std::string &name, Apply apply,
                            const std::string &description) {
    return app.add_option_function<T>(
        name,
        [&options, apply](const T &value) {
            options.network.push_back([apply, value](diffusion::Config &config) { apply(config, value); });
        },
        description);
}

void add_options(CLI::App &app, Options &o) {
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    using Config = diffusion::Config;
    using examples::names;
    auto *source = app.add_option_group("source", "What to train on (one of these)");
    source->add_option("--png", o.png, "Folders that are searched for PNG files, read as RGB")
        ->type_name("FOLDER...");
    source
        ->add_option("--cifar10", o.cifar10, "Folder of CIFAR-10's data_batch_*.bin; DDPM's CIFAR-10 preset")
        ->type_name("FOLDER");
    source->add_option("--idx", o.idx, "IDX file of gray images, as MNIST's train-images-idx3-ubyte")
        ->type_name("FILE");
    source->require_option(1);
    app.add_option("--scale-down", o.scale_down,
                   "Average blocks of so many by so many pixels of each PNG first")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    app.add_option(
           "--augment", o.augment,
           "Comma-separated: wrap (windows may cross the edges, for textures that tile), flip (left-right), "
           "flipud (top-bottom), none. Default: wrap,flip for --png, flip for --cifar10, none for --idx")
        ->delimiter(',')
        ->check(CLI::IsMember({"wrap", "flip", "flipud", "none"}));

    app.add_option("--out", o.out, "Checkpoint folder: resumed if there is one, else made")
        ->capture_default_str();
    app.add_option(
           "--export", o.export_to,
           "At the end also write the model alone there, to be shipped: f16 weights, no training state")
        ->type_name("FOLDER");
    auto *fresh =
        app.add_flag("--fresh", o.fresh, "Fail if --out holds a checkpoint, in place of resuming it");
    app.add_flag("--resume", o.resume, "Fail if --out holds no checkpoint, in place of starting one")
        ->excludes(fresh);
    app.add_option("--steps", o.steps, "Training steps in all, those before a resume included")
        ->check(examples::whole_number(1))
        ->capture_default_str();
    app.add_option("--batch", o.batch, "Images in a step")
        ->check(CLI::Range(1, 65536))
        ->capture_default_str();
    app.add_option("--save-every", o.save_every, "Steps between checkpoints; 0: only at the end")
        ->check(examples::whole_number(0))
        ->capture_default_str();
    app.add_option("--sample-every", o.sample_every, "Steps between pictures of samples; 0: only at the end")
        ->check(examples::whole_number(0))
        ->capture_default_str();
    app.add_option("--loss-every", o.loss_every,
                   "Steps between looks at the loss, which on CUDA cost a wait each")
        ->check(examples::whole_number(1))
        ->capture_default_str();

    app.add_option("--learning-rate", o.learning_rate,
                   "Step size of Adam. Default: 0.0001; 0.0002 for --cifar10")
        ->check(examples::above_zero);
    app.add_option("--warmup", o.warmup, "Steps over which the learning rate rises linearly")
        ->check(examples::whole_number(0))
        ->capture_default_str();
    app.add_flag("--cosine-decay", o.cosine_decay,
                 "Let the learning rate fall to 0 at --steps, along a half cosine");

    network_option<std::int32_t>(
        app, o, "--size", [](Config &c, std::int32_t v) { c.image_size = v; },
        "Height and width of the images. Default: 32; the file's for --idx")
        ->check(examples::whole_number(1));
    network_option<std::string>(
        app, o, "--hidden-dims",
        [](Config &c, const std::string &v) {
            c.set_hidden_dims(examples::parse_list("--hidden-dims", v));
            c.norm_num_groups = 0;  // the preset's need not divide these
        },
        "Channels of each U-Net level. Default: 64,128,256; 128,256,256,256 for --cifar10")
        ->type_name("N,N,...");
    network_option<std::int32_t>(
        app, o, "--layers-per-block", [](Config &c, std::int32_t v) { c.layers_per_block = v; },
        "Residual blocks of each level. Default: 2");
    network_option<std::int32_t>(
        app, o, "--attention-levels", [](Config &c, std::int32_t v) { c.attention_levels = v; },
        "Bit mask of the levels with self-attention, 1 being full resolution; -1: the deepest, if small");
    network_option<std::int32_t>(
        app, o, "--attention-head-dim", [](Config &c, std::int32_t v) { c.attention_head_dim = v; },
        "Channels of an attention head; 0: one head");
    network_option<double>(
        app, o, "--dropout", [](Config &c, double v) { c.dropout = v; }, "Default: 0; 0.1 for --cifar10");
    network_option<std::int32_t>(
        app, o, "--noise-steps", [](Config &c, std::int32_t v) { c.noise_steps = v; },
        "Timesteps of the noising process. Default: 1000");
    network_option<std::string>(
        app, o, "--schedule",
        [](Config &c, const std::string &v) {
            c.beta_schedule = examples::schedules.at(v);
            // The default end of 0.999 is the cosine's; DDPM's 0.02 is usual for the others.
            c.beta_end = c.beta_schedule == DIFFUSION_SCHEDULE_COSINE ? 0.999 : 0.02;
        },
        "Noise schedule. Default: cosine; linear for --cifar10")
        ->check(CLI::IsMember(names(examples::schedules)));
    network_option<std::string>(
        app, o, "--prediction",
        [](Config &c, const std::string &v) { c.prediction_type = examples::predictions.at(v); },
        "What the network predicts. Default: epsilon")
        ->check(CLI::IsMember(names(examples::predictions)));
    network_option<double>(
        app, o, "--ema", [](Config &c, double v) { c.ema_decay = v; },
        "Decay of the moving average of the weights, which sampling uses; 0: none. Default: 0.999");
    network_option<double>(
        app, o, "--clip", [](Config &c, double v) { c.gradient_clip = v; },
        "Largest norm of the gradient; 0: any. Default: 1");
    network_option<std::string>(
        app, o, "--precision",
        [](Config &c, const std::string &v) { c.mixed_precision = examples::precisions.at(v); },
        "Arithmetic of training; f16 needs CUDA. Default: f32")
        ->check(CLI::IsMember(names(examples::precisions)));

    app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
    network_option<std::int32_t>(
        app, o, "--threads", [](Config &c, std::int32_t v) { c.num_threads = v; },
        "Threads that the CPU computes with. Default: one a core");
    app.add_option("--seed", o.seed, "Determines weights, batches and noise")
        ->check(examples::whole_number(0))
        ->capture_default_str();
}

// The configuration of a run from the start: the source's preset, then the command line.
diffusion::Config fresh_config(const Options &o, const std::optional<examples::IdxImages> &idx) {
    diffusion::Config config = o.cifar10.empty() ? diffusion::Config() : diffusion::Config::cifar10();
    if (idx) {
        config.channels = 1;
        config.image_size = static_cast<std::int32_t>(std::min(idx->rows, idx->columns));
    }
    config.ema_decay = 0.999;
    config.gradient_clip = 1;
    return config;
}

void apply_options(const Options &o, diffusion::Config &config) {
    config.seed = o.seed;
    examples::set_device(config, o.device);
    for (const auto &apply : o.network) {
        apply(config);
    }
}

bool missing_or_empty(const fs::path &folder) {
    std::error_code error;
    return !fs::exists(folder, error) || (fs::is_directory(folder, error) && fs::is_empty(folder, error));
}

// The checkpoint in --out, if there is one. Loading is tried even where the folder is missing, since the
// library finds a checkpoint whose replacement was interrupted.
std::optional<diffusion::Process> resume(const Options &o) {
    if (o.fresh) {
        if (!missing_or_empty(o.out)) {
            throw std::runtime_error("--fresh: " + o.out +
                                     " is not empty: remove it, or resume it without --fresh");
        }
        return std::nullopt;
    }
    diffusion::Config overrides;
    apply_options(o, overrides);
    try {
        return diffusion::Process::load(o.out, overrides);
    } catch (const diffusion::Error &error) {
        const bool nothing_there =
            error.status() == diffusion::Status::io || error.status() == diffusion::Status::format;
        if (!nothing_there || !missing_or_empty(o.out)) {
            throw;
        }
    }
    if (o.resume) {
        throw std::runtime_error("--resume: " + o.out + " holds no checkpoint");
    }
    return std::nullopt;
}

examples::Augment augment_of(const Options &o) {
    std::vector<std::string> what = o.augment;
    if (what.empty() && o.idx.empty()) {
        what =
            o.cifar10.empty() ? std::vector<std::string>{"wrap", "flip"} : std::vector<std::string>{"flip"};
    }
    const auto has = [&](const char *name) {
        return std::find(what.begin(), what.end(), name) != what.end();
    };
    if (has("none") && what.size() > 1) {
        throw std::runtime_error("--augment is none and something else: must be one or the other");
    }
    return {has("wrap"), has("flip"), has("flipud")};
}

examples::Dataset read_dataset(const Options &o, const diffusion::Config &config,
                               const std::optional<examples::IdxImages> &idx) {
    const auto size = static_cast<std::size_t>(config.image_size);
    examples::Dataset dataset = idx                  ? examples::idx_dataset(*idx, size)
                                : !o.cifar10.empty() ? examples::read_cifar10(o.cifar10, size)
                                                     : examples::read_png_folders(o.png, size, o.scale_down);
    if (dataset.count() == 0) {
        throw std::runtime_error("all " + std::to_string(dataset.too_small()) +
                                 " pictures are smaller than " + std::to_string(size) + "x" +
                                 std::to_string(size) + ": --size must be less");
    }
    if (dataset.channels() != static_cast<std::size_t>(config.channels)) {
        throw std::runtime_error("the checkpoint in " + o.out + " has " + std::to_string(config.channels) +
                                 " channels: the pictures have " + std::to_string(dataset.channels()));
    }
    return dataset;
}

double learning_rate_at(const Options &o, double base, std::uint64_t step) {
    double rate = base;
    if (step < o.warmup) {
        rate *= static_cast<double>(step + 1) / static_cast<double>(o.warmup);
    }
    if (o.cosine_decay) {
        const double along = static_cast<double>(step) / static_cast<double>(o.steps);
        rate *= 0.5 * (1 + std::cos(std::numbers::pi * along));
    }
    return rate;
}

// loss.csv and the curve drawn from it. The file is opened for each write, since saving a checkpoint replaces
// the folder that it lies in.
class LossLog {
  public:
    explicit LossLog(const fs::path &folder) : folder_(folder) {}

    // Reads what an earlier run wrote, up to the step that is resumed from: later rows were never saved.
    void resume_at(std::uint64_t step) {
        std::ifstream file(folder_ / "loss.csv");
        std::string line;
        std::getline(file, line);
        unsigned long long at = 0;
        float loss = 0;
        while (std::getline(file, line) && std::sscanf(line.c_str(), "%llu,%f", &at, &loss) == 2 &&
               at <= step) {
            points_.push_back({at, loss});
        }
        rewrite_ = true;
    }

    void add(std::uint64_t step, float loss) {
        points_.push_back({step, loss});
        const double weight = 1.0 / std::min(++seen_, 100.0);
        recent_ += weight * (static_cast<double>(loss) - recent_);
    }

    // The mean of the last hundred or so, which says more than the last.
    double recent() const { return recent_; }

    void write() {
        std::ofstream file(folder_ / "loss.csv", rewrite_ ? std::ios::trunc : std::ios::app);
        if (rewrite_) {
            file << "step,loss\n";
            written_ = 0;
        }
        char line[64];
        for (; written_ < points_.size(); ++written_) {
            std::snprintf(line, sizeof line, "%llu,%.6g\n",
                          static_cast<unsigned long long>(points_[written_].step),
                          static_cast<double>(points_[written_].loss));
            file << line;
        }
        if (!file.flush()) {
            throw std::runtime_error("cannot write " + (folder_ / "loss.csv").string());
        }
        rewrite_ = false;
        examples::write_png(folder_ / "loss_curve.png", examples::plot_loss(points_));
    }

  private:
    fs::path folder_;
    std::vector<examples::LossPoint> points_;
    std::size_t written_ = 0;
    bool rewrite_ = true;
    double recent_ = 0;
    double seen_ = 0;
};

// Sixteen samples from the same noise each time, so that the pictures show how the model changes. Returns
// false if Ctrl-C came in between.
bool write_samples(const diffusion::Process &process, const Options &o, const fs::path &path) {
    diffusion::SampleParams params;
    params.num_samples = 16;
    params.seed = o.seed;
    params.format = DIFFUSION_FORMAT_RGB8;
    params.progress = [](diffusion::Progress) { return !examples::interrupted(); };
    try {
        const auto size = static_cast<std::size_t>(process.config().image_size);
        const auto images = examples::split_rgb8(process.sample_bytes(params), size);
        const std::size_t factor = std::max<std::size_t>(1, 128 / size);
        examples::write_png(path, examples::enlarge(examples::grid(images, 4, 1), factor));
        return true;
    } catch (const diffusion::Cancelled &) {
        return false;
    }
}

fs::path samples_path(const Options &o, std::uint64_t step) {
    char name[48];
    std::snprintf(name, sizeof name, "samples_%06llu.png", static_cast<unsigned long long>(step));
    return fs::path(o.out) / name;
}

void export_model(const diffusion::Process &process, const Options &o) {
    if (!o.export_to.empty()) {
        process.export_model(o.export_to, DIFFUSION_PRECISION_F16);
        std::printf("exported %s\n", o.export_to.c_str());
    }
}

std::string shell_command(int argc, char **argv) {
    std::string command;
    for (int i = 0; i < argc; ++i) {
        const std::string word = argv[i];
        const bool plain =
            !word.empty() && word.find_first_of(" \t\n'\"\\$&|;<>()*?[]`!#~") == std::string::npos;
        std::string quoted = "'";
        for (const char c : word) {
            quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
        }
        if (word != "--fresh") {
            command += (command.empty() ? "" : " ") + (plain ? word : quoted + "'");
        }
    }
    return command;
}

void describe(const diffusion::Process &process, const examples::Dataset &dataset, const Options &o,
              std::uint64_t step) {
    const diffusion::Config config = process.config();
    std::size_t weights = 0;
    for (const diffusion::Parameter &parameter : process.parameters()) {
        weights += parameter.len;
    }
    std::printf("%s, on %s\n", diffusion::version().c_str(), examples::device_name(config).c_str());
    std::printf("%zu pictures, cut to %dx%d", dataset.count(), config.image_size, config.image_size);
    if (dataset.too_small() > 0) {
        std::printf("; skipped %zu that are smaller", dataset.too_small());
    }
    std::printf("\n%.2f million weights; ", static_cast<double>(weights) / 1e6);
    if (step > 0) {
        std::printf("resuming %s at step %llu of %llu\n", o.out.c_str(),
                    static_cast<unsigned long long>(step), static_cast<unsigned long long>(o.steps));
    } else {
        std::printf("%llu steps of %zu images into %s\n", static_cast<unsigned long long>(o.steps), o.batch,
                    o.out.c_str());
    }
    std::fflush(stdout);
}

int train(const Options &o, const std::string &command) {
    examples::catch_interrupts();
    const examples::Augment augment = augment_of(o);
    std::optional<examples::IdxImages> idx;
    if (!o.idx.empty()) {
        idx = examples::read_idx(o.idx);
    }

    std::optional<diffusion::Process> process = resume(o);
    diffusion::Config config = fresh_config(o, idx);
    // Not the checkpoint's, which is where warm-up and decay had brought it.
    const double base_rate = o.learning_rate > 0 ? o.learning_rate : config.learning_rate;
    if (process) {
        config = process->config();
    } else {
        apply_options(o, config);
    }
    const examples::Dataset dataset = read_dataset(o, config, idx);

    LossLog losses(o.out);
    if (!process) {
        process.emplace(config);
        process->save(o.out);  // a folder that cannot be written shows now, not after an hour
    }
    std::uint64_t step = process->step_count();
    losses.resume_at(step);
    process->set_log_callback([](std::int32_t level, std::string_view message) {
        std::fprintf(stderr, "%s: %.*s\n", level == DIFFUSION_LOG_WARNING ? "warning" : "note",
                     static_cast<int>(message.size()), message.data());
    });
    describe(*process, dataset, o, step);
    if (step >= o.steps) {
        std::printf("nothing to do: --steps is %llu, and the checkpoint has %llu\n",
                    static_cast<unsigned long long>(o.steps), static_cast<unsigned long long>(step));
        export_model(*process, o);
        return 0;
    }

    examples::BatchLoader loader(dataset, o.seed, step, o.batch, augment);
    examples::ProgressDisplay display("step", step, o.steps);
    double rate = 0;
    char figures[64] = "";
    const auto due = [&](std::uint64_t every) { return every != 0 && step % every == 0 && step < o.steps; };
    while (step < o.steps && !examples::interrupted()) {
        const std::vector<float> images = loader.next();
        const double next_rate = learning_rate_at(o, base_rate, step);
        if (next_rate != rate) {
            process->set_learning_rate(rate = next_rate);
        }
        if ((step + 1) % o.loss_every == 0) {
            losses.add(step + 1, process->train_step(images));
            std::snprintf(figures, sizeof figures, "loss %.4f", losses.recent());
        } else {
            process->train_step_without_loss(images);
        }
        display.update(++step, figures);

        if (due(o.save_every)) {
            display.busy_with("saving");
            process->save(o.out);
            losses.write();
        }
        if (due(o.sample_every)) {
            display.busy_with("drawing samples");
            write_samples(*process, o, samples_path(o, step));
            losses.write();
        }
    }

    display.busy_with("saving");
    process->save(o.out);
    losses.write();
    if (examples::interrupted()) {
        display.finish();
        std::printf("stopped at step %llu of %llu and saved %s; go on with:\n  %s\n",
                    static_cast<unsigned long long>(step), static_cast<unsigned long long>(o.steps),
                    o.out.c_str(), command.c_str());
        return examples::interrupt_exit_code();
    }
    display.busy_with("drawing samples");
    const fs::path samples = samples_path(o, step);
    const bool drawn = write_samples(*process, o, samples);
    display.finish();
    std::printf("trained %llu steps into %s; loss curve: %s\n", static_cast<unsigned long long>(step),
                o.out.c_str(), (fs::path(o.out) / "loss_curve.png").c_str());
    export_model(*process, o);
    if (drawn) {
        std::printf("open %s to see sixteen samples\n", samples.c_str());
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    CLI::App app("Trains a diffusion model on pictures and saves it as a checkpoint folder.",
                 "train_textures");
    Options options;
    add_options(app, options);
    return examples::run(app, argc, argv, [&] { return train(options, shell_command(argc, argv)); });
}
