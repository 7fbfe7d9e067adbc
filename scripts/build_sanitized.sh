#!/usr/bin/env bash
# Builds libdiffusion.so instrumented into a folder: the Rust code and the C++ behind it under the address sanitizer, the
# C++ under the undefined-behaviour sanitizer too, and the Rust code with libFuzzer's coverage counters. What links it must be
# linked with clang's -fsanitize=address,undefined.
#
#   scripts/build_sanitized.sh FOLDER
#
# Instrumenting Rust is a -Z option; RUSTC_BOOTSTRAP with the crate's name lets the stable compiler take it for this one crate.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
scripts/ensure_clang.sh

flags=(-Zsanitizer=address -Cforce-frame-pointers=yes -Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
RUSTC_BOOTSTRAP=diffusion DIFFUSION_SANITIZE=address,undefined \
    cargo rustc --profile sanitize --locked --lib --crate-type cdylib -- "${flags[@]}"

# That they are in: calls of the sanitizers from both languages, and the counters.
library=target/sanitize/libdiffusion.so
symbols=$(nm "$library")
for symbol in __asan_report_load4 __ubsan_handle __sanitizer_cov_8bit_counters_init; do
    grep -q " U $symbol" <<<"$symbols" || { echo "build_sanitized: $library has no $symbol" >&2; exit 1; }
done
mkdir -p "$folder"
cp "$library" "$folder/libdiffusion.so.0"
ln -sf libdiffusion.so.0 "$folder/libdiffusion.so"
