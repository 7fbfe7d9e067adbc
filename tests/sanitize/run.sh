#!/usr/bin/env bash
# The C and C++ test programs with the address and the undefined-behaviour sanitizer in them and in the library, memory leaks at
# their end included.
#
#   tests/sanitize/run.sh short    the proof that the sanitizers watch, and the programs that take seconds
#   tests/sanitize/run.sh long     all of them, and the same life of a process under valgrind
#
# From the repository's root, after `make build/sanitize/libdiffusion.so build/lib/libdiffusion.so`.
set -euo pipefail
cd "$(dirname "$0")/../.."
length=$1
. tests/sanitize/options.sh

flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# As they are, the tests know neither this library nor the sanitizers.
export CC="clang-19 $flags" CXX="clang++-19 $flags" LIBDIR=build/sanitize
mkdir -p build/tests
link=(-Iinclude -Lbuild/sanitize -ldiffusion "-Wl,-rpath,$PWD/build/sanitize")

echo "sanitize: that the sanitizers watch"
$CC -g -O1 -D_GNU_SOURCE -std=c99 tests/sanitize/proof.c "${link[@]}" -o build/tests/proof
symbols=$(nm build/tests/proof)
for symbol in __asan_init __ubsan_handle __lsan_do_leak_check; do
    grep -q " [TtW] $symbol" <<<"$symbols" || { echo "sanitize: $symbol is not linked in"; exit 1; }
done
build/tests/proof good
for mode in write:heap-buffer-overflow read:heap-buffer-overflow leak:LeakSanitizer; do
    if build/tests/proof "${mode%%:*}" >build/tests/proof.log 2>&1 || ! grep -q "${mode##*:}" build/tests/proof.log; then
        cat build/tests/proof.log
        echo "sanitize: proof ${mode%%:*} was not reported as ${mode##*:}"
        exit 1
    fi
done
echo "sanitize: linked in; a write and a read one float too far and a leak were reported, a whole life was not"

case $length in
short) tests/c/run.sh errors checkpoints ;;
long)
    tests/c/run.sh errors checkpoints numerics training jobs dlopen
    echo "sanitize: the C++ binding"
    $CXX -g -O1 -std=c++17 -Ibindings/cpp tests/cpp/test_binding.cpp "${link[@]}" -pthread -o build/tests/test_binding_sanitized
    build/tests/test_binding_sanitized
    tests/sanitize/valgrind.sh
    ;;
*) echo "sanitize: short or long?" && exit 2 ;;
esac
