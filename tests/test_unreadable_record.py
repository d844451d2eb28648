"""A record that cannot be read: the module waits and says why, nothing is touched, and the pulses promise nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.actors import supervisor, unreadable
from hotpair.client import Client, Refused
from hotpair.cluster import record_io
from hotpair.cluster.module_events import MirrorReported
from hotpair.cluster.module_values import State, Vm
from hotpair.cluster.record import RecordDamaged, RecordVersion, encode
from hotpair.cluster.simulation.world import first_record
from tests.api_server import ApiServer, Begin, prim, second, stopped
from tests.pair_servers import HERE, THERE, pair_servers
from tests.test_commands import run

LIMIT_S = 20.0
WHOLE = encode(first_record())


def with_bit_flipped(place: int) -> bytes:
    return WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :]


def of_version(version: int) -> bytes:
    """Sound, and written by another program."""
    body = WHOLE[:8] + version.to_bytes(2, "little") + WHOLE[10:-32]
    return body + hashlib.sha256(body).digest()


DAMAGED = {
    "empty": b"",
    "cut off": WHOLE[:-5],
    "its beginning only": WHOLE[:9],
    "a bit of the magic": with_bit_flipped(0),
    "a bit of the length": with_bit_flipped(12),
    "a bit of the fields": with_bit_flipped(40),
    "a bit of the checksum": with_bit_flipped(len(WHOLE) - 1),
    "something follows": WHOLE + b"\0",
    "far too long": bytes(1 << 20),
    "another version": of_version(77),
}


class Server(ApiServer):
    """web's record is what `data` says."""

    def __init__(self, folder: Path, data: bytes, begin: Begin) -> None:
        self._data = data
        super().__init__(folder, {"web": begin, "db": stopped()})

    def _configure(self, folder: Path, tls: bool) -> None:
        super()._configure(folder, tls)
        self.record.write_bytes(self._data)

    @property
    def record(self) -> Path:
        return Path(self.home.mirror_state("web")) / "record"

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self.call(condition):
            assert time.monotonic() < deadline, self.supervisor.standing("web")
            time.sleep(0.01)


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize(
    "begin", [replace(stopped(), wanted=True), replace(prim(), mirror=None, vm=Vm.OFF)], ids=["stopped", "paired"]
)
def test_it_waits_with_the_reason_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, begin: Begin
) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.01)  # and each time it is looked at again
    server = Server(tmp_path, data, begin)
    try:
        group = server.group("web")
        time.sleep(0.1)
        shown = server.supervisor.standing("web")
        assert (shown.state, shown.ready, shown.vm, shown.data) == (State.WAIT, False, "off", "unknown")
        assert shown.wanted and shown.reason == shown.problem
        assert str(server.record) in shown.reason
        assert ("format version 77" if data == DAMAGED["another version"] else "is damaged") in shown.reason
        assert group.said == [], "nothing is started, stopped or told"
        assert group.peer.told is None, "the peer is told nothing that it could believe"
        assert server.record.read_bytes() == data
        assert sorted(path.name for path in server.record.parent.iterdir()) == ["record"]
        problems = [one for one in server.supervisor.events("web") if one["kind"] == "problem"]
        assert len(problems) == 1, "said once, however often it is looked at"
    finally:
        server.close()


def test_every_way_to_look_says_the_same(tmp_path: Path) -> None:
    server = Server(tmp_path, DAMAGED["a bit of the fields"], prim())
    home = server.home.configuration
    try:
        done = run("state", "web", home=home)
        assert done.returncode == 1 and "WAIT" in done.stdout
        assert "its checksum is wrong" in " ".join(done.stdout.split())
        done = run("module", "show", "web", home=home)
        assert done.returncode == 0 and "WAIT" in done.stdout
        assert run("wait", "web", "WAIT", "--timeout", "1", home=home).returncode == 0
        with Client.here(server.home) as client:
            web = client.module("web")
            assert (web.state, web.colour, web.ready) == ("WAIT", "red", False)
            assert (web.vm, web.wanted) == ("on", True), "what runs goes on, and is shown"
            metrics = client.metrics().splitlines()
            assert 'hotpair_module_state{module="web",state="WAIT"} 1.0' in metrics
            assert 'hotpair_module_problem{module="web"} 1.0' in metrics
            assert 'hotpair_module_ready{module="web"} 0.0' in metrics
            for command in ("start", "stop", "prim", "second", "swap"):
                with pytest.raises(Refused, match="is damaged"):
                    client.command("web", command)
        assert server.record.read_bytes() == DAMAGED["a bit of the fields"]
        assert server.group("web").said == []
    finally:
        server.close()


