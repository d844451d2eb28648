"""What the loser of a split brain had of its own is saved before it is overwritten, and can be got back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.module_rules import is_given_up as machine_says_given_up
from hotpair.cluster.record import Record, Rule, Side, meet
from hotpair.replication import linux_io
from hotpair.replication.dirty_log import TO_END_OF_FILE, Extents, Marks, add
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.salvage import (
    FOOTER,
    Index,
    Piece,
    SalvageTorn,
    Saved,
    decode_index,
    encode_end,
    is_given_up,
    locate_index,
    ranges_to_save,
)
from hotpair.replication.salvage_io import Salvage, SalvageFailed, path_of
from hotpair.replication.unsalvage_io import is_whole, read_index, unsalvage
from tests.faults import on_mount, said, write_file
from tests.mirror_pair import MirrorPair

EXTENT = 1 << 16
FILE = b"f" * 16
GENERATION = b"g" * 16
SHARED = 40 * EXTENT


# ---- what is saved


@pytest.mark.parametrize(
    ("marked", "size", "ranges"),
    [
        ([], 1000, []),
        ([(0, 0)], 0, []),
        ([(0, 0)], 100, [(0, 100)]),
        ([(1, 1)], EXTENT, []),
        ([(1, 2), (5, 5)], 10 * EXTENT, [(EXTENT, 3 * EXTENT), (5 * EXTENT, 6 * EXTENT)]),
        ([(3, TO_END_OF_FILE)], 4 * EXTENT + 7, [(3 * EXTENT, 4 * EXTENT + 7)]),
        ([(3, TO_END_OF_FILE)], EXTENT, []),
    ],
)
def test_ranges_that_a_log_names(marked: list[tuple[int, int]], size: int, ranges: list[tuple[int, int]]) -> None:
    marks = Marks()
    for first, last in marked:
        marks.apply(add(Extents(FILE, first, last)))
    assert ranges_to_save(marks, FILE, size, 16) == ranges
    assert ranges_to_save(None, FILE, size, 16) == ([(0, size)] if size else [])


INDEX = Index(
    GENERATION,
    b"c" * 16,
    EXTENT,
    False,
    (Saved(b"disks/a", FILE, 5 * EXTENT, (Piece(0, 7, 8, 99), Piece(EXTENT, 3))), Saved(b"b", b"", 0, ())),
    (b"m" * 16,),
)


def test_the_index_is_read_as_it_was_written() -> None:
    data = b"x" * 15 + encode_end(INDEX, 15)
    offset, length, digest = locate_index(data[-FOOTER.size :], len(data))
    assert decode_index(data[offset : offset + length], digest) == INDEX


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../outside", b"a/../../b"])
def test_a_path_that_leads_elsewhere_is_none(path: bytes) -> None:
    end = encode_end(Index(GENERATION, b"", EXTENT, False, (Saved(path, FILE, 0, ()),), ()), 15)
    offset, length, digest = locate_index(end[-FOOTER.size :], 15 + len(end))
    with pytest.raises(SalvageTorn, match="leads elsewhere"):
        decode_index(end[offset - 15 : offset - 15 + length], digest)


def test_given_up_is_what_the_state_machine_calls_so() -> None:
    for bits in range(4):
        record = Record(
            generation=GENERATION, last_role="ALONE", solo=bool(bits & 1), inconsistent=bool(bits & 2), boot="b",
            configuration=b"", root=b"r" * 16,
        )  # fmt: skip
        assert is_given_up(record) == machine_says_given_up(record)


# ---- a split brain on real processes


def on_disk(state: str) -> Record:
    record = record_io.load(f"{state}/record")
    assert record is not None
    return record


def exchange(pair: MirrorPair) -> None:
    pair.source_dir, pair.target_dir = pair.target_dir, pair.source_dir
    pair.source_state, pair.target_state = pair.target_state, pair.source_state
    pair.mount = pair.source_dir


def alone(pair: MirrorPair, code: str) -> None:
    """The server that is the source for now goes on alone, and its VM does this."""
    pair.source_arguments = ["--extent-size", str(EXTENT), "--alone-after", "0"]
    pair.start_source()
    on_mount(pair, code)
    pair.stop_source()
    pair.source_arguments = ["--extent-size", str(EXTENT)]


LOSER_WRITES = f"""
    fd = os.open('disks/shared', os.O_RDWR)
    os.pwrite(fd, b'loser' * 1000, 7 * {EXTENT})
    os.ftruncate(fd, {SHARED - 100})
    with open('only the loser', 'wb') as file:
        file.write(b'mine')
        file.truncate({5 * EXTENT})
    os.unlink('gone')
