"""The pulse's bytes: what is sent arrives, and no bytes whatever end in anything but a typed refusal."""

from __future__ import annotations

import hmac
import random
from dataclasses import replace
from hashlib import sha256
from struct import pack as pack_struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.pulse import (
    DATAGRAM_BYTES,
    ECHOES,
    LARGEST_PULSE_BYTES,
    NETWORKS,
    TEXT_BYTES,
    VERSION,
    DataStatus,
    ModuleView,
    Pulse,
    PulseRefused,
    Refusal,
    decode,
    encode,
    pack,
)
from hotpair.cluster.record import Record
from hotpair.cluster.record import encode as encode_record

KEY = b"k" * 32
OTHER_KEY = b"K" * 32
MOST = 2**64 - 1

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", fullmatch=True)
ids = st.binary(min_size=16, max_size=16)
counts = st.integers(0, MOST)
digests = st.binary(max_size=TEXT_BYTES)


def a_record(**fields: Any) -> Record:
    standard: dict[str, Any] = {
        "generation": b"g" * 16,
        "ancestors": (b"f" * 16, b"e" * 16),
        "base": b"f" * 16,
        "epoch": 5,
        "term": 3,
        "last_role": "PRIM",
        "boot": "3f0c6e3a-4f41-4b04-9e3c-0a2a6f3f9b11",
        "configuration": b"d" * 32,
        "root": b"r" * 16,
    }
    return Record(**standard | fields)


LARGEST_RECORD = a_record(
    ancestors=(b"a" * 16,) * 16, epoch=MOST, term=MOST, log_counter=MOST, boot="b" * 128, configuration=b"c" * 128
)


def a_view(name: str = "web", **fields: Any) -> ModuleView:
    standard: dict[str, Any] = {
        "name": name,
        "state": "PRIM",
        "ready": True,
        "data_status": DataStatus.UP_TO_DATE,
        "record": a_record(),
        "configuration": b"m" * 32,
    }
    return ModuleView(**standard | fields)


def largest_view(name: str) -> ModuleView:
    return a_view(
        name,
        record=LARGEST_RECORD,
        configuration=b"m" * TEXT_BYTES,
        applied=MOST,
        bytes_left=MOST,
        request=b"q" * 16,
        consent=b"c" * 16,
        split_brain="server:" + "n" * 40,
        bytes_changed=MOST,
        yields=b"y" * 16,
        keeps=b"k" * 16,
    )


def a_pulse(**fields: Any) -> Pulse:
    standard: dict[str, Any] = {
        "sender": "alpha",
        "network": "lan",
        "incarnation": b"i" * 16,
        "counter": 1,
        "round": 1,
        "boot": "3f0c",
        "challenge": b"?" * 16,
        "configuration": b"c" * 32,
    }
    return Pulse(**standard | fields)


views = st.builds(
    a_view,
    name=names,
    state=st.sampled_from(["STOP", "WAIT", "ALONE", "PRIM", "SECOND"]),
    ready=st.booleans(),
    data_status=st.sampled_from(DataStatus),
    record=st.none() | st.builds(a_record, epoch=counts, solo=st.booleans(), outdated=st.booleans()),
    configuration=digests,
    applied=counts,
    bytes_left=counts,
    request=st.none() | ids,
    consent=st.none() | ids,
    split_brain=st.sampled_from(["manual", "former-primary", "most-changes"]) | names.map("server:{}".format),
    bytes_changed=st.none() | counts,
    yields=st.none() | ids,
    keeps=st.none() | ids,
)
pulses = st.builds(
    a_pulse,
    sender=names,
    network=names,
    incarnation=ids,
    counter=st.integers(1, MOST - 30),
    round=counts,
    boot=st.text(st.characters(codec="utf-8"), max_size=30),
    challenge=ids,
    echoes=st.lists(ids, max_size=ECHOES).map(tuple),
    hears=st.lists(names, max_size=NETWORKS).map(tuple),
    configuration=digests,
    modules=st.lists(views, max_size=3, unique_by=lambda view: view.name).map(tuple),
)


def signed(body: bytes, key: bytes = KEY) -> bytes:
    return body + hmac.digest(key, body, "sha256")


def refusal_of(data: bytes, key: bytes = KEY) -> PulseRefused:
    with pytest.raises(PulseRefused) as caught:
        decode(data, key)
    return caught.value


# ---- there and back


@given(pulses)
@settings(max_examples=60)
def test_what_is_sent_is_what_arrives(pulse: Pulse) -> None:
    assert decode(encode(pulse, KEY), KEY) == pulse


