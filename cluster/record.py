"""The durable record of one module on one server: its form, its named changes, and what two of them say together.

Knows: the fields, their bytes, the table "Meeting the peer". Must not know: files, clocks, randomness, the network.
Source of the rules: design/protocol.md, "What each server remembers" and "Meeting the peer"; [Rn] is a rule of the
model checked there. Each change here is one write of the record: the caller makes it durable before it acts on it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, get_args

import msgpack

LastRole = Literal["STOP", "WAIT", "ALONE", "PRIM", "SECOND"]

MAGIC = b"HOTPREC\n"
VERSION = 2
ID_BYTES = 16
ANCESTORS = (
    16  # generations remembered; a peer further behind is compared in full as unrelated, by the operator's choice
)
TEXT_BYTES = 128  # boot id and configuration digest: far more than a UUID or a SHA-512 needs
LARGEST_RECORD_BYTES = 4096  # before anything is decoded; all fields at their limits need less than 1 KiB

# The envelope is the same in every version: magic, version, length of the payload, payload, sha256 of all before it.
_ENVELOPE = struct.Struct("<8sHI")
_DIGEST_BYTES = hashlib.sha256().digest_size


class RecordDamaged(Exception):
    """The bytes are not a record as it was written. Never treated as an empty record: the operator decides."""

    def __init__(self, reason: str, path: str | None = None) -> None:
        where = f"the module's record {path}" if path else "the module's record"
        super().__init__(
            f"{where} is damaged: {reason}. Check this server's disk; do not put back an older one, which would say "
            'what the copy was worth then (docs/commands.md, "A record that cannot be read")'
        )
        self.reason = reason


class RecordVersion(Exception):
    """A sound record, written by another version of the program."""

    def __init__(self, version: int, path: str | None = None) -> None:
        where = f"the module's record {path}" if path else "the module's record"
        super().__init__(
            f"{where} has format version {version}, this program reads {VERSION}: start the program that wrote it, or "
            "upgrade this one"
        )
        self.version = version


@dataclass(frozen=True, kw_only=True)
class Record:
    """Ids are 16 bytes. `epoch` and `term` count from 0 and never go back on a disk.

    generation      names the lineage of the data; a new one is random
    ancestors       the generations before it, newest first, at most 16
    base            the generation in which the peer was last in sync
    epoch           the arbiter's epoch under which this copy was current
    term            incremented at each change of primary
    solo            goes on alone in this generation
    boot            the host boot id under which this copy was current
    configuration   digest of the module's configuration
    root            id of the module's root directory: another directory there is never taken for an empty module
    log_counter     counter in the header of the dirty log that belongs to this record
    copy            id of this server's copy: the directory of the other one is never taken for it; None in a record
                    of version 1, until its copy has been given one
    """

    generation: bytes
    ancestors: tuple[bytes, ...] = ()
    base: bytes | None = None
    epoch: int = 0
    term: int = 0
    last_role: LastRole
    in_sync: bool = False
    solo: bool = False
    inconsistent: bool = False
    outdated: bool = False
    boot: str
    configuration: bytes
    root: bytes
    log_counter: int = 0
    copy: bytes | None = None

    def __post_init__(self) -> None:
        """ValueError for what no program may write."""
        ids = (self.generation, self.root, *self.ancestors)
        ids += tuple(value for value in (self.base, self.copy) if value is not None)
        _require(isinstance(self.ancestors, tuple), "ancestors")
        _require(all(isinstance(value, bytes) and len(value) == ID_BYTES for value in ids), "an id")
        _require(self.generation != bytes(ID_BYTES), "the generation")
        _require(len(self.ancestors) <= ANCESTORS, "ancestors")
        for name in ("epoch", "term", "log_counter"):
            value = getattr(self, name)
            _require(type(value) is int and 0 <= value < 2**64, name)
        for name in ("in_sync", "solo", "inconsistent", "outdated"):
            _require(type(getattr(self, name)) is bool, name)
        _require(self.last_role in get_args(LastRole), "last_role")
        _require(isinstance(self.boot, str) and len(self.boot.encode(errors="replace")) <= TEXT_BYTES, "boot")
        _require(isinstance(self.configuration, bytes) and len(self.configuration) <= TEXT_BYTES, "configuration")


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(f"{name} is not what a record may hold")


_FIELDS = tuple(Record.__dataclass_fields__)
_FIELDS_OF_VERSION = {1: _FIELDS[:-1], VERSION: _FIELDS}  # a record of version 1 is read, never written


def encode(record: Record) -> bytes:
    payload: bytes = msgpack.packb([getattr(record, name) for name in _FIELDS])
    body = _ENVELOPE.pack(MAGIC, VERSION, len(payload)) + payload
    return body + hashlib.sha256(body).digest()


def decode(data: bytes) -> Record:
    """The record in `data`, all of it. Raises RecordDamaged or RecordVersion."""
    if not data:
        raise RecordDamaged("the file is empty")
    if len(data) > LARGEST_RECORD_BYTES:
        raise RecordDamaged(f"it has {len(data)} bytes, a record has at most {LARGEST_RECORD_BYTES}")
    if len(data) < _ENVELOPE.size + _DIGEST_BYTES:
        raise RecordDamaged(f"it ends after {len(data)} bytes")
    magic, version, length = _ENVELOPE.unpack_from(data)
    if magic != MAGIC:
        raise RecordDamaged("it does not begin like a record")
    expected = _ENVELOPE.size + length + _DIGEST_BYTES
    if len(data) != expected:
        what = "it is cut off" if len(data) < expected else "something follows it"
        raise RecordDamaged(f"{what}: {len(data)} bytes instead of {expected}")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise RecordDamaged("its checksum is wrong")
    fields = _FIELDS_OF_VERSION.get(version)
    if fields is None:
        raise RecordVersion(version)
    try:
        values: Any = msgpack.unpackb(data[_ENVELOPE.size : -_DIGEST_BYTES], use_list=False)
        if not isinstance(values, tuple) or len(values) != len(fields):
            raise ValueError("the number of fields is not this version's")
        return Record(**dict(zip(fields, values, strict=True)))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordDamaged(f"its content makes no sense ({error})") from error


# ---- changes


def go_alone(
    record: Record, new_generation: bytes, *, granted_epoch: int | None = None, boot: str | None = None
) -> Record:
    """This server goes on alone: a new generation whose base is the old one, `solo`, role ALONE, no longer in sync.

    A server that is solo already keeps its generation [R14]: stage the dirty log's GENERATION record only if the
    result's generation differs, and make that durable before this record. `granted_epoch` is the arbiter's, recorded
    in this same write [R2]. `boot` is this host's boot id now: the copy is current under it (None leaves the old one,
    which can only make this server yield). The term rises if the peer was primary.
    """
    assert not record.inconsistent and not record.outdated, "an inconsistent or outdated copy never goes alone"
    assert granted_epoch is None or granted_epoch >= record.epoch, "epochs never go backwards"
    alone = replace(
        record,
        last_role="ALONE",
        solo=True,
        in_sync=False,
        epoch=record.epoch if granted_epoch is None else granted_epoch,
        boot=record.boot if boot is None else boot,
        term=record.term + (record.last_role == "SECOND"),
    )
    if record.solo:
        return alone
    assert new_generation != record.generation and new_generation not in record.ancestors, "not a new generation"
    ancestors = (record.generation, *record.ancestors)[:ANCESTORS]
    return replace(alone, generation=new_generation, base=record.generation, ancestors=ancestors)


def begin_reintegration_as_target(record: Record, source_generation: bytes) -> Record:
    """Before the first byte changes: inconsistent, and in the same write the source's generation [R14].

    So it is neither in sync nor solo any more (both say something about the generation it had), and its role is
    SECOND. Ancestors and base stay until `take_sync_as_target` brings the source's: an inconsistent copy is never
    a source, so nobody follows them. `outdated` stays too; only being in sync clears it.
    """
    return replace(
        record, generation=source_generation, inconsistent=True, in_sync=False, solo=False, last_role="SECOND"
    )


def offer_sync_as_source(record: Record) -> Record:
    """Before "you are in sync" is sent: no longer solo, in sync, PRIM, in one write [R1].

    From here on the peer may hold an identical copy and take over, so PRIM's rules hold: arbitration on link loss.
    """
    assert not record.inconsistent and not record.outdated, "only a current copy is offered"
    return replace(record, solo=False, in_sync=True, last_role="PRIM")


def take_sync_as_target(record: Record, source: Record, *, boot: str | None = None) -> Record:
    """On "you are in sync": the source's generation with its lineage, its epoch and term; in sync, in one write [R1].

    The epoch never goes backwards on a disk; the term is exactly the source's, or a former primary's higher one would
    win the next meeting against PRIM. `boot` is this host's boot id now, never the source's (None: see go_alone).
    A dirty log that this copy had as a source went to the other side when the reintegration began: none belongs to it
    (`log_counter` 0), and if it takes over, a missing one is no reason to compare everything.
    """
    assert source.in_sync and not source.solo, "the source records its offer before it makes it"
    assert source.root == record.root, "another module"
    return replace(
        record,
        generation=source.generation,
        ancestors=source.ancestors,
        base=source.base,
        epoch=max(record.epoch, source.epoch),
        term=source.term,
        last_role="SECOND",
        in_sync=True,
        solo=False,
        inconsistent=False,
        outdated=False,
        boot=record.boot if boot is None else boot,
        log_counter=0,
    )


def take_over(record: Record, primary: Record, *, boot: str | None = None) -> Record:
    """A planned handover, on the server that is to run the VM next: PRIM, with a higher term, in one write.

    Both copies are flushed and equal, and the one that asks, `primary`, holds its writes until it has heard the answer.
    Only a copy in sync with it takes over. Generation and lineage stay: nothing was written that the peer lacks, and
    `in_sync` stays with them. No dirty log belongs to this copy yet (`log_counter` 0): an empty one is right, a missing
    one no reason to compare everything. `boot` is this host's boot id now (None: see go_alone).
    """
    assert record.in_sync and not record.solo, "only a copy in sync takes over"
    assert not record.inconsistent and not record.outdated, "an inconsistent or outdated copy never takes over"
    assert primary.in_sync and primary.generation == record.generation, "handed over by its own primary only"
    return replace(
        record,
        last_role="PRIM",
        term=max(record.term, primary.term) + 1,
        boot=record.boot if boot is None else boot,
        log_counter=0,
    )


def hand_over(record: Record, successor: Record) -> Record:
    """A planned handover, on the server that has asked for it, after the answer: SECOND, with the successor's term.

    If this write is lost, the higher term of the successor says the same at the next meeting.
    """
    assert successor.generation == record.generation and successor.last_role == "PRIM", "the peer has taken over"
    assert successor.term > record.term, "a change of primary has a higher term"
    return replace(record, last_role="SECOND", term=successor.term)


def mark_outdated(record: Record) -> Record:
    """The peer has newer data, or this copy gave its consent to that [R3, R15]. Both copies are flushed before [R11].

    Nothing else changes: when `clear_outdated` takes it back, the copy is what it was.
    """
    return replace(record, outdated=True)


def clear_outdated(record: Record) -> Record:
    """The peer, with the same generation, was found inconsistent or outdated as well [R4]."""
    return replace(record, outdated=False)


def give_up(record: Record) -> Record:
    """The loser of a split brain, chosen by the operator or the policy: this copy is to be overwritten.

    Inconsistent in one write, so that it can never be run; generation and base stay, so that the table finds the
    choice made ("both solo from the same base, one inconsistent") and copies the union of the logs.
    """
    return replace(record, inconsistent=True, in_sync=False)


def give_up_all(record: Record, new_generation: bytes) -> Record:
    """The operator gives up this copy altogether (second --full): unrelated to the peer's, so compared in full."""
    return replace(
        record,
        generation=new_generation,
        ancestors=(),
        base=None,
        inconsistent=True,
        in_sync=False,
        solo=False,
        outdated=False,
    )


