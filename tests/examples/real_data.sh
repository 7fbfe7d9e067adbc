#!/usr/bin/env bash
# The loss falls on real data: a small net on Freedoom's flats, which scripts/freedoom_textures.py fetches.
# Usage, from the repository's root: tests/examples/real_data.sh [folder of the built programs, default build]
set -euo pipefail
build=${1:-build}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 scripts/freedoom_textures.py
"$build/examples/train_textures" --png data/freedoom/flats --scale-down 4 --size 16 --hidden-dims 16,32 --steps 120 \
    --batch 16 --threads 1 --learning-rate 0.002 --sample-every 0 --save-every 0 --seed 1 --out "$work/model" >"$work/log"
# The means of the first and of the last 20 steps; noise alone would leave the loss near 1.
awk -F, 'NR > 1 { loss[NR - 1] = $2 }
    END {
        n = NR - 1
        for (i = 1; i <= 20; i++) { first += loss[i] / 20; last += loss[n + 1 - i] / 20 }
        printf "real data: loss %.3f in the first 20 of %d steps, %.3f in the last 20\n", first, n, last
        exit !(n == 120 && last < 0.6 * first)
    }' "$work/model/loss.csv"
