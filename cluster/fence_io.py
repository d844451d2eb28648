"""Fencing: a command, or a hypervisor's driver, confirms that the peer is off.

The confirmation must be about the peer's present state, not about a request to switch it off: "accepted" is no yes.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hotpair.cluster.arbitration import (
    FENCE_TIMEOUT_S,
    Answer,
    Asked,
    Claim,
    Kind,
    Standing,
    asked,
    granted,
    refused,
    refused_by_table,
    unreachable,
)

OUTPUT_BYTES = 400  # the end of what the command printed, for the operator
AFTER_KILL_S = 0.5  # a killed command that does not end hangs in the kernel; it is left there


@dataclass(frozen=True)
class PeerOff:
    """What is known about the peer: `off` None when nobody could tell. `detail` is one clause for the operator."""

    off: bool | None
    detail: str


# Is the peer really off? Gets the claim and the seconds it may take. Raises nothing: what it cannot find out is None.
Confirmation = Callable[[Claim, float], PeerOff]


class FenceArbiter:
    """Grants to a server that was live when the link broke, once the peer is known to be off."""

    kind = Kind.FENCE

    def __init__(self, is_peer_off: Confirmation, timeout_s: float = FENCE_TIMEOUT_S) -> None:
        self._is_peer_off = is_peer_off
        self._timeout_s = timeout_s

    def claim(self, claim: Claim) -> Answer:
        if asked(self.kind, claim.purpose) is not Asked.PEER_OFF:
            return refused_by_table(self.kind, claim)
        found = self._within_limit(claim)
        if found.off is None:
            return unreachable(claim, f"whether the peer is off is not known: {found.detail}")
        if not found.off:
            return refused(claim, f"the peer is not off: {found.detail}")
        return granted(claim, f"the peer is off: {found.detail}")

    def look(self, pair: str, module: str) -> Standing | None:
        return None

    def _within_limit(self, claim: Claim) -> PeerOff:
        """A driver may hang in a library of its own, so it gets a thread that it may keep."""
        answers: queue.SimpleQueue[PeerOff] = queue.SimpleQueue()

        def ask() -> None:
            answers.put(self._is_peer_off(claim, self._timeout_s))

        threading.Thread(target=ask, name="fence", daemon=True).start()
        try:
            return answers.get(timeout=self._timeout_s + 2 * AFTER_KILL_S)
        except queue.Empty:
            return PeerOff(None, "no answer in time")


class FenceCommand:
    """A command that ends with 0 if, and only if, the peer is off.

    It finds HOTPAIR_PAIR, HOTPAIR_MODULE, HOTPAIR_SERVER (the server that asks) and HOTPAIR_PEER (the one that must be
    off) in its environment. At its time limit it is killed with everything it started.
    """

    def __init__(
        self, arguments: Sequence[str], peers: Mapping[str, str], environment: Mapping[str, str] | None = None
    ) -> None:
        """`peers`: of each server's name, the other one's. ValueError without a command."""
        if not arguments:
            raise ValueError("name the command that confirms that the peer is off")
        self._arguments = tuple(arguments)
        self._peers = dict(peers)
        self._environment = dict(os.environ if environment is None else environment)

    def __call__(self, claim: Claim, timeout_s: float) -> PeerOff:
        environment = self._environment | {
            "HOTPAIR_PAIR": claim.pair,
            "HOTPAIR_MODULE": claim.module,
            "HOTPAIR_SERVER": claim.server,
            "HOTPAIR_PEER": self._peers[claim.server],
        }
        # Into a file: a pipe would stay open as long as anything the command has left behind.
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    self._arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                return PeerOff(None, f"{self._arguments[0]} cannot be started: {error}")
            ended = _wait(process, timeout_s)
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)  # its leader is not reaped yet, so the group is still its own
                _wait(process, AFTER_KILL_S)
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - OUTPUT_BYTES))
            said = " ".join(output.read(OUTPUT_BYTES).decode(errors="replace").split())
        code = process.poll()
        if not ended:
            return PeerOff(None, f"{self._arguments[0]} did not end within {timeout_s:g} s: {said or 'no output'}")
        return PeerOff(code == 0, f"{self._arguments[0]} ended with {code}: {said or 'no output'}")


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it ends in that time."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)
