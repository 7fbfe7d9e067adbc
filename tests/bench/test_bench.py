"""The bench without its peers: figures from times, tables, the count of a network's arithmetic, the cost model, and the way
the programs are spoken with, on programs of a few lines."""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy

TOOL = Path(__file__).resolve().parents[2] / "tools/bench"
sys.path.insert(0, str(TOOL))
import arithmetic  # noqa: E402
import cases  # noqa: E402
import figures  # noqa: E402
import machine  # noqa: E402
import measure  # noqa: E402
import peer  # noqa: E402
import report  # noqa: E402
import scale  # noqa: E402
from protocol import Program, Refused, environment  # noqa: E402


def config(size, channels, widths, attention, layers=2):
    """A config.json's fields, with attention at one level."""
    kinds = ["Attn" if i == attention else "" for i in range(len(widths))]
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "down_block_types": [kind + "DownBlock2D" for kind in kinds],
        "up_block_types": [kind + "UpBlock2D" for kind in reversed(kinds)],
        "add_attention": True,
    }


CIFAR10 = config(32, 3, (128, 256, 256, 256), 1)


class Figures(unittest.TestCase):
    def test_agreement_is_relative_and_of_the_first_images(self):
        self.assertEqual(figures.agreement([3.0, 4.0, 9.0], [3.0, 4.0]), 0)
        self.assertAlmostEqual(figures.agreement([3.3, 4.4], [3.0, 4.0]), 0.1)

    def test_what_cannot_agree_does_not(self):
        for result, reference in (
            ([1.0, numpy.nan], [1.0, 2.0]), ([1.0, numpy.inf], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([], []), ([0.0], [0.0]),
        ):  # fmt: skip
            self.assertEqual(figures.agreement(result, reference), float("inf"), (result, reference))

    def test_summary_and_ratio(self):
        ours, theirs = [[1.0, 1.2], [2.0, 2.2]], [[2.0, 2.4], [6.0, 6.6]]
        self.assertEqual(figures.summary(ours), {"min": 1.0, "median": 1.6, "runs": 4})
        found = figures.ratio(theirs, ours)
        self.assertEqual(found["min"], 2.0)
        self.assertAlmostEqual(found["median"], 2.5)  # of 2 in the first round and 3 in the second

    def test_a_drift_that_both_share_leaves_the_ratio_alone(self):
        pace = numpy.array([1.0, 3.0, 0.5, 2.0])
        found = figures.ratio([[1.25 * p] for p in pace], [[p] for p in pace])
        self.assertAlmostEqual(found["median"], 1.25)


class Arithmetic(unittest.TestCase):
    def test_the_parameters_of_known_networks(self):
        """google/ddpm-cifar10-32's number is public; the other is what libdiffusion and PyTorch say of theirs."""
        self.assertEqual(arithmetic.total(CIFAR10)["parameters"], 35_746_307)
        self.assertEqual(arithmetic.total(config(64, 3, (32, 64, 128), 2))["parameters"], 3_940_547)

    def test_operations_as_pytorch_counts_them(self):
        """By torch.utils.flop_counter with attention as products; `make bench` compares again."""
        self.assertEqual(arithmetic.total(CIFAR10)["flops"], 12_443_713_536)
        self.assertEqual(arithmetic.total(config(64, 3, (32, 64, 128), 2))["flops"], 4_473_094_144)

    def test_a_layer_by_hand(self):
        layer = arithmetic.conv("c", 3, 5, 4, stride=2)
        self.assertEqual(layer, arithmetic.Layer("c", 2 * 16 * 15 * 9, 5 * 28, 16 * (3 * 4 + 5)))
        self.assertEqual(sum(l.flops for l in arithmetic.attention("a", 2, 2)), 4 * (2 * 4 * 2 * 2) + 4 * 16 * 2)

    def test_how_it_grows(self):
        one, eight = (arithmetic.total(CIFAR10, batch) for batch in (1, 8))
        self.assertEqual(eight["flops"], 8 * one["flops"])
        self.assertEqual(eight["bytes"] - 8 * one["bytes"], -7 * 4 * one["parameters"])
        half = arithmetic.total(CIFAR10, weight_bytes=2)
        self.assertEqual(one["bytes"] - half["bytes"], 2 * one["parameters"])

    def test_what_is_not_known_is_refused(self):
        with self.assertRaisesRegex(ValueError, "ResnetDownsampleBlock2D"):
            list(arithmetic.layers({**CIFAR10, "down_block_types": ["ResnetDownsampleBlock2D"] * 4}))


class Model(unittest.TestCase):
    def setUp(self):
        draw = numpy.random.default_rng(3)
        self.calls, self.flops, self.moved = draw.integers(1, 50, 30), draw.uniform(1e9, 1e11, 30), draw.uniform(1e7, 1e9, 30)

    def fitted(self, *factors):
        seconds = numpy.array([self.calls, self.flops, self.moved]).T @ factors
        return scale.fit(self.flops, self.moved, self.calls, seconds)

    def test_finds_what_the_times_were_made_of(self):
        numpy.testing.assert_allclose(self.fitted(1e-4, 5e-12, 1e-10), (1e-4, 5e-12, 1e-10), rtol=1e-6)

    def test_a_term_that_plays_no_part_is_left_out(self):
        numpy.testing.assert_allclose(self.fitted(0, 5e-12, 0), (0, 5e-12, 0), rtol=1e-6, atol=1e-13)

    def test_no_factor_is_negative(self):
        self.assertTrue((self.fitted(1e-3, 5e-12, -2e-11) >= 0).all())

    def test_the_axes_start_from_one_network_and_predictions_fit_it(self):
        points = scale.AXES["batch"]
        configs = [config(p.image_size, 3, p.widths, 1) for p in points]
        seconds = [2e-4 + arithmetic.total(c, p.batch)["flops"] / 1e11 for p, c in zip(points, configs)]
        found = scale.model(points, configs, seconds)
        self.assertLess(found["error"], 1e-6)
        self.assertAlmostEqual(found["flops"] / 1e11, 1, 5)
        for axis, points in scale.AXES.items():
            self.assertEqual(len({scale.x_of(axis, p) for p in points}), len(points), axis)

    def test_draws(self):
        seconds = {axis: [0.01 * (i + 1) for i, _ in enumerate(points)] for axis, points in scale.AXES.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images/plot.png"
            scale.draw({"f32": seconds, "bf16": seconds}, {"f32": seconds, "bf16": seconds}, path)
            self.assertEqual(path.read_bytes()[:4], b"\x89PNG")


class Ddim(unittest.TestCase):
    """The loop that ONNX Runtime and OpenVINO are given."""

    CONFIG = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}

    def test_a_predictor_that_knows_the_image_gives_it(self):
        image = numpy.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4)).astype(numpy.float32)
        alpha_cumprod = numpy.cumprod(1 - numpy.linspace(1e-4, 0.02, 1000))
        asked = []

        def predict(x, timesteps):
            asked.append(int(timesteps[0]))
            a = alpha_cumprod[timesteps[0]]
            return ((x - a**0.5 * image) / (1 - a) ** 0.5).astype(numpy.float32)

        noise = numpy.random.default_rng(1).standard_normal(image.shape, dtype=numpy.float32)
        numpy.testing.assert_allclose(peer.ddim(predict, noise, 50, self.CONFIG), image, atol=1e-4)
        self.assertEqual(asked, list(range(999, 0, -20)))


