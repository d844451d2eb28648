"""What servers and a witness say to each other: small msgpack frames, authenticated with the pair's key.

Knows: the form of the messages. Must not know: sockets, randomness, who is right.

One connection carries one request. The witness speaks first:

    hello   ["hello", version, nonce]              the nonce is fresh for each connection
    ask     ["ask", version, pair, body, mac]      body: msgpack of [request id, pair, "claim", module, server, epoch,
                                                   purpose] or [request id, pair, "look", module]
    answer  ["answer", version, body, mac]         body: msgpack of [request id, granted, epoch, holder, reason]
    error   ["error", version, text]               not authenticated: said to whoever cannot be answered

A frame is a 4-byte big-endian length and so many bytes. A mac is HMAC-SHA256 with the pair's key over a label for the
direction, the nonce and the body. A recorded request is worth nothing on another connection, because the nonce differs,
and there is no second request on the same one; a recorded answer is worth nothing: it carries another request id.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from hotpair.cluster.arbitration import (
    REASON_BYTES,
    Answer,
    Claim,
    Purpose,
    Standing,
    is_epoch,
    is_id,
    is_name,
)

VERSION = 1
LENGTH = struct.Struct(">I")
LARGEST_FRAME_BYTES = 2048  # the largest message, with all names at their limits, has less than half of that
NONCE_BYTES = 32
KEY_BYTES = 32
MAC_BYTES = hashlib.sha256().digest_size
_ASK_LABEL = b"hotpair witness ask\n"
_ANSWER_LABEL = b"hotpair witness answer\n"


class BadMessage(Exception):
    """What was received is not a message of this protocol. The text says what is wrong with it."""


class OtherVersion(BadMessage):
    """A message of another version of this protocol."""


class NotAuthentic(BadMessage):
    """The message was not made with the pair's key for this connection."""


class ErrorSaid(Exception):
    """The other end says, without proof of who it is, that it cannot answer."""


@dataclass(frozen=True)
class Look:
    """The question where a module stands."""

    request_id: bytes
    pair: str
    module: str


Request = Claim | Look


def frame(message: bytes) -> bytes:
    assert len(message) <= LARGEST_FRAME_BYTES, "no message of ours is larger"
    return LENGTH.pack(len(message)) + message


def frame_length(prefix: bytes) -> int:
    """The length that a frame announces. Raises BadMessage if it is too large."""
    (length,) = LENGTH.unpack(prefix)
    if length > LARGEST_FRAME_BYTES:
        hint = " (is TLS on at one end only?)" if prefix[:2] in (b"\x16\x03", b"\x15\x03") else ""
        raise BadMessage(f"a frame of {length} bytes, {LARGEST_FRAME_BYTES} are allowed{hint}")
    return int(length)


def hello(nonce: bytes) -> bytes:
    return _pack(["hello", VERSION, nonce])


def read_hello(data: bytes) -> bytes:
    """The nonce. Raises BadMessage, OtherVersion, ErrorSaid."""
    (nonce,) = _open(data, "hello", 1)
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise BadMessage("the greeting has no nonce")
    return nonce


def ask(request: Request, key: bytes, nonce: bytes) -> bytes:
    if isinstance(request, Claim):
        rest = ["claim", request.module, request.server, request.epoch, request.purpose.value]
    else:
        rest = ["look", request.module]
    body = _pack([request.request_id, request.pair, *rest])
    return _pack(["ask", VERSION, request.pair, body, _mac(key, _ASK_LABEL, nonce, body)])


@dataclass(frozen=True)
class Sealed:
    """A request whose sender is not known yet."""

    pair: str
    body: bytes
    mac: bytes


def read_ask(data: bytes) -> Sealed:
    """Raises BadMessage, OtherVersion."""
    pair, body, mac = _open(data, "ask", 3)
    if not is_name(pair) or not isinstance(body, bytes) or not isinstance(mac, bytes) or len(mac) != MAC_BYTES:
        raise BadMessage("a request that is not formed like one")
    return Sealed(pair, body, mac)


