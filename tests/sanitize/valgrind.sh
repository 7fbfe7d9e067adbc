#!/usr/bin/env bash
# A process's life under valgrind, which watches libtorch's memory and ours alike: no invalid access, nothing lost at the end.
# The library is the one that users get; the processor's vector instructions that this valgrind does not know are switched off.
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts/ensure_clang.sh valgrind
mkdir -p build/tests
cc -g -O1 -D_GNU_SOURCE -std=c99 tests/sanitize/proof.c -Iinclude -Lbuild/lib -ldiffusion "-Wl,-rpath,$PWD/build/lib" \
    -o build/tests/proof_valgrind
export DIFFUSION_KERNELS=portable ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
run() {
    valgrind --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite,indirect "$@"
}
echo "valgrind: create, train, sample, save, load, destroy"
run build/tests/proof_valgrind good
if run build/tests/proof_valgrind leak >build/tests/valgrind.log 2>&1; then
    cat build/tests/valgrind.log
    echo "valgrind: a leak made on purpose was not reported"
    exit 1
fi
echo "valgrind: nothing lost; a leak made on purpose was reported"
