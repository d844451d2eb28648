"""Epoch agreement, and a target that leaves as planned: on real processes, each of them also against a test's own end.

What is durable when which message is sent is seen from the other end of the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import Record
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError, Refused
from hotpair.replication.frames import LAST_OPERATION, Kind
from tests.faults import (
    WAIT_S,
    FakeSource,
    FakeTarget,
    Load,
    Peer,
    healthy,
    pair_with_link,
    port_of,
    said,
    visible,
    write_file,
)
from tests.mirror_pair import MirrorPair
from tests.mirror_reports import Watch, mirror_of, present, record_of

SOURCE = Mirror(Role.SOURCE, MirrorMode.PAIRED, linked=True, session=True, in_sync=True)
TARGET = Mirror(Role.TARGET, MirrorMode.PAIRED, linked=True, session=True)
ALONE = Mirror(Role.SOURCE, MirrorMode.ALONE)
GENERATION, ROOT = b"g" * 16, b"r" * 16


def on_disk(state: str) -> Record:
    record = record_io.load(f"{state}/record")
    assert record is not None
    return record


def agree(state: str, epoch: object, *, mine_first: bool = True, based_on: Record | None = None) -> None:
    based_on = based_on if based_on is not None else record_of(present(state))
    assert based_on is not None
    with ControlClient(state) as control:
        control.ask("agree", based_on=records.encode(based_on), epoch=epoch, mine_first=mine_first)


@contextmanager
def source_in_sync() -> Iterator[tuple[MirrorPair, FakeTarget, Peer, Watch]]:
    """A source that believes to be in sync with what the test plays."""
    with FakeTarget() as fake, MirrorPair(source_arguments=["--peer", fake.address]) as pair:
        with ThreadPoolExecutor(1) as pool:
            synchronised = pool.submit(fake.synchronise)
            pair.start_source()
            peer = synchronised.result(WAIT_S)
        with Watch(pair.source_state) as source:
            source.until_like(SOURCE)
            yield pair, fake, peer, source
            healthy(pair)


@contextmanager
def target_in_sync() -> Iterator[tuple[MirrorPair, FakeSource, Watch]]:
    """A target that believes to be in sync with what the test plays."""
    with MirrorPair() as pair:
        pair.start_target()
        with FakeSource(port_of(pair)) as source, Watch(pair.target_state) as target:
            source.begin()
            offered = Record(
                generation=GENERATION, epoch=3, last_role="PRIM", in_sync=True, boot="b", configuration=b"", root=ROOT
            )
            source.send(Kind.OFFER_SYNC, records.encode(offered))
            source.expect(Kind.TAKEN)
            target.until_like(TARGET)
            yield pair, source, target
            assert "Traceback" not in pair.logs()


def until(peer: Peer, fake: FakeTarget, kind: Kind) -> list[Any]:
    """What the source sends next of this kind; operations before it are acknowledged."""
    while (fields := peer.receive()) is not None:
        if fields[0] == kind:
            return fields
        assert fields[0] != Kind.MAY_LEAVE, "it was let go too early"
        if fields[0] <= LAST_OPERATION:
            fake.apply(peer, fields)
    raise AssertionError(f"the source closed before it sent {kind.name}")


# ---- agreement


@pytest.mark.parametrize("mine_first", [True, False])
def test_an_epoch_gets_into_both_records(mine_first: bool) -> None:
    with MirrorPair() as pair:
        pair.start()
        with Watch(pair.source_state) as source, Watch(pair.target_state) as target:
            source.until_like(SOURCE)
            before = [on_disk(pair.source_state), on_disk(pair.target_state)]
            agree(pair.source_state, 7, mine_first=mine_first)
            source.until(lambda _: record_of(source.reports[-1][1]) == replace(before[0], epoch=7))
            told = target.until(lambda _: record_of(target.reports[-1][1]) == replace(before[1], epoch=7))
            assert mirror_of(told) == TARGET
            source.until_like(SOURCE)
        assert [on_disk(pair.source_state), on_disk(pair.target_state)] == [replace(one, epoch=7) for one in before]
        write_file(pair, "file")
        pair.stop()
        assert pair.compare() == []


@pytest.mark.parametrize("mine_first", [True, False])
def test_the_one_that_the_arbiter_names_records_it_first(mine_first: bool) -> None:
    with source_in_sync() as (pair, fake, peer, source):
        agree(pair.source_state, 5, mine_first=mine_first)
        assert until(peer, fake, Kind.AGREE)[1] == 5
        assert on_disk(pair.source_state).epoch == (5 if mine_first else 0)
        source.until_like(replace(SOURCE, agreeing=True))
        with pytest.raises(Refused, match="under way"):
            agree(pair.source_state, 6)
        peer.send(Kind.AGREED, 5)
        source.until_like(SOURCE)
        assert on_disk(pair.source_state).epoch == 5
        agree(pair.source_state, 6)  # and again
        assert until(peer, fake, Kind.AGREE)[1] == 6
        peer.send(Kind.AGREED, 6)
        source.until(lambda mirror: mirror == SOURCE and on_disk(pair.source_state).epoch == 6)


def test_a_lost_link_ends_an_agreement() -> None:
    with source_in_sync() as (pair, fake, peer, source):
        agree(pair.source_state, 5, mine_first=False)
        until(peer, fake, Kind.AGREE)
        peer.close()
        source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True))
        resumed = fake.resume()
        source.until_like(SOURCE)
        assert on_disk(pair.source_state).epoch == 0, "whether the peer has it is not known"
        agree(pair.source_state, 5, mine_first=False)
        until(resumed, fake, Kind.AGREE)
        resumed.send(Kind.AGREED, 5)
        source.until(lambda mirror: mirror == SOURCE and on_disk(pair.source_state).epoch == 5)


@pytest.mark.parametrize("answer", [4, 6, -1, None, "5", 5.5])
def test_an_answer_that_does_not_fit(answer: object) -> None:
    with source_in_sync() as (pair, fake, peer, source):
        agree(pair.source_state, 5, mine_first=False)
        until(peer, fake, Kind.AGREE)
        peer.send(Kind.AGREED, answer)
        assert peer.answer_until_end()[-1][0] == Kind.REFUSED
        source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True))
        assert on_disk(pair.source_state).epoch == 0


def test_an_agreement_that_makes_no_sense() -> None:
    with pair_with_link() as (pair, link), Watch(pair.source_state) as source:
        source.until_like(SOURCE)
        agree(pair.source_state, 5)
        source.until(lambda mirror: mirror == SOURCE and on_disk(pair.source_state).epoch == 5)
        before = on_disk(pair.source_state)
        for epoch in (4, -1, "6", None, 6.5):
            with pytest.raises(MirrorError):
                agree(pair.source_state, epoch)
        with pytest.raises(Refused, match="another one by now") as refused:
            agree(pair.source_state, 6, based_on=replace(before, epoch=3))
        assert record_of(refused.value.report) == before
        link.cut(refuse=True)
        source.until(lambda mirror: mirror.mode is MirrorMode.FROZEN)
        with pytest.raises(Refused, match="only a pair in sync"):
            agree(pair.source_state, 6)
        assert on_disk(pair.source_state) == before
        assert on_disk(pair.target_state).epoch == 5


def test_a_target_has_the_epoch_on_disk_before_it_says_so() -> None:
    with target_in_sync() as (pair, source, _):
        source.send(Kind.AGREE, 9)
        assert source.expect(Kind.AGREED)[1] == 9
        assert on_disk(pair.target_state).epoch == 9
        source.send(Kind.AGREE, 4)  # late, or of an arbiter that was restored: epochs never go back on a disk
        source.expect(Kind.AGREED)
        assert on_disk(pair.target_state).epoch == 9
        source.send(Kind.AGREE, "ten")
        assert source.answer_until_end()[-1][0] == Kind.REFUSED
        assert on_disk(pair.target_state).epoch == 9


@pytest.mark.parametrize("word", [(Kind.AGREE, 9), (Kind.MAY_LEAVE,)])
def test_not_to_a_copy_that_is_not_in_sync(word: tuple[Any, ...]) -> None:
    with MirrorPair() as pair:
        pair.start_target()
        with FakeSource(port_of(pair)) as source:
            source.begin()
            before = on_disk(pair.target_state)
            source.send(*word)
            assert source.answer_until_end()[-1][0] == Kind.REFUSED
        assert on_disk(pair.target_state) == before
        healthy(pair)


# ---- leaving


def test_a_target_leaves_and_the_source_goes_on() -> None:
    """No write fails and none waits for a verdict; the target comes back with what it lacks."""
    with MirrorPair() as pair:
        pair.start()
        with Watch(pair.source_state) as source, Watch(pair.target_state) as target:
            load = Load(pair)
            load.goes_on()
            with ControlClient(pair.target_state) as control:
                control.ask("leave")
            target.until_ended()
            process, pair.target = pair.target, None
            assert process is not None and process.wait_end(WAIT_S) == 0 and "left" in process.said
            process.close()
            assert target.now == Mirror(Role.TARGET, MirrorMode.STOPPING)
            gone, last = on_disk(pair.target_state), record_of(target.reports[-1][1])
            assert gone.outdated and gone.in_sync and gone == last
            source.until_like(ALONE)
            on = on_disk(pair.source_state)
            assert on.solo and on.base == gone.generation and not on.outdated
            load.goes_on()
            pair.start_target()
            source.until_like(SOURCE)
            load.goes_on()
            load.stop()
            assert not on_disk(pair.target_state).outdated
        load.check()


def test_both_copies_are_flushed_before_the_target_may_go() -> None:
    with source_in_sync() as (pair, fake, peer, source):
        peer.send(Kind.LEAVE)
        flush = until(peer, fake, Kind.FLUSH_ALL)
        peer.send(Kind.LEAVE)  # said twice: asked once
        assert source.now == SOURCE
        peer.send(Kind.APPLIED, flush[1])
        peer.send(Kind.FLUSHED, flush[1])
        until(peer, fake, Kind.MAY_LEAVE)
        assert source.now == SOURCE and on_disk(pair.source_state).in_sync, "nothing has changed yet"
        peer.send(Kind.GONE)
        source.until_like(ALONE)
        assert on_disk(pair.source_state).solo
        said(pair.source, "state ALONE")


def test_a_flush_that_is_not_answered_lets_nobody_go() -> None:
    with source_in_sync() as (pair, fake, peer, source):
        peer.send(Kind.LEAVE)
        until(peer, fake, Kind.FLUSH_ALL)
        peer.send(Kind.GONE)
        assert peer.answer_until_end()[-1][0] == Kind.REFUSED
        source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True))
        assert not on_disk(pair.source_state).solo


def test_nobody_has_gone_who_was_not_let_go() -> None:
    """Nor in the next connection, when leave was given in the one before."""
    with source_in_sync() as (pair, fake, peer, source):
        peer.send(Kind.LEAVE)
        until(peer, fake, Kind.MAY_LEAVE)
        peer.close()
        resumed = fake.resume()
        source.until_like(SOURCE)
        resumed.send(Kind.GONE)
        assert resumed.answer_until_end()[-1][0] == Kind.REFUSED
        source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True))
        assert on_disk(pair.source_state).in_sync


def test_a_target_that_gets_no_answer_stops_in_sync() -> None:
    with target_in_sync() as (pair, source, target):
        with ControlClient(pair.target_state) as control:
            control.ask("leave")
            control.ask("leave")  # a command can be repeated
            source.expect(Kind.LEAVE)
            assert target.now == TARGET and not on_disk(pair.target_state).outdated
            control.ask("shutdown")
        target.until_ended()
        assert Kind.LEAVE not in [fields[0] for fields in source.answer_until_end()], "said once"
        assert on_disk(pair.target_state).in_sync and not on_disk(pair.target_state).outdated


def test_the_last_word_arrives_although_the_source_still_sends() -> None:
    """It is outdated on disk before it says so, and applies nothing after."""
    with target_in_sync() as (pair, source, target):
        with ControlClient(pair.target_state) as control:
            control.ask("leave")
        source.expect(Kind.LEAVE)
        source.make(ROOT, b"before", b"f" * 16)
        source.send(Kind.MAY_LEAVE)
        for number in range(200):
            source.make(ROOT, b"after%d" % number, b"%016d" % number)
        answers = source.answer_until_end(WAIT_S)
        assert answers[-1] == [Kind.GONE]
        assert visible(pair.target_dir) == ["before"]
        record = on_disk(pair.target_state)
        assert record.outdated and record.in_sync and record.generation == GENERATION
        target.until_ended()
        assert target.now == Mirror(Role.TARGET, MirrorMode.STOPPING)
        process, pair.target = pair.target, None
        assert process is not None and process.wait_end(WAIT_S) == 0
        process.close()


def test_only_a_copy_in_sync_can_leave() -> None:
    with MirrorPair() as pair:
        pair.start_target()
        with ControlClient(pair.target_state) as control, pytest.raises(Refused, match="not in sync") as refused:
            control.ask("leave")
        assert mirror_of(refused.value.report) == Mirror(Role.TARGET, MirrorMode.IDLE)
        pair.start_source()
        pair.stop_source()
        with ControlClient(pair.target_state) as control, pytest.raises(Refused, match="not in sync"):
            control.ask("leave")
        assert not on_disk(pair.target_state).outdated
