/*
 * libdiffusion for C++17 and later: this one header over diffusion.h, nothing to compile.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 *     diffusion::Config config;
 *     config.image_size = 32;
 *     diffusion::Process process(config);
 *     process.train_step(images);                              // [batch, channels, height, width]
 *     std::vector<float> made = process.sample_ddim(16, 50);   // [16, channels, height, width]
 *     process.save("my_model");
 *
 * What the C header says about images, randomness and threads holds here too. Beyond it:
 *
 * Errors. Every function that can fail throws diffusion::Error, which carries the status and the library's
 * message; catch a subclass (diffusion::Cancelled, diffusion::Timeout, ...) or ask status().
 *
 * Ownership. Process and Job own their handle and end it in their destructor. They move and do not copy. A
 * Job may outlive its Process: it is then cancelled. Using a moved-from object throws InvalidHandle.
 *
 * Threads. Member functions of one Process or Job may be called from any number of threads at once.
 * Destroying, moving from and assigning to an object need, as everywhere in C++, that nobody else is using
 * it.
 *
 * Callbacks are std::functions. An exception that leaves a progress callback cancels the call or job and
 * arrives at the caller of the call, or of Job::get. One that leaves a log callback is dropped.
 *
 * Enumerations are diffusion.h's DIFFUSION_* constants, by the same names in the same fields.
 */

#ifndef DIFFUSION_HPP
#define DIFFUSION_HPP

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__has_include) && __has_include(<version>)
#include <version>
#endif
#ifdef __cpp_lib_span
#include <span>
#endif

#include "diffusion.h"

namespace diffusion {

#ifdef __cpp_lib_span
template <typename T>
using span = std::span<T>;
#else
/// The part of std::span that this header needs, for C++17: a pointer and a length that owns nothing.
template <typename T>
class span {
    // Containers of the same element, give or take const: a container of a derived class must not convert.
    template <typename C>
    using elements_of = std::remove_pointer_t<decltype(std::data(std::declval<C &>()))>;

  public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;

    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <typename C, typename = decltype(std::size(std::declval<C &>())),
              typename = std::enable_if_t<
                  std::is_convertible_v<elements_of<std::remove_reference_t<C>> (*)[], T (*)[]> &&
                  !std::is_same_v<std::remove_cv_t<std::remove_reference_t<C>>, span> &&
                  (std::is_lvalue_reference_v<C> || std::is_const_v<T>)>>
    constexpr span(C &&container) noexcept : data_(std::data(container)), size_(std::size(container)) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr span subspan(std::size_t offset, std::size_t count) const noexcept {
        return {data_ + offset, count};
    }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

/// DIFFUSION_OK and the DIFFUSION_ERROR_* constants. A later library may return other numbers.
enum class Status : std::int32_t {
    ok = DIFFUSION_OK,
    invalid_argument = DIFFUSION_ERROR_INVALID_ARGUMENT,
    null_pointer = DIFFUSION_ERROR_NULL_POINTER,
    invalid_handle = DIFFUSION_ERROR_INVALID_HANDLE,
    buffer_size = DIFFUSION_ERROR_BUFFER_SIZE,
    out_of_memory = DIFFUSION_ERROR_OUT_OF_MEMORY,
    device_unavailable = DIFFUSION_ERROR_DEVICE_UNAVAILABLE,
    io = DIFFUSION_ERROR_IO,
    format = DIFFUSION_ERROR_FORMAT,
    cancelled = DIFFUSION_ERROR_CANCELLED,
    timeout = DIFFUSION_ERROR_TIMEOUT,
    non_finite = DIFFUSION_ERROR_NON_FINITE,
    torch = DIFFUSION_ERROR_TORCH,
    internal = DIFFUSION_ERROR_INTERNAL,
};

/// A short lower-case English name of a status, e.g. "buffer size".
inline const char *status_string(Status status) noexcept {
    return diffusion_status_string(static_cast<std::int32_t>(status));
}

/// What every failing function throws. what() is the library's message: one line that names the argument, its
/// value and what it may be.
class Error : public std::runtime_error {
  public:
    Error(Status status, const std::string &message) : std::runtime_error(message), status_(status) {}

    Status status() const noexcept { return status_; }

