// What unwinds: exceptions that libtorch throws, exceptions that a host's callbacks throw, panics of the
// library's own.
//
// This program's operator new stands in for libstdc++'s, so that any allocation in libtorch can throw
// whatever is wanted; its clock_gettime stands in for libc's, where Rust's standard library panics if the
// clock cannot be read.
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "diffusion.h"

namespace {

int passed = 0, failed = 0;

void check(bool good, const std::string &what) {
    (good ? passed : failed)++;
    if (!good) {
        std::printf("test_exceptions: %s\n", what.c_str());
        std::fflush(stdout);
    }
}

void check_status(int32_t got, int32_t want, const std::string &what) {
    const std::string message = got == DIFFUSION_OK ? "" : diffusion_last_error_message();
    check(got == want, what + ": is \"" + diffusion_status_string(got) + "\", should be \"" +
                           diffusion_status_string(want) + "\"; message: " + message);
}

std::atomic<bool> throwing{false};
std::atomic<long> allocations{0}, throw_at{0}, thrown{0};
std::atomic<bool> others_clock_broken{false};
thread_local bool is_main = false, my_clock_broken = false;

}  // namespace

// The pair below is one: malloc and free on both sides.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void *operator new(std::size_t bytes) {
    if (throwing.load() && allocations.fetch_add(1) == throw_at.load()) {
        thrown.fetch_add(1);
        throw std::runtime_error("thrown for a test\nand a second line");
    }
    if (void *block = std::malloc(bytes != 0 ? bytes : 1)) return block;
    throw std::bad_alloc();
}

void operator delete(void *block) noexcept {
    std::free(block);
}

void operator delete(void *block, std::size_t) noexcept {
    std::free(block);
}

extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
    if (is_main ? my_clock_broken : others_clock_broken.load()) {
        errno = EINVAL;
        return -1;
    }
    return static_cast<int>(syscall(SYS_clock_gettime, clock, now));
}

