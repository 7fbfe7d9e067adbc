#!/usr/bin/env python3
"""Makes the golden files of tests/goldens from PyTorch and diffusers, so that `make test` needs neither.

    python scripts/make_goldens.py                 # makes every group afresh
    python scripts/make_goldens.py unet gradients  # these groups only
    python scripts/make_goldens.py --check         # makes nothing: compares with the files that are there

The groups are in scripts/goldens, a module for each kind of number.

Weights and inputs are not stored. They follow from integers by formula(), which tests/support/golden.rs repeats,
so that the files stay small even for a network of 35 million parameters.
"""

import argparse
import contextlib
import importlib.metadata
import filecmp
import json
import pathlib
import shutil
import sys
import tempfile
import warnings

PINS = {"torch": "2.11.0", "diffusers": "0.42.1", "safetensors": "0.8.0", "numpy": "2.4.6"}
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens"
# Other processors round otherwise; the tests' own tolerance is 2e-5 of the largest value.
CHECK_TOLERANCE = 5e-6
# An array whose largest value is below this is rounding alone: what should be exactly zero is some 1e-18.
NOTHING = 1e-9


def check_pins():
    """Ends with one line where the peers are not the pinned ones."""
    for name, version in PINS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(name).split("+")[0]
            if found == version:
                continue
            sys.exit(f"{name} is {found}, not {version}: pip install " + " ".join(f"{n}=={v}" for n, v in PINS.items()))
        sys.exit(f"{name} is missing: pip install " + " ".join(f"{n}=={v}" for n, v in PINS.items()))


def compare_folders(old, fresh):
    """What differs between two folders, all levels down."""
    names = {str(path.relative_to(root)) for root in (old, fresh) for path in root.rglob("*") if path.is_file()}
    _, differing, missing = filecmp.cmpfiles(old, fresh, sorted(names), shallow=False)
    return [f"{name} differs" for name in differing + missing]


def save(path, tensors, description):
    """Writes one golden file."""
    from safetensors.torch import save_file

    # One metadata entry only: with several, safetensors writes them in a random order.
    text = json.dumps(description, sort_keys=True)
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path, {"golden": text})


def compare(path, tensors, description):
    """What differs between a golden file and the same made afresh; empty where nothing does."""
    from safetensors import safe_open

    if not path.exists():
        return ["is missing"]
    problems = []
    with safe_open(path, "pt") as file:
        if json.loads(file.metadata()["golden"]) != json.loads(json.dumps(description)):
            problems.append("the description differs")
        if set(file.keys()) != set(tensors):
            return problems + ["the names of the arrays differ"]
        for key, fresh in tensors.items():
            old = file.get_tensor(key)
            if old.shape != fresh.shape or old.dtype != fresh.dtype:
                problems.append(f"{key} has another shape or type")
                continue
            difference = (old.double() - fresh.detach().double()).abs().max().item()
            if difference > CHECK_TOLERANCE * max(old.double().abs().max().item(), NOTHING):
                problems.append(f"{key} differs by {difference:.3g}")
    return problems


def load_groups():
    """The groups by name, each registered by its module."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    from goldens import GROUPS, samplers, schedules, training, unets  # noqa: F401: each registers its groups

    return GROUPS


def main():
    check_pins()
    warnings.filterwarnings("ignore", category=FutureWarning)
    groups = load_groups()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(groups)}; all where none is named")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there")
    options = parser.parse_args()
    unknown = set(options.groups) - set(groups)
    if unknown:
        parser.error(f"no group is named {', '.join(sorted(unknown))}: there are {', '.join(groups)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = False
    stems = set()
    for name in options.groups or groups:
        made = 0
        for case, tensors, description, *fill in groups[name]():
            made += 1
            stem = f"{name}_{case}"
            stems.add(stem)
            path = FOLDER / f"{stem}.safetensors"
            with tempfile.TemporaryDirectory() as folder:
                fresh = pathlib.Path(folder) / stem
                if fill:
                    fill[0](fresh)
                if options.check:
                    problems = compare(path, tensors, description)
                    problems += compare_folders(FOLDER / stem, fresh) if fill else []
                    failed |= bool(problems)
                    print(f"{stem}: {'; '.join(problems) or 'reproduced'}")
                    continue
                save(path, tensors, description)
                if fill:
                    shutil.rmtree(FOLDER / stem, ignore_errors=True)
                    shutil.copytree(fresh, FOLDER / stem)
            print(f"{stem}: {path.stat().st_size} bytes{' and a folder' if fill else ''}")
        if not made:
            sys.exit(f"group {name} made no case")
    if not options.groups:
        for path in sorted(FOLDER.iterdir()):
            if path.name.removesuffix(".safetensors") not in stems:
                failed = True
                print(f"{path.name}: no group makes it")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
