#!/usr/bin/env bash
# Fuzzes libdiffusion for a while: first every input that has once found something, then new ones, guided by coverage.
#
#   tests/fuzz/run.sh SECONDS [TARGET...]      targets: abi, checkpoint; each gets its share of the time
#
# From the repository's root, after `make build/fuzz/abi build/fuzz/checkpoint`. What is found lies in build/fuzz/found;
# `FUZZ_TRACE=1 build/fuzz/abi FILE` shows the calls of an input. New inputs that reach new code are kept in build/fuzz/corpus-*.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD # the targets work in a folder of their own
seconds=$1
shift
targets=("${@:-abi}")
[ $# -gt 0 ] || targets=(abi checkpoint)

# Checkpoints are written and read all the time: in memory where there is a place for that.
[ -d /dev/shm ] && [ -w /dev/shm ] && export TMPDIR=/dev/shm
TMPDIR=$(mktemp -d -t diffusion-fuzz.XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
. tests/sanitize/options.sh

for target in "${targets[@]}"; do
    corpus=$root/build/fuzz/corpus-$target
    mkdir -p "$corpus" build/fuzz/found
    # An input that takes a minute hangs: the usual one takes milliseconds.
    options=(-timeout=60 -rss_limit_mb=4096 -malloc_limit_mb=1024 -max_len=256 -len_control=0 -detect_leaks=0
        -print_final_stats=1 "-artifact_prefix=$root/build/fuzz/found/$target-")
    # A small file never asks for much memory.
    [ "$target" != checkpoint ] || options+=(-malloc_limit_mb=160)
    log=build/fuzz/$target.log
    echo "fuzz: $target: $(find "tests/fuzz/corpus/$target" -type f | wc -l) known inputs, then $((seconds / ${#targets[@]})) seconds"
    if ! build/fuzz/"$target" "${options[@]}" "-max_total_time=$((seconds / ${#targets[@]}))" \
        "$corpus" "$root/tests/fuzz/corpus/$target" >"$log" 2>&1; then
        grep -vE '^#[0-9]|NEW_FUNC' "$log" | tail -n 60
        echo "fuzz: $target: the input that found this lies in build/fuzz/found"
        exit 1
    fi
    grep -E '^stat::number_of_executed_units|^[0-9]+ calls|^ +[0-9]+  ' "$log"
done
