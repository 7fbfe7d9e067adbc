// How far a long run is: a progress bar (barkeep's) on a terminal, a plain line now and then in a log file.

#ifndef EXAMPLES_PROGRESS_HPP
#define EXAMPLES_PROGRESS_HPP

#include <barkeep/barkeep.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

namespace examples {

// 75 -> "1:15", 3675 -> "1:01:15"
inline std::string clock_text(double seconds) {
    const auto whole = static_cast<long long>(std::clamp(seconds, 0.0, 1e9));
    char text[32];
    if (whole >= 3600) {
        std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
    }
    return text;
}

class ProgressDisplay {
  public:
    // Counts from start (where a resumed run begins) to total, things called unit, e.g. "step".
    ProgressDisplay(const std::string &unit, std::uint64_t start, std::uint64_t total)
        : unit_(unit), start_(start), total_(total), done_(start) {
        if (isatty(STDERR_FILENO) != 0) {
            auto bar = barkeep::ProgressBar(&done_, {.out = &std::clog,
                                                     .total = total,
                                                     .message = unit,
                                                     .style = barkeep::Line,
                                                     .interval = 0.2,
                                                     .show = false});
            status_ = barkeep::Status(
                {.out = &std::clog, .style = barkeep::Strings{""}, .interval = 0.2, .show = false});
            display_ = barkeep::Composite({bar, status_});
            display_->show();
        }
    }
    ~ProgressDisplay() { finish(); }
    ProgressDisplay(const ProgressDisplay &) = delete;
    ProgressDisplay &operator=(const ProgressDisplay &) = delete;

    // figures: what else there is to say, e.g. "loss 0.0312".
    void update(std::uint64_t done, const std::string &figures) {
        done_ = done;
        const auto now = Clock::now();
        const auto since_line = std::chrono::duration<double>(now - last_line_).count();
        const bool first_or_last = done == start_ + 1 || done == total_;
        if (since_line < (display_ ? 0.2 : 10.0) && !first_or_last) {
            return;
        }
        last_line_ = now;
        std::string text = figures;
        const double seconds = std::chrono::duration<double>(now - started_).count();
        if (done > start_ && seconds > 0.5) {  // sooner a rate is only noise
            const double rate = static_cast<double>(done - start_) / seconds;
            const double left = static_cast<double>(total_ - std::min(done, total_)) / rate;
            char speed[32];
            std::snprintf(speed, sizeof speed, rate < 9.95 ? "%.1f/s" : "%.0f/s", rate);
            text += (text.empty() ? "" : "  ") + std::string(speed) + "  eta " + clock_text(left);
        }
        if (display_) {
            status_->message(text);
        } else {
            std::printf("%s %llu/%llu%s%s\n", unit_.c_str(), static_cast<unsigned long long>(done),
                        static_cast<unsigned long long>(total_), text.empty() ? "" : "  ", text.c_str());
            std::fflush(stdout);
        }
    }

    // What is being done instead of counting on.
    void busy_with(const std::string &what) {
        if (display_) {
            status_->message(what);
        }
    }

    // A line that stays.
    void note(const std::string &line) {
        if (display_) {
            std::clog << "\r\033[K" + line + "\n" << std::flush;
        } else {
            std::printf("%s\n", line.c_str());
            std::fflush(stdout);
        }
    }

    void finish() {
        if (display_) {
            display_->done();
            display_.reset();
        }
    }

  private:
    using Clock = std::chrono::steady_clock;

    std::string unit_;
    std::uint64_t start_;
    std::uint64_t total_;
    std::atomic<std::uint64_t> done_;
    Clock::time_point started_ = Clock::now();
    Clock::time_point last_line_{};
    std::shared_ptr<barkeep::StatusDisplay> status_;
    std::shared_ptr<barkeep::BaseDisplay> display_;
};

}  // namespace examples

#endif  // EXAMPLES_PROGRESS_HPP
