"""Results as text and as the tables of docs/BENCHMARKS.md."""

from cases import CONTESTANTS, NETS, OURS

TITLES = {contestant.name: contestant.title for contestant in CONTESTANTS}


def milliseconds(seconds):
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def lines(result):
    """One line for each contestant of a result: for the terminal."""
    yield result["case"]
    for name, found in result["contestants"].items():
        if "failed" in found:
            yield f"  {TITLES[name]:14} {found['failed']}"
            continue
        text = f"  {TITLES[name]:14} {milliseconds(found['min']):>7} ms least {milliseconds(found['median']):>7} ms median"
        text += f"  {found['peak_bytes'] / 2**20:5.0f} MiB  difference {found['difference']:.0e}"
        if name != OURS and "ratio" in found:
            text += f"  takes {found['ratio']['min']:.2f} (least), {found['ratio']['median']:.2f} (median) times ours"
        yield text
