#!/usr/bin/env bash
# Runs the crate's tests that need no libtorch under Miri, which sees what the hardware lets pass: reads of memory that nobody has
# written, accesses beside an allocation, data races, deadlocks. The boundary and the handles once; the engine, on a process without tensors,
# under as many schedules as there are seeds.
#
#   scripts/miri.sh SEEDS
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=$(scripts/ensure_nightly.sh)
seeds=$1

# torch-sys's C++ is compiled and never run.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_OPT_LEVEL=0
# getpid and the clock are the system's; a handle is a number and was never a pointer.
base="-Zmiri-disable-isolation -Zmiri-strict-provenance"
run() { cargo "+$toolchain" miri test --quiet --locked --lib --target-dir target/miri -- "$1"; }
echo "miri: the boundary and the handles"
MIRIFLAGS=$base run capi::
echo "miri: the engine, $seeds schedules"
MIRIFLAGS="$base -Zmiri-many-seeds=0..$seeds" run engine::
