"""Which authentic pulses are believed: nothing recorded earlier, nothing sent to somebody else. Pure code.

Knows: incarnations, counters, challenges. Must not know: sockets, clocks, randomness (new challenges are arguments).

A process has a random incarnation id and counts its datagrams on each network. Within the incarnation that is believed
a counter counts once; one that is WINDOW or more behind the highest is refused unseen. That stops recordings as long as
neither side restarts. For restarts each process sends a *challenge*, a random number, and returns the peer's:

- A pulse of an incarnation that is not the one believed counts only if it returns my present challenge. So it was made
  after the challenge was. It is then the one believed, the former one is retired, and I make a new challenge.
- Recordings of a retired incarnation are refused because their challenge is no longer mine, however many restarts ago
  that was; the last RETIRED ones also by name, so that a process that was replaced, but still runs, stays replaced.
- I have restarted and know nothing: my challenge is new, so nothing recorded before my start can return it. The peer
  may be the same process as before, of which there are recordings that I have forgotten. So each network begins anew
  as well, with a pulse that returns a challenge of mine, and what was counted before that one is refused.
- To be believed the peer must have heard me. So I also return the challenges of pulses that I do not believe yet.
  Two servers that both start need one and a half exchanges, and a pulse is sent at once when the echoes change.

A counter of boots on disk instead would need a durable write at each start and would lock a server out for ever whose
disk was restored from a backup.

What remains: someone who can hold back datagrams can deliver those of a process that was never heard in place of its
successor's, once, until the successor's next pulse. And who can flood the port with recordings can crowd out the
challenge of a start that is not proven yet, but not that of the one believed. Pulses only propose, and consent needs
the id of a fresh request, so neither makes two servers run one module.

A server that hears its peer but is not heard by it cannot prove a restart of the peer: such a peer counts as unheard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hotpair.cluster.pulse import ECHOES, Pulse, PulseRefused, Refusal

WINDOW = 64  # datagrams of one network that may overtake each other: two rounds of a full pair
RETIRED = 16  # incarnations remembered by name

# What to do about a pulse with the right key that is still not for us.
_MISDIRECTED = "Check the names, networks and addresses in cluster.toml on both servers"


@dataclass(frozen=True)
class Line:
    """What came from the believed incarnation on one network, from counter `first` on.

    Bit i of `seen`: counter `highest` - i has come.
    """

    first: int
    highest: int
    seen: int
    received: int

    @property
    def lost(self) -> int:
        """Datagrams sent since the first one heard that did not come (or are still on their way)."""
        return self.highest - self.first + 1 - self.received


@dataclass(frozen=True)
class Guard:
    """What one process remembers.

    challenge       my present one
    proved_by       my challenge that the incarnation believed has returned
    candidates      (incarnation, challenge) of authentic pulses that were not proved to be new, the latest first
    """

    me: str
    peer: str
    challenge: bytes
    believed: bytes | None = None
    proved_by: bytes | None = None
    peer_challenge: bytes | None = None
    peer_round: int = 0
    lines: Mapping[str, Line] = field(default_factory=dict)
    retired: tuple[bytes, ...] = ()
    candidates: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def echoes(self) -> tuple[bytes, ...]:
        """The challenges to return in the next pulse."""
        own = () if self.peer_challenge is None else (self.peer_challenge,)
        return (*own, *(challenge for _, challenge in self.candidates))[:ECHOES]


@dataclass(frozen=True)
class Judged:
    """`fresh`: it returns my present challenge, so it was made after that. Refused or not, keep the new guard."""

    guard: Guard
    refused: PulseRefused | None
    fresh: bool = False


def renew(guard: Guard, challenge: bytes) -> Guard:
    """A new challenge: from now on only what was made from now on is fresh (after a suspension of this server)."""
    return replace(guard, challenge=challenge)


def judge(guard: Guard, pulse: Pulse, network: str, next_challenge: bytes) -> Judged:
    """Whether to believe an authentic pulse that arrived on `network`. `next_challenge` is random and unused."""
    assert next_challenge != guard.challenge, "a challenge is used once"
    if (misdirected := _misdirected(guard, pulse, network)) is not None:
        return Judged(guard, misdirected)
    if pulse.incarnation in guard.retired:
        return Judged(guard, _replayed("it comes from a process that its own successor has replaced"))
    fresh = guard.challenge in pulse.echoes
    if pulse.incarnation == guard.believed:
        return _count(guard, pulse, fresh)
    if not fresh:
        return Judged(_with_candidate(guard, pulse), _unproven())
    successor = replace(
        guard,
        challenge=next_challenge,
        believed=pulse.incarnation,
        proved_by=guard.challenge,
        peer_challenge=pulse.challenge,
        peer_round=pulse.round,
        lines={},
        retired=guard.retired if guard.believed is None else (guard.believed, *guard.retired)[:RETIRED],
    )
    return _count(successor, pulse, fresh)


def _misdirected(guard: Guard, pulse: Pulse, network: str) -> PulseRefused | None:
    if pulse.sender == guard.me:
        text = f"it says that it comes from {guard.me}, which is this server. {_MISDIRECTED}"
    elif pulse.sender != guard.peer:
        text = f"it comes from {pulse.sender}, the peer is {guard.peer}. {_MISDIRECTED}"
    elif pulse.network != network:
        text = f"it was sent on network {pulse.network} and arrived on {network}. {_MISDIRECTED}, and the cabling"
    else:
        return None
    return PulseRefused(Refusal.MISDIRECTED, text)


def _replayed(what: str) -> PulseRefused:
    return PulseRefused(
        Refusal.REPLAYED,
        f"{what}. A few are normal on a network that repeats or delays packets; many mean that someone sends "
        "recordings: check who can reach this network",
    )


def _unproven() -> PulseRefused:
    return PulseRefused(
        Refusal.UNPROVEN,
        "it does not show that it was made after this server began to listen. Normal for a moment after a start; "
        "if it lasts, this server's pulses do not reach the peer: check its firewall and the network in that direction",
    )


def _with_candidate(guard: Guard, pulse: Pulse) -> Guard:
    others = tuple(entry for entry in guard.candidates if entry[0] != pulse.incarnation)
    room = ECHOES - (guard.peer_challenge is not None)
    return replace(guard, candidates=((pulse.incarnation, pulse.challenge), *others)[:room])


def _count(guard: Guard, pulse: Pulse, fresh: bool) -> Judged:
    """A pulse of the incarnation believed: each counter counts once."""
    line = guard.lines.get(pulse.network)
    if line is None:
        if not fresh and guard.proved_by not in pulse.echoes:
            return Judged(_with_candidate(guard, pulse), _unproven())
        line = Line(pulse.counter, pulse.counter, 1, 1)
    elif pulse.counter > line.highest:
        seen = ((line.seen << min(pulse.counter - line.highest, WINDOW)) | 1) & ((1 << WINDOW) - 1)
        line = Line(line.first, pulse.counter, seen, line.received + 1)
    else:
        bit = 1 << min(line.highest - pulse.counter, WINDOW)
        if line.highest - pulse.counter >= WINDOW:
            return Judged(guard, _replayed(f"it is {line.highest - pulse.counter} behind the latest"))
        if pulse.counter < line.first:
            return Judged(guard, _replayed("it was sent before the first one that was proved to be new"))
        if line.seen & bit:
            return Judged(guard, _replayed("it has come before"))
        line = Line(line.first, line.highest, line.seen | bit, line.received + 1)
    others = tuple(entry for entry in guard.candidates if entry[0] != pulse.incarnation)
    counted = replace(guard, lines={**guard.lines, pulse.network: line}, candidates=others)
    if pulse.round >= guard.peer_round:  # over several networks an older one may come later
        counted = replace(counted, peer_challenge=pulse.challenge, peer_round=pulse.round)
    return Judged(counted, None, fresh)