def override(
    record: Record, new_generation: bytes, *, granted_epoch: int | None = None, boot: str | None = None
) -> Record:
    """The operator declares this copy current against all odds (prim --force): a new generation without a base.

    So the next meeting finds an ancestor or nothing known, and compares in full. One that was inconsistent or outdated
    descends from nothing: should a better one turn up after all, nothing is copied over it before the operator chooses.
    """
    sound = replace(record, solo=False, inconsistent=False, outdated=False)
    fresh = replace(go_alone(sound, new_generation, granted_epoch=granted_epoch, boot=boot), base=None)
    return fresh if is_usable(record) else replace(fresh, ancestors=())


def is_usable(record: Record | None) -> bool:
    """Whether a VM could be run on a copy with this record."""
    return record is not None and not record.inconsistent and not record.outdated


def agree_on_epoch(record: Record, epoch: int) -> Record:
    """Epoch agreement [R6]: the server that the arbiter names first, then the other. Epochs never go backwards."""
    return replace(record, epoch=max(record.epoch, epoch))


# ---- meeting the peer


class Side(Enum):
    ME = "me"
    PEER = "peer"
    NOBODY = "nobody"

    def swapped(self) -> Side:
        """The same side, seen by the peer."""
        return {Side.ME: Side.PEER, Side.PEER: Side.ME, Side.NOBODY: Side.NOBODY}[self]


