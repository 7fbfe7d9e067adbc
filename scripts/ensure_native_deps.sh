#!/usr/bin/env bash
# Sees to the libraries that the C++ examples use: libpng, CLI11 (arguments) and barkeep (progress bars).
# Writes .deps/flags.mk for the Makefile: NATIVE_CXXFLAGS, NATIVE_LDFLAGS, NATIVE_LDLIBS.
#
# What the system has is used. What it lacks is laid out under .deps/ (ignored by git), without root:
#   libpng, CLI11   Debian packages, `apt-get download` and `dpkg-deb -x`; elsewhere one line names what to install
#   barkeep         one C++20 header out of its source distribution, found through pip and pinned by sha256, since
#                   no distribution packages it. (indicators, the better known one, is in neither Debian nor Ubuntu.)
#
# Prints nothing when everything is there. `--fresh` looks again, for instance after a package was installed.
set -euo pipefail

barkeep=barkeep-0.1.6
barkeep_sha256=2d742d1608861a39040ebddf645fcc7c948f8429651e850b31942ac54b9f1eb7

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
deps=$checkout/.deps
flags=$deps/flags.mk
cxx=${CXX:-c++}
python=${PYTHON:-python3}

fail() {
    printf 'ensure_native_deps: %s\n' "$1" >&2
    exit 1
}

# A finished flags.mk lists the headers that it was written for: nothing to do while they exist.
up_to_date() {
    local word file count=0
    [ -f "$flags" ] || return 1
    while read -r word file; do
        [ "$word" = '#needs' ] || continue
        [ -e "$file" ] || return 1
        count=$((count + 1))
    done <"$flags"
    [ "$count" -eq 3 ]
}

if [ "${1:-}" != --fresh ] && up_to_date; then
    exit 0
fi

# shellcheck disable=SC2086  # CXX may hold arguments
${cxx} --version >/dev/null 2>&1 || fail "no C++ compiler ($cxx): install one (Debian, Ubuntu: apt install g++), or set CXX"
mkdir -p "$deps"
exec 9>"$deps/lock"
if command -v flock >/dev/null; then
    flock 9
fi
if [ "${1:-}" != --fresh ] && up_to_date; then
    exit 0
