// Training images for train_textures: read once, kept as bytes, cut and augmented into batches of floats.
//
// The batch of a step depends on (seed, step) alone, through a counter-based generator, so that a run that is
// stopped and resumed sees what an uninterrupted one would have seen. An epoch uses every picture once.

#ifndef EXAMPLES_DATASET_HPP
#define EXAMPLES_DATASET_HPP

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "image_io.hpp"

namespace examples {

// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators): a
// bijection whose outputs for consecutive inputs look independent.
inline std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
}

// The random numbers of one image of one step.
class Draws {
  public:
    Draws(std::uint64_t seed, std::uint64_t step, std::uint64_t image)
        : key_(mix(mix(mix(seed) ^ step) ^ image)) {}

    // Uniform in 0..n, n at most 2^32.
    std::size_t below(std::size_t n) {
        return static_cast<std::size_t>(((mix(key_ ^ counter_++) >> 32) * static_cast<std::uint64_t>(n)) >>
                                        32);
    }

  private:
    std::uint64_t key_;
    std::uint64_t counter_ = 0;
};

// Where position 0..n goes in a permutation of 0..n that key determines: a Feistel cipher on just enough
// bits, applied again while its output is n or more. Needs no memory for the epoch's order.
inline std::uint64_t permuted(std::uint64_t position, std::uint64_t n, std::uint64_t key) {
    unsigned half_bits = 1;
    while (half_bits < 32 && (std::uint64_t{1} << (2 * half_bits)) < n) {
        ++half_bits;
    }
    const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
    std::uint64_t x = position;
    do {
        std::uint64_t left = x >> half_bits;
        std::uint64_t right = x & mask;
        for (std::uint64_t round = 0; round < 4; ++round) {
            const std::uint64_t next = left ^ (mix(key ^ mix(right ^ (round << 40))) & mask);
            left = right;
            right = next;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return x;
}

struct Augment {
    bool wrap = false;    // windows may cross the edges, as if the picture were a torus
    bool flip = false;    // left and right, half of the time
    bool flipud = false;  // top and bottom, half of the time
};

class Dataset {
  public:
    // Images are to come out as [channels, size, size].
    Dataset(std::size_t size, std::size_t channels) : size_(size), channels_(channels) {
        for (std::size_t i = 0; i < to_float_.size(); ++i) {
            to_float_[i] = static_cast<float>(i) / 127.5F - 1.0F;
        }
    }

    // pixels: bytes [height, width, channels]. A picture smaller than the images is counted and left out.
    void add(std::size_t width, std::size_t height, const std::vector<std::uint8_t> &pixels) {
        if (width < size_ || height < size_) {
            ++too_small_;
            return;
        }
        pictures_.push_back({width, height, bytes_.size()});
        bytes_.insert(bytes_.end(), pixels.begin(), pixels.end());
    }

    std::size_t count() const { return pictures_.size(); }
    std::size_t too_small() const { return too_small_; }
    std::size_t size() const { return size_; }
    std::size_t channels() const { return channels_; }

    // The batch of a step: float [batch, channels, size, size] in [-1, 1].
    std::vector<float> batch(std::uint64_t seed, std::uint64_t step, std::size_t batch,
                             const Augment &augment) const {
        const std::size_t image_len = channels_ * size_ * size_;
        std::vector<float> out(batch * image_len);
        for (std::size_t i = 0; i < batch; ++i) {
            const std::uint64_t index = step * batch + i;
            const std::uint64_t epoch = index / count();
            const std::uint64_t which = permuted(index % count(), count(), mix(mix(seed) ^ ~epoch));
            Draws draws(seed, step, i);
            cut(pictures_[which], augment, draws, out.data() + i * image_len);
        }
        return out;
    }

  private:
    struct Picture {
        std::size_t width;
        std::size_t height;
        std::size_t offset;
    };

    void cut(const Picture &picture, const Augment &augment, Draws &draws, float *out) const {
        const std::size_t left = draws.below(augment.wrap ? picture.width : picture.width - size_ + 1);
        const std::size_t top = draws.below(augment.wrap ? picture.height : picture.height - size_ + 1);
        const bool flip = augment.flip && draws.below(2) == 1;
        const bool flipud = augment.flipud && draws.below(2) == 1;
        for (std::size_t y = 0; y < size_; ++y) {
            const std::uint8_t *row =
                bytes_.data() + picture.offset + (top + y) % picture.height * picture.width * channels_;
            float *out_row = out + (flipud ? size_ - 1 - y : y) * size_;
            for (std::size_t x = 0; x < size_; ++x) {
                const std::uint8_t *pixel = row + (left + x) % picture.width * channels_;
                const std::size_t out_x = flip ? size_ - 1 - x : x;
                for (std::size_t c = 0; c < channels_; ++c) {
                    out_row[c * size_ * size_ + out_x] = to_float_[pixel[c]];
                }
            }
        }
    }

    std::size_t size_;
    std::size_t channels_;
    std::size_t too_small_ = 0;
    std::vector<Picture> pictures_;
    std::vector<std::uint8_t> bytes_;
    std::array<float, 256> to_float_{};
};

// Each factor x factor block of pixels becomes their mean; what is left over at the edges is dropped.
inline Image scale_down(const Image &image, std::size_t factor) {
    Image out(image.width / factor, image.height / factor);
    const std::size_t area = factor * factor;
    for (std::size_t y = 0; y < out.height; ++y) {
        for (std::size_t x = 0; x < out.width; ++x) {
            for (std::size_t c = 0; c < 3; ++c) {
                std::size_t sum = 0;
                for (std::size_t i = 0; i < area; ++i) {
                    sum += image.at(x * factor + i % factor, y * factor + i / factor)[c];
                }
                out.at(x, y)[c] = static_cast<std::uint8_t>((sum + area / 2) / area);
            }
        }
    }
    return out;
}

// Every *.png below the folders, in the order of their paths, as RGB.
inline Dataset read_png_folders(const std::vector<std::string> &folders, std::size_t size,
                                std::size_t factor) {
    namespace fs = std::filesystem;
    Dataset dataset(size, 3);
    std::size_t files = 0;
    for (const std::string &folder : folders) {
        if (!fs::is_directory(folder)) {
            throw std::runtime_error("--png is " + folder + ": must be a folder");
        }
        std::vector<fs::path> paths;
        for (const auto &entry : fs::recursive_directory_iterator(folder)) {
            std::string extension = entry.path().extension().string();
            std::transform(extension.begin(), extension.end(), extension.begin(), [](char c) {
                return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
            });
            if (entry.is_regular_file() && extension == ".png") {
                paths.push_back(entry.path());
            }
        }
        std::sort(paths.begin(), paths.end());
        files += paths.size();
        for (const fs::path &path : paths) {
            const Image image = read_png(path);
            const Image scaled = factor > 1 ? scale_down(image, factor) : image;
            dataset.add(scaled.width, scaled.height, scaled.rgb);
        }
    }
    if (files == 0) {
        throw std::runtime_error("no .png file in " + folders.front() +
                                 (folders.size() > 1 ? " and the others" : ""));
    }
    return dataset;
}

// A whole file, of at least so many bytes.
inline std::vector<std::uint8_t> read_bytes(const std::filesystem::path &path, std::size_t at_least) {
    // A folder opens as a file does, and then claims to be as long as can be.
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff length = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (length < 0 || !std::filesystem::is_regular_file(path)) {
        throw std::runtime_error("cannot read " + path.string());
    }
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(length));
    file.seekg(0);
    if (!file.read(reinterpret_cast<char *>(bytes.data()), length)) {
        throw std::runtime_error("cannot read " + path.string());
    }
    if (bytes.size() < at_least) {
        throw std::runtime_error(path.string() + " is too short: has " + std::to_string(bytes.size()) +
                                 " bytes");
    }
    return bytes;
}

// CIFAR-10's binary version: data_batch_*.bin, records of one label byte and bytes [3, 32, 32].
inline Dataset read_cifar10(const std::string &folder, std::size_t size) {
    namespace fs = std::filesystem;
    constexpr std::size_t side = 32, plane = side * side, record = 1 + 3 * plane;
    if (!fs::is_directory(folder)) {
        throw std::runtime_error("--cifar10 is " + folder + ": must be a folder");
    }
    std::vector<fs::path> paths;
    for (const auto &entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.rfind("data_batch_", 0) == 0 && entry.path().extension() == ".bin") {
            paths.push_back(entry.path());
        }
    }
    if (paths.empty()) {
        throw std::runtime_error("no data_batch_*.bin in " + folder +
                                 ": must be CIFAR-10's binary version, unpacked");
    }
    std::sort(paths.begin(), paths.end());
    Dataset dataset(size, 3);
    std::vector<std::uint8_t> pixels(3 * plane);
    for (const fs::path &path : paths) {
        const std::vector<std::uint8_t> bytes = read_bytes(path, record);
        if (bytes.size() % record != 0) {
            throw std::runtime_error(path.string() + " has " + std::to_string(bytes.size()) +
                                     " bytes: must be a multiple of " + std::to_string(record));
        }
        for (std::size_t start = 0; start < bytes.size(); start += record) {
            for (std::size_t i = 0; i < plane; ++i) {
                for (std::size_t c = 0; c < 3; ++c) {
                    pixels[i * 3 + c] = bytes[start + 1 + c * plane + i];
                }
            }
            dataset.add(side, side, pixels);
        }
    }
    return dataset;
}

