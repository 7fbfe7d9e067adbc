#!/usr/bin/env bash
# Sees to the pinned nightly toolchain with Miri and the standard library's source, and prints its name: Miri and the thread sanitizer
# are parts of nightly toolchains only.
set -euo pipefail
toolchain=nightly-2026-05-20

if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
    command -v rustup >/dev/null || { echo "ensure_nightly: needs rustup, which installs $toolchain" >&2; exit 1; }
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    rustup toolchain install "$toolchain" --profile minimal --component miri,rust-src --no-self-update >"$log" 2>&1 ||
        { tail -n 3 "$log" >&2; echo "ensure_nightly: rustup could not install $toolchain: check the network" >&2; exit 1; }
fi
echo "$toolchain"