  private:
    Status status_;
};

/// An Error of one status, so that it can be caught by itself.
template <Status S>
class ErrorOf : public Error {
  public:
    explicit ErrorOf(const std::string &message) : Error(S, message) {}
};

using InvalidArgument = ErrorOf<Status::invalid_argument>;
using NullPointer = ErrorOf<Status::null_pointer>;
using InvalidHandle = ErrorOf<Status::invalid_handle>;
using BufferSize = ErrorOf<Status::buffer_size>;
using OutOfMemory = ErrorOf<Status::out_of_memory>;
using DeviceUnavailable = ErrorOf<Status::device_unavailable>;
using IoError = ErrorOf<Status::io>;
using FormatError = ErrorOf<Status::format>;
using Cancelled = ErrorOf<Status::cancelled>;
using Timeout = ErrorOf<Status::timeout>;
using NonFinite = ErrorOf<Status::non_finite>;
using TorchError = ErrorOf<Status::torch>;
using InternalError = ErrorOf<Status::internal>;

/// Throws the Error, of the right subclass, that a status stands for.
[[noreturn]] inline void throw_error(Status status, const std::string &message) {
    switch (status) {
        case Status::invalid_argument:
            throw InvalidArgument(message);
        case Status::null_pointer:
            throw NullPointer(message);
        case Status::invalid_handle:
            throw InvalidHandle(message);
        case Status::buffer_size:
            throw BufferSize(message);
        case Status::out_of_memory:
            throw OutOfMemory(message);
        case Status::device_unavailable:
            throw DeviceUnavailable(message);
        case Status::io:
            throw IoError(message);
        case Status::format:
            throw FormatError(message);
        case Status::cancelled:
            throw Cancelled(message);
        case Status::timeout:
            throw Timeout(message);
        case Status::non_finite:
            throw NonFinite(message);
        case Status::torch:
            throw TorchError(message);
        case Status::internal:
            throw InternalError(message);
        case Status::ok:
            break;
    }
    throw Error(status, message);  // a status of a later library
}

/// Turns the status of a call of diffusion.h, made on this thread just before, into an exception unless it is
/// OK.
inline void check(std::int32_t status) {
    if (status != DIFFUSION_OK) {
        throw_error(static_cast<Status>(status), diffusion_last_error_message());
    }
}

/// "libdiffusion 0.1.0, libtorch 2.11.0, CUDA 13.0", for logs.
inline std::string version() {
    return diffusion_version();
}

/// The interface version of the loaded library. Process throws if the header's is another.
inline std::uint32_t abi_version() noexcept {
    return diffusion_abi_version();
}

/// How many devices of a kind (DIFFUSION_DEVICE_CPU or DIFFUSION_DEVICE_CUDA) can be used.
inline std::int32_t device_count(std::int32_t device) {
    std::int32_t count = 0;
    check(diffusion_device_count(device, &count));
    return count;
}

/// What a process is to be: diffusion_config, with its defaults filled in.
struct Config : diffusion_config {
    Config() : diffusion_config() { check(diffusion_config_init(this)); }

    /// DDPM's CIFAR-10 set-up; see diffusion_config_init_cifar10.
    static Config cifar10() {
        Config config;
        check(diffusion_config_init_cifar10(&config));
        return config;
    }

    /// Sets hidden_dims and hidden_dims_len: the channels of each U-Net level, 1..=8 of them.
    void set_hidden_dims(span<const std::int32_t> dims) {
        if (dims.size() > DIFFUSION_MAX_LEVELS) {
            throw InvalidArgument("hidden_dims has " + std::to_string(dims.size()) +
                                  " entries: may have 1..=" + std::to_string(DIFFUSION_MAX_LEVELS));
        }
        std::fill(std::begin(hidden_dims), std::end(hidden_dims), 0);
        std::copy(dims.begin(), dims.end(), std::begin(hidden_dims));
        hidden_dims_len = static_cast<std::int32_t>(dims.size());
    }
    void set_hidden_dims(std::initializer_list<std::int32_t> dims) {
        set_hidden_dims(span<const std::int32_t>(dims.begin(), dims.size()));
    }

    /// The used entries of hidden_dims.
    std::vector<std::int32_t> get_hidden_dims() const {
        const auto count = std::clamp<std::int32_t>(hidden_dims_len, 0, DIFFUSION_MAX_LEVELS);
        return {std::begin(hidden_dims), std::begin(hidden_dims) + count};
    }

    /// The number of floats in one image: channels * image_size * image_size.
    std::size_t image_len() const noexcept {
        return static_cast<std::size_t>(channels) * static_cast<std::size_t>(image_size) *
               static_cast<std::size_t>(image_size);
    }
};

/// How far sampling is, in denoising steps of images.
struct Progress {
    std::uint64_t done = 0;
    std::uint64_t total = 0;

