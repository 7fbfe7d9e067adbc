"""scripts/freedoom_textures.py on a WAD made here: pixels worked out by hand, what is skipped, and bad input.

Needs the standard library only, and no network: Pillow and the packages are replaced by stand-ins.
    python3 -m unittest discover -s tests/setup
"""

import contextlib
import importlib.util
import io
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "freedoom_textures.py"
spec = importlib.util.spec_from_file_location("freedoom_textures", SCRIPT)
ft = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ft)

# Colour i is (i, 255 - i, i ^ 85), so a swapped channel or a shifted index shows; thirteen more palettes follow it.
PALETTE = b"".join(bytes((i, 255 - i, i ^ 85)) for i in range(256))
PLAYPAL = PALETTE + bytes(768 * 13)


def patch(columns):
    """A patch lump of columns, each a list of (top, bytes)."""
    height = max((top + len(pixels) for posts in columns for top, pixels in posts), default=0)
    head = struct.pack("<4h", len(columns), height, 0, 0)
    offsets, body = [], b""
    for posts in columns:
        offsets.append(len(head) + 4 * len(columns) + len(body))
        for top, pixels in posts:
            body += struct.pack("<3B", top, len(pixels), 99) + pixels + b"\x63"
        body += b"\xff"
    return head + struct.pack(f"<{len(offsets)}I", *offsets) + body


def solid(width, height, value):
    """A patch without gaps; value(x, y) is the palette index."""
    return patch([[(0, bytes(value(x, y) for y in range(height)))] for x in range(width)])


def texture_table(textures):
    """A TEXTURE1 lump of (name, width, height, [(x, y, patch number)])."""
    entries = []
    for name, width, height, pieces in textures:
        entry = struct.pack("<8siHHiH", name.encode(), 0, width, height, 0, len(pieces))
        entries.append(entry + b"".join(struct.pack("<5h", x, y, number, 1, 0) for x, y, number in pieces))
    table, at = struct.pack("<i", len(entries)), 4 + 4 * len(entries)
    for entry in entries:
        table += struct.pack("<i", at)
        at += len(entry)
    return table + b"".join(entries)


def wad(lumps):
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    return struct.pack("<4sii", b"IWAD", len(lumps), 12 + len(body)) + body + directory


def pnames(*names):
    return struct.pack("<i", len(names)) + b"".join(struct.pack("<8s", n.encode()) for n in names)


def left(x, y):
    return (3 * x + y) % 128


def right(x, y):
    return 128 + (x + 5 * y) % 128


