"""What a sampling step costs as image size, batch, width and steps grow, and the model that predicts it.

    seconds = calls + flops / (share * peak) + bytes / bandwidth

of one evaluation: flops and bytes from arithmetic.py, peak from benches/peak. calls (what every evaluation costs), share and
bandwidth are fitted to the measured points by least squares of the relative error, none below 0.
"""

import json
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import arithmetic
import numpy


@dataclass(frozen=True)
class Point:
    """A network of three levels and what is asked of it: steps 0 is one evaluation, more are a whole DDIM."""

    image_size: int = 32
    batch: int = 8
    widths: tuple = (64, 128, 256)
    steps: int = 0

    @property
    def evaluations(self):
        return self.steps or 1


BASE = Point()
AXES = {
    "image size": [replace(BASE, image_size=size) for size in (16, 32, 48, 64, 96, 128)],
    "batch": [replace(BASE, batch=batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
    "width of the first level": [replace(BASE, widths=(w, 2 * w, 4 * w)) for w in (16, 32, 64, 96, 128)],
    "steps": [replace(BASE, batch=1, steps=steps) for steps in (1, 2, 5, 10, 20, 50, 100)],
}


def x_of(axis, point):
    """Where a point lies on its axis."""
    return {"image size": point.image_size, "batch": point.batch, "steps": point.steps}.get(axis, point.widths[0])


def fit(flops, moved, evaluations, seconds):
    """The three terms' factors, (seconds a call, seconds a flop, seconds a byte), for a time of `evaluations` calls that do
    `flops` and move `moved` bytes in all. Of all ways to leave terms out, that with the least error whose factors are
    not negative."""
    columns = numpy.array([evaluations, flops, moved], dtype=numpy.float64).T / numpy.asarray(seconds)[:, None]
    best, least = numpy.zeros(3), numpy.inf
    for count in (1, 2, 3):
        for kept in map(list, combinations(range(3), count)):
            scale = numpy.abs(columns[:, kept]).max(axis=0)
            factors = numpy.linalg.lstsq(columns[:, kept] / scale, numpy.ones(len(columns)), rcond=None)[0] / scale
            error = numpy.sum((columns[:, kept] @ factors - 1) ** 2)
            if (factors >= 0).all() and error < least - 1e-12:
                best, least = numpy.zeros(3), error
                best[kept] = factors
    return best


def config_of(net_folder):
    return json.loads((Path(net_folder) / "unet/config.json").read_text())


def model(points, configs, seconds):
    """What is fitted to measured points, and what it predicts for them."""
    counted = [arithmetic.total(config, point.batch) for config, point in zip(configs, points)]
    calls = numpy.array([point.evaluations for point in points])
    flops, moved = (calls * numpy.array([c[key] for c in counted], dtype=numpy.float64) for key in ("flops", "bytes"))
    factors = fit(flops, moved, calls, seconds)
    predicted = numpy.array([calls, flops, moved]).T @ factors
    return {
        "call": factors[0],
        "flops": 1 / factors[1] if factors[1] else float("inf"),
        "bandwidth": 1 / factors[2] if factors[2] else float("inf"),
        "predicted": predicted.tolist(),
        "error": float(numpy.max(numpy.abs(predicted / numpy.asarray(seconds) - 1))),
    }


def draw(measured, predicted, path):
    """A panel for each axis: measured points for each precision, the model's as lines. measured and predicted: {precision:
    {axis: [seconds]}} in the order of AXES."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(AXES), figsize=(15, 4.2), layout="constrained")
    for panel, (axis, points) in zip(axes, AXES.items()):
        x = [x_of(axis, point) for point in points]
        for precision, colour, mark in zip(measured, ("#0072b2", "#d55e00"), ("o", "s")):
            panel.plot(x, 1e3 * numpy.array(predicted[precision][axis]), color=colour, linewidth=1)
            label = f"{precision} measured"
            panel.plot(x, 1e3 * numpy.array(measured[precision][axis]), mark, color=colour, label=label)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(x, list(map(str, x)))
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    axes[0].legend(title="lines: the model", fontsize=8)
    titles = ["one evaluation, batch 8", "one evaluation, 32x32", "one evaluation, 32x32, batch 8", "DDIM, 32x32, batch 1"]
    for panel, title in zip(axes, titles):
        panel.set_title(title, fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
