// Draws a training run's loss over its steps: raw and smoothed, on a logarithmic axis. A few dozen glyphs of
// a 5x7 font are enough for the labels, so the examples need no plotting library.

#ifndef EXAMPLES_PLOT_HPP
#define EXAMPLES_PLOT_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "image_io.hpp"

namespace examples {

struct LossPoint {
    std::uint64_t step = 0;
    float loss = 0;
};

namespace plot {

using Colour = std::array<std::uint8_t, 3>;
using Glyph = std::array<const char *, 7>;

inline const std::map<char, Glyph> glyphs{
    {'0', {" ### ", "#   #", "#  ##", "# # #", "##  #", "#   #", " ### "}},
    {'1', {"  #  ", " ##  ", "  #  ", "  #  ", "  #  ", "  #  ", " ### "}},
    {'2', {" ### ", "#   #", "    #", "  ## ", " #   ", "#    ", "#####"}},
    {'3', {" ### ", "#   #", "    #", "  ## ", "    #", "#   #", " ### "}},
    {'4', {"   # ", "  ## ", " # # ", "#  # ", "#####", "   # ", "   # "}},
    {'5', {"#####", "#    ", "#### ", "    #", "    #", "#   #", " ### "}},
    {'6', {"  ## ", " #   ", "#    ", "#### ", "#   #", "#   #", " ### "}},
    {'7', {"#####", "    #", "   # ", "  #  ", "  #  ", "  #  ", "  #  "}},
    {'8', {" ### ", "#   #", "#   #", " ### ", "#   #", "#   #", " ### "}},
    {'9', {" ### ", "#   #", "#   #", " ####", "    #", "   # ", " ##  "}},
    {'.', {"     ", "     ", "     ", "     ", "     ", " ##  ", " ##  "}},
    {'-', {"     ", "     ", "     ", "#####", "     ", "     ", "     "}},
    {'+', {"     ", "  #  ", "  #  ", "#####", "  #  ", "  #  ", "     "}},
    {'k', {"#    ", "#    ", "#  # ", "# #  ", "##   ", "# #  ", "#  # "}},
    {'M', {"#   #", "## ##", "# # #", "# # #", "#   #", "#   #", "#   #"}},
    {'a', {"     ", "     ", " ### ", "    #", " ####", "#   #", " ####"}},
    {'d', {"    #", "    #", " ####", "#   #", "#   #", "#   #", " ####"}},
    {'e', {"     ", "     ", " ### ", "#   #", "#####", "#    ", " ### "}},
    {'h', {"#    ", "#    ", "# ## ", "##  #", "#   #", "#   #", "#   #"}},
    {'l', {" ##  ", "  #  ", "  #  ", "  #  ", "  #  ", "  #  ", " ### "}},
    {'m', {"     ", "     ", "## # ", "# # #", "# # #", "# # #", "# # #"}},
    {'o', {"     ", "     ", " ### ", "#   #", "#   #", "#   #", " ### "}},
    {'p', {"     ", "#### ", "#   #", "#   #", "#### ", "#    ", "#    "}},
    {'r', {"     ", "     ", "# ## ", "##  #", "#    ", "#    ", "#    "}},
    {'s', {"     ", "     ", " ####", "#    ", " ### ", "    #", "#### "}},
    {'t', {" #   ", " #   ", "###  ", " #   ", " #   ", " #  #", "  ## "}},
    {'w', {"     ", "     ", "#   #", "#   #", "# # #", "# # #", " # # "}},
};

constexpr int glyph_advance = 6, font_scale = 2;

inline int text_width(const std::string &text) {
    return (static_cast<int>(text.size()) * glyph_advance - 1) * font_scale;
}
constexpr int text_height = 7 * font_scale;

inline void dot(Image &image, int x, int y, const Colour &colour) {
    if (x >= 0 && y >= 0 && x < static_cast<int>(image.width) && y < static_cast<int>(image.height)) {
        std::copy(colour.begin(), colour.end(),
                  image.at(static_cast<std::size_t>(x), static_cast<std::size_t>(y)));
    }
}

inline void box(Image &image, int left, int top, int width, int height, const Colour &colour) {
    for (int y = top; y < top + height; ++y) {
        for (int x = left; x < left + width; ++x) {
            dot(image, x, y, colour);
        }
    }
}

inline void text(Image &image, int left, int top, const std::string &line, const Colour &colour) {
    for (const char c : line) {
        const auto glyph = glyphs.find(c);
        for (int y = 0; glyph != glyphs.end() && y < 7; ++y) {
            for (int x = 0; x < 5; ++x) {
                if (glyph->second[static_cast<std::size_t>(y)][x] == '#') {
                    box(image, left + x * font_scale, top + y * font_scale, font_scale, font_scale, colour);
                }
            }
        }
        left += glyph_advance * font_scale;
    }
}

// A line of so many pixels' width, drawn as squares at each pixel of its longer direction.
inline void line(Image &image, double x0, double y0, double x1, double y1, int width, const Colour &colour) {
    const int count =
        std::max(1, static_cast<int>(std::ceil(std::max(std::abs(x1 - x0), std::abs(y1 - y0)))));
    for (int i = 0; i <= count; ++i) {
        const double along = static_cast<double>(i) / count;
        box(image, static_cast<int>(std::lround(x0 + along * (x1 - x0))) - width / 2,
            static_cast<int>(std::lround(y0 + along * (y1 - y0))) - width / 2, width, width, colour);
    }
}

// The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is at least so much.
inline double nice_step(double at_least) {
    const double power = std::pow(10.0, std::floor(std::log10(at_least)));
    for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor * power >= at_least * 0.999) {
            return factor * power;
        }
    }
    return 10 * power;
}

