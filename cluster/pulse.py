"""The pulse: what one server tells the other twice a second over every network, as bytes. Pure code.

Knows: the fields, their bytes, their limits, the authentication. Must not know: sockets, clocks, randomness, who is
believed (that is pulse_guard.py) and what follows from it (failure_detector.py, the state machine).

Each datagram stands for itself: the header says who speaks, and the views of as many modules follow as fit. With few
modules that is one datagram; with many the views are spread over several, numbered within their round, and there is
nothing to reassemble. A lost one costs nothing, the next round says everything again.

The envelope is the same in every version, so that servers of different versions can tell each other so:
magic (4 bytes), version (2, big-endian), payload, HMAC-SHA256 (32) of everything before it with the pair's key.
The payload is one msgpack array of the header's fields, in the order of `Pulse`, the module views last.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from struct import Struct
from typing import Any, get_args

import msgpack

from hotpair.cluster.admission import MODULES_PER_PAIR, is_name
from hotpair.cluster.record import VERSION as RECORD_VERSION
from hotpair.cluster.record import LastRole, Record, RecordDamaged, RecordVersion
from hotpair.cluster.record import decode as decode_record
from hotpair.cluster.record import encode as encode_record
from hotpair.cluster.split_brain import MANUAL, is_policy

MAGIC = b"HPLS"
VERSION = 2
KEY_BYTES = 32  # as many as the digest has; a longer key gains nothing, a shorter one is guessed more easily
ID_BYTES = 16
TEXT_BYTES = 128  # boot id and digests, as in the record
NETWORKS = 4  # two are usual; each costs a datagram per round and module
ECHOES = 4  # challenges answered at once: the peer's own, and those of starts of it that are not proven yet
DATAGRAM_BYTES = 1200  # of pulse: fits the smallest frame that IPv6 allows (1280), so nothing is fragmented
LARGEST_PULSE_BYTES = 4096  # before anything is decoded; one module with every field at its limit needs less

_HEAD = Struct(">4sH")
_MAC_BYTES = hashlib.sha256().digest_size
_STATES: tuple[LastRole, ...] = get_args(LastRole)


class Refusal(Enum):
    """Why a pulse is not believed."""

    WRONG_KEY = "wrong key"
    OTHER_VERSION = "other version"
    TOO_LARGE = "too large"
    MALFORMED = "malformed"
    REPLAYED = "replayed"
    UNPROVEN = "unproven"
    MISDIRECTED = "misdirected"


class PulseRefused(Exception):
    """A pulse that is not believed, with the reason and what to do about it."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(f"pulse refused, {reason.value}: {text}")
        self.reason = reason


class DataStatus(Enum):
    """What a server says about its copy of a module."""

    UP_TO_DATE = "up to date"
    NOT_UP_TO_DATE = "not up to date"
    INCONSISTENT = "inconsistent"
    UNKNOWN = "unknown"


_DATA_STATUSES = tuple(DataStatus)