class Cases(unittest.TestCase):
    def test_names_are_unique_and_patterns_choose(self):
        every = cases.cases(["cpu", "cuda"])
        self.assertEqual(len({case.name for case in every}), len(every))
        names = [case.name for case in cases.chosen(every, ["step-cifar10-f32-[18]"])]
        self.assertEqual(names, ["step-cifar10-f32-1", "step-cifar10-f32-8"])
        self.assertEqual(cases.chosen(every, []), every)
        self.assertEqual(cases.chosen(every, ["nothing"]), [])

    def test_ours_takes_part_everywhere_and_peers_where_they_can(self):
        every = cases.cases(["cpu", "cuda"])
        taking = {case: [c.name for c in cases.CONTESTANTS if c.takes(case)] for case in every}
        self.assertTrue(all(cases.OURS in names and len(names) > 1 for names in taking.values()))
        self.assertTrue(all(len(set(names)) == len(names) for names in taking.values()))
        self.assertNotIn("onnxruntime", taking[cases.Case("step", "cifar10", "bf16", 1)])

    def test_every_case_has_its_tolerance(self):
        for case in cases.cases(["cpu", "cuda"]):
            self.assertGreater(measure.TOLERANCE[case.task, case.precision, case.device], 0)

    def test_batches_of_a_group_rise(self):
        groups = {}
        for case in cases.cases(["cpu"]):
            groups.setdefault(case.group, []).append(case.batch)
        self.assertTrue(all(batches == sorted(batches) for batches in groups.values()))