    /// done / total, in [0, 1].
    double fraction() const noexcept {
        return total == 0 ? 0.0 : static_cast<double>(done) / static_cast<double>(total);
    }
};

/// Told how far sampling is, on the thread that waits for it, about once a denoising step. Returns true to go
/// on, false to cancel: the call then throws Cancelled. It may use the library, and may throw.
using ProgressFn = std::function<bool(Progress)>;

/// Receives a process's log: DIFFUSION_LOG_WARNING or DIFFUSION_LOG_INFO, and a line of UTF-8 that is valid
/// during the call only. Called on the process's own thread. It must be quick and must not use the process.
using LogFn = std::function<void(std::int32_t level, std::string_view message)>;

namespace detail {

// A progress callback, and the exception that left it if one did.
class ProgressState {
  public:
    explicit ProgressState(ProgressFn callback) : callback_(std::move(callback)) {}

    // A diffusion_progress_fn; user_data is a ProgressState.
    static std::int32_t call(std::uint64_t done, std::uint64_t total, void *user_data) noexcept {
        auto *self = static_cast<ProgressState *>(user_data);
        try {
            return self->callback_(Progress{done, total}) ? 0 : 1;
        } catch (...) {
            const std::lock_guard<std::mutex> lock(self->mutex_);
            if (!self->exception_) {
                self->exception_ = std::current_exception();
            }
            return 1;
        }
    }

    void rethrow() {
        std::exception_ptr exception;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            exception = exception_;
        }
        if (exception) {
            std::rethrow_exception(exception);
        }
    }

  private:
    ProgressFn callback_;
    std::mutex mutex_;
    std::exception_ptr exception_;
};

// The log callback of a process, at an address that stays while the Process moves.
struct LogState {
    std::mutex mutex;  // orders calls of set_log_callback
    std::unique_ptr<LogFn> callback;

    // A diffusion_log_fn; user_data is a LogFn.
    static void call(std::int32_t level, const char *message, void *user_data) noexcept {
        try {
            (*static_cast<LogFn *>(user_data))(level, message);
        } catch (...) {  // there is nobody to tell
        }
    }
};

inline std::string utf8(const std::filesystem::path &path) {
    const auto text = path.u8string();
    if (text.find(typename decltype(text)::value_type{}) != decltype(text)::npos) {
        throw InvalidArgument("path holds a NUL character: may hold any other");
    }
    return {text.begin(), text.end()};
}

inline const char *c_string(const std::string &name) {
    if (name.find('\0') != std::string::npos) {
        throw InvalidArgument("name holds a NUL character: may hold any other");
    }
    return name.c_str();
}

// Whole milliseconds for the C interface, rounded up so that no wait is shorter than asked; -1: no limit.
template <typename Rep, typename Period>
std::int64_t milliseconds(std::chrono::duration<Rep, Period> duration) {
    using Millis = std::chrono::duration<double, std::milli>;
    const double value = std::chrono::duration_cast<Millis>(duration).count();
    if (value <= 0) {
        return 0;
    }
    if (!(value < 9e15)) {  // 285,000 years; beyond it a double no longer counts milliseconds
        return -1;
    }
    const auto whole = static_cast<std::int64_t>(value);
    return static_cast<double>(whole) < value ? whole + 1 : whole;
}

inline void check_abi() {
    if (diffusion_abi_version() != DIFFUSION_ABI_VERSION) {
        throw InternalError("the loaded library has ABI version " + std::to_string(diffusion_abi_version()) +
                            ": this program was compiled for " + std::to_string(DIFFUSION_ABI_VERSION));
    }
}

}  // namespace detail

/// What and how to sample; see diffusion_sample_params, whose fields these are. Owns what it holds.
struct SampleParams {
    SampleParams() {
        diffusion_sample_params defaults{};
        check(diffusion_sample_params_init(&defaults));
        method = defaults.method;
        num_samples = defaults.num_samples;
        seed = defaults.seed;
        steps = defaults.steps;
        spacing = defaults.spacing;
        eta = defaults.eta;
        variance = defaults.variance;
        clip_sample = defaults.clip_sample;
        use_clipped_model_output = defaults.use_clipped_model_output != 0;
        format = defaults.format;
        dynamic_thresholding = defaults.dynamic_thresholding;
        timeout = std::chrono::milliseconds(defaults.timeout_ms);
    }

    std::int32_t method = 0;           ///< DIFFUSION_METHOD_*
    std::size_t num_samples = 0;       ///< images to make, 1..=1048576
    std::uint64_t seed = 0;            ///< image i is determined by (seed, i)
    std::vector<std::uint64_t> seeds;  ///< empty, or num_samples seeds: image i is image 0 of seeds[i]
    std::vector<float> initial_noise;  ///< empty, or [num_samples, channels, image_size, image_size]
    std::vector<std::int64_t>
        class_labels;              ///< of a network with classes: the class of each image; else empty
    std::int32_t steps = 0;        ///< denoising steps, 1..=noise_steps; 0: the method's default
    std::int32_t spacing = 0;      ///< DIFFUSION_SPACING_* or DIFFUSION_DEFAULT
    double eta = 0;                ///< DDIM's and Euler's randomness, in [0, 1]
    std::int32_t variance = 0;     ///< DIFFUSION_VARIANCE_* or DIFFUSION_DEFAULT
    std::int32_t clip_sample = 0;  ///< 0, 1 or DIFFUSION_DEFAULT
    bool use_clipped_model_output = false;  ///< DDIM: recompute the noise from the clipped estimate
    std::int32_t format = 0;                ///< DIFFUSION_FORMAT_*
    double dynamic_thresholding = 0;        ///< percentile in (0, 1); 0: off
    std::chrono::milliseconds timeout{0};   ///< after which the job ends with Timeout; 0: never
    ProgressFn progress;                    ///< empty, or told how far the job is