class Copying(Enum):
    """What is copied to the target (or will be, once the operator has chosen the source)."""

    LOGS_ONLY = "nothing beyond the logs"
    UNION = "union of the logs"
    FULL = "full comparison"


class Rule(Enum):
    """The rows of the table, in its order; REFUSED stands for every row whose source would be inconsistent."""

    NO_RECORD = "no record on either"
    NO_RECORD_ON_ONE = "no record on one"
    BOTH_INCONSISTENT = "both inconsistent"
    SAME_ONE_INCONSISTENT = "same generation, one inconsistent"
    SAME_ONE_SOLO = "same generation, one solo"
    SAME_ONE_OUTDATED = "same generation, one outdated"
    SAME = "same generation"
    SPLIT_DECIDED = "both solo from the same base, one inconsistent"
    SPLIT_BRAIN = "both solo from the same base"
    BASE = "one is the other's base"
    ANCESTOR = "one is among the other's ancestors"
    GIVEN_UP = "neither descends from the other, one inconsistent"
    UNRELATED = "neither descends from the other"
    REFUSED = "the newer copy is inconsistent"


@dataclass(frozen=True)
class Meeting:
    """What two records say together. `source` NOBODY: WAIT for the operator (or the split brain policy).

    `reason` is one sentence for the operator, seen from this server.
    """

    rule: Rule
    source: Side
    copying: Copying
    reason: str

    @property
    def no_record(self) -> bool:
        return self.rule is Rule.NO_RECORD

    @property
    def both_inconsistent(self) -> bool:
        return self.rule is Rule.BOTH_INCONSISTENT

    @property
    def split_brain(self) -> bool:
        return self.rule is Rule.SPLIT_BRAIN

    @property
    def unrelated(self) -> bool:
        return self.rule is Rule.UNRELATED


