// A 60 Hz loop that stays responsive while textures are made: it submits jobs, polls them, shows previews and
// fetches the images straight into a mapped buffer, as a renderer would into a mapped upload buffer. Nothing
// in the loop waits for the model; loading it, which takes long, is done on another thread. Ends with a
// histogram of what the frames took and, if asked, a picture of what was shown.
//
//     realtime --model models/textures --count 12 --out shown.png

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cli.hpp"
#include "diffusion.hpp"
#include "image_io.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = diffusion::span<std::uint8_t>;
constexpr auto frame_time = std::chrono::nanoseconds(std::chrono::seconds(1)) / 60;

struct Options {
    std::string model = "models/textures", out;
    std::size_t count = 12;
    std::int32_t steps = 30;
    std::size_t at_a_time = 2;
    std::int32_t threads = 1;
};

// Memory that is not this program's own alone, as a graphics driver's upload buffer is not: a file in memory,
// mapped.
class MappedBuffer {
  public:
    explicit MappedBuffer(std::size_t bytes) : bytes_(bytes) {
        const int file = memfd_create("upload", MFD_CLOEXEC);
        if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
            throw std::runtime_error("no memory file of " + std::to_string(bytes) + " bytes can be made");
        }
        data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (data_ == MAP_FAILED) {
            throw std::runtime_error(std::to_string(bytes) + " bytes cannot be mapped");
        }
    }
    MappedBuffer(const MappedBuffer &) = delete;
    MappedBuffer &operator=(const MappedBuffer &) = delete;
    ~MappedBuffer() { munmap(data_, bytes_); }

    Bytes slot(std::size_t index, std::size_t bytes) const {
        return {static_cast<std::uint8_t *>(data_) + index * bytes, bytes};
    }

  private:
    std::size_t bytes_;
    void *data_;
};

// What the frames' own work took, in classes that double from 62.5 microseconds.
class Histogram {
  public:
    void add(Clock::duration duration) {
        const double ms = std::chrono::duration<double, std::milli>(duration).count();
        worst_ = std::max(worst_, ms);
        frames_++;
        std::size_t index = 0;
        for (double limit = first; index + 1 < counts_.size() && ms > limit; limit *= 2) {
            index++;
        }
        counts_[index]++;
    }
    std::size_t frames() const { return frames_; }
    void print() const {
        const std::size_t most = *std::max_element(counts_.begin(), counts_.end());
        std::printf("%zu frames; their work, in ms:\n", frames_);
        double limit = first;
        for (std::size_t i = 0; i < counts_.size(); i++, limit *= 2) {
            const bool last = i + 1 == counts_.size();
            std::printf(
                "%s %8.4f  %6zu  %s\n", last ? " >" : "<=", last ? limit / 2 : limit, counts_[i],
                std::string(counts_[i] == 0 ? 0 : 1 + counts_[i] * 40 / std::max<std::size_t>(most, 1), '#')
                    .c_str());
        }
        std::printf("worst frame %.3f ms of the %.3f that 60 Hz leaves\n", worst_,
                    std::chrono::duration<double, std::milli>(frame_time).count());
    }

  private:
    static constexpr double first = 0.0625;
    std::array<std::size_t, 11> counts_{};  // the last: above 32 ms
    std::size_t frames_ = 0;
    double worst_ = 0;
};

struct Texture {
    std::size_t slot;
    diffusion::Job job;
    std::uint64_t preview_done;           // denoising steps that the preview stems from
    std::vector<examples::Image> *shown;  // previews, then the texture; NULL: not kept
};

examples::Image picture(Bytes rgba, std::size_t size) {
    examples::Image image(size, size);
    for (std::size_t i = 0; i < size * size; i++) {
        std::copy_n(rgba.data() + 4 * i, 3, image.rgb.data() + 3 * i);
    }
    return image;
}

// A row for each texture: how it came to be, from its first preview to itself.
examples::Image film(const std::vector<std::vector<examples::Image>> &textures) {
    constexpr std::size_t columns = 8;
    std::vector<examples::Image> cells;
    for (const auto &shown : textures) {
        for (std::size_t column = 0; column < columns; column++) {
            cells.push_back(examples::enlarge(shown[(shown.size() - 1) * column / (columns - 1)], 4));
        }
    }
    return examples::grid(cells, columns, 4);
}

int run(const Options &o) {
    auto loading = std::async(std::launch::async, [&o] {
        diffusion::Config config;
        config.num_threads = o.threads;  // the other cores are the loop's
        return diffusion::Process::load(o.model, config);
    });
    std::optional<diffusion::Process> process;
    std::optional<MappedBuffer> upload;
    diffusion::SampleParams params;
    params.steps = o.steps;
    params.format = DIFFUSION_FORMAT_RGBA8;
    std::size_t bytes = 0, next = 0, done = 0, previews = 0;
    std::vector<Texture> making;
    std::vector<std::vector<examples::Image>> shown(o.out.empty() ? 0 : o.count);
    std::size_t size = 0;
    Histogram histogram;

    for (auto frame = Clock::now(); done < o.count;
         frame = std::max(frame + frame_time, Clock::now() - frame_time)) {
        std::this_thread::sleep_until(frame);
        const auto start = Clock::now();
        if (!process && loading.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
            process.emplace(loading.get());
            bytes = process->sample_size(params);
            size = static_cast<std::size_t>(process->config().image_size);
            upload.emplace(bytes * o.count);
        }
        while (process && next < o.count && making.size() < o.at_a_time) {
            params.seed = next;
            making.push_back({next, process->submit(params), 0, shown.empty() ? nullptr : &shown[next]});
            next++;
        }
        for (auto texture = making.begin(); texture != making.end();) {
            const Bytes slot = upload->slot(texture->slot, bytes);
            if (texture->job.ended()) {
                texture->job.fetch(slot);  // throws what the job failed with
                if (texture->shown != nullptr) {
                    texture->shown->push_back(picture(slot, size));
                }
                std::printf("frame %zu: texture %zu is in the buffer\n", histogram.frames(), texture->slot);
                texture = making.erase(texture);
                done++;
            } else {
                const std::uint64_t stems = texture->job.preview(slot);
                if (stems > texture->preview_done) {
                    previews++;
                    texture->preview_done = stems;
                    if (texture->shown != nullptr) {
                        texture->shown->push_back(picture(slot, size));
                    }
                }
                ++texture;
            }
        }
        // ... a game would draw here, from the buffer as it is ...
        histogram.add(Clock::now() - start);
    }
    histogram.print();
    std::printf("%zu previews were shown\n", previews);
    if (!o.out.empty()) {
        examples::write_png(o.out, film(shown));
        std::printf("open %s: each row is a texture as it came to be\n", o.out.c_str());
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    Options o;
    CLI::App app{"Keeps a 60 Hz loop responsive while textures are made"};
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("--model", o.model, "Checkpoint folder")->type_name("FOLDER")->capture_default_str();
    app.add_option("--count", o.count, "Textures to make")->check(CLI::Range(1, 4096))->capture_default_str();
    app.add_option("--steps", o.steps, "Denoising steps")
        ->check(examples::whole_number(1))
        ->capture_default_str();
    app.add_option("--at-a-time", o.at_a_time, "Jobs under way at any time")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--threads", o.threads, "Threads of the model; 0: one a core")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_option("--out", o.out, "PNG of what was shown, a row for each texture")->type_name("PNG");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(o);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "realtime: %s\n", e.what());
        return 1;
    }
}
