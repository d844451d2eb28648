"""The arbiter that cluster.toml names, ready to be asked."""

from __future__ import annotations

import os

from hotpair.cluster.arbiter_io import Arbiter, ManualArbiter, NoArbiter
from hotpair.cluster.configuration import Cluster, Tls
from hotpair.cluster.configuration_io import load_key
from hotpair.cluster.connection_io import ClientTls, parse_address
from hotpair.cluster.etcd_io import EtcdArbiter
from hotpair.cluster.fence_io import FenceArbiter, FenceCommand
from hotpair.cluster.ping_io import PingArbiter, Target
from hotpair.cluster.witness_client_io import WitnessClient


def arbiter_of(cluster: Cluster, home: str) -> Arbiter:
    """Relative paths are below `home`. Raises BadKey, or ValueError for TLS files that cannot be used."""
    chosen = cluster.arbitration
    options, tls = chosen.options, _tls(chosen.tls, home)
    match chosen.kind:
        case "witness":
            key = load_key(os.path.join(home, options["key_file"]))
            return WitnessClient(parse_address(options["address"]), key, tls, options["timeout_s"])
        case "etcd":
            endpoints = [parse_address(endpoint) for endpoint in options["endpoints"]]
            return EtcdArbiter(endpoints, tls, timeout_s=options["timeout_s"], prefix=options["prefix"])
        case "fence":
            peers = {one.name: cluster.peer_of(one.name).name for one in cluster.servers}
            return FenceArbiter(FenceCommand(options["command"], peers), options["timeout_s"])
        case "ping":
            return PingArbiter([_target(address) for address in options["addresses"]], options["timeout_s"])
        case "none":
            return NoArbiter()
        case "manual":
            return ManualArbiter()


def _tls(files: Tls | None, home: str) -> ClientTls | None:
    if files is None:
        return None
    authority, certificate, key = (os.path.join(home, path) for path in (files.authority, files.certificate, files.key))
    return ClientTls(authority, certificate, key)


def _target(text: str) -> Target:
    try:
        address = parse_address(text)
    except ValueError:  # without a port
        return Target(text)
    return Target(address.host, address.port)