    /// The C struct of these parameters, pointing into this object, which must outlive it. Its progress is
    /// NULL.
    diffusion_sample_params c_params() const {
        diffusion_sample_params params{};
        check(diffusion_sample_params_init(&params));
        params.method = method;
        params.num_samples = num_samples;
        params.seed = seed;
        params.seeds = seeds.empty() ? nullptr : seeds.data();
        params.seeds_len = seeds.size();
        params.initial_noise = initial_noise.empty() ? nullptr : initial_noise.data();
        params.initial_noise_len = initial_noise.size();
        params.class_labels = class_labels.empty() ? nullptr : class_labels.data();
        params.class_labels_len = class_labels.size();
        params.steps = steps;
        params.spacing = spacing;
        params.eta = eta;
        params.variance = variance;
        params.clip_sample = clip_sample;
        params.use_clipped_model_output = use_clipped_model_output ? 1 : 0;
        params.format = format;
        params.dynamic_thresholding = dynamic_thresholding;
        params.timeout_ms = timeout.count();
        return params;
    }
};

/// Where a job is.
enum class JobState : std::int32_t {
    queued = DIFFUSION_JOB_QUEUED,
    running = DIFFUSION_JOB_RUNNING,
    done = DIFFUSION_JOB_DONE,
    failed = DIFFUSION_JOB_FAILED,
    cancelled = DIFFUSION_JOB_CANCELLED,
};

/// Sampling that runs while its caller does something else; like a std::future that can be cancelled and read
/// more than once. Made by Process::submit. Its destructor cancels it if it is still under way.
class Job {
  public:
    Job(Job &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)),
          bytes_(std::exchange(other.bytes_, 0)),
          format_(other.format_),
          progress_(std::move(other.progress_)) {}
    Job &operator=(Job &&other) noexcept {
        Job(std::move(other)).swap(*this);
        return *this;
    }
    Job(const Job &) = delete;
    Job &operator=(const Job &) = delete;
    ~Job() {
        if (handle_ != nullptr) {
            static_cast<void>(diffusion_job_destroy(handle_));
        }
    }

    void swap(Job &other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(bytes_, other.bytes_);
        std::swap(format_, other.format_);
        std::swap(progress_, other.progress_);
    }

    /// Whether there is a job here: false after it was moved from.
    bool valid() const noexcept { return handle_ != nullptr; }

    /// Where the job is; never waits.
    JobState state() const {
        std::int32_t state = 0;
        check(diffusion_job_poll(handle_, &state));
        return static_cast<JobState>(state);
    }

    /// Whether the job has ended, well or not; never waits.
    bool ended() const {
        const JobState now = state();
        return now != JobState::queued && now != JobState::running;
    }

    /// How far the job is; never waits.
    Progress progress() const {
        Progress progress;
        check(diffusion_job_progress(handle_, &progress.done, &progress.total));
        return progress;
    }

    /// Ends the job, if it has not ended, and returns at once. get then throws Cancelled.
    void cancel() { check(diffusion_job_cancel(handle_)); }

    /// Waits until the job has ended, well or not: how it did, get tells. Calls the progress callback.
    void wait() const { static_cast<void>(wait_milliseconds(-1)); }

    /// Waits at most so long: std::future_status::ready if the job has ended, else timeout. Calls the
    /// progress callback.
    template <typename Rep, typename Period>
    std::future_status wait_for(std::chrono::duration<Rep, Period> duration) const {
        return wait_milliseconds(detail::milliseconds(duration));
    }

    /// As wait_for, until a point in time.
    template <typename Clock, typename Duration>
    std::future_status wait_until(std::chrono::time_point<Clock, Duration> time) const {
        return wait_for(time - Clock::now());
    }

    /// The number of bytes of the result, in the format of the job's parameters.
    std::size_t size_bytes() const noexcept { return bytes_; }

