"""The command: python -m bench.failover. What it measures is in bench/failover/__init__.py."""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # started in the checkout, whose folder hotpair/ is not the package

import argparse
import os
import time
from pathlib import Path

from bench.failover.figures import Results
from bench.failover.idle import measure_idle
from bench.failover.measures import Plan, measure_one_module
from bench.failover.report import print_report, write_json
from bench.mounts import unmount_below
from bench.process import BenchError, command
from bench.spaces import INSIDE, be_interrupted_once, run_inside
from hotpair.client import ApiError

NAMES = ("failover", "failover-1s", "swap", "freeze", "freeze-silent", "idle")


def main() -> int:
    options = _parse(sys.argv[1:])
    if options.inside:
        return _run(options, Path(options.inside))
    if os.geteuid() != 0:
        print("bench.failover: needs root: it mounts, and makes namespaces", file=sys.stderr)
        return 2
    return run_inside("bench.failover", sys.argv[1:], options.dir, reaps=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.failover", description="What two servers cost, how fast they fail over"
    )
    parser.add_argument("--json", type=os.path.abspath, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--quick", action="store_true", help="one run of each, 2 modules: does it all work?")
    parser.add_argument("--only", action="append", choices=NAMES, default=[], help="measure only this; repeatable")
    parser.add_argument("--runs", type=int, help="of each figure (5, quick: 1)")
    parser.add_argument("--modules", type=_steps, help="numbers of modules for idle (1,5,10,25; quick: 2)")
    parser.add_argument("--seconds", type=float, help="how long is looked at what is idle (20, quick: 5)")
    parser.add_argument("--dir", default="/var/tmp", help="where to make the work directory: on a real disk")
    parser.add_argument(INSIDE, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.runs = options.runs or (1 if options.quick else 5)
    options.modules = options.modules or ((2,) if options.quick else (1, 5, 10, 25))
    options.seconds = options.seconds or (5.0 if options.quick else 20.0)
    if options.runs < 1 or options.seconds < 1:
        parser.error("--runs and --seconds must be at least 1")
    return options


def _steps(text: str) -> tuple[int, ...]:
    steps = tuple(map(int, text.split(",")))
    if not all(1 <= step <= 25 for step in steps):
        raise argparse.ArgumentTypeError("a pair takes 1 to 25 modules")
    return steps


def _run(options: argparse.Namespace, directory: Path) -> int:
    """The run itself, inside the namespaces. 0: all selected was measured; 1: it was not."""
    be_interrupted_once()
    results = Results()
    since = time.monotonic()
    plan = Plan(
        runs=options.runs,
        steps=options.modules,
        seconds=options.seconds,
        selected=lambda name: not options.only or name in options.only,
        say=lambda text: print(f"[{time.monotonic() - since:6.1f} s] {text}", file=sys.stderr, flush=True),
    )
    try:
        command("mount", "-t", "tmpfs", "tmpfs", "/run")  # the runtimes' folders
        command("ip", "link", "set", "lo", "up")
        measure_one_module(plan, directory, results)
        measure_idle(plan, directory, results)
    except KeyboardInterrupt:
        results.errors.append("interrupted")
    except (BenchError, ApiError, OSError) as error:
        results.errors.append(str(error))
    finally:
        unmount_below(directory)
    print_report(results)
    if options.json:
        write_json(results, vars(options) | {"took_s": time.monotonic() - since}, Path(options.json))
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
