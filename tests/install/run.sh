#!/usr/bin/env bash
# The release as its users meet it: unpacked in a strange folder, used by C, C++ and Go programs through CMake,
# pkg-config, a plain compiler and the run-time loader; all again after the folder has moved; with another libtorch; and
# what `make install` lays out.
#
#   tests/install/run.sh TARBALL     from the repository's root
#
# Each program checks that what it loads comes from the unpacked folder and nothing from this checkout. WATCHDOG is the
# seconds after which one counts as hung.
set -euo pipefail

# Whatever could lead a compiler or loader elsewhere.
unset LD_LIBRARY_PATH LD_PRELOAD LD_RUN_PATH LIBRARY_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH
unset CMAKE_PREFIX_PATH PKG_CONFIG_PATH PKG_CONFIG_LIBDIR DIFFUSION_LIB
unset MAKEFLAGS MAKELEVEL CFLAGS CXXFLAGS LDFLAGS CGO_CFLAGS CGO_LDFLAGS GOFLAGS GOWORK
export OMP_WAIT_POLICY=passive GOFLAGS=-mod=mod

tarball=$(realpath "$1")
checkout=$(pwd -P)
export PATH=$PATH:$checkout/.venv/bin # where the system lacks CMake or pkg-config
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
work=$(cd "$work" && pwd -P)
cc=${CC:-cc}
libtorch=$(realpath "${LIBTORCH:-.libtorch}")
cp -r tests/install/consumer.c tests/install/consumer.cpp tests/install/images.h tests/install/CMakeLists.txt tests/install/go "$work"

step() { printf 'tests/install: %s\n' "$*"; }
fail() {
    printf 'tests/install: FAILED: %s\n' "$*" >&2
    exit 1
}

# run PROGRAM ARGUMENT...: under a watchdog, away from the checkout
run() { (cd / && timeout -k 10 "${WATCHDOG:-900}" "$@") || fail "$* (exit status $?)"; }
try() { run "$1" "$sdk/$model" "$sdk/lib/" "$checkout/"; }

# Nothing in the libraries and the package files names the machine that built them; nothing is missing.
check_tree() {
    local file entry output
    while read -r file; do
        for entry in $(readelf -d "$file" | sed -n 's/.*(R\(UN\)\?PATH).*\[\(.*\)\]/\2/p' | tr : ' '); do
            case $entry in
            '$ORIGIN' | '$ORIGIN/diffusion') ;;
            *) fail "$file looks for libraries in $entry" ;;
            esac
        done
        output=$(ldd "$file")
        if grep -E 'not found|'"$checkout|$libtorch" <<<"$output"; then
            fail "$file: the lines above of ldd"
        fi
    done < <(find "$sdk/lib" -name '*.so*' -type f)
    # In texts and in libdiffusion.so.0, where compilers would put them into messages and patchelf might leave a remainder.
    # libtorch's own libraries hold the paths of those who built them.
    if grep -rlF --exclude-dir=diffusion -e "$checkout" -e "$libtorch" -e "${CARGO_HOME:-$HOME/.cargo}" "$sdk/lib" "$sdk/include"; then
        fail "the files above name a folder of the build"
    fi
    for file in README.md LICENSE-MIT LICENSE-APACHE licenses/README.md licenses/libtorch.txt licenses/libgomp.txt \
        licenses/nvidia-cuda.txt licenses/intel-onemkl.txt licenses/rust-crates.txt examples/c/sample.c docs/INSTALL.md; do
        [ -s "$sdk/$data$file" ] || fail "$data$file is missing"
    done
}

