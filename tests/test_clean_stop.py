"""Files changed while the mirror is stopped: the table of a clean stop, and what the next start makes of it."""

import os
import shutil
from collections.abc import Iterable, Iterator

import pytest

from hotpair.replication import clean_stop_io
from hotpair.replication.clean_stop import Row, TooManyChanged, changed_files, identities
from hotpair.replication.limits import CHANGED_FILES, UNMATCHED_FILES
from hotpair.replication.objects_io import new_identity, write_identity
from tests.faults import equal_after_stop, healthy, said, status, wait_until, write_file
from tests.mirror_pair import MirrorPair

MEGABYTE = 1 << 20
COPY = b"c" * 16


def row(number: int, **fields: int) -> Row:
    return Row(number.to_bytes(16, "big"), 4096, 10, 20, number)._replace(**fields)


# ---- two listings side by side


def test_equal_listings() -> None:
    rows = [row(number) for number in range(100)]
    assert changed_files(rows, rows) == set()
    assert changed_files([], []) == set()


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_each_field_counts(field: str) -> None:
    rows = [row(number) for number in range(9)]
    other = [*rows[:4], rows[4]._replace(**{field: 77}), *rows[5:]]
    assert changed_files(rows, other) == {rows[4].identity}


def test_vanished_and_appeared() -> None:
    rows = [row(number) for number in range(9)]
    assert changed_files(rows, rows[:3] + rows[4:]) == set(), "the comparison of the trees finds it"
    assert changed_files(rows[:3] + rows[4:], rows) == {rows[3].identity}


def test_another_order() -> None:
    rows = [row(number) for number in range(9)]
    assert changed_files(rows, rows[::-1]) == set()
    assert changed_files(rows, [row(2, size=1), *rows[3:], *rows[:2]]) == {rows[2].identity}


def test_two_names_of_one_file() -> None:
    rows = [row(1), row(2), row(1)]
    assert changed_files(rows, rows) == set()
    assert changed_files(rows, [row(1), row(2)]) == set()
    assert changed_files([row(1), row(2)], [row(1), row(1, inode=5), row(2)]) == {row(1).identity}, "a copy with its id"


def test_listings_are_not_held_in_memory() -> None:
    """The one that is read first is never further ahead than one row."""
    read = [0, 0]

    def counted(which: int) -> Iterator[Row]:
        for number in range(10_000):
            read[which] += 1
            assert abs(read[0] - read[1]) <= 1
            yield row(number)

    assert changed_files(counted(0), counted(1)) == set()


def many(count: int, **fields: int) -> Iterable[Row]:
    return (row(number, **fields) for number in range(count))


def test_more_than_is_told_one_by_one() -> None:
    assert len(changed_files(many(CHANGED_FILES), many(CHANGED_FILES, size=1))) == CHANGED_FILES
    with pytest.raises(TooManyChanged):
        changed_files(many(CHANGED_FILES + 1), many(CHANGED_FILES + 1, size=1))
    with pytest.raises(TooManyChanged):
        changed_files([], many(CHANGED_FILES + 1))
    assert changed_files(many(UNMATCHED_FILES), []) == set()
    with pytest.raises(TooManyChanged):
        changed_files(many(UNMATCHED_FILES + 1), [])


