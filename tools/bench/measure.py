"""Measures cases: starts the programs of a group, checks that they agree, lets them run in turn, keeps each case's result."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import machine
import numpy
from arithmetic import total
from cases import CONTESTANTS, NETS, NUMBERS, OURS
from figures import agreement, ratio, summary
from protocol import Program, Refused, environment
from scale import AXES, config_of, x_of
from scale import model as fit_model

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer.py")
CONTESTANT, PEAK, CALLS = (ROOT / "build/benches" / name for name in ("contestant", "peak", "calls"))
# A program answers within so many seconds or is out: torch.compile takes minutes for its first run.
LIMIT = 900
# The most that a result may differ from PyTorch's in f32 on the CPU (figures.agreement). CUDA's f32 may be TF32.
TOLERANCE = {
    ("step", "f32", "cpu"): 1e-4, ("ddim", "f32", "cpu"): 0.01, ("train", "f32", "cpu"): 1e-4,
    ("step", "f32", "cuda"): 5e-3, ("ddim", "f32", "cuda"): 0.1, ("train", "f32", "cuda"): 1e-3,
    ("step", "bf16", "cpu"): 0.05, ("ddim", "bf16", "cpu"): 0.4, ("train", "bf16", "cpu"): 0.01,
    ("step", "bf16", "cuda"): 0.05, ("ddim", "bf16", "cuda"): 0.4, ("train", "bf16", "cuda"): 0.01,
}  # fmt: skip
# Networks that were not trained magnify the last bit of their predictions: the first steps clip the estimate of the image to
# -1 or 1 by the sign of values near 0, and after 50 steps two right programs may differ altogether. So DDIM is compared
# after a whole run of two steps.
CHECKED = {**NUMBERS, "ddim": 2}
# References are of so many images (for training: calls).
REFERENCES = {"step": 8, "ddim": 8, "train": 3}
IMAGES = 256


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """folder: where networks, inputs and references are kept; results: where results are; python: the interpreter that has
    the peers; seconds, rounds: what a case takes at least; fresh: whether kept results do not count."""

    def __init__(self, folder, results, python, threads, seconds, rounds, fresh=False):
        self.folder, self.results, self.python, self.threads = Path(folder), Path(results), python, threads
        self.fingerprint, self.seconds, self.rounds, self.fresh = fingerprint(threads), seconds, rounds, fresh

    # What is measured on

    def net(self, name):
        """The folder of a network, as the library saves it, with its ONNX file beside."""
        folder = self.folder / "nets" / name
        if not (folder / "model.onnx").is_file():
            net = NETS[name]
            say(f"making {folder} and its ONNX file")
            folder.parent.mkdir(parents=True, exist_ok=True)
            call([CONTESTANT, "create", folder, net.image_size, net.channels, *net.widths])
            part = folder / "model.part.onnx"
            call([self.python, PEER, "export", folder, part])
            part.rename(folder / "model.onnx")
        return folder

    def images(self, name):
        """Standard normal values, float32 [IMAGES, channels, height, width]: noise to predict from, to sample from, to
        train on."""
        path = self.folder / "nets" / f"{name}.images"
        if not path.is_file():
            net = NETS[name]
            shape = (IMAGES, net.channels, net.image_size, net.image_size)
            values = numpy.random.default_rng(1).standard_normal(shape, dtype=numpy.float32)
            values.tofile(path)
        return path

    def start(self, contestant, case):
        words = [self.net(case.net), case.task, case.precision, self.threads, case.device]
        command = [CONTESTANT, "serve"] if contestant == OURS else [self.python, PEER, contestant]
        settings = {"OMP_NUM_THREADS": str(self.threads), **libtorch(self.python, contestant, case)}
        return Program([*map(str, command), *map(str, words)], settings, LIMIT)

    def result(self, program, case, batch, number):
        """What the program makes of the first `batch` images: flat float32; of training the losses of a few calls."""
        out = self.folder / "result"
        program.ask("load", batch, number, self.images(case.net))
        program.run(REFERENCES["train"] if case.task == "train" else 1)
        program.ask("save", out)
        return numpy.fromfile(out, dtype=numpy.float32)

    def reference(self, case):
        """What PyTorch computes in f32 on the CPU."""
        batch, number = case.batch if case.task == "train" else REFERENCES[case.task], CHECKED[case.task]
        path = self.folder / "nets" / f"{case.net}-{case.task}-{batch}-{number}.reference"
        if not path.is_file():
            say(f"computing {path.name}")
            program = self.start("torch", replace(case, device="cpu", precision="f32"))
            try:
                self.result(program, case, batch, number).tofile(path)
            finally:
                program.close()
        return numpy.fromfile(path, dtype=numpy.float32)

    # Measuring

    def run(self, cases, names):
        """Measures the cases that have no result yet with the contestants of these names; yields every result."""
        groups = {}
        for case in cases:
            groups.setdefault(case.group, []).append(case)
        for group in groups.values():
            kept = {} if self.fresh else {case: self.kept(case, names) for case in group}
            missing = [case for case in group if not kept.get(case)]
            if missing:
                self.run_group(missing, names)
            for case in group:
                yield self.kept(case, names)

    def path(self, case):
        return self.results / f"{case.name}.json"

    def kept(self, case, names):
        """The case's result if it was measured under the same circumstances, with all who are to take part."""
        try:
            result = json.loads(self.path(case).read_text())
        except (OSError, ValueError):
            return None
        part = {contestant.name for contestant in CONTESTANTS if contestant.name in names and contestant.takes(case)}
        same = result.get("fingerprint") == self.fingerprint and part <= result["contestants"].keys()
        return result if same else None

    def extra(self, name, compute):
        """As for cases, the kept result of anything else, or a new one; None where it is not kept and compute is None."""
        path = self.results / f"{name}.json"
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError):
            result = {}
        right = result.get("fingerprint") == self.fingerprint
        if compute is None:
            return result["found"] if right else None
        if self.fresh or not right:
            result = {"fingerprint": self.fingerprint, "found": compute()}
            write(path, result)
        return result["found"]

    def run_group(self, cases, names):
        programs, failed, reference = {}, {}, self.reference(cases[0])
        try:
            for contestant in CONTESTANTS:
                if contestant.name in names and contestant.takes(cases[0]):
                    try:
                        programs[contestant.name] = self.start(contestant.name, cases[0])
                    except Refused as error:
                        failed[contestant.name] = str(error)
                        say(f"{contestant.name}: {error}")
            for case in cases:
                self.write(case, self.run_case(case, programs, failed, reference))
        finally:
            for program in programs.values():
                program.close()

    def run_case(self, case, programs, failed, reference):
        """Everything of one case. A contestant whose result is off has no times."""
        found = {name: {"failed": why} for name, why in failed.items()}
        whole = NETS[case.net].channels * NETS[case.net].image_size ** 2
        for name, program in programs.items():
            try:
                result = self.result(program, case, case.batch, CHECKED[case.task])
                known = reference if case.task == "train" else reference[: case.batch * whole]
                difference = agreement(result, known)
                found[name] = {"version": program.version, "difference": difference, "rounds": []}
                allowed = TOLERANCE[case.task, case.precision, case.device]
                if difference > allowed:
                    found[name]["failed"] = f"differs from PyTorch in f32 by {difference:.1e}: at most {allowed:g} is right"
                elif case.task == "ddim":
                    program.ask("load", case.batch, NUMBERS[case.task], self.images(case.net))
                elif case.task == "step":
                    program.run(2)  # what went before has warmed the longer tasks up
            except Refused as error:
                found[name] = {"version": program.version, "failed": str(error)}
            if "failed" in found[name]:
                say(f"{case.name}: {name}: {found[name]['failed']}")
        good = [name for name in programs if "failed" not in found[name]]
        start, done = time.monotonic(), 0
        while good and self.goes_on(done, time.monotonic() - start):
            for name in good[done % len(good) :] + good[: done % len(good)]:
                found[name]["rounds"].append(self.turn(programs[name]))
            done += 1
            say(f"{case.name}, round {done}: " + ", ".join(f"{n} {1e3 * min(found[n]['rounds'][-1]):.1f} ms" for n in good))
        for name in good:
            found[name]["peak_bytes"] = programs[name].peak_memory()
            if case.device == "cuda":
                found[name]["device_bytes"] = machine.device_memory(programs[name].process.pid)
            found[name].update(summary(found[name]["rounds"]))
            if OURS in good:
                found[name]["ratio"] = ratio(found[name]["rounds"], found[OURS]["rounds"])
        return found

    def goes_on(self, done, seconds):
        """Whether another round follows so many, which took so long."""
        return done < 1 or seconds < self.seconds or (done < self.rounds and seconds < 3 * self.seconds)

    def turn(self, program):
        """The seconds of a contestant's runs in one round. The first fills the caches again and counts only where that does
        not matter because it is long."""
        first = program.run(1)
        return first if first[0] > 1 else program.run(max(1, min(10, round(0.5 / first[0]))))

    def write(self, case, found):
        result = {"case": case.name, "fingerprint": self.fingerprint, "contestants": found, "when": time.strftime("%F")}
        write(self.path(case), result)


