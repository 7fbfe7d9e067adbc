// Pictures for the examples: 8-bit RGB in memory, PNG files through libpng's simplified interface, and the
// few things done to samples before they are looked at (enlarge, repeat, lay out as a grid).

#ifndef EXAMPLES_IMAGE_IO_HPP
#define EXAMPLES_IMAGE_IO_HPP

#include <png.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace examples {

// RGB bytes [height, width, 3], rows from the top.
struct Image {
    std::size_t width = 0;
    std::size_t height = 0;
    std::vector<std::uint8_t> rgb;

    Image() = default;
    Image(std::size_t w, std::size_t h, std::uint8_t fill = 0) : width(w), height(h), rgb(w * h * 3, fill) {}
    Image(std::size_t w, std::size_t h, std::vector<std::uint8_t> bytes)
        : width(w), height(h), rgb(std::move(bytes)) {}

    std::uint8_t *at(std::size_t x, std::size_t y) { return rgb.data() + (y * width + x) * 3; }
    const std::uint8_t *at(std::size_t x, std::size_t y) const { return rgb.data() + (y * width + x) * 3; }
};

// Any PNG as RGB: gray is repeated, 16 bits become 8, what is transparent becomes black.
inline Image read_png(const std::filesystem::path &path) {
    png_image png{};
    png.version = PNG_IMAGE_VERSION;
    if (png_image_begin_read_from_file(&png, path.c_str()) == 0) {
        throw std::runtime_error("cannot read " + path.string() + ": " + png.message);
    }
    png.format = PNG_FORMAT_RGB;
    Image image;
    try {
        image = Image(png.width, png.height);
    } catch (...) {
        png_image_free(&png);
        throw;
    }
    const png_color black{0, 0, 0};
    if (png_image_finish_read(&png, &black, image.rgb.data(), 0, nullptr) == 0) {
        throw std::runtime_error("cannot read " + path.string() + ": " + png.message);
    }
    return image;
}

// Writes beside the target and renames, so that whoever looks meanwhile sees the old picture or the new one.
inline void write_png(const std::filesystem::path &path, const Image &image) {
    png_image png{};
    png.version = PNG_IMAGE_VERSION;
    png.format = PNG_FORMAT_RGB;
    png.width = static_cast<png_uint_32>(image.width);
    png.height = static_cast<png_uint_32>(image.height);
    std::filesystem::path part = path;
    part += ".part";
    std::error_code error;
    if (png_image_write_to_file(&png, part.c_str(), 0, image.rgb.data(), 0, nullptr) == 0) {
        std::filesystem::remove(part, error);
        throw std::runtime_error("cannot write " + path.string() + ": " + png.message);
    }
    std::filesystem::rename(part, path, error);
    if (error) {
        throw std::runtime_error("cannot write " + path.string() + ": " + error.message());
    }
}

// Each pixel becomes factor x factor pixels.
inline Image enlarge(const Image &image, std::size_t factor) {
    Image out(image.width * factor, image.height * factor);
    for (std::size_t y = 0; y < out.height; ++y) {
        for (std::size_t x = 0; x < out.width; ++x) {
            std::copy_n(image.at(x / factor, y / factor), 3, out.at(x, y));
        }
    }
    return out;
}

// count x count copies side by side, which shows how a texture's edges meet.
inline Image repeat(const Image &image, std::size_t count) {
    Image out(image.width * count, image.height * count);
    for (std::size_t y = 0; y < out.height; ++y) {
        for (std::size_t x = 0; x < out.width; ++x) {
            std::copy_n(image.at(x % image.width, y % image.height), 3, out.at(x, y));
        }
    }
    return out;
}

// Pictures of one size in rows of so many columns, with a margin of so many dark pixels around each.
inline Image grid(const std::vector<Image> &images, std::size_t columns, std::size_t margin) {
    const std::size_t rows = (images.size() + columns - 1) / columns;
    const std::size_t width = images.front().width;
    const std::size_t height = images.front().height;
    Image out(columns * (width + margin) + margin, rows * (height + margin) + margin, 24);
    for (std::size_t i = 0; i < images.size(); ++i) {
        const std::size_t left = margin + (i % columns) * (width + margin);
        const std::size_t top = margin + (i / columns) * (height + margin);
        for (std::size_t y = 0; y < height; ++y) {
            std::copy_n(images[i].at(0, y), width * 3, out.at(left, top + y));
        }
    }
    return out;
}

// Cuts bytes [count, size, size, 3], as libdiffusion's RGB8 format has them, into pictures.
inline std::vector<Image> split_rgb8(const std::vector<std::uint8_t> &bytes, std::size_t size) {
    std::vector<Image> images;
    const auto step = static_cast<std::ptrdiff_t>(size * size * 3);
    for (auto at = bytes.begin(); bytes.end() - at >= step; at += step) {
        images.emplace_back(size, size, std::vector<std::uint8_t>(at, at + step));
    }
    return images;
}

}  // namespace examples

#endif  // EXAMPLES_IMAGE_IO_HPP
