#!/usr/bin/env python3
"""How fast is libdiffusion beside what else runs or trains the same network? `make bench` installs what this needs.

    python tools/bench run [--quick] [--cases 'step-cifar10-*'] [--contestants ours,openvino]

Every case is kept in out/bench as it is measured, so that a run that was cut off goes on where it stopped; with another
library, other peers, threads or another machine it is measured anew. docs/BENCHMARKS.md says how to read the figures.
"""

import argparse
import sys
from pathlib import Path

import cases
import machine
import measure
import report
from protocol import Refused


def run(options):
    every = cases.cases(["cpu"])
    wanted = cases.chosen(every, options.cases)
    if not wanted:
        names = "\n  ".join(case.name for case in every)
        raise Refused(f"--cases {' '.join(options.cases)}: must match one of\n  {names}")
    names = options.contestants.split(",") if options.contestants else [c.name for c in cases.CONTESTANTS]
    seconds, rounds = (3, 2) if options.quick else (12, 5)
    results = Path(options.work) / ("quick" if options.quick else "results")
    bench = measure.Bench(options.work, results, options.python, options.threads, seconds, rounds, options.fresh)
    for result in bench.run(wanted, names):
        print("\n".join(report.lines(result)), flush=True)


def main():
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("run", help="measure")
    one.set_defaults(function=run)
    one.add_argument("--quick", action="store_true", help="few rounds, kept apart and not for the document: for a look")
    one.add_argument("--fresh", action="store_true", help="measure anew what is kept")
    one.add_argument("--cases", nargs="+", default=[], metavar="PATTERN", help="only these, such as 'step-cifar10-*-1'")
    one.add_argument("--contestants", metavar="NAME,NAME", help="only these")
    one.add_argument("--threads", type=int, default=machine.threads(), help="of each contestant (default: all processors)")
    one.add_argument("--python", default=".venv-bench/bin/python", help="has the peers (default .venv-bench/bin/python)")
    one.add_argument("--work", default="out/bench", help="where results are kept (default out/bench)")
    options = top.parse_args()
    try:
        options.function(options)
    except Refused as problem:
        sys.exit(f"bench: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
