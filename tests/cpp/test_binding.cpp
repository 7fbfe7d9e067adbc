// Holds bindings/cpp/diffusion.hpp to what it promises, function by function, against the real library.
// Compiles as C++17 and as C++20, where span is std::span. Ends with "N passed, M failed"; the exit code is 0
// if none failed.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "diffusion.hpp"

namespace fs = std::filesystem;
using diffusion::Config;
using diffusion::Job;
using diffusion::JobState;
using diffusion::Process;
using diffusion::SampleParams;
using diffusion::span;
using diffusion::Status;

namespace {

// What a failed check throws: not a std::exception, so that no expectation about exceptions swallows it.
struct Failed {
    std::string message;
};

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            throw Failed{std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition}; \
        }                                                                                           \
    } while (false)

#define CHECK_EQUAL(a, b)                                                                             \
    do {                                                                                              \
        const auto left = (a);                                                                        \
        const auto right = (b);                                                                       \
        if (!(left == right)) {                                                                       \
            std::ostringstream text;                                                                  \
            text << __FILE__ << ":" << __LINE__ << ": " #a " is " << left << ", " #b " is " << right; \
            throw Failed{text.str()};                                                                 \
        }                                                                                             \
    } while (false)

// The body must throw exactly E, with this in its message.
template <typename E, typename Body>
void check_throws(int line, const std::string &part, Body body) {
    const std::string place = std::string(__FILE__) + ":" + std::to_string(line) + ": ";
    try {
        body();
    } catch (const E &error) {
        if (std::string(error.what()).find(part) == std::string::npos) {
            throw Failed{place + "\"" + error.what() + "\" lacks \"" + part + "\""};
        }
        return;
    } catch (const std::exception &error) {
        throw Failed{place + "another exception: " + error.what()};
    }
    throw Failed{place + "no exception"};
}
#define CHECK_THROWS(type, part, ...) check_throws<type>(__LINE__, part, [&] { __VA_ARGS__; })

// Ends the program if the library hangs; far longer than all tests take, so that timing decides nothing.
class Watchdog {
  public:
    Watchdog() { alarm(15 * 60); }
};

Config tiny_config() {
    Config config;
    config.image_size = 8;
    config.channels = 3;
    config.set_hidden_dims({8, 16});
    config.noise_steps = 20;
    config.device = DIFFUSION_DEVICE_CPU;
    config.num_threads = 1;  // small tensors: a second thread costs more than it gives
    config.seed = 7;
    return config;
}

Process tiny() {
    return Process(tiny_config());
}

// A process whose sampling takes so many steps that it cannot end by itself while a test looks away.
Process slow() {
    Config config = tiny_config();
    config.noise_steps = 100000;
    return Process(config);
}

SampleParams endless_params() {
    SampleParams params;
    params.method = DIFFUSION_METHOD_DDPM;
    params.num_samples = 4;
    return params;
}

std::vector<float> ramp(std::size_t len) {
    std::vector<float> values(len);
    for (std::size_t i = 0; i < len; ++i) {
        values[i] = 2.0F * static_cast<float>(i % 97) / 96.0F - 1.0F;
    }
    return values;
}

float largest_difference(span<const float> a, span<const float> b) {
    CHECK_EQUAL(a.size(), b.size());
    float largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const float difference = std::abs(a[i] - b[i]);
        largest = difference > largest || std::isnan(difference) ? difference : largest;
    }
    return largest;
}

float from_half(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const auto fraction = static_cast<float>(bits & 1023);
    const float size =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024.0F, exponent - 25);
    return (bits & 0x8000) != 0 ? -size : size;
}

class TempFolder {
  public:
    TempFolder() {
        std::string name = (fs::temp_directory_path() / "diffusion_hpp_XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) {
            throw std::runtime_error("mkdtemp failed");
        }
        path_ = name;
    }
    ~TempFolder() {
        std::error_code error;
        fs::remove_all(path_, error);
    }
    TempFolder(const TempFolder &) = delete;
    TempFolder &operator=(const TempFolder &) = delete;
    fs::path operator/(const char *name) const { return path_ / name; }

  private:
    fs::path path_;
};

// ---- types

static_assert(!std::is_copy_constructible_v<Process> && !std::is_copy_assignable_v<Process>);
static_assert(!std::is_copy_constructible_v<Job> && !std::is_copy_assignable_v<Job>);
static_assert(std::is_nothrow_move_constructible_v<Process> && std::is_nothrow_move_assignable_v<Process>);
static_assert(std::is_nothrow_move_constructible_v<Job> && std::is_nothrow_move_assignable_v<Job>);
static_assert(!std::is_default_constructible_v<Process> && !std::is_default_constructible_v<Job>);
static_assert(std::is_base_of_v<std::runtime_error, diffusion::Error>);
static_assert(std::is_base_of_v<diffusion::Error, diffusion::Cancelled>);
static_assert(std::is_convertible_v<std::vector<float> &, span<const float>>);
static_assert(std::is_convertible_v<const std::vector<float> &, span<const float>>);
static_assert(std::is_convertible_v<std::vector<float> &, span<float>>);
static_assert(std::is_convertible_v<std::array<float, 3> &, span<float>>);
static_assert(std::is_convertible_v<float (&)[3], span<const float>>);
static_assert(!std::is_convertible_v<const std::vector<float> &, span<float>>);
static_assert(!std::is_convertible_v<std::vector<double> &, span<const float>>);
static_assert(!std::is_convertible_v<std::vector<float>, span<float>>);

