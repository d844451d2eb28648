"""The target's copy, frozen at any moment, is the source's copy at some earlier moment.

The target is stopped (SIGSTOP) or killed under load and its directory read. With one operation after the other the
copy must be what a beginning of the ledger makes, to the operation; with eight at a time no later write may be there
while an earlier one, acknowledged before the later one began, is missing.
"""

import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.ledger import DIRECTORY, NOTHING, Ledger, Operation, WriterProcess, change_names, read_names, read_tags
from tests.mirror_pair import MirrorPair

SEED = int(os.environ.get("HOTPAIR_TORTURE_SEED", "1"))
FILES, PAGES = 3, 256
FREEZES = 30
PROGRESS_S = 60.0

Freeze = Callable[[MirrorPair], None]


class Copy:
    """What a frozen copy holds, and the ledger's lines at that time."""

    def __init__(self, directory: str, ledger: str) -> None:
        with open(ledger) as lines:
            self.ledger = [line for line in lines if line.endswith("\n")]
        self.tags = [read_tags(directory, file) for file in range(FILES)]
        found = read_names(directory).items()
        self.names = {path: tag for path, tag in found if path.count("/") > 1}  # not the worker's own directory

    def tag(self, file: int, page: int) -> int:
        """The tag of one page."""
        return self.tags[file][page] if page < len(self.tags[file]) else NOTHING

    def pages(self) -> dict[tuple[int, int], int]:
        """All pages that hold something."""
        return {(file, page): tag for file, tags in enumerate(self.tags) for page, tag in enumerate(tags) if tag}


