// Compiled once for each instruction set, with KERNELS as its name: only what is in that namespace may be
// used here, since the linker keeps one of several inline functions of the same name, and it might be one for
// another processor.
#include "kernels.h"

#include "attention.h"
#include "gemm.h"
#include "norm.h"
#include "winograd.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

namespace diffusion {
namespace KERNELS {

extern const Kernels table;
const Kernels table = {TEXT(KERNELS), panel,           queries,    multiply, lift,
                       lower,         norm_statistics, norm_apply, attend,   silu_in_place};

}  // namespace KERNELS
}  // namespace diffusion
