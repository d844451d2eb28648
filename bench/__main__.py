"""The command: python -m bench. What it compares and why is in bench/__init__.py."""

import argparse
import fnmatch
import os
import sys
import time
from pathlib import Path

from bench.measure import prefer
from bench.mounts import unmount_below
from bench.process import BenchError, command
from bench.report import print_report, write_json
from bench.results import Results
from bench.resync import NAMES, measure_resync
from bench.runner import Plan, measure_systems
from bench.spaces import INSIDE, be_interrupted_once, run_inside
from bench.systems.registry import factories
from bench.workloads import QUICK_SIZES, WORKLOADS, Sizes

REPEATS = 30


def main() -> int:
    options = _parse(sys.argv[1:])
    if options.inside:
        return _run(options, Path(options.inside))
    if os.geteuid() != 0:
        print("bench: needs root: it mounts, makes network namespaces and drops caches", file=sys.stderr)
        return 2
    return run_inside("bench", sys.argv[1:], options.dir)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="hotpair against other mirrors, in one run")
    parser.add_argument("--json", type=os.path.abspath, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--quick", action="store_true", help="one round, small files: does it all work?")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SYSTEM/WORKLOAD", type=_pattern,
        help="measure only this; either part may be left out or hold wildcards; repeatable",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, help="for each measurement (3, quick: 1)")
    parser.add_argument("--rounds", type=int, help="of all measurements (3, quick: 1)")
    parser.add_argument("--dir", default="/var/tmp", help="where to make the work directory: on a real disk")
    parser.add_argument(INSIDE, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.seconds < 0.1 or options.rounds < 1:
        parser.error("--seconds must be at least 0.1, --rounds at least 1")
    return options


def _pattern(text: str) -> str:
    """SYSTEM, /WORKLOAD or SYSTEM/WORKLOAD; raises when nothing has such a name."""
    system, _, workload = text.partition("/")
    system, workload = system or "*", workload or "*"
    for pattern, names in ((system, list(factories(Sizes()))), (workload, [*_workload_names(), *NAMES])):
        if not fnmatch.filter(names, pattern):
            raise argparse.ArgumentTypeError(f"nothing is called {pattern}; there are {', '.join(names)}")
    return f"{system}/{workload}"


def _workload_names() -> list[str]:
    return [workload.name for workload in WORKLOADS]


def _run(options: argparse.Namespace, directory: Path) -> int:
    """The run itself, inside the namespaces. 0: all selected was measured and right; 1: it was not."""
    be_interrupted_once()
    prefer([os.getpid()])
    results = Results()
    since = time.monotonic()

    def selected(system: str, workload: str) -> bool:
        return not options.only or any(fnmatch.fnmatch(f"{system}/{workload}", each) for each in options.only)

    plan = Plan(
        seconds=options.seconds,
        rounds=options.rounds,
        repeats=iter(range(0 if options.quick else REPEATS)),
        sizes=QUICK_SIZES if options.quick else Sizes(),
        selected=selected,
        say=lambda text: print(f"[{time.monotonic() - since:6.1f} s] {text}", file=sys.stderr, flush=True),
    )
    try:
        # Nothing that a system leaves in /run is seen outside, or stays.
        command("mount", "-t", "tmpfs", "tmpfs", "/run")
        command("ip", "link", "set", "lo", "up")
        measure_systems(plan, directory, results)
        measure_resync(plan, directory, results)
    except KeyboardInterrupt:
        results.errors.append("interrupted")
    except BenchError as error:
        results.errors.append(str(error))
    finally:
        unmount_below(directory)
    print_report(results)
    if options.json:
        write_json(results, vars(options) | {"took_s": time.monotonic() - since}, Path(options.json))
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
