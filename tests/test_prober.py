"""When checks are made and heard: a clock that is set, checks that end when they are told to, no waiting."""

from __future__ import annotations

import pickle
import queue
import socket
import threading
from collections.abc import Callable

from hotpair.actors.module_probes import prober_of
from hotpair.actors.prober import Prober
from hotpair.actors.vm_keeper import VmFacts, VmKeeper
from hotpair.cluster.check_times import LATE_S, Turn, next_at
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.checks import Checked, Finding, Found, Watch, down, up
from hotpair.cluster.configuration import Checker
from hotpair.hyperv.driver import Driver, Heartbeat, Observation, VmState

PERIOD_S, LIMIT_S = 10.0, 5.0


class Checks:
    """A prober whose checks wait in `begun` until `end` is called."""

    def __init__(self, *names: str) -> None:
        self.now = 100.0
        self.begun: dict[str, Callable[[], None]] = {}
        self.heard: list[Checked] = []
        self.finds: dict[str, Found] = {}
        self._waiting: list[Callable[[], None]] = []
        self.prober = Prober(
            {name: Turn(PERIOD_S, LIMIT_S) for name in names},
            {name: lambda timeout_s, name=name: self.finds.get(name, up("")) for name in names},  # type: ignore[misc]
            self.heard.append,
            clock=lambda: self.now,
            begin=self._waiting.append,
        )

    def at(self, now: float) -> int:
        """How many checks are begun then."""
        self.now = now
        before = len(self._waiting)
        self.prober.step()
        return len(self._waiting) - before

    def end(self, which: int = 0) -> None:
        self._waiting.pop(which)()

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        return [(one.checker, one.found.finding) for one in self.heard]

    def watch(self, *names: str, run: int = 1) -> None:
        self.prober.watch(Watch(frozenset(names), run))


def test_nothing_is_looked_at_before_it_is_asked_for() -> None:
    checks = Checks("web", "db")
    assert checks.at(200.0) == 0
    checks.watch("web", "a checker of somebody else's")
    assert checks.at(200.0) == 1
    checks.end()
    assert checks.findings == [("web", Finding.UP)]


def test_each_has_its_period_and_every_check_is_said() -> None:
    checks = Checks("web")
    checks.watch("web")
    for second in range(100, 140):
        for _ in range(checks.at(float(second))):
            checks.end()
    assert checks.findings == [("web", Finding.UP)] * 4
    checks.watch()
    assert checks.at(300.0) == 0


def test_a_check_that_hangs_is_down_in_time_and_keeps_no_other_waiting() -> None:
    checks = Checks("hangs", "web")
    checks.watch("hangs", "web")
    assert checks.at(100.0) == 2
    checks.end(1)
    assert checks.at(104.9 + LATE_S) == 0
    assert checks.findings == [("web", Finding.UP)]
    assert checks.at(105.0 + LATE_S) == 0
    assert checks.findings[-1] == ("hangs", Finding.DOWN) and checks.heard[-1].found.detail == "no answer for 6 s"
    assert checks.at(110.0) == 1, "the other goes on; this one is not begun a second time"
    checks.end(1)
    checks.at(106.0 + PERIOD_S)
    assert checks.heard[-1].checker == "hangs", "it is said again in each period"
    checks.end()
    assert checks.heard[-1].checker == "hangs" and checks.heard[-1].found.finding is Finding.DOWN, "too late to count"
    assert checks.at(106.0 + 2 * PERIOD_S) == 2
    checks.end()
    assert checks.findings[-1] == ("hangs", Finding.UP)


def test_a_new_run_of_the_module_is_looked_at_at_once_and_the_old_one_is_not_heard() -> None:
    checks = Checks("web")
    checks.finds["web"] = down("of the old run")
    checks.watch("web", run=1)
    assert checks.at(100.0) == 1
    checks.watch("web", run=2)
    checks.end()
    assert checks.heard == []
    assert checks.at(100.5) == 1
    checks.end()
    assert [one.run for one in checks.heard] == [2]


