#!/usr/bin/env bash
# Runs the crate's tests that need no libtorch under the thread sanitizer: handles, queue, jobs and cancellation on real threads, where
# Miri has schedules of its own making. The standard library is built with the sanitizer too; libtorch is linked and not called.
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=$(scripts/ensure_nightly.sh)
target=x86_64-unknown-linux-gnu

export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread" CARGO_PROFILE_DEV_DEBUG=1 CARGO_PROFILE_DEV_OPT_LEVEL=1
export TSAN_OPTIONS="halt_on_error=1 exitcode=66"
test_lib() {
    cargo "+$toolchain" test -Zbuild-std --target "$target" --target-dir target/tsan --quiet --locked --lib "$@"
}
program=$(test_lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
# Not piped: grep -q would close nm's output.
symbols=$(nm "$program")
grep -q '__tsan_write8' <<<"$symbols" || { echo "tsan: the sanitizer is not linked into $program"; exit 1; }
for round in 1 2 3 4 5; do
    echo "tsan: round $round"
    test_lib -- engine:: capi::
done
