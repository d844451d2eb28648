"""What a boot of the host, a restart of the service and a peer that is back begin by themselves: the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.cluster import wishes_io
from hotpair.cluster.module_events import Command, PeerHeard
from hotpair.cluster.module_values import State
from hotpair.cluster.simulation.world import BOOT
from hotpair.cluster.wishes_io import Wishes
from tests.api_server import ApiServer, Begin, prim, second, stopped

LIMIT_S = 10.0
QUIET_TURNS = 50  # of the event loop: whatever would follow by itself has followed
BEFORE = "the boot before"


class Server(ApiServer):
    """web has these keys, and this is what commands said of it last; None: nothing ever was."""

    def __init__(self, folder: Path, begin: Begin, keys: str, wishes: Wishes | None) -> None:
        self._keys = keys
        self._wishes = wishes
        super().__init__(folder, {"web": begin})

    def _configure(self, folder: Path, tls: bool) -> None:
        super()._configure(folder, tls)
        file = Path(self.home.module_file("web"))
        file.write_text(self._keys + "\n" + file.read_text())
        self.wishes_file.unlink(missing_ok=True)
        if self._wishes is not None:
            wishes_io.store(str(self.wishes_file), self._wishes)

    @property
    def wishes_file(self) -> Path:
        return Path(self.home.module_state("web")) / "wishes"

    def wishes(self) -> Wishes:
        return wishes_io.load(str(self.wishes_file))

    def state(self) -> State | None:
        return self.supervisor.standing("web").state

    def settle(self) -> None:
        for _ in range(QUIET_TURNS):
            self.call(lambda: None)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self.call(condition):
            assert time.monotonic() < deadline, (self.supervisor.standing("web"), self.group("web").said)

    def restart(self, boot: str, begin: Begin) -> None:
        """The service, on the same boot of the host or on another; the record is as it was left."""
        self.stop_serving()
        self.run(self.supervisor.close())
        self.boot = boot
        self.begins["web"] = begin
        self.supervisor, self.groups, self.api = self.run(self._begin())
        self._serves = True


@contextmanager
def server_with(folder: Path, begin: Begin, keys: str = "", wishes: Wishes | None = None) -> Iterator[Server]:
    made = Server(folder, begin, keys, wishes)
    try:
        yield made
    finally:
        made.close()


# ---- boot


@pytest.mark.parametrize(
    ("boot", "wanted", "runs"),
    [
        ("on", True, True),
        ("on", False, True),
        ("off", True, False),
        ("off", False, False),
        ("as-before", True, True),
        ("as-before", False, False),
    ],
)
def test_after_a_boot_of_the_host(tmp_path: Path, boot: str, wanted: bool, runs: bool) -> None:
    with server_with(tmp_path, stopped(), f'boot = "{boot}"', Wishes(wanted, False, BEFORE)) as server:
        if runs:
            server.until(lambda: server.state() is State.ALONE)
        server.settle()
        assert server.state() is (State.ALONE if runs else State.STOP)
        assert ("start vm" in server.group("web").said) is runs
        assert server.wishes() == Wishes(runs, False, BOOT), "and that is what counts until the next command"


@pytest.mark.parametrize("boot", ["on", "off", "as-before"])
@pytest.mark.parametrize("wanted", [True, False])
def test_after_a_restart_of_the_service_only_what_was_said_counts(tmp_path: Path, boot: str, wanted: bool) -> None:
    with server_with(tmp_path, stopped(), f'boot = "{boot}"', Wishes(wanted, False, BOOT)) as server:
        if wanted:
            server.until(lambda: server.state() is State.ALONE)
        server.settle()
        assert server.state() is (State.ALONE if wanted else State.STOP)
        assert server.wishes().wanted is wanted


def test_left_out_it_is_as_before(tmp_path: Path) -> None:
    with server_with(tmp_path, stopped(), "", Wishes(True, False, BEFORE)) as server:
        server.until(lambda: server.state() is State.ALONE)


def test_maintenance_outlives_a_boot(tmp_path: Path) -> None:
    with server_with(tmp_path, stopped(), 'boot = "on"', Wishes(False, True, BEFORE)) as server:
        server.settle()
        assert server.supervisor.standing("web").maintenance
        assert server.wishes() == Wishes(True, True, BOOT)


def test_what_the_hosts_shutdown_has_stopped_runs_after_the_boot(tmp_path: Path) -> None:
    with server_with(tmp_path, stopped(), 'boot = "as-before"', Wishes(True, False, BOOT)) as server:
        server.until(lambda: server.state() is State.ALONE)
        server.run(server.supervisor.stop_all())
        assert server.state() is State.STOP
        server.restart("the next boot", replace(stopped(), record=None))
        server.until(lambda: server.state() is State.ALONE)


def test_what_the_operator_has_stopped_does_not(tmp_path: Path) -> None:
    with server_with(tmp_path, stopped(), 'boot = "as-before"', Wishes(True, False, BOOT)) as server:
        server.until(lambda: server.state() is State.ALONE)
        assert server.run(server.supervisor.command("web", Command.STOP)).accepted
        server.until(lambda: server.state() is State.STOP)
        server.restart("the next boot", replace(stopped(), record=None))
        server.settle()
        assert server.state() is State.STOP and server.group("web").said == []


def test_a_running_vm_is_taken_on_and_not_started_again(tmp_path: Path) -> None:
    with server_with(tmp_path, prim(), 'boot = "off"', Wishes(True, False, BOOT)) as server:
        server.settle()
        assert server.state() is State.PRIM
        assert [word for word in server.group("web").said if "vm" in word] == []


# ---- failback

AUTOMATIC_TO_THE_PEER = 'preferred = "beta"\nfailback = "automatic"'


def test_automatic_gives_the_module_back_to_the_preferred_server(tmp_path: Path) -> None:
    with server_with(tmp_path, prim(), AUTOMATIC_TO_THE_PEER, Wishes(True, False, BOOT)) as server:
        server.until(lambda: "hand over" in server.group("web").said)
        said = server.group("web").said
        assert said.index("stop vm") < said.index("hand over")
        assert server.wishes().wanted, "nobody has stopped it"


@pytest.mark.parametrize(
    ("keys", "wishes"),
    [
        ("", Wishes(True, False, BOOT)),
        ('preferred = "beta"', Wishes(True, False, BOOT)),
        ('preferred = "beta"\nfailback = "manual"', Wishes(True, False, BOOT)),
        ('preferred = "alpha"\nfailback = "automatic"', Wishes(True, False, BOOT)),
        (AUTOMATIC_TO_THE_PEER, Wishes(True, True, BOOT)),
    ],
    ids=["not said", "preferred only", "manual", "it is at home", "maintenance"],
)
def test_otherwise_it_stays(tmp_path: Path, keys: str, wishes: Wishes) -> None:
    with server_with(tmp_path, prim(), keys, wishes) as server:
        server.settle()
        assert server.state() is State.PRIM
        assert {"stop vm", "hand over"} & set(server.group("web").said) == set()


def test_only_to_a_peer_that_can_take_over(tmp_path: Path) -> None:
    """The preferred server is back, and its copy is not in sync yet; when it is, the module goes home."""
    begin = prim()
    assert begin.peer is not None and begin.mirror is not None
    waits = replace(begin, peer=replace(begin.peer, ready=False), mirror=replace(begin.mirror, in_sync=False))
    with server_with(tmp_path, waits, AUTOMATIC_TO_THE_PEER, Wishes(True, False, BOOT)) as server:
        server.settle()
        group = server.group("web")
        assert {"stop vm", "hand over"} & set(group.said) == set()

        def is_reintegrated() -> None:
            group.mirror = begin.mirror
            group.report()
            assert begin.peer is not None
            group.hear(PeerHeard(begin.peer))

        server.call(is_reintegrated)
        server.until(lambda: "hand over" in group.said)


def test_the_end_of_maintenance_lets_it_go_home(tmp_path: Path) -> None:
    with server_with(tmp_path, prim(), AUTOMATIC_TO_THE_PEER, Wishes(True, True, BOOT)) as server:
        server.settle()
        assert "hand over" not in server.group("web").said
        assert server.run(server.supervisor.command("web", Command.MAINTENANCE_OFF)).accepted
        server.until(lambda: "hand over" in server.group("web").said)


def test_the_preferred_server_itself_takes_nothing(tmp_path: Path) -> None:
    """Who runs the module gives it back; the one that is preferred waits, in sync."""
    keys = 'preferred = "alpha"\nfailback = "automatic"'
    with server_with(tmp_path, second(), keys, Wishes(True, False, BOOT)) as server:
        server.settle()
        assert server.state() is State.SECOND
        assert [word for word in server.group("web").said if "link" not in word] == []