    /// Waits, then returns the images [num_samples, channels, image_size, image_size] in [-1, 1], or throws
    /// why there are none: the job's error, or what its progress callback threw. For format F32 only.
    std::vector<float> get() const {
        if (format_ != DIFFUSION_FORMAT_F32) {
            throw InvalidArgument("format is " + std::to_string(format_) +
                                  ": must be DIFFUSION_FORMAT_F32 for get; get_bytes takes any");
        }
        std::vector<float> out(bytes_ / sizeof(float));
        get_into(span<float>(out));
        return out;
    }

    /// As get, in the format of the job's parameters, as bytes.
    std::vector<std::uint8_t> get_bytes() const {
        std::vector<std::uint8_t> out(bytes_);
        get_into(span<std::uint8_t>(out));
        return out;
    }

    /// As get_bytes, into memory of the caller, which must have size_bytes() bytes.
    template <typename T>
    void get_into(span<T> out) const {
        static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>,
                      "out must be plain writable memory");
        wait();
        fetch(out);
    }

    /// As get_into, for a job that has ended: never waits; throws InvalidArgument if it has not.
    template <typename T>
    void fetch(span<T> out) const {
        static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>,
                      "out must be plain writable memory");
        if (progress_) {
            progress_->rethrow();
        }
        check(diffusion_job_fetch(handle_, out.data(), out.size_bytes()));
    }

    /// Writes the images as they are now estimated to become, in the format of the job's parameters, into
    /// memory of size_bytes() bytes, and returns how many denoising steps that stems from: 0, and mid-gray
    /// images, until the step after the first call. Never waits; throws the job's error if it ended with one.
    template <typename T>
    std::uint64_t preview(span<T> out) const {
        static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>,
                      "out must be plain writable memory");
        std::uint64_t done = 0;
        check(diffusion_job_preview(handle_, out.data(), out.size_bytes(), &done));
        return done;
    }

    /// The C handle, for functions of diffusion.h; still this object's.
    diffusion_job *handle() const noexcept { return handle_; }

  private:
    friend class Process;

    Job(diffusion_job *handle, std::size_t bytes, std::int32_t format,
        std::shared_ptr<detail::ProgressState> progress)
        : handle_(handle), bytes_(bytes), format_(format), progress_(std::move(progress)) {}

    std::future_status wait_milliseconds(std::int64_t timeout_ms) const {
        const std::int32_t status = diffusion_job_wait(handle_, timeout_ms);
        if (status == DIFFUSION_OK) {
            return std::future_status::ready;
        }
        // The status is the job's error, or the wait's: what the job's state is tells them apart.
        const std::string message = diffusion_last_error_message();
        if (ended()) {
            return std::future_status::ready;
        }
        if (status == DIFFUSION_ERROR_TIMEOUT) {
            return std::future_status::timeout;
        }
        throw_error(static_cast<Status>(status), message);
    }

    diffusion_job *handle_ = nullptr;
    std::size_t bytes_ = 0;
    std::int32_t format_ = DIFFUSION_FORMAT_F32;
    std::shared_ptr<detail::ProgressState> progress_;
};

/// One tensor of the U-Net's parameters.
struct Parameter {
    std::string name;                 ///< diffusers' name, e.g. "down_blocks.0.resnets.0.conv1.weight"
    std::vector<std::int64_t> shape;  ///< 1 to 4 dimensions
    std::size_t len = 0;              ///< the number of floats: the product of shape
};

/// Images with noise added, and that noise; both [batch, channels, image_size, image_size].
struct NoisyImages {
    std::vector<float> noisy;
    std::vector<float> noise;
};

/// A diffusion model with its noise schedule, weights, optimizer and the thread that computes.
class Process {
  public:
    /// Makes a process with fresh weights, determined by config.seed.
    explicit Process(const Config &config) {
        detail::check_abi();
        check(diffusion_create(&config, &handle_));
        remember_image_len();
    }

    /// As above, with a table of betas, float64 [noise_steps], in place of a formula.
    Process(const Config &config, span<const double> betas) {
        detail::check_abi();
        check(diffusion_create_with_betas(&config, betas.data(), betas.size(), &handle_));
        remember_image_len();
    }

    /// Makes a process from a checkpoint folder: save's or diffusers'. Each field of overrides that differs
    /// from a default Config replaces the checkpoint's; see diffusion_load.
    static Process load(const std::filesystem::path &path,
                        const std::optional<Config> &overrides = std::nullopt) {
        detail::check_abi();
        const std::string text = detail::utf8(path);
        Process process;
        check(diffusion_load(text.c_str(), overrides ? &*overrides : nullptr, &process.handle_));
        process.remember_image_len();
        return process;
    }

