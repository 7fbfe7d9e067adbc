"""All figures of one set of samples, as text, as tables of docs/QUALITY.md and as a plot."""

from pathlib import Path

import metrics
import numpy
from images import Problem

BEGIN, END = "<!-- figures of `make quality` -->", "<!-- end of the figures -->"
# Colours that also colour-blind eyes tell apart (Okabe and Ito), with a mark of its own for each solver.
STYLES = [
    ("#000000", "o"), ("#0072b2", "s"), ("#56b4e9", "D"), ("#d55e00", "^"),
    ("#e69f00", "v"), ("#009e73", "P"), ("#cc79a7", "X"), ("#999933", "*"),
]  # fmt: skip


def figures(sample_features, real_features, samples, real):
    """Everything but the nearest windows: the value of the samples and of real against real for each statistic."""
    found, frechet_floor = metrics.against_halves(sample_features, real_features, metrics.frechet)
    kid_floor = metrics.against_halves(sample_features, real_features, lambda x, y: metrics.kid(x, y, subsets=0)[0])[1]
    to_real, _ = metrics.nearest(sample_features, real_features)
    to_others, _ = metrics.nearest(real_features, real_features, others=True)
    return {
        "kid": metrics.kid(sample_features, real_features),
        "kid floor": kid_floor,
        "frechet": found,
        "frechet floor": frechet_floor,
        "features": metrics.closeness(to_real, to_others),
        "seam": metrics.seam_ratio(samples),
        "seam floor": metrics.seam_ratio(real),
    }


def neighbours(samples, real, whole, shown=12):
    """(closeness in pixels, two rows of pictures: the samples nearest to what was trained on, and that)."""
    windows = metrics.Windows(whole, samples.shape[1])
    near = windows.nearest_of(samples, description="samples to textures")
    own = windows.nearest_of(real, own=True, description="textures to textures")
    order = numpy.argsort([distance for distance, *_ in near])[:shown]
    rows = [[samples[i] for i in order], [near[i][2] for i in order]]
    return metrics.closeness(*(numpy.array([distance for distance, *_ in found]) for found in (near, own))), rows


def text(found, pixels, samples, real):
    """What `score` prints."""
    def pair(value):
        return f"{value[0]:.4f} +- {value[1]:.4f}"

    def near(value, digits):
        return f"{value[0]:.{digits}f}, {value[2]:.1%} of them closer", f"{value[1]:.{digits}f}, 5.0%"

    count = min(samples, real // 2)
    rows = [
        ("", f"{samples} samples", f"real against real ({real})"),
        ("KID", pair(found["kid"]), pair(found["kid floor"])),
        (f"Frechet distance, {count} to {real // 2} images", pair(found["frechet"]), pair(found["frechet floor"])),
        ("nearest real image, features, median", *near(found["features"], 3)),
        ("nearest real window, pixels of 0..255, median", *near(pixels, 2)),
        ("seam ratio", f"{found['seam']:.3f}", f"{found['seam floor']:.3f}"),
    ]
    lines = [f"{name:47} {value:32} {floor}".rstrip() for name, value, floor in rows]
    return "\n".join(lines + ["on EfficientNet-Lite0 features, which is not FID; `closer`: below the 5% quantile of the real ones"])


def table(points, cell, floor):
    """A Markdown table: a row for each solver, a column for each number of evaluations."""
    evaluations = sorted({n for _, n in points})
    lines = ["| network evaluations | " + " | ".join(map(str, evaluations)) + " |", "| --- |" + " --- |" * len(evaluations)]
    for solver in dict.fromkeys(solver for solver, _ in points):
        lines.append(f"| {solver} | " + " | ".join(cell(points[solver, n]) for n in evaluations) + " |")
    first = next(iter(points.values()))
    return "\n".join(lines + [f"| *real against real* | {floor(first)} |" + " |" * (len(evaluations) - 1)])


def write_tables(points, count, real, path):
    """Puts the tables between the marks in the document."""
    try:
        before, rest = Path(path).read_text("utf-8").split(BEGIN)
        after = rest.split(END)[1]
    except (OSError, ValueError, IndexError):
        raise Problem(f"{path} must hold the lines {BEGIN} and {END}, between which the tables go") from None

    def both(value, digits):
        return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"

    parts = [
        f"{count} samples a point, {real} real images.",
        "KID × 1000, with its standard error:",
        table(points, lambda p: both([1000 * v for v in p["kid"]], 1), lambda p: both([1000 * v for v in p["kid floor"]], 1)),
        f"Fréchet distance of {min(count, real // 2)} samples and {real // 2} real images, mean over 20 splits of these:",
        table(points, lambda p: f"{p['frechet'][0]:.2f}", lambda p: both(p["frechet floor"], 2)),
        "Seam ratio:",
        table(points, lambda p: f"{p['seam']:.2f}", lambda p: f"{p['seam floor']:.2f}"),
        "Share of samples whose nearest real image in features is closer than that of 95 % of the real images:",
        table(points, lambda p: f"{100 * p['features'][2]:.0f} %", lambda p: "5 %"),
    ]
    Path(path).write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after, "utf-8")


def draw(points, count, real, path):
    """KID and the Frechet distance over the evaluations, a line for each solver, the floors dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    evaluations = sorted({n for _, n in points})
    solvers = list(dict.fromkeys(solver for solver, _ in points))
    titles = {"kid": "KID × 1000", "frechet": f"Fréchet distance ({min(count, real // 2)} to {real // 2} images)"}
    for axis, (key, title) in zip(axes, titles.items()):
        scale = 1000 if key == "kid" else 1
        for k, (solver, (colour, mark)) in enumerate(zip(solvers, STYLES)):
            values = numpy.array([points[solver, n][key] for n in evaluations]) * scale
            x = numpy.array(evaluations) * (1 + 0.012 * (k - len(solvers) / 2))  # beside each other, so that the bars show
            bars = values[:, 1] if key == "kid" else None
            axis.errorbar(x, values[:, 0], bars, color=colour, marker=mark, label=solver, linewidth=1.3, elinewidth=0.6)
        mean, deviation = (scale * v for v in next(iter(points.values()))[key + " floor"])
        axis.axhline(mean, color="gray", linestyle="--", label="real against real")
        axis.axhspan(mean - deviation, mean + deviation, color="gray", alpha=0.2)
        axis.set_title(title)
        axis.set_xlabel("network evaluations")
        axis.set_xscale("log")
        axis.set_xticks(evaluations, [str(n) for n in evaluations])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=9)
    figure.suptitle(f"{count} samples a point, on EfficientNet-Lite0 features (lower is better; not FID)", fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