_NAMES = {Side.ME: "this server", Side.PEER: "the peer", Side.NOBODY: "nobody"}


def meet(
    mine: Record | None,
    peer: Record | None,
    my_boot_unchanged: bool,
    peer_boot_unchanged: bool,
    *,
    first: Side,
    preferred: Side = Side.NOBODY,
    data_on: Side = Side.NOBODY,
) -> Meeting:
    """The table "Meeting the peer": the first row that matches.

    `*_boot_unchanged`: that server has not rebooted since its copy was current. `first`: which of the two is the
    first server of cluster.toml (ME or PEER, the last tie-break). `preferred`: the module's preferred server.
    `data_on`: where the module was created with its data; counts only while neither server has a record.
    """
    assert first is not Side.NOBODY, "one of the two servers is the first"
    if mine is None and peer is None:
        if data_on is Side.NOBODY:
            reason = "Neither server has a record of this module: say on the server with the current copy that it is."
            return Meeting(Rule.NO_RECORD, Side.NOBODY, Copying.FULL, reason)
        reason = f"Neither server has a record; the module was created with its data on {_NAMES[data_on]}."
        return Meeting(Rule.NO_RECORD, data_on, Copying.FULL, reason)
    if mine is None or peer is None:
        source = Side.PEER if mine is None else Side.ME
        reason = f"Only {_NAMES[source]} has a record of this module."
        return _unless_inconsistent(Rule.NO_RECORD_ON_ONE, source, Copying.FULL, reason, mine, peer)
    if mine.inconsistent and peer.inconsistent:
        reason = "Both copies are inconsistent: say which one is to be used, or restore a backup."
        return Meeting(Rule.BOTH_INCONSISTENT, Side.NOBODY, Copying.FULL, reason)
    if mine.generation == peer.generation:
        return _meet_in_one_generation(mine, peer, my_boot_unchanged, peer_boot_unchanged, preferred, first)
    if mine.solo and peer.solo and mine.base is not None and mine.base == peer.base:
        source = _the_other(mine.inconsistent, peer.inconsistent)
        if source is not Side.NOBODY:
            reason = f"Both servers had gone on alone; {_NAMES[source]} was chosen before, the other is half copied."
            return Meeting(Rule.SPLIT_DECIDED, source, Copying.UNION, reason)
        reason = "Split brain: both servers went on alone from the same data; choose whose changes are kept."
        return Meeting(Rule.SPLIT_BRAIN, Side.NOBODY, Copying.UNION, reason)
    return _meet_along_ancestors(mine, peer)


