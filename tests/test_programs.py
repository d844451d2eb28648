"""Real programs on the mount: fio with verification, SQLite, PostgreSQL; and what the target's copy is worth.

HOTPAIR_PROGRAMS_PLACES=plain runs the same on a plain directory: this tests the tests.
"""

import importlib.util
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator

import pytest

from tests.mirror_pair import MirrorPair
from tests.programs import LedgerWriter, Place, PlainPlace, Postgres, ledger_errors, program, run

PLACES = os.environ.get("HOTPAIR_PROGRAMS_PLACES", "mirror").split(",")
SQLITE_LEDGER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sqlite_ledger.py")
JOURNAL_MODES = ["delete", "persist", "wal"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A running mirror of its own for each test, since most end with one side killed or stopped."""
    if request.param == "plain":
        plain = PlainPlace()
        yield plain
        plain.close()
        return
    if importlib.util.find_spec("hotpair.replication.__main__") is None:
        pytest.skip("hotpair.replication has no __main__ yet")
    with MirrorPair() as pair:
        pair.start()
        yield pair
        print(pair.logs())  # shown when the test has failed


# --- fio ------------------------------------------------------------------------------------------------------

FIO_JOBS = [
    # engine, direct, block sizes, pattern of the writes
    ("psync", 0, "4k", "randwrite"),
    ("psync", 1, "4k", "randwrite"),
    ("psync", 0, "512-70k", "randwrite"),
    ("libaio", 1, "4k", "randwrite"),
    ("libaio", 0, "16k", "randwrite"),
    ("libaio", 1, "64k", "randwrite"),
    ("libaio", 1, "1m", "write"),
    ("psync", 1, "512-128k", "randwrite"),
]


@pytest.mark.timeout(600)
def test_fio_reads_back_what_it_wrote(place: Place) -> None:
    """Random writes with a checksum in every block, verified on the mount, and again on the target's copy."""

    def fio(number: int, directory: str, *more: str) -> None:
        engine, direct, size, kind = FIO_JOBS[number]
        blocks = f"--bsrange={size}" if "-" in size else f"--bs={size}"
        command = [program("fio"), "--name=job", f"--filename={directory}/fio-{number}", "--size=6m", "--randseed=7"]
        command += [f"--ioengine={engine}", f"--direct={direct}", blocks, f"--rw={kind}", "--verify=crc32c"]
        command += ["--iodepth=16", "--verify_fatal=1", "--fsync=100", "--end_fsync=1", "--bs_unaligned=0"]
        command += ["--blockalign=512", f"--aux-path={place.base}", *more]
        output = run(place, command, timeout_s=120)
        assert "err= 0" in output, output

    for number in range(len(FIO_JOBS)):
        fio(number, place.mount, "--do_verify=1")
        fio(number, place.mount, "--verify_only")
    place.stop()
    assert place.compare() == []
    for number in range(len(FIO_JOBS)):
        fio(number, place.target_dir, "--verify_only")


# --- SQLite ---------------------------------------------------------------------------------------------------


def sqlite_writer(place: Place, mode: str, first: int, count: int) -> LedgerWriter:
    path = f"{place.mount}/ledger.db"
    return LedgerWriter(place, [sys.executable, SQLITE_LEDGER, "write", path, mode, str(first), str(count)])


def sqlite_read(place: Place, directory: str) -> tuple[str, list[int]]:
    """What integrity_check says, and the numbers in the ledger."""
    command = [sys.executable, SQLITE_LEDGER, "read", f"{directory}/ledger.db"]
    first, *numbers = run(place, command, timeout_s=60).splitlines()
    return first, [int(number) for number in numbers]


def copy_of_target(place: Place) -> str:
    """The target's copy once more: whoever opens a database changes it."""
    copy = f"{place.base}/copy"
    run(place, ["cp", "-a", place.target_dir, copy])
    return copy


@pytest.mark.parametrize("mode", JOURNAL_MODES)
def test_sqlite_ledger(place: Place, mode: str) -> None:
    """Two writers at once; the ledger is complete on the mount, and the copies are the same."""
    maker = sqlite_writer(place, mode, 0, 0)  # SQLite does not wait for a lock when it changes the journal mode
    maker.wait_end(60)
    writers = [sqlite_writer(place, mode, first, 60) for first in (0, 100_000)]
    for writer in writers:
        writer.wait_end(120)
    acknowledged = [number for writer in writers for number in writer.acknowledged]
    assert len(acknowledged) == 120
    verdict, found = sqlite_read(place, place.mount)
    assert verdict == "ok"
    assert sorted(acknowledged) == found
    place.stop()
    assert place.compare() == []
    assert sqlite_read(place, copy_of_target(place)) == ("ok", found)


@pytest.mark.parametrize("mode", JOURNAL_MODES)
def test_sqlite_ledger_survives_the_source(place: Place, mode: str) -> None:
    """kill -9 of the source in the middle of transactions: the target has all that were acknowledged."""
    writer = sqlite_writer(place, mode, 0, 1_000_000)
    try:
        writer.wait_for(100, 60)
        place.kill_source()
    finally:
        place.abort()
        writer.kill()
    place.stop_target()
    verdict, found = sqlite_read(place, copy_of_target(place))
    assert verdict == "ok"
    assert ledger_errors(writer.acknowledged, found) == []


def test_damage_to_a_ledger_is_seen() -> None:
    """The checks above can fail."""
    place = PlainPlace()
    try:
        writer = sqlite_writer(place, "delete", 0, 60)
        writer.wait_end(60)
        assert sqlite_read(place, place.mount) == ("ok", writer.acknowledged)
        path = f"{place.mount}/ledger.db"
        connection = sqlite3.connect(path)
        connection.execute("DELETE FROM ledger WHERE number = 30")
        connection.commit()
        connection.close()
        _, found = sqlite_read(place, place.mount)
        assert ledger_errors(writer.acknowledged, found) == ["1 acknowledged transactions are lost: [30]"]
        assert ledger_errors([1], [1, 1]) == ["a transaction is there twice"]
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(bytes(4096))
        assert damaged(place)
    finally:
        place.close()


def damaged(place: Place) -> bool:
    """Whether SQLite calls the ledger damaged: by its verdict, or by failing to read it."""
    try:
        return sqlite_read(place, place.mount)[0] != "ok"
    except AssertionError as error:
        return "malformed" in str(error)


# --- PostgreSQL -------------------------------------------------------------------------------------------------

BALANCES = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers)
   AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)
   AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history);