@dataclass(frozen=True, kw_only=True)
class ModuleView:
    """What the sender knows of one module.

    ready           shown green: for SECOND, that it can take over
    record          its durable record, None if it has none
    configuration   digest of its configuration of the module
    applied         number of the last operation of the stream that it sent or applied
    bytes_left      still to be copied by a reintegration
    request         id of a question for consent that it is asking [R7], 16 bytes
    consent         id of the peer's question that it answers with yes; no other pulse is consent [R7]
    split_brain     its policy, as in its configuration
    bytes_changed   named by its dirty log since it went on alone; None when it did not, or that is not known
    yields          id of its question whether to give its copy up after a split brain, 16 bytes
    keeps           id of the peer's such question that it answers with yes
    """

    name: str
    state: LastRole
    ready: bool
    data_status: DataStatus
    record: Record | None
    configuration: bytes
    applied: int = 0
    bytes_left: int = 0
    request: bytes | None = None
    consent: bytes | None = None
    split_brain: str = MANUAL
    bytes_changed: int | None = None
    yields: bytes | None = None
    keeps: bytes | None = None

    def __post_init__(self) -> None:
        """ValueError for what no program may send."""
        _require_name(self.name)
        _require(self.state in _STATES, "state")
        _require(type(self.ready) is bool, "ready")
        _require(isinstance(self.data_status, DataStatus), "data_status")
        _require(self.record is None or isinstance(self.record, Record), "record")
        _require_digest(self.configuration)
        _require_count(self.applied)
        _require_count(self.bytes_left)
        for name in ("request", "consent", "yields", "keeps"):
            value = getattr(self, name)
            _require(value is None or _is_id(value), name)
        _require(is_policy(self.split_brain), "split_brain")
        if self.bytes_changed is not None:
            _require_count(self.bytes_changed)


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """One datagram.

    network         on which it was sent: recorded on one network it proves nothing about another
    incarnation     random id of the sender's process, 16 bytes
    counter         of this incarnation on this network, from 1, one more for each datagram
    round           of this incarnation: a view with a higher one is newer, on whichever network it came
    part, parts     which of how many datagrams of the round this is, from 1
    boot            the sender's host boot id
    challenge       random, 16 bytes: whoever returns it has heard the sender since it was made
    echoes          challenges of the receiver that the sender returns
    hears           networks on which the sender hears the receiver
    configuration   digest of the sender's cluster configuration
    """

    sender: str
    network: str
    incarnation: bytes
    counter: int
    round: int
    part: int = 1
    parts: int = 1
    boot: str
    challenge: bytes
    echoes: tuple[bytes, ...] = ()
    hears: tuple[str, ...] = ()
    configuration: bytes
    modules: tuple[ModuleView, ...] = ()

    def __post_init__(self) -> None:
        """ValueError for what no program may send."""
        for sequence in (self.echoes, self.hears, self.modules):
            _require(isinstance(sequence, tuple), "a list")
        _require(len(self.echoes) <= ECHOES and len(self.hears) <= NETWORKS, "the length of a list")
        _require(len(self.modules) <= MODULES_PER_PAIR, "the number of modules")
        for name in (self.sender, self.network, *self.hears):
            _require_name(name)
        for value in (self.incarnation, self.challenge, *self.echoes):
            _require(_is_id(value), "an id")
        for number in (self.counter, self.round, self.part, self.parts):
            _require_count(number)
        _require(self.counter > 0 and 1 <= self.part <= self.parts <= MODULES_PER_PAIR, "the numbering")
        _require(isinstance(self.boot, str) and len(self.boot.encode(errors="replace")) <= TEXT_BYTES, "boot")
        _require_digest(self.configuration)
        _require(all(isinstance(view, ModuleView) for view in self.modules), "modules")
        _require(len({view.name for view in self.modules}) == len(self.modules), "a module named twice")


_HEADER_FIELDS = tuple(field.name for field in fields(Pulse) if field.name != "modules")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} is not what a pulse may hold")


def _require_name(value: object) -> None:
    _require(isinstance(value, str) and is_name(value), "a name")


def _require_count(value: object) -> None:
    _require(type(value) is int and 0 <= value < 2**64, "a number")


def _require_digest(value: object) -> None:
    _require(isinstance(value, bytes) and len(value) <= TEXT_BYTES, "a digest")


