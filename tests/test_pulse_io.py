"""Pulses between two real ends over real sockets, in an event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hotpair.cluster.pulse import LARGEST_PULSE_BYTES, Refusal
from hotpair.cluster.pulse_io import DATAGRAMS_PER_TURN, HURRY_S, Heard, Network, Pulses, View
from tests.test_pulse import KEY, OTHER_KEY, a_view

SOON_S = 5.0  # for what takes a millisecond when the machine has time
VIEW = View(boot="b", configuration=b"c", hears=("lan",), modules=(a_view(),))
LOCAL = {"lan": "127.0.0.1", "direct": "::1"}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        assert error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        return False
    return True


def free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def local_networks() -> tuple[list[Network], list[Network]]:
    """The networks of both ends; the second is IPv6 where this machine has it."""
    alpha, beta = [], []
    for name, address in LOCAL.items():
        host = address if name == "lan" or has_ipv6() else "127.0.0.1"
        first, second = (host, free_port(host)), (host, free_port(host))
        alpha.append(Network(name, first, second))
        beta.append(Network(name, second, first))
    return alpha, beta


@contextmanager
def ends(alpha_key: bytes = KEY, beta_key: bytes = KEY) -> Iterator[tuple[Pulses, Pulses]]:
    of_alpha, of_beta = local_networks()
    alpha = Pulses("alpha", "beta", alpha_key, of_alpha, 0.5)
    beta = Pulses("beta", "alpha", beta_key, of_beta, 0.5)
    alpha.open()
    beta.open()
    try:
        yield alpha, beta
    finally:
        alpha.close()
        beta.close()


def arrived(end: Pulses, wanted: int = 1) -> list[Heard]:
    """Read until so many datagrams came, believed or not."""
    heard: list[Heard] = []
    before = sum(traffic.received for traffic in end.traffic.values())
    deadline = time.monotonic() + SOON_S
    while sum(traffic.received for traffic in end.traffic.values()) < before + wanted:
        assert time.monotonic() < deadline, "nothing arrives"
        readable, _, _ = select.select(list(end.descriptors()), [], [], SOON_S)
        for descriptor in readable:
            heard += end.receive(end.descriptors()[descriptor])
    return heard


def acquaint(alpha: Pulses, beta: Pulses) -> None:
    for now in (0.0, 0.1):
        alpha.send(VIEW, now)
        arrived(beta, 2)
        beta.send(VIEW, now)
        arrived(alpha, 2)


def test_two_ends_hear_each_other_on_both_networks() -> None:
    with ends() as (alpha, beta):
        acquaint(alpha, beta)
        alpha.send(VIEW, 1.0)
        heard = arrived(beta, 2)
        assert {one.network for one in heard} == {"lan", "direct"}
        for one in heard:
            assert (one.pulse.sender, one.pulse.network, one.pulse.modules) == ("alpha", one.network, VIEW.modules)
            assert one.pulse.hears == ("lan",)
        assert beta.traffic["lan"].problem is None and beta.traffic["lan"].lost == 0


def test_a_doubt_makes_what_waits_in_the_sockets_old() -> None:
    with ends() as (alpha, beta):
        acquaint(alpha, beta)
        alpha.send(VIEW, 1.0)
        beta.doubt()
        assert [one.fresh for one in arrived(beta, 2)] == [False, False]
        beta.send(VIEW, 1.0)
        arrived(alpha, 2)
        alpha.send(VIEW, 1.1)
        assert [one.fresh for one in arrived(beta, 2)] == [True, True]


def test_a_full_pair_arrives_whole() -> None:
    modules = tuple(a_view(f"m{i}") for i in range(25))
    with ends() as (alpha, beta):
        acquaint(alpha, beta)
        for now in (1.0, 1.5):
            before = {name: traffic.sent for name, traffic in alpha.traffic.items()}
            alpha.send(View(boot="b", configuration=b"c", modules=modules), now)
            heard = arrived(beta, sum(alpha.traffic[name].sent - before[name] for name in LOCAL))
            for network in LOCAL:
                views = [view for one in heard if one.network == network for view in one.pulse.modules]
                assert sorted(view.name for view in views) == sorted(view.name for view in modules)
        assert [beta.traffic[name].lost for name in LOCAL] == [0, 0]


def test_what_is_refused_is_counted_with_the_reason() -> None:
    with ends(beta_key=OTHER_KEY) as (alpha, beta):
        alpha.send(VIEW, 0.0)
        assert arrived(beta, 2) == []
        assert beta.traffic["lan"].refused == {Refusal.WRONG_KEY: 1}
        assert "key file" in (beta.traffic["lan"].refusal or "")


def test_a_stranger_is_counted_and_starves_nobody() -> None:
    with ends() as (alpha, beta):
        acquaint(alpha, beta)
        descriptor = next(fd for fd, name in beta.descriptors().items() if name == "lan")
        with socket.socket(fileno=os.dup(descriptor)) as same, socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.sendto(bytes(LARGEST_PULSE_BYTES + 1), same.getsockname())
            for _ in range(DATAGRAMS_PER_TURN + 4):
                stranger.sendto(b"hello", same.getsockname())
        before = beta.traffic["lan"].received
        assert beta.receive("lan") == []
        assert beta.traffic["lan"].received == before + DATAGRAMS_PER_TURN
        beta.receive("lan")
        assert beta.traffic["lan"].received == before + DATAGRAMS_PER_TURN + 5
        refused = {Refusal.TOO_LARGE: 1, Refusal.MALFORMED: DATAGRAMS_PER_TURN + 4}
        assert {reason: beta.traffic["lan"].refused[reason] for reason in refused} == refused


def test_lost_datagrams_are_counted() -> None:
    with ends() as (alpha, beta):
        acquaint(alpha, beta)
        before = beta.traffic["lan"].lost
        descriptor = next(fd for fd, name in beta.descriptors().items() if name == "lan")
        alpha.send(VIEW, 1.0)
        select.select([descriptor], [], [], SOON_S)
        os.read(descriptor, LARGEST_PULSE_BYTES)  # lost on the way, as far as this end can tell
        alpha.send(VIEW, 1.5)
        arrived(beta, 3)
        assert beta.traffic["lan"].lost == before + 1
        assert beta.traffic["direct"].lost == 0


def test_a_network_that_is_not_there_is_said_and_tried_again_while_the_other_works() -> None:
    of_alpha, of_beta = local_networks()
    absent = Network("absent", ("192.0.2.1", 4810), ("192.0.2.2", 4810))  # documentation addresses: nobody has them
    alpha = Pulses("alpha", "beta", KEY, [*of_alpha, absent], 0.5)
    beta = Pulses("beta", "alpha", KEY, of_beta, 0.5)
    try:
        alpha.open()
        beta.open()
        alpha.send(VIEW, 0.0)
        arrived(beta, 2)
        problem = alpha.traffic["absent"].problem or ""
        assert os.strerror(errno.EADDRNOTAVAIL) in problem and "192.0.2.1:4810" in problem
        assert alpha.traffic["lan"].problem is None and alpha.receive("absent") == []
        blocker = of_alpha[0].here
        alpha.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(blocker)
            alpha.open()
            assert os.strerror(errno.EADDRINUSE) in (alpha.traffic["lan"].problem or "")
        alpha.send(VIEW, 1.0)
        assert alpha.traffic["lan"].problem is None
    finally:
        alpha.close()
        beta.close()


def test_what_cannot_be_sent_is_counted_and_does_not_stop_the_receiving() -> None:
    """The broadcast address is forbidden to a plain socket, as any address is that a firewall forbids."""
    host = ("127.0.0.1", free_port("127.0.0.1"))
    alpha = Pulses("alpha", "beta", KEY, [Network("lan", host, ("255.255.255.255", 4810))], 0.5)
    try:
        alpha.open()
        descriptors = alpha.descriptors()
        alpha.send(VIEW, 0.0)
        alpha.send(VIEW, 0.5)
        traffic = alpha.traffic["lan"]
        assert (traffic.sent, traffic.unsent) == (0, 2)
        assert os.strerror(errno.EACCES) in (traffic.problem or "")
        assert alpha.descriptors() == descriptors
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.sendto(b"hello", host)
        arrived(alpha)
        assert traffic.refused == {Refusal.MALFORMED: 1}
    finally:
        alpha.close()


def test_when_the_next_round_is_due() -> None:
    with ends() as (alpha, beta):
        assert alpha.due_at(7.0) == 7.0
        alpha.send(VIEW, 7.0)
        assert alpha.due_at(7.1) == 7.5
        assert alpha.due_at(60.0) == 60.0  # one round after a pause, not all that were missed
        alpha.hurry()
        assert alpha.due_at(7.0) == 7.0 + HURRY_S
        arrived(beta, 2)
        assert beta.due_at(0.0) == 0.0


def test_a_new_peer_is_answered_in_a_hurry() -> None:
    with ends() as (alpha, beta):
        beta.send(VIEW, 0.0)
        alpha.send(VIEW, 0.0)
        assert beta.due_at(0.1) == 0.5
        arrived(beta, 2)
        assert beta.due_at(0.01) == HURRY_S
        beta.send(VIEW, HURRY_S)
        assert beta.due_at(HURRY_S) == HURRY_S + 0.5


def test_two_ends_in_one_event_loop_get_acquainted_and_keep_the_pace() -> None:
    """Driven as an actor will: readers and a timer, no waiting anywhere else."""

    async def run(alpha: Pulses, beta: Pulses) -> list[Heard]:
        loop = asyncio.get_running_loop()
        heard: list[Heard] = []
        enough = asyncio.Event()

        def drive(end: Pulses) -> Callable[[], None]:
            timer: list[asyncio.TimerHandle] = []

            def due() -> None:
                for pending in timer:
                    pending.cancel()
                if end.due_at(loop.time()) <= loop.time():
                    end.send(VIEW, loop.time())
                timer[:] = [loop.call_at(end.due_at(loop.time()), due)]

            def readable(network: str) -> None:
                for one in end.receive(network):
                    if end is beta:
                        heard.append(one)
                if len(heard) >= 6:
                    enough.set()
                due()

            for descriptor, network in end.descriptors().items():
                loop.add_reader(descriptor, readable, network)
            return due

        drive(alpha)()
        drive(beta)()
        await asyncio.wait_for(enough.wait(), SOON_S)
        for end in (alpha, beta):
            for descriptor in end.descriptors():
                loop.remove_reader(descriptor)
        return heard

    of_alpha, of_beta = local_networks()
    alpha = Pulses("alpha", "beta", KEY, of_alpha, 0.1)
    beta = Pulses("beta", "alpha", KEY, of_beta, 0.1)
    alpha.open()
    beta.open()
    begun = time.monotonic()
    try:
        heard = asyncio.run(run(alpha, beta))
    finally:
        alpha.close()
        beta.close()
    rounds = {one.pulse.round for one in heard}
    assert len(rounds) >= 3 and time.monotonic() - begun >= 2 * HURRY_S


def test_a_key_of_another_length_is_a_bug() -> None:
    alpha = Pulses("alpha", "beta", b"short", local_networks()[0], 0.5)
    try:
        with pytest.raises(AssertionError, match="32 bytes"):
            alpha.send(VIEW, 0.0)
    finally:
        alpha.close()
