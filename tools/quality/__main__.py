#!/usr/bin/env python3
"""How good are samples, measured without the network's help: against the real images that they should look like.

    python tools/quality score SAMPLES REAL [--textures FOLDER... --scale-down N]
    python tools/quality prepare TEXTURES... --scale-down 2 --size 32 --out REAL
    python tools/quality plot --textures TEXTURES... --scale-down 2 --size 32

score compares two folders of PNGs of one size: KID and a Frechet distance on EfficientNet-Lite0's features, the distance to
the nearest real image, the seam ratio; beside each what real images score against real ones. prepare cuts textures as
train_textures does. plot samples a model with every solver and draws quality over the number of network evaluations.

The Frechet distance is not FID, which is defined on another network's features: compare figures of this tool only with each
other, at equal numbers of images. docs/QUALITY.md says what the figures mean. `make quality` installs what this needs.
"""

import argparse
import sys
from pathlib import Path

import images
import metrics
import report
import sampling
from images import Problem

# Fewer give figures that say nothing. The real images are halved.
LEAST_SAMPLES = 16
LEAST_REAL = 2 * LEAST_SAMPLES


def features(threads):
    """Torch takes seconds to load, and the tests do without it: only when everything else has been found good."""
    try:
        from features import Features
    except ImportError as error:
        raise Problem(f"{error}; `make quality` installs what is needed into .venv-quality") from None
    return Features(threads)


def load_pair(samples_folder, real_folder):
    samples = images.load(samples_folder, LEAST_SAMPLES)
    real = images.load(real_folder, LEAST_REAL)
    if samples.shape[1:] != real.shape[1:]:
        sizes = [f"{folder} holds {p.shape[2]}x{p.shape[1]}" for folder, p in ((samples_folder, samples), (real_folder, real))]
        raise Problem(f"{' but '.join(sizes)}: both folders must hold pictures of one size")
    return samples, real


def whole_textures(options, real):
    """What the training cut its images from: texture i is that of real image i."""
    if not options.textures:
        return list(real)
    whole = images.textures(options.textures, options.scale_down)
    if len(whole) != len(real):
        raise Problem(
            f"{', '.join(map(str, options.textures))} hold {len(whole)} textures, but there are {len(real)} real images: "
            "must be what `prepare` made the real images from"
        )
    return whole


def score(options):
    samples, real = load_pair(options.samples, options.real)
    whole = whole_textures(options, real)
    network = features(options.threads)
    found = report.figures(network(samples, "samples"), network(real, "real"), samples, real)
    pixels, rows = report.neighbours(samples, real, whole)
    print(report.text(found, pixels, len(samples), len(real)))
    if options.neighbours:
        images.sheet(rows, options.neighbours)
        print(f"open {options.neighbours} to see the samples nearest to a real image, each above what it is nearest to")


def prepare(options):
    whole = images.textures(options.textures, options.scale_down)
    images.prepare(whole, options.size, options.out)
    print(f"{len(whole)} pictures of {options.size}x{options.size} in {options.out}")


def plot(options):
    work = Path(options.work)
    images.prepare(images.textures(options.textures, options.scale_down), options.size, work / "real")
    for place in sampling.run(work / "samples", options):
        images.load(place)  # whatever is wrong with it is found before the long part
    real = images.load(work / "real", LEAST_REAL)
    network = features(options.threads)
    real_features = network(real, "real")
    points = {}
    for solver in sampling.SOLVERS:
        for n in options.evaluations:
            place = work / "samples" / sampling.folder_name(solver, n)
            samples = images.load(place, LEAST_SAMPLES)[: options.count]
            points[solver, n] = report.figures(network(samples, place.name), real_features, samples, real)
    report.draw(points, options.count, len(real), Path(options.docs) / "images" / "quality.png")
    report.write_tables(points, options.count, len(real), Path(options.docs) / "QUALITY.md")
    print(f"open {options.docs}/images/quality.png; the figures are in {options.docs}/QUALITY.md")


def numbers(text):
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be whole numbers above 0 between commas")
    return found


def at_least(least):
    def parse(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {least} on")
        return int(text)

    return parse


def parser():
    top = argparse.ArgumentParser(prog="quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        added.add_argument("--scale-down", type=at_least(1), default=1, metavar="N", help="shrink the textures so many times")
        added.add_argument("--threads", type=at_least(1), default=1, help="threads to compute with (default 1)")
        return added

    one = command("score", score, "Score a folder of samples against a folder of real images.")
    one.add_argument("samples", type=Path)
    one.add_argument("real", type=Path)
    one.add_argument("--textures", type=Path, nargs="+", metavar="FOLDER", help="what `prepare` made the real images from")
    one.add_argument("--neighbours", type=Path, metavar="PNG", help="draw the samples that are nearest to a real image")

    cut = command("prepare", prepare, "Cut textures at random places as train_textures does, one picture of each.")
    cut.add_argument("textures", type=Path, nargs="+")
    cut.add_argument("--size", type=at_least(1), required=True)
    cut.add_argument("--out", type=Path, required=True)

    many = command("plot", plot, "Sample a model with every solver, score it and draw the figures.")
    many.add_argument("--textures", type=Path, nargs="+", required=True, metavar="FOLDER")
    many.add_argument("--size", type=at_least(1), required=True)
    many.add_argument("--model", type=Path, default="models/textures")
    many.add_argument("--program", type=Path, default="build/examples/make_textures")
    many.add_argument("--count", type=at_least(LEAST_SAMPLES), default=64, help="samples of each point (default 64)")
    many.add_argument("--evaluations", type=numbers, default=[5, 10, 20, 50], metavar="N,N", help="(default 5,10,20,50)")
    many.add_argument("--work", type=Path, default="out/quality", help="where the samples are kept (default out/quality)")
    many.add_argument("--docs", type=Path, default="docs", help="where the plot and the tables go (default docs)")
    return top


def main():
    options = parser().parse_args()
    try:
        options.function(options)
    except Problem as problem:
        sys.exit(f"quality: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
