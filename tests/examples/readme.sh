#!/usr/bin/env bash
# The README's C program, compiled with the README's own line and run: what a newcomer does first.
# Usage, from the repository's root after `make all`: tests/examples/readme.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' README.md >"$work/program.c"
command=$(grep -m 1 '^    cc .*program.c' README.md)
command=${command//program.c/$work/program.c}
command=${command/-o program/-o $work/program}
eval "$command"
out=$("$work/program")
case $out in
"the first pixel's red is "*) echo "README's program: $(wc -l <"$work/program.c") lines, \"$out\"" ;;
*)
    echo "README's program printed: $out" >&2
    exit 1
    ;;
esac
