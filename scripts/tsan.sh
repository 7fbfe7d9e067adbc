#!/usr/bin/env bash
# Runs the crate's tests that need no libtorch under the thread sanitizer: handles, queue, jobs and cancellation on real threads, where
# Miri has schedules of its own making. The standard library is built with the sanitizer too; libtorch is linked and not called.
#
#   scripts/tsan.sh ROUNDS
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=$(scripts/ensure_nightly.sh)
target=x86_64-unknown-linux-gnu
rounds=$1

export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread" CARGO_PROFILE_DEV_DEBUG=1 CARGO_PROFILE_DEV_OPT_LEVEL=1
export TSAN_OPTIONS="halt_on_error=1 exitcode=66"

echo "tsan: a race made on purpose"
mkdir -p build/tests
rustc "+$toolchain" --edition 2021 -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer tests/sanitize/race.rs -o build/tests/race
if build/tests/race >build/tests/race.log 2>&1 || ! grep -q "data race" build/tests/race.log; then
    cat build/tests/race.log
    echo "tsan: it was not reported"
    exit 1
fi
program=$(cargo "+$toolchain" test -Zbuild-std --target "$target" --target-dir target/tsan --quiet --locked --lib --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
# Not piped: grep -q would close nm's output.
symbols=$(nm "$program")
grep -q __tsan_write8 <<<"$symbols" || { echo "tsan: the sanitizer is not linked into $program"; exit 1; }
echo "tsan: the engine and the boundary, $rounds rounds"
for ((round = 0; round < rounds; round++)); do
    "$program" --quiet engine:: capi:: >build/tests/tsan.log 2>&1 || { cat build/tests/tsan.log; exit 1; }
done
tail -n 2 build/tests/tsan.log
