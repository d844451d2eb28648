"""What a module's helpers are made with, from the configuration. Pure.

A module's pulses and its mirror stream have the same port number, the one in UDP, the other in TCP.
"""

from __future__ import annotations

from dataclasses import replace

from hotpair.actors.driver_place import place_of
from hotpair.actors.group_facts import GroupFacts
from hotpair.actors.heartbeat import HeartbeatFacts
from hotpair.actors.home import Home
from hotpair.actors.mirror_keeper import MirrorFacts
from hotpair.actors.vm_keeper import VmFacts
from hotpair.cluster.checks import HERE_ONLY
from hotpair.cluster.configuration import Checker, Cluster, Module, digest
from hotpair.cluster.pulse_io import Network


def facts_of(module: Module, cluster: Cluster, server: str, home: Home, *, key: bytes, boot: str) -> GroupFacts:
    """KeyError for a server that is not of this pair."""
    peer = cluster.peer_of(server)
    here = cluster.peer_of(peer.name)
    directory = home.below(module.directory)
    networks = tuple(
        Network(name, (address, module.mirror_port), (peer.networks[name], module.mirror_port))
        for name, address in here.networks.items()
    )
    return GroupFacts(
        module=module.name,
        state=home.module_state(module.name),
        heartbeat=HeartbeatFacts(
            module=module.name,
            server=server,
            peer=peer.name,
            key=key,
            networks=networks,
            pulse_s=cluster.heartbeat.pulse_s,
            timeout_s=cluster.heartbeat.timeout_s,
            boot=boot,
            cluster=digest(cluster),
            digest=digest(module),
        ),
        mirror=MirrorFacts(
            module=module.name,
            directory=directory,
            state=home.mirror_state(module.name),
            log=home.mirror_log(module.name),
            here=(here.address, module.mirror_port),
            peer=(peer.address, module.mirror_port),
            options=_mirror_options(module, cluster, home),
            source_options=_source_options(module, cluster),
            overwrite_mark=home.overwrite_mark(module.name),
        ),
        vm=VmFacts(module.name, module.vm.normal_stop, module.vm.start_timeout_s, module.vm.stop_timeout_s),
        driver=module.vm.driver,
        place=place_of(module, home, server),
        checkers=tuple(_placed(one, home) for one in module.checkers if one.kind not in HERE_ONLY),
    )


def _placed(checker: Checker, home: Home) -> Checker:
    options = dict(checker.options)
    if "path" in options:
        options["path"] = home.below(options["path"])
    return replace(checker, options=options)


def _mirror_options(module: Module, cluster: Cluster, home: Home) -> tuple[str, ...]:
    mirror, tls = module.mirror, cluster.security.tls
    options = ["--durability", mirror.durability, "--stall-timeout", f"{mirror.stall_timeout_s:g}"]
    if tls is None:
        return (*options, "--no-tls")
    files = {"--tls-certificate": tls.certificate, "--tls-key": tls.key, "--tls-ca": tls.authority}
    return (*options, *(word for name, path in files.items() for word in (name, home.below(path))))


def _source_options(module: Module, cluster: Cluster) -> tuple[str, ...]:
    mirror = module.mirror
    return (
        *("--cache", mirror.cache),
        *("--extent-size", str(mirror.extent_size)),
        *("--hot-extents", str(mirror.hot_extents)),
        *("--silence-timeout", f"{mirror.silence_timeout_s:g}"),
        *("--fence-after", f"{cluster.heartbeat.fence_after_s:g}"),
    )