// MNIST's IDX format with unsigned bytes in three dimensions: [count, rows, columns], big-endian header.
struct IdxImages {
    std::size_t count = 0;
    std::size_t rows = 0;
    std::size_t columns = 0;
    std::vector<std::uint8_t> file;

    static constexpr std::size_t header = 16;
};

inline IdxImages read_idx(const std::string &path) {
    IdxImages idx;
    idx.file = read_bytes(path, IdxImages::header);
    const auto number = [&](std::size_t at) {
        return static_cast<std::size_t>(idx.file[at]) << 24 |
               static_cast<std::size_t>(idx.file[at + 1]) << 16 |
               static_cast<std::size_t>(idx.file[at + 2]) << 8 | static_cast<std::size_t>(idx.file[at + 3]);
    };
    if (number(0) != 0x0803) {
        const bool packed = idx.file[0] == 0x1f && idx.file[1] == 0x8b;
        throw std::runtime_error(path +
                                 (packed ? " is packed: unpack it with gunzip"
                                         : " is not an IDX file of images (unsigned bytes, 3 dimensions)"));
    }
    idx.count = number(4);
    idx.rows = number(8);
    idx.columns = number(12);
    const std::size_t held = idx.file.size() - IdxImages::header;
    // rows and columns are each below 2^32, so that their product does not overflow
    if (idx.count == 0 || idx.rows == 0 || idx.columns == 0 || held % (idx.rows * idx.columns) != 0 ||
        held / (idx.rows * idx.columns) != idx.count) {
        throw std::runtime_error(path + " holds " + std::to_string(held) +
                                 " bytes of images: its header says " + std::to_string(idx.count) + " of " +
                                 std::to_string(idx.rows) + "x" + std::to_string(idx.columns));
    }
    return idx;
}