void test_versions() {
    CHECK_EQUAL(diffusion::abi_version(), static_cast<std::uint32_t>(DIFFUSION_ABI_VERSION));
    CHECK(diffusion::version().find("libdiffusion") == 0);
    CHECK(diffusion::version().find("libtorch") != std::string::npos);
    CHECK(std::string(diffusion::status_string(Status::buffer_size)).find("buffer") != std::string::npos);
    CHECK_EQUAL(std::string(diffusion::status_string(static_cast<Status>(999))),
                std::string("unknown status"));
    CHECK_EQUAL(diffusion::device_count(DIFFUSION_DEVICE_CPU), 1);
    CHECK(diffusion::device_count(DIFFUSION_DEVICE_CUDA) >= 0);
    CHECK_THROWS(diffusion::InvalidArgument, "device", diffusion::device_count(99));
}

void test_config() {
    const Config config;
    CHECK_EQUAL(config.struct_size, sizeof(diffusion_config));
    CHECK_EQUAL(config.image_size, 32);
    CHECK(config.get_hidden_dims() == (std::vector<std::int32_t>{64, 128, 256}));
    CHECK_EQUAL(config.image_len(), std::size_t{3 * 32 * 32});
    const Config cifar = Config::cifar10();
    CHECK(cifar.get_hidden_dims() == (std::vector<std::int32_t>{128, 256, 256, 256}));
    CHECK_EQUAL(cifar.optimizer, DIFFUSION_OPTIMIZER_ADAMW);
    Config other;
    other.set_hidden_dims({8, 16, 24, 32});
    other.set_hidden_dims(std::vector<std::int32_t>{8, 16});
    CHECK(other.get_hidden_dims() == (std::vector<std::int32_t>{8, 16}));
    CHECK_EQUAL(other.hidden_dims[2], 0);
    CHECK_THROWS(diffusion::InvalidArgument, "hidden_dims has 9",
                 other.set_hidden_dims({1, 2, 3, 4, 5, 6, 7, 8, 9}));
    const SampleParams params;
    CHECK_EQUAL(params.method, DIFFUSION_METHOD_DDIM);
    CHECK_EQUAL(params.num_samples, std::size_t{1});
    CHECK_EQUAL(params.spacing, DIFFUSION_DEFAULT);
}

void test_create_errors() {
    Config config = tiny_config();
    config.image_size = 9;
    CHECK_THROWS(diffusion::InvalidArgument, "image_size is 9", Process{config});
    try {
        Process process(config);
        CHECK(false);
    } catch (const diffusion::Error &error) {
        CHECK(error.status() == Status::invalid_argument);
    }
    config = tiny_config();
    config.device = DIFFUSION_DEVICE_CUDA;
    config.device_index = 1000;
    CHECK_THROWS(diffusion::DeviceUnavailable, "", Process{config});
    config = tiny_config();
    config.prediction_type = 77;
    CHECK_THROWS(diffusion::InvalidArgument, "prediction_type", Process{config});
}

void test_every_status_has_its_class() {
    const auto thrown = [](Status status) {
        try {
            diffusion::throw_error(status, "m");
        } catch (const diffusion::InvalidArgument &error) {
            return std::pair(1, error.status());
        } catch (const diffusion::NullPointer &error) {
            return std::pair(2, error.status());
        } catch (const diffusion::InvalidHandle &error) {
            return std::pair(3, error.status());
        } catch (const diffusion::BufferSize &error) {
            return std::pair(4, error.status());
        } catch (const diffusion::OutOfMemory &error) {
            return std::pair(5, error.status());
        } catch (const diffusion::DeviceUnavailable &error) {
            return std::pair(6, error.status());
        } catch (const diffusion::IoError &error) {
            return std::pair(7, error.status());
        } catch (const diffusion::FormatError &error) {
            return std::pair(8, error.status());
        } catch (const diffusion::Cancelled &error) {
            return std::pair(9, error.status());
        } catch (const diffusion::Timeout &error) {
            return std::pair(10, error.status());
        } catch (const diffusion::NonFinite &error) {
            return std::pair(11, error.status());
        } catch (const diffusion::TorchError &error) {
            return std::pair(12, error.status());
        } catch (const diffusion::InternalError &error) {
            return std::pair(13, error.status());
        } catch (const diffusion::Error &error) {
            return std::pair(static_cast<int>(error.status()), error.status());
        }
    };
    for (int i = 1; i <= 14; ++i) {
        CHECK(thrown(static_cast<Status>(i)) == std::pair(i, static_cast<Status>(i)));
    }
}

void test_process_config() {
    const Process process = tiny();
    const Config config = process.config();
    CHECK_EQUAL(config.image_size, 8);
    CHECK_EQUAL(config.device, DIFFUSION_DEVICE_CPU);
    CHECK_EQUAL(config.num_threads, 1);
    CHECK(config.norm_num_groups > 0);
    CHECK(config.max_batch > 0);
    CHECK_EQUAL(process.image_len(), std::size_t{3 * 8 * 8});
    CHECK(process.valid());
    std::int32_t status = diffusion_cancel(process.handle());  // the handle works with the C functions
    CHECK_EQUAL(status, DIFFUSION_OK);
}

void test_schedule() {
    const Process process = tiny();
    const auto betas = process.betas(), alphas = process.alphas(), abar = process.alphas_cumprod();
    const auto root = process.sqrt_alphas_cumprod(), rest = process.sqrt_one_minus_alphas_cumprod();
    CHECK_EQUAL(betas.size(), std::size_t{20});
    double product = 1;
    for (std::size_t t = 0; t < betas.size(); ++t) {
        product *= 1.0 - static_cast<double>(betas[t]);
        CHECK(std::abs(alphas[t] - (1 - betas[t])) < 1e-6F);
        CHECK(std::abs(static_cast<double>(abar[t]) - product) < 1e-5);
        CHECK(std::abs(root[t] * root[t] - abar[t]) < 1e-5F);
        CHECK(std::abs(rest[t] * rest[t] + abar[t] - 1) < 1e-5F);
    }
    CHECK_THROWS(diffusion::InvalidArgument, "which_table", process.schedule(50));
}