class Machine(unittest.TestCase):
    def test_reads_the_processor(self):
        text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 fma avx512_bf16\n\nprocessor\t: 1\nmodel name\t: Other\n"
        self.assertEqual(machine.cpu(text), {"model": "Some CPU", "sets": ["avx2", "fma", "avx512_bf16"]})

    def test_reads_what_a_device_holds(self):
        text = "12, 100\n7, 30\n12, 20\n13, [N/A]\n"
        self.assertEqual(machine.device_memory(12, text), 120 << 20)
        self.assertIsNone(machine.device_memory(13, text))
        self.assertIsNone(machine.device_memory(12, ""))


# A contestant: multiplies its images by FACTOR, sleeps SLEEP seconds in a run, ends at the command END.
PROGRAM = """
import sys, time
import numpy
factor, sleep, end = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
print("ok some library 1.0", flush=True)
for line in sys.stdin:
    command, *words = line.split()
    if command == end:
        sys.exit(3)
    if command == "load":
        batch, number = int(words[0]), int(words[1])
        images = numpy.fromfile(words[2], dtype=numpy.float32).reshape(256, -1)[:batch]
        print("ok", flush=True)
    elif command == "run":
        time.sleep(sleep)
        print("ok", *[0.25] * int(words[0]), flush=True)
    elif command == "save":
        (factor * images).astype(numpy.float32).tofile(words[0])
        print("ok", flush=True)
    else:
        print("error the command is", command, flush=True)
"""


def program(factor=1.0, sleep=0.0, end="none"):
    return Program([sys.executable, "-c", PROGRAM, str(factor), str(sleep), end], {}, 600)