namespace {

constexpr std::size_t kImage = 3 * 8 * 8;

diffusion_process *create() {
    diffusion_config config;
    diffusion_process *process = nullptr;
    check_status(diffusion_config_init(&config), DIFFUSION_OK, "diffusion_config_init");
    config.image_size = 8;
    config.hidden_dims_len = 2;
    config.hidden_dims[0] = 8;
    config.hidden_dims[1] = 16;
    config.hidden_dims[2] = 0;
    config.noise_steps = 50;
    config.device = DIFFUSION_DEVICE_CPU;
    config.num_threads = 1;
    if (diffusion_create(&config, &process) != DIFFUSION_OK) {
        std::printf("diffusion_create: %s\n", diffusion_last_error_message());
        std::exit(2);
    }
    return process;
}

// Each call is repeated while another of its allocations throws, until it has none left that could.
template <typename Call>
void throw_everywhere(const char *name, long step, Call call) {
    long points = 0, errors = 0;
    for (long at = 0;; at += step) {
        throw_at = at;
        allocations = 0;
        thrown = 0;
        throwing = true;
        const int32_t got = call();
        throwing = false;
        if (thrown == 0) {
            check_status(got, DIFFUSION_OK, std::string(name) + " with nothing thrown");
            break;
        }
        points++;
        if (got == DIFFUSION_OK) continue;  // libtorch caught it itself and went another way
        errors++;
        check_status(got, DIFFUSION_ERROR_TORCH,
                     std::string(name) + " with allocation " + std::to_string(at));
        check(std::strcmp(diffusion_last_error_message(), "libtorch: thrown for a test") == 0,
              std::string(name) + ": the message is " + diffusion_last_error_message());
    }
    check(errors > 0, std::string(name) + ": nothing thrown came through");
    std::printf("    %s: %ld exceptions thrown, %ld came through as TORCH\n", name, points, errors);
    std::fflush(stdout);
}

void test_exceptions_of_libtorch() {
    std::printf("  exceptions that libtorch throws\n");
    diffusion_process *process = create(), *twin = create();
    std::vector<float> image(kImage, 0.5F), out(kImage), noise(kImage), reference(kImage);
    int64_t timestep = 3;
    uint64_t steps = 0, taken = 0;
    check_status(diffusion_sample_ddim(process, 1, 3, 0, 1, reference.data(), kImage), DIFFUSION_OK,
                 "sample");
    throw_everywhere("add_noise", 1, [&] {
        return diffusion_add_noise(process, image.data(), kImage, &timestep, 1, 0, out.data(), kImage,
                                   noise.data(), kImage);
    });
    throw_everywhere("predict_noise", 1, [&] {
        return diffusion_predict_noise(process, image.data(), kImage, &timestep, 1, out.data(), kImage);
    });
    throw_everywhere("sample_ddim", 11,
                     [&] { return diffusion_sample_ddim(process, 1, 3, 0, 1, out.data(), kImage); });
    check(std::memcmp(out.data(), reference.data(), kImage * sizeof(float)) == 0,
          "the images are the same after it all");
    throw_everywhere("train_step", 101, [&] {
        const int32_t got = diffusion_train_step(process, image.data(), kImage, 1, nullptr);
        taken += got == DIFFUSION_OK;
        return got;
    });
    check_status(diffusion_get_step_count(process, &steps), DIFFUSION_OK, "diffusion_get_step_count");
    check(steps == taken,
          "the step count is " + std::to_string(steps) + ", should be " + std::to_string(taken));
    for (; taken > 0; taken--) {
        check_status(diffusion_train_step(twin, image.data(), kImage, 1, nullptr), DIFFUSION_OK,
                     "train_step");
    }
    check_status(diffusion_sample_ddim(process, 1, 3, 0, 1, out.data(), kImage), DIFFUSION_OK, "sample");
    check_status(diffusion_sample_ddim(twin, 1, 3, 0, 1, reference.data(), kImage), DIFFUSION_OK, "sample");
    check(std::memcmp(out.data(), reference.data(), kImage * sizeof(float)) == 0,
          "failed training steps have left a trace");
    diffusion_destroy(process);
    diffusion_destroy(twin);
}

int32_t throws_text(uint64_t, uint64_t, void *) {
    throw std::runtime_error("the host's own trouble\nin two lines");
}

int32_t throws_number(uint64_t, uint64_t, void *) {
    throw 7;
}

void log_throws(int32_t, const char *, void *calls) {
    ++*static_cast<int *>(calls);
    throw std::runtime_error("from the log");
}

void test_exceptions_of_callbacks() {
    std::printf("  exceptions that leave callbacks\n");
    diffusion_process *process = create();
    diffusion_sample_params params;
    std::vector<float> out(kImage);
    for (diffusion_progress_fn callback : {throws_text, throws_number}) {
        diffusion_job *job = nullptr;
        check_status(diffusion_sample_params_init(&params), DIFFUSION_OK, "diffusion_sample_params_init");
        params.num_samples = 1;
        params.steps = 20;
        params.progress = callback;
        check_status(diffusion_sample_with(process, &params, out.data(), kImage * sizeof(float)),
                     DIFFUSION_ERROR_CANCELLED, "sample_with and a callback that throws");
        const char *text = callback == throws_text ? "the host's own trouble" : "unknown C++ exception";
        check(std::strstr(diffusion_last_error_message(), text) != nullptr &&
                  std::strchr(diffusion_last_error_message(), '\n') == nullptr,
              std::string("the message is ") + diffusion_last_error_message());
        check_status(diffusion_sample_submit(process, &params, &job), DIFFUSION_OK, "submit");
        check_status(diffusion_job_wait(job, -1), DIFFUSION_ERROR_CANCELLED,
                     "wait and a callback that throws");
        check_status(diffusion_job_destroy(job), DIFFUSION_OK, "destroy");
    }
    params.progress = nullptr;
    check_status(diffusion_sample_with(process, &params, out.data(), kImage * sizeof(float)), DIFFUSION_OK,
                 "sample_with after all that");
    diffusion_destroy(process);

    diffusion_config config;
    int calls = 0;
    diffusion_config_init(&config);
    config.image_size = 8;
    config.hidden_dims_len = 1;
    config.device = DIFFUSION_DEVICE_CPU;
    config.beta_schedule = DIFFUSION_SCHEDULE_LINEAR;
    config.beta_end = 0.02;
    config.noise_steps = 50;  // leaves some of the image, and the log says so
    check_status(diffusion_create(&config, &process), DIFFUSION_OK, "create");
    check_status(diffusion_set_log_callback(process, log_throws, &calls), DIFFUSION_OK,
                 "a log callback that throws");
    check(calls > 0, "the log callback was not called");
    check_status(diffusion_sample_ddim(process, 1, 2, 0, 0, out.data(), kImage), DIFFUSION_OK,
                 "sample after it");
    diffusion_destroy(process);
}

void test_panics() {
    std::printf("  panics of the library\n");
    diffusion_process *process = create();
    diffusion_sample_params params;
    diffusion_job *job = nullptr;
    std::vector<float> out(kImage);
    diffusion_sample_params_init(&params);
    params.num_samples = 1;
    params.timeout_ms = 1000000;
    // In the caller's thread.
    my_clock_broken = true;
    const int32_t got = diffusion_sample_with(process, &params, out.data(), kImage * sizeof(float));
    my_clock_broken = false;
    check_status(got, DIFFUSION_ERROR_INTERNAL, "a panic in the caller's thread");
    const std::string message = diffusion_last_error_message();
    check(message.rfind("internal error: ", 0) == 0 && message.find(" (at ") != std::string::npos &&
              message.find(".rs:") != std::string::npos,
          "a panic's message has its text and place: " + message);
    std::printf("    %s\n", message.c_str());
    check_status(diffusion_sample_with(process, &params, out.data(), kImage * sizeof(float)), DIFFUSION_OK,
                 "the call after a panic");
    // In the process's own thread, between two steps: the process is over, and nobody waits for it for ever.
    int32_t state = DIFFUSION_JOB_QUEUED;
    params.num_samples = 20000;
    params.steps = 50;
    check_status(diffusion_sample_submit(process, &params, &job), DIFFUSION_OK, "submit");
    others_clock_broken = true;
    while (state == DIFFUSION_JOB_QUEUED || state == DIFFUSION_JOB_RUNNING) {
        check_status(diffusion_job_poll(job, &state), DIFFUSION_OK, "poll");
        usleep(1000);
    }
    others_clock_broken = false;
    check_status(diffusion_job_wait(job, -1), DIFFUSION_ERROR_CANCELLED,
                 "the job of a process that panicked");
    check_status(diffusion_sample_ddim(process, 1, 2, 0, 0, out.data(), kImage), DIFFUSION_ERROR_CANCELLED,
                 "a call of a process that panicked");
    check_status(diffusion_job_destroy(job), DIFFUSION_OK, "destroy its job");
    check_status(diffusion_destroy(process), DIFFUSION_OK, "destroy it");
    process = create();
    check_status(diffusion_sample_ddim(process, 1, 2, 0, 0, out.data(), kImage), DIFFUSION_OK,
                 "another one works");
    diffusion_destroy(process);
}

}  // namespace

int main() {
    alarm(600);
    is_main = true;
    test_exceptions_of_callbacks();
    test_panics();
    test_exceptions_of_libtorch();
    std::printf("test_exceptions: %d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