def write(path, result):
    """The file is there whole or not at all, wherever the run is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.rename(path)


def budgeted(program, seconds=0.7, least=3):
    """The least time of runs that take so many seconds in all, of at least so many."""
    first = program.run(1)[0]
    return min(program.run(max(least, min(30, round(seconds / first)))))


def scale(bench, precision):
    """Seconds of every point of scale.AXES, {axis: [seconds]}, and the networks' configs, of the library alone."""
    found, configs, made = {}, {}, bench.folder / "nets"
    for axis, points in AXES.items():
        for point in points:
            if point in found:
                continue
            folder = made / f"scale-{point.image_size}-{point.widths[0]}"
            if not folder.is_dir():
                call([CONTESTANT, "create", folder, point.image_size, 3, *point.widths])
            task = "ddim" if point.steps else "step"
            words = [CONTESTANT, "serve", folder, task, precision, bench.threads, "cpu"]
            images = made / "scale.images"
            count = 3 * point.image_size**2 * point.batch
            numpy.random.default_rng(1).standard_normal(count, dtype=numpy.float32).tofile(images)
            program = Program([*map(str, words)], {"OMP_NUM_THREADS": str(bench.threads)}, LIMIT)
            try:
                program.ask("load", point.batch, point.steps or 500, images)
                found[point] = budgeted(program)
            finally:
                program.close()
            configs[point] = config_of(folder)
            say(f"{axis} {x_of(axis, point)}, {precision}: {1e3 * found[point]:.2f} ms")
    fitted = fit_model(list(found), list(configs.values()), list(found.values()))
    predicted = dict(zip(found, fitted.pop("predicted")))
    return {
        "precision": precision,
        "model": fitted,
        "seconds": {axis: [found[point] for point in points] for axis, points in AXES.items()},
        "predicted": {axis: [predicted[point] for point in points] for axis, points in AXES.items()},
        "counted": {axis: [total(configs[point], point.batch) for point in points] for axis, points in AXES.items()},
    }