    Process(Process &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)),
          image_len_(std::exchange(other.image_len_, 0)),
          log_(std::move(other.log_)) {}
    Process &operator=(Process &&other) noexcept {
        Process(std::move(other)).swap(*this);
        return *this;
    }
    Process(const Process &) = delete;
    Process &operator=(const Process &) = delete;
    /// Ends the process, its jobs with Cancelled, and waits until its thread is gone.
    ~Process() {
        if (handle_ != nullptr) {
            static_cast<void>(diffusion_destroy(handle_));  // the log callback is called no more from here on
        }
    }

    void swap(Process &other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(image_len_, other.image_len_);
        std::swap(log_, other.log_);
    }

    /// Whether there is a process here: false after it was moved from.
    bool valid() const noexcept { return handle_ != nullptr; }

    /// Writes a checkpoint folder that load and diffusers open; see diffusion_save.
    void save(const std::filesystem::path &path) const {
        const std::string text = detail::utf8(path);
        check(diffusion_save(handle_, text.c_str()));
    }

    /// Writes the model alone, to be shipped: save's folder with the weights that sampling uses in a smaller
    /// format (DIFFUSION_PRECISION_*) and without training state; see diffusion_export.
    void export_model(const std::filesystem::path &path,
                      std::int32_t precision = DIFFUSION_PRECISION_F16) const {
        const std::string text = detail::utf8(path);
        check(diffusion_export(handle_, text.c_str(), precision));
    }

    /// What the process is, every field resolved.
    Config config() const {
        Config config;
        check(diffusion_get_config(handle_, &config));
        return config;
    }

    /// The number of floats in one image: channels * image_size * image_size.
    std::size_t image_len() const noexcept { return image_len_; }

    /// One of the schedule's tables (DIFFUSION_TABLE_*), float [noise_steps].
    std::vector<float> schedule(std::int32_t which_table) const {
        std::vector<float> table(static_cast<std::size_t>(config().noise_steps));
        check(diffusion_get_schedule(handle_, which_table, table.data(), table.size()));
        return table;
    }
    std::vector<float> betas() const { return schedule(DIFFUSION_TABLE_BETA); }
    std::vector<float> alphas() const { return schedule(DIFFUSION_TABLE_ALPHA); }
    std::vector<float> alphas_cumprod() const { return schedule(DIFFUSION_TABLE_ALPHA_CUMPROD); }
    std::vector<float> sqrt_alphas_cumprod() const { return schedule(DIFFUSION_TABLE_SQRT_ALPHA_CUMPROD); }
    std::vector<float> sqrt_one_minus_alphas_cumprod() const {
        return schedule(DIFFUSION_TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD);
    }

    /// Sets who receives the log, in place of nobody or of an earlier callback; an empty function ends it.
    /// What was logged before is delivered first. The callback lives until it is replaced or the process
    /// destroyed; it must not be replaced from within itself.
    void set_log_callback(LogFn callback) {
        if (!log_) {
            log_ = std::make_unique<detail::LogState>();
        }
        const std::lock_guard<std::mutex> lock(log_->mutex);
        std::unique_ptr<LogFn> next = callback ? std::make_unique<LogFn>(std::move(callback)) : nullptr;
        check(diffusion_set_log_callback(handle_, next ? &detail::LogState::call : nullptr, next.get()));
        log_->callback = std::move(next);  // the earlier one is not running and will not be called again
    }

    /// Noises images [batch, channels, image_size, image_size] to timesteps [batch], each in 0..noise_steps.
    NoisyImages add_noise(span<const float> images, span<const std::int64_t> timesteps,
                          std::uint64_t seed) const {
        NoisyImages result;
        result.noisy.resize(images.size());
        result.noise.resize(images.size());
        add_noise(images, timesteps, seed, result.noisy, result.noise);
        return result;
    }

    /// As above, into memory of the caller. noisy may be images itself.
    void add_noise(span<const float> images, span<const std::int64_t> timesteps, std::uint64_t seed,
                   span<float> noisy, span<float> noise) const {
        check(diffusion_add_noise(handle_, images.data(), images.size(), timesteps.data(), timesteps.size(),
                                  seed, noisy.data(), noisy.size(), noise.data(), noise.size()));
    }

    /// What the U-Net predicts for noisy images [batch, channels, image_size, image_size] at timesteps
    /// [batch].
    std::vector<float> predict_noise(span<const float> images, span<const std::int64_t> timesteps) const {
        std::vector<float> out(images.size());
        predict_noise(images, timesteps, out);
        return out;
    }

    /// As above, into memory of the caller.
    void predict_noise(span<const float> images, span<const std::int64_t> timesteps, span<float> out) const {
        check(diffusion_predict_noise(handle_, images.data(), images.size(), timesteps.data(),
                                      timesteps.size(), out.data(), out.size()));
    }

    /// As above, for a network with classes: class_labels [batch], each in 0..num_class_embeds.
    std::vector<float> predict_noise(span<const float> images, span<const std::int64_t> timesteps,
                                     span<const std::int64_t> class_labels) const {
        require_one_each(class_labels, timesteps.size());
        std::vector<float> out(images.size());
        check(diffusion_predict_noise_with_classes(handle_, images.data(), images.size(), timesteps.data(),
                                                   class_labels.data(), timesteps.size(), out.data(),
                                                   out.size()));
        return out;
    }

    /// Images [num_samples, channels, image_size, image_size] by DDPM ancestral sampling over all
    /// noise_steps.
    std::vector<float> sample(std::size_t num_samples, std::uint64_t seed = 0) const {
        std::vector<float> out(floats_of(num_samples));
        sample(num_samples, seed, out);
        return out;
    }

    /// As above, into memory of the caller.
    void sample(std::size_t num_samples, std::uint64_t seed, span<float> out) const {
        check(diffusion_sample(handle_, num_samples, seed, out.data(), out.size()));
    }

    /// Images [num_samples, channels, image_size, image_size] by DDIM over ddim_steps in 1..=noise_steps.
    std::vector<float> sample_ddim(std::size_t num_samples, std::int32_t ddim_steps, float eta = 0,
                                   std::uint64_t seed = 0) const {
        std::vector<float> out(floats_of(num_samples));
        sample_ddim(num_samples, ddim_steps, eta, seed, out);
        return out;
    }

    /// As above, into memory of the caller.
    void sample_ddim(std::size_t num_samples, std::int32_t ddim_steps, float eta, std::uint64_t seed,
                     span<float> out) const {
        check(diffusion_sample_ddim(handle_, num_samples, ddim_steps, eta, seed, out.data(), out.size()));
    }

    /// Images [num_samples, channels, image_size, image_size] with every choice there is. For format F32
    /// only.
    std::vector<float> sample_with(const SampleParams &params) const {
        if (params.format != DIFFUSION_FORMAT_F32) {
            throw InvalidArgument("format is " + std::to_string(params.format) +
                                  ": must be DIFFUSION_FORMAT_F32 for sample_with; sample_bytes takes any");
        }
        std::vector<float> out(sample_size(params) / sizeof(float));
        sample_into(params, span<float>(out));
        return out;
    }

    /// As sample_with, in the format that params names, as bytes.
    std::vector<std::uint8_t> sample_bytes(const SampleParams &params) const {
        std::vector<std::uint8_t> out(sample_size(params));
        sample_into(params, span<std::uint8_t>(out));
        return out;
    }

    /// As sample_bytes, into memory of the caller, which must have sample_size(params) bytes.
    template <typename T>
    void sample_into(const SampleParams &params, span<T> out) const {
        static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>,
                      "out must be plain writable memory");
        diffusion_sample_params c_params = params.c_params();
        const auto progress = attach_progress(params, c_params);
        const std::int32_t status = diffusion_sample_with(handle_, &c_params, out.data(), out.size_bytes());
        const std::string message = status == DIFFUSION_OK ? "" : diffusion_last_error_message();
        if (progress) {
            progress->rethrow();
        }
        if (status != DIFFUSION_OK) {
            throw_error(static_cast<Status>(status), message);
        }
    }

    /// How many bytes sample_into and Job::get_into write for these parameters.
    std::size_t sample_size(const SampleParams &params) const {
        const diffusion_sample_params c_params = params.c_params();
        std::size_t bytes = 0;
        check(diffusion_sample_size(handle_, &c_params, &bytes));
        return bytes;
    }

    /// Starts sampling and returns at once. Jobs of one process are computed together. The progress callback
    /// is called by Job::wait and its like, on their thread.
    Job submit(const SampleParams &params) const {
        diffusion_sample_params c_params = params.c_params();
        auto progress = attach_progress(params, c_params);
        std::size_t bytes = 0;
        check(diffusion_sample_size(handle_, &c_params, &bytes));
        diffusion_job *job = nullptr;
        check(diffusion_sample_submit(handle_, &c_params, &job));
        return Job(job, bytes, params.format, std::move(progress));
    }

    /// One optimizer step on images [batch, channels, image_size, image_size] in [-1, 1]; returns the loss.
    float train_step(span<const float> images) {
        float loss = 0;
        check(diffusion_train_step(handle_, images.data(), images.size(), batch_of(images), &loss));
        return loss;
    }

    /// As above, for a network with classes: class_labels [batch], each in 0..num_class_embeds.
    float train_step(span<const float> images, span<const std::int64_t> class_labels) {
        require_one_each(class_labels, batch_of(images));
        float loss = 0;
        check(diffusion_train_step_with_classes(handle_, images.data(), images.size(), class_labels.data(),
                                                class_labels.size(), &loss));
        return loss;
    }

    /// As train_step, not asking for the loss: on CUDA the call then need not wait for the device.
    void train_step_without_loss(span<const float> images) {
        check(diffusion_train_step(handle_, images.data(), images.size(), batch_of(images), nullptr));
    }

    /// How many training steps have been taken since the weights were made.
    std::uint64_t step_count() const {
        std::uint64_t steps = 0;
        check(diffusion_get_step_count(handle_, &steps));
        return steps;
    }

    double learning_rate() const {
        double rate = 0;
        check(diffusion_get_learning_rate(handle_, &rate));
        return rate;
    }
    /// Sets the optimizer's learning rate, > 0, from the next training step on.
    void set_learning_rate(double learning_rate) {
        check(diffusion_set_learning_rate(handle_, learning_rate));
    }

    /// The factor by which the loss is scaled for f16; 1 for other precisions.
    double gradient_scale() const {
        double scale = 0;
        check(diffusion_get_gradient_scale(handle_, &scale));
        return scale;
    }

    /// How many tensors the U-Net's parameters are.
    std::size_t parameter_count() const {
        std::size_t count = 0;
        check(diffusion_parameter_count(handle_, &count));
        return count;
    }

    /// The name and shape of the tensor at an index below parameter_count, in diffusers' order.
    Parameter parameter(std::size_t index) const {
        diffusion_parameter described{};
        described.struct_size = sizeof(described);
        check(diffusion_parameter_describe(handle_, index, &described));
        return {described.name, {described.shape, described.shape + described.rank}, described.len};
    }

    /// All of them.
    std::vector<Parameter> parameters() const {
        std::vector<Parameter> all(parameter_count());
        for (std::size_t i = 0; i < all.size(); ++i) {
            all[i] = parameter(i);
        }
        return all;
    }

    /// The values of a tensor, of the trained weights or their moving average (DIFFUSION_WEIGHTS_*).
    std::vector<float> read_parameter(const Parameter &parameter,
                                      std::int32_t weights = DIFFUSION_WEIGHTS_TRAINED) const {
        std::vector<float> values(parameter.len);
        read_parameter(parameter.name, values, weights);
        return values;
    }

    /// As above, into memory of the caller.
    void read_parameter(const std::string &name, span<float> out,
                        std::int32_t weights = DIFFUSION_WEIGHTS_TRAINED) const {
        check(diffusion_parameter_read(handle_, weights, detail::c_string(name), out.data(), out.size()));
    }

    /// Replaces the values of a tensor; the moving average's too needs a second call.
    void write_parameter(const std::string &name, span<const float> values,
                         std::int32_t weights = DIFFUSION_WEIGHTS_TRAINED) {
        check(diffusion_parameter_write(handle_, weights, detail::c_string(name), values.data(),
                                        values.size()));
    }

    /// Ends every call and job that waits or is under way with Cancelled and returns at once.
    void cancel() const { check(diffusion_cancel(handle_)); }

    /// The C handle, for functions of diffusion.h; still this object's.
    diffusion_process *handle() const noexcept { return handle_; }

  private:
    Process() = default;

    void remember_image_len() { image_len_ = config().image_len(); }

    // The length for num_samples images; the library refuses absurd numbers before they are allocated.
    std::size_t floats_of(std::size_t num_samples) const {
        SampleParams params;
        params.num_samples = num_samples;
        return sample_size(params) / sizeof(float);
    }

    // The batch that so many floats are; a remainder makes the library say which length it needs.
    std::size_t batch_of(span<const float> images) const noexcept {
        return image_len_ == 0 ? 0 : (images.size() + image_len_ - 1) / image_len_;
    }

    // The C functions read as many labels as there are images.
    static void require_one_each(span<const std::int64_t> class_labels, std::size_t images) {
        if (class_labels.size() != images) {
            throw InvalidArgument("class_labels has " + std::to_string(class_labels.size()) +
                                  " entries: must have " + std::to_string(images) + ", one for each image");
        }
    }

    static std::shared_ptr<detail::ProgressState> attach_progress(const SampleParams &params,
                                                                  diffusion_sample_params &c_params) {
        if (!params.progress) {
            return nullptr;
        }
        auto state = std::make_shared<detail::ProgressState>(params.progress);
        c_params.progress = &detail::ProgressState::call;
        c_params.user_data = state.get();
        return state;
    }

    diffusion_process *handle_ = nullptr;
    std::size_t image_len_ = 0;
    std::unique_ptr<detail::LogState> log_;
};

inline void swap(Process &a, Process &b) noexcept {
    a.swap(b);
}

inline void swap(Job &a, Job &b) noexcept {
    a.swap(b);
}

}  // namespace diffusion

#endif  // DIFFUSION_HPP
