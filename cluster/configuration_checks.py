"""What must fit together in a configuration: time limits, servers, names. Pure code, total over valid values.

Each problem is said at the key to change, with the numbers and what would be right.

The time limits, and why. Both servers count silence from the last thing they heard, so the peer's clock may have begun
`pulse_s` earlier than the moment of the break, and the primary's at most PROBE_INTERVAL_S later: it is sure of a break
only by a probe. That is the *loss detection* of the design:

    pulse_s + PROBE_INTERVAL_S + fence_after_s + vm_kill_s + MARGIN_S < timeout_s

so that a primary that is cut off has stopped its VM before the peer may start it. And a primary whose peer has died
must have noticed that, and asked, before it would stop its own VM: `silence_timeout_s` < `fence_after_s`.

With `fence` a peer takes over only when this server is known to be off, whatever the clocks say. There the limit does
not keep two VMs apart, and must not end the survivor's before a slow command has answered:

    silence_timeout_s + the command's timeout_s + ANSWER_ROOM_S < fence_after_s
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from hotpair.cluster.admission import MODULES_PER_PAIR
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.configuration_keys import Report, did_you_mean
from hotpair.cluster.configuration_tables import (
    CHECKER_KINDS,
    MARGIN_S,
    PROBE_INTERVAL_S,
    PULSES_PER_TIMEOUT,
    SHORTEST_SILENCE_S,
)

if TYPE_CHECKING:
    from hotpair.cluster.configuration import Arbitration, Cluster, Heartbeat, Mirror, Module, Server


def check_cluster(cluster: Cluster, report: Report) -> None:
    _check_servers(*cluster.servers, report)
    _check_pulses(cluster.heartbeat, report)
    if cluster.arbitration.kind == "fence":
        _check_slow_answer(cluster.arbitration, cluster.heartbeat, report)
    else:
        _check_stopped_before(cluster.heartbeat, report)
        _check_asking(cluster.arbitration, cluster.heartbeat, report)


def _check_servers(first: Server, second: Server, report: Report) -> None:
    if first.name.casefold() == second.name.casefold():
        report.say(("servers", 1, "name"), f"the first server is called {first.name} as well: give another name")
    if first.address.casefold() == second.address.casefold():
        report.say(("servers", 1, "address"), "the first server has the same address: each needs its own")
    if first.networks.keys() != second.networks.keys():
        report.say(
            ("servers", 1, "networks"),
            f"the networks are {', '.join(second.networks)}, those of {first.name} are {', '.join(first.networks)}: "
            "give both servers the same ones",
        )
        return
    for name, address in second.networks.items():
        here, there = ipaddress.ip_address(first.networks[name]), ipaddress.ip_address(address)
        if here.version != there.version:
            report.say(("servers", 1, "networks", name), f"{there} and {here} are not of the same IP version")
        elif here == there:
            report.say(("servers", 1, "networks", name), f"both servers have {here}: each needs its own address")
    for i, server in enumerate((first, second)):
        seen: dict[str, str] = {}
        for name, address in server.networks.items():
            if address in seen:
                report.say(
                    ("servers", i, "networks", name),
                    f"{address} is the address on {seen[address]} as well: a network counts only with its own",
                )
            seen[address] = name


def _check_pulses(heartbeat: Heartbeat, report: Report) -> None:
    pulse_s, timeout_s = heartbeat.pulse_s, heartbeat.timeout_s
    if pulse_s * PULSES_PER_TIMEOUT > timeout_s:
        report.say(
            ("heartbeat", "pulse_s"),
            f"{pulse_s:g} s is more than a {PULSES_PER_TIMEOUT}th of timeout_s ({timeout_s:g} s), so that a few lost "
            f"pulses would make the peer lost: give at most {timeout_s / PULSES_PER_TIMEOUT:g}",
        )


def _check_stopped_before(heartbeat: Heartbeat, report: Report) -> None:
    """Where clocks keep two VMs apart."""
    path = "heartbeat"
    pulse_s, timeout_s, fence_after_s = heartbeat.pulse_s, heartbeat.timeout_s, heartbeat.fence_after_s
    if fence_after_s >= timeout_s:
        report.say(
            (path, "fence_after_s"),
            f"{fence_after_s:g} s is not less than timeout_s ({timeout_s:g} s): the peer would start the VM while it "
            "still runs here",
        )
        return
    rest_s = pulse_s + PROBE_INTERVAL_S + heartbeat.vm_kill_s + MARGIN_S
    if rest_s + fence_after_s >= timeout_s:
        room = timeout_s - rest_s
        lower = f"give fence_after_s less than {room:.10g}, or " if room > 0.1 else "give "
        report.say(
            (path, "fence_after_s"),
            f"loss detection ({pulse_s:g} s pulse_s + {PROBE_INTERVAL_S:g} s probe) + fence_after_s "
            f"({fence_after_s:g} s) + vm_kill_s ({heartbeat.vm_kill_s:g} s) + margin ({MARGIN_S:g} s) are "
            f"{rest_s + fence_after_s:.10g} s, and must be less than timeout_s ({timeout_s:g} s), or the peer could "
            f"start the VM while it still runs here: {lower}timeout_s more than {rest_s + fence_after_s:.10g}",
        )


def _check_slow_answer(arbitration: Arbitration, heartbeat: Heartbeat, report: Report) -> None:
    """Where the command's answer may come late."""
    least_s = SHORTEST_SILENCE_S + arbitration.answered_s
    if heartbeat.fence_after_s <= least_s:
        report.say(
            ("heartbeat", "fence_after_s"),
            f"a primary whose peer has died stops its own VM after {heartbeat.fence_after_s:g} s, and the fencing "
            f"command may answer later (arbitration.fence.timeout_s is {arbitration.asking_s:g} s): leave it out, or "
            f"give more than {least_s:g}",
        )


