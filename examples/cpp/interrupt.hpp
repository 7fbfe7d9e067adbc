// Ctrl-C for the examples: the first asks the program to stop where it can save its work, the second ends it
// at once.

#ifndef EXAMPLES_INTERRUPT_HPP
#define EXAMPLES_INTERRUPT_HPP

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace examples {

inline std::atomic<int> interrupt_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "the signal handler may only use lock-free atomics");

// Whether SIGINT or SIGTERM has arrived.
inline bool interrupted() {
    return interrupt_signal.load() != 0;
}

// What a shell expects of a program that a signal ended: 130 for Ctrl-C.
inline int interrupt_exit_code() {
    return 128 + interrupt_signal.load();
}

extern "C" inline void examples_on_signal(int signal) {
    if (interrupt_signal.exchange(signal) != 0) {
        _exit(128 + signal);
    }
}

inline void catch_interrupts() {
    struct sigaction action{};
    action.sa_handler = examples_on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

}  // namespace examples

#endif  // EXAMPLES_INTERRUPT_HPP