@given(pulses, st.integers(0, 25), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_round_says_each_module_once_and_every_datagram_who_speaks(pulse: Pulse, count: int, large: bool) -> None:
    modules = tuple(largest_view(f"m{i}") if large else a_view(f"m{i}") for i in range(count))
    pulse = replace(pulse, modules=modules)
    parts = [decode(datagram, KEY) for datagram in pack(pulse, KEY)]
    assert tuple(view for part in parts for view in part.modules) == modules
    for i, part in enumerate(parts):
        assert (part.counter, part.part, part.parts) == (pulse.counter + i, i + 1, len(parts))
        assert replace(part, modules=modules, counter=pulse.counter, part=1, parts=1) == pulse


def test_one_usual_module_is_one_datagram_that_no_network_fragments() -> None:
    record = a_record(ancestors=tuple(bytes([65 + i]) * 16 for i in range(8)))
    pulse = a_pulse(echoes=(b"e" * 16,), hears=("lan", "direct"), modules=(a_view(record=record),), boot="b" * 36)
    assert [len(datagram) <= DATAGRAM_BYTES for datagram in pack(pulse, KEY)] == [True]


def test_a_full_pair_is_spread_over_datagrams_of_bounded_size() -> None:
    datagrams = pack(a_pulse(modules=tuple(a_view(f"m{i}") for i in range(25))), KEY)
    assert 1 < len(datagrams) < 25
    assert max(map(len, datagrams)) <= DATAGRAM_BYTES


def test_the_largest_possible_pulse_of_one_module_is_below_the_limit() -> None:
    name = "n" * 40
    pulse = a_pulse(
        sender=name,
        network=name,
        counter=MOST,
        round=MOST,
        boot="b" * TEXT_BYTES,
        echoes=(b"e" * 16,) * ECHOES,
        hears=(name,) * NETWORKS,
        configuration=b"c" * TEXT_BYTES,
        modules=(largest_view(name),),
    )
    (datagram,) = pack(pulse, KEY)
    assert DATAGRAM_BYTES < len(datagram) <= LARGEST_PULSE_BYTES
    assert decode(datagram, KEY) == pulse


# ---- what is refused, and how it is said


def test_another_key_is_said_to_be_one() -> None:
    refused = refusal_of(encode(a_pulse(), OTHER_KEY))
    assert refused.reason is Refusal.WRONG_KEY
    assert "key file" in str(refused)


def test_another_version_is_named_beside_ours_with_the_remedy() -> None:
    refused = refusal_of(signed(b"HPLS" + pack_struct(">H", 7) + b"whatever a later version says"))
    assert refused.reason is Refusal.OTHER_VERSION
    assert (
        "version 7" in str(refused) and f"version {VERSION}" in str(refused) and "upgrade this server" in str(refused)
    )


def test_a_strangers_claim_of_another_version_is_not_believed() -> None:
    assert refusal_of(signed(b"HPLS" + pack_struct(">H", 7), OTHER_KEY)).reason is Refusal.WRONG_KEY


def test_a_record_of_another_version_is_another_version() -> None:
    pulse = encode(a_pulse(modules=(a_view(),)), KEY)
    at = pulse.index(b"HOTPREC\n") + 8
    record_end = at - 8 + len(encode_record(a_record()))
    changed = bytearray(pulse[:-32])
    changed[at : at + 2] = pack_struct("<H", 9)
    changed[record_end - 32 : record_end] = sha256(changed[at - 8 : record_end - 32]).digest()
    refused = refusal_of(signed(bytes(changed)))
    assert refused.reason is Refusal.OTHER_VERSION
    assert "record version 9" in str(refused)


def test_the_size_limit_is_exact() -> None:
    assert refusal_of(b"HPLS" + bytes(LARGEST_PULSE_BYTES - 4)).reason is Refusal.WRONG_KEY
    assert refusal_of(b"HPLS" + bytes(LARGEST_PULSE_BYTES - 3)).reason is Refusal.TOO_LARGE


@given(pulses, st.data())
@settings(max_examples=60)
def test_a_changed_or_cut_pulse_is_refused(pulse: Pulse, data: st.DataObject) -> None:
    whole = encode(pulse, KEY)
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) * 8 - 1))
        damaged = (int.from_bytes(whole, "little") ^ 1 << at).to_bytes(len(whole), "little")
    assert refusal_of(damaged).reason in (Refusal.WRONG_KEY, Refusal.MALFORMED)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"HPLS" + rest))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    assert refusal_of(data).reason in (Refusal.WRONG_KEY, Refusal.MALFORMED)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), MOST)
    | st.floats()
    | st.text(max_size=5)
    | ids
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=25,
)


