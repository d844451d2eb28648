"""What the state machine tells a mirror process, on real ones: each verdict does what the simulation believes it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import Record
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError, Refused
from hotpair.replication.frames import Kind
from hotpair.replication.go_alone import GoAlone, objection, verdict_of
from hotpair.replication.limits import PROTOCOL_VERSION
from hotpair.replication.process_io import boot_id
from tests.faults import WAIT_S, FakeTarget, Load, equal_after_stop, log_of, on_mount, pair_with_link, said, write_file
from tests.mirror_pair import MirrorPair, mounts_below
from tests.mirror_reports import Watch, mirror_of, present, record_of

FRESH = b"f" * 16
FROZEN = Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True)
ALONE = Mirror(Role.SOURCE, MirrorMode.ALONE)
FAILED = Mirror(Role.SOURCE, MirrorMode.FAILED)
IN_SYNC = Mirror(Role.SOURCE, MirrorMode.PAIRED, linked=True, session=True, in_sync=True)


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    with MirrorPair() as made:
        yield made


def on_disk(state: str) -> Record:
    record = record_io.load(f"{state}/record")
    assert record is not None
    return record


def alone(record: Record, epoch: int | None = None) -> Record:
    """The record with which the supervisor has this server go on."""
    return records.go_alone(record, FRESH, granted_epoch=epoch, boot=boot_id())


def tell_to_go_alone(state: str, based_on: Record, record: Record) -> int:
    with ControlClient(state) as control:
        answer = control.ask("go_alone", based_on=records.encode(based_on), record=records.encode(record))
    number: int = answer["number"]
    return number


# ---- go alone


PRESENT = Record(
    generation=b"g" * 16, epoch=3, term=2, last_role="PRIM", in_sync=True, boot="b", configuration=b"", root=b"r" * 16,
    log_counter=7, copy=b"c" * 16,
)  # fmt: skip
NEXT = records.go_alone(PRESENT, FRESH, granted_epoch=4, boot="c")


@pytest.mark.parametrize(
    ("present", "record", "reason"),
    [
        (PRESENT, NEXT, None),
        (PRESENT, records.override(PRESENT, FRESH), None),
        (NEXT, replace(NEXT, boot="d"), None),
        (replace(PRESENT, log_counter=8), NEXT, "another one by now"),
        (replace(PRESENT, epoch=4), NEXT, "another one by now"),
        (PRESENT, replace(NEXT, solo=False), "goes on alone"),
        (PRESENT, replace(NEXT, in_sync=True), "goes on alone"),
        (PRESENT, replace(NEXT, inconsistent=True), "goes on alone"),
        (PRESENT, replace(NEXT, outdated=True), "goes on alone"),
        (PRESENT, replace(NEXT, root=b"s" * 16), "not of this copy"),
        (PRESENT, replace(NEXT, copy=b"d" * 16), "not of this copy"),
        (PRESENT, replace(NEXT, log_counter=8), "not of this copy"),
        (PRESENT, replace(NEXT, epoch=2), "goes back"),
        (PRESENT, replace(NEXT, term=1), "goes back"),
        (PRESENT, replace(NEXT, generation=PRESENT.generation), "no generation of its own"),
    ],
)
def test_which_record_takes_the_place_of_which(present: Record, record: Record, reason: str | None) -> None:
    based_on = NEXT if present is NEXT else PRESENT
    found = objection(present, GoAlone(based_on, record))
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize(
    "arguments",
    [
        {"based_on": records.encode(PRESENT)},
        {"record": records.encode(PRESENT)},
        {"based_on": records.encode(PRESENT), "record": b""},
        {"based_on": "text", "record": records.encode(PRESENT)},
        {"based_on": records.encode(PRESENT), "record": records.encode(NEXT)[:-1]},
        {"based_on": records.encode(PRESENT), "record": records.encode(NEXT), "more": 1},
    ],
)
def test_half_a_verdict_is_none(arguments: dict[str, object]) -> None:
    with pytest.raises(MirrorError):
        verdict_of(arguments)


def test_go_alone_with_the_record_that_was_granted() -> None:
    with pair_with_link() as (pair, link), Watch(pair.source_state) as source:
        source.until_like(IN_SYNC)
        load = Load(pair)
        load.goes_on()
        before = record_of(present(pair.source_state))
        assert before is not None
        with pytest.raises(Refused, match="nothing waits for a verdict") as refused:
            tell_to_go_alone(pair.source_state, before, alone(before))
        assert record_of(refused.value.report) == before
        link.cut(refuse=True)
        held = record_of(source.until_like(FROZEN))
        assert held == before
        other = replace(before, epoch=before.epoch + 1)
        with pytest.raises(Refused, match="another one by now") as refused:
            tell_to_go_alone(pair.source_state, other, alone(other))
        assert record_of(refused.value.report) == before == on_disk(pair.source_state)
        assert mirror_of(refused.value.report) == FROZEN
        assert not load.writer.wait_acknowledged(1000, 1), "acknowledged while frozen"
        granted = alone(before, epoch=17)
        number = tell_to_go_alone(pair.source_state, before, granted)
        assert on_disk(pair.source_state) == granted
        told = source.until_like(ALONE)
        assert record_of(told) == granted
        assert told["number"] >= number
        assert all(report["mode"] == "alone" for _, report in source.reports if report["number"] >= number), (
            "what is as new as the answer says knows of it"
        )
        load.goes_on()
        with pytest.raises(Refused, match="nothing waits"):
            tell_to_go_alone(pair.source_state, before, granted)
        link.allow()
        source.until_like(IN_SYNC)
        assert (on_disk(pair.source_state).generation, on_disk(pair.target_state).epoch) == (FRESH, 17)
        load.stop()
        load.check()


def test_the_copy_says_the_same_after_a_crash() -> None:
    """The log knows the verdict's generation: nothing but what it names is copied."""
    with pair_with_link() as (pair, link), Watch(pair.source_state) as source:
        link.cut(refuse=True)
        before = record_of(source.until_like(FROZEN))
        assert before is not None
        tell_to_go_alone(pair.source_state, before, alone(before))
        write_file(pair, "file", "b'x' * 100_000")
        pair.kill_source()
        pair.abort()
        link.allow()
        pair.start_source()
        with ControlClient(pair.source_state) as control:
            assert not control.ask("status")["reintegration"]
        assert "compared" not in pair.logs()
        assert pair.source is not None and "dirty log unusable" not in log_of(pair.source)
        equal_after_stop(pair)