class Protocol(unittest.TestCase):
    def state(self, one):
        return Path(f"/proc/{one.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def start(self, *arguments, **named):
        one = program(*arguments, **named)
        self.addCleanup(one.close)
        return one

    def test_answers_and_is_stopped_in_between(self):
        one = self.start()
        self.assertEqual(one.version, "some library 1.0")
        self.assertEqual(one.run(3), [0.25] * 3)
        deadline = time.monotonic() + 30
        while self.state(one) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.state(one), "T")
        self.assertGreater(one.peak_memory(), 1 << 20)

    def test_what_goes_wrong_is_told(self):
        with self.assertRaisesRegex(Refused, "the command is dance"):
            self.start().ask("dance")
        with self.assertRaisesRegex(Refused, "it ended with 3"):
            self.start(end="run").run(1)
        with self.assertRaisesRegex(Refused, "no answer in 1 seconds"):
            self.slow().run(1)
        with self.assertRaisesRegex(Refused, "it ended with 0"):
            Program([sys.executable, "-c", ""], {}, 600)
        with self.assertRaisesRegex(Refused, "no such thing"):
            Program([sys.executable, "-c", "print('error no such thing')"], {}, 600)

    def slow(self):
        """One that was quick to start and is then too slow, however slow the machine is."""
        one = self.start(sleep=3600)
        one.limit = 1
        return one

    def test_settings_of_openmp_do_not_leak_in(self):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        self.addCleanup(os.environ.pop, "OMP_WAIT_POLICY")
        self.assertNotIn("OMP_WAIT_POLICY", environment())
        self.assertEqual(environment({"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"], "2")


class Bench(measure.Bench):
    """A bench on the programs above: who they are is told by `factors`."""

    def __init__(self, folder, factors, fingerprint="same"):
        self.folder, self.results, self.python, self.threads = folder, folder / "results", "python", 1
        self.fingerprint, self.seconds, self.rounds, self.fresh = fingerprint, 0, 1, False
        self.factors, self.started = factors, []
        (folder / "nets").mkdir(exist_ok=True)

    def start(self, contestant, case):
        self.started.append(contestant)
        if self.factors[contestant] is None:
            raise Refused("cannot")
        return program(self.factors[contestant])


class Measuring(unittest.TestCase):
    CASES = [cases.Case("step", "cifar10", "f32", batch) for batch in (1, 8)]
    NAMES = ["ours", "openvino", "onnxruntime", "torch"]

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_cases(self, factors, **named):
        bench = Bench(self.folder, dict(zip(self.NAMES, factors)), **named)
        with contextlib.redirect_stderr(io.StringIO()):
            return bench, list(bench.run(self.CASES, self.NAMES))

    def test_only_what_agrees_is_timed(self):
        _, results = self.run_cases((1.0, 1.01, None, 1.0))
        for result in results:
            found = result["contestants"]
            self.assertEqual(found["ours"]["ratio"], {"min": 1.0, "median": 1.0})
            self.assertEqual(found["openvino"]["rounds"], [])
            self.assertRegex(found["openvino"]["failed"], "differs from PyTorch in f32 by 1.0e-02: at most 0.0001")
            self.assertEqual(found["onnxruntime"]["failed"], "cannot")
            self.assertNotIn("min", found["openvino"])

    def test_goes_on_where_it_was_cut_off(self):
        self.run_cases((1.0,) * 4)
        (self.folder / "results" / f"{self.CASES[1].name}.json").write_text("{")  # as if it had not been written
        bench, results = self.run_cases((1.0,) * 4)
        self.assertEqual(bench.started, self.NAMES)
        self.assertEqual([result["case"] for result in results], [case.name for case in self.CASES])
        bench, _ = self.run_cases((1.0,) * 4)
        self.assertEqual(bench.started, [])
        bench, _ = self.run_cases((1.0,) * 4, fingerprint="another library")
        self.assertEqual(bench.started, self.NAMES)

    def test_other_figures_are_kept_too(self):
        bench = Bench(self.folder, {})
        self.assertIsNone(bench.extra("peak", None))
        self.assertEqual(bench.extra("peak", lambda: {"avx2": 1.0}), {"avx2": 1.0})
        self.assertEqual(bench.extra("peak", lambda: self.fail("computed again")), {"avx2": 1.0})
        self.assertEqual(bench.extra("peak", None), {"avx2": 1.0})

    def test_rounds_are_bounded_by_time_and_number(self):
        bench = Bench(self.folder, {})
        bench.seconds, bench.rounds = 12, 5
        self.assertTrue(bench.goes_on(0, 1e9))
        self.assertTrue(bench.goes_on(9, 11))
        self.assertTrue(bench.goes_on(4, 35))
        self.assertFalse(bench.goes_on(4, 37))
        self.assertFalse(bench.goes_on(5, 13))


def one_result(ours=0.010, **peers):
    """A result in which everybody takes the time that is given; a string is why it failed."""
    found = {}
    for name, seconds in {"ours": ours, **peers}.items():
        if isinstance(seconds, str):
            found[name] = {"failed": seconds}
            continue
        found[name] = {"version": f"{name} 1", "difference": 1e-6, "rounds": [[seconds]], "peak_bytes": 100 << 20}
        found[name].update(figures.summary([[seconds]]))
        if isinstance(ours, float):
            found[name]["ratio"] = figures.ratio([[seconds]], [[ours]])
    return {"case": "c", "contestants": found, "fingerprint": "f"}


class Report(unittest.TestCase):
    RESULTS = [
        (cases.Case("step", "cifar10", "f32", 1), one_result(openvino=0.0125, onnxruntime="it broke", torch=0.02)),
        (cases.Case("step", "cifar10", "bf16", 1), one_result(ours="not there", openvino=0.007)),
        (cases.Case("train", "cifar10", "f32", 32), one_result(2.0, torch=3.0)),
    ]
    PEAKS = {"avx2": 200.0, "avx512": 400.0, "avx512_bf16": 700.0, "memory": 20.0}

    def facts(self):
        seconds = {axis: [0.01 for _ in points] for axis, points in scale.AXES.items()}
        counted = {axis: [{"flops": 1e9, "bytes": 1e6} for _ in points] for axis, points in scale.AXES.items()}
        model = {"call": 1e-4, "flops": 3e11, "bandwidth": float("inf"), "error": 0.1}
        one = {"precision": "f32", "seconds": seconds, "predicted": seconds, "counted": counted, "model": model}
        counts = {("cifar10", p, 1): arithmetic.total(CIFAR10) for p in ("f32", "bf16")}
        return {"machine": ["a machine"], "counts": counts, "peaks": self.PEAKS, "scale": [one], "calls": "a call costs\n"}

    def test_tables(self):
        text = report.document(self.RESULTS, self.facts())
        for line in [
            "| ddpm-cifar10-32 | f32 | 1 | 10.0 / 10.0 | 1.25 / 1.25 | – | 2.00 / 2.00 | **1.25** OpenVINO |",
            "| ddpm-cifar10-32 | bf16 | 1 | – | – | – | – | – |",
            "| ddpm-cifar10-32 | f32 | 32 | 2000 / 2000 | 1.50 / 1.50 | **1.50** PyTorch |",
            "- ONNX Runtime: it broke (step-cifar10-f32-1)",
            "| ddpm-cifar10-32 | f32 | 1 | 12.4 | 220 | 1244 | 311% | 22.0 |",
            "| f32 | 0.10 ms | 300 GFLOP/s (75% of the peak) | no limit seen | 10% |",
            "a call costs",
        ]:
            self.assertIn(line, text)
        self.assertNotIn("GPU", text)

    def test_what_was_not_run_is_not_there(self):
        text = report.document(self.RESULTS[:1], {"machine": ["a machine"], "counts": {}})
        for word in ("Training", "Arithmetic", "Calls", "sizes grow"):
            self.assertNotIn(word, text)

    def test_tables_have_as_many_cells_as_heads(self):
        for block in report.document(self.RESULTS, self.facts()).split("\n\n"):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            self.assertLessEqual(len({row.count("|") for row in rows}), 1, block)

    def test_only_what_is_between_the_marks_is_replaced(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "B.md"
            path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
            report.write("new", path)
            self.assertEqual(path.read_text(), f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n")
            path.write_text("no marks")
            with self.assertRaisesRegex(Refused, "must hold the lines"):
                report.write("new", path)

    def test_the_document_of_the_repository_has_the_marks(self):
        text = (TOOL.parents[1] / "docs/BENCHMARKS.md").read_text("utf-8")
        self.assertEqual((text.count(report.BEGIN), text.count(report.END)), (1, 1))

    def test_lines_for_the_terminal(self):
        lines = list(report.lines(self.RESULTS[0][1]))
        self.assertEqual(len(lines), 5)
        self.assertIn("takes 1.25 (least), 1.25 (median) times ours", lines[2])
        self.assertIn("it broke", lines[3])


class Tool(unittest.TestCase):
    def test_results_are_json_that_another_run_reads(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a/b.json"
            measure.write(path, {"x": [0.1]})
            self.assertEqual(json.loads(path.read_text()), {"x": [0.1]})
            self.assertEqual([p.name for p in path.parent.iterdir()], ["b.json"])

    def test_a_program_that_fails_says_so(self):
        with self.assertRaisesRegex(Refused, "broken"):
            measure.call([sys.executable, "-c", "print('broken'); raise SystemExit(1)"])
        self.assertEqual(measure.call([sys.executable, "-c", "print(7)"]), "7\n")


if __name__ == "__main__":
    unittest.main()
