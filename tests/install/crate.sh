#!/usr/bin/env bash
# The crate as its users meet it: what `cargo package` would publish, added to a new project with `cargo add`, where the
# program of docs/INSTALL.md is built and run.
#
#   tests/install/crate.sh     from the repository's root; LIBTORCH names the libtorch to build against
#
# The project has this checkout's build profile, locked versions and target folder, so that tch is not compiled again.
set -euo pipefail

checkout=$(pwd -P)
export LIBTORCH=$(realpath "${LIBTORCH:-.libtorch}")
export CARGO_TARGET_DIR=$checkout/target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf 'tests/install: %s\n' "$*"; }
fail() {
    printf 'tests/install: FAILED: %s\n' "$*" >&2
    exit 1
}

step "crate: cargo package"
cargo package --no-verify --allow-dirty --locked --quiet 2>"$work/log" || { cat "$work/log" && fail "cargo package"; }
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
tar -C "$work" -xzf "target/package/libdiffusion-$version.crate"
crate=$work/libdiffusion-$version
step "crate: $(find "$crate" -type f | wc -l) files, $(du -sh "$crate" | cut -f1)"
for file in LICENSE-MIT LICENSE-APACHE README.md build.rs include/diffusion.h src/lib.rs; do
    [ -s "$crate/$file" ] || fail "the crate has no $file"
done

step "crate: cargo add, and the program of docs/INSTALL.md"
mkdir -p "$work/program/src"
cat >"$work/program/Cargo.toml" <<'TOML'
[package]
name = "program"
version = "0.1.0"
edition = "2021"

[workspace]
TOML
sed -n '/^\[profile.release\]/,/^$/p' Cargo.toml >>"$work/program/Cargo.toml"
cp Cargo.lock "$work/program"
sed -n '/^```rust,no_run$/,/^```$/p' docs/INSTALL.md | sed '1d;$d' >"$work/program/src/main.rs"
cd "$work/program"
cargo add --quiet --path "$crate" libdiffusion
cargo rustc --release --quiet -- -C "link-arg=-Wl,-rpath,$LIBTORCH/lib"
said=$("$CARGO_TARGET_DIR/release/program" "$checkout/models/textures")
[ "$said" = "$((4 * 3 * 32 * 32)) values" ] || fail "the program says $said"
step "crate: all passed"
