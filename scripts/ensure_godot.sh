#!/usr/bin/env bash
# Sees to Godot 4 and an X server without a screen, for the tests of examples/godot, and prints two lines:
#   godot=COMMAND   GODOT if it is set, else the system's godot4 or godot, else .deps/godot/godot
#   xvfb=COMMAND    the system's Xvfb, or nothing after the =
#
# Debian has Godot 4 from forky on. On an older Debian it is fetched (160 MB) from the machine's own mirror with all
# that it needs, its C library included, and laid out in .deps/godot (ignored by git) without touching the system. Xvfb
# runs helpers by their absolute path and cannot be laid out so: as root it is installed with apt-get, else it must be there.
#
# Exit code 3: no Godot can be had here, and the last line on stderr says why.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/.deps/godot
suites=(forky sid)
packages=(godot libgl1 libglx-mesa0)
oldest=4.2 # the extension's compatibility_minimum

unavailable() {
    printf 'ensure_godot: %s\n' "$1" >&2
    exit 3
}

# Whether a command is a Godot that is new enough
is_godot() {
    local version
    version=$("$1" --version 2>/dev/null | tail -n 1) || return 1
    [[ $version == 4.* ]] && [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -n 1)" = "$oldest" ]
}

fetch_godot() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        unavailable "only Debian's packages are fetched: install Godot $oldest or later, or set GODOT to it"
    [ "$(uname -m)" = x86_64 ] || unavailable "libdiffusion is for x86-64, and so is the Godot that is fetched"

    # The mirror is the one that this machine's own release comes from.
    local codename mirror keyring work suite
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    mirror=$(apt-get --print-uris update 2>/dev/null |
        sed -n "s|^'\(.*/debian\)/dists/$codename/InRelease'.*|\1|p" | head -n 1)
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -n "$codename" ] && [ -n "$mirror" ] && [ -f "$keyring" ] ||
        unavailable "this machine has no Debian mirror: install Godot $oldest or later, or set GODOT to it"

    mkdir -p "$home"
    work=$(mktemp -d "$home/work.XXXXXX")
    # shellcheck disable=SC2064  # the path of now
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work"/{lists,cache/archives}/partial
    : >"$work/status" # as if nothing were installed: all dependencies come along, the C library too
    # Snapshots of a mirror are older than their Release file says that they may be.
    local options=(-q -y --no-install-recommends -o "Dir::Etc::SourceList=$work/sources.list"
        -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$work/lists" -o "Dir::State::status=$work/status"
        -o "Dir::Cache=$work/cache" -o "Dir::Cache::Archives=$work/cache/archives" -o Acquire::Check-Valid-Until=false
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Debug::NoLocking=1 -o APT::Sandbox::User=
        -o DPkg::Post-Invoke= -o APT::Update::Post-Invoke=)
    for suite in "${suites[@]}"; do
        printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$work/sources.list"
        if apt-get "${options[@]}" update >"$work/log" 2>&1 &&
            apt-get "${options[@]}" --simulate install "${packages[@]}" >>"$work/log" 2>&1; then
            printf 'fetching Godot of Debian %s (160 MB) into .deps/godot\n' "$suite" >&2
            apt-get "${options[@]}" --download-only install "${packages[@]}" >>"$work/log" 2>&1 && break
        fi
        suite=
    done
    [ -n "$suite" ] || unavailable "Debian ${suites[*]} give no Godot here: $(tail -n 1 "$work/log")"

    local deb
    for deb in "$work"/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$work/tree" || unavailable "cannot unpack $(basename "$deb"): is the disk full?"
    done
    # What runs is kept: the rest (usr/bin/X11 is a link to itself) only troubles tools that walk the checkout.
    local part
    rm -rf "$home/tree"
    for part in etc/fonts usr/bin/godot usr/lib usr/share/X11 usr/share/drirc.d usr/share/xkeyboard-config-2; do
        [ ! -e "$work/tree/$part" ] || { mkdir -p "$home/tree/$(dirname "$part")" && mv "$work/tree/$part" "$home/tree/$part"; }
    done
    cat >"$home/godot" <<'WRAPPER'
#!/bin/sh
# Written by scripts/ensure_godot.sh: Godot with the C library and the OpenGL driver that it was built with.
root=$(dirname "$(readlink -f "$0")")/tree
lib=$root/usr/lib/x86_64-linux-gnu
export LIBGL_DRIVERS_PATH="$lib/dri" __GLX_VENDOR_LIBRARY_NAME=mesa XKB_CONFIG_ROOT="$root/usr/share/X11/xkb"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$lib/pulseaudio" "$root/usr/bin/godot" "$@"
WRAPPER
    chmod +x "$home/godot"
    rm -rf "$work"
    trap - EXIT
    is_godot "$home/godot" ||
        unavailable "the Godot of Debian $suite does not start: $("$home/godot" --version 2>&1 | tail -n 1)"
}

godot=
for candidate in ${GODOT:+"$GODOT"} godot4 godot "$home/godot"; do
    if is_godot "$candidate"; then
        godot=$candidate
        break
    fi
    if [ "$candidate" = "${GODOT:-}" ]; then
        printf 'ensure_godot: GODOT is %s: must be a command that runs Godot %s or later\n' "$candidate" "$oldest" >&2
        exit 1
    fi
done
if [ -z "$godot" ]; then
    mkdir -p "$home"
    exec 9>"$home/lock"
    flock 9
    is_godot "$home/godot" || fetch_godot
    godot=$home/godot
fi

if ! command -v Xvfb >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y --no-install-recommends install xvfb >"$log" 2>&1 ||
        { apt-get -q update >"$log" 2>&1 && apt-get -q -y --no-install-recommends install xvfb >"$log" 2>&1; } ||
        printf 'ensure_godot: apt-get cannot install xvfb: %s\n' "$(tail -n 1 "$log")" >&2
    rm -f "$log"
fi

printf 'godot=%s\nxvfb=%s\n' "$godot" "$(command -v Xvfb || true)"
