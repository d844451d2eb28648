"""The state machine's settings, from the configuration: each server's own view, and times that fit the arbiter's."""

from __future__ import annotations

import pytest

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.configuration import Cluster, parse_cluster, parse_module
from hotpair.cluster.fence_io import AFTER_KILL_S
from hotpair.cluster.module_values import Settings
from hotpair.cluster.record import Side
from hotpair.cluster.settings import settings_of

SERVERS = """\
name = "rack7"
servers = [
  { name = "alpha", address = "10.0.0.1", networks = { lan = "10.0.0.1" } },
  { name = "beta", address = "10.0.0.2", networks = { lan = "10.0.0.2" } },
]
[arbitration]
"""
KINDS = {
    Kind.WITNESS: ('witness = { address = "w:4811" }', 3.0),
    Kind.ETCD: ('etcd = { endpoints = ["e:2379"], timeout_s = 4.5 }', 4.5),
    Kind.FENCE: ('fence = { command = ["/sbin/off"] }', 30.0),
    Kind.PING: ('ping = { addresses = ["10.0.0.254"], timeout_s = 0.1 }', 0.1),
    Kind.NONE: ("", 0.0),
    Kind.MANUAL: ("", 0.0),
}


def pair(kind: Kind, options: str | None = None) -> Cluster:
    return parse_cluster(f'{SERVERS}kind = "{kind.value}"\n{KINDS[kind][0] if options is None else options}\n')


def settings(cluster: Cluster, server: str, lines: str = "") -> Settings:
    text = f'directory = "/vm/web"\nmirror_port = 5600\n{lines}\n[vm]\ndriver = "qemu"\n'
    return settings_of(parse_module(text, "web", cluster), cluster, server)


@pytest.mark.parametrize("kind", Kind)
def test_a_module_waits_longer_than_its_arbiter_may_take(kind: Kind) -> None:
    found = settings(pair(kind), "alpha")
    assert found.kind is kind
    assert found.ask_timeout_s == KINDS[kind][1] + 2.0
    assert found.ask_timeout_s > KINDS[kind][1] + 2 * AFTER_KILL_S, "a command that is killed says so later"


def test_a_frozen_primary_waits_longer_than_its_module_for_a_fencing_command() -> None:
    for limit in (0.1, 30, 600):
        cluster = pair(Kind.FENCE, f'fence = {{ command = ["/sbin/off"], timeout_s = {limit} }}')
        asks = settings(cluster, "alpha").ask_timeout_s
        assert limit < asks < cluster.heartbeat.fence_after_s


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.FENCE])
def test_a_frozen_primary_can_ask_again_before_it_fences_itself(kind: Kind) -> None:
    cluster = pair(kind)
    module = parse_module('directory = "/vm"\nmirror_port = 5600\n[vm]\ndriver = "qemu"\n', "web", cluster)
    left_s = cluster.heartbeat.fence_after_s - module.mirror.silence_timeout_s
    assert settings_of(module, cluster, "alpha").retry_s < left_s


def test_each_server_sees_itself_and_its_peer() -> None:
    lines = 'preferred = "beta"\ndata_on = "alpha"\nfailback = "automatic"\nsplit_brain = "most-changes"'
    cluster = pair(Kind.NONE)
    here, there = settings(cluster, "alpha", lines), settings(cluster, "beta", lines)
    assert (here.pair, here.module, here.server, here.peer) == ("rack7", "web", "alpha", "beta")
    assert (here.first, here.preferred, here.data_on) == (Side.ME, Side.PEER, Side.ME)
    assert (there.server, there.peer) == ("beta", "alpha")
    assert (there.first, there.preferred, there.data_on) == (Side.PEER, Side.ME, Side.PEER)
    assert here.automatic_failback and here.split_brain == there.split_brain == "most-changes"


def test_what_is_left_out_favours_nobody() -> None:
    found = settings(pair(Kind.NONE), "alpha")
    assert (found.preferred, found.data_on, found.automatic_failback) == (Side.NOBODY, Side.NOBODY, False)
    with pytest.raises(KeyError):
        settings(pair(Kind.NONE), "gamma")