# All ways to build against $sdk, in folders that did not exist before.
consumers() {
    rm -rf "$work/build" && mkdir "$work/build"
    step "$1: CMake, C and C++"
    (cmake -S "$work" -B "$work/build/cmake" -DCMAKE_PREFIX_PATH="$sdk" && cmake --build "$work/build/cmake") \
        >"$work/log" 2>&1 || { cat "$work/log" && fail "CMake"; }
    try "$work/build/cmake/consumer_c"
    try "$work/build/cmake/consumer_cpp"

    step "$1: pkg-config, C"
    (
        export PKG_CONFIG_PATH=$sdk/lib/pkgconfig
        [ "$(pkg-config --modversion diffusion)" = "$version" ] || fail "pkg-config's version is not $version"
        # eval: pkg-config escapes the space in the folder's name for a shell
        eval "$cc -std=c99 -Wall -Wextra -pedantic -Werror '$work/consumer.c' $(pkg-config --cflags --libs diffusion) -lm" \
            "-o '$work/build/by_pkg_config'"
    )
    try "$work/build/by_pkg_config"

    step "$1: plain cc, C99"
    $cc -std=c99 -Wall -Wextra -pedantic -Werror "$work/consumer.c" -I"$sdk/include" -L"$sdk/lib" -ldiffusion \
        -Wl,-rpath,"$sdk/lib" -lm -o "$work/build/plain"
    try "$work/build/plain"

    step "$1: Go, which opens the library at run time"
    cp -r "$work/go" "$work/build/go"
    (cd "$work/build/go" && go mod edit -replace="github.com/libdiffusion/go-diffusion=$sdk/bindings/go" &&
        go build -o ../go_dlopen .)
    DIFFUSION_LIB=$sdk/lib try "$work/build/go_dlopen"

    step "$1: Go, linked through pkg-config"
    (cd "$work/build/go" && PKG_CONFIG_PATH=$sdk/lib/pkgconfig go build -tags diffusion_link -o ../go_linked .)
    try "$work/build/go_linked"
}

data= model=models/textures
mkdir "$work/a strange place"
tar -C "$work/a strange place" -xzf "$tarball"
sdk=$(echo "$work/a strange place"/*)
version=$(basename "$sdk" | cut -d- -f2)
step "unpacked: $(du -sh "$sdk" | cut -f1)"
check_tree
consumers unpacked

# A program that ships with the folder finds it from where it is itself.
step "a program with a RUNPATH relative to itself"
mkdir "$work/a strange place/bin"
$cc -std=c99 "$work/consumer.c" -I"$sdk/include" -L"$sdk/lib" -ldiffusion -lm \
    -Wl,-rpath,"\$ORIGIN/../$(basename "$sdk")/lib" -o "$work/a strange place/bin/consumer"
try "$work/a strange place/bin/consumer"

step "moved"
mv "$work/a strange place" "$work/elsewhere"
sdk=$work/elsewhere/$(basename "$sdk")
check_tree
try "$work/elsewhere/bin/consumer"
consumers moved

# A CUDA libtorch takes the bundled one's place. Its libtorch_cuda.so is an empty library here: what is tested is that
# it is looked for beside the libtorch that was chosen, and only there.
step "another libtorch"
cp -rl "$sdk/lib/diffusion" "$work/cuda"
$cc -shared -o "$work/cuda/libtorch_cuda.so" -x c /dev/null
said=$(try "$work/elsewhere/bin/consumer")
! grep -q libtorch_cuda <<<"$said" || fail "libtorch_cuda.so was found where there is none"
other() { "$@" "$sdk/$model" "$work/" "$checkout/" | grep -q 'libtorch_cuda.so is loaded' || fail "$*: the other libtorch was not taken"; }
LD_LIBRARY_PATH=$work/cuda other run "$work/elsewhere/bin/consumer"
mv "$sdk/lib/diffusion" "$work/bundled"
ln -s "$work/cuda" "$sdk/lib/diffusion"
other run "$work/elsewhere/bin/consumer"

step "make install"
rm -rf "$work/elsewhere" "$work/cuda" "$work/bundled"
make -s install DESTDIR="$work/staged" PREFIX=/opt/diffusion >"$work/log" 2>&1 || { cat "$work/log" && fail "make install"; }
[ "$(ls "$work/staged" "$work/staged/opt")" = "$(printf '%s:\nopt\n\n%s:\ndiffusion' "$work/staged" "$work/staged/opt")" ] ||
    fail "files outside of PREFIX: $(find "$work/staged" -maxdepth 2)"
sdk=$work/staged/opt/diffusion data=share/diffusion/ model=share/diffusion/models/textures
check_tree
$cc -std=c99 "$work/consumer.c" -I"$sdk/include" -L"$sdk/lib" -ldiffusion -Wl,-rpath,"$sdk/lib" -lm -o "$work/build/plain"
try "$work/build/plain"
echo "tests/install: all passed"
