#!/usr/bin/env bash
# Fills examples/godot/addons/diffusion/bin, so that the folder addons/diffusion is all that a Godot project needs: the
# plugin, libdiffusion and the libraries of libtorch that it loads.
# Usage: godot_plugin.sh PLUGIN.so LIBDIFFUSION.so; libtorch's libraries are those that the latter is found to load. Files
# are hard-linked where that works, since libtorch is 450 MB.
set -euo pipefail

plugin=$1
library=$(readlink -f "$2")
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/examples/godot/addons/diffusion/bin

put() {
    ln -fL "$1" "$bin/$2" 2>/dev/null || cp -fL "$1" "$bin/$2"
}

mkdir -p "$bin"
rm -f "$bin"/*.so "$bin"/*.so.*
put "$library" libdiffusion.so.0
# What is the system's (glibc, libstdc++) is every Linux's; libtorch's own libraries lie beside libtorch_cpu.so.
loaded=$(ldd "$library")
libtorch=$(dirname "$(sed -n 's|.*libtorch_cpu\.so => \(/[^ ]*\) .*|\1|p' <<<"$loaded")")
[ -f "$libtorch/libtorch_cpu.so" ] || {
    printf 'godot_plugin: %s finds no libtorch_cpu.so\n' "$library" >&2
    exit 1
}
sed -n 's|.* => \(/[^ ]*\) .*|\1|p' <<<"$loaded" | while read -r file; do
    if [ "$(dirname "$file")" = "$libtorch" ]; then
        put "$file" "$(basename "$file")"
    fi
done
# Last: the Makefile looks at its time.
cp -f "$plugin" "$bin/libdiffusion_godot.so"
