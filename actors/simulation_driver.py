"""The process that talks to Ray for `hotpair simulate --ray`: all calls of Ray are here. Started by simulation_on_ray.

It is run as a script (python -m), so that Ray sends the functions below to the other machines as they are here: a
machine without hotpair can say so.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hotpair.actors.simulation_on_ray import MOST_WORDS, Done, Ended, Failed, Refused, Started, chunk_of
from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.batch import CHUNK, lives
from hotpair.cluster.simulation.watch import Result

TASKS_PER_CPU = 2  # given out at a time: one runs, one is at hand when it is done
MOST_TASKS = 10_000  # given out at a time, however large the cluster is
RETRIES = 3  # of a task whose worker or machine was lost
MOST_FAILED = 10  # tasks that fail for good before the run is given up: it is not one machine then
VERSIONS_S = 30.0  # for all machines to say their version; a worker process may have to be started first
TICK_S = 0.2  # how often results are fetched, and whether to stop is looked at


def main(arguments: Sequence[str]) -> int:
    descriptor, address, kind, policy, first, end = arguments
    pipe = Connection(int(descriptor))
    os.chdir("/")  # Ray lets the workers import from the driver's directory: a checkout would hide the package there
    try:
        pipe.send(_connected(pipe, address, Kind(kind), policy, range(int(first), int(end))))
    except (BrokenPipeError, ConnectionResetError):  # nobody listens any more: the tasks are cancelled by now
        return 0
    return 0


def _connected(pipe: Connection, address: str, kind: Kind, policy: str, seeds: range) -> Refused | Ended:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        return Refused(f"no Ray cluster at {address}: {_line(error.__cause__ or error)}")
    try:
        why = _other_versions()
        if why:
            return Refused(why)
        pipe.send(Started())
        return _spread(pipe, kind, policy, seeds)
    finally:
        ray.shutdown()


# ---- what is run on the other machines


def installed() -> str:
    """The version here, and a sum over the code that decides what becomes of a seed. Needs no hotpair."""
    try:
        version = importlib.metadata.version("hotpair")
        found = importlib.util.find_spec("hotpair.cluster")
    except ModuleNotFoundError:
        return "none"
    if found is None or not found.submodule_search_locations:
        return "none"
    code = hashlib.sha256()
    for path in sorted(Path(found.submodule_search_locations[0]).rglob("*.py")):
        code.update(path.read_bytes())
    return f"{version} (code {code.hexdigest()[:8]})"


def run(expected: str, kind: str, policy: str, first: int, end: int) -> list[Result]:
    here = installed()
    if here != expected:  # a machine that has joined since the start
        raise RuntimeError(f"hotpair here is {expected}, on {os.uname().nodename} it is {here}")
    return list(lives(Kind(kind), range(first, end), policy=policy))


# ---- the tasks


def _other_versions() -> str:
    """Empty, or one machine that has another version, or does not answer."""
    own = installed()
    ask = ray.remote(num_cpus=0, max_retries=1)(installed)
    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    ray.wait(list(asked), num_returns=len(asked), timeout=VERSIONS_S)
    for answer, name in asked.items():
        try:
            version = ray.get(answer, timeout=0)
        except RayError as error:
            return f"{name} does not say within {VERSIONS_S:.0f} s which hotpair it has: {_line(error)}"
        if version != own:
            return f"hotpair here is {own}, on {name} it is {version}: install the same on all machines"
    return ""


def _spread(pipe: Connection, kind: Kind, policy: str, seeds: range) -> Ended:
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(run)
    own = installed()
    waiting = iter(range(seeds.start, seeds.stop, CHUNK))
    given: dict[ray.ObjectRef[list[Result]], int] = {}
    failed = 0
    try:
        while failed < MOST_FAILED:
            for first in islice(waiting, max(_room() - len(given), 0)):
                given[task.remote(own, kind.value, policy, first, chunk_of(seeds, first).stop)] = first
            if not given:
                return Ended("")
            ready, _ = ray.wait(list(given), num_returns=len(given), timeout=TICK_S)
            for result in ready:
                message = _outcome(result, given.pop(result))
                failed += isinstance(message, Failed)
                pipe.send(message)
            if pipe.poll():  # nothing is ever sent to us: it was closed
                raise BrokenPipeError
        return Ended(f"given up after {failed} tasks have failed")
    finally:
        for result in given:
            ray.cancel(result)


def _room() -> int:
    """Machines may join and leave."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return min(max(int(resources.get("CPU", 0)), 1) * TASKS_PER_CPU, MOST_TASKS)


def _outcome(result: ray.ObjectRef[list[Result]], first: int) -> Done | Failed:
    try:
        return Done(first, ray.get(result))
    except RayError as error:
        return Failed(first, _line(error))


def _line(error: BaseException) -> str:
    """One line of it: Ray begins with what happened, except where it passes on an exception with its trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    has_trace = isinstance(error, RayTaskError) or "Traceback (most recent call last)" in lines[0]
    return lines[-1 if has_trace else 0][:MOST_WORDS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