def peak(threads):
    """benches/peak's lines: {name: GFLOP/s or, of memory, GB/s}."""
    return {name: float(value) for name, value in (line.split() for line in call([PEAK, threads]).splitlines())}


def calls(bench):
    """What benches/calls prints."""
    say("calls and batching")
    return call([CALLS, bench.threads])


def count(bench, net):
    """Operations of one evaluation of one image, counted by PyTorch."""
    return int(call([bench.python, PEER, "count", bench.net(net)], stderr=subprocess.DEVNULL))


def devices(python):
    """["cuda"] where PyTorch finds such a device, else []."""
    return call([python, PEER, "devices"], stderr=subprocess.DEVNULL).split()


def libtorch(python, contestant, case):
    """Ours on CUDA runs on the libtorch of the peers' PyTorch, which is the same release and has CUDA."""
    if contestant != OURS or case.device != "cuda":
        return {}
    found = sorted(Path(python).parent.parent.glob("lib/python*/site-packages/torch/lib"))
    return {"LD_LIBRARY_PATH": str(found[0])} if found else {}


def call(words, stderr=subprocess.STDOUT):
    """What a program prints."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment())
    if done.returncode:
        raise Refused(f"{' '.join(map(str, words))}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def fingerprint(threads):
    """What a result depends on: with another library, other peers, another machine or other threads it is measured anew."""
    digest = hashlib.sha256()
    for path in [ROOT / "build/lib/libdiffusion.so", CONTESTANT, PEER, PEER.with_name("requirements.txt")]:
        digest.update(path.read_bytes())
    digest.update(json.dumps([machine.cpu(), threads]).encode())
    return digest.hexdigest()[:16]