def _meet_in_one_generation(
    mine: Record, peer: Record, my_boot_unchanged: bool, peer_boot_unchanged: bool, preferred: Side, first: Side
) -> Meeting:
    if (source := _the_other(mine.inconsistent, peer.inconsistent)) is not Side.NOBODY:
        reason = f"The copy of {_NAMES[source.swapped()]} is inconsistent, {_NAMES[source]} has the same generation."
        return Meeting(Rule.SAME_ONE_INCONSISTENT, source, Copying.UNION, reason)
    if (source := _the_one(mine.solo, peer.solo)) is not Side.NOBODY:
        reason = f"Only {_NAMES[source]} went on alone in this generation."
        return Meeting(Rule.SAME_ONE_SOLO, source, Copying.UNION, reason)
    if (source := _the_other(mine.outdated, peer.outdated)) is not Side.NOBODY:
        reason = f"The copy of {_NAMES[source.swapped()]} is outdated, {_NAMES[source]} has the same generation."
        return Meeting(Rule.SAME_ONE_OUTDATED, source, Copying.UNION, reason)
    tie_breaks = (
        (_the_one(my_boot_unchanged, peer_boot_unchanged), "did not reboot since its copy was current [R11]"),
        (_the_one(mine.term > peer.term, peer.term > mine.term), "became primary later"),
        (_the_one(mine.last_role in ("PRIM", "ALONE"), peer.last_role in ("PRIM", "ALONE")), "ran the VM last"),
        (preferred, "is the preferred server"),
        (first, "is the first server"),
    )
    source, why = next((side, why) for side, why in tie_breaks if side is not Side.NOBODY)
    reason = f"Both copies have the same generation; {_NAMES[source]} {why}."
    return Meeting(Rule.SAME, source, Copying.LOGS_ONLY, reason)


def _meet_along_ancestors(mine: Record, peer: Record) -> Meeting:
    source = _the_one(mine.base == peer.generation, peer.base == mine.generation)
    behind = _NAMES[source.swapped()]
    reason = f"{_NAMES[source].capitalize()} went on alone from the generation that {behind} has."
    rule, copying = Rule.BASE, Copying.UNION
    i_descend = peer.generation in (mine.base, *mine.ancestors)
    peer_descends = mine.generation in (peer.base, *peer.ancestors)
    if i_descend and peer_descends:  # no history leads to that: believe neither
        reason = "Each record names the other's generation as older: choose whose copy is used."
        return Meeting(Rule.UNRELATED, Side.NOBODY, Copying.FULL, reason)
    if source is Side.NOBODY:
        source = _the_one(i_descend, peer_descends)
        behind = _NAMES[source.swapped()]
        reason = f"The generation of {behind} is an earlier one of {_NAMES[source]}'s copy."
        rule, copying = Rule.ANCESTOR, Copying.FULL
    if source is Side.NOBODY and (source := _the_other(mine.inconsistent, peer.inconsistent)) is not Side.NOBODY:
        reason = f"The copy of {_NAMES[source.swapped()]} was given up; nothing of it is used."
        return Meeting(Rule.GIVEN_UP, source, Copying.FULL, reason)
    if source is Side.NOBODY:
        reason = "The copies are unrelated, neither descends from the other: choose whose copy is used."
        return Meeting(Rule.UNRELATED, Side.NOBODY, Copying.FULL, reason)
    return _unless_inconsistent(rule, source, copying, reason, mine, peer)


def _the_one(mine: bool, peer: bool) -> Side:
    """The side of which alone it is true."""
    if mine == peer:
        return Side.NOBODY
    return Side.ME if mine else Side.PEER


def _the_other(mine: bool, peer: bool) -> Side:
    """The side of which alone it is not true."""
    return _the_one(mine, peer).swapped()


def _unless_inconsistent(
    rule: Rule, source: Side, copying: Copying, reason: str, mine: Record | None, peer: Record | None
) -> Meeting:
    """A half-copied disk is never a source, whatever its generation says: its own source must come back."""
    record = mine if source is Side.ME else peer
    if record is not None and record.inconsistent:
        why = f"{reason[:-1]}, but its copy is inconsistent: bring back the server it was copied from, or choose."
        return Meeting(Rule.REFUSED, Side.NOBODY, Copying.FULL, why)
    return Meeting(rule, source, copying, reason)