@pytest.mark.parametrize("message", [None, 5, "text", {}, [1], [b"short"], [b"x" * 17], ["x" * 16], [[b"x" * 16]]])
def test_a_peer_that_names_no_files(message: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        list(identities(message))


# ---- on disk


@pytest.fixture
def tree() -> Iterator[str]:
    """A directory on a file system with attributes: ``data`` with five files, and an empty ``state``."""
    with MirrorPair() as pair:
        top = pair.base
        os.makedirs(f"{top}/data/d/e")
        os.makedirs(f"{top}/data/.hotpair")
        os.mkdir(f"{top}/state")
        for name in ("a", "b", "d/c", "d/e/f", ".hotpair/own"):
            with open(f"{top}/data/{name}", "wb") as file:
                file.write(name.encode())
                write_identity(file.fileno(), name.encode().ljust(16))
        with open(f"{top}/data/unknown", "wb"):
            pass
        yield top


def recorded(tree: str, copy: bytes = COPY) -> set[bytes] | None:
    """The names of what was changed since the table."""
    root_fd = os.open(f"{tree}/data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        changed = clean_stop_io.changed_since(f"{tree}/state", root_fd, copy)
        return None if changed is None else {identity.strip() for identity in changed}
    finally:
        os.close(root_fd)


def record(tree: str, copy: bytes = COPY) -> None:
    root_fd = os.open(f"{tree}/data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        clean_stop_io.write_table(f"{tree}/state", root_fd, copy)
    finally:
        os.close(root_fd)


def test_a_table_on_disk(tree: str) -> None:
    assert recorded(tree) == set(), "without a clean stop nothing is said to be changed"
    record(tree)
    assert os.listdir(f"{tree}/state") == ["clean-stop"]
    assert recorded(tree) == set()
    for name in ("d/e/f", ".hotpair/own", "unknown"):
        with open(f"{tree}/data/{name}", "ab") as file:
            file.write(b"changed")
    os.unlink(f"{tree}/data/b")
    with open(f"{tree}/data/new", "wb") as file:
        write_identity(file.fileno(), b"new".ljust(16))
    assert recorded(tree) == {b"d/e/f", b"new"}
    record(tree)
    assert recorded(tree) == set()
    clean_stop_io.remove_table(f"{tree}/state")
    clean_stop_io.remove_table(f"{tree}/state")
    assert os.listdir(f"{tree}/state") == []


def test_a_damaged_table(tree: str) -> None:
    """It never says that nothing was changed: everything is compared."""
    record(tree)
    path = f"{tree}/state/clean-stop"
    with open(path, "rb") as file:
        data = file.read()
    damaged = [data[:length] for length in range(len(data))]
    damaged += [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(len(data))]
    for one in (*damaged, data + b"x"):
        with open(path, "wb") as file:
            file.write(one)
        assert recorded(tree) is None
    record(tree)
    assert recorded(tree, b"d" * 16) is None, "the table of the other copy"


def test_a_table_that_cannot_be_written(tree: str) -> None:
    """There is none then, and the one before does not stay."""
    record(tree)
    os.symlink("/dev/full", f"{tree}/state/clean-stop.new")
    record(tree)
    assert os.listdir(f"{tree}/state") == []


def test_a_large_tree(tree: str) -> None:
    """More than one piece of rows, and more than the table is read in at once."""
    for number in range(9000):
        with open(f"{tree}/data/d/{number}", "wb") as file:
            write_identity(file.fileno(), new_identity())
    record(tree)
    assert recorded(tree) == set()
    write_identity_of(f"{tree}/data/d/8000", b"eight".ljust(16))
    assert recorded(tree) == {b"eight"}


def write_identity_of(path: str, identity: bytes) -> None:
    with open(path, "ab") as file:
        write_identity(file.fileno(), identity)


# ---- a pair


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    """Stopped cleanly, with five files of 4 MiB on both sides."""
    with MirrorPair() as made:
        made.start()
        for name in ("one", "two", "three", "four", "five"):
            write_file(made, name, "os.urandom(4 << 20)")
        made.stop()
        yield made


def change(path: str) -> None:
    """Other bytes, the same size, and the modification time that it had."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(MEGABYTE)
        file.write(b"behind the mirror's back")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def tables(pair: MirrorPair) -> list[bool]:
    return [os.path.exists(f"{state}/clean-stop") for state in (pair.source_state, pair.target_state)]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_changed_behind_the_mirrors_back(pair: MirrorPair, side: str) -> None:
    """On either side; the source's content is what counts, and only what differs is copied."""
    right = {name: content(f"{pair.source_dir}/{name}") for name in ("one", "two")}
    if side != "target":
        change(f"{pair.source_dir}/one")
        right["one"] = content(f"{pair.source_dir}/one")
        os.utime(f"{pair.source_dir}/three")
    if side != "source":
        change(f"{pair.target_dir}/two")
        os.utime(f"{pair.target_dir}/four")
    assert tables(pair) == [True, True]
    pair.start()
    assert tables(pair) == [False, False], "what they say is not true any more"
    assert status(pair.source_state)["sent_bytes"] < 3 * MEGABYTE, "copied although it is the same"
    healthy(pair)
    equal_after_stop(pair)
    assert {name: content(f"{pair.source_dir}/{name}") for name in right} == right


@pytest.mark.timeout(90)
@pytest.mark.parametrize("side", ["source", "target"])
def test_vanished_appeared_and_replaced(pair: MirrorPair, side: str) -> None:
    directory = pair.source_dir if side == "source" else pair.target_dir
    os.unlink(f"{directory}/one")
    shutil.copyfile(f"{directory}/two", f"{directory}/new")
    os.rename(f"{directory}/new", f"{directory}/three")
    shutil.copyfile(f"{directory}/two", f"{directory}/surplus")
    shorter = 2 * MEGABYTE
    os.truncate(f"{directory}/four", shorter)
    with open(f"{directory}/five", "ab") as file:
        file.write(b"longer")
    pair.start()
    equal_after_stop(pair)
    assert os.path.exists(f"{pair.target_dir}/surplus") is (side == "source")
    assert os.path.getsize(f"{pair.target_dir}/four") == (shorter if side == "source" else 4 * MEGABYTE)


@pytest.mark.timeout(90)
def test_nothing_changed(pair: MirrorPair) -> None:
    pair.start()
    assert status(pair.source_state)["sent_bytes"] < MEGABYTE
    assert status(pair.source_state)["dirty_extents"] == 0
    equal_after_stop(pair)


@pytest.mark.timeout(90)
def test_what_was_found_outlives_a_crash(pair: MirrorPair) -> None:
    """The table is gone when the source serves, so that it is in the log before."""
    change(f"{pair.source_dir}/one")
    pair.source_arguments += ["--alone-after", "0"]
    pair.start_source()
    assert not os.path.exists(f"{pair.source_state}/clean-stop")
    pair.kill_source()
    pair.abort()
    pair.start()
    said(pair.source, "in sync")
    equal_after_stop(pair)


@pytest.mark.timeout(90)
def test_a_targets_table_stays_until_a_source_has_noted_it(pair: MirrorPair) -> None:
    change(f"{pair.target_dir}/one")
    pair.start_target()
    pair.kill_target()
    pair.start()
    equal_after_stop(pair)


@pytest.mark.timeout(90)
def test_a_crash_is_no_clean_stop(pair: MirrorPair) -> None:
    """No table, so the log decides: the files that nobody wrote are not looked into."""
    pair.start()
    write_file(pair, "one", "b'x'", MEGABYTE)
    pair.kill_source()
    pair.abort()
    pair.kill_target()
    assert tables(pair) == [False, False]
    os.utime(f"{pair.source_dir}/two")
    os.utime(f"{pair.target_dir}/three")
    pair.start()
    assert status(pair.source_state)["sent_bytes"] < 5 * MEGABYTE, "more than one extent"
    wait_until(lambda: status(pair.source_state)["dirty_extents"] < 9, "few marks")
    equal_after_stop(pair)


@pytest.mark.timeout(90)
def test_a_damaged_table_of_either_side(pair: MirrorPair) -> None:
    """Found out by a full comparison."""
    for changed, state in (
        (f"{pair.source_dir}/one", pair.source_state),
        (f"{pair.target_dir}/two", pair.target_state),
    ):
        change(changed)
        with open(f"{state}/clean-stop", "r+b") as file:
            file.write(b"damaged")
        pair.start()
        equal_after_stop(pair)
