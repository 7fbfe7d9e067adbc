#!/usr/bin/env bash
# Sees to what the fuzz targets and the instrumented builds need and a machine may lack: clang 19 with its sanitizers and libFuzzer,
# and valgrind where it is named. On Debian and Ubuntu they are installed, which needs root.
#
#   scripts/ensure_clang.sh [valgrind]
#
# Prints nothing when they are there. The version is pinned: sanitizers and libFuzzer are part of it.
set -euo pipefail

fail() {
    printf 'ensure_clang: %s\n' "$1" >&2
    exit 1
}

# A compiler without its runtime libraries is of no use.
has_clang() {
    command -v clang++-19 >/dev/null && [ -e "$(clang++-19 -print-file-name=libclang_rt.fuzzer-x86_64.a)" ]
}
has_valgrind() { command -v valgrind >/dev/null; }

packages=()
has_clang || packages+=(clang-19 libclang-rt-19-dev llvm-19)
[ "${1:-}" != valgrind ] || has_valgrind || packages+=(valgrind)
[ ${#packages[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || fail "missing: install ${packages[*]}"
[ "$(id -u)" -eq 0 ] || fail "missing: apt install ${packages[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
install_them() { apt-get -q -y --no-install-recommends install "${packages[@]}" >>"$log" 2>&1; }
if ! install_them; then
    apt-get -q update >>"$log" 2>&1 || true # no package lists on this machine, or old ones
    install_them ||
        fail "apt-get could not install ${packages[*]} ($(grep -m1 '^E:' "$log" || tail -n1 "$log")): check the network"
fi
has_clang || fail "clang-19 is installed and has no sanitizers"