void test_given_betas() {
    Config config = tiny_config();
    std::vector<double> betas(20);
    for (std::size_t t = 0; t < betas.size(); ++t) {
        betas[t] = 0.05 + 0.04 * static_cast<double>(t);
    }
    const Process process(config, betas);
    const auto read = process.betas();
    for (std::size_t t = 0; t < betas.size(); ++t) {
        CHECK(std::abs(static_cast<double>(read[t]) - betas[t]) < 1e-7);
    }
    CHECK_EQUAL(process.config().beta_schedule, DIFFUSION_SCHEDULE_GIVEN);
    CHECK_THROWS(diffusion::BufferSize, "betas", Process(config, span<const double>(betas.data(), 19)));
    betas[3] = 2;
    CHECK_THROWS(diffusion::InvalidArgument, "betas", Process(config, betas));
}

void test_add_noise() {
    const Process process = tiny();
    const std::size_t len = process.image_len();
    const std::vector<float> images = ramp(3 * len);
    const std::vector<std::int64_t> timesteps{0, 7, 19};
    const auto made = process.add_noise(images, timesteps, 5);
    const auto root = process.sqrt_alphas_cumprod(), rest = process.sqrt_one_minus_alphas_cumprod();
    for (std::size_t i = 0; i < images.size(); ++i) {
        const auto t = static_cast<std::size_t>(timesteps[i / len]);
        CHECK(std::abs(made.noisy[i] - (root[t] * images[i] + rest[t] * made.noise[i])) < 1e-5F);
    }
    const auto again = process.add_noise(images, timesteps, 5);
    CHECK(again.noise == made.noise);
    CHECK(process.add_noise(images, timesteps, 6).noise != made.noise);

    std::vector<float> in_place = images, noise(images.size());
    process.add_noise(in_place, timesteps, 5, in_place, noise);
    CHECK(in_place == made.noisy);
}

