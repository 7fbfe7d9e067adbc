#!/usr/bin/env bash
# Obtains the formatter that `make check` uses for C and C++, in one pinned version, since clang-format's output
# differs between versions: .venv/bin/clang-format of the checkout (.venv is ignored by git). pip's --target needs
# neither root nor the venv module, and the binary in the wheel needs no Python. Prints nothing when it is there.
set -euo pipefail

version=19.1.7
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/.venv/clang-format-$version
tool=$root/.venv/bin/clang-format

fail() {
    printf 'ensure_check_tools: %s\n' "$1" >&2
    exit 1
}

binary=$home/clang_format/data/bin/clang-format
if [ "$tool" -ef "$binary" ]; then
    exit 0
fi

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "no $python: install Python 3 with pip"
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "no pip for $python: install it (Debian, Ubuntu: apt install python3-pip)"

mkdir -p "$root/.venv/bin"
log=$root/.venv/clang-format.log
part=$home.part
rm -rf "$part" "$home"
if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$part" \
    "clang-format==$version" >"$log" 2>&1; then
    fail "pip could not install clang-format $version ($(grep -m1 '^ERROR' "$log" || tail -n1 "$log")): \
check the network and pip's settings and run this again"
fi
[ -x "$part/clang_format/data/bin/clang-format" ] || fail "clang-format $version has no binary for this platform"
mv "$part" "$home"
ln -sfn "../clang-format-$version/clang_format/data/bin/clang-format" "$tool"
rm -f "$log"
"$tool" --version >/dev/null || fail "$tool does not run on this machine"
