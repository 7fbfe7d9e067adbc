#!/usr/bin/env bash
# Tests the Godot plugin: headless.gd without a screen; libraries that it must refuse, and one that never gets on; games
# that quit while it works; and the demo's room on a virtual screen, whose picture room.gd looks at. Ends with "N passed,
# M failed".
#
# Where no Godot can be had this says so loudly and passes. DIFFUSION_FRAME_MS=33 makes it fail if, on the virtual
# screen, frames take longer than that at the 99th percentile while textures are made: for an idle machine.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
unset DIFFUSION_LIB

loudly() {
    printf '\n*** NOT TESTED: %s\n*** %s\n\n' "$1" "$2"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found=$("$root/scripts/ensure_godot.sh" 2> >(tee "$work/ensure" >&2))
case $? in
0) ;;
3)
    loudly "the Godot plugin" "$(tail -n 1 "$work/ensure")"
    exit 0
    ;;
*) exit 1 ;;
esac
godot=$(sed -n 's/^godot=//p' <<<"$found")
xvfb=$(sed -n 's/^xvfb=//p' <<<"$found")
make -s -C "$root" godot-plugin || exit 1

# Godot writes into the user's folders.
export HOME=$work/home XDG_DATA_HOME=$work/home/data XDG_CONFIG_HOME=$work/home/config XDG_CACHE_HOME=$work/home/cache
export OMP_WAIT_POLICY=passive
mkdir -p "$HOME"

passed=0
failed=0
not_ok() {
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n' "$1" "$2"
}

# project FOLDER PLUGIN: a project with the tests' scripts and that folder as its plugin
project() {
    mkdir -p "$1/addons"
    cp "$root"/tests/godot/*.gd "$root"/tests/godot/*.tscn "$root/tests/godot/project.godot" "$1"
    ln -s "$2" "$1/addons/diffusion"
    import "$1"
}

# Godot aborts at the end of a headless import that finds an extension for the first time (godotengine/godot#111048), so
# it is told of the extension before.
import() {
    mkdir -p "$1/.godot"
    printf 'res://addons/diffusion/diffusion.gdextension\n' >"$1/.godot/extension_list.cfg"
    timeout 300 "$godot" --headless --path "$1" --import >"$work/import" 2>&1 </dev/null || {
        cat "$work/import"
        not_ok "import of $1" "exit code $?"
    }
}

# play NAME PROJECT ARGUMENT...: the run's own checks must pass, Godot must end in order, and say nothing but what the
# plugin was asked to refuse
play() {
    local name=$1 folder=$2 code counts
    shift 2
    printf '%s\n' "--- $name"
    timeout 900 "$godot" --path "$folder" "$@" >"$work/out" 2>&1 </dev/null
    code=$?
    grep -v -e '^ERROR: ' -e '^   at: Diffusion' -e '^$' "$work/out"
    counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$work/out")
    passed=$((passed + ${counts% *} + 0))
    failed=$((failed + ${counts#* } + 0))
    if [ -z "$counts" ] || [ "$code" -ne 0 ]; then
        tail -n 20 "$work/out"
        not_ok "$name" "exit code $code"
    fi
    if awk '/^(ERROR|SCRIPT ERROR|WARNING):/ { held = $0; next } held { if (!/at: (Diffusion|set_use_vsync)/) { print held; bad = 1 } held = "" }
            END { if (held) { print held; bad = 1 } exit !bad }' "$work/out" >"$work/errors"; then
        not_ok "$name" "Godot says $(cat "$work/errors")"
    fi
}

model=$root/models/textures
plugin=$root/examples/godot/addons/diffusion
project "$work/project" "$plugin"
play "without a screen" "$work/project" --headless -- headless "$model"
for frames in 0 3 40; do
    play "quit after $frames frames" "$work/project" --headless -- quits "$model" $frames
done

# ERR_FILE_MISSING_DEPENDENCIES is 17, ERR_FILE_UNRECOGNIZED 15.
DIFFUSION_LIB=/nowhere play "DIFFUSION_LIB that names nothing" "$work/project" --headless -- \
    refused "$model" 17 "DIFFUSION_LIB is /nowhere"
DIFFUSION_LIB=$plugin/bin/libc10.so play "DIFFUSION_LIB that names another library" "$work/project" --headless -- \
    refused "$model" 15 "has no function diffusion_abi_version"
mkdir -p "$work/bare/bin"
cp -r "$plugin/diffusion.gdextension" "$plugin/icons" "$work/bare"
cp "$plugin/bin/libdiffusion_godot.so" "$work/bare/bin"
project "$work/bare_project" "$work/bare"
play "a plugin without its library" "$work/bare_project" --headless -- refused "$model" 17 "into the plugin's folder"
cat >"$work/future.c" <<'C'
unsigned diffusion_abi_version(void) { return 99; }
C
sed -n 's/^    X(\(diffusion_[a-z_]*\)).*/\1/p' "$root/examples/godot/src/library.h" | grep -v diffusion_abi_version |
    sed 's/.*/void &(void) {}/' >>"$work/future.c"
${CC:-cc} -shared -fPIC -o "$work/libdiffusion.so.0" "$work/future.c" || exit 1
DIFFUSION_LIB=$work play "a library of another version" "$work/project" --headless -- \
    refused "$model" 15 "has ABI version 99: this plugin needs 1"

mkdir "$work/stuck"
${CC:-cc} -shared -fPIC -I"$root/include" -o "$work/stuck/libdiffusion.so.0" "$root/tests/godot/stuck.c" || exit 1
DIFFUSION_LIB=$work/stuck STUCK=$work/stuck play "a library that never gets on" "$work/project" --headless -- \
    stuck "$model" "$work/stuck"

# The room. -displayfd: Xvfb takes a number that is free, and says which once it listens.
if [ -z "$xvfb" ]; then
    loudly "the Godot demo's room" "there is no Xvfb: install it (Debian, Ubuntu: apt install xvfb)"
else
    mkdir -p "$work/demo/addons"
    cp -r "$root"/examples/godot/{project.godot,room} "$work/demo"
    ln -s "$plugin" "$work/demo/addons/diffusion"
    cp "$root"/tests/godot/{checks,main,room}.gd "$root/tests/godot/main.tscn" "$work/demo"
    sed -i "s|res://../../models/textures|$model|" "$work/demo/room/room.tscn"
    import "$work/demo"
    "$xvfb" -displayfd 3 -screen 0 1280x720x24 -nolisten tcp 3>"$work/display" >"$work/xvfb" 2>&1 &
    screen=$!
    trap 'kill $screen 2>/dev/null; rm -rf "$work"' EXIT
    for ((i = 0; i < 600; i++)); do
        [ -s "$work/display" ] && break
        sleep 0.1
    done
    if [ -s "$work/display" ]; then
        DISPLAY=:$(cat "$work/display") play "the room on a virtual screen" "$work/demo" --rendering-driver opengl3 \
            --audio-driver Dummy res://main.tscn -- room "$model" "$work/room.png" "${DIFFUSION_FRAME_MS:-0}"
        if [ -f "$work/room.png" ]; then
            mkdir -p "$root/out"
            cp "$work/room.png" "$root/out/godot-room.png"
            echo "open out/godot-room.png"
        fi
    else
        not_ok "Xvfb" "$(tail -n 1 "$work/xvfb")"
    fi
fi

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
