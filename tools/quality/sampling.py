"""Samples for the plot: every solver at every number of network evaluations, made by examples/make_textures.

Laid out as samples/SOLVER-EVALUATIONS/seed-K/0000.png. A portion is written beside its place and renamed, so that a run that
was stopped goes on where it was.
"""

import shutil
import subprocess
from pathlib import Path

from tqdm import tqdm

from images import Problem

# What the plot calls it: make_textures' flags.
SOLVERS = {
    "DDPM": ["--method", "ddpm"],
    "DDIM, eta 0": ["--method", "ddim", "--eta", "0"],
    "DDIM, eta 1": ["--method", "ddim", "--eta", "1"],
    "DPM-Solver++ 2M": ["--method", "dpm-solver++"],
    "DPM-Solver++ 2M SDE": ["--method", "dpm-solver++-sde"],
    "UniPC": ["--method", "unipc"],
    "Euler": ["--method", "euler"],
    "Heun": ["--method", "heun"],
}
PORTION = 64  # images of one run of make_textures: what the library computes at a time on the CPU


def steps_for(solver, evaluations):
    """The most steps that need no more than so many evaluations: Heun's need two each, but for the last."""
    return (evaluations + 1) // 2 if solver == "Heun" else evaluations


def folder_name(solver, evaluations):
    return solver.lower().replace(",", "").replace(" ", "_") + f"-{evaluations}"


def portions(count, evaluations):
    """What there is to sample, cheapest first: (solver, evaluations, seed, images)."""
    for n in evaluations:
        for seed in range((count + PORTION - 1) // PORTION):
            for solver in SOLVERS:
                yield solver, n, seed, min(PORTION, count - seed * PORTION)


def sample(folder, program, model, solver, evaluations, seed, count, threads):
    """Makes one portion, unless it is there."""
    place = Path(folder) / folder_name(solver, evaluations) / f"seed-{seed}"
    if len(list(place.glob("*.png"))) >= count:
        return
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    part.mkdir(parents=True)
    command = [str(program), "--model", str(model), "--count", str(count), "--seed", str(seed), "--separate", str(part)]
    command += ["--steps", str(steps_for(solver, evaluations)), "--threads", str(threads), *SOLVERS[solver]]
    command += ["--out", str(part / "sheet")]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Problem(f"cannot run {program}: {error.strerror}; `make build/examples/make_textures` builds it") from None
    if result.returncode:
        raise Problem(f"make_textures failed: {result.stderr.strip() or result.returncode}")
    (part / "sheet").unlink()
    part.rename(place)


def run(folder, options):
    """Makes what is missing and returns the folders, one for each point."""
    todo = list(portions(options.count, options.evaluations))
    work = [n * count for _, n, _, count in todo]
    with tqdm(total=sum(work), desc="sampling", unit="evaluations", disable=None) as progress:
        for (solver, n, seed, count), amount in zip(todo, work):
            progress.set_postfix_str(f"{solver}, {n}")
            sample(folder, options.program, options.model, solver, n, seed, count, options.threads)
            progress.update(amount)
    return [Path(folder) / folder_name(solver, n) for solver in SOLVERS for n in options.evaluations]
