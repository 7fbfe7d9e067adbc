// Which of the compiled sets of kernels this processor runs.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace diffusion {

namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace portable {
extern const Kernels table;
}

namespace {

InstructionSet choose() {
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw");
    const char *asked = std::getenv("DIFFUSION_KERNELS");
    const auto wanted = [&](const char *name) { return asked == nullptr || std::strcmp(asked, name) == 0; };
    if (has_avx512 && wanted("avx512")) return InstructionSet::Avx512;
    if (has_avx2 && (asked == nullptr || !wanted("portable"))) return InstructionSet::Avx2;
    return InstructionSet::Portable;
}

}  // namespace

InstructionSet instruction_set() {
    static const InstructionSet chosen = choose();
    return chosen;
}

const Kernels &kernels() {
    switch (instruction_set()) {
        case InstructionSet::Avx512:
            return avx512::table;
        case InstructionSet::Avx2:
            return avx2::table;
        case InstructionSet::Portable:
            break;
    }
    return portable::table;
}

size_t attention_scratch(const Kernels &kernels, int tokens, int head_dim) {
    return 2 * static_cast<size_t>(tokens) * head_dim +
           (static_cast<size_t>(tokens) + 2 * head_dim) * kernels.queries;
}

const LiftingShape &lifting_shape(Lifting lifting) {
    // A row for each point p: (1, p, p^2) over the product of p's distances to the other points; infinity:
    // (0, 0, 1).
    constexpr double a = 0.70710678118654752440, b = 1.41421356237309504880;
    static const LiftingShape f4 = {6,
                                    4,
                                    {{1, 0, 0},
                                     {1 / -1.5, a / -1.5, 0.5 / -1.5},
                                     {1 / -1.5, -a / -1.5, 0.5 / -1.5},
                                     {1 / 6.0, b / 6, 2 / 6.0},
                                     {1 / 6.0, -b / 6, 2 / 6.0},
                                     {0, 0, 1}}};
    static const LiftingShape f2 = {4, 2, {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}}};
    static const LiftingShape doubled = {3, 2, {{1, 0, 0}, {1, 1, 1}, {0, 0, 1}}};
    switch (lifting) {
        case Lifting::F4:
            return f4;
        case Lifting::F2:
            return f2;
        default:
            return doubled;
    }
}

}  // namespace diffusion
