"""The tool as its users meet it: what it reads, what it refuses and how it says so, and samples that are kept."""

import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path

import numpy
from PIL import Image

TOOL = Path(__file__).resolve().parents[2] / "tools/quality"
sys.path.insert(0, str(TOOL))
import images  # noqa: E402
import report  # noqa: E402
import sampling  # noqa: E402
from images import Problem  # noqa: E402


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def png(self, name, size=(8, 8), mode="RGB", value=0):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, value).save(path)
        return path

    def pngs(self, name, count, size=(8, 8)):
        for i in range(count):
            self.png(f"{name}/{i}.png", size)
        return self.folder / name


class Folders(Case):
    def test_reads_what_lies_below_in_order(self):
        self.png("a/2/x.PNG", value=(2, 0, 0))
        self.png("a/1/x.png", value=(1, 0, 0))
        (self.folder / "a/notes.txt").write_text("no picture")
        self.assertEqual(images.load(self.folder / "a")[:, 0, 0, 0].tolist(), [1, 2])

    def test_refusals_name_what_is_wrong(self):
        empty = self.folder / "empty"
        empty.mkdir()
        self.png("mixed/a.png")
        self.png("mixed/b.png", (8, 9))
        self.png("deep/a.png", mode="I;16")
        self.png("broken/a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
        whole = self.png("short/a.png", (64, 64), value=(1, 2, 3)).read_bytes()
        (self.folder / "short/a.png").write_bytes(whole[:-30])
        for name, parts in [
            ("nowhere", ["nowhere", "folder of PNGs"]),
            ("empty", ["empty", "holds 0 PNGs", "at least 1"]),
            ("mixed", ["b.png is 8x9", "a.png is 8x8", "one size"]),
            ("deep", ["a.png", "8-bit"]),
            ("broken", ["broken/a.png"]),
            ("short", ["short/a.png"]),
        ]:
            with self.subTest(name), self.assertRaises(Problem) as caught:
                images.load(self.folder / name)
            for part in parts:
                self.assertIn(part, str(caught.exception))

    def test_the_command_line_fails_in_one_line(self):
        few, real, large = self.pngs("few", 3), self.pngs("real", 40), self.pngs("large", 16, (9, 9))
        for samples, part in [(few, "few holds 3 PNGs: must hold at least 16"), (large, "large holds 9x9")]:
            command = [sys.executable, str(TOOL), "score", str(samples), str(real)]
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            self.assertEqual(result.returncode, 1)
            self.assertIn(part, result.stderr)
            self.assertEqual(result.stderr.strip().count("\n"), 0, result.stderr)


class Prepared(Case):
    def test_scales_down_as_the_training_does(self):
        image = numpy.zeros((4, 5, 3), numpy.uint8)
        image[:2, :2, 0] = [[1, 2], [3, 4]]  # 2.5, rounded up
        image[2:, 2:4, 1] = [[0, 0], [0, 1]]  # 0.25
        wanted = numpy.zeros((2, 2, 3), numpy.uint8)
        wanted[0, 0, 0] = 3
        numpy.testing.assert_array_equal(images.scale_down(image, 2), wanted)

    def test_windows_are_cut_across_the_edges_and_mirrored(self):
        rng = numpy.random.default_rng(0)
        image = numpy.arange(12, dtype=numpy.uint8)[None, :, None] * numpy.ones((4, 1, 3), numpy.uint8)
        rows = {tuple(images.cut(image, 4, rng)[0, :, 0]) for _ in range(500)}
        wanted = {tuple((left + i) % 12 for i in range(4)) for left in range(12)}
        self.assertEqual(rows, wanted | {row[::-1] for row in wanted})

    def test_is_the_same_each_time(self):
        whole = [numpy.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=numpy.uint8) for i in range(5)]
        for name in ("a", "b"):
            self.png(f"{name}/left_over.png")
            images.prepare(whole, 8, self.folder / name)
        numpy.testing.assert_array_equal(images.load(self.folder / "a"), images.load(self.folder / "b"))
        self.assertEqual(len(images.load(self.folder / "a")), 5)

    def test_textures_that_are_too_small(self):
        with self.assertRaisesRegex(Problem, "texture 0 is 12x7: must be at least 8"):
            images.prepare([numpy.zeros((7, 12, 3), numpy.uint8)], 8, self.folder / "a")


