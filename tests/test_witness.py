"""The witness as a real process: killed, restored from a backup, with a failing disk, with bad keys."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotpair.cluster.arbitration import Kind, Purpose, Standing, Verdict, judge
from hotpair.cluster.witness import HISTORY_PER_MODULE
from hotpair.cluster.witness_store_io import SqliteStore, StoreDamaged, StoreUnusable
from tests.witness_process import COMMAND_LINE, Witness, claim, wait_for


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness(tmp_path, pairs=("pair", "other"))
    made.start()
    yield made
    made.kill()


# ---- the ordinary way


def test_the_first_is_granted_the_second_refused_and_both_can_look(witness: Witness) -> None:
    client = witness.client()
    assert client.look("pair", "vm") == Standing(0, None)
    answer = client.claim(claim("a"))
    assert (answer.granted, answer.epoch, answer.holder) == (True, 1, "a")
    answer = client.claim(claim("b"))
    assert (answer.granted, answer.reachable, answer.epoch, answer.holder) == (False, True, 1, "a")
    assert client.look("pair", "vm") == Standing(1, "a")
    assert witness.client("other").look("other", "vm") == Standing(0, None)  # pairs know nothing of each other
    assert client.look("pair", "another") == Standing(0, None)
    log = witness.log()
    assert "granted" in log and "pair pair, module vm, a (go alone)" in log
    assert log.count("refused") == 1 and "pair pair, module vm, b (go alone)" in log


def test_grants_survive_an_ordinary_restart(witness: Witness) -> None:
    for epoch in range(3):
        assert witness.client().claim(claim("ab"[epoch % 2], epoch)).granted
    assert witness.stop() == 0
    assert not witness.client(timeout_s=2).claim(claim("b", 3)).reachable
    assert witness.client(timeout_s=2).look("pair", "vm") is None
    witness.start()
    assert witness.client().look("pair", "vm") == Standing(3, "a")
    assert witness.client().claim(claim("a", 2)).granted  # again
    assert not witness.client().claim(claim("b", 2)).granted


def test_all_purposes_reach_it(witness: Witness) -> None:
    client = witness.client()
    assert client.claim(claim("a", 0, Purpose.START_ALONE)).epoch == 1
    assert client.claim(claim("a", 1, Purpose.SOLO_START)).epoch == 2
    assert not client.claim(claim("b", 2, Purpose.OPERATOR)).granted  # it names the peer
    assert client.claim(claim("b", 2, Purpose.OPERATOR_FORCED)).epoch == 3
    assert client.claim(claim("b", 3, Purpose.OPERATOR)).epoch == 4


def test_it_is_a_command_of_hotpair(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.command = COMMAND_LINE
    witness.start()
    try:
        assert witness.client().claim(claim("a")).granted
        assert witness.stop() == 0
        witness.write_keys("")
        assert "names no pair" in witness.refuses_to_start()
    finally:
        witness.kill()


# ---- two servers and a witness that is killed at any moment


class Server(threading.Thread):
    """Claims without an end. Refused, it takes the arbiter's epoch for its own, as after a meeting with its peer."""

    def __init__(
        self, name: str, witness: Witness, grants: dict[int, set[str]], stop: threading.Event, seed: int
    ) -> None:
        super().__init__(name=name)
        self.client = witness.client(timeout_s=5)
        self.grants, self.stop = grants, stop
        self.random = random.Random(seed)
        self.epoch = 0
        self.broken: list[str] = []
        self.unreachable = 0

    def run(self) -> None:
        while not self.stop.is_set():
            purpose = self.random.choice([Purpose.GO_ALONE, Purpose.START_ALONE, Purpose.SOLO_START])
            asked = claim(self.name, self.epoch, purpose)
            answer = self.client.claim(asked)
            verdict = judge(Kind.WITNESS, asked, answer)
            if verdict is Verdict.GRANTED:
                assert answer.epoch is not None
                self.grants.setdefault(answer.epoch, set()).add(self.name)
                self.epoch = answer.epoch
            elif verdict is Verdict.REFUSED and answer.epoch is not None:
                self.epoch = answer.epoch
            elif verdict is Verdict.UNREACHABLE:
                self.unreachable += 1
                self.stop.wait(0.01)
            else:
                self.broken.append(f"{verdict}: {answer}")
                return


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_it_never_grants_an_epoch_twice(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    witness = Witness(tmp_path)
    grants: dict[int, set[str]] = {}
    stop = threading.Event()
    witness.start()
    servers = [Server(name, witness, grants, stop, seed) for name in "ab"]
    try:
        for server in servers:
            server.start()
        for _ in range(4):
            stop.wait(chance.uniform(0.05, 0.5))
            witness.kill()
            witness.start()
            highest = max(grants, default=0)  # what somebody was told before this look
            standing = witness.client().look("pair", "vm")
            assert standing is not None and standing.epoch >= highest
            if standing.epoch == highest and highest:
                assert grants[highest] == {standing.holder}
    finally:
        stop.set()
        for server in servers:
            server.join(20)
        witness.kill()
    assert [server.broken for server in servers] == [[], []]
    assert [epoch for epoch, names in grants.items() if len(names) > 1] == []
    assert len(grants) > 5 and any(server.unreachable for server in servers), "too little has happened"
    assert {name for names in grants.values() for name in names} == {"a", "b"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_grant_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.start()
    assert witness.process is not None
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,sendto,unlink"
    command = ["strace", "-f", "-qq", "-y", "-e", calls, "-o", str(trace), "-p", str(witness.process.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 10
        while "TracerPid:\t0\n" in Path(f"/proc/{witness.process.pid}/status").read_text():
            if tracer.poll() is not None:
                _, error = tracer.communicate()
                pytest.skip(f"strace cannot trace here: {error.decode()[-200:]}")
            assert time.monotonic() < end
            time.sleep(0.01)  # strace says nothing when it has attached
        assert witness.client().claim(claim("a")).granted
    finally:
        witness.kill()
        tracer.wait(10)
    lines = trace.read_text().splitlines()
    sends = [number for number, line in enumerate(lines) if " sendto(" in line]
    between = "\n".join(lines[sends[-2] : sends[-1]])  # after the greeting, before the answer
    flushed = [line for line in between.splitlines() if "sync(" in line]
    assert any("witness.db>" in line for line in flushed), between
    assert "unlink(" in between.partition("witness.db>")[2], between
    last_flush = flushed[-1]
    assert f"<{witness.data}>" in last_flush and between.rindex(last_flush) > between.index("unlink("), between


# ---- its data


def test_a_restored_backup_is_noticed_and_never_grants(witness: Witness) -> None:
    for epoch in range(3):
        assert witness.client().claim(claim("a", epoch)).granted
    witness.stop()
    shutil.copy(witness.data / "witness.db", witness.folder / "backup")
    witness.start()
    for epoch in range(3, 5):
        assert witness.client().claim(claim("a", epoch)).granted
    witness.stop()
    shutil.copy(witness.folder / "backup", witness.data / "witness.db")
    witness.start()
    for purpose in (Purpose.GO_ALONE, Purpose.START_ALONE, Purpose.SOLO_START, Purpose.OPERATOR):
        for server in "ab":
            asked = claim(server, 5, purpose)
            answer = witness.client().claim(asked)
            assert judge(Kind.WITNESS, asked, answer) is Verdict.BEHIND
            assert (answer.granted, answer.epoch) == (False, 3)
    assert "ERROR" in witness.log() and "ALARM" in witness.log()


def test_lost_data_is_noticed_and_never_grants(witness: Witness) -> None:
    assert witness.client().claim(claim("a")).granted
    witness.stop()
    shutil.rmtree(witness.data)
    witness.start()
    assert "is new: every module begins at epoch 0" in witness.log()
    assert not witness.client().claim(claim("b", 1)).granted


def cut(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def empty(data: bytearray) -> bytearray:
    return data[:0]


def scribble(data: bytearray) -> bytearray:
    data[4096:8192] = b"x" * 4096
    return data


def other_file(data: bytearray) -> bytearray:
    return bytearray(b"not a database at all " * 300)


def one_epoch(data: bytearray) -> bytearray:
    """One byte of one row, which SQLite has no way to notice: the holder of an epoch."""
    place = data.index(b"pairvm") + len(b"pairvm")
    place = data.index(b"serverA", place)
    data[place : place + 7] = b"serverB"
    return data


@pytest.mark.parametrize("damage", [cut, empty, scribble, other_file, one_epoch])
def test_a_damaged_database_is_refused(damage: Callable[[bytearray], bytearray], tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    store = SqliteStore(str(witness.data))
    store.replace(claim("serverA", module="vm"), None, Standing(1, "serverA"))
    store.close()
    path = witness.data / "witness.db"
    damaged = bytes(damage(bytearray(path.read_bytes())))
    path.write_bytes(damaged)
    assert "is damaged" in witness.refuses_to_start()
    assert path.read_bytes() == damaged  # kept as it is
    with pytest.raises(StoreDamaged):
        SqliteStore(str(witness.data))


def test_a_journal_without_its_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "witness.db-journal").write_bytes(b"x")
    with pytest.raises(StoreDamaged, match="journal"):
        SqliteStore(str(tmp_path))


def test_two_witnesses_do_not_share_a_directory(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    with pytest.raises(StoreUnusable, match="another witness"):
        SqliteStore(str(tmp_path))
    store.close()
    SqliteStore(str(tmp_path)).close()


def test_a_half_made_database_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "witness.db.new").write_bytes(b"half")
    (tmp_path / "witness.db.new-journal").write_bytes(b"half")
    store = SqliteStore(str(tmp_path))
    assert store.created and store.standing("pair", "vm") is None
    store.close()


def test_the_history_is_kept_and_bounded(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    before = None
    for epoch in range(1, HISTORY_PER_MODULE + 6):
        after = Standing(epoch, "ab"[epoch % 2])
        store.replace(claim("ab"[epoch % 2], epoch - 1), before, after)
        before = after
    history = store.history("pair", "vm")
    assert [entry[0] for entry in history] == list(range(HISTORY_PER_MODULE + 5, 5, -1))
    assert history[0][1:3] == ("b", "go alone")
    store.close()
    store = SqliteStore(str(tmp_path))  # sound, although the beginning is gone
    assert store.standing("pair", "vm") == before
    store.close()


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN; SELECT * FROM standing"])
def test_a_database_held_by_another_program_is_busy_and_nothing_more(lock: str, witness: Witness) -> None:
    other = sqlite3.connect(witness.data / "witness.db", isolation_level=None)
    for statement in lock.split(";"):
        other.execute(statement).fetchall()
    answer = witness.client().claim(claim("a"))
    assert not answer.granted and not answer.reachable and "locked" in answer.reason
    assert witness.client().look("pair", "vm") == Standing(0, None)
    other.execute("ROLLBACK")
    other.close()
    assert witness.client().claim(claim("a")).granted


def test_a_disk_that_fails_ends_it_with_nothing_granted(witness: Witness) -> None:
    assert witness.client().claim(claim("a")).granted
    assert witness.process is not None
    resource.prlimit(
        witness.process.pid, resource.RLIMIT_FSIZE, (6000, 6000)
    )  # enough for the log, not for the database
    answer = witness.client().claim(claim("a", 1))
    assert not answer.granted and not answer.reachable
    assert witness.process.wait(10) == 1
    assert "nothing was granted" in witness.log()
    witness.start()
    assert witness.client().look("pair", "vm") == Standing(1, "a")
    assert witness.client().claim(claim("b", 1)).granted


def test_it_ends_at_once_although_somebody_is_connected(witness: Witness) -> None:
    with witness.connect() as sock:
        assert sock.recv(4096)
        started = time.monotonic()
        assert witness.stop() == 0
        assert time.monotonic() - started < 4


# ---- keys and other arguments


def test_a_pair_is_added_without_a_restart(witness: Witness) -> None:
    witness.add_pair("new")
    assert not witness.client("new").claim(claim("a", pair="new")).reachable
    witness.signal(signal.SIGHUP)
    wait_for(lambda: "keys read again: 3 pairs" in witness.log())
    assert witness.client("new").claim(claim("a", pair="new")).granted
    witness.write_keys("damaged")
    witness.signal(signal.SIGHUP)
    wait_for(lambda: "the keys stay as they were" in witness.log())
    assert witness.client("new").look("new", "vm") == Standing(1, "a")


KEY = "ab" * 32


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (f'"pair" = "{KEY}"\n', 0o644, "chmod 600"),
        ("", 0o600, "names no pair"),
        ("pair\n", 0o600, "not TOML"),
        ('"pair" = "abcd"\n', 0o600, "64 hexadecimal digits"),
        (f'"pair" = "{"00" * 32}"\n', 0o600, "64 hexadecimal digits"),
        ('"pair" = 5\n', 0o600, "64 hexadecimal digits"),
        (f'"" = "{KEY}"\n', 0o600, "cannot name a pair"),
        (f'"one" = "{KEY}"\n"two" = "{KEY}"\n', 0o600, "the same key"),
    ],
)
def test_keys_that_cannot_be_used(text: str, mode: int, expected: str, tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.write_keys(text, mode)
    line = witness.refuses_to_start()
    assert expected in line and KEY not in line and "abcd" not in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--listen"),
        (["--listen", "127.0.0.1"], "is not an address"),
        (["--listen", "0.0.0.0:5700"], "--insecure-no-tls"),
        (["--listen", "127.0.0.1:5700", "--tls-cert", "x"], "go together"),
        (["--listen", "127.0.0.1:5700", "--tls-cert", "/none", "--tls-key", "/none"], "cannot use /none"),
        (["--listen", "192.0.2.1:5700", "--insecure-no-tls"], "cannot listen on"),
        (["--listen", "127.0.0.1:5700", "--frobnicate"], "--frobnicate"),
    ],
)
def test_arguments_that_cannot_work(arguments: list[str], expected: str, tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    rest = ["--data", str(witness.data), "--keys", str(witness.keys_path)] if arguments else []
    witness.arguments = lambda: [*arguments, *rest]  # type: ignore[method-assign]
    assert expected in witness.refuses_to_start()
