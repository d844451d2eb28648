"""Torture: kill -9 of the source's mirror, the target's, or both, at random moments under load, then the invariants.

    make torture TORTURE_ARGUMENTS=...      HOTPAIR_TORTURE_ROUNDS=1000 HOTPAIR_TORTURE_SEED=1

After each kill:

a. what was acknowledged while in sync is on the surviving copy;
b. the copies differ only in what the source's dirty log names;
c. what was killed is started again, and after the reintegration both copies are equal and hold what the ledger says;
d. while the source lives no writer sees an error, and none waits for ever.

A round is drawn from the seed and its number; the moment is a number of acknowledged operations, not a time.
"""

import ast
import contextlib
import itertools
import os
import random
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from hotpair.cluster import record_io
from hotpair.replication import dirty_log
from hotpair.replication.control_client import ControlClient
from tests.faults import wait_until
from tests.ledger import Ledger, WriterProcess
from tests.mirror_pair import BASE_PARENT, MirrorPair, processes_marked
from tests.tree_comparison import OWN_ATTRIBUTES, OWN_FOLDER, attributes_of, identity_of, path_below, walk

STUCK_S = 60.0  # a writer that has made no progress for so long, on a machine that others use too, is stuck
ALONE_AFTER_S = "1"
ROLES = ("random,random,sequential,names", "random,names,names,mixed")  # of the two writer processes
ADOPTED = ", adopted"
COMPARE_EVERY = 10  # rounds between clean stops