class Replay:
    """The copy after the first so many operations, and in how many places it differs from the one that was found."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        self.pages: dict[tuple[int, int], int] = {}
        self.names: dict[str, int] = {}
        self.wrong: set[tuple[int, int] | str] = {*copy.pages(), *copy.names}

    def step(self, operation: Operation) -> None:
        """Carry out one operation."""
        if operation.kind == "write":
            for page in operation.pages():
                self.pages[operation.file, page] = operation.tag
                right = self.copy.tag(operation.file, page) == operation.tag
                (self.wrong.discard if right else self.wrong.add)((operation.file, page))
        elif operation.kind != "flush":
            change_names(self.names, operation)
            for path in operation.words:
                right = self.copy.names.get(path) == self.names.get(path)
                (self.wrong.discard if right else self.wrong.add)(path)

    def is_between(self, operation: Operation) -> bool:
        """Whether the copy is what it is now, with some part of the next operation applied.

        A large write is applied page by page, a file is made before it gets its content.
        """
        if operation.kind == "write":
            part = {(operation.file, page) for page in operation.pages()}
            return self.wrong <= part and all(self.copy.tag(*at) == operation.tag for at in self.wrong)
        return operation.kind == "create" and self.wrong <= {operation.words[0]}


def operations_in(lines: list[str]) -> tuple[list[Operation], int]:
    """The operations in the order of their beginning, and how many of them are acknowledged."""
    operations: dict[int, Operation] = {}
    acknowledged = 0
    for number, line in enumerate(lines):
        what, tag, *words = line.split()
        assert what != "e", line
        if what == "i":
            operations[int(tag)] = Operation(int(tag), words[0], words[1:], number)
        else:
            acknowledged += 1
    return list(operations.values()), acknowledged


def prefix_violation(copy: Copy) -> str | None:
    """Why the copy is not what the first so many operations make, with at least all that were acknowledged."""
    operations, acknowledged = operations_in(copy.ledger)
    replay = Replay(copy)
    fewest = (len(replay.wrong), 0)
    for count, operation in enumerate([*operations, None]):
        if count >= acknowledged:
            fewest = min(fewest, (len(replay.wrong), count))
            if not replay.wrong or (operation is not None and replay.is_between(operation)):
                return None
        if operation is not None:
            replay.step(operation)
    return (
        f"{len(operations)} operations began, {acknowledged} were acknowledged, and the copy is not that of any moment "
        f"since then: it comes closest after {fewest[1]}, with {fewest[0]} differences"
    )


def order_violations(copy: Copy) -> list[str]:
    """Writes that are missing although they were acknowledged before another one began that is there."""
    there = set(copy.pages().values()) | {tag for tag in copy.names.values() if tag != DIRECTORY}
    intents = [
        number for number, line in enumerate(copy.ledger) if line.startswith("i") and int(line.split()[1]) in there
    ]
    before = Ledger("")  # as it was when the last one began that is there
    last = intents[-1] if intents else -1
    for number, line in enumerate(copy.ledger):
        if number <= last or line.startswith("i"):  # what began later is allowed, and not demanded
            before.take(line)
    return [f"missing: {line}" for line in before.check_pages_of(copy.tag)]


def stop(pair: MirrorPair) -> None:
    """SIGSTOP the target; return when all of its threads stand still."""
    assert pair.target is not None
    pair.target.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, pair.target.process.pid, os.WSTOPPED | os.WNOWAIT)


def freeze_and_look(pair: MirrorPair, writer: WriterProcess, ledger: str, draw: random.Random, kill: bool) -> Copy:
    """Let some operations through, freeze the target, read its copy; it goes on, or is to be started again."""
    assert writer.wait_acknowledged(int(10 ** draw.uniform(0, 2.5)), PROGRESS_S), pair.troubles()
    if kill:
        pair.kill_target()
        return Copy(pair.target_dir, ledger)
    stop(pair)
    copy = Copy(pair.target_dir, ledger)
    assert pair.target is not None
    pair.target.signal(signal.SIGCONT)
    return copy


def start(pair: MirrorPair, roles: str) -> tuple[WriterProcess, str]:
    """Pair and writer."""
    ledger = f"{pair.base}/ledger"
    with open(ledger, "wb"):
        pass
    pair.start()
    writer = WriterProcess(pair.mount, ledger, roles, pair.environment(), seed=SEED, files=FILES, pages=PAGES)
    return writer, ledger


def end(pair: MirrorPair, writer: WriterProcess) -> None:
    """Everything goes on after the last freeze, and both copies are equal in the end."""
    assert writer.stop(PROGRESS_S) == 0
    writer.close()
    assert not pair.troubles()
    pair.stop()
    assert pair.compare() == []


@pytest.mark.timeout(180)
def test_one_at_a_time_the_copy_is_a_prefix() -> None:
    draw = random.Random(f"{SEED} prefix")
    with MirrorPair() as pair:
        writer, ledger = start(pair, "mixed")
        for number in range(FREEZES):
            copy = freeze_and_look(pair, writer, ledger, draw, kill=False)
            violation = prefix_violation(copy)
            assert violation is None, f"seed {SEED}, freeze {number}: {violation}"
        end(pair, writer)


@pytest.mark.timeout(180)
def test_eight_at_a_time_nothing_overtakes_what_was_acknowledged() -> None:
    draw = random.Random(f"{SEED} order")
    with MirrorPair() as pair:
        writer, ledger = start(pair, ",".join(["random"] * 6 + ["mixed"] * 2))
        for number in range(FREEZES):
            copy = freeze_and_look(pair, writer, ledger, draw, kill=False)
            assert order_violations(copy) == [], f"seed {SEED}, freeze {number}"
        end(pair, writer)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("roles", ["mixed", "random,random,random,random,random,random,random,mixed"])
def test_killed_target_holds_a_moment_of_the_source(roles: str) -> None:
    """kill -9 instead of a stop. Without a verdict the writer freezes, so nothing can be acknowledged afterwards."""
    one = "," not in roles
    draw = random.Random(f"{SEED} {roles}")
    for number in range(3):
        with MirrorPair() as pair:
            writer, ledger = start(pair, roles)
            copy = freeze_and_look(pair, writer, ledger, draw, kill=True)
            violation = prefix_violation(copy) if one else order_violations(copy)
            assert not violation, f"seed {SEED}, kill {number}: {violation}"
            pair.kill_source()
            pair.abort()  # the keeper would hold the mount, and the writer wait, until a source is started again
            assert writer.wait_end(PROGRESS_S) is not None
            writer.close()


@pytest.mark.parametrize("roles", ["mixed", "random,random,random"])
def test_the_checks_can_fail(roles: str, tmp_path: os.PathLike[str]) -> None:
    """On a plain directory: right as it is, wrong when one write in the middle is taken away."""
    mount, ledger = f"{os.fspath(tmp_path)}/data", f"{os.fspath(tmp_path)}/ledger"
    os.mkdir(mount)
    writer = WriterProcess(mount, ledger, roles, dict(os.environ), files=FILES, pages=PAGES)
    assert writer.wait_acknowledged(500, PROGRESS_S) and writer.stop() == 0
    writer.close()
    copy = Copy(mount, ledger)
    check = prefix_violation if roles == "mixed" else order_violations
    assert not check(copy)
    held = sorted((tag, at) for at, tag in copy.pages().items())
    _, (file, page) = held[len(held) // 2]
    copy.tags[file][page] = NOTHING
    assert check(copy)