"""


def check_database(place: Place, server: Postgres) -> None:
    """Every table and index is sound, and pgbench's sums agree."""
    run(place, [program("pg_amcheck"), *server.connection, "--install-missing", "--heapallindexed", "postgres"])
    assert server.query(BALANCES) == ["t"]


def postgres_writer(place: Place, server: Postgres, first: int) -> LedgerWriter:
    """psql, one INSERT after the other; it prints a number when the server has reported the commit."""
    command = [program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *server.connection]
    numbers = range(first, first + 20_000)
    statements = "".join(f"INSERT INTO ledger VALUES ({number}) RETURNING number;\n" for number in numbers)
    return LedgerWriter(place, command, given=statements, user="postgres")


@pytest.mark.timeout(900)
def test_postgresql_ledger_survives_the_source(place: Place) -> None:
    """pgbench on the mount; then kill -9 of the source under load, and PostgreSQL starts on the target's copy."""
    server = Postgres(place, f"{place.mount}/postgres")
    writers: list[LedgerWriter] = []
    try:
        server.create()
        server.start()
        run(place, [program("pgbench"), *server.connection, "-i", "-s", "1", "postgres"], user="postgres")
        load = ["-c", "4", "-j", "2", "-t", "100", "postgres"]
        run(place, [program("pgbench"), *server.connection, *load], user="postgres")
        check_database(place, server)
        server.stop()
        server.start()
        server.query("CREATE TABLE ledger (number integer PRIMARY KEY);")
        writers = [postgres_writer(place, server, 100_000 * number) for number in range(4)]
        for writer in writers:
            writer.wait_for(100, 90)
        place.kill_source()
    finally:
        place.abort()
        server.close()
        for writer in writers:
            writer.kill()
    place.stop_target()
    acknowledged = [number for writer in writers for number in writer.acknowledged]
    assert len(acknowledged) >= 400
    server = Postgres(place, f"{copy_of_target(place)}/postgres")
    # It names a process of the lost server; here that number may belong to somebody else.
    os.unlink(f"{server.data}/postmaster.pid")
    try:
        server.start()
        found = [int(line) for line in server.query("SELECT number FROM ledger;")]
        assert ledger_errors(acknowledged, found) == []
        check_database(place, server)
        server.stop()
    finally:
        server.close()
        shutil.rmtree(f"{place.base}/copy")