void test_add_noise_errors() {
    const Process process = tiny();
    std::vector<float> images = ramp(2 * process.image_len());
    const std::vector<std::int64_t> two{1, 2}, three{1, 2, 3}, late{1, 20}, early{-1, 2};
    CHECK_THROWS(diffusion::BufferSize, "images", process.add_noise(images, three, 0));
    CHECK_THROWS(diffusion::InvalidArgument, "timesteps", process.add_noise(images, late, 0));
    CHECK_THROWS(diffusion::InvalidArgument, "timesteps", process.add_noise(images, early, 0));
    CHECK_THROWS(diffusion::Error, "", process.add_noise({}, {}, 0));
    std::vector<float> noisy(images.size(), 9), noise(images.size() - 1, 9);
    CHECK_THROWS(diffusion::BufferSize, "noise", process.add_noise(images, two, 0, noisy, noise));
    CHECK(std::all_of(noisy.begin(), noisy.end(), [](float v) { return v == 9; }));
    images[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS(diffusion::NonFinite, "images", process.add_noise(images, two, 0));
    images[5] = 0;
    CHECK_EQUAL(process.add_noise(images, two, 0).noisy.size(), images.size());  // it works on
}

void test_predict_noise() {
    const Process process = tiny();
    const std::vector<float> images = ramp(2 * process.image_len());
    const std::vector<std::int64_t> timesteps{3, 11};
    const auto out = process.predict_noise(images, timesteps);
    CHECK_EQUAL(out.size(), images.size());
    std::vector<float> second(images.size());
    process.predict_noise(images, timesteps, second);
    CHECK(out == second);
    CHECK_THROWS(diffusion::BufferSize, "out",
                 process.predict_noise(images, timesteps, span<float>(second.data(), 3)));
}

void test_sample() {
    const Process process = tiny();
    const auto images = process.sample(2, 3);
    CHECK_EQUAL(images.size(), 2 * process.image_len());
    for (const float value : images) {
        CHECK(value >= -1 && value <= 1);
    }
    CHECK(process.sample(2, 3) == images);
    CHECK(process.sample(2, 4) != images);
    std::vector<float> out(images.size());
    process.sample(2, 3, out);
    CHECK(out == images);

    SampleParams params;
    params.method = DIFFUSION_METHOD_DDPM;
    params.num_samples = 2;
    params.seed = 3;
    CHECK(largest_difference(process.sample_with(params), images) < 1e-4F);
}

void test_sample_ddim() {
    const Process process = tiny();
    const auto images = process.sample_ddim(3, 7, 0, 1);
    CHECK_EQUAL(images.size(), 3 * process.image_len());
    CHECK(process.sample_ddim(3, 7, 0, 1) == images);
    const auto two = process.sample_ddim(2, 7, 0, 1);
    CHECK(largest_difference(two, span<const float>(images.data(), two.size())) < 1e-4F);
    CHECK(process.sample_ddim(3, 7, 1, 1) != images);
    CHECK_THROWS(diffusion::InvalidArgument, "ddim_steps is 0", process.sample_ddim(1, 0));
    CHECK_THROWS(diffusion::InvalidArgument, "ddim_steps is 21", process.sample_ddim(1, 21));
    CHECK_THROWS(diffusion::InvalidArgument, "eta", process.sample_ddim(1, 5, 1.5F));
    CHECK_THROWS(diffusion::InvalidArgument, "num_samples", process.sample_ddim(0, 5));
    // refused by name before anybody allocates it
    CHECK_THROWS(diffusion::InvalidArgument, "num_samples", process.sample(std::size_t{1} << 50));
    CHECK_THROWS(diffusion::InvalidArgument, "num_samples", process.sample(~std::size_t{0}));
    std::vector<float> shorter(process.image_len() - 1, 9);
    CHECK_THROWS(diffusion::BufferSize, "out", process.sample_ddim(1, 5, 0, 0, shorter));
    CHECK(std::all_of(shorter.begin(), shorter.end(), [](float v) { return v == 9; }));
}

void test_formats() {
    const Process process = tiny();
    SampleParams params;
    params.num_samples = 2;
    params.steps = 5;
    params.seed = 11;
    const auto f32 = process.sample_with(params);
    const std::size_t values = f32.size();

    params.format = DIFFUSION_FORMAT_F16;
    CHECK_EQUAL(process.sample_size(params), values * 2);
    std::vector<std::uint16_t> f16(values);
    process.sample_into(params, span<std::uint16_t>(f16));
    for (std::size_t i = 0; i < values; ++i) {
        CHECK(std::abs(from_half(f16[i]) - f32[i]) < 2e-3F);
    }

    params.format = DIFFUSION_FORMAT_RGB8;
    const auto rgb = process.sample_bytes(params);
    CHECK_EQUAL(rgb.size(), values);
    params.format = DIFFUSION_FORMAT_RGBA8;
    const auto rgba = process.sample_bytes(params);
    CHECK_EQUAL(rgba.size(), values / 3 * 4);
    const std::size_t plane = 64;
    for (std::size_t i = 0; i < 2 * plane; ++i) {
        for (std::size_t c = 0; c < 3; ++c) {
            const float expected = (f32[i / plane * 3 * plane + c * plane + i % plane] + 1) * 127.5F;
            CHECK(std::abs(static_cast<float>(rgb[i * 3 + c]) - expected) <= 1.01F);
            CHECK_EQUAL(int{rgb[i * 3 + c]}, int{rgba[i * 4 + c]});
        }
        CHECK_EQUAL(int{rgba[i * 4 + 3]}, 255);
    }

    CHECK_THROWS(diffusion::InvalidArgument, "format", process.sample_with(params));
    std::vector<std::uint8_t> shorter(rgba.size() - 1);
    CHECK_THROWS(diffusion::BufferSize, "out", process.sample_into(params, span<std::uint8_t>(shorter)));
    params.format = 9;
    CHECK_THROWS(diffusion::InvalidArgument, "format", process.sample_bytes(params));
    params.format = DIFFUSION_FORMAT_RGB8;
    Config two_channels = tiny_config();
    two_channels.channels = 2;
    CHECK_THROWS(diffusion::InvalidArgument, "format", Process(two_channels).sample_bytes(params));
}

void test_seeds_and_initial_noise() {
    const Process process = tiny();
    SampleParams params;
    params.num_samples = 2;
    params.steps = 5;
    params.seeds = {40, 41};
    const auto both = process.sample_with(params);
    const auto second = process.sample_ddim(1, 5, 0, 41);
    CHECK(largest_difference(span<const float>(both.data() + second.size(), second.size()), second) < 1e-4F);
    params.seeds = {40};
    CHECK_THROWS(diffusion::Error, "seeds", process.sample_with(params));

    params.seeds.clear();
    params.initial_noise = ramp(2 * process.image_len());
    const auto from_noise = process.sample_with(params);
    params.seed = 99;  // eta is 0: only the starting noise counts
    CHECK(largest_difference(process.sample_with(params), from_noise) < 1e-6F);
    params.initial_noise.pop_back();
    CHECK_THROWS(diffusion::BufferSize, "initial_noise", process.sample_with(params));
}

void test_methods() {
    const Process process = tiny();
    for (std::int32_t method = DIFFUSION_METHOD_DDPM; method <= DIFFUSION_METHOD_HEUN; ++method) {
        for (const std::int32_t spacing :
             {DIFFUSION_DEFAULT, DIFFUSION_SPACING_TRAILING, DIFFUSION_SPACING_LINSPACE}) {
            SampleParams params;
            params.method = method;
            params.steps = 6;
            params.spacing = spacing;
            for (const float value : process.sample_with(params)) {
                CHECK(value >= -1 && value <= 1);
            }
        }
    }
    SampleParams params;
    params.method = 70;
    CHECK_THROWS(diffusion::InvalidArgument, "method", process.sample_with(params));
}

void test_timeout() {
    const Process process = slow();
    SampleParams params = endless_params();
    params.timeout = std::chrono::milliseconds(1);
    CHECK_THROWS(diffusion::Timeout, "", process.sample_with(params));
    const Job job = process.submit(params);
    CHECK_THROWS(diffusion::Timeout, "", job.get());
    params.timeout = std::chrono::milliseconds(-5);
    CHECK_THROWS(diffusion::InvalidArgument, "timeout_ms", process.sample_with(params));
}

// ---- progress

void test_progress() {
    const Process process = tiny();
    SampleParams params;
    params.num_samples = 2;
    params.steps = 6;
    std::vector<diffusion::Progress> seen;
    const auto caller = std::this_thread::get_id();
    params.progress = [&](diffusion::Progress progress) {
        CHECK(std::this_thread::get_id() == caller);
        CHECK_EQUAL(process.config().image_size, 8);  // the library may be used from here
        seen.push_back(progress);
        return true;
    };
    const auto images = process.sample_with(params);
    CHECK(!seen.empty());
    for (std::size_t i = 0; i < seen.size(); ++i) {
        CHECK_EQUAL(seen[i].total, std::uint64_t{12});
        CHECK(seen[i].done <= seen[i].total && (i == 0 || seen[i].done >= seen[i - 1].done));
        CHECK(seen[i].fraction() >= 0 && seen[i].fraction() <= 1);
    }
    params.progress = nullptr;
    CHECK(process.sample_with(params) == images);
}

void test_cancel_from_progress() {
    const Process process = slow();
    SampleParams params = endless_params();
    int calls = 0;
    params.progress = [&](diffusion::Progress) { return ++calls < 3; };
    CHECK_THROWS(diffusion::Cancelled, "", process.sample_with(params));
    CHECK_EQUAL(calls, 3);
    CHECK_EQUAL(process.sample_ddim(1, 2).size(), process.image_len());  // it works on
}

struct OwnException : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void test_exception_from_progress() {
    const Process process = slow();
    SampleParams params = endless_params();
    params.progress = [](diffusion::Progress) -> bool { throw OwnException("from the callback"); };
    CHECK_THROWS(OwnException, "from the callback", process.sample_with(params));
    params.progress = [](diffusion::Progress) -> bool { throw 42; };  // NOLINT: not a std::exception either
    try {
        process.sample_with(params);
        CHECK(false);
    } catch (int thrown) {
        CHECK_EQUAL(thrown, 42);
    }
    CHECK_EQUAL(process.sample_ddim(1, 2).size(), process.image_len());
}

// ---- jobs

void test_job() {
    const Process process = tiny();
    SampleParams params;
    params.num_samples = 3;
    params.steps = 6;
    params.seed = 2;
    std::atomic<int> calls{0};
    params.progress = [&](diffusion::Progress) {
        ++calls;
        return true;
    };
    Job job = process.submit(params);
    CHECK(job.valid());
    CHECK(job.size_bytes() == 3 * process.image_len() * sizeof(float));
    job.wait();
    CHECK(job.ended() && job.state() == JobState::done);
    CHECK(job.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    CHECK(job.wait_until(std::chrono::steady_clock::now()) == std::future_status::ready);
    CHECK_EQUAL(job.progress().done, std::uint64_t{18});
    CHECK_EQUAL(job.progress().fraction(), 1.0);
    const auto images = job.get();
    CHECK(job.get() == images);  // may be read again
    std::vector<float> fetched(images.size());
    job.fetch(span<float>(fetched));
    CHECK(fetched == images);
    CHECK_EQUAL(job.get_bytes().size(), images.size() * sizeof(float));
    CHECK_THROWS(diffusion::BufferSize, "bytes", job.fetch(span<float>(fetched.data(), 5)));
    std::vector<float> previewed(images.size());
    CHECK_EQUAL(job.preview(span<float>(previewed)), std::uint64_t{18});
    CHECK(previewed == images);
    CHECK_THROWS(diffusion::BufferSize, "bytes", job.preview(span<float>(fetched.data(), 5)));
    params.progress = nullptr;
    CHECK(largest_difference(process.sample_with(params), images) < 1e-4F);
    job.cancel();  // after its end: no effect
    CHECK(job.state() == JobState::done);

    params.format = DIFFUSION_FORMAT_RGB8;
    const Job bytes = process.submit(params);
    CHECK_THROWS(diffusion::InvalidArgument, "format", bytes.get());
    CHECK_EQUAL(bytes.get_bytes().size(), 3 * process.image_len());
    params.steps = 21;
    CHECK_THROWS(diffusion::InvalidArgument, "steps is 21", process.submit(params));
}

void test_job_cancel() {
    const Process process = slow();
    Job job = process.submit(endless_params());
    CHECK(job.wait_for(std::chrono::milliseconds(1)) == std::future_status::timeout);
    CHECK(job.wait_for(std::chrono::nanoseconds(1)) == std::future_status::timeout);
    CHECK(job.wait_for(std::chrono::seconds(-1)) == std::future_status::timeout);
    CHECK(job.wait_until(std::chrono::system_clock::now()) == std::future_status::timeout);
    CHECK(!job.ended());
    std::vector<float> out(4 * process.image_len(), 9);
    CHECK_THROWS(diffusion::InvalidArgument, "", job.fetch(span<float>(out)));
    std::thread canceller([&] { job.cancel(); });
    job.wait();
    canceller.join();
    CHECK(job.state() == JobState::cancelled);
    CHECK_THROWS(diffusion::Cancelled, "", job.get());
    CHECK(job.wait_for(std::chrono::hours(1)) == std::future_status::ready);
    CHECK(std::all_of(out.begin(), out.end(), [](float v) { return v == 9; }));
}

void test_job_exception_from_progress() {
    const Process process = slow();
    SampleParams params = endless_params();
    params.progress = [](diffusion::Progress) -> bool { throw OwnException("in a job"); };
    const Job job = process.submit(params);
    CHECK_THROWS(OwnException, "in a job", job.get());
    CHECK(job.state() == JobState::cancelled);
    CHECK_THROWS(OwnException, "in a job", job.get());  // as a future's, it stays
}

void test_job_moves() {
    const Process process = slow();
    SampleParams params = endless_params();
    std::atomic<int> calls{0};
    params.progress = [&](diffusion::Progress) { return ++calls < 2; };
    Job first = process.submit(params);
    Job second = std::move(first);
    CHECK(!first.valid() && second.valid());  // NOLINT: the moved-from state is what is looked at
    CHECK_THROWS(diffusion::InvalidHandle, "", first.wait());
    CHECK_THROWS(diffusion::InvalidHandle, "", first.state());
    CHECK_THROWS(diffusion::InvalidHandle, "", first.cancel());
    CHECK_THROWS(diffusion::Cancelled, "", second.get());  // its callback moved along
    first = process.submit(params);
    diffusion_job *raw = first.handle();
    first = process.submit(params);  // ends the earlier one
    std::int32_t state = 0;
    CHECK_EQUAL(diffusion_job_poll(raw, &state), DIFFUSION_ERROR_INVALID_HANDLE);
    swap(first, second);
    CHECK(second.state() != JobState::cancelled && first.state() == JobState::cancelled);
    Job &same = second;
    second = std::move(same);
    CHECK(second.valid());
}

void test_job_outlives_process() {
    std::vector<Job> jobs;
    {
        const Process process = slow();
        jobs.push_back(process.submit(endless_params()));
    }
    jobs[0].wait();
    CHECK(jobs[0].state() == JobState::cancelled);
    CHECK_THROWS(diffusion::Cancelled, "", jobs[0].get());
}

void test_jobs_from_many_threads() {
    const Process process = tiny();
    constexpr std::size_t threads = 8;
    std::vector<std::vector<float>> made(threads);
    std::vector<std::string> errors(threads);
    std::vector<std::thread> running;
    for (std::size_t i = 0; i < threads; ++i) {
        running.emplace_back([&, i] {
            try {
                SampleParams params;
                params.num_samples = 1 + i % 3;
                params.steps = 4 + static_cast<std::int32_t>(i % 2);
                params.seed = i;
                params.progress = [](diffusion::Progress) { return true; };
                const Job job = process.submit(params);
                made[i] = i % 2 == 0 ? job.get() : process.sample_with(params);
            } catch (const std::exception &error) {
                errors[i] = error.what();
            }
        });
    }
    for (std::thread &thread : running) {
        thread.join();
    }
    for (std::size_t i = 0; i < threads; ++i) {
        CHECK_EQUAL(errors[i], std::string());
        const auto alone = process.sample_ddim(1 + i % 3, 4 + static_cast<std::int32_t>(i % 2), 0, i);
        CHECK(largest_difference(made[i], alone) < 1e-4F);
    }
}

void test_cancel_process() {
    const Process process = slow();
    std::atomic<bool> cancelled{false};
    std::atomic<bool> other{false};
    std::thread sampling([&] {
        try {
            process.sample_with(endless_params());
        } catch (const diffusion::Cancelled &) {
            cancelled = true;
        } catch (...) {
            other = true;
        }
    });
    while (!cancelled && !other) {  // until it has begun and been cancelled
        process.cancel();
        std::this_thread::yield();
    }
    sampling.join();
    CHECK(cancelled && !other);
    CHECK_EQUAL(process.sample_ddim(1, 2).size(), process.image_len());
}

// ---- log

// The last timestep is not all noise: sqrt(alpha_cumprod) is about 0.9, which the library warns of.
Config warned_config() {
    Config config = tiny_config();
    config.beta_schedule = DIFFUSION_SCHEDULE_LINEAR;
    config.beta_end = 0.02;
    return config;
}

void test_log() {
    Process process(warned_config());
    CHECK_EQUAL(process.step_count(), std::uint64_t{0});  // its thread has begun, and logged what it has to
    std::vector<std::string> lines;
    process.set_log_callback([&](std::int32_t level, std::string_view message) {
        CHECK(level == DIFFUSION_LOG_WARNING || level == DIFFUSION_LOG_INFO);
        lines.emplace_back(message);
    });
    CHECK(!lines.empty());
    CHECK(std::any_of(lines.begin(), lines.end(), [](const std::string &line) {
        return line.find("alpha_cumprod") != std::string::npos;
    }));
}

void test_log_lifetime() {
    const auto token = std::make_shared<int>(0);
    const auto holding = [&] { return [token](std::int32_t, std::string_view) {}; };
    {
        Process process(warned_config());
        process.set_log_callback(holding());
        CHECK_EQUAL(token.use_count(), 2L);
        Process moved = std::move(process);
        CHECK_EQUAL(token.use_count(), 2L);
        moved.sample_ddim(1, 2);
        CHECK_THROWS(diffusion::InvalidHandle, "", process.set_log_callback(holding()));  // NOLINT
        CHECK_EQUAL(token.use_count(), 2L);
        moved.set_log_callback(holding());
        CHECK_EQUAL(token.use_count(), 2L);  // the earlier one is gone
        moved.set_log_callback(nullptr);
        CHECK_EQUAL(token.use_count(), 1L);
        moved.set_log_callback(holding());
    }
    CHECK_EQUAL(token.use_count(), 1L);  // and ends with the process
    Process process(warned_config());
    process.set_log_callback([](std::int32_t, std::string_view) { throw OwnException("dropped"); });
    CHECK_EQUAL(process.sample_ddim(1, 2).size(), process.image_len());
}

// ---- training

void test_training() {
    Process process = tiny();
    CHECK_EQUAL(process.step_count(), std::uint64_t{0});
    const std::vector<float> images = ramp(2 * process.image_len());
    const float loss = process.train_step(images);
    CHECK(std::isfinite(loss) && loss > 0);
    process.train_step_without_loss(images);
    CHECK_EQUAL(process.step_count(), std::uint64_t{2});
    CHECK_EQUAL(process.gradient_scale(), 1.0);

    Process twin = tiny();  // the same seed and images: the same loss
    CHECK_EQUAL(twin.train_step(images), loss);

    CHECK_EQUAL(process.learning_rate(), 1e-4);
    process.set_learning_rate(0.01);
    CHECK_EQUAL(process.learning_rate(), 0.01);
    CHECK_THROWS(diffusion::InvalidArgument, "learning_rate", process.set_learning_rate(0));
    CHECK_THROWS(diffusion::InvalidArgument, "learning_rate", process.set_learning_rate(std::nan("")));
    CHECK_EQUAL(process.learning_rate(), 0.01);

    CHECK_THROWS(diffusion::BufferSize, "images", process.train_step(span<const float>(images.data(), 100)));
    CHECK_THROWS(diffusion::BufferSize, "images",
                 process.train_step(span<const float>(images.data(), process.image_len() + 1)));
    CHECK_THROWS(diffusion::Error, "", process.train_step({}));
    std::vector<float> broken = images;
    broken[0] = std::numeric_limits<float>::infinity();
    CHECK_THROWS(diffusion::NonFinite, "images", process.train_step(broken));
    CHECK_EQUAL(process.step_count(), std::uint64_t{2});
}

void test_training_learns() {
    Process process = tiny();
    process.set_learning_rate(0.01);
    const std::vector<float> images = ramp(4 * process.image_len());
    float early = 0, late = 0;
    for (int step = 0; step < 60; ++step) {
        const float loss = process.train_step(images);
        (step < 20 ? early : late) += step < 20 || step >= 40 ? loss : 0;
    }
    CHECK(late < early * 0.8F);
}

void test_parameters() {
    Config config = tiny_config();
    config.ema_decay = 0.9;
    Process process(config);
    const auto all = process.parameters();
    CHECK_EQUAL(all.size(), process.parameter_count());
    CHECK(all.size() > 20);
    std::set<std::string> names;
    for (const diffusion::Parameter &parameter : all) {
        names.insert(parameter.name);
        CHECK(!parameter.shape.empty() && parameter.shape.size() <= 4);
        std::int64_t product = 1;
        for (const std::int64_t side : parameter.shape) {
            product *= side;
        }
        CHECK_EQUAL(static_cast<std::size_t>(product), parameter.len);
    }
    CHECK_EQUAL(names.size(), all.size());
    CHECK(names.count("conv_in.weight") == 1);
    const auto found =
        std::find_if(all.begin(), all.end(), [](const auto &p) { return p.name == "conv_in.weight"; });
    CHECK(found->shape == (std::vector<std::int64_t>{8, 3, 3, 3}));

    const auto before = process.read_parameter(*found);
    CHECK_EQUAL(before.size(), std::size_t{8 * 3 * 3 * 3});
    CHECK(process.read_parameter(*found, DIFFUSION_WEIGHTS_EMA) == before);
    process.train_step_without_loss(ramp(2 * process.image_len()));
    const auto trained = process.read_parameter(*found);
    const auto average = process.read_parameter(*found, DIFFUSION_WEIGHTS_EMA);
    CHECK(trained != before && average != trained);

    const std::vector<float> values(before.size(), 0.25F);
    process.write_parameter(found->name, values);
    CHECK(process.read_parameter(*found) == values);
    CHECK(process.read_parameter(*found, DIFFUSION_WEIGHTS_EMA) == average);
    process.write_parameter(found->name, values, DIFFUSION_WEIGHTS_EMA);
    CHECK(process.read_parameter(*found, DIFFUSION_WEIGHTS_EMA) == values);

    std::vector<float> shorter(5);
    CHECK_THROWS(diffusion::BufferSize, "out", process.read_parameter(found->name, shorter));
    CHECK_THROWS(diffusion::BufferSize, "values", process.write_parameter(found->name, shorter));
    CHECK_THROWS(diffusion::InvalidArgument, "no_such", process.read_parameter("no_such", shorter));
    CHECK_THROWS(diffusion::InvalidArgument, "NUL", process.read_parameter(std::string("a\0b", 3), shorter));
    CHECK_THROWS(diffusion::InvalidArgument, "weights", process.read_parameter(*found, 5));
    CHECK_THROWS(diffusion::InvalidArgument, "index", process.parameter(all.size()));
    std::vector<float> broken = values;
    broken[0] = std::nanf("");
    CHECK_THROWS(diffusion::NonFinite, "values", process.write_parameter(found->name, broken));
    CHECK(process.read_parameter(*found) == values);
}

// ---- checkpoints

void test_save_and_load() {
    const TempFolder folder;
    const std::vector<float> images = ramp(2 * tiny_config().image_len());
    Process process = tiny();
    process.train_step(images);
    process.train_step(images);
    process.save(folder / "model");
    CHECK(fs::exists(folder / "model" / "model_index.json"));
    std::ofstream(folder / "model" / "notes.txt") << "kept";
    process.save((folder / "model").string());  // replaces it, and keeps what is not a checkpoint's
    CHECK(fs::exists(folder / "model" / "notes.txt"));

    Process loaded = Process::load(folder / "model");
    CHECK_EQUAL(loaded.step_count(), std::uint64_t{2});
    CHECK(loaded.config().get_hidden_dims() == process.config().get_hidden_dims());
    CHECK_EQUAL(loaded.image_len(), process.image_len());

    Config overrides;
    overrides.device = DIFFUSION_DEVICE_CPU;
    overrides.num_threads = 1;
    overrides.learning_rate = 0.003;
    Process overridden = Process::load(folder / "model", overrides);
    CHECK_EQUAL(overridden.learning_rate(), 0.003);
    CHECK_EQUAL(overridden.config().num_threads, 1);
    const std::vector<std::int64_t> timesteps{2, 9};
    CHECK(largest_difference(overridden.predict_noise(images, timesteps),
                             process.predict_noise(images, timesteps)) < 1e-5F);
    overridden.set_learning_rate(process.learning_rate());
    CHECK_EQUAL(overridden.train_step(images), process.train_step(images));  // goes on exactly where it was

    process.export_model(folder / "f16");
    process.export_model(folder / "f32", DIFFUSION_PRECISION_F32);
    const fs::path weights = fs::path("unet") / "diffusion_pytorch_model.safetensors";
    CHECK(fs::file_size(folder / "f16" / weights) < fs::file_size(folder / "f32" / weights) * 3 / 4);
    const Process shipped = Process::load(folder / "f16", overrides);
    CHECK_EQUAL(shipped.step_count(), std::uint64_t{0});
    CHECK(largest_difference(shipped.predict_noise(images, timesteps),
                             process.predict_noise(images, timesteps)) < 0.05F);
    CHECK_THROWS(diffusion::InvalidArgument, "precision", process.export_model(folder / "f8", 8));

    overrides.image_size = 16;
    CHECK_THROWS(diffusion::InvalidArgument, "image_size", Process::load(folder / "model", overrides));
}

void test_checkpoint_errors() {
    const TempFolder folder;
    CHECK_THROWS(diffusion::IoError, "missing", Process::load(folder / "missing"));
    const std::string with_nul("a\0b", 3);
    CHECK_THROWS(diffusion::InvalidArgument, "path", Process::load(fs::path(with_nul)));
    const Process process = tiny();
    fs::create_directories(folder / "occupied");
    std::ofstream(folder / "occupied" / "file.txt") << "not a checkpoint";
    CHECK_THROWS(diffusion::InvalidArgument, "occupied", process.save(folder / "occupied"));
    CHECK(fs::exists(folder / "occupied" / "file.txt"));
    process.save(folder / "broken");
    fs::resize_file(folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors", 100);
    CHECK_THROWS(diffusion::FormatError, "diffusion_pytorch_model.safetensors",
                 Process::load(folder / "broken"));
}

// ---- ownership

void test_process_moves() {
    Process first = tiny();
    const auto expected = first.sample_ddim(1, 3);
    Process second = std::move(first);
    CHECK(!first.valid() && second.valid());  // NOLINT: the moved-from state is what is looked at
    CHECK_THROWS(diffusion::InvalidHandle, "", first.sample_ddim(1, 3));
    CHECK_THROWS(diffusion::InvalidHandle, "", first.config());
    CHECK_THROWS(diffusion::InvalidHandle, "", first.cancel());
    CHECK_THROWS(diffusion::Error, "", first.train_step(expected));
    CHECK(second.sample_ddim(1, 3) == expected);

    Config other = tiny_config();
    other.seed = 8;
    Process third(other);
    diffusion_process *raw = third.handle();
    third = std::move(second);  // ends what it was
    CHECK_EQUAL(diffusion_cancel(raw), DIFFUSION_ERROR_INVALID_HANDLE);
    CHECK(third.sample_ddim(1, 3) == expected);
    swap(third, second);
    CHECK(second.valid() && !third.valid());
    Process &same = second;
    second = std::move(same);
    CHECK(second.sample_ddim(1, 3) == expected);
    std::vector<Process> several;
    several.push_back(std::move(second));
    several.push_back(Process(other));
    CHECK(several[0].sample_ddim(1, 3) == expected);
}

void test_errors_of_threads_stay_apart() {
    const Process process = tiny();
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int i = 0; i < 8; ++i) {
        threads.emplace_back([&, i] {
            for (int round = 0; round < 50; ++round) {
                const std::int32_t steps = 100 + i;
                try {
                    process.sample_ddim(1, steps);
                    ++wrong;
                } catch (const diffusion::InvalidArgument &error) {
                    const std::string text = "ddim_steps is " + std::to_string(steps);
                    wrong += std::string(error.what()).find(text) == std::string::npos ? 1 : 0;
                } catch (...) {
                    ++wrong;
                }
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    CHECK_EQUAL(wrong.load(), 0);
}

struct Test {
    const char *name;
    void (*body)();
};

#define TEST(name)  \
    Test {          \
        #name, name \
    }

const Test tests[] = {
    TEST(test_versions),
    TEST(test_config),
    TEST(test_create_errors),
    TEST(test_every_status_has_its_class),
    TEST(test_process_config),
    TEST(test_schedule),
    TEST(test_given_betas),
    TEST(test_add_noise),
    TEST(test_add_noise_errors),
    TEST(test_predict_noise),
    TEST(test_sample),
    TEST(test_sample_ddim),
    TEST(test_formats),
    TEST(test_seeds_and_initial_noise),
    TEST(test_methods),
    TEST(test_timeout),
    TEST(test_progress),
    TEST(test_cancel_from_progress),
    TEST(test_exception_from_progress),
    TEST(test_job),
    TEST(test_job_cancel),
    TEST(test_job_exception_from_progress),
    TEST(test_job_moves),
    TEST(test_job_outlives_process),
    TEST(test_jobs_from_many_threads),
    TEST(test_cancel_process),
    TEST(test_log),
    TEST(test_log_lifetime),
    TEST(test_training),
    TEST(test_training_learns),
    TEST(test_parameters),
    TEST(test_save_and_load),
    TEST(test_checkpoint_errors),
    TEST(test_process_moves),
    TEST(test_errors_of_threads_stay_apart),
};

}  // namespace

// With an argument: only the tests whose name contains it.
int main(int argc, char **argv) {
    const Watchdog watchdog;
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    int passed = 0, failed = 0;
    for (const Test &test : tests) {
        if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) {
            continue;
        }
        std::string why;
        try {
            test.body();
        } catch (const Failed &failure) {
            why = failure.message;
        } catch (const std::exception &error) {
            why = std::string("exception: ") + error.what();
        } catch (...) {
            why = "an exception of unknown type";
        }
        ++(why.empty() ? passed : failed);
        if (why.empty()) {
            std::printf("ok %s\n", test.name);
        } else {
            std::printf("FAILED %s: %s\n", test.name, why.c_str());
        }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