def test_not_alone_while_there_is_a_connection(pair: MirrorPair) -> None:
    """The target may be about to take the hello for what it says: a verdict is for a source that has nobody."""
    with FakeTarget() as fake:
        pair.source_arguments += ["--peer", fake.address]
        pair._port.close()
        synchronised = threading.Thread(target=lambda: peers.append(fake.synchronise()))
        peers: list[object] = []
        synchronised.start()
        directories = ["--dir", pair.source_dir, "--state", pair.source_state, "--peer", fake.address]
        pair.source = pair._start("source", directories)
        synchronised.join(WAIT_S)
        with Watch(pair.source_state) as source:
            source.until_like(IN_SYNC)
            peers[0].close()  # type: ignore[attr-defined]
            before = record_of(source.until_like(FROZEN))
            assert before is not None
            peer, _ = fake.accept()
            peer.send(Kind.WELCOME, PROTOCOL_VERSION, fake.welcome())
            peer.expect(Kind.BEGIN_REINTEGRATION)
            source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN, linked=True))
            with pytest.raises(Refused, match="there is a connection"):
                tell_to_go_alone(pair.source_state, before, alone(before))
            assert on_disk(pair.source_state) == before
            fake.close()
            peer.close()
            source.until_like(Mirror(Role.SOURCE, MirrorMode.FROZEN))
            tell_to_go_alone(pair.source_state, before, alone(before))
            source.until_like(ALONE)


# ---- the tap is failed


