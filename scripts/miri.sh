#!/usr/bin/env bash
# Runs the crate's tests that need no libtorch under Miri, which sees what the hardware lets pass: reads of memory that nobody has
# written, accesses beside an allocation, data races, deadlocks. Threads are scheduled anew for each of so many seeds.
#
#   scripts/miri.sh SEEDS [TEST...]      default: the boundary, the handles, the engine on a process without tensors, noise, pixels
#
# Miri is part of nightly toolchains only; the pinned one is installed through rustup.
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=nightly-2026-05-20
seeds=$1
shift
[ $# -gt 0 ] || set -- capi:: engine::

if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
    command -v rustup >/dev/null || { echo "miri: needs rustup, which installs $toolchain" >&2; exit 1; }
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    rustup toolchain install "$toolchain" --profile minimal --component miri,rust-src --no-self-update >"$log" 2>&1 ||
        { tail -n 3 "$log" >&2; echo "miri: rustup could not install $toolchain: check the network" >&2; exit 1; }
fi

# getpid and the clock are the system's; the address of a handle is a number and was never a pointer.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance -Zmiri-many-seeds=0..$seeds"
echo "miri: $* with $seeds schedules each"
cargo "+$toolchain" miri test --locked --lib --target-dir target/miri -- "$@"