def unseal(sealed: Sealed, key: bytes, nonce: bytes) -> Request:
    """The request. Raises NotAuthentic before anything in it is read, then BadMessage."""
    if not hmac.compare_digest(sealed.mac, _mac(key, _ASK_LABEL, nonce, sealed.body)):
        raise NotAuthentic(f"pair {sealed.pair}: wrong key, or a replayed request")
    match _unpack(sealed.body):
        case (request_id, pair, "claim", module, server, epoch, purpose) if pair == sealed.pair:
            try:
                return Claim(
                    request_id=request_id,
                    pair=pair,
                    module=module,
                    server=server,
                    epoch=epoch,
                    purpose=Purpose(purpose),
                )
            except ValueError as error:
                raise BadMessage(f"a claim that makes no sense: {error}") from error
        case (request_id, pair, "look", module) if pair == sealed.pair and is_id(request_id) and is_name(module):
            return Look(request_id, sealed.pair, module)
    raise BadMessage("a request that is not formed like one")


def answer(reply: Answer, key: bytes, nonce: bytes) -> bytes:
    reason = reply.reason.encode()[:REASON_BYTES].decode(errors="ignore")
    body = _pack([reply.request_id, reply.granted, reply.epoch, reply.holder, reason])
    return _pack(["answer", VERSION, body, _mac(key, _ANSWER_LABEL, nonce, body)])


def standing_answer(request: Look, standing: Standing) -> Answer:
    """The answer to a look: it grants nothing."""
    return Answer(
        request_id=request.request_id,
        granted=False,
        epoch=standing.epoch,
        holder=standing.holder,
        reason="",
        reachable=True,
    )


def read_answer(data: bytes, key: bytes, nonce: bytes) -> Answer:
    """Raises NotAuthentic, BadMessage, OtherVersion, ErrorSaid."""
    body, mac = _open(data, "answer", 2)
    if not isinstance(body, bytes) or not isinstance(mac, bytes) or len(mac) != MAC_BYTES:
        raise BadMessage("an answer that is not formed like one")
    if not hmac.compare_digest(mac, _mac(key, _ANSWER_LABEL, nonce, body)):
        raise NotAuthentic("the answer was not made with the pair's key")
    match _unpack(body):
        case (request_id, bool() as grant, epoch, holder, str() as reason) if is_id(request_id) and is_epoch(epoch):
            try:
                Standing(epoch, holder)
            except ValueError as error:
                raise BadMessage(f"an answer that makes no sense: {error}") from error
            return Answer(
                request_id=request_id, granted=grant, epoch=epoch, holder=holder, reason=reason, reachable=True
            )
    raise BadMessage("an answer that is not formed like one")


def error(text: str) -> bytes:
    return _pack(["error", VERSION, text.encode()[:REASON_BYTES].decode(errors="ignore")])


def _mac(key: bytes, label: bytes, nonce: bytes, body: bytes) -> bytes:
    assert len(key) == KEY_BYTES and len(nonce) == NONCE_BYTES, "fixed lengths: no two inputs look the same joined"
    return hmac.digest(key, label + nonce + body, "sha256")


def _open(data: bytes, tag: str, fields: int) -> tuple[Any, ...]:
    """The fields of a message after its tag and version. The first two have the same place in every version."""
    message = _unpack(data)
    if not isinstance(message, tuple) or len(message) < 3 or not isinstance(message[0], str):
        raise BadMessage("something that is not a message of a witness or its clients")
    if type(message[1]) is not int:
        raise BadMessage("a message without a version")
    if message[1] != VERSION:
        raise OtherVersion(
            f"version {message[1]} of the protocol, this program speaks {VERSION}: upgrade the older end"
        )
    if message[0] == "error" and len(message) == 3 and isinstance(message[2], str):
        raise ErrorSaid("".join(letter if letter.isprintable() else "?" for letter in message[2][:REASON_BYTES]))
    if message[0] != tag or len(message) != 2 + fields:
        raise BadMessage(f"a message that is not the {tag} expected here")
    return message[2:]


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as reason:
        raise BadMessage("bytes that are not msgpack") from reason