@given(values)
@settings(max_examples=80)
def test_any_signed_value_is_refused_as_malformed(value: Any) -> None:
    data = signed(b"HPLS" + pack_struct(">H", VERSION) + msgpack.packb(value))
    assert refusal_of(data).reason is Refusal.MALFORMED


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_signed_bytes_are_refused_as_malformed(payload: bytes) -> None:
    assert refusal_of(signed(b"HPLS" + pack_struct(">H", VERSION) + payload)).reason is Refusal.MALFORMED


def test_deep_nesting_and_special_types_are_malformed() -> None:
    for payload in (
        b"\x91" * 3000,  # lists in lists
        b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\xc7\x03\xff\x01\x02\x03",  # a timestamp of impossible length
        b"\x81\x91\x01\x02",  # a map with a list as key
        b"\xdd\xff\xff\xff\xff",  # four thousand million elements
    ):
        assert refusal_of(signed(b"HPLS" + pack_struct(">H", VERSION) + payload)).reason is Refusal.MALFORMED


@given(pulses.filter(lambda pulse: len(pulse.modules) > 0), values, st.data())
@settings(max_examples=80)
def test_a_pulse_with_one_value_replaced_is_a_pulse_or_malformed(pulse: Pulse, value: Any, data: st.DataObject) -> None:
    content = msgpack.unpackb(encode(pulse, KEY)[6:-32])
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = value
    else:
        view = data.draw(st.sampled_from(content[-1]))
        view[data.draw(st.integers(0, len(view) - 1))] = value
    try:
        decoded = decode(signed(b"HPLS" + pack_struct(">H", VERSION) + msgpack.packb(content)), KEY)
    except PulseRefused as refused:
        assert refused.reason in (Refusal.MALFORMED, Refusal.TOO_LARGE)
    else:
        assert decode(encode(decoded, KEY), KEY) == decoded


@pytest.mark.parametrize("index", [True, -1, 5, 1.0, None])
def test_a_state_is_one_of_the_numbers_of_the_table(index: object) -> None:
    content = msgpack.unpackb(encode(a_pulse(modules=(a_view(),)), KEY)[6:-32])
    content[-1][0][1] = index
    data = signed(b"HPLS" + pack_struct(">H", VERSION) + msgpack.packb(content))
    assert refusal_of(data).reason is Refusal.MALFORMED


@pytest.mark.parametrize(
    "fields",
    [
        {"counter": 0},
        {"counter": 2**64},
        {"round": -1},
        {"part": 2},
        {"parts": 26},
        {"incarnation": b"short"},
        {"echoes": (b"e" * 16,) * (ECHOES + 1)},
        {"hears": ("n",) * (NETWORKS + 1)},
        {"sender": "a b"},
        {"boot": "b" * (TEXT_BYTES + 1)},
        {"configuration": b"c" * (TEXT_BYTES + 1)},
        {"modules": tuple(a_view(f"m{i}") for i in range(26))},
        {"modules": (a_view("twice"), a_view("twice"))},
        {"modules": [a_view()]},
    ],
)
def test_no_program_may_send_more_than_the_limits(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pulse"):
        a_pulse(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"state": "FLYING"},
        {"request": b"short"},
        {"applied": -1},
        {"record": b"bytes"},
        {"ready": 1},
        {"split_brain": "newest"},
        {"split_brain": "server:"},
        {"split_brain": None},
        {"bytes_changed": -1},
        {"bytes_changed": True},
        {"keeps": b"short"},
    ],
)
def test_no_program_may_send_an_impossible_view(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pulse"):
        a_view(**fields)


def test_random_damage_by_seed_never_raises_anything_else() -> None:
    """Faster than the drawn examples, so many more: bytes of a real pulse replaced and signed again."""
    chance = random.Random(4)
    body = encode(a_pulse(modules=(a_view(), a_view("db"))), KEY)[:-32]
    seen = set()
    for _ in range(4000):
        changed = bytearray(body)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(4, len(changed))] = chance.randrange(256)
        try:
            decode(signed(bytes(changed)), KEY)
        except PulseRefused as refused:
            seen.add(refused.reason)
    assert seen == {Refusal.MALFORMED, Refusal.OTHER_VERSION}