def _check_asking(arbitration: Arbitration, heartbeat: Heartbeat, report: Report) -> None:
    if arbitration.asking_s >= heartbeat.timeout_s:
        report.say(
            ("arbitration", arbitration.kind, "timeout_s"),
            f"{arbitration.asking_s:g} s is not less than heartbeat.timeout_s ({heartbeat.timeout_s:g} s): the peer "
            "would have taken over before the answer",
        )


def check_module(module: Module, cluster: Cluster, report: Report) -> None:
    _check_names_of_servers(module, cluster, report)
    _check_mirror(module.mirror, cluster, report)
    if module.failback == "automatic" and module.preferred is None:
        report.say(("failback",), 'automatic needs to know where to: give preferred = "NAME" as well')
    for checker in module.checkers:
        path = ("checkers", checker.name)
        if checker.timeout_s > checker.period_s:
            report.say(
                (*path, "timeout_s"),
                f"{checker.timeout_s:g} s is more than period_s ({checker.period_s:g} s): one check would run into "
                "the next",
            )
        if checker.action is Action.WAIT and not CHECKER_KINDS[checker.kind].may_wait:
            report.say(
                (*path, "action"),
                "it would wait for ever, for while it waits the VM is off: stopstart lets the peer take over",
            )
        if checker.options.get("module") == module.name:
            report.say((*path, "module"), "a module cannot wait for itself: give the name of another one")


def _check_names_of_servers(module: Module, cluster: Cluster, report: Report) -> None:
    servers = [server.name for server in cluster.servers]
    named: Mapping[str, str | None] = {
        "preferred": module.preferred,
        "data_on": module.data_on,
        "split_brain": module.split_brain.removeprefix("server:") if ":" in module.split_brain else None,
    }
    for key, name in named.items():
        if name is not None and name not in servers:
            report.say((key,), f"there is no server {name}{did_you_mean(name, servers)}; give {' or '.join(servers)}")


def _check_mirror(mirror: Mirror, cluster: Cluster, report: Report) -> None:
    silence_s, stall_s = mirror.silence_timeout_s, mirror.stall_timeout_s
    if stall_s < silence_s:
        report.say(
            ("mirror", "stall_timeout_s"),
            f"{stall_s:g} s is less than silence_timeout_s ({silence_s:g} s): a peer that is slow would be given less "
            f"time than one that is silent: give at least {silence_s:g}",
        )
    is_fence = cluster.arbitration.kind == "fence"
    answer_s = cluster.arbitration.answered_s if is_fence else 0.0
    fence_after_s = cluster.heartbeat.fence_after_s
    if silence_s + answer_s >= fence_after_s:
        answer = f" and up to {answer_s:g} s to have the fencing command's answer" if is_fence else ""
        report.say(
            ("mirror", "silence_timeout_s"),
            f"a primary whose peer has died takes {silence_s:g} s to notice it{answer}, but stops its VM after "
            f"heartbeat.fence_after_s ({fence_after_s:g} s): give less than {fence_after_s - answer_s:.10g} here, or "
            f"more than {silence_s + answer_s:.10g} for fence_after_s in cluster.toml",
        )


def conflicts(module: Module, others: Iterable[Module]) -> list[tuple[str, str]]:
    """Key and text for whatever a module cannot share with the others of the pair, which it is added to."""
    others = list(others)
    found = []
    directory = _normal(module.directory)
    for other in others:
        if other.mirror_port == module.mirror_port:
            found.append(("mirror_port", f"{module.mirror_port} is the port of the module {other.name}: give another"))
        theirs = _normal(other.directory)
        if _is_within(directory, theirs) or _is_within(theirs, directory):
            found.append(("directory", f"{other.name} mirrors {theirs}: one module's directory cannot be in another's"))
    if len(others) >= MODULES_PER_PAIR:
        found.append(("", f"a pair takes at most {MODULES_PER_PAIR} modules: remove one"))
    return found


def _normal(directory: str) -> str:
    """Without double slashes, two at the beginning included, which POSIX would keep."""
    absolute = "/" if directory.startswith("/") else ""
    return absolute + posixpath.normpath(directory).lstrip("/")


def _is_within(inner: str, outer: str) -> bool:
    """The same, or below. A relative one is below the home directory, and nothing is known about that here."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
