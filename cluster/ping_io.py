"""Ping: this server may go on if it still reaches an address, such as the router's.

ICMP echo through a datagram socket where the system allows it to this user (net.ipv4.ping_group_range), else through a
raw one, which needs root; or a TCP connection, when a port is given. Sources: RFC 792, RFC 4443, icmp(7).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hotpair.cluster.arbitration import (
    ARBITER_TIMEOUT_S,
    Answer,
    Asked,
    Claim,
    Kind,
    Standing,
    asked,
    granted,
    refused_by_table,
    unreachable,
)
from hotpair.cluster.connection_io import Deadline, Unreachable, describe

RESEND_S = 0.5  # one echo request may be lost
LARGEST_PACKET_BYTES = 2048
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_TOKEN_BYTES = 16  # what makes a reply ours


@dataclass(frozen=True)
class Target:
    """An IP address (a name could not be resolved by a server that is cut off), with a TCP port or for ICMP."""

    address: str
    port: int | None = None

    def __post_init__(self) -> None:
        """ValueError for what cannot be pinged."""
        parsed = ipaddress.ip_address(self.address)
        if parsed.is_unspecified or parsed.is_multicast or self.address == "255.255.255.255":
            raise ValueError(f"{self.address} is not the address of one machine")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port {self.port}: give 1 to 65535, or none for ICMP")

    def __str__(self) -> str:
        if self.port is None:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


class PingArbiter:
    """Grants to a server that was live when the link broke if one of the targets answers within `timeout_s`.

    Two servers that do not see each other but both see the target both go on: that is what this kind cannot prevent.
    """

    kind = Kind.PING

    def __init__(self, targets: Sequence[Target], timeout_s: float = ARBITER_TIMEOUT_S) -> None:
        """ValueError without a target."""
        if not targets:
            raise ValueError("name at least one address to ping")
        self._targets = tuple(targets)
        self._timeout_s = timeout_s

    def claim(self, claim: Claim) -> Answer:
        if asked(self.kind, claim.purpose) is not Asked.ADDRESS:
            return refused_by_table(self.kind, claim)
        answered, reasons = first_to_answer(self._targets, Deadline.after(self._timeout_s))
        if answered is not None:
            return granted(claim, f"{answered} answers")
        return unreachable(claim, "; ".join(f"{target}: {reason}" for target, reason in reasons.items()))

    def look(self, pair: str, module: str) -> Standing | None:
        return None


def first_to_answer(targets: Sequence[Target], deadline: Deadline) -> tuple[Target | None, dict[Target, str]]:
    """The first target that answers, or why each of them does not."""
    reasons = dict.fromkeys(targets, "no answer in time")
    probes: dict[int, _Probe] = {}
    try:
        for target in reasons:
            try:
                probe = _TcpProbe(target) if target.port else _IcmpProbe(target)
                probes[probe.fileno()] = probe
            except OSError as error:
                reasons[target] = describe(error)
        while probes:
            ready = _wait_for_some(probes, min(RESEND_S, deadline.remaining_s()))
            for probe in ready or list(probes.values()):
                try:
                    if not ready:
                        probe.send_again()
                    elif probe.answered():
                        return probe.target, reasons
                except OSError as error:
                    reasons[probe.target] = describe(error)
                    probes.pop(probe.fileno()).close()
    except Unreachable:
        return None, reasons  # the time is over
    finally:
        for probe in probes.values():
            probe.close()
    return None, reasons


def _wait_for_some(probes: dict[int, _Probe], timeout_s: float) -> list[_Probe]:
    poll = select.poll()
    for descriptor, probe in probes.items():
        poll.register(descriptor, probe.events)
    return [probes[descriptor] for descriptor, _ in poll.poll(timeout_s * 1000)]


class _TcpProbe:
    """A TCP connection under way. Only one that is taken counts: whoever refuses it may be a firewall."""

    events = select.POLLOUT

    def __init__(self, target: Target) -> None:
        """Raises OSError."""
        self.target = target
        self._socket = socket.socket(target.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        code = self._socket.connect_ex((target.address, target.port))
        if code not in (0, errno.EINPROGRESS):
            self._socket.close()
            raise OSError(code, os.strerror(code))

    def fileno(self) -> int:
        return self._socket.fileno()

    def answered(self) -> bool:
        """Raises OSError when the connection has failed."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return True

    def send_again(self) -> None:
        """The kernel does that."""

    def close(self) -> None:
        self._socket.close()


class _IcmpProbe:
    """Echo requests to one address. The socket is connected, so that it receives from that address only."""

    events = select.POLLIN

    def __init__(self, target: Target) -> None:
        """Raises OSError."""
        self.target = target
        self._token = os.urandom(_TOKEN_BYTES)
        self._sequence = 0
        self._request, self._reply, protocol = (
            (8, 0, socket.IPPROTO_ICMP) if target.family == socket.AF_INET else (128, 129, socket.IPPROTO_ICMPV6)
        )
        self._socket, self._raw = _icmp_socket(target.family, protocol)
        try:
            self._socket.setblocking(False)
            self._socket.connect((target.address, 0))
            self.send_again()
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def answered(self) -> bool:
        """Whether what has arrived is an echo of ours. Raises OSError when the address cannot be reached."""
        try:
            packet = self._socket.recv(LARGEST_PACKET_BYTES)
        except BlockingIOError:
            return False
        return _is_echo(packet, self._reply, self._token, self._raw and self.target.family == socket.AF_INET)

    def send_again(self) -> None:
        """Raises OSError."""
        self._sequence += 1
        identifier = os.getpid() & 0xFFFF  # a datagram socket puts its own there
        header = _ECHO.pack(self._request, 0, 0, identifier, self._sequence & 0xFFFF)
        checksum = _checksum(header + self._token)  # the kernel computes it where it does not depend on us
        self._socket.send(_ECHO.pack(self._request, 0, checksum, identifier, self._sequence & 0xFFFF) + self._token)

    def close(self) -> None:
        self._socket.close()


_Probe = _TcpProbe | _IcmpProbe


def _icmp_socket(family: socket.AddressFamily, protocol: int) -> tuple[socket.socket, bool]:
    """The socket, and whether it is a raw one. Raises OSError."""
    try:
        return socket.socket(family, socket.SOCK_DGRAM, protocol), False
    except PermissionError:
        return socket.socket(family, socket.SOCK_RAW, protocol), True


def may_ping() -> bool:
    """Whether this process may send ICMP echo at all."""
    try:
        made, _ = _icmp_socket(socket.AF_INET, socket.IPPROTO_ICMP)
    except PermissionError:
        return False
    made.close()
    return True


def _is_echo(packet: bytes, reply_type: int, token: bytes, has_ip_header: bool) -> bool:
    """Whether a packet is a reply that carries the token. A raw IPv4 socket shows the IP header as well."""
    if has_ip_header and packet:
        packet = packet[4 * (packet[0] & 15) :]
    return packet[:1] == bytes([reply_type]) and packet[_ECHO.size :] == token


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
