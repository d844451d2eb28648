"""The messages between servers and a witness: what is read back is what was said, and nothing else is believed."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster import witness_messages as messages
from hotpair.cluster.arbitration import LARGEST_EPOCH, NAME_BYTES, Answer, Claim, Purpose

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NONCE, OTHER_NONCE = b"n" * 32, b"m" * 32
ID = bytes(range(16))
CLAIM = Claim(request_id=ID, pair="pair", module="vm", server="a", epoch=7, purpose=Purpose.GO_ALONE)
LOOK = messages.Look(ID, "pair", "vm")
ANSWER = Answer(request_id=ID, granted=True, epoch=8, holder="a", reason="moved", reachable=True)
BAD = (messages.BadMessage, messages.ErrorSaid)


@pytest.mark.parametrize("request_", [CLAIM, LOOK])
def test_a_request_arrives(request_: messages.Request) -> None:
    sealed = messages.read_ask(messages.ask(request_, KEY, NONCE))
    assert sealed.pair == "pair"
    assert messages.unseal(sealed, KEY, NONCE) == request_


def test_an_answer_arrives() -> None:
    assert messages.read_answer(messages.answer(ANSWER, KEY, NONCE), KEY, NONCE) == ANSWER


def test_the_largest_messages_fit_into_a_frame() -> None:
    name = "n" * NAME_BYTES
    claim = Claim(
        request_id=ID, pair=name, module=name, server=name, epoch=LARGEST_EPOCH, purpose=Purpose.OPERATOR_FORCED
    )
    reply = Answer(
        request_id=ID, granted=False, epoch=LARGEST_EPOCH, holder=name, reason="\u20ac" * 999, reachable=True
    )
    for message in (messages.ask(claim, KEY, NONCE), messages.answer(reply, KEY, NONCE), messages.error("e" * 9999)):
        assert len(message) <= messages.LARGEST_FRAME_BYTES // 2


def test_another_key_or_connection_is_noticed() -> None:
    sealed = messages.read_ask(messages.ask(CLAIM, KEY, NONCE))
    for key, nonce in ((OTHER_KEY, NONCE), (KEY, OTHER_NONCE)):
        with pytest.raises(messages.NotAuthentic):
            messages.unseal(sealed, key, nonce)
        with pytest.raises(messages.NotAuthentic):
            messages.read_answer(messages.answer(ANSWER, KEY, NONCE), key, nonce)


def test_a_request_is_no_answer() -> None:
    """Nobody can make a witness's answer out of what a server has signed."""
    sealed = messages.read_ask(messages.ask(CLAIM, KEY, NONCE))
    with pytest.raises(messages.NotAuthentic):
        messages.read_answer(msgpack.packb(["answer", 1, sealed.body, sealed.mac]), KEY, NONCE)


def test_one_pair_cannot_speak_for_another() -> None:
    """The body belongs to `pair`, the envelope names `other`, and whoever made it has the key of `other` only."""
    sealed = messages.read_ask(messages.ask(CLAIM, OTHER_KEY, NONCE))
    with pytest.raises(messages.BadMessage):
        messages.unseal(messages.Sealed("other", sealed.body, sealed.mac), OTHER_KEY, NONCE)


@given(st.data())
@settings(max_examples=200)
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    for original, read in (
        (messages.ask(CLAIM, KEY, NONCE), lambda b: messages.unseal(messages.read_ask(b), KEY, NONCE)),
        (messages.answer(ANSWER, KEY, NONCE), lambda b: messages.read_answer(b, KEY, NONCE)),
    ):
        changed = bytearray(original)
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] ^= data.draw(st.integers(1, 255))
        with pytest.raises(BAD):
            read(bytes(changed))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_garbage_is_an_error_of_its_own_kind(data: bytes) -> None:
    for read in (messages.read_hello, messages.read_ask, lambda b: messages.read_answer(b, KEY, NONCE)):
        with pytest.raises(BAD):
            read(data)


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(json)
@settings(max_examples=150)
def test_an_authentic_message_of_nonsense_is_refused(value: object) -> None:
    """A pair's own server with a bug."""
    body = msgpack.packb(value)
    request = msgpack.packb(["ask", 1, "pair", body, messages._mac(KEY, messages._ASK_LABEL, NONCE, body)])
    with pytest.raises(messages.BadMessage):
        messages.unseal(messages.read_ask(request), KEY, NONCE)
    reply = msgpack.packb(["answer", 1, body, messages._mac(KEY, messages._ANSWER_LABEL, NONCE, body)])
    with pytest.raises(messages.BadMessage):
        messages.read_answer(reply, KEY, NONCE)


@pytest.mark.parametrize("version", [0, 2, 2**40])
def test_another_version_is_named(version: int) -> None:
    for tag, read in (("hello", messages.read_hello), ("ask", messages.read_ask)):
        with pytest.raises(messages.OtherVersion, match=f"version {version} "):
            read(msgpack.packb([tag, version, "something", "of the", "future"]))


def test_a_frame_has_a_limit() -> None:
    assert (
        messages.frame_length(messages.frame(b"x" * messages.LARGEST_FRAME_BYTES)[:4]) == messages.LARGEST_FRAME_BYTES
    )
    for length in (messages.LARGEST_FRAME_BYTES + 1, 2**32 - 1):
        with pytest.raises(messages.BadMessage, match=str(length)):
            messages.frame_length(length.to_bytes(4, "big"))
    with pytest.raises(messages.BadMessage, match="TLS"):
        messages.frame_length(b"\x16\x03\x01\x02")


def test_an_error_cannot_write_to_the_terminal() -> None:
    with pytest.raises(messages.ErrorSaid, match=r"^\?\[31mred\?$"):
        messages.read_hello(messages.error("\x1b[31mred\n"))