// Round values in lo..hi: powers of ten with 2 and 5 between them, or an even spacing in a small range.
inline std::vector<double> log_ticks(double lo, double hi) {
    std::vector<double> ticks;
    if (hi / lo < 5) {
        const double step = nice_step((hi - lo) / 5);
        for (double i = std::ceil(lo / step); i * step <= hi; ++i) {
            ticks.push_back(i * step);
        }
        return ticks;
    }
    const bool decades_only = hi / lo > 3000;
    for (double power = std::pow(10.0, std::floor(std::log10(lo))); power <= hi; power *= 10) {
        for (const double factor : {1.0, 2.0, 5.0}) {
            const double value = factor * power;
            if (value >= lo && value <= hi && (factor == 1.0 || !decades_only)) {
                ticks.push_back(value);
            }
        }
    }
    return ticks;
}

inline std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
}

// 1500 -> "1.5k"
inline std::string step_number(double step) {
    return step >= 1e6 ? number(step / 1e6) + "M" : step >= 1e3 ? number(step / 1e3) + "k" : number(step);
}

// An exponential moving average that starts unbiased (as Adam's), over about a fiftieth of the run.
inline std::vector<LossPoint> smoothed(const std::vector<LossPoint> &points) {
    const double window = std::clamp(static_cast<double>(points.size()) / 50, 5.0, 1000.0);
    const double decay = 1 - 1 / window;
    std::vector<LossPoint> out;
    out.reserve(points.size());
    double average = 0, weight = 0;
    for (const LossPoint &point : points) {
        average = decay * average + (1 - decay) * static_cast<double>(point.loss);
        weight = decay * weight + (1 - decay);
        out.push_back({point.step, static_cast<float>(average / weight)});
    }
    return out;
}

}  // namespace plot

// Losses that are not finite and positive are left out. 960x540 pixels.
inline Image plot_loss(const std::vector<LossPoint> &all_points) {
    using namespace plot;
    const Colour black{30, 30, 30}, gray{225, 225, 225}, pale{165, 195, 230}, strong{200, 60, 20};
    constexpr int width = 960, height = 540, left = 110, right = 930, top = 50, bottom = 470;
    Image image(width, height, 255);
    std::vector<LossPoint> points;
    std::copy_if(all_points.begin(), all_points.end(), std::back_inserter(points),
                 [](const LossPoint &point) { return std::isfinite(point.loss) && point.loss > 0; });

    double lo = 1, hi = 0, last_step = 1;
    for (const LossPoint &point : points) {
        lo = hi == 0 ? static_cast<double>(point.loss) : std::min(lo, static_cast<double>(point.loss));
        hi = std::max(hi, static_cast<double>(point.loss));
        last_step = std::max(last_step, static_cast<double>(point.step));
    }
    if (points.empty()) {
        lo = 0.1, hi = 1;
    }
    const double margin = std::max(1.05, std::pow(hi / lo, 0.04));
    lo /= margin, hi *= margin;
    const auto x_of = [&](double step) { return left + (right - left) * step / last_step; };
    const auto y_of = [&](double loss) {
        return bottom - (bottom - top) * std::log(loss / lo) / std::log(hi / lo);
    };

    for (const double tick : log_ticks(lo, hi)) {
        const int y = static_cast<int>(std::lround(y_of(tick)));
        box(image, left, y, right - left, 1, gray);
        text(image, left - 10 - text_width(number(tick)), y - text_height / 2, number(tick), black);
    }
    const double x_step = std::max(1.0, nice_step(last_step / 8));
    for (double step = 0; step <= last_step; step += x_step) {
        const int x = static_cast<int>(std::lround(x_of(step)));
        box(image, x, top, 1, bottom - top, gray);
        text(image, x - text_width(step_number(step)) / 2, bottom + 12, step_number(step), black);
    }

    const auto curve = [&](const std::vector<LossPoint> &of, int thickness, const Colour &colour) {
        for (std::size_t i = 0; i < of.size(); ++i) {
            const LossPoint &from = of[i == 0 ? 0 : i - 1], &to = of[i];
            line(image, x_of(static_cast<double>(from.step)), y_of(static_cast<double>(from.loss)),
                 x_of(static_cast<double>(to.step)), y_of(static_cast<double>(to.loss)), thickness, colour);
        }
    };
    curve(points, 1, pale);
    curve(smoothed(points), 3, strong);

    box(image, left, top, 2, bottom - top, black);
    box(image, left, bottom, right - left, 2, black);
    text(image, (left + right - text_width("step")) / 2, bottom + 40, "step", black);
    text(image, 20, 20, "loss", black);
    box(image, right - 240, 24, 24, 3, strong);
    text(image, right - 208, 18, "smoothed", strong);
    box(image, right - 90, 24, 24, 3, pale);
    text(image, right - 58, 18, "raw", black);
    return image;
}

}  // namespace examples

#endif  // EXAMPLES_PLOT_HPP
