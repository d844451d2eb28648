"""A module's runner with ports that note what they are told: order, durability first, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotpair.actors.module_runner import ModuleRunner, NotStored, RunnerEnded
from hotpair.actors.shelf_io import ModuleShelf
from hotpair.cluster.arbitration import Answer, Claim, Kind, Purpose
from hotpair.cluster.module_events import (
    Answered,
    Command,
    Commanded,
    Effect,
    Event,
    MirrorReported,
    PeerHeard,
    PeerLost,
    Reply,
    Started,
    Timer,
    VmReported,
)
from hotpair.cluster.module_values import (
    HowToStop,
    Mirror,
    MirrorMode,
    Module,
    PeerView,
    Reason,
    Role,
    State,
    Vm,
)
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import BOOT, first_record, settings
from hotpair.cluster.wishes_io import Wishes


class Everything:
    """All ports at once; `said` is what they were told, in order. `on` may do something in the middle."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.claims: list[Claim] = []
        self.fails = ""
        self.on: dict[str, Callable[[], None]] = {}

    def _note(self, what: str, *details: Any) -> None:
        self.said.append((what, *details))
        if self.fails == what:
            raise NotStored("the state disk is full")
        self.on.pop(what, lambda: None)()

    @property
    def words(self) -> list[str]:
        return [entry[0] for entry in self.said]

    # the mirror, the VM (one `start` and `stop` each, told apart by their arguments)
    def start(self, role: Role | None = None, *, alone: bool = False, salvage: bytes | None = None) -> None:
        self._note(*(("start vm",) if role is None else ("start mirror", role, alone, salvage)))

    def stop(self, how: HowToStop | None = None) -> None:
        self._note(*(("stop mirror",) if how is None else ("stop vm", how)))

    def go_alone(self, based_on: Record, record: Record) -> None:
        self._note("go alone", based_on, record)

    def fail_tap(self) -> None:
        self._note("fail tap")

    def hand_over(self) -> None:
        self._note("hand over")

    def leave(self) -> None:
        self._note("leave")

    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None:
        self._note("agree", epoch, mine_first)

    # the arbiter, the peer, the clock
    def claim(self, claim: Claim) -> None:
        self.claims.append(claim)
        self._note("claim", claim.purpose)

    def look(self, request_id: bytes) -> None:
        self._note("look")

    def say(self, told: PeerView) -> None:
        self._note("say", told.state)

    def set(self, timer: Timer, after_s: float) -> None:
        self._note("set", timer)

    def cancel(self, timer: Timer) -> None:
        self._note("cancel", timer)

    # the shelf, the diary
    def store(self, record: Record, *, flush: bool) -> None:
        self._note("store", record, flush)

    def remember(self, *, wanted: bool, maintenance: bool) -> None:
        self._note("remember", wanted, maintenance)

    def changed(self, before: Module, event: Event, after: Module) -> None:
        if before.state is not after.state:
            self._note("state", after.state)

    def told(self, reason: Reason) -> None:
        self._note("reason", reason)

    def replied(self, command: str, reply: Reply) -> None:
        self._note("reply", command, reply.accepted)


def made(kind: Kind = Kind.WITNESS) -> tuple[ModuleRunner, Everything]:
    ports = Everything()
    runner = ModuleRunner(
        settings(kind, 0),
        mirror=ports, vm=ports, arbiter=ports, peer=ports, timers=ports, shelf=ports, diary=ports,
        clock=lambda: 0.0,
    )  # fmt: skip
    return runner, ports


def started(kind: Kind = Kind.WITNESS, *, wanted: bool = True) -> tuple[ModuleRunner, Everything]:
    runner, ports = made(kind)
    runner.handle(Started(first_record(), wanted, False, BOOT, None, Vm.OFF))
    runner.handle(PeerLost())
    return runner, ports


def granted(claim: Claim) -> Answered:
    return Answered(
        Answer(request_id=claim.request_id, granted=True, epoch=claim.epoch + 1, holder="a", reason="", reachable=True)
    )


def test_every_effect_has_its_port() -> None:
    from hotpair.actors.module_runner import _CARRY_OUT

    assert set(_CARRY_OUT) == set(Effect.__args__)


def test_a_grant_is_durable_before_the_mirror_starts_and_the_vm_after_it() -> None:
    runner, ports = started()
    assert ports.claims[0].purpose is Purpose.START_ALONE
    runner.handle(granted(ports.claims[0]))
    words = ports.words
    assert words.index("store") < words.index("start mirror")
    assert "start vm" not in words
    record = next(entry[1] for entry in ports.said if entry[0] == "store")
    runner.handle(MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), record))
    assert ports.words[-1] == "start vm"
    runner.handle(VmReported(Vm.ON))
    assert ports.said[-1] == ("say", State.ALONE)
    assert runner.told.ready


def test_a_record_that_cannot_be_stored_ends_the_runner_before_anything_else_happens() -> None:
    runner, ports = started()
    ports.fails = "store"
    with pytest.raises(RunnerEnded, match="the state disk is full"):
        runner.handle(granted(ports.claims[0]))
    assert "start mirror" not in ports.words
    with pytest.raises(RunnerEnded, match="the state disk is full"):
        runner.handle(PeerHeard(PeerView(State.STOP, False, None, BOOT)))


def test_what_comes_while_effects_are_carried_out_waits_its_turn() -> None:
    """A port that answers at once must not see the state in the middle of a step."""
    runner, ports = started()
    seen: list[State] = []
    ports.on["store"] = lambda: (runner.handle(VmReported(Vm.OFF)), seen.append(runner.module.state))[0]
    before = len(ports.said)
    runner.handle(granted(ports.claims[0]))
    words = ports.words[before:]
    assert words.index("store") < words.index("start mirror")
    assert seen == [State.ALONE]


def test_a_command_is_answered_to_who_gave_it() -> None:
    runner, ports = started(wanted=False)
    answers: list[Reply] = []
    runner.handle(Commanded(Command.START), answers.append)
    runner.handle(Commanded(Command.SWAP), answers.append)
    assert [answer.accepted for answer in answers] == [True, False]
    assert answers[1].why
    assert [entry for entry in ports.said if entry[0] == "reply"] == [
        ("reply", "start", True),
        ("reply", "swap", False),
    ]


def shelf_at(folder: Path) -> ModuleShelf:
    return ModuleShelf(str(folder / "state"), str(folder / "state" / "mirror"), str(folder / "vm"), BOOT)


def test_the_shelf_keeps_record_and_wishes(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    assert shelf.load() == (None, Wishes())
    shelf.store(first_record(), flush=True)
    shelf.remember(wanted=True, maintenance=False)
    again = shelf_at(tmp_path)
    assert again.load() == (first_record(), Wishes(True, False, BOOT))


def test_what_cannot_be_stored_says_where_and_why(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    (tmp_path / "state" / "wishes.new").mkdir()
    with pytest.raises(NotStored, match=r"wishes: Is a directory"):
        shelf.remember(wanted=True, maintenance=False)