FLAT = bytes((7 * (i % 64) + i // 64) % 256 for i in range(4096))
GRATE = [[(0, b"\1" * 20), (44, b"\2" * 20)] for _ in range(64)]  # a hole from row 20 to 43


def tiny_wad(textures=None, **changes):
    """Two opaque patches, one with a hole, a table of textures and some flats; changes replace or (None) drop lumps."""
    if textures is None:
        textures = [
            ("BRICK", 128, 64, [(0, 0, 0), (64, 0, 1)]),
            ("COPY", 128, 64, [(0, 0, 0), (64, 0, 1)]),
            ("GRATE", 64, 64, [(0, 0, 2)]),
            ("STRIP", 32, 64, [(0, 0, 0)]),
            ("SW1BRIK", 64, 64, [(0, 0, 0)]),
            ("P-SKY1", 64, 64, [(0, 0, 0)]),
        ]
    lumps = {
        "PLAYPAL": PLAYPAL,
        "FREEDOOM": b"9.9.9\n",
        "TEXTURE1": texture_table(textures),
        "PNAMES": pnames("LEFT", "right", "GRATE"),  # names compare without case
        "P_START": b"",
        "LEFT": solid(64, 64, left),
        "RIGHT": solid(64, 64, right),
        "GRATE": patch(GRATE),
        "P_END": b"",
        "F_START": b"",
        "F1_START": b"",
        "FLOOR": FLAT,
        "F1_END": b"",
        "COPY": FLAT,
        "F_SKY1": FLAT[::-1],
        "PLAIN": b"\5" * 4096,
        "ODD": b"\5" * 100,
        "F_END": b"",
    }
    lumps.update(changes)
    return wad([(name, data) for name, data in lumps.items() if data is not None])


def one(textures, **changes):
    """The palette indices of the only wall."""
    found, _ = ft.pictures(tiny_wad(textures, **changes))
    (wall,) = [p for p in found if p[0] == "walls"]
    _, _, width, height, rgb = wall
    red = rgb[0::3]  # red is the index itself
    return [red[width * y : width * (y + 1)] for y in range(height)]


class Composition(unittest.TestCase):
    def test_two_patches_side_by_side(self):
        rows = one([("BRICK", 128, 64, [(0, 0, 0), (64, 0, 1)])])
        for y in range(64):
            want = bytes(left(x, y) for x in range(64)) + bytes(right(x, y) for x in range(64))
            self.assertEqual(rows[y], want, f"row {y}")

    def test_the_palette_gives_the_three_channels_of_a_flat(self):
        found, _ = ft.pictures(tiny_wad())
        (flat,) = [p for p in found if p[0] == "flats"]
        self.assertEqual(flat[2:4], (64, 64))
        self.assertEqual(flat[4], b"".join(PALETTE[3 * i : 3 * i + 3] for i in FLAT))

    def test_a_later_patch_lies_over_an_earlier_one(self):
        rows = one([("BRICK", 64, 64, [(0, 0, 0), (10, 20, 1)])])
        for y in range(64):
            for x in range(64):
                over = x >= 10 and y >= 20
                self.assertEqual(rows[y][x], right(x - 10, y - 20) if over else left(x, y), (x, y))

    def test_negative_origins_cut_the_patch(self):
        rows = one([("BRICK", 64, 64, [(0, 0, 0), (-60, -61, 1)])])
        for y in range(64):
            for x in range(64):
                over = x < 4 and y < 3
                self.assertEqual(rows[y][x], right(x + 60, y + 61) if over else left(x, y), (x, y))

    def test_patches_wholly_outside_leave_the_texture_alone(self):
        outside = [(64, 0, 1), (-64, 0, 1), (0, 64, 1), (0, 70, 1), (0, -64, 1), (0, 300, 1), (0, -300, 1)]
        rows = one([("BRICK", 64, 64, [(0, 0, 0)] + outside)])
        self.assertEqual(rows, [bytes(left(x, y) for x in range(64)) for y in range(64)])

    def test_a_patch_with_a_hole_shows_what_is_beneath(self):
        rows = one([("BRICK", 64, 64, [(0, 0, 0), (0, 0, 2)])])
        self.assertEqual({rows[y][9] for y in range(20)}, {1})
        self.assertEqual([rows[y][9] for y in range(20, 44)], [left(9, y) for y in range(20, 44)])
        self.assertEqual({rows[y][9] for y in range(44, 64)}, {2})

    def test_a_flat_of_the_same_name_is_not_taken_for_the_patch(self):
        lumps = ft.read_lumps(wad([("LEFT", b"patch"), ("F_START", b""), ("LEFT", b"flat"), ("F_END", b"")]))
        self.assertEqual(ft.split_lumps(lumps), ({"LEFT": b"flat"}, {"LEFT": b"patch"}))


class Choice(unittest.TestCase):
    def test_what_is_skipped_and_why(self):
        found, reasons = ft.pictures(tiny_wad())
        self.assertEqual([(kind, name) for kind, name, *_ in found], [("flats", "COPY"), ("walls", "BRICK")])
        self.assertEqual(
            reasons,
            {"not 64x64": 1, "plain": 1, "sky": 2, "the same as another": 2, "holes": 1, "too small": 1, "switches": 1},
        )

    def test_one_uncovered_pixel_is_a_hole(self):
        pieces = [(0, 0, 0), (-1, 0, 1)]
        almost = [[(0, b"\1" * 64)] for _ in range(63)] + [[(0, b"\1" * 63)]]
        _, reasons = ft.pictures(tiny_wad([("GRATE", 64, 64, [(0, 0, 2)])], GRATE=patch(almost)))
        self.assertEqual(reasons["holes"], 1)
        _, reasons = ft.pictures(tiny_wad([("GRATE", 64, 64, pieces)], GRATE=patch(almost)))
        self.assertEqual(reasons["holes"], 0)

    def test_the_lists_hold_no_pattern_twice(self):
        for skip in (ft.SKIP_FLATS, ft.SKIP_WALLS):
            patterns = [p for _, line in skip for p in line.split()]
            self.assertEqual(len(patterns), len(set(patterns)))


class BadWads(unittest.TestCase):
    def refused(self, data, text):
        with self.assertRaises(ft.Failure) as caught:
            ft.pictures(data)
        self.assertIn(text, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_messages(self):
        self.refused(b"", "damaged")
        self.refused(b"PK\3\4" + bytes(20), "not a WAD")
        self.refused(tiny_wad(PLAYPAL=None), "PLAYPAL")
        self.refused(tiny_wad(RIGHT=None), "no patch RIGHT")
        self.refused(tiny_wad([("BRICK", 64, 64, [(0, 0, 3)])]), "patch 3 of 3")
        self.refused(tiny_wad(LEFT=solid(64, 64, left)[:-30]), "damaged")
        reaching_out = wad([("X", b"x")]).replace(struct.pack("<ii", 12, 1), struct.pack("<ii", 12, 999))
        self.refused(reaching_out, "outside")

    def test_every_truncation_is_refused(self):
        whole = tiny_wad()
        for size in range(0, len(whole), 997):
            with self.assertRaises(ft.Failure):
                ft.pictures(whole[:size])

    def test_a_name_cannot_leave_the_folder(self):
        for name in ("../X", "A/B", "", "A B", "A\\B"):
            with self.assertRaises(ft.Failure):
                ft.file_name(name)
        self.assertEqual(ft.file_name("A-BRK_1"), "a-brk_1.png")


class Folder(unittest.TestCase):
    """run() with the network and Pillow replaced."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.base = Path(scratch.name)
        self.out = self.base / "data" / "freedoom"
        image = mock.Mock()
        image.frombytes = lambda mode, size, rgb: mock.Mock(save=lambda path: path.write_bytes(rgb))
        self.data = tiny_wad()
        self.origin = "the Debian package freedoom_9.deb"
        for name, value in {"pillow": lambda: image, "fetch": self.fetch}.items():
            patcher = mock.patch.object(ft, name, value)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.fetched = 0

    def fetch(self, folder):
        self.assertTrue(folder.is_dir())
        self.fetched += 1
        return self.data, self.origin, "the licence, ©\n"

    def run_it(self):
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
            ft.run(self.out)
        return said.getvalue()

    def entries(self):
        return sorted(str(p.relative_to(self.base)) for p in self.base.rglob("*") if p.is_file())

    def test_what_is_written(self):
        self.assertIn("1 flats, 1 walls", self.run_it())
        folder = "data/freedoom/"
        want = [folder + name for name in ("COPYING", "SOURCE.txt", "flats/copy.png", "walls/brick.png")]
        self.assertEqual(self.entries(), want)
        self.assertEqual((self.out / "flats/copy.png").read_bytes()[0::3], FLAT)
        self.assertEqual((self.out / "COPYING").read_text("utf-8"), "the licence, ©\n")
        source = (self.out / "SOURCE.txt").read_text("utf-8")
        for text in ("Freedoom 9.9.9", self.origin, ft.sha256(self.data), ft.recipe(), "1 switches"):
            self.assertIn(text, source)

    def test_a_second_run_does_nothing(self):
        self.run_it()
        self.assertIn("up to date", self.run_it())
        self.assertEqual(self.fetched, 1)

    def test_a_lost_picture_or_another_recipe_is_made_good(self):
        self.run_it()
        (self.out / "walls/brick.png").unlink()
        self.run_it()
        self.assertTrue((self.out / "walls/brick.png").exists())
        with mock.patch.object(ft, "MIN_SIDE", 32):
            self.run_it()
            self.assertTrue((self.out / "walls/strip.png").exists())
        self.assertEqual(self.fetched, 3)

    def test_an_interruption_leaves_nothing_behind(self):
        with mock.patch.object(ft, "lay_out", side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
            self.run_it()
        self.assertEqual(self.entries(), [])
        self.run_it()

    def test_a_strangers_folder_is_left_alone(self):
        self.out.mkdir(parents=True)
        (self.out / "thesis.doc").write_text("x")
        with self.assertRaisesRegex(ft.Failure, "thesis.doc.*--out"):
            self.run_it()
        self.assertEqual(self.entries(), ["data/freedoom/thesis.doc"])
        self.assertEqual(self.fetched, 0)

    def test_a_full_disk_is_named_before_anything_is_fetched(self):
        with mock.patch.object(ft, "NEEDED_MB", 2**50), self.assertRaisesRegex(ft.Failure, "MB free"):
            self.run_it()
        self.assertEqual((self.fetched, self.entries()), (0, []))

    def test_the_wheels_wad_is_pinned(self):
        self.origin = "the Python package"
        with self.assertRaisesRegex(ft.Failure, "not the expected one"):
            self.run_it()
        self.assertEqual(self.entries(), [])


class Packages(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_both_reasons_in_one_line_when_nothing_can_be_fetched(self):
        def no_network(command, **_):
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no such host\n\n")

        with mock.patch.object(ft.subprocess, "run", no_network), self.assertRaises(ft.Failure) as caught:
            ft.fetch(self.folder)
        self.assertEqual(
            str(caught.exception),
            "pip cannot fetch vizdoom==1.3.2: no such host; apt-get cannot fetch freedoom: no such host"
            " (is there a network?)",
        )

    def test_an_altered_wheel_is_not_used(self):
        def altered(command, **_):
            Path(command[command.index("--dest") + 1], "vizdoom.whl").write_bytes(b"altered")
            return subprocess.CompletedProcess(command, 0, "", "")

        with mock.patch.object(ft.subprocess, "run", altered), self.assertRaisesRegex(SystemExit, "was altered"):
            ft.fetch(self.folder)

    def test_a_missing_program_is_named(self):
        with self.assertRaisesRegex(ft.Failure, "cannot fetch: there is no /nowhere/apt-get"):
            ft.call(["/nowhere/apt-get"], "cannot fetch")

    def test_help_and_a_wrong_option(self):
        result = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
        self.assertIn("--out", result.stdout)
        result = subprocess.run([sys.executable, str(SCRIPT), "--size"], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 2)


if __name__ == "__main__":
    unittest.main()
