"""Results as text and as the tables of docs/BENCHMARKS.md."""

from pathlib import Path

from cases import CONTESTANTS, NETS, OURS, TASKS, cases
from protocol import Refused
from scale import AXES, x_of

BEGIN, END = "<!-- figures of `make bench` -->", "<!-- end of the figures -->"
TITLES = {contestant.name: contestant.title for contestant in CONTESTANTS}
NONE = "–"


def digits(value):
    """Three of them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def lines(result):
    """One line for each contestant of a result: for the terminal."""
    yield result["case"]
    for name, found in result["contestants"].items():
        if "failed" in found:
            yield f"  {TITLES[name]:14} {found['failed']}"
            continue
        text = f"  {TITLES[name]:14} {digits(1e3 * found['min']):>6} ms least {digits(1e3 * found['median']):>6} ms median"
        text += f"  {found['peak_bytes'] / 2**20:5.0f} MiB  difference {found['difference']:.0e}"
        if name != OURS and "ratio" in found:
            text += f"  takes {found['ratio']['min']:.2f} (least), {found['ratio']['median']:.2f} (median) times ours"
        yield text


def table(head, rows):
    return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]])


def good(result, name):
    """A contestant's figures, None where it took no part or its result was not right."""
    found = result["contestants"].get(name, {})
    return found if found.get("rounds") and "failed" not in found else None


def fastest(result):
    """(ratio of the medians, title) of the peer that takes the least time; None without one."""
    peers = [name for name in TITLES if name != OURS and good(result, name)]
    if not peers or not good(result, OURS):
        return None
    return min((good(result, name)["ratio"]["median"], TITLES[name]) for name in peers)


def times(results):
    """Rows for the cases of one task on one device: [(case, result)]."""
    names = [name for name in TITLES if name != OURS and any(name in result["contestants"] for _, result in results)]
    head = ["network", "precision", "batch", "ours, ms", *(TITLES[name] for name in names), "the fastest of them"]
    rows = []
    for case, result in results:
        ours = good(result, OURS)
        row = [NETS[case.net].title, case.precision, case.batch]
        row.append(f"{digits(1e3 * ours['min'])} / {digits(1e3 * ours['median'])}" if ours else NONE)
        for name in names:
            peer = good(result, name)
            row.append(f"{peer['ratio']['min']:.2f} / {peer['ratio']['median']:.2f}" if peer and ours else NONE)
        best = fastest(result)
        rows.append([*row, f"**{best[0]:.2f}** {best[1]}" if best else NONE])
    return table(head, rows)


def memory(results):
    """MiB for the cases of one task on one device; of CUDA what the device holds."""
    names = [name for name in TITLES if any(good(result, name) for _, result in results)]
    rows = []
    for case, result in results:
        key = "device_bytes" if case.device == "cuda" else "peak_bytes"
        values = [(good(result, name) or {}).get(key) for name in names]
        rows.append([NETS[case.net].title, case.precision, case.batch, *(f"{v / 2**20:.0f}" if v else NONE for v in values)])
    return table(["network", "precision", "batch", *(TITLES[name] for name in names)], rows)


def attained(results, counts, peaks):
    """Our steps against the arithmetic that the network is and that the processor could do. counts: {(net, precision,
    batch): arithmetic.total's}."""
    rows = []
    for case, result in results:
        found = good(result, OURS)
        if case.task != "step" or case.device != "cpu" or not found:
            continue
        counted, rate = counts[case.net, case.precision, case.batch], 1e-9 / found["min"]
        row = [NETS[case.net].title, case.precision, case.batch, f"{counted['flops'] * 1e-9:.1f}", f"{counted['bytes'] * 1e-6:.0f}"]
        share = counted["flops"] * rate / best_peak(peaks)
        rows.append([*row, f"{counted['flops'] * rate:.0f}", f"{share:.0%}", f"{counted['bytes'] * rate:.1f}"])
    return table(["network", "precision", "batch", "GFLOP", "MB", "GFLOP/s", "of the peak", "GB/s"], rows)


