"""What mirror processes report to their supervisor: in the state machine's words, at once, and in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import pairwise

import pytest

from hotpair.cluster import record_io
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.replication.control_client import ControlClient
from hotpair.replication.dirty_log import TO_END_OF_FILE, FileMarks
from hotpair.replication.errors import MirrorError
from hotpair.replication.limits import BYTES_CHANGED_S, WATCHERS
from hotpair.replication.modes import Mode
from hotpair.replication.own_log_io import bytes_changed
from hotpair.replication.process_io import started_at
from hotpair.replication.report import MODES, Reported
from tests.faults import pair_with_link, stop_process, wait_until, write_file
from tests.mirror_pair import MirrorPair
from tests.mirror_reports import Watch, mirror_of, present, record_of

EXTENT = 1 << 16
IN_SYNC_SOURCE = Mirror(Role.SOURCE, MirrorMode.PAIRED, linked=True, session=True, in_sync=True)
IN_SYNC_TARGET = Mirror(Role.TARGET, MirrorMode.PAIRED, linked=True, session=True)


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    with MirrorPair(source_arguments=["--extent-size", str(EXTENT)]) as made:
        yield made


def test_the_words_are_those_of_the_state_machine() -> None:
    assert {mode.value for mode in Reported} == {mode.value for mode in MirrorMode} - {"starting"}
    assert set(MODES) == set(Mode), "each mode of a source is reported as one"


@pytest.mark.parametrize(
    ("marked", "extents"),
    [
        ([], 0),
        ([(3, 3), (4, 4)], 2),
        ([(10, 60)], 51),
        ([(10, 60), (10, 12), (61, 61)], 52),
        ([(10, 60), (30, 90)], 81),
        ([(5, TO_END_OF_FILE)], 1),
        ([(5, TO_END_OF_FILE), (5, 7)], 3),
        ([(0, 1 << 40)], (1 << 40) + 1),
    ],
)
def test_extents_that_a_log_names(marked: list[tuple[int, int]], extents: int) -> None:
    file = FileMarks()
    for first, last in marked:
        file.add(first, last)
    assert file.extents_named() == extents


def test_from_the_start_to_the_end(pair: MirrorPair) -> None:
    pair.start_target()
    with Watch(pair.target_state) as target:
        first = target.until_like(Mirror(Role.TARGET, MirrorMode.IDLE))
        assert record_of(first) is None
        pair.start_source()
        with Watch(pair.source_state) as source:
            of_source = source.until_like(IN_SYNC_SOURCE)
            of_target = target.until_like(IN_SYNC_TARGET)
            assert Mirror(Role.TARGET, MirrorMode.FILLING, linked=True) in target.seen
            assert record_of(of_source) == record_io.load(f"{pair.source_state}/record")
            assert record_of(of_target) == record_io.load(f"{pair.target_state}/record")
            assert pair.source is not None
            assert of_source["process"] == pair.source.process.pid
            assert of_source["started"] == started_at(pair.source.process.pid)
            assert of_source["bytes_changed"] is None, "it does not go on alone"
            numbers = [report["number"] for _, report in source.reports]
            assert numbers == sorted(set(numbers)), "each is a new one"
            pair.stop_source()
            source.until_ended()
            assert source.now == Mirror(Role.SOURCE, MirrorMode.STOPPING)
        lost = target.until_like(Mirror(Role.TARGET, MirrorMode.PAIRED, session=True))
        record = record_of(lost)
        assert record is not None and record.in_sync
        pair.stop_target()
        target.until_ended()


def test_a_lost_link_and_the_way_back() -> None:
    """What the state machine decides by: that writes are held, that the hello is done, how much was changed."""
    with pair_with_link(source=["--extent-size", str(EXTENT)]) as (pair, link), Watch(pair.source_state) as source:
        source.until_like(IN_SYNC_SOURCE)
        link.cut(refuse=True)
        frozen = source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True))
        with ControlClient(pair.source_state) as control:
            number = control.ask("go_alone")["number"]
        alone = source.until_like(Mirror(Role.SOURCE, MirrorMode.ALONE))
        before, after = record_of(frozen), record_of(alone)
        assert before is not None and after is not None
        assert after.solo and after.base == before.generation
        assert alone["number"] >= number > frozen["number"], "the verdict's answer names a report that knows of it"
        write_file(pair, "file", f"b'x' * {3 * EXTENT}")
        known = source.until(lambda _: (source.reports[-1][1]["bytes_changed"] or 0) >= 3 * EXTENT)
        assert known["bytes_changed"] % EXTENT == 0
        link.allow()
        source.until_like(IN_SYNC_SOURCE)
        filling = [mirror for mirror in source.seen if mirror.mode is MirrorMode.FILLING]
        assert all(mirror.linked and not mirror.session for mirror in filling)
        pair.stop_source()
        source.until_ended()


def test_how_much_was_changed_is_not_said_too_often(pair: MirrorPair) -> None:
    pair.source_arguments += ["--alone-after", "0"]
    pair.start_source()
    with Watch(pair.source_state) as source:
        source.until_like(Mirror(Role.SOURCE, MirrorMode.ALONE))
        begun = len(source.reports)
        for number in range(60):
            write_file(pair, f"file{number}", f"b'x' * {EXTENT}")
        source.until(lambda _: (source.reports[-1][1]["bytes_changed"] or 0) >= 60 * EXTENT)
        times = [time for time, _ in source.reports[begun:]]
        spans = [later - earlier for earlier, later in pairwise(times)]
        assert all(span > BYTES_CHANGED_S * 0.7 for span in spans), spans
    changed = present(pair.source_state)["bytes_changed"]
    pair.stop_source()
    pair.target_dir, pair.target_state = pair.source_dir, pair.source_state
    assert bytes_changed(pair.target_state, record_io.load(f"{pair.target_state}/record")) == changed
    pair.start_target()
    assert present(pair.target_state)["bytes_changed"] == changed, "from the log on disk"


def test_it_answers_while_the_process_waits(pair: MirrorPair) -> None:
    """A supervisor that comes back finds out how things are without waiting for anything but the process itself."""
    pair.start()
    assert pair.target is not None
    stop_process(pair.target)
    with Watch(pair.source_state) as source:
        source.until_like(IN_SYNC_SOURCE)
    assert mirror_of(present(pair.source_state)) == IN_SYNC_SOURCE
    pair.target.signal(signal.SIGCONT)


def can_watch(state: str) -> bool:
    with ControlClient(state) as control:
        try:
            return next(iter(control.watch()))["mode"] == "idle"
        except MirrorError as error:
            assert "watch this mirror already" in str(error)
            return False


def fill(state: str) -> list[Watch]:
    """As many watches as there may be."""
    watches: list[Watch] = []
    while len(watches) < WATCHERS:
        wait_until(lambda: can_watch(state), "place for one more")
        watch = Watch(state)
        watch.until_answered()
        if not watch.ended:  # else the look before it was still counted
            watches.append(watch)
    return watches


def test_only_so_many_watch_and_who_has_gone_is_not_counted(pair: MirrorPair) -> None:
    pair.start_target()
    for _ in range(2):
        watches = fill(pair.target_state)
        assert not can_watch(pair.target_state)
        for watch in watches:
            watch.close()


def test_a_process_that_is_killed_reports_no_more(pair: MirrorPair) -> None:
    pair.start_target()
    with Watch(pair.target_state) as target:
        target.until_like(Mirror(Role.TARGET, MirrorMode.IDLE))
        pair.kill_target()
        target.until_ended()
