#!/usr/bin/env python3
"""How fast is libdiffusion beside what else runs or trains the same network? `make bench` installs what this needs.

    python tools/bench [--quick] [--cases 'step-cifar10-*' scale] [--contestants ours,openvino]

Everything is kept in out/bench as it is measured, so that a run that was cut off goes on where it stopped; with another
library, other peers, threads or another machine it is measured anew. At the end docs/BENCHMARKS.md's tables are written from
all that is kept. It says how to read them.
"""

import argparse
import signal
import subprocess
import sys
from datetime import date
from fnmatch import fnmatch
from pathlib import Path

import arithmetic
import cases
import machine
import measure
import report
import scale
from protocol import Refused

# What is measured beside the cases, by names that --cases takes too.
EXTRAS = ("peak", "scale-f32", "scale-bf16", "calls", "count")


def extras(bench, patterns):
    """{name: what was found} of the EXTRAS that are asked for and can be had; the others as far as they are kept."""
    compute = {
        "peak": lambda: measure.peak(bench.threads),
        "scale-f32": lambda: measure.scale(bench, "f32"),
        "scale-bf16": lambda: measure.scale(bench, "bf16"),
        "calls": lambda: measure.calls(bench),
        "count": lambda: {net: measure.count(bench, net) for net in cases.NETS},
    }
    found = {}
    for name in EXTRAS:
        asked = not patterns or any(fnmatch(name, pattern) for pattern in patterns)
        try:
            found[name] = bench.extra(name, compute[name] if asked else None)
        except Refused as problem:
            measure.say(f"{name}: {problem}")
    return {name: value for name, value in found.items() if value}


def facts(bench, found, results):
    """What report.document takes beside the results."""
    cpu = machine.cpu()
    versions = sorted({one["version"] for _, result in results for one in result["contestants"].values() if "version" in one})
    lines = [f"{cpu['model']}, {', '.join(cpu['sets'])}; {bench.threads} threads for each", "; ".join(versions)]
    if machine.device():
        lines.append(machine.device())
    out = {}
    if "peak" in found:
        out["peaks"] = found["peak"]
        rates = ", ".join(f"{name} {value:.0f}" for name, value in found["peak"].items() if name != "memory")
        lines.append(f"measured: multiply-adds in registers {rates} GFLOP/s; reading memory {found['peak']['memory']:.1f} GB/s")
    counts = {}
    for case, _ in results:
        config = scale.config_of(bench.net(case.net))
        size = 4 if case.precision == "f32" else 2
        counts[case.net, case.precision, case.batch] = arithmetic.total(config, case.batch, weight_bytes=size)
    if "count" in found:
        ours = {net: arithmetic.total(scale.config_of(bench.net(net)))["flops"] for net in found["count"]}
        same = "the same as PyTorch's own counter says" if ours == found["count"] else f"PyTorch's counter says {found['count']}"
        text = ", ".join(f"{cases.NETS[net].title} {value * 1e-9:.2f}" for net, value in ours.items())
        lines.append(f"counted on paper, GFLOP an evaluation of one image: {text}; {same}")
    out.update(machine=[f"{date.today()}", *lines], counts=counts)
    out["scale"] = [found[name] for name in ("scale-f32", "scale-bf16") if name in found]
    if "calls" in found:
        out["calls"] = found["calls"]
    return out


def run(options):
    devices = ["cpu", *measure.devices(options.python)]
    every = cases.cases(devices)
    wanted = cases.chosen(every, options.cases)
    if not wanted and not any(fnmatch(name, pattern) for name in EXTRAS for pattern in options.cases):
        names = "\n  ".join([*EXTRAS, *(case.name for case in every)])
        raise Refused(f"--cases {' '.join(options.cases)}: must match one of\n  {names}")
    names = options.contestants.split(",") if options.contestants else list(report.TITLES)
    unknown = [name for name in names if name not in report.TITLES]
    if unknown:
        raise Refused(f"--contestants {','.join(unknown)}: must be among {','.join(report.TITLES)}")
    seconds, rounds = (2, 1) if options.quick else (12, 5)
    results = Path(options.work) / ("quick" if options.quick else "results")
    bench = measure.Bench(options.work, results, options.python, options.threads, seconds, rounds, options.fresh)
    for result in bench.run(wanted, names):
        print("\n".join(report.lines(result)), flush=True)
    found = extras(bench, options.cases)
    kept = report.kept(bench, devices, names)
    text = report.document(kept, facts(bench, found, kept))
    if options.quick:
        print(text)
        return
    if found.keys() >= {"scale-f32"}:
        scales = [found[name] for name in ("scale-f32", "scale-bf16") if name in found]
        measured, predicted = ({one["precision"]: one[key] for one in scales} for key in ("seconds", "predicted"))
        scale.draw(measured, predicted, Path(options.docs) / "images/benchmarks.png")
    report.write(text, Path(options.docs) / "BENCHMARKS.md")
    print(f"{len(kept)} of {len(every)} cases are in {options.docs}/BENCHMARKS.md")


def main():
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--quick", action="store_true", help="a round or two, printed and not for the document: for a look")
    top.add_argument("--fresh", action="store_true", help="measure anew what is kept")
    top.add_argument("--cases", nargs="+", default=[], metavar="PATTERN", help="only these, such as 'step-cifar10-*-1'")
    top.add_argument("--contestants", metavar="NAME,NAME", help=f"only these of {','.join(report.TITLES)}")
    top.add_argument("--threads", type=int, default=machine.threads(), help="of each contestant (default: all processors)")
    top.add_argument("--python", default=".venv-bench/bin/python", help="has the peers (default .venv-bench/bin/python)")
    top.add_argument("--work", default="out/bench", help="where everything is kept (default out/bench)")
    top.add_argument("--docs", default="docs", help="where the plot and the tables go (default docs)")
    options = top.parse_args()
    # However it is ended, the programs that are stopped at that moment end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(options)
    except (Refused, subprocess.SubprocessError) as problem:
        sys.exit(f"bench: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
