#!/usr/bin/env bash
# Obtains Chromium for the tests of the texture server's page: prints the program's path. One that is installed is
# used (CHROMIUM names another); on Debian it is installed otherwise, which needs root.
set -euo pipefail

fail() {
    printf 'ensure_browser: %s\n' "$1" >&2
    exit 1
}

find_browser() {
    local name
    for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome; do
        # Ubuntu's chromium-browser is a script that asks for a snap.
        if command -v "$name" >/dev/null && "$name" --version >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

if find_browser; then
    exit 0
fi
command -v apt-get >/dev/null || fail "no Chromium: install it, or set CHROMIUM to its path"
[ "$(id -u)" -eq 0 ] || fail "no Chromium: apt install chromium, or set CHROMIUM to its path"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# The page asks for the system's font; a bare machine has none.
install_browser() { apt-get -q -y --no-install-recommends install chromium fonts-dejavu-core >>"$log" 2>&1; }
if ! install_browser; then
    apt-get -q update >>"$log" 2>&1 || true # no package lists on this machine, or old ones
    install_browser || fail "apt-get could not install chromium ($(grep -m1 '^E:' "$log" || tail -n1 "$log")): check the network"
fi
find_browser || fail "chromium is installed and does not run"