def test_a_failed_tap_acknowledges_nothing_and_the_process_waits_to_be_ended() -> None:
    with pair_with_link() as (pair, link), Watch(pair.source_state) as source, Watch(pair.target_state) as target:
        source.until_like(IN_SYNC)
        load = Load(pair)
        load.goes_on()
        link.cut(refuse=True)
        source.until_like(FROZEN)
        with ControlClient(pair.source_state) as control:
            number = control.ask("fail_tap")["number"]
            assert mirror_of(control.ask("report")) == FAILED
        assert source.until_like(FAILED)["number"] <= number
        assert load.writer.wait_end(5) == 1, "the writer hangs"
        load.writer.close()
        link.allow()
        record = on_disk(pair.source_state)
        with ControlClient(pair.source_state) as control:
            with pytest.raises(Refused, match="nothing waits for a verdict"):
                control.ask("go_alone")
            control.ask("retry")
        target.until(lambda mirror: not mirror.linked)
        assert pair.source is not None and pair.source.wait_end(1.5) is None, "it ends only when it is told to"
        assert source.now == FAILED and not target.now.linked, "it makes no connection any more"
        with ControlClient(pair.source_state) as control:
            control.ask("shutdown")
        source.until_ended()
        process, pair.source = pair.source, None
        assert process.wait_end(5) == 0 and "Traceback" not in log_of(process)
        process.close()
        assert not mounts_below(pair.mount)
        assert replace(on_disk(pair.source_state), log_counter=0) == replace(record, log_counter=0)
        load.ledger.read()
        assert load.ledger.errors
        load.ledger.errors.clear()
        assert load.ledger.check(pair.target_dir) == []


def test_a_failed_tap_ends_the_connection_of_a_pair_in_sync(pair: MirrorPair) -> None:
    pair.start()
    with Watch(pair.source_state) as source, Watch(pair.target_state) as target:
        with ControlClient(pair.source_state) as control:
            control.ask("fail_tap")
            control.ask("fail_tap")  # a verdict can be repeated
        source.until_like(FAILED)
        target.until_like(Mirror(Role.TARGET, MirrorMode.PAIRED, session=True))
        assert on_disk(pair.target_state).in_sync
        pair.stop_source()
        source.until_ended()
    pair.start_source()
    equal_after_stop(pair)


# ---- starting alone


def test_a_solo_copy_takes_writes_at_once(pair: MirrorPair) -> None:
    """Nobody listens there, and nothing waits for that; afterwards it meets its target as always."""
    pair.source_arguments += ["--alone"]
    pair.start_source()
    with Watch(pair.source_state) as watch:
        watch.until_like(ALONE)
    first = on_disk(pair.source_state)
    write_file(pair, "file", "b'first'")
    pair.stop_source()
    pair.start_source()
    assert on_disk(pair.source_state).generation == first.generation, "it keeps its generation"
    assert on_mount(pair, "print(open('file').read())").strip() == "first"
    pair.start_target()
    said(pair.source, "in sync")
    equal_after_stop(pair)


def test_a_solo_copy_that_was_killed_takes_its_mount_over(pair: MirrorPair) -> None:
    pair.source_arguments += ["--alone"]
    pair.start_source()
    load = Load(pair)
    load.goes_on()
    pair.kill_source()
    pair.start_source()
    said(pair.source, "adopted the mount")
    load.goes_on()
    load.stop()
    pair.stop_source()


def test_a_copy_that_is_not_solo_does_not_go_alone_by_itself(pair: MirrorPair) -> None:
    pair.start()
    pair.stop()
    before = on_disk(pair.source_state)
    pair.source_arguments += ["--alone"]
    with pytest.raises(RuntimeError, match="does not go on alone"):
        pair.start_source()
    assert on_disk(pair.source_state) == before
    assert not mounts_below(pair.mount)
    pair.source_arguments.clear()
    pair.start()
    equal_after_stop(pair)


# ---- ending


def test_a_target_ends_when_it_is_told_to(pair: MirrorPair) -> None:
    pair.start()
    with Watch(pair.target_state) as target, ControlClient(pair.target_state) as control:
        control.ask("shutdown")
        target.until_ended()
    process, pair.target = pair.target, None
    assert process is not None and process.wait_end(5) == 0
    process.close()
    assert on_disk(pair.target_state).in_sync and not on_disk(pair.target_state).outdated
