"""Break the code on purpose, one sentence of the contract at a time, and see that a test notices.

    make code-mutants   .venv/bin/python tests/mutants.py [--only NAME] [--jobs N] [--json FILE] [--list]

Each mutant (mutant_list.py) is made in a copy of the packages in a temporary directory; the tests that must catch it
run with that copy in PYTHONPATH, the cheapest first. The exit code is 1 when one survives, when one does not apply any
more (its list entry is to be brought up to date), or when the tests fail on the unmodified copy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ("actors", "cluster", "replication", "hyperv")
TEST_TIMEOUT_S = 60  # a test that hangs has noticed
MUTANT_TIMEOUT_S = 240
BASELINE_TIMEOUT_S = 900
KILL_TIMEOUT_S = 10.0

CAUGHT, SURVIVED, DOES_NOT_APPLY, DOES_NOT_COMPILE = "caught", "SURVIVED", "DOES NOT APPLY", "DOES NOT COMPILE"
NOT_RUN = "TESTS DO NOT RUN"


@dataclass(frozen=True)
class Mutant:
    """One bug. ``edits``: (file, a string that occurs in it exactly once, what takes its place)."""

    name: str
    breaks: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant; ``by`` is the test that noticed, or why there is none."""

    name: str
    verdict: str
    by: str
    seconds: float


@contextmanager
def copied() -> Iterator[str]:
    """A directory for PYTHONPATH with a copy of the packages, laid out as they are installed."""
    top = tempfile.mkdtemp(prefix="hotpair-mutant-")
    try:
        shutil.copytree(f"{REPOSITORY}/hotpair", f"{top}/hotpair", ignore=shutil.ignore_patterns("__pycache__"))
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(f"{REPOSITORY}/{package}", f"{top}/hotpair/{package}", ignore=ignored)
        yield top
    finally:
        shutil.rmtree(top)


def apply(mutant: Mutant, top: str) -> str | None:
    """Make the bug; what is wrong with the list's entry, if something is."""
    for path, old, new in mutant.edits:
        place = f"{top}/hotpair/{path}"
        with open(place) as file:
            text = file.read()
        count = text.count(old)
        if count != 1:
            return f"{DOES_NOT_APPLY}: {path} has {count} times {old.strip().splitlines()[0]!r}"
        text = text.replace(old, new)
        try:
            compile(text, place, "exec")
        except SyntaxError as error:
            return f"{DOES_NOT_COMPILE}: {path}: {error}"
        with open(place, "w") as file:
            file.write(text)
    return None


def run_tests(tests: Sequence[str], top: str, timeout_s: float, *, stop_at_first: bool) -> tuple[int | None, str]:
    """The exit code (None: the time was up) and the output of pytest with the packages in ``top``."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        f"timeout={TEST_TIMEOUT_S}",
        "-rfE",
    ]
    command += ["--tb=line", *(["-x"] if stop_at_first else []), *tests]
    environment = {**os.environ, "PYTHONPATH": top, "HYPOTHESIS_STORAGE_DIRECTORY": f"{top}/hypothesis"}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # our own group; the fixtures' janitors are in groups of their own
        output, _ = process.communicate(timeout=KILL_TIMEOUT_S)
        return None, output
    return process.returncode, output


def failed_test(output: str) -> str:
    """The test that pytest names as the first that failed."""
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    return found.group(1) if found else output.strip().splitlines()[-1]


def try_mutant(mutant: Mutant) -> Outcome:
    """Make it and run its tests."""
    with copied() as top:
        wrong = apply(mutant, top)
        if wrong is not None:
            verdict, _, why = wrong.partition(": ")
            return Outcome(mutant.name, verdict, why, 0.0)
        started = time.monotonic()
        code, output = run_tests(mutant.tests, top, MUTANT_TIMEOUT_S, stop_at_first=True)
        seconds = time.monotonic() - started
    match code:
        case 0:
            return Outcome(mutant.name, SURVIVED, mutant.breaks, seconds)
        case 1:
            return Outcome(mutant.name, CAUGHT, failed_test(output), seconds)
        case None:
            return Outcome(mutant.name, CAUGHT, f"time limit of {MUTANT_TIMEOUT_S} s", seconds)
    if re.search(r"^\S+.*(?:Timeout|Fatal|Aborted)", output, re.MULTILINE):
        return Outcome(mutant.name, CAUGHT, "a test hung", seconds)
    return Outcome(mutant.name, NOT_RUN, output.strip().splitlines()[-1], seconds)


def check_unmodified(mutants: Sequence[Mutant]) -> bool:
    """All named tests must pass on the copy as it is."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    started = time.monotonic()
    with copied() as top:
        code, output = run_tests(tests, top, BASELINE_TIMEOUT_S, stop_at_first=False)
    print(f"unmodified: {output.strip().splitlines()[-1]} ({time.monotonic() - started:.0f} s)", flush=True)
    if code != 0:
        print(output)
    return code == 0


def show(outcome: Outcome, width: int) -> None:
    """A line of the table."""
    verdict = outcome.by if outcome.verdict == CAUGHT else f"{outcome.verdict}: {outcome.by}"
    print(f"{outcome.name:{width}}  {outcome.seconds:6.1f} s  {verdict}", flush=True)


def main() -> int:
    from tests.mutant_list import MUTANTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="mutants whose name contains this; repeatable")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at once; 1 by default")
    parser.add_argument("--json", metavar="FILE", help="write the outcomes there")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if not options.only or any(part in m.name for part in options.only)]
    if not mutants:
        parser.error("no mutant has such a name")
    width = max(len(mutant.name) for mutant in mutants)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:{width}}  {mutant.breaks}")
        return 0
    if not check_unmodified(mutants):
        print("the tests fail on the unmodified code: what they say of a mutant means nothing")
        return 1
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(try_mutant, mutants):
            outcomes.append(outcome)
            show(outcome, width)
    bad = [outcome for outcome in outcomes if outcome.verdict != CAUGHT]
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} mutants caught in {total:.0f} s")
    for outcome in bad:
        print(f"{outcome.verdict}: {outcome.name}: {outcome.by}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(outcome) for outcome in outcomes], file, indent=1)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.append(REPOSITORY)  # last, so that the folders of the packages hide nothing that is installed
    sys.exit(main())