// Gray images. Where the image size is larger than the file's they get a black border (28x28 -> 32x32).
inline Dataset idx_dataset(const IdxImages &idx, std::size_t size) {
    Dataset dataset(size, 1);
    const std::size_t width = std::max(idx.columns, size), height = std::max(idx.rows, size);
    const std::size_t left = (width - idx.columns) / 2, top = (height - idx.rows) / 2;
    std::vector<std::uint8_t> pixels(width * height);
    for (std::size_t i = 0; i < idx.count; ++i) {
        const std::uint8_t *source = idx.file.data() + IdxImages::header + i * idx.rows * idx.columns;
        for (std::size_t y = 0; y < idx.rows; ++y) {
            std::copy_n(source + y * idx.columns, idx.columns, pixels.data() + (top + y) * width + left);
        }
        dataset.add(width, height, pixels);
    }
    return dataset;
}

// Makes the batches of steps first, first + 1, ... on a thread of its own, a few ahead of whoever takes them.
class BatchLoader {
  public:
    BatchLoader(const Dataset &dataset, std::uint64_t seed, std::uint64_t first, std::size_t batch,
                Augment augment)
        : thread_([this, &dataset, seed, first, batch, augment](const std::stop_token &stop) {
              work(stop, dataset, seed, first, batch, augment);
          }) {}

    // The next step's batch: float [batch, channels, size, size] in [-1, 1].
    std::vector<float> next() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return !ready_.empty() || error_; });
        if (ready_.empty()) {
            std::rethrow_exception(error_);
        }
        std::vector<float> batch = std::move(ready_.front());
        ready_.pop_front();
        changed_.notify_all();
        return batch;
    }

  private:
    void work(const std::stop_token &stop, const Dataset &dataset, std::uint64_t seed, std::uint64_t step,
              std::size_t batch, Augment augment) {
        try {
            while (!stop.stop_requested()) {
                std::vector<float> made = dataset.batch(seed, step++, batch, augment);
                std::unique_lock<std::mutex> lock(mutex_);
                if (!changed_.wait(lock, stop, [this] { return ready_.size() < ahead; })) {
                    return;
                }
                ready_.push_back(std::move(made));
                changed_.notify_all();
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            error_ = std::current_exception();
            changed_.notify_all();
        }
    }

    static constexpr std::size_t ahead = 4;

    std::mutex mutex_;
    std::condition_variable_any changed_;
    std::deque<std::vector<float>> ready_;
    std::exception_ptr error_;
    std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace examples

#endif  // EXAMPLES_DATASET_HPP