"""
WINNER_WRITES = f"os.pwrite(os.open('disks/shared', os.O_RDWR), b'winner' * 1000, 20 * {EXTENT})"


@pytest.fixture
def split() -> Iterator[MirrorPair]:
    """Both went on alone from the same data; the target's copy was given up."""
    with MirrorPair(source_arguments=["--extent-size", str(EXTENT)]) as pair:
        pair.start()
        on_mount(pair, "os.mkdir('disks')")
        write_file(pair, "disks/shared", f"b's' * {SHARED}")
        write_file(pair, "gone")
        pair.stop()
        alone(pair, WINNER_WRITES)
        exchange(pair)
        alone(pair, LOSER_WRITES)
        exchange(pair)
        ours, theirs = on_disk(pair.source_state), on_disk(pair.target_state)
        assert meet(ours, theirs, True, True, first=Side.ME).rule is Rule.SPLIT_BRAIN
        record_io.store(f"{pair.target_state}/record", records.give_up(theirs))
        yield pair


def salvage(pair: MirrorPair, *arguments: str, expected: int = 0) -> str:
    return command(
        pair, "salvage", "--dir", pair.target_dir, "--state", pair.target_state, *arguments, expected=expected
    )


def command(pair: MirrorPair, *arguments: str, expected: int = 0) -> str:
    program = [sys.executable, "-P", "-m", "hotpair.replication", *arguments]
    result = subprocess.run(program, capture_output=True, text=True, cwd="/", env=pair.environment(), check=False)
    assert result.returncode == expected, result
    return result.stdout + result.stderr


def listed(path: str) -> dict[str, list[tuple[int, int]]]:
    index = read_index(path)
    return {os.fsdecode(one.path): [(piece.offset, piece.length) for piece in one.pieces] for one in index.files}


def test_from_the_split_to_one_copy_again(split: MirrorPair) -> None:
    generation = on_disk(split.target_state).generation
    with pytest.raises(RuntimeError, match="is not saved"):
        split.start_target()
    path = path_of(split.target_state, generation)
    assert path in salvage(split, "--generation", generation.hex())
    with open(path, "rb") as file:
        first = file.read()
    assert "salvaged before" in salvage(split, "--generation", generation.hex())
    with open(path, "rb") as file:
        assert file.read() == first
    split.source_arguments += ["--alone"]
    split.start()
    said(split.source, "in sync")
    split.stop()
    assert split.compare() == [], "the union of both logs was copied"
    with open(f"{split.target_dir}/disks/shared", "rb") as file:
        content = file.read()
    assert b"loser" not in content and content.count(b"winner") == 1000 and len(content) == SHARED
    assert not os.path.exists(f"{split.target_dir}/only the loser")
    back = f"{split.base}/back"
    lines = list(unsalvage(path, back, None))
    assert any(line.startswith("only the loser offset 0 length ") for line in lines)
    assert any(line.startswith("only the loser ") and line.endswith(" zeros") for line in lines), "a hole takes no room"
    with open(f"{back}/disks/shared", "rb") as file:
        saved = file.read()
    assert len(saved) == SHARED - 100
    assert saved[7 * EXTENT : 8 * EXTENT] == (b"loser" * 1000).ljust(EXTENT, b"s")
    assert saved[:EXTENT] == bytes(EXTENT), "what the log does not name was not changed here, and is not saved"
    with open(f"{back}/only the loser", "rb") as file:
        assert file.read() == b"mine".ljust(5 * EXTENT, b"\0")


@pytest.fixture
def salvaged(split: MirrorPair) -> tuple[MirrorPair, bytes, str]:
    generation = on_disk(split.target_state).generation
    return split, generation, path_of(split.target_state, generation)


def run(pair: MirrorPair, generation: bytes, folder: str | None = None) -> list[str]:
    return Salvage(os.fsencode(pair.target_dir), pair.target_state, generation, folder).run()


class Stopped(Exception):
    """The process dies here."""


STEPS = ("create", "write a file", "write the index", "flush", "rename", "flush the directory")