def _is_id(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == ID_BYTES


# ---- to bytes


def pack(pulse: Pulse, key: bytes) -> list[bytes]:
    """A round for one network: `pulse` with all modules, spread over as few datagrams as they fit in.

    The datagrams take the counters `pulse.counter` and following, one each. A module whose view alone is larger than
    DATAGRAM_BYTES gets a datagram of its own, which the network may fragment.
    """
    empty = replace(pulse, modules=(), part=1, parts=1)
    room = DATAGRAM_BYTES - len(encode(empty, key)) - 8  # 8: the counter may need that many bytes more
    shares: list[list[ModuleView]] = [[]]
    used = 0
    for view in pulse.modules:
        size = len(msgpack.packb(_view_fields(view)))
        if shares[-1] and used + size > room:
            shares.append([])
            used = 0
        shares[-1].append(view)
        used += size
    return [
        encode(
            replace(pulse, counter=pulse.counter + i, part=i + 1, parts=len(shares), modules=tuple(share)),
            key,
        )
        for i, share in enumerate(shares)
    ]


def encode(pulse: Pulse, key: bytes) -> bytes:
    """One datagram with all of the pulse's modules."""
    assert len(key) == KEY_BYTES, f"the pair's key has {KEY_BYTES} bytes"
    header = [getattr(pulse, name) for name in _HEADER_FIELDS]
    payload: bytes = msgpack.packb([*header, [_view_fields(view) for view in pulse.modules]])
    body = _HEAD.pack(MAGIC, VERSION) + payload
    return body + _mac(body, key)


def _view_fields(view: ModuleView) -> list[Any]:
    return [
        view.name,
        _STATES.index(view.state),
        view.ready,
        _DATA_STATUSES.index(view.data_status),
        None if view.record is None else encode_record(view.record),
        view.configuration,
        view.applied,
        view.bytes_left,
        view.request,
        view.consent,
        view.split_brain,
        view.bytes_changed,
        view.yields,
        view.keeps,
    ]


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")


# ---- from bytes


def decode(data: bytes, key: bytes) -> Pulse:
    """The pulse in a datagram. Raises PulseRefused, and nothing else, whatever the bytes are.

    It is authentic, but may be a recording: pulse_guard.py says whether to believe it.
    """
    assert len(key) == KEY_BYTES, f"the pair's key has {KEY_BYTES} bytes"
    if len(data) > LARGEST_PULSE_BYTES:
        raise PulseRefused(
            Refusal.TOO_LARGE,
            f"more than {LARGEST_PULSE_BYTES} bytes. Something else sends to this port: check who does, or choose "
            "another port",
        )
    if len(data) < _HEAD.size + _MAC_BYTES or not data.startswith(MAGIC):
        raise PulseRefused(
            Refusal.MALFORMED,
            "it does not begin like a pulse. Something else sends to this port: check who does, or choose another port",
        )
    body = data[:-_MAC_BYTES]
    if not hmac.compare_digest(_mac(body, key), data[-_MAC_BYTES:]):
        raise PulseRefused(
            Refusal.WRONG_KEY,
            "it was made with another key, or changed on its way. Copy the key file of one server to the other, and "
            "see that no other pair uses these addresses",
        )
    _, version = _HEAD.unpack_from(body)
    if version != VERSION:
        raise _other_version("pulse", version, VERSION)
    try:
        return _pulse(msgpack.unpackb(body[_HEAD.size :], use_list=False))
    except RecordVersion as error:
        raise _other_version("record", error.version, RECORD_VERSION) from error
    except (ValueError, TypeError, RecordDamaged, msgpack.UnpackException) as error:
        raise PulseRefused(
            Refusal.MALFORMED,
            f"its content makes no sense ({error}). It has the right key, so the peer sent it: this is a fault of the "
            "program, report it",
        ) from error


def _other_version(what: str, theirs: int, ours: int) -> PulseRefused:
    older = "this server" if ours < theirs else "the peer"
    return PulseRefused(
        Refusal.OTHER_VERSION,
        f"the peer's program speaks {what} version {theirs}, this one version {ours}. Install the same version of "
        f"hotpair on both servers: upgrade {older}",
    )


def _pulse(values: Any) -> Pulse:
    """From what was unpacked. ValueError or TypeError if it is not a pulse."""
    if not isinstance(values, tuple) or len(values) != len(_HEADER_FIELDS) + 1:
        raise ValueError("the number of fields is not this version's")
    header = dict(zip(_HEADER_FIELDS, values, strict=False))
    if not isinstance(values[-1], tuple) or len(values[-1]) > MODULES_PER_PAIR:
        raise ValueError("modules is not what a pulse may hold")
    return Pulse(**header, modules=tuple(_view(view) for view in values[-1]))


def _view(values: Any) -> ModuleView:
    if not isinstance(values, tuple):
        raise ValueError("a module is not what a pulse may hold")
    name, state, ready, data_status, record, configuration, applied, bytes_left, *rest = values
    request, consent, split_brain, bytes_changed, yields, keeps = rest
    if record is not None and not isinstance(record, bytes):
        raise ValueError("record is not what a pulse may hold")
    return ModuleView(
        name=name,
        state=_entry(_STATES, state, "state"),
        ready=ready,
        data_status=_entry(_DATA_STATUSES, data_status, "data_status"),
        record=None if record is None else decode_record(record),
        configuration=configuration,
        applied=applied,
        bytes_left=bytes_left,
        request=request,
        consent=consent,
        split_brain=split_brain,
        bytes_changed=bytes_changed,
        yields=yields,
        keeps=keeps,
    )


def _entry(table: Sequence[Any], index: object, what: str) -> Any:
    if type(index) is not int or not 0 <= index < len(table):
        raise ValueError(f"{what} is not what a pulse may hold")
    return table[index]
