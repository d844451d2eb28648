"""Fencing by a command or a driver, and pinging an address: what confirms, and what only looks like it."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from hotpair.cluster.arbiter_io import Arbiter
from hotpair.cluster.arbiters_io import arbiter_of
from hotpair.cluster.arbitration import Answer, Claim, Kind, Purpose, Verdict, judge
from hotpair.cluster.configuration import parse_cluster
from hotpair.cluster.fence_io import OUTPUT_BYTES, FenceArbiter, FenceCommand, PeerOff
from hotpair.cluster.ping_io import PingArbiter, Target, _checksum, _IcmpProbe, _is_echo, _wait_for_some
from tests.witness_process import claim, free_port

NOWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737)
PEERS = {"a": "b", "b": "a"}
CLUSTER = """
name = "rack7"
[[servers]]
name = "alpha"
address = "192.0.2.1"
networks = { lan = "192.0.2.1" }
[[servers]]
name = "beta"
address = "192.0.2.2"
networks = { lan = "192.0.2.2" }
[arbitration]
kind = "fence"
[arbitration.fence]
command = ["/bin/sh", "-c", "echo $HOTPAIR_PEER is off, says $HOTPAIR_SERVER"]
[security]
tls = false
"""


def fence(script: str, timeout_s: float = 10.0) -> Answer:
    return FenceArbiter(FenceCommand(["/bin/sh", "-c", script], PEERS), timeout_s).claim(claim("a"))


def test_a_command_that_succeeds_confirms() -> None:
    answer = fence("echo Chassis Power is off")
    assert answer.granted and "Chassis Power is off" in answer.reason


@pytest.mark.parametrize("script", ["echo it is on; exit 1", "exit 2", "kill -9 $$"])
def test_a_command_that_fails_does_not(script: str) -> None:
    answer = fence(script)
    assert not answer.granted and answer.reachable and "not off" in answer.reason


def test_a_command_that_cannot_be_started_says_so() -> None:
    answer = FenceArbiter(FenceCommand(["/no/such/command"], PEERS)).claim(claim("a"))
    assert not answer.granted and not answer.reachable and "/no/such/command" in answer.reason
    with pytest.raises(ValueError, match="name the command"):
        FenceCommand([], PEERS)


def test_a_command_has_a_time_limit_and_leaves_nothing_behind(tmp_path: Path) -> None:
    started = time.monotonic()
    answer = fence(f"echo asking; sleep 97 & echo $! > {tmp_path}/child; wait", 0.5)
    assert not answer.granted and not answer.reachable
    assert "did not end within 0.5 s: asking" in answer.reason
    assert time.monotonic() - started < 15
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{child}") and state(child) != "Z":
        assert time.monotonic() < end, "what the command started goes on"
        time.sleep(0.02)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_what_a_command_leaves_running_does_not_delay_the_answer() -> None:
    started = time.monotonic()
    answer = fence("sleep 8 & echo off")
    assert answer.granted and time.monotonic() - started < 6


def test_much_output_is_cut_to_its_end() -> None:
    answer = fence("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end")
    assert answer.granted and answer.reason.endswith("the end") and len(answer.reason) < OUTPUT_BYTES + 100


def test_a_command_knows_for_whom_it_is_asked() -> None:
    asked = claim("a", pair="p 1", module="vm2")
    answer = FenceArbiter(FenceCommand(["/usr/bin/env"], PEERS, {"PATH": "/usr/bin"})).claim(asked)
    given = ("HOTPAIR_PAIR=p 1", "HOTPAIR_MODULE=vm2", "HOTPAIR_SERVER=a", "HOTPAIR_PEER=b")
    assert [text for text in given if text not in answer.reason] == []


@pytest.mark.parametrize(("asks", "is_to_be_off"), [("alpha", "beta"), ("beta", "alpha")])
def test_as_configured_the_command_is_told_who_is_to_be_off(tmp_path: Path, asks: str, is_to_be_off: str) -> None:
    answer = arbiter_of(parse_cluster(CLUSTER), str(tmp_path)).claim(claim(asks))
    assert answer.granted and f"{is_to_be_off} is off, says {asks}" in answer.reason


@pytest.mark.parametrize(
    ("found", "granted", "reachable"),
    [(PeerOff(True, "off"), True, True), (PeerOff(False, "running"), False, True), (PeerOff(None, "?"), False, False)],
)
def test_a_driver_is_asked(found: PeerOff, granted: bool, reachable: bool) -> None:
    seen: list[tuple[Claim, float]] = []

    def driver(asked: Claim, timeout_s: float) -> PeerOff:
        seen.append((asked, timeout_s))
        return found

    asked = claim("a")
    answer = FenceArbiter(driver, 7).claim(asked)
    assert (answer.granted, answer.reachable) == (granted, reachable) and found.detail in answer.reason
    assert seen == [(asked, 7)]


def test_a_driver_that_hangs_is_given_up() -> None:
    release = threading.Event()

    def driver(asked: Claim, timeout_s: float) -> PeerOff:
        release.wait(20)
        return PeerOff(True, "too late")

    answer = FenceArbiter(driver, 0.1).claim(claim("a"))
    release.set()
    assert not answer.granted and not answer.reachable


def test_a_driver_with_a_bug_grants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver(asked: Claim, timeout_s: float) -> PeerOff:
        raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it would be printed, which is right elsewhere
    assert not FenceArbiter(driver, 0.1).claim(claim("a")).granted


# ---- ping


def ping(*targets: Target, timeout_s: float = 1.0) -> Answer:
    return PingArbiter(targets, timeout_s).claim(claim("a"))


def may_ping() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return False
    return True


needs_icmp = pytest.mark.skipif(not may_ping(), reason="this user may not open ICMP sockets")


@needs_icmp
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_address_that_answers(address: str) -> None:
    if address == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    answer = ping(Target(address))
    assert answer.granted and address in answer.reason
    assert judge(Kind.PING, claim("a"), answer) is Verdict.IGNORED


@needs_icmp
def test_one_of_several_is_enough() -> None:
    started = time.monotonic()
    assert ping(Target(NOWHERE), Target("127.0.0.1"), timeout_s=10).granted
    assert time.monotonic() - started < 5


def test_no_answer_is_no_grant_and_takes_no_longer_than_allowed() -> None:
    started = time.monotonic()
    answer = ping(Target(NOWHERE, 9), timeout_s=0.7)
    assert not answer.granted and not answer.reachable and NOWHERE in answer.reason
    assert time.monotonic() - started < 5


@needs_icmp
def test_the_echo_of_another_is_not_ours() -> None:
    """A raw socket sees every echo reply that comes from there."""
    probe = _IcmpProbe(Target("127.0.0.1"))
    try:
        own = probe._token
        probe._token = b"another's token!"  # what is under way does not carry it
        time_out = time.monotonic() + 0.3
        heard = 0
        while time.monotonic() < time_out:
            for ready in _wait_for_some({probe.fileno(): probe}, 0.1):
                heard += 1
                assert not ready.answered()
        assert heard, "the echo was there"
        probe._token = own
    finally:
        probe.close()


def test_only_a_reply_with_our_token_is_an_answer() -> None:
    token = b"t" * 16
    reply, request = b"\x00" * 8 + token, b"\x08" + b"\x00" * 7 + token
    for header in (b"\x45" + b"h" * 19, b"\x46" + b"h" * 23):  # without and with options
        assert _is_echo(header + reply, 0, token, True)
        assert not _is_echo(header + request, 0, token, True)  # our own request, seen on loopback
        assert not _is_echo(header + reply, 0, b"u" * 16, True)
    assert _is_echo(reply, 0, token, False) and _is_echo(b"\x81" + reply[1:], 129, token, False)
    for packet in (b"", b"\x45", reply[:-1], reply + b"x"):
        assert not _is_echo(packet, 0, token, True) and not _is_echo(packet, 0, token, False)


def test_a_checksum_is_that_of_the_internet() -> None:
    """The example of RFC 1071."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert _checksum(data) == ~0xDDF2 & 0xFFFF
    assert _checksum(data + struct.pack("!H", _checksum(data))) == 0


def test_a_port_that_accepts_answers_and_one_that_refuses_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ping(Target("127.0.0.1", port)).granted
        closed = Target("127.0.0.1", free_port())
        assert ping(closed, Target("127.0.0.1", port)).granted
    answer = ping(closed)
    assert not answer.granted and "refused" in answer.reason


def test_targets_that_cannot_be_pinged() -> None:
    for address, port in (("router", None), ("0.0.0.0", None), ("224.0.0.1", None), ("10.0.0.1", 0), ("::", None)):
        with pytest.raises(ValueError, match=r".+"):
            Target(address, port)
    with pytest.raises(ValueError, match="at least one"):
        PingArbiter([])


@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose is not Purpose.GO_ALONE])
def test_neither_grants_anything_but_to_a_live_server(purpose: Purpose) -> None:
    arbiters: list[Arbiter] = [
        FenceArbiter(FenceCommand([sys.executable, "-c", ""], PEERS)),
        PingArbiter([Target("127.0.0.1")]),
    ]
    for arbiter in arbiters:
        assert not arbiter.claim(claim("a", 3, purpose)).granted