def expects_adoption() -> bool:
    """Whether a mount outlives its mirror process: the kernel must send unanswered requests again (Linux 6.9)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 9)


def kinds_of_rounds() -> dict[str, int]:
    """Each kind of round and its weight. A mount that is not adopted is taken away, as by a crash of the host."""
    kinds = {"target": 4, "source": 2, "both": 2, "target while reintegrating": 3, "source while reintegrating": 2}
    if expects_adoption():
        kinds |= {f"{kind}{ADOPTED}": 2 for kind in ("source", "both", "source while reintegrating")}
    return kinds


# ---- what the copies differ in, against the dirty log


class Thing(NamedTuple):
    """One object of a copy; entries of a directory by name, as (identity, type)."""

    path: bytes
    status: os.stat_result
    attributes: dict[str, str]
    entries: dict[bytes, tuple[str, int]]


def read_things(root: str) -> dict[str, Thing]:
    """One copy, by identity (as ``attributes_of`` shows it)."""
    things: dict[str, Thing] = {}
    by_path: dict[bytes, Thing] = {}
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        top = Thing(b".", os.fstat(directory), attributes_of(path_below(directory, b".")), {})
        by_path[b"."] = things[identity_of(top.attributes, "none")] = top
        for found in walk(directory):
            if found.path == OWN_FOLDER or found.path.startswith(OWN_FOLDER + b"/"):
                continue
            attributes = attributes_of(path_below(found.directory, found.name))
            identity = identity_of(attributes, f"none: {found.path!r}")
            thing = Thing(found.path, found.status, attributes, {})
            by_path[found.path] = things[identity] = thing
            parent = by_path[os.path.dirname(found.path) or b"."]
            parent.entries[found.name] = (identity, stat.S_IFMT(found.status.st_mode))
    finally:
        os.close(directory)
    return things


def identity_bytes(shown: str) -> bytes:
    """An identity from how ``attributes_of`` shows it."""
    identity = ast.literal_eval(shown)
    assert isinstance(identity, bytes)
    return identity


def content_differences(source: bytes, target: bytes, shift: int) -> Iterator[int]:
    """The numbers of the extents in which two files differ; what is beyond the end of one counts as zeros."""
    with open(source, "rb") as here, open(target, "rb") as there:
        for number in itertools.count():
            one, other = here.read(1 << shift), there.read(1 << shift)
            if not one and not other:
                return
            length = max(len(one), len(other))
            if one != other and one.ljust(length, b"\0") != other.ljust(length, b"\0"):
                yield number


def unmarked_differences(source_dir: str, target_dir: str, marks: dirty_log.Marks, shift: int) -> list[str]:
    """What differs between the copies and is not in the dirty log. Times are not looked at: they are carried late."""
    source, target = read_things(source_dir), read_things(target_dir)
    wrong = []
    for shown in source.keys() & target.keys():
        here, there = source[shown], target[shown]
        identity = identity_bytes(shown)
        named = f"{here.path!r} ({identity.hex()})"
        if here.entries != there.entries and identity not in marks.names:
            names = {name for name, _ in here.entries.items() ^ there.entries.items()}
            wrong.append(f"{named}: names differ and are not marked: {sorted(names)[:5]!r}")
        if _metadata(here) != _metadata(there) and identity not in marks.metadata:
            wrong.append(f"{named}: {_metadata(here)} on the source, {_metadata(there)} on the target, not marked")
        if not stat.S_ISREG(here.status.st_mode):
            continue
        one, other = os.fsencode(source_dir) + b"/" + here.path, os.fsencode(target_dir) + b"/" + there.path
        extents = [n for n in content_differences(one, other, shift) if not marks.covers(identity, n, n)]
        if extents:
            wrong.append(f"{named}: extents {extents[:10]} of 2**{shift} bytes differ and are not marked")
        small, large = sorted((here.status.st_size, there.status.st_size))
        if small != large and identity not in marks.metadata:
            between = range(small >> shift, ((large - 1) >> shift) + 1)
            if not any(marks.covers(identity, number, number) for number in between):
                wrong.append(f"{named}: size {here.status.st_size}, at the target {there.status.st_size}, not marked")
    return wrong


def _metadata(thing: Thing) -> tuple[str, int, int, dict[str, str]]:
    own = {name: value for name, value in thing.attributes.items() if not name.startswith(OWN_ATTRIBUTES)}
    return oct(thing.status.st_mode), thing.status.st_uid, thing.status.st_gid, own


# ---- the rounds


class Torture:
    """A pair, its writers, and what they have been through."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.bytes_compared = 0
        draw = random.Random(f"{seed} options")
        self.shift = draw.choice((16, 16, 18, 22))
        self._fixed = ["--extent-size", str(1 << self.shift), "--alone-after", ALONE_AFTER_S]
        self.pair = MirrorPair()
        self.ledger = Ledger(f"{self.pair.base}/ledger")
        with open(self.ledger.path, "wb"):
            pass
        # Opened while nothing is mounted: the source's own data, whatever is mounted over it later
        self._below = os.open(self.pair.source_dir, os.O_PATH | os.O_DIRECTORY)
        self.source_data = f"/proc/{os.getpid()}/fd/{self._below}"
        self.writers: list[WriterProcess] = []
        self._incarnation = 0
        self.story: list[str] = []  # what was done in this round, for the message

    def run(self, rounds: int, compare_every: int = COMPARE_EVERY, kinds: tuple[str, ...] = ()) -> None:
        """So many rounds; ``kinds`` go first. AssertionError with the seed and where the directories are."""
        number = 0
        try:
            self._draw_options(random.Random(f"{self.seed} start"))
            self.pair.start()
            self.start_writers()
            for number in range(rounds):
                draw = random.Random(f"{self.seed} {number}")
                weights = kinds_of_rounds()
                kind = kinds[number] if number < len(kinds) else draw.choices(list(weights), list(weights.values()))[0]
                self.story = [f"round {number}: {kind}"]
                self.round(kind, draw)
                self.counts["rounds"] += 1
                if number % compare_every == compare_every - 1 or number == rounds - 1:
                    self.stop_and_compare()
                    print(self.summary(), flush=True)  # a run of many hours can be watched, and ended at any time
                    self._draw_options(draw)
                    self.pair.start()
                    self.start_writers()
        except BaseException as error:
            logs, story, where = self.pair.logs(), "\n  ".join(self.story), self._keep()
            message = f"seed {self.seed}, round {number}: {error}\n  {story}\ndirectories kept in {where}\n{logs}"
            raise AssertionError(message) from error
        finally:
            print(self.summary())

    def summary(self) -> str:
        """One line of numbers."""
        numbers = ", ".join(f"{name}: {count}" for name, count in sorted(self.counts.items()))
        return f"seed {self.seed}: {numbers}, bytes compared: {self.bytes_compared}, " + (
            f"operations: {self.ledger.acknowledged}, flushes: {self.ledger.flushes}"
        )

    def _draw_options(self, draw: random.Random) -> None:
        durability = draw.choice(("memory", "memory", "memory", "disk"))
        changing = ["--hot-extents", draw.choice(("64", "64", "200", "16384")), "--durability", durability]
        changing += ["--cache", draw.choice(("direct", "direct", "page"))]
        self.pair.source_arguments[:] = self._fixed + changing
        self.pair.target_arguments[:] = ["--durability", durability]

    def _keep(self) -> str:
        """Take the directories out of reach of the pair's clean-up, when everything has been ended."""
        self.pair.kill_source()
        self.pair.kill_target()
        self.pair.abort()
        self.end_writers()
        kept = f"{BASE_PARENT}/hotpair-torture-{self.seed}-{os.getpid()}"
        os.rename(self.pair.base, kept)
        return kept

    def close(self) -> None:
        """End and remove everything."""
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._below)
            stack.callback(self.pair.close)
            stack.callback(self.end_writers)
            stack.callback(self.pair.abort)

    def __enter__(self) -> "Torture":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- writers

    def start_writers(self) -> None:
        """The next incarnation of the writers."""
        assert not self.writers
        self._incarnation += 1
        for number, roles in enumerate(ROLES):
            options = {"incarnation": self._incarnation, "process": number, "seed": self.seed}
            environment = self.pair.environment()
            self.writers.append(WriterProcess(self.pair.mount, self.ledger.path, roles, environment, **options))

    def wait_acknowledged(self, count: int) -> None:
        """The writers must get so many more operations through, each (invariant d)."""
        for writer in self.writers:
            if not writer.wait_acknowledged(count, STUCK_S):
                code = writer.wait_end(0)
                what = f"is stuck: nothing for {STUCK_S:g} s" if code is None else f"ended with {code}"
                raise AssertionError(f"a writer {what}: {self.ledger.read().errors} {self.pair.troubles()}")

    def stop_writers(self) -> None:
        """Have them finish what they do: none may have seen an error (invariant d)."""
        writers, self.writers = self.writers, []
        codes = [writer.stop(STUCK_S) for writer in writers]
        if codes != [0] * len(writers):
            self.writers = writers
            raise AssertionError(f"writers ended with {codes} (None: stuck): {self.ledger.read().errors}")
        for writer in writers:
            writer.close()
        self.ledger.read()
        assert not self.ledger.errors and not self.ledger.flying

    def end_writers(self) -> None:
        """Their mount is gone: wait for their end."""
        writers, self.writers = self.writers, []
        for writer in writers:
            writer.process.kill()
            code = writer.wait_end(STUCK_S)
            assert code is not None, "a writer waits for a mount that is gone"
            writer.close()

    # ---- one round

    def round(self, kind: str, draw: random.Random) -> None:
        """Kill, look, start again."""
        self.wait_acknowledged(int(10 ** draw.uniform(0, 2.8)))
        self.counts[f"kills ({kind})"] += 1
        adopted = kind.endswith(ADOPTED)
        if kind.startswith("target"):
            self.lose_target(draw, again=kind != "target")
        elif kind.startswith("both"):
            self.lose_both(draw, adopted)
        elif kind.removesuffix(ADOPTED) == "source":
            self.lose_source(adopted)
        else:
            self.pair.kill_target()
            self.wait_acknowledged(draw.randrange(1, 400))
            self.pair.start_target()
            self._story("target started again")
            self.wait_acknowledged(int(10 ** draw.uniform(0, 3.3)))
            self.lose_source(adopted)

    def lose_target(self, draw: random.Random, again: bool) -> None:
        """The target is killed; the source must go on."""
        self.pair.kill_target()
        self.wait_acknowledged(draw.randrange(1, 300))
        self._story("went on alone")
        synced = self._times_in_sync()
        if again:
            self.pair.start_target()
            self.wait_acknowledged(int(10 ** draw.uniform(0, 3.3)))
            self.pair.kill_target()
            self._story(f"killed again, in sync {self._times_in_sync() - synced} times in between")
            self.wait_acknowledged(draw.randrange(1, 100))
        quiet = draw.random() < 0.5
        if quiet:
            self.stop_writers()
            self.check_marks()
            self.check_copy("source")
        synced = self._times_in_sync()
        self.pair.start_target()
        if not quiet:
            self.wait_acknowledged(draw.randrange(1, 300))
        self.wait_in_sync(synced)
        if quiet:
            self.start_writers()

    def lose_source(self, adopted: bool) -> None:
        """The source is killed; the target must have all that was acknowledged, if it was in sync."""
        self.pair.kill_source()
        if not adopted:
            self.lose_mount()
        wait_until(lambda: not self._target_linked(), "the target notices that the source is gone", STUCK_S)
        self.check_after_source(adopted)
        self.start_source_again(adopted)
        self.wait_in_sync(0)

    def lose_mount(self) -> None:
        """The mount goes as well, and with it the writers."""
        self.pair.abort()
        self.end_writers()

    def start_source_again(self, adopted: bool) -> None:
        """Start the source: with the mount that it left behind, or with a new one."""
        self.pair.start_source()
        assert self.pair.source is not None
        assert ("adopted the mount" in self.pair.source.said) == adopted
        if adopted:
            self.counts["adoptions"] += 1
        else:
            self.start_writers()
        self.wait_acknowledged(10)

    def lose_both(self, draw: random.Random, adopted: bool) -> None:
        """Both are killed, one right after the other."""
        kills = [self.pair.kill_source, self.pair.kill_target]
        draw.shuffle(kills)
        for kill in kills:
            kill()
        if not adopted:
            self.lose_mount()
            wait_until(lambda: not processes_marked(self.pair.mark), "helpers of killed mirrors end", 10)
        self.check_after_source(adopted)
        if draw.random() < 0.5:
            self.pair.start_target()
            self.start_source_again(adopted)
            self.wait_in_sync(0)
            return
        self._story("the source starts first, and goes alone")
        self.start_source_again(adopted)
        self.wait_acknowledged(draw.randrange(1, 300))
        synced = self._times_in_sync()
        self.pair.start_target()
        self.wait_acknowledged(draw.randrange(1, 300))
        self.wait_in_sync(synced)

    # ---- checks

    def check_after_source(self, adopted: bool) -> None:
        """The source is gone, the target does nothing, writers have ended or wait for the mount to be adopted."""
        self.ledger.read()
        if not adopted:
            self.ledger.errors.clear()  # the mount went away under the writers
        assert not self.ledger.errors, f"errors on a mount that is to be adopted: {self.ledger.errors}"
        mine, theirs = record_io.load(f"{self.pair.source_state}/record"), record_io.load(self._target_record)
        assert mine is not None
        if theirs is not None and theirs.in_sync and not theirs.inconsistent and not mine.solo:
            self._story("the target was in sync")
            self.counts["survivals checked"] += 1
            self.check_copy("target")
        self.check_marks()
        self.check_copy("source", settle=not adopted)

    @property
    def _target_record(self) -> str:
        return f"{self.pair.target_state}/record"

    def check_copy(self, which: str, *, settle: bool = False) -> None:
        """A copy against the ledger (invariant a)."""
        directory = self.source_data if which == "source" else self.pair.target_dir
        wrong = self.ledger.check(directory, settle=settle)
        self.bytes_compared += len(self.ledger.pages) * 4096
        assert not wrong, f"the {which}'s copy is wrong in {len(wrong)} places:\n  " + "\n  ".join(wrong[:10])

    def check_marks(self) -> None:
        """The copies differ only in what is marked (invariant b)."""
        record = record_io.load(f"{self.pair.source_state}/record")
        assert record is not None
        with open(f"{self.pair.source_state}/dirty-log", "rb") as log:
            recovered = dirty_log.recover(log.read())
        dirty_log.check(recovered, record, self.shift)
        if recovered.everything:
            self.counts["everything marked"] += 1
            return
        wrong = unmarked_differences(self.source_data, self.pair.target_dir, recovered.marks, self.shift)
        self.bytes_compared += 2 * len(self.ledger.pages) * 4096
        assert not wrong, f"{len(wrong)} differences that are not marked:\n  " + "\n  ".join(wrong[:10])

    def stop_and_compare(self) -> None:
        """Both copies are equal after a clean stop (invariant c)."""
        self._story("clean stop")
        self.stop_writers()
        self.pair.stop()
        differences = self.pair.compare()
        self.counts["comparisons"] += 1
        assert not differences, f"{len(differences)} differences:\n  " + "\n  ".join(differences[:10])
        for which in ("source", "target"):
            self.check_copy(which)

    # ---- what the processes say

    def _story(self, what: str) -> None:
        self.story.append(what)

    def _times_in_sync(self) -> int:
        assert self.pair.source is not None
        return self.pair.source.said.count("in sync")

    def wait_in_sync(self, before: int) -> None:
        """A reintegration must come to its end."""

        def done() -> bool:
            assert self.pair.running, f"a mirror process has ended: {self.pair.troubles()}"
            return self._times_in_sync() > before

        wait_until(done, "in sync again", STUCK_S)
        self._story("in sync again")
        self.counts["reintegrations"] += 1

    def _target_linked(self) -> bool:
        with ControlClient(self.pair.target_state) as control:
            return bool(control.ask("status")["linked"])


@pytest.mark.long
def test_torture() -> None:
    rounds = int(os.environ.get("HOTPAIR_TORTURE_ROUNDS", "1000"))
    seed = int(os.environ.get("HOTPAIR_TORTURE_SEED") or random.SystemRandom().randrange(1 << 32))
    with Torture(seed) as torture:
        torture.run(rounds)
