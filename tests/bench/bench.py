"""The benchmarks: each measures the extension and named references in the same run, in turn, and reports ratios.

usage: bench.py BINDIR FOLDER USER [--rows FACTOR] [--repeat N] [--json FILE] [--svg FILE] [--smoke] [NAME ...]

Numbers on different machines mean nothing beside each other; ratios within one run do. A benchmark that finds the
members unequal at its end fails, whatever its time was.
"""

import argparse
import os
import signal
import sys
import time
import traceback

import backlog
import bucardo5
import capture
import growth
import instructions
import latency
import many
import picture
import report
import upkeep
from common import Bench
from servers import Place

BENCHES = {
    f.__name__: f
    for f in (
        capture.capture_statements,
        capture.capture_transactions,
        instructions.instructions,
        backlog.backlog,
        backlog.backlog_wide,
        backlog.fan_out,
        latency.latency,
        latency.tpcb,
        backlog.two_sources,
        backlog.storm,
        backlog.initial_copy,
        many.thousand_tables,
        many.hundred_syncs,
        growth.growth,
        upkeep.memory,
        upkeep.memory_of_conflicts,
        upkeep.idle,
        upkeep.old_snapshot,
        upkeep.purge,
        bucardo5.original,
    )
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bindir")
    parser.add_argument("folder")
    parser.add_argument("user")
    parser.add_argument("--rows", type=float, default=1.0, metavar="FACTOR", help="all row counts and durations times this")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions of what is repeated")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--svg", help="draw them here")
    parser.add_argument("--smoke", action="store_true", help="only whether each works: a line for a test log, no picture")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHES)}; all when left out")
    args = parser.parse_intermixed_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    return args


def run_all(bench, args):
    """How many failed. With --smoke the others go on after one that fails, as tests do."""
    failed = 0
    for name in args.names or BENCHES:
        print(f"{name}: {' '.join(BENCHES[name].__doc__.split())}", flush=True)
        began, before = time.monotonic(), len(bench.results.lines)
        try:
            BENCHES[name](bench)
        except Exception:  # pylint: disable=broad-except
            if not args.smoke:
                raise
            traceback.print_exc(file=sys.stdout)
            failed += 1
            print(f"test {name} ... FAILED {(time.monotonic() - began) * 1000:.0f} ms", flush=True)
        else:
            if args.smoke and len(bench.results.lines) == before:
                print(f"test {name} ... ignored")
            elif args.smoke:
                print(f"test {name} ... ok {(time.monotonic() - began) * 1000:.0f} ms", flush=True)
    return failed


def main():
    # Whoever ends it so shall find nothing left either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    place = Place(args.bindir, args.folder, args.user)
    failed = 0
    try:
        bench = Bench(place, args.rows, args.repeat, "fsync = off" if args.smoke else "")
        failed = run_all(bench, args)
        version = bench.one.connect().one("SHOW server_version")
    finally:
        place.close()
    about = {"server": version, "processors": os.cpu_count(), "rows": args.rows, "repeat": args.repeat}
    print(f"\nPostgreSQL {version}, {os.cpu_count()} processors, --rows {args.rows:g} --repeat {args.repeat}")
    print(report.table_of(bench.results))
    if args.json:
        bench.results.write_json(args.json, about)
    if args.svg:
        picture.draw(bench.results.lines, about, args.svg)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