@pytest.mark.parametrize("label", STEPS)
def test_interrupted_at_any_step(salvaged: tuple[MirrorPair, bytes, str], label: str) -> None:
    """Until it is whole there is none of that name, and the next run makes one."""
    pair, generation, path = salvaged

    def step(now: str) -> None:
        if now == label:
            raise Stopped

    with pytest.raises(Stopped):
        Salvage(os.fsencode(pair.target_dir), pair.target_state, generation, None, step).run()
    assert is_whole(path, generation) == (label == "flush the directory")
    run(pair, generation)
    assert is_whole(path, generation) and not os.path.exists(path + ".new")
    assert listed(path)["disks/shared"][0] == (7 * EXTENT, EXTENT)


def test_a_torn_one_is_replaced_and_starts_no_target(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, path = salvaged
    run(pair, generation)
    whole = Path(path).read_bytes()
    other = whole.replace(b"only the loser", b"only the lover")
    assert other != whole, "its index has been changed"
    for torn in (whole[:-1], whole[: len(whole) // 2], b"", other, whole + b"more"):
        Path(path).write_bytes(torn)
        assert not is_whole(path, generation)
        with pytest.raises(SalvageTorn, match="no whole salvage file"):
            list(unsalvage(path, None, None))
        with pytest.raises(RuntimeError, match="is not saved"):
            pair.start_target()
        run(pair, generation)
        assert Path(path).read_bytes() == whole
    assert not is_whole(path, b"o" * 16), "it is that of another generation"


def test_a_piece_that_has_changed_is_found(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, path = salvaged
    run(pair, generation)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"?")
    assert is_whole(path, generation)
    with pytest.raises(SalvageTorn, match="checksum"):
        list(unsalvage(path, f"{pair.base}/back", None))


def test_one_file_of_it(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, path = salvaged
    run(pair, generation)
    all_lines = command(pair, "unsalvage", "--file", path).splitlines()
    lines = command(
        pair, "unsalvage", "--file", path, "--to", f"{pair.base}/back", "--path", "only the loser"
    ).splitlines()
    assert set(lines) < set(all_lines)
    assert "no whole" in command(pair, "unsalvage", "--file", f"{pair.target_state}/record", expected=2)
    assert lines and all(line.startswith("only the loser offset ") for line in lines)
    assert sorted(os.listdir(f"{pair.base}/back")) == ["only the loser"]
    with pytest.raises(BadConfiguration, match="File exists"):
        list(unsalvage(path, f"{pair.base}/back", "only the loser"))
    with pytest.raises(BadConfiguration, match="nothing of a file"):
        list(unsalvage(path, None, "another"))


def test_without_a_log_everything_is_saved(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, path = salvaged
    os.unlink(f"{pair.target_state}/dirty-log")
    run(pair, generation)
    assert read_index(path).everything
    assert sum(length for _, length in listed(path)["disks/shared"]) == SHARED - 100


def test_in_another_directory(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, _ = salvaged
    folder = f"{pair.base}/elsewhere"
    salvage(pair, "--generation", generation.hex(), "--salvage-dir", folder)
    assert is_whole(path_of(folder, generation), generation)
    with pytest.raises(RuntimeError, match="is not saved"):
        pair.start_target()
    pair.target_arguments = ["--salvage-dir", folder]
    pair.start_target()


def test_no_room_for_it(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    """It says how much is needed, and leaves the disk as it was."""
    pair, generation, _ = salvaged
    small = f"{pair.base}/small"
    os.mkdir(small)
    linux_io.mount(b"hotpair-test", os.fsencode(small), b"tmpfs", 0, b"size=64k,mode=700")
    try:
        with pytest.raises(SalvageFailed, match=r"65 MiB are needed.*--salvage-dir"):
            run(pair, generation, small)
        assert os.listdir(small) == []
        too_late = Salvage(os.fsencode(pair.target_dir), pair.target_state, generation, small, spare=-(1 << 40))
        with pytest.raises(SalvageFailed, match="make room"):  # as if the disk had become full in the middle
            too_late.run()
        assert os.listdir(small) == []
    finally:
        linux_io.umount2(os.fsencode(small), linux_io.MNT_DETACH)


def test_what_was_not_given_up_is_not_salvaged(salvaged: tuple[MirrorPair, bytes, str]) -> None:
    pair, generation, path = salvaged
    assert "the copy that was given up has" in salvage(pair, "--generation", "00" * 16, expected=2)
    assert "hexadecimal" in salvage(pair, "--generation", "xyz", expected=2)
    exchange(pair)
    assert "nothing to salvage" in salvage(pair, "--generation", generation.hex(), expected=2)
    exchange(pair)
    assert not os.path.exists(path)
