"""How the two servers know each other over HTTP: by the pair's key, with TLS and without. Pure.

The asker gets a challenge first, which costs the other server nothing and is worth nothing by itself; it proves that
it has the key with a MAC over the challenge, who asks whom, and the whole request. A challenge is good once and for a
short time, by the clock of the server that made it alone: a request that was listened to is of no use to anybody,
and the servers' clocks may differ. The answer carries a MAC over the same challenge, so that it is the peer's, to this
request. What is said is secret only under TLS.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

CHALLENGE_S = 30.0  # from a challenge to the request: a round trip
USED = 1024  # challenges of genuine requests that are remembered until they expire; more are refused
SCHEME = "Hotpair-Pair"
ANSWER_HEADER = "Hotpair-Answer"
RANDOM_BYTES = 16
_LABEL = b"hotpair pair channel 1"


class NotThePeer(Exception):
    """The request does not come from the peer, or not now; the text says which, and is for its operator."""


def channel_key(pair_key: bytes) -> bytes:
    """The pulses' key is the same; what is made for one is of no use for the other."""
    return hmac.digest(pair_key, _LABEL, "sha256")


def request_mac(key: bytes, challenge: str, sender: str, receiver: str, method: str, path: str, body: bytes) -> str:
    return _mac(key, b"request", challenge.encode(), sender.encode(), receiver.encode(), method.encode(),
                path.encode(), body)  # fmt: skip


def answer_mac(key: bytes, challenge: str, sender: str, receiver: str, status: int, body: bytes) -> str:
    return _mac(key, b"answer", challenge.encode(), sender.encode(), receiver.encode(), b"%d" % status, body)


def _mac(key: bytes, *parts: bytes) -> str:
    """Each part with its length before it: what stands in one cannot be taken for the next."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "big") + part)
    return mac.hexdigest()


class PairGate:
    """The side that is asked. `clock` in seconds, monotonic; `random` gives so many unpredictable bytes."""

    def __init__(
        self, pair_key: bytes, here: str, peer: str, *, clock: Callable[[], float], random: Callable[[int], bytes]
    ) -> None:
        self._key = channel_key(pair_key)
        self._here = here
        self._peer = peer
        self._clock = clock
        self._random = random
        self._own = random(32)  # marks what this process has made; nothing needs to be kept for it
        self._used: dict[str, float] = {}

    def challenge(self) -> str:
        made = f"{self._clock():.3f}:{self._random(RANDOM_BYTES).hex()}"
        return f"{made}:{_mac(self._own, made.encode())}"

    def admit(self, authorization: str, method: str, path: str, body: bytes) -> str:
        """The challenge of a genuine request. Raises NotThePeer."""
        scheme, _, said = authorization.partition(" ")
        challenge, _, mac = said.strip().rpartition(":")
        if scheme != SCHEME or not challenge:
            raise NotThePeer(f"this is for {self._peer} only, with the pair's key")
        expires = self._expires(challenge)
        expected = request_mac(self._key, challenge, self._peer, self._here, method, path, body)
        if not hmac.compare_digest(expected.encode(), mac.encode()):
            raise NotThePeer(
                f"{self._here} does not take this for a request of {self._peer}: the pair's key (key_file in "
                "cluster.toml) must be the same on both servers"
            )
        now = self._clock()
        self._used = {one: until for one, until in self._used.items() if until >= now}
        if expires < now or challenge in self._used or len(self._used) >= USED:
            raise NotThePeer("the request has come too late, or a second time: try again")
        self._used[challenge] = expires
        return challenge

    def _expires(self, challenge: str) -> float:
        made, _, mac = challenge.rpartition(":")
        if not hmac.compare_digest(_mac(self._own, made.encode()).encode(), mac.encode()):
            raise NotThePeer("the challenge was made by another process: try again")
        return float(made.partition(":")[0]) + CHALLENGE_S

    def seal(self, challenge: str, status: int, body: bytes) -> str:
        """The answer's MAC."""
        return answer_mac(self._key, challenge, self._here, self._peer, status, body)