def best_peak(peaks):
    """GFLOP/s of the fastest f32 instruction set: what shares are told of, of bf16 too."""
    return max(value for name, value in peaks.items() if name in ("avx2", "avx512"))


def scaling(found):
    """A table for each axis: the time, and what the model says."""
    parts = []
    for axis, points in AXES.items():
        counted = found[0]["counted"][axis]
        rows = [[axis, *(x_of(axis, point) for point in points)]]
        evaluations = [point.evaluations for point in points]
        rows.append(["GFLOP", *(digits(n * c["flops"] * 1e-9) for n, c in zip(evaluations, counted))])
        rows.append(["MB", *(digits(n * c["bytes"] * 1e-6) for n, c in zip(evaluations, counted))])
        for one in found:
            for name, key in (("measured", "seconds"), ("by the model", "predicted")):
                rows.append([f"ms, {one['precision']}, {name}", *(digits(1e3 * value) for value in one[key][axis])])
        parts.append(table(rows[0], rows[1:]))
    return "\n\n".join(parts)


def models(found, peaks):
    rows = []
    for one in found:
        model = one["model"]
        share = f"{model['flops'] * 1e-9:.0f} GFLOP/s ({model['flops'] * 1e-9 / best_peak(peaks):.0%} of the peak)"
        bandwidth = f"{model['bandwidth'] * 1e-9:.1f} GB/s" if model["bandwidth"] < float("inf") else "no limit seen"
        rows.append([one["precision"], f"{1e3 * model['call']:.2f} ms", share, bandwidth, f"{model['error']:.0%}"])
    return table(["precision", "each evaluation", "arithmetic", "traffic", "largest error"], rows)


def failures(results):
    """Why a dash is in the tables: {reason: cases}."""
    found = {}
    for case, result in results:
        for name, one in result["contestants"].items():
            if "failed" in one:
                found.setdefault(f"{TITLES[name]}: {one['failed']}", []).append(case.name)
    return [f"- {why} ({', '.join(names)})" for why, names in found.items()]


def document(results, facts):
    """The text between the marks. results: [(case, result)]; facts: machine (lines), counts, peaks, scale, calls, and what
    was not run is not there."""
    parts = ["\n".join(f"- {line}" for line in facts["machine"])]
    for device in dict.fromkeys(case.device for case, _ in results):
        where = "" if device == "cpu" else " on the GPU"
        for task, title in TASKS.items():
            found = [(case, result) for case, result in results if (case.task, case.device) == (task, device)]
            if found:
                parts += [f"### {title[0].upper()}{title[1:]}{where}", times(found)]
                parts += [f"Peak memory{where}, MiB:", memory(found)]
    if failures(results):
        parts += ["Not measured:", "\n".join(failures(results))]
    if "peaks" in facts:
        parts += ["### Arithmetic and traffic of a step", attained(results, facts["counts"], facts["peaks"])]
    if facts.get("scale"):
        parts += ["### Cost as sizes grow", "The model's terms, fitted to all points:", models(facts["scale"], facts["peaks"])]
        parts += [scaling(facts["scale"])]
    if "calls" in facts:
        parts += ["### Calls and batching", "```text\n" + facts["calls"].strip() + "\n```"]
    return "\n\n".join(parts)


def write(text, path):
    """Puts it between the marks in the document."""
    try:
        before, rest = Path(path).read_text("utf-8").split(BEGIN)
        after = rest.split(END)[1]
    except (OSError, ValueError, IndexError):
        raise Refused(f"{path} must hold the lines {BEGIN} and {END}, between which the tables go") from None
    Path(path).write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")


def kept(bench, devices, names):
    """All cases that have a result."""
    found = ((case, bench.kept(case, names)) for case in cases(devices))
    return [(case, result) for case, result in found if result]
