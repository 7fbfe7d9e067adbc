#!/bin/sh
# Compiles src/torch/gpu.cpp against NVIDIA's own headers and against src/torch/cuda_names, and compares the objects:
# that a build needs no CUDA rests on their being the same. Also looks for every name that gpu.cpp asks dlsym for in
# the CUDA runtime that libtorch brings. Fetches 2 MB.
set -eu
cd "$(dirname "$0")/.."
work=.deps/cuda_headers
headers=$work/nvidia/cu13
if [ ! -f "$headers/include/crt/host_defines.h" ]; then
    mkdir -p "$work"
    python3 -m pip download --quiet --no-deps --dest "$work" nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88
    for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work"; done
fi
build=build/cuda_names
mkdir -p "$build"
compile() {
    ${CXX:-c++} -std=c++17 -O2 -fPIC -fvisibility=hidden -Isrc/torch -isystem "$1" -isystem "$LIBTORCH/include" \
        -isystem "$LIBTORCH/include/torch/csrc/api/include" -c src/torch/gpu.cpp -o "$2"
}
compile src/torch/cuda_names "$build/ours.o"
compile "$headers/include" "$build/nvidias.o"
cmp "$build/ours.o" "$build/nvidias.o"
found=0
for name in $(sed -n 's/.*find(library, "\(cuda[A-Za-z]*\)".*/\1/p' src/torch/gpu.cpp); do
    nm -D --defined-only "$headers/lib/libcudart.so.13" | grep -q " T $name@" || {
        echo "libcudart.so.13 has no $name" >&2
        exit 1
    }
    found=$((found + 1))
done
test "$found" -ge 10
echo "gpu.cpp is the same with NVIDIA's headers; $found functions found in libcudart.so.13"