fi
work=$(mktemp -d "$deps/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
rm -f "$flags"

include_flags=() link_flags=() # as the compiler gets them here
use_extracted=no

# probe NAME HEADER BODY FLAGS...: the header's path on stdout if a program with it compiles (and links, where no
# flag says otherwise)
probe() {
    local name=$1 header=$2 body=$3
    shift 3
    printf '#include <%s>\nint main() { %s }\n' "$header" "$body" >"$work/$name.cpp"
    # shellcheck disable=SC2086
    ${cxx} -std=c++20 -MD -MF "$work/$name.d" "${include_flags[@]}" "$work/$name.cpp" -o "$work/$name" \
        "${link_flags[@]}" "$@" >"$work/$name.log" 2>&1 || return 1
    tr -d '\\' <"$work/$name.d" | tr ' ' '\n' | awk -v end="/$header" \
        '!found && substr($0, length($0) - length(end) + 1) == end { print; found = 1 } END { exit !found }'
}
png_cflags=() png_libs=(-lpng)
if command -v pkg-config >/dev/null && pkg-config --exists libpng 2>/dev/null; then
    read -ra png_cflags <<<"$(pkg-config --cflags libpng)"
    read -ra png_libs <<<"$(pkg-config --libs libpng)"
fi
include_flags=("${png_cflags[@]}")
probe_png() { probe png png.h 'return png_access_version_number() == 0;' "${png_libs[@]}"; }
probe_cli11() { probe cli11 CLI/CLI.hpp 'CLI::App app{"probe"}; return app.count_all() != 1;' -fsyntax-only; }
probe_barkeep() { probe barkeep barkeep/barkeep.h 'int n = 0; auto bar = barkeep::ProgressBar(&n, {.total = 1, .show = false});' -fsyntax-only; }

# Debian's packages, below .deps/root

apt() {
    local tool=$1
    shift
    "$tool" -q "${apt_options[@]}" "$@"
}
apt_options=(-o "Dir::Cache=$deps/apt/cache" -o Acquire::Languages=none -o Debug::NoLocking=1 -o APT::Sandbox::User=)
private_lists=(-o "Dir::State::lists=$deps/apt/lists")

# plan PACKAGE...: these, and what of their dependencies is not installed here, for apt-get download
plan() {
    apt apt-get --simulate --no-install-recommends install "$@" >"$work/plan" 2>>"$work/apt.log" || return 1
    { printf '%s\n' "$@" && awk '$1 == "Inst" { print $2 }' "$work/plan"; } | sort -u
}

extract_packages() {
    local root=$deps/root packages
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "install the development files of libpng and CLI11 and run this again (Debian, Ubuntu: libpng-dev libcli11-dev; Fedora: libpng-devel cli11-devel; Arch: libpng cli11)"
    mkdir -p "$deps/apt/cache/archives/partial" "$deps/apt/lists/partial" "$work/debs"
    printf 'fetching %s into .deps\n' "$*"
    packages=$(plan "$@" || true)
    if [ -z "$packages" ] || ! download $packages; then
        apt_options+=("${private_lists[@]}") # no package lists on this machine, or old ones
        apt apt-get update >>"$work/apt.log" 2>&1 || true
        packages=$(plan "$@" || true)
        if [ -z "$packages" ] || ! download $packages; then
            fail "apt-get could not download $* ($(tail -n1 "$work/apt.log" | tr -s ' \n' ' ' | cut -c1-150)): check the network, or apt install $*, and run this again"
        fi
    fi
    local deb
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$root" || fail "cannot unpack $(basename "$deb") into .deps: is the disk full?"
    done
    # -dev packages may link to the run-time library by its absolute path, which is elsewhere here
    local link target
    find "$root" -type l -lname '/*' | while read -r link; do
        target=$root$(readlink "$link")
        if [ -e "$target" ]; then
            ln -sfn "$target" "$link"
        fi
    done
    rm -rf "$deps/apt"
}

download() {
    (cd "$work/debs" && rm -f ./*.deb && apt apt-get download "$@" >>"$work/apt.log" 2>&1)
}

# The compiler's view of .deps/root, once it exists
triplet=$(${cxx} -print-multiarch 2>/dev/null || true)
see_extracted() {
    use_extracted=yes
    include_flags+=(-isystem "$deps/root/usr/include")
    link_flags+=("-L$deps/root/usr/lib${triplet:+/$triplet}" "-Wl,-rpath,$deps/root/usr/lib${triplet:+/$triplet}")
}

# barkeep's header, below .deps/include

fetch_barkeep() {
    command -v "$python" >/dev/null || fail "no $python: install Python 3 with pip, which fetches barkeep's header"
    "$python" - "$here" "$work" "$barkeep" "$barkeep_sha256" <<'EOF'
import hashlib, os, sys, tarfile

scripts, work, name, sha256 = sys.argv[1:]
sys.dont_write_bytecode = True
sys.path.insert(0, scripts)
import fetch_libtorch as fetch

archive = name + ".tar.gz"
path = os.path.join(work, archive)
try:
    address = fetch.address_from_pip(fetch.pip_command(), archive)
    if address is None:
        raise fetch.Failure("this pip cannot name the address of %s: upgrade pip" % archive)
    fetch.Remote(address, work, archive).fetch_whole(path)
    with open(path, "rb") as f:
        if hashlib.sha256(f.read()).hexdigest() != sha256:
            raise fetch.Failure("%s from pip's index is not the pinned file: run this again, or use another index" % archive)
    with tarfile.open(path) as tar:
        for member in ("barkeep/barkeep.h", "LICENSE"):
            with open(os.path.join(work, os.path.basename(member)), "wb") as out:
                out.write(tar.extractfile(name + "/" + member).read())
except (fetch.Failure, fetch.AccessRefused, OSError) as e:
    text = " ".join(str(e).split()).replace("or set LIBTORCH to an unpacked libtorch " + fetch.VERSION, "").rstrip(" ,;")
    sys.exit("ensure_native_deps: barkeep: %s" % text)
EOF
    mkdir -p "$deps/include/barkeep"
    mv "$work/LICENSE" "$deps/include/barkeep/LICENSE"
    mv "$work/barkeep.h" "$deps/include/barkeep/barkeep.h"
}

if [ -d "$deps/root/usr" ]; then
    see_extracted
fi
missing=()
png=$(probe_png) || missing+=(libpng-dev)
cli11=$(probe_cli11) || missing+=(libcli11-dev)
if [ ${#missing[@]} -gt 0 ]; then
    extract_packages "${missing[@]}"
    if [ $use_extracted = no ]; then
        see_extracted
    fi
    png=$(probe_png) || fail "libpng does not compile and link with $cxx: apt install libpng-dev and run this again ($(tail -n1 "$work/png.log"))"
    cli11=$(probe_cli11) || fail "CLI11 does not compile with $cxx: apt install libcli11-dev and run this again ($(tail -n1 "$work/cli11.log"))"
fi
include_flags+=(-isystem "$deps/include")
if ! bar=$(probe_barkeep); then
    fetch_barkeep
    bar=$(probe_barkeep) || fail "barkeep needs C++20, which $cxx does not compile (GCC 11 or Clang 13 do): set CXX ($(grep -m1 error "$work/barkeep.log"))"
fi

# Paths of this folder are written relative to the checkout.
for_make() {
    printf '%s\n' "${*//"$checkout"/\$(CURDIR)}"
}
{
    printf '# Written by scripts/ensure_native_deps.sh: the C++ examples'\'' libraries (barkeep needs C++20).\n'
    printf '#needs %s\n' "$png" "$cli11" "$bar"
    printf 'NATIVE_CXXFLAGS := %s\n' "$(for_make "${include_flags[*]}")"
    printf 'NATIVE_LDFLAGS := %s\n' "$(for_make "${link_flags[*]}")"
    printf 'NATIVE_LDLIBS := %s\n' "$(for_make "${png_libs[*]}")"
} >"$work/flags.mk"
mv "$work/flags.mk" "$flags"
