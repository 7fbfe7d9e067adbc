"""Measures cases: starts the programs of a group, checks that they agree, lets them run in turn, keeps each case's result."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy
from cases import CONTESTANTS, NETS, NUMBERS, OURS, WARM_UP
from figures import agreement, ratio, summary
from machine import cpu
from protocol import Program, Refused

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer.py")
CONTESTANT = ROOT / "build/benches/contestant"
# A program answers within so many seconds or is out: torch.compile takes minutes for its first run.
LIMIT = 900
# The most that a result may differ from PyTorch's in f32 (figures.agreement).
TOLERANCE = {"f32": 1e-3, "bf16": 0.1}
# References are of so many images (for training: calls).
REFERENCES = {"step": 8, "ddim": 1, "train": 3}
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

    def start(self, contestant, case, precision=None):
        words = [self.net(case.net), case.task, precision or case.precision, self.threads, case.device]
        command = [CONTESTANT, "serve"] if contestant == OURS else [self.python, PEER, contestant]
        environment = {"OMP_NUM_THREADS": str(self.threads), **environments(self, contestant, case)}
        return Program([*map(str, command), *map(str, words)], environment, LIMIT)

    def result(self, program, case, batch, runs=1):
        """What the program makes of the first `batch` images: flat float32; of training the losses of `runs` calls."""
        out = self.folder / "result"
        program.ask("load", batch, NUMBERS[case.task], self.images(case.net))
        program.run(runs)
        program.ask("save", out)
        return numpy.fromfile(out, dtype=numpy.float32)

    def reference(self, case):
        """PyTorch's own f32 result, on the case's device."""
        batch = case.batch if case.task == "train" else REFERENCES[case.task]
        path = self.folder / "nets" / f"{case.net}.{case.task}.{batch}.{case.device}.reference"
        if not path.is_file():
            say(f"computing {path.name}")
            program = self.start("torch", case, "f32")
            try:
                self.result(program, case, batch, REFERENCES["train"] if case.task == "train" else 1).tofile(path)
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
                result = self.result(program, case, case.batch, REFERENCES["train"] if case.task == "train" else 1)
                known = reference if case.task == "train" else reference[: case.batch * whole]
                difference = agreement(result, known)
                found[name] = {"version": program.version, "difference": difference, "rounds": []}
                if difference > TOLERANCE[case.precision]:
                    found[name]["failed"] = f"differs by {difference:.1e}: may be {TOLERANCE[case.precision]:g}"
                else:
                    program.run(WARM_UP if case.task != "ddim" else 1)
            except Refused as error:
                found[name] = {"version": program.version, "failed": str(error)}
            if "failed" in found[name]:
                say(f"{case.name}: {name}: {found[name]['failed']}")
        good = [name for name in programs if "failed" not in found[name]]
        start, done = time.monotonic(), 0
        while good and (done < self.rounds or time.monotonic() - start < self.seconds):
            for name in good[done % len(good) :] + good[: done % len(good)]:
                found[name]["rounds"].append(self.turn(case, programs[name]))
            done += 1
            say(f"{case.name}, round {done}: " + ", ".join(f"{n} {1e3 * min(found[n]['rounds'][-1]):.1f} ms" for n in good))
        for name in good:
            found[name]["peak_bytes"] = programs[name].peak_memory()
            found[name].update(summary(found[name]["rounds"]))
            if OURS in good:
                found[name]["ratio"] = ratio(found[name]["rounds"], found[OURS]["rounds"])
        return found

    def turn(self, case, program):
        """The seconds of a contestant's runs in one round: a first one fills the caches again and does not count."""
        if case.task == "ddim":
            return program.run(1)
        first = program.run(1)[0]
        return program.run(max(1, min(10, round(0.5 / first))))

    def write(self, case, found):
        result = {"case": case.name, "fingerprint": self.fingerprint, "contestants": found, "when": time.strftime("%F")}
        self.results.mkdir(parents=True, exist_ok=True)
        part = self.path(case).with_suffix(".part")
        part.write_text(json.dumps(result, indent=1))
        part.rename(self.path(case))


def environments(bench, contestant, case):
    """Ours on CUDA runs on the libtorch that the peers' PyTorch brings."""
    if contestant == OURS and case.device == "cuda":
        found = sorted(Path(bench.python).parent.parent.glob("lib/python*/site-packages/torch/lib"))
        return {"LD_LIBRARY_PATH": str(found[0])} if found else {}
    return {}


def call(words):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Refused(f"{Path(words[0]).name} {words[1]}: {done.stdout.strip()[-2000:]}")


def fingerprint(threads):
    """What a result depends on: with another library, other peers, another machine or other threads it is measured anew."""
    digest = hashlib.sha256()
    for path in [ROOT / "build/lib/libdiffusion.so", CONTESTANT, PEER, PEER.with_name("requirements.txt")]:
        digest.update(path.read_bytes())
    digest.update(json.dumps([cpu(), threads]).encode())
    return digest.hexdigest()[:16]