# Stands in for make_textures: writes the pictures, and each call's arguments into a file beside it.
STAND_IN = """#!/bin/sh
echo "$@" >>"$0.calls"
while [ $# -gt 0 ]; do
    case $1 in --separate) folder=$2 ;; --count) count=$2 ;; --out) : >"$2" ;; esac
    shift
done
if [ -e "$0.fails" ]; then echo "make_textures: no such model" >&2; exit 1; fi
for i in $(seq "$count"); do : >"$folder/$i.png"; done
"""


class Sampling(Case):
    def setUp(self):
        super().setUp()
        self.program = self.folder / "make_textures"
        self.program.write_text(STAND_IN)
        self.program.chmod(0o755)
        self.options = types.SimpleNamespace(program=self.program, model="m", count=70, evaluations=[3, 10], threads=1)
        self.out = self.folder / "samples"

    def calls(self):
        return (self.folder / "make_textures.calls").read_text().splitlines()

    def test_heun_gets_no_more_evaluations_than_the_others(self):
        for n in (1, 5, 10, 20, 50):
            steps = sampling.steps_for("Heun", n)
            self.assertLessEqual(2 * steps - 1, n)
            self.assertGreater(2 * (steps + 1) - 1, n)

    def test_makes_every_point_and_keeps_it(self):
        folders = sampling.run(self.out, self.options)
        self.assertEqual(len(set(folders)), 2 * len(sampling.SOLVERS))
        for folder in folders:
            self.assertEqual(len(images.png_paths(folder)), 70)
        made = len(self.calls())
        self.assertEqual(made, 2 * 2 * len(sampling.SOLVERS))  # 70 are two portions
        heun = [call for call in self.calls() if "--method heun" in call]
        self.assertEqual({call.split("--steps ")[1].split()[0] for call in heun}, {"2", "5"})
        sampling.run(self.out, self.options)
        self.assertEqual(len(self.calls()), made)
        # What was interrupted, and more images than before, are made; the rest is kept.
        place = folders[0] / "seed-1"
        place.rename(place.with_name("seed-1.part"))
        sampling.run(self.out, self.options)
        self.assertEqual(len(self.calls()), made + 1)
        self.assertFalse(place.with_name("seed-1.part").exists())

    def test_says_why_it_failed(self):
        (self.folder / "make_textures.fails").touch()
        with self.assertRaisesRegex(Problem, "no such model"):
            sampling.run(self.out, self.options)
        self.options.program = self.folder / "nothing"
        with self.assertRaisesRegex(Problem, "make build/examples/make_textures"):
            sampling.run(self.out, self.options)


class Report(Case):
    def points(self):
        rng = numpy.random.default_rng(0)
        real = rng.integers(0, 256, (40, 8, 8, 3), dtype=numpy.uint8)
        samples = rng.integers(0, 128, (20, 8, 8, 3), dtype=numpy.uint8)
        found = report.figures(*(v.reshape(len(v), -1)[:, :6] / 255 for v in (samples, real)), samples, real)
        return {("DDIM", n): found for n in (5, 10)}

    def test_tables_go_between_the_marks_and_have_the_floor(self):
        path = self.folder / "QUALITY.md"
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        for _ in range(2):
            report.write_tables(self.points(), 20, 40, path)
        text = path.read_text()
        self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))
        self.assertNotIn("old", text)
        self.assertEqual(text.count("| DDIM |"), 4)
        self.assertEqual(text.count("real against real"), 4)

    def test_a_document_without_marks_is_left_alone(self):
        path = self.folder / "QUALITY.md"
        path.write_text("mine")
        with self.assertRaisesRegex(Problem, "QUALITY.md must hold the lines"):
            report.write_tables(self.points(), 20, 40, path)
        self.assertEqual(path.read_text(), "mine")

    def test_never_claims_the_other_figure(self):
        found = next(iter(self.points().values()))
        text = report.text(found, (1.0, 2.0, 0.1), 20, 40)
        self.assertIn("real against real (40)", text)
        self.assertEqual(text.count("FID"), text.count("not FID"))


if __name__ == "__main__":
    unittest.main()