def test_what_is_not_asked_for_any_more_is_not_heard() -> None:
    checks = Checks("web")
    checks.watch("web")
    checks.at(100.0)
    checks.watch()
    checks.end()
    checks.watch("web")
    checks.at(100.0)
    checks.prober.close()
    checks.end()
    assert checks.heard == [] and checks.at(500.0) == 0


def test_there_is_always_a_next_time() -> None:
    turns = {"a": Turn(PERIOD_S, LIMIT_S)}
    assert next_at(turns, 5.0) > 5.0
    turns = {"a": Turn(PERIOD_S, LIMIT_S, watched=True, due_at=7.0)}
    assert next_at(turns, 5.0) == 7.0
    turns = {"a": Turn(PERIOD_S, LIMIT_S, watched=True, due_at=17.0, began_at=7.0)}
    assert next_at(turns, 8.0) == 7.0 + LIMIT_S + LATE_S


def test_with_threads_one_that_hangs_holds_nothing_up() -> None:
    hangs, heard = threading.Event(), threading.Event()

    def forever(timeout_s: float) -> Found:
        hangs.wait(60)
        return up("")

    said: list[Checked] = []

    def hear(one: Checked) -> None:
        said.append(one)
        heard.set()

    prober = Prober(
        {"hangs": Turn(1.0, 1.0), "web": Turn(1.0, 1.0)}, {"hangs": forever, "web": lambda timeout_s: up("")}, hear
    )
    at_work = threading.Thread(target=prober.run, daemon=True)
    at_work.start()
    prober.watch(Watch(frozenset({"hangs", "web"}), 1))
    assert heard.wait(30)
    assert said[0].checker == "web"
    prober.close()
    at_work.join(30)
    assert not at_work.is_alive()
    hangs.set()


def test_a_check_with_a_mistake_in_it_says_nothing_about_what_it_looks_at() -> None:
    said: list[Checked] = []
    broken: list[Callable[[], None]] = []

    def mistaken(timeout_s: float) -> Found:
        raise ZeroDivisionError

    prober = Prober({"web": Turn(1.0, 1.0)}, {"web": mistaken}, said.append, clock=lambda: 0.0, begin=broken.append)
    prober.watch(Watch(frozenset({"web"}), 1))
    prober.step()
    try:
        broken[0]()
    except ZeroDivisionError:
        pass
    assert [one.found.finding for one in said] == [Finding.UNKNOWN]


class OnlyLooks:
    """A driver as far as a keeper needs it to look."""

    def observe(self) -> Observation:
        return Observation(VmState.ON, Heartbeat.LOST, 40.0)


def test_the_probes_of_a_module_beside_its_vm() -> None:
    """As the VM's actor has them: from values that were sent to it, and from its own keeper."""

    def checker(name: str, kind: str, **options: object) -> Checker:
        return Checker(name, kind, 60.0, 5.0, 15.0, 0.0, Action.NONE, False, options)

    def make() -> Driver:
        return OnlyLooks()  # type: ignore[return-value]

    heard: queue.SimpleQueue[Checked] = queue.SimpleQueue()
    keeper = VmKeeper(VmFacts("web", "stop", 60.0, 60.0), make, lambda event: None)
    keeper.find()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        configured = (
            checker("vm", "vm-state"),
            checker("guest", "guest-heartbeat"),
            checker("web", "tcp", address=address),
        )
        prober = prober_of(pickle.loads(pickle.dumps(configured)), "web", keeper, heard.put)
        prober.watch(pickle.loads(pickle.dumps(Watch(frozenset({"vm", "guest", "web"}), 7))))
        said = [heard.get(timeout=60) for _ in range(3)]
    prober.close()
    keeper.close()
    assert {one.checker: one.found.finding for one in said} == {
        "vm": Finding.UP, "guest": Finding.DOWN, "web": Finding.UP,
    }  # fmt: skip
    assert {one.run for one in said} == {7}
