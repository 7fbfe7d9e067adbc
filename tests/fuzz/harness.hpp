// What the two fuzz targets share: a reader of the fuzzer's bytes, memory of a caller's that notices what was
// written beside it or too early, and what has to hold after every call.
#pragma once

#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "diffusion.h"

namespace fuzz {

// Ends the run: libFuzzer keeps the input and prints where it was.
[[noreturn]] inline void finding(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "FINDING: ");
    std::vfprintf(stderr, format, arguments);
    std::fprintf(stderr, "\n");
    va_end(arguments);
    std::abort();
}

// FUZZ_TRACE=1 in the environment, for looking at one input: each call and what came of it.
inline bool tracing() {
    static const bool on = std::getenv("FUZZ_TRACE") != nullptr;
    return on;
}

// The fuzzer's bytes, from the front; zeros when they are used up.
class Bytes {
  public:
    Bytes(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}

    bool empty() const { return at_ == end_; }
    uint8_t byte() { return empty() ? 0 : *at_++; }
    uint64_t word(int bytes = 8) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; i++)
            value |= uint64_t{byte()} << (8 * i);
        return value;
    }
    // In 0..count.
    size_t below(size_t count) {
        if (count <= 1) return 0;
        return count <= 256 ? byte() % count : word(4) % count;
    }
    // True once in `times`; false when the bytes are used up.
    bool once_in(size_t times) { return below(times) == times - 1; }
    template <class T>
    T pick(std::initializer_list<T> list) {
        return list.begin()[below(list.size())];
    }

  private:
    const uint8_t *at_, *end_;
};

// A caller's memory of exactly `size` bytes, `shift` bytes off its alignment. What is beside it may be
// neither read (the address sanitizer watches) nor written, by whoever.
class Memory {
  public:
    static constexpr size_t kZone = 64;
    static constexpr uint8_t kFill = 0xC3;

    explicit Memory(size_t size, size_t shift = 0) : size_(size), shift_(shift) {
        block_ = static_cast<uint8_t *>(std::malloc(2 * kZone + shift + size));
        if (block_ == nullptr) finding("the harness asked for %zu bytes", size);
        std::memset(block_, kFill, 2 * kZone + shift + size);
        ASAN_POISON_MEMORY_REGION(block_, kZone + shift);
        ASAN_POISON_MEMORY_REGION(data() + size, kZone);
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory() {
        ASAN_UNPOISON_MEMORY_REGION(block_, 2 * kZone + shift_ + size_);
        if (!filled(block_, kZone + shift_) || !filled(data() + size_, kZone)) {
            finding("a call wrote beside a buffer of %zu bytes", size_);
        }
        std::free(block_);
    }

    uint8_t *data() { return block_ + kZone + shift_; }
    template <class T>
    T *as() {
        return reinterpret_cast<T *>(data());
    }
    size_t size() const { return size_; }
    // Whether nobody has written to it.
    bool untouched() { return filled(data(), size_); }
    // Whether every float of it has been written to.
    bool all_written() {
        for (size_t i = 0; i + 4 <= size_; i += 4) {
            if (filled(data() + i, 4)) return false;
        }
        return true;
    }

  private:
    static bool filled(const uint8_t *from, size_t count) {
        for (size_t i = 0; i < count; i++) {
            if (from[i] != kFill) return false;
        }
        return true;
    }

    size_t size_, shift_;
    uint8_t *block_;
};

// A status and the message that belongs to it, read on the thread that made the call.
struct Outcome {
    int32_t status;
    std::string message;

    explicit Outcome(int32_t status) : status(status) {
        if (status != DIFFUSION_OK) message = diffusion_last_error_message();
    }
    bool ok() const { return status == DIFFUSION_OK; }
};

// A set of statuses.
using Statuses = uint32_t;
template <class... Status>
constexpr Statuses statuses(Status... each) {
    return (0u | ... | (1u << each));
}

// How often each call returned each status, printed when the run ends.
class Counts {
  public:
    ~Counts() {
        uint64_t all = 0;
        for (const auto &[key, count] : counts_)
            all += count;
        std::fprintf(stderr, "%lu calls:\n", all);
        for (const auto &[key, count] : counts_) {
            std::fprintf(stderr, "%10lu  %s: %s\n", count, key.first.c_str(),
                         diffusion_status_string(key.second));
        }
    }
    void add(const char *call, int32_t status) {
        std::lock_guard lock(mutex_);
        counts_[{call, status}]++;
    }

  private:
    std::mutex mutex_;
    std::map<std::pair<std::string, int32_t>, uint64_t> counts_;
};

// What holds after every call: a known status, never one that says that the library is wrong, and a message
// of one line.
inline void check_outcome(const char *call, const Outcome &outcome, Statuses allowed) {
    const int32_t status = outcome.status;
    const char *name = diffusion_status_string(status);
    static Counts counts;
    counts.add(call, status);
    if (tracing()) std::fprintf(stderr, "%s: %s %s\n", call, name, outcome.message.c_str());
    if (status < 0 || status > DIFFUSION_ERROR_INTERNAL) finding("%s returned %d", call, status);
    if (status == DIFFUSION_ERROR_INTERNAL || status == DIFFUSION_ERROR_TORCH || !(allowed >> status & 1)) {
        finding("%s returned \"%s\" (%s)", call, name, outcome.message.c_str());
    }
    if (status == DIFFUSION_OK) return;
    if (outcome.message.empty()) finding("%s returned \"%s\" without a message", call, name);
    if (outcome.message.find('\n') != std::string::npos) {
        finding("%s: a message of several lines: %s", call, outcome.message.c_str());
    }
}

// A folder of this run's own below TMPDIR (run.sh puts that into memory and removes it); it is the current
// folder from here on.
inline void work_folder() {
    std::string name = std::filesystem::temp_directory_path().string() + "/diffusion-fuzz-XXXXXX";
    if (mkdtemp(name.data()) == nullptr || chdir(name.c_str()) != 0) {
        std::perror(name.c_str());
        std::exit(2);
    }
}

// A network that computes in a millisecond: one level, some six thousand weights.
inline diffusion_config tiny_config() {
    diffusion_config config;
    if (diffusion_config_init(&config) != DIFFUSION_OK) finding("diffusion_config_init");
    config.image_size = 4;
    config.channels = 1;
    config.hidden_dims_len = 1;
    std::memset(config.hidden_dims, 0, sizeof config.hidden_dims);
    config.hidden_dims[0] = 8;
    config.layers_per_block = 1;
    config.noise_steps = 6;
    config.device = DIFFUSION_DEVICE_CPU;
    config.num_threads = 1;
    return config;
}

}  // namespace fuzz
