// Makes the small training files that tests/examples/run.sh trains on, and looks at the pictures they give.
//
//     fixtures make FOLDER         PNGs of several kinds, CIFAR-10 style batches, IDX files, and broken ones
//     of each fixtures check PNG           prints "WIDTHxHEIGHT", or fails if the picture is unreadable or of
//     one colour fixtures same PNG PNG        fails unless both decode to the same pixels

#include <png.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "image_io.hpp"

namespace fs = std::filesystem;

namespace {

// Something with structure in it, different for each i.
std::uint8_t shade(std::size_t i, std::size_t x, std::size_t y, std::size_t c) {
    return static_cast<std::uint8_t>((x * (7 + i) + y * (3 + c) + i * 31 + c * 50) % 256);
}

// samples: 1 gray, 3 RGB, 4 RGBA; depth: 1 or 2 bytes a sample
void write_kind(const fs::path &path, std::size_t i, std::size_t width, std::size_t height,
                std::size_t samples, std::size_t depth) {
    png_image png{};
    png.version = PNG_IMAGE_VERSION;
    png.width = static_cast<png_uint_32>(width);
    png.height = static_cast<png_uint_32>(height);
    png.format = samples == 1 ? PNG_FORMAT_GRAY : samples == 3 ? PNG_FORMAT_RGB : PNG_FORMAT_RGBA;
    if (depth == 2) {
        png.format |= PNG_FORMAT_FLAG_LINEAR;
    }
    std::vector<std::uint8_t> bytes;
    for (std::size_t at = 0; at < width * height * samples; ++at) {
        const std::uint8_t value = shade(i, at / samples % width, at / samples / width, at % samples);
        bytes.insert(bytes.end(), depth, value);
    }
    if (png_image_write_to_file(&png, path.c_str(), 0, bytes.data(), 0, nullptr) == 0) {
        throw std::runtime_error(path.string() + ": " + png.message);
    }
}

void write_bytes(const fs::path &path, const std::vector<std::uint8_t> &bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) {
        throw std::runtime_error("cannot write " + path.string());
    }
}

std::vector<std::uint8_t> cifar_records(std::size_t first, std::size_t count) {
    std::vector<std::uint8_t> bytes;
    for (std::size_t i = first; i < first + count; ++i) {
        bytes.push_back(static_cast<std::uint8_t>(i % 10));
        for (std::size_t at = 0; at < 3 * 1024; ++at) {
            bytes.push_back(shade(i, at % 32, at % 1024 / 32, at / 1024));
        }
    }
    return bytes;
}

std::vector<std::uint8_t> idx_file(std::uint8_t count, std::uint8_t rows, std::uint8_t columns) {
    std::vector<std::uint8_t> bytes{0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, rows, 0, 0, 0, columns};
    for (std::size_t at = 0; at < std::size_t{count} * rows * columns; ++at) {
        bytes.push_back(shade(at / (std::size_t{rows} * columns), at % columns, at / columns % rows, 0));
    }
    return bytes;
}

void make(const fs::path &folder) {
    for (const char *name :
         {"png/deeper", "empty", "small", "broken_png", "cifar", "broken_cifar", "occupied"}) {
        fs::create_directories(folder / name);
    }
    write_kind(folder / "png" / "rgb.png", 0, 16, 16, 3, 1);
    write_kind(folder / "png" / "wide.PNG", 1, 33, 16, 3, 1);
    write_kind(folder / "png" / "deeper" / "gray.png", 2, 24, 20, 1, 1);
    write_kind(folder / "png" / "deeper" / "rgba.png", 3, 16, 40, 4, 1);
    write_kind(folder / "png" / "deeper" / "deep.png", 4, 20, 20, 3, 2);
    write_kind(folder / "png" / "deeper" / "tiny.png", 5, 16, 8, 3, 1);
    std::ofstream(folder / "png" / "notes.txt") << "not a picture";
    write_kind(folder / "small" / "tiny.png", 5, 8, 8, 3, 1);
    std::ofstream(folder / "broken_png" / "broken.png") << "not a PNG";
    write_bytes(folder / "cifar" / "data_batch_1.bin", cifar_records(0, 3));
    write_bytes(folder / "cifar" / "data_batch_2.bin", cifar_records(3, 4));
    write_bytes(folder / "cifar" / "test_batch.bin", {1, 2, 3});
    std::vector<std::uint8_t> cut = cifar_records(0, 2);
    cut.pop_back();
    write_bytes(folder / "broken_cifar" / "data_batch_1.bin", cut);
    write_bytes(folder / "images-idx3-ubyte", idx_file(9, 12, 12));
    std::vector<std::uint8_t> truncated = idx_file(9, 12, 12);
    truncated.pop_back();
    write_bytes(folder / "truncated-idx3-ubyte", truncated);
    write_bytes(folder / "packed-idx3-ubyte", {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
    write_bytes(folder / "labels-idx1-ubyte", {0, 0, 8, 1, 0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0});
    std::ofstream(folder / "occupied" / "file.txt") << "somebody's";
}

void check(const fs::path &path) {
    const examples::Image image = examples::read_png(path);
    for (std::size_t at = 3; at < image.rgb.size(); ++at) {
        if (image.rgb[at] != image.rgb[at - 3]) {
            std::printf("%zux%zu\n", image.width, image.height);
            return;
        }
    }
    throw std::runtime_error(path.string() + " has one colour only");
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (argc == 3 && std::strcmp(argv[1], "make") == 0) {
            make(argv[2]);
        } else if (argc == 3 && std::strcmp(argv[1], "check") == 0) {
            check(argv[2]);
        } else if (argc == 4 && std::strcmp(argv[1], "same") == 0) {
            if (examples::read_png(argv[2]).rgb != examples::read_png(argv[3]).rgb) {
                throw std::runtime_error(std::string(argv[2]) + " and " + argv[3] + " differ");
            }
        } else {
            throw std::runtime_error("usage: fixtures make FOLDER | check PNG | same PNG PNG");
        }
    } catch (const std::exception &error) {
        std::fprintf(stderr, "fixtures: %s\n", error.what());
        return 1;
    }
    return 0;
}
