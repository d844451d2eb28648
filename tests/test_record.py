"""The durable record: no damaged byte is ever believed, each change changes its fields, and the meeting table."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster import record_io
from hotpair.cluster.record import (
    Copying,
    Record,
    RecordDamaged,
    RecordVersion,
    Rule,
    Side,
    begin_reintegration_as_target,
    clear_outdated,
    decode,
    encode,
    go_alone,
    hand_over,
    mark_outdated,
    meet,
    offer_sync_as_source,
    take_over,
    take_sync_as_target,
)

ids = st.binary(min_size=16, max_size=16).filter(any)
counts = st.integers(0, 2**64 - 1)
records = st.builds(
    Record,
    generation=ids,
    ancestors=st.lists(ids, max_size=16).map(tuple),
    base=st.none() | ids,
    epoch=counts,
    term=counts,
    last_role=st.sampled_from(["STOP", "WAIT", "ALONE", "PRIM", "SECOND"]),
    in_sync=st.booleans(),
    solo=st.booleans(),
    inconsistent=st.booleans(),
    outdated=st.booleans(),
    boot=st.text(st.characters(codec="utf-8"), max_size=30),
    configuration=st.binary(max_size=64),
    root=ids,
    log_counter=counts,
    copy=st.none() | ids,
)


def named(letter: str) -> bytes:
    return letter.encode() * 16


def record(**fields: Any) -> Record:
    standard: dict[str, Any] = {
        "generation": named("g"),
        "ancestors": (named("f"), named("e")),
        "base": named("f"),
        "epoch": 5,
        "term": 3,
        "last_role": "PRIM",
        "in_sync": True,
        "boot": "3f0c",
        "configuration": b"digest",
        "root": named("r"),
        "log_counter": 7,
        "copy": named("c"),
    }
    return Record(**standard | fields)


# ---- bytes


@given(records)
def test_what_is_encoded_is_decoded(value: Record) -> None:
    assert decode(encode(value)) == value


def test_every_single_bit_flip_is_refused() -> None:
    data = encode(record())
    for position, bit in product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        with pytest.raises(RecordDamaged):
            decode(bytes(flipped))


def test_every_truncation_is_refused_and_so_is_what_follows() -> None:
    data = encode(record())
    for length in range(len(data)):
        with pytest.raises(RecordDamaged):
            decode(data[:length])
    for garbage in (b"\0", b"x", data, bytes(10_000)):
        with pytest.raises(RecordDamaged):
            decode(data + garbage)


@given(st.binary(max_size=600))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RecordDamaged):
        decode(data)


def sealed(version: int, payload: bytes) -> bytes:
    body = b"HOTPREC\n" + version.to_bytes(2, "little") + len(payload).to_bytes(4, "little") + payload
    return body + hashlib.sha256(body).digest()


def test_another_version_is_not_called_damage() -> None:
    with pytest.raises(RecordVersion, match="format version 9"):
        decode(sealed(9, b"something"))


def test_a_record_of_version_1_has_no_copy_id_yet() -> None:
    values = list(asdict(record()).values())
    assert decode(sealed(1, msgpack.packb(values[:-1]))) == record(copy=None)
    for version, fields in ((1, values), (2, values[:-1])):
        with pytest.raises(RecordDamaged):
            decode(sealed(version, msgpack.packb(fields)))
    assert encode(record(copy=None)) == sealed(2, msgpack.packb([*values[:-1], None])), "version 1 is never written"


@pytest.mark.parametrize("position", range(15))
def test_a_sealed_record_with_a_senseless_field_is_refused(position: int) -> None:
    values = list(asdict(record()).values())
    assert decode(sealed(2, msgpack.packb(values))) == record()
    for senseless in (-1, 2**64 - 1, 1.5, b"short", "NONE" * 99, [1], {}, None):
        changed = [*values[:position], senseless, *values[position + 1 :]]
        try:
            result = decode(sealed(2, msgpack.packb(changed)))
        except RecordDamaged:
            continue
        assert list(asdict(result).values())[position] == senseless  # only what that field may hold


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgpack.packb([]), msgpack.packb({}), b"\xdd\xff\xff\xff\xff"])
def test_a_sealed_payload_that_is_no_record_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordDamaged, match="makes no sense"):
        decode(sealed(2, payload))


def test_errors_say_what_to_do() -> None:
    assert "A record that cannot be read" in str(RecordDamaged("x"))
    assert "start the program that wrote it" in str(RecordVersion(2))


def test_a_full_record_fits() -> None:
    widest = record(
        ancestors=tuple(os.urandom(16) for _ in range(16)),
        epoch=2**64 - 1,
        term=2**64 - 1,
        log_counter=2**64 - 1,
        boot="b" * 128,
        configuration=bytes(128),
    )
    assert decode(encode(widest)) == widest
    assert len(encode(widest)) < 1024


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": b"short"},
        {"generation": bytes(16)},
        {"ancestors": (named("a"),) * 17},
        {"ancestors": [named("a")]},
        {"epoch": -1},
        {"term": True},
        {"solo": 1},
        {"last_role": "PRIMARY"},
        {"boot": "b" * 129},
        {"root": b""},
        {"copy": b"short"},
    ],
)
def test_no_program_can_make_a_senseless_record(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        record(**fields)


def test_storing_and_loading(tmp_path: Path) -> None:
    path = str(tmp_path / "record")
    assert record_io.load(path) is None
    for value in (record(), record(term=4)):
        record_io.store(path, value)
        assert record_io.load(path) == value
    assert os.listdir(tmp_path) == ["record"]
    (tmp_path / "record").write_bytes(b"")
    with pytest.raises(RecordDamaged, match=path):
        record_io.load(path)
    (tmp_path / "record").write_bytes(sealed(3, b""))
    with pytest.raises(RecordVersion, match=path):
        record_io.load(path)
    with pytest.raises(record_io.RecordNotStored, match="cannot store"):
        record_io.store(str(tmp_path / "none" / "record"), record())


# ---- changes


def changes(before: Record, after: Record) -> dict[str, Any]:
    old, new = asdict(before), asdict(after)
    return {name: new[name] for name in new if new[name] != old[name]}


def test_going_alone() -> None:
    primary = record()
    new = {"generation": named("h"), "base": named("g"), "ancestors": (named("g"), named("f"), named("e"))}
    assert changes(primary, go_alone(primary, named("h"))) == new | {
        "solo": True,
        "in_sync": False,
        "last_role": "ALONE",
    }
    granted = go_alone(record(last_role="SECOND"), named("h"), granted_epoch=6, boot="new")
    assert (granted.epoch, granted.boot, granted.term) == (6, "new", 4)


def test_a_solo_server_keeps_its_generation() -> None:
    solo = record(solo=True, in_sync=False, last_role="WAIT")
    assert changes(solo, go_alone(solo, named("h"), boot="new")) == {"last_role": "ALONE", "boot": "new"}


def test_only_sixteen_ancestors_are_remembered() -> None:
    value = record()
    for number in range(20):
        value = go_alone(replace(value, solo=False), bytes([number + 1]) * 16)
    assert len(value.ancestors) == 16
    assert value.ancestors[0] == value.base == bytes([19]) * 16


@pytest.mark.parametrize("flag", ["inconsistent", "outdated"])
def test_no_old_or_half_copy_goes_alone_or_is_offered(flag: str) -> None:
    for change in (lambda value: go_alone(value, named("h")), offer_sync_as_source):
        with pytest.raises(AssertionError):
            change(record(**{flag: True}))


def test_epochs_never_go_back() -> None:
    with pytest.raises(AssertionError):
        go_alone(record(), named("h"), granted_epoch=4)
    assert take_sync_as_target(record(epoch=9), record(epoch=8)).epoch == 9


def test_one_reintegration() -> None:
    source = go_alone(record(), named("h"))
    target = mark_outdated(record(last_role="WAIT", boot="other", configuration=b"its own", log_counter=1))
    assert changes(record(), mark_outdated(record())) == {"outdated": True}
    assert clear_outdated(mark_outdated(record())) == record()
    begun = begin_reintegration_as_target(target, source.generation)
    assert changes(target, begun) == {
        "generation": named("h"),
        "inconsistent": True,
        "in_sync": False,
        "last_role": "SECOND",
    }
    offered = offer_sync_as_source(source)
    assert changes(source, offered) == {"solo": False, "in_sync": True, "last_role": "PRIM"}
    taken = take_sync_as_target(begun, offered, boot="rebooted")
    own = {"last_role": "SECOND", "boot": "rebooted", "configuration": b"its own", "log_counter": 0}
    assert taken == replace(offered, **own)
    with pytest.raises(AssertionError):
        take_sync_as_target(begun, source)


def test_one_handover() -> None:
    """The generation stays, the term rises, and whoever of the two comes back with which record, they agree."""
    primary, second = record(), record(last_role="SECOND", boot="old", configuration=b"its own", log_counter=4)
    successor = take_over(second, primary, boot="other")
    assert changes(second, successor) == {"last_role": "PRIM", "term": 4, "boot": "other", "log_counter": 0}
    assert take_over(second, primary).boot == "old"
    former = hand_over(primary, successor)
    assert changes(primary, former) == {"last_role": "SECOND", "term": 4}
    for mine, peer, source in [
        (primary, second, Side.ME),  # it has not happened
        (primary, successor, Side.PEER),  # it has, and the answer was lost
        (former, successor, Side.PEER),
    ]:
        met = meet(mine, peer, True, True, first=ME, preferred=ME)
        assert (met.source, met.copying) == (source, Copying.LOGS_ONLY)
    back = take_over(former, successor)
    assert (back.term, hand_over(successor, back).last_role) == (5, "SECOND")


@pytest.mark.parametrize(
    "fields",
    [{"in_sync": False}, {"inconsistent": True}, {"outdated": True}, {"solo": True}, {"generation": b"x" * 16}],
)
def test_only_a_copy_in_sync_takes_over(fields: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        take_over(record(last_role="SECOND", **fields), record())


def test_a_server_hands_over_only_to_one_that_has_taken_over() -> None:
    for successor in (record(term=4, last_role="SECOND"), record(), record(term=4, generation=named("x"))):
        with pytest.raises(AssertionError):
            hand_over(record(), successor)


def test_a_solo_target_is_not_solo_in_a_generation_that_it_did_not_begin() -> None:
    assert not begin_reintegration_as_target(record(solo=True), named("h")).solo


# ---- meeting the peer

G = record()
ALONE = go_alone(G, named("h"))
OTHER_ALONE = go_alone(G, named("i"))
SECOND_ALONE = go_alone(replace(ALONE, solo=False), named("j"))
STRANGER = record(generation=named("z"), ancestors=(named("y"),), base=named("y"))
HALF = {"inconsistent": True, "in_sync": False}
ME, PEER, NOBODY = Side.ME, Side.PEER, Side.NOBODY

TABLE = [
    (None, None, Rule.NO_RECORD, NOBODY, Copying.FULL),
    (None, G, Rule.NO_RECORD_ON_ONE, PEER, Copying.FULL),
    (None, replace(G, **HALF), Rule.REFUSED, NOBODY, Copying.FULL),
    (replace(G, **HALF), replace(G, **HALF), Rule.BOTH_INCONSISTENT, NOBODY, Copying.FULL),
    (replace(ALONE, **HALF), replace(STRANGER, **HALF), Rule.BOTH_INCONSISTENT, NOBODY, Copying.FULL),
    (replace(ALONE, **HALF), ALONE, Rule.SAME_ONE_INCONSISTENT, PEER, Copying.UNION),
    (
        replace(ALONE, **HALF),
        replace(ALONE, outdated=True, solo=False),
        Rule.SAME_ONE_INCONSISTENT,
        PEER,
        Copying.UNION,
    ),
    (ALONE, replace(ALONE, solo=False), Rule.SAME_ONE_SOLO, ME, Copying.UNION),
    (replace(ALONE, outdated=True), replace(ALONE, solo=False), Rule.SAME_ONE_SOLO, ME, Copying.UNION),
    (replace(G, outdated=True, term=9), G, Rule.SAME_ONE_OUTDATED, PEER, Copying.UNION),
    (G, replace(G, last_role="SECOND"), Rule.SAME, ME, Copying.LOGS_ONLY),
    (replace(G, term=4, last_role="SECOND"), G, Rule.SAME, ME, Copying.LOGS_ONLY),
    (replace(G, outdated=True), replace(G, outdated=True, term=4), Rule.SAME, PEER, Copying.LOGS_ONLY),
    (ALONE, replace(ALONE, term=9), Rule.SAME, PEER, Copying.LOGS_ONLY),
    (replace(ALONE, **HALF), OTHER_ALONE, Rule.SPLIT_DECIDED, PEER, Copying.UNION),
    (ALONE, OTHER_ALONE, Rule.SPLIT_BRAIN, NOBODY, Copying.UNION),
    (replace(ALONE, outdated=True), OTHER_ALONE, Rule.SPLIT_BRAIN, NOBODY, Copying.UNION),
    (G, ALONE, Rule.BASE, PEER, Copying.UNION),
    (replace(G, **HALF), replace(ALONE, solo=False), Rule.BASE, PEER, Copying.UNION),
    (G, replace(ALONE, **HALF), Rule.REFUSED, NOBODY, Copying.FULL),
    (G, SECOND_ALONE, Rule.ANCESTOR, PEER, Copying.FULL),
    (G, replace(SECOND_ALONE, **HALF), Rule.REFUSED, NOBODY, Copying.FULL),
    (G, STRANGER, Rule.UNRELATED, NOBODY, Copying.FULL),
    (G, replace(STRANGER, inconsistent=True), Rule.GIVEN_UP, ME, Copying.FULL),
    (ALONE, replace(OTHER_ALONE, solo=False), Rule.UNRELATED, NOBODY, Copying.FULL),
    (replace(ALONE, base=None), replace(OTHER_ALONE, base=None), Rule.UNRELATED, NOBODY, Copying.FULL),
    (ALONE, replace(G, ancestors=(named("h"),)), Rule.UNRELATED, NOBODY, Copying.FULL),
    (ALONE, replace(G, base=named("h")), Rule.UNRELATED, NOBODY, Copying.FULL),
]


@pytest.mark.parametrize(("mine", "peer", "rule", "source", "copying"), TABLE)
def test_each_row_from_both_sides(
    mine: Record | None, peer: Record | None, rule: Rule, source: Side, copying: Copying
) -> None:
    met = meet(mine, peer, True, True, first=ME)
    assert (met.rule, met.source, met.copying) == (rule, source, copying)
    assert met.reason.endswith(".") and met.reason[0].isupper()
    other = meet(peer, mine, True, True, first=PEER)
    assert (other.rule, other.source, other.copying) == (rule, source.swapped(), copying)
    flags = [met.no_record, met.both_inconsistent, met.split_brain, met.unrelated]
    rows = [Rule.NO_RECORD, Rule.BOTH_INCONSISTENT, Rule.SPLIT_BRAIN, Rule.UNRELATED]
    assert flags == [rule is row for row in rows]


def test_every_row_has_an_example() -> None:
    assert {row[2] for row in TABLE} == set(Rule)


def test_the_page_has_the_rows_in_the_same_order() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "arbitration.md").read_text(encoding="utf-8")
    table = page.partition("| the two records |")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert rows == [rule.value for rule in Rule]


def test_the_tie_breaks_in_their_order() -> None:
    older, newer = replace(G, last_role="SECOND"), replace(G, term=4)
    # (mine, peer, my boot unchanged, the peer's, preferred) with the first server last of all
    for mine, peer, my_boot, peer_boot, preferred, source in [
        (older, newer, True, False, PEER, ME),  # not rebooted beats the term
        (older, newer, False, False, ME, PEER),  # the term beats the role and the preferred server
        (replace(older, term=4), newer, True, True, ME, PEER),  # the role beats the preferred server
        (newer, newer, True, True, PEER, PEER),  # the preferred server beats the first one
        (newer, newer, True, True, NOBODY, ME),
        (replace(newer, last_role="ALONE"), newer, True, True, NOBODY, ME),
    ]:
        met = meet(mine, peer, my_boot, peer_boot, preferred=preferred, first=ME)
        assert (met.rule, met.source) == (Rule.SAME, source), met
    assert meet(newer, newer, True, True, first=PEER).source is PEER


@pytest.mark.parametrize("side", Side)
def test_data_on_counts_only_without_any_record(side: Side) -> None:
    assert meet(None, None, True, True, data_on=side, first=ME).source is side
    assert meet(None, G, True, True, data_on=side, first=ME).source is PEER


few = st.sampled_from([named(letter) for letter in "abc"])
related = st.none() | st.builds(
    record,
    generation=few,
    ancestors=st.lists(few, max_size=3).map(tuple),
    base=st.none() | few,
    term=st.integers(0, 2),
    last_role=st.sampled_from(["WAIT", "ALONE", "PRIM", "SECOND"]),
    in_sync=st.booleans(),
    solo=st.booleans(),
    inconsistent=st.booleans(),
    outdated=st.booleans(),
)
sides = st.sampled_from(Side)


@settings(max_examples=500)
@given(related, related, st.booleans(), st.booleans(), st.sampled_from([ME, PEER]), sides, sides)
def test_both_servers_come_to_the_same_verdict(
    mine: Record | None,
    peer: Record | None,
    my_boot: bool,
    peer_boot: bool,
    first: Side,
    preferred: Side,
    data_on: Side,
) -> None:
    met = meet(mine, peer, my_boot, peer_boot, first=first, preferred=preferred, data_on=data_on)
    swapped = {"first": first.swapped(), "preferred": preferred.swapped(), "data_on": data_on.swapped()}
    other = meet(peer, mine, peer_boot, my_boot, **swapped)
    assert (met.rule, met.source, met.copying) == (other.rule, other.source.swapped(), other.copying)
    source = {ME: mine, PEER: peer, NOBODY: None}[met.source]
    assert source is None or not source.inconsistent
