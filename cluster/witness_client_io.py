"""A server's end of the conversation with a witness: one connection for each request, one deadline for all of it."""

from __future__ import annotations

import os
import socket
import ssl

from hotpair.cluster import witness_messages as messages
from hotpair.cluster.arbitration import ARBITER_TIMEOUT_S, ID_BYTES, Answer, Claim, Kind, Standing, unreachable
from hotpair.cluster.connection_io import (
    Address,
    ClientTls,
    Deadline,
    Unreachable,
    connect,
    receive_exactly,
    send_all,
)


class WitnessError(Exception):
    """Base: the witness gave no answer that counts. The text says why and what to do."""


class WitnessUnreachable(WitnessError):
    """It could not be reached, or not in time."""


class WitnessRefusesUs(WitnessError):
    """It does not serve this server: another key, an unknown pair. Said without proof, so it decides nothing."""


class WitnessOtherVersion(WitnessError):
    """It speaks another version of the protocol."""


class WitnessNotTrusted(WitnessError):
    """What answered does not prove that it has the pair's key, or is no witness at all."""


class WitnessClient:
    """Claims and looks for one pair. `timeout_s` limits each call as a whole. Safe to use from several threads."""

    kind = Kind.WITNESS

    def __init__(
        self, address: Address, key: bytes, tls: ClientTls | None, timeout_s: float = ARBITER_TIMEOUT_S
    ) -> None:
        """ValueError for a key of the wrong length or TLS files that cannot be used."""
        if len(key) != messages.KEY_BYTES:
            raise ValueError(f"a pair's key has {messages.KEY_BYTES} bytes, not {len(key)}")
        self._address = address
        self._key = key
        self._tls: ssl.SSLContext | None = None if tls is None else tls.context()
        self._timeout_s = timeout_s

    def claim(self, claim: Claim) -> Answer:
        try:
            return self.ask(claim)
        except WitnessError as error:
            return unreachable(claim, str(error))

    def look(self, pair: str, module: str) -> Standing | None:
        try:
            answer = self.ask(messages.Look(os.urandom(ID_BYTES), pair, module))
        except WitnessError:
            return None
        assert answer.epoch is not None, "a witness always says where it stands"
        return Standing(answer.epoch, answer.holder)

    def ask(self, request: messages.Request) -> Answer:
        """The witness's answer to this request; answers to others are passed over. Raises WitnessError."""
        deadline = Deadline.after(self._timeout_s)
        try:
            sock = connect(self._address, self._tls, deadline)
        except Unreachable as error:
            raise WitnessUnreachable(f"the witness cannot be reached: {error}") from error
        with sock:
            try:
                nonce = messages.read_hello(_receive(sock, deadline))
                send_all(sock, messages.frame(messages.ask(request, self._key, nonce)), deadline)
                while True:
                    answer = messages.read_answer(_receive(sock, deadline), self._key, nonce)
                    if answer.request_id == request.request_id:
                        return answer
            except Unreachable as error:
                raise WitnessUnreachable(f"the witness {self._address} does not answer: {error}") from error
            except messages.ErrorSaid as error:
                raise WitnessRefusesUs(f"the witness {self._address} says: {error}") from error
            except messages.OtherVersion as error:
                raise WitnessOtherVersion(f"the witness {self._address} sent {error}") from error
            except messages.BadMessage as error:
                raise WitnessNotTrusted(f"{self._address} does not answer like this pair's witness: {error}") from error


def _receive(sock: socket.socket, deadline: Deadline) -> bytes:
    prefix = receive_exactly(sock, messages.LENGTH.size, deadline)
    return receive_exactly(sock, messages.frame_length(prefix), deadline)
