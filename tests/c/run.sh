#!/bin/sh
# Builds the C tests into build/tests and runs them against the library, each under a watchdog.
#
#   tests/c/run.sh [PROGRAM...]      from the repository's root; default: all of them
#
# CC and CXX choose the compilers, LIBDIR the folder of libdiffusion.so (build/lib), WATCHDOG the seconds after which
# a program counts as hung (1800: many times what a slow machine takes), DIFFUSION_TEST_DEVICE=cuda the device.
set -eu
# libgomp's threads spin at barriers: where other programs keep the cores busy, that makes tiny nets many times slower.
OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export OMP_WAIT_POLICY
cd "$(dirname "$0")/../.."
cc=${CC:-cc}
libdir=$(cd "${LIBDIR:-build/lib}" && pwd)
flags="-std=c99 -D_GNU_SOURCE -Wall -Wextra -pedantic -Werror -O1 -g -Iinclude -Itests/c"
programs=${*:-headers abi errors checkpoints hostile numerics training jobs dlopen}
mkdir -p build/tests
failed=
for program in $programs; do
    echo "tests/c: $program"
    case $program in
    headers)
        sh tests/c/headers.sh "$libdir/libdiffusion.so" || failed="$failed $program"
        continue
        ;;
    dlopen) # linked with nothing: it opens the library itself
        $cc $flags "tests/c/$program.c" -o "build/tests/$program" -ldl -lm -lpthread
        set -- "$libdir/libdiffusion.so"
        ;;
    *)
        $cc $flags "tests/c/$program.c" -o "build/tests/$program" "-L$libdir" -ldiffusion -lm -lpthread "-Wl,-rpath,$libdir"
        set --
        ;;
    esac
    code=0
    timeout -k 10 "${WATCHDOG:-1800}" "build/tests/$program" "$@" || code=$?
    if [ "$code" -ne 0 ]; then
        [ "$code" -ne 124 ] || echo "tests/c: $program hung: the last line above says where"
        echo "tests/c: $program: exit code $code"
        failed="$failed $program"
    fi
done
[ -z "$failed" ] || { echo "tests/c: failed:$failed"; exit 1; }
echo "tests/c: all passed"
