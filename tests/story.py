"""Stories: text scripts of what happens to a pair and what it must come to, told on the simulation.

    # a comment
    policy witness              the first line that is not a comment; then, if it does not start in sync:
    start apart                 or the records, with which both servers boot:
    record a generation 2 base 1 ancestors 1 epoch 1 term 0 role ALONE solo writes 0,1 log 1
    record b none
    arbiter 1 a                 where its epoch stands
    down b 30                   it boots that much later
    split_brain most-changes    what both servers' configurations say, or `split_brain a manual` for one

then one thing a line, in order, with what is expected beside it:

    run 10                      | a PRIM green, b SECOND green
    a: swap
    fault partition 20          name, and for how many seconds
    fault b: mirror dies
    run 5                       | a ALONE vm, b WAIT, arbiter 1 a, copies equal, one server runs

For a server: its state (or `down`), `green`, `vm`, record flags, `epoch=1`, `reason=NAME`, and `not-` before any of
them; `a never-stopped` is about its VM, all the time; `connections 2`: that many hellos so far; `a has 3` and
`a lacks 3` are about the numbered writes that its copy began with. The invariants are checked all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpair.cluster.arbitration import Kind, Standing, keeps_epochs
from hotpair.cluster.module_events import Command
from hotpair.cluster.module_values import ready
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.fault_list import Detail, Fault
from hotpair.cluster.simulation.faults import Plan
from hotpair.cluster.simulation.life import Life
from hotpair.cluster.simulation.timed import begin, inject, keep_down, run
from hotpair.cluster.simulation.world import BOOT, NAMES, OLD_BOOT, ROOT, Server, World, named, pair_in_sync
from hotpair.cluster.split_brain import MANUAL, is_policy

FLAGS = ("in_sync", "solo", "inconsistent", "outdated")


class StoryWrong(Exception):
    """The story is not told that way, or does not end so."""


@dataclass(frozen=True)
class Line:
    number: int
    what: str
    expected: tuple[str, ...]


def read(path: Path) -> list[Line]:
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        what, _, expected = text.split("#")[0].partition("|")
        if what.strip() or expected.strip():
            parts = tuple(part.strip() for part in expected.split(",") if part.strip())
            lines.append(Line(number, what.strip(), parts))
    return lines


class Story:
    """One being told. `seed` gives the delays, which must not matter."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self._path = path
        self._lines = read(path)
        self.trace: list[str] = []
        self._seed = seed
        self._kind = Kind.WITNESS
        self._apart = False
        self._records: dict[int, Server] = {}
        self._standing = Standing(0, None)
        self._down: dict[int, float] = {}
        self._life: Life | None = None
        self._policies = [MANUAL, MANUAL]

    def tell(self) -> None:
        """StoryWrong with the line, what was expected and the trace."""
        for line in self._lines:
            try:
                self._do(line.what.split(), line.what)
                for expected in line.expected:
                    self._expect(expected)
            except StoryWrong as wrong:
                trace = "\n".join(self.trace[-40:])
                raise StoryWrong(f"{self._path.name}:{line.number}: {line.what}: {wrong}\n{trace}") from None

    def _do(self, words: list[str], whole: str) -> None:
        match words:
            case []:
                pass
            case ["policy", kind]:
                self._kind = Kind(kind)
            case ["start", "apart"]:
                self._apart = True
            case ["record", name, *rest]:
                self._records[NAMES.index(name)] = _server(rest)
            case ["arbiter", epoch, holder]:
                self._standing = Standing(int(epoch), holder)
            case ["down", name, seconds]:
                self._down[NAMES.index(name)] = float(seconds)
            case ["split_brain", policy] if is_policy(policy):
                self._policies = [policy, policy]
            case ["split_brain", ("a" | "b") as name, policy] if is_policy(policy):
                self._policies[NAMES.index(name)] = policy
            case ["run", seconds]:
                life = self._begun()
                self._is_right(run(life, life.now + float(seconds)).wrong)
            case ["fault", *_]:
                inject(self._begun(), _fault(whole.removeprefix("fault ").strip(), self._begun().now))
            case [("a:" | "b:") as name, *command]:
                fault = Fault(self._begun().now, "command", NAMES.index(name[0]), 0.0, " ".join(command))
                Command(fault.detail)
                inject(self._begun(), fault)
            case _:
                raise StoryWrong("not a line of a story")

    def _is_right(self, wrong: str) -> None:
        if wrong:
            raise StoryWrong(wrong)

    def _begun(self) -> Life:
        if self._life is None:
            policies = (self._policies[0], self._policies[1])
            plan = Plan(self._seed, self._kind, (), starts_apart=self._apart, policies=policies)
            world: World | None = None
            if self._records:
                # Where an arbiter keeps epochs, only an operator's override leaves two copies that go on alone
                both_alone = all(server.record is not None and server.record.solo for server in self._records.values())
                world = pair_in_sync(self._kind, 0, 0)._replace(
                    servers=(self._records[0], self._records[1]),
                    wire=-1,
                    standing=self._standing,
                    written=20,
                    overridden=both_alone and keeps_epochs(self._kind),
                )
            self._life = begin(plan, self.trace.append, world)
            for s, seconds in self._down.items():
                keep_down(self._life, s, seconds)
        return self._life

    # ---- what is expected

    def _expect(self, expected: str) -> None:
        life = self._begun()
        world = life.world
        words = expected.split()
        match words:
            case ["copies", "equal"]:
                _same(world.servers[0].copy, world.servers[1].copy, expected)
            case [("a" | "b"), "has", "all"]:
                _same(world.acked & ~world.servers[NAMES.index(words[0])].copy, 0, expected)
            case [("a" | "b") as name, ("has" | "lacks") as which, number]:
                present = bool(world.servers[NAMES.index(name)].copy >> int(number) & 1)
                _same(present, which == "has", expected)
            case ["split", "brain"]:
                _same(life.result.split_brain, True, expected)
            case ["no", "split", "brain"]:
                _same(life.result.split_brain, False, expected)
            case ["no", "gap"]:
                _same(life.result.gaps, [], expected)
            case ["connections", number]:
                _same(life.connections, int(number), expected)
            case ["arbiter", epoch, holder]:
                _same((world.standing.epoch, str(world.standing.holder)), (int(epoch), holder), expected)
            case [("a" | "b") as name, "never-stopped"]:
                _same(life.vm_stopped_at[NAMES.index(name)], float("-inf"), expected)
            case [("a" | "b") as name, *marks]:
                for mark in marks:
                    wants = not mark.startswith("not-")
                    _same(_has(world.servers[NAMES.index(name)], mark.removeprefix("not-")), wants, f"{name} {mark}")
            case _:
                raise StoryWrong(f"what is {expected!r}?")


