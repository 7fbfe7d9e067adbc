#!/usr/bin/env python3
"""Prints the licences of the crates that are linked into libdiffusion.so: what their authors ask to be passed on.

    python3 scripts/crate_licenses.py >rust-crates.txt

`cargo metadata` names the crates and where their sources lie. Build scripts, procedural macros and tests are not
linked, so their crates are left out. A crate without a licence file is named with what its manifest declares.
"""

import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = "x86_64-unknown-linux-gnu"
LICENCE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?$", re.IGNORECASE)
CODE = (".rs", ".c", ".h", ".py", ".html")


def linked(metadata):
    """The packages that the library is linked from: normal dependencies all the way, without procedural macros."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    seen, todo = set(), [metadata["resolve"]["root"]]
    while todo:
        name = todo.pop()
        if name in seen or any("proc-macro" in target["kind"] for target in packages[name]["targets"]):
            continue
        seen.add(name)
        todo += [dep["pkg"] for dep in nodes[name]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    seen.remove(metadata["resolve"]["root"])
    return sorted((packages[name] for name in seen), key=lambda package: (package["name"], package["version"]))


def licence_files(folder):
    """Licence files of a crate and of the C sources that some carry (bzip2, zstd)."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if LICENCE.match(name) and not name.lower().endswith(CODE):
                yield os.path.join(parent, name)


def main():
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        sys.exit("crate_licenses: cargo metadata failed: %s" % lines[-1].strip())
    packages = linked(json.loads(done.stdout))
    print("The crates that are linked into libdiffusion.so, each with its licence.\n")
    for package in packages:
        print("%s %s: %s" % (package["name"], package["version"], package["license"] or "see its licence file"))
    shown = {}  # most crates carry the same Apache-2.0: its text is printed once
    for package in packages:
        title = "%s %s" % (package["name"], package["version"])
        print("\n%s\n%s" % ("=" * 100, title))
        folder = os.path.dirname(package["manifest_path"])
        for path in licence_files(folder):
            with open(path, encoding="utf-8", errors="replace") as f:
                text = f.read().strip()
            name = os.path.relpath(path, folder)
            key = " ".join(text.split())
            if key in shown:
                print("\n%s: the same text as %s" % (name, shown[key]))
            else:
                shown[key] = "%s's %s" % (title, name)
                print("\n--- %s\n\n%s" % (name, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