def test_the_hosts_shutdown_does_not_wait_for_it(tmp_path: Path) -> None:
    server = Server(tmp_path, b"", prim())
    try:
        assert run("shutdown", "--timeout", "5", home=server.home.configuration).returncode == 0
    finally:
        server.close()


def test_it_goes_on_by_itself_when_the_record_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.02)
    server = Server(tmp_path, b"", prim())
    try:
        assert server.supervisor.standing("web").state is State.WAIT
        server.record.with_name("new").write_bytes(WHOLE)
        server.record.with_name("new").rename(server.record)
        server.until(lambda: server.supervisor.standing("web").state is State.PRIM)
        assert server.supervisor.standing("web").problem == ""
        told = server.group("web").peer.told
        assert told is not None and told.state is State.PRIM
    finally:
        server.close()


def test_moved_away_it_is_as_if_there_had_been_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy: with the peer's copy, this one becomes a target that compares everything."""
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.02)
    server = Server(tmp_path, b"", replace(second(), mirror=None))
    try:
        server.record.rename(server.record.with_name("record.damaged"))
        server.until(lambda: "start target" in server.group("web").said)
        assert server.record.with_name("record.damaged").read_bytes() == b""
    finally:
        server.close()


@pytest.mark.parametrize("begin", [prim(), second()], ids=["PRIM", "SECOND"])
def test_a_mirror_that_ends_beside_a_damaged_record_has_not_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Begin
) -> None:
    """Its helper can only say that it has none: "never had a copy" would be a consent to whatever the peer has."""
    monkeypatch.setattr(supervisor, "AGAIN_S", LIMIT_S)
    server = Server(tmp_path, WHOLE if begin.vm is Vm.ON else encode(second().record or first_record()), begin)
    try:
        group = server.group("web")
        said = list(group.said)
        server.record.write_bytes(b"")
        group.mirror = None

        def dies() -> None:
            group.hear(MirrorReported(None, None))

        server.call(dies)
        server.until(lambda: server.supervisor.standing("web").problem != "")
        assert server.supervisor.standing("web").state is State.WAIT
        assert group.peer.told is None, "what was said of it before is not said any more"
        assert group.said == [*said, "link False"]
        assert server.record.read_bytes() == b""
    finally:
        server.close()


def test_a_helper_that_could_not_read_it_once_does_not_make_it_vanish(tmp_path: Path) -> None:
    server = Server(tmp_path, encode(second().record or first_record()), second())
    try:
        group = server.group("web")
        group.mirror = None
        server.call(lambda: group.hear(MirrorReported(None, None)))
        module = server.supervisor.known("web")
        assert module is not None and module.record == record_io.load(str(server.record))
        assert module.record is not None
    finally:
        server.close()


def test_the_reason_names_files_and_the_peer() -> None:
    said = unreadable.reason(RecordDamaged("it is cut off"), "/s/record", "/s/overwrite", "beta")
    assert "touch /s/overwrite && mv /s/record /s/record.damaged" in said and "copied from beta" in said
    said = unreadable.reason(RecordVersion(9), "/s/record", "/s/overwrite", "beta")
    assert "format version 9" in said and "mv " not in said, "a sound record is not given up"


def test_the_pair_changes_nothing_of_a_module_of_which_nothing_is_known(tmp_path: Path) -> None:
    with pair_servers(tmp_path) as pair:
        table = {"directory": pair.directory(), "data_on": HERE, "vm": {"driver": "command", "options": {"start": "x"}}}
        with pair[HERE].client() as client:
            client.add_module("web", configuration=table)
        pair.stop(HERE)
        record = Path(pair.homes[HERE].mirror_state("web"), "record")
        record.write_bytes(DAMAGED["cut off"])
        pair.start(HERE)
        for name in (HERE, THERE):
            with pair[name].client() as client, pytest.raises(Refused, match=r"not known whether web runs.*is damaged"):
                client.edit_module("web", settings={"boot": "off"})
        assert record.read_bytes() == DAMAGED["cut off"]