def _same(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise StoryWrong(f"expected {what}: found {found}")


def _has(server: Server, mark: str) -> bool:
    module, record = server.module, server.record
    if mark == "down":
        return not server.up
    if mark == "vm":
        return server.vm
    if mark in FLAGS:
        return record is not None and bool(getattr(record, mark))
    if mark == "no-record":
        return record is None
    if mark.startswith("epoch="):
        return record is not None and record.epoch == int(mark[6:])
    if module is None:
        return False
    if mark == "green":
        return ready(module)
    if mark.startswith("reason="):
        return module.reason.name == mark[7:]
    return module.state.value == mark


def _fault(text: str, now: float) -> Fault:
    server = 0
    if text[:2] in ("a:", "b:"):
        server, text = NAMES.index(text[0]), text[2:].strip()
    name, _, rest = text.partition(" for ")
    length = float(rest.split()[0]) if rest else 0.0
    detail: Detail = 0
    if ", " in name:
        name, given = name.split(", ")
        detail = float(given) if given.replace(".", "").lstrip("-").isdigit() else given
    return Fault(now, name, server, length, detail)


def _server(words: list[str]) -> Server:
    """A server that is down, with this on its disk."""
    if words == ["none"]:
        return Server(False, None, None, False, -1, None, True, False, 0, 0, 0)
    fields: dict[str, Any] = {"last_role": "SECOND", "boot": BOOT, "configuration": b"", "root": ROOT}
    copy = dirty = 0
    wanted = True
    rest = iter(words)
    for word in rest:
        match word:
            case "generation" | "base":
                fields[word] = named(int(next(rest)))
            case "ancestors":
                fields[word] = tuple(named(int(number)) for number in next(rest).split(","))
            case "epoch" | "term":
                fields[word] = int(next(rest))
            case "role":
                fields["last_role"] = next(rest)
            case "rebooted":
                fields["boot"] = OLD_BOOT
            case "stopped":
                wanted = False
            case "writes" | "log":
                bits = sum(1 << int(number) for number in next(rest).split(","))
                copy, dirty = (bits, dirty) if word == "writes" else (copy, bits)
            case _ if word in FLAGS:
                fields[word] = True
            case _:
                raise StoryWrong(f"what is {word!r} in a record?")
    return Server(False, None, None, False, -1, Record(**fields), wanted, False, copy, 0, dirty)
