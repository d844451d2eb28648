"""safekit's userconfig.xml and cluster.xml as hotpair's configuration, and what has no equivalent. Pure.

Each value is taken where the two mean the same. Whatever is not is said, with its line: silence would be a promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotpair.cluster.admission import is_name
from hotpair.safekit_xml import Element
from hotpair.toml_text import value_text

MACRO_ROUNDS = 10  # a macro may name another one

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 0.000001}
_WINDOWS = re.compile(r"^[A-Za-z]:[\\/]|^\\\\|\\")


class NotConverted(Exception):
    """Nothing sensible can be made of it; the text says why."""


@dataclass
class Converted:
    """`text`: of the file. `notes`: what somebody has to look at, each with its line."""

    text: str = ""
    notes: list[str] = field(default_factory=list)


# ---- cluster.xml


def convert_cluster(root: Element, name: str, heart: Element | None, ping: tuple[str, ...]) -> Converted:
    """cluster.toml of a pair. `heart`: of a module, whose times safekit keeps for each; `ping`: of its splitbrain."""
    if root.name != "cluster":
        raise NotConverted(f"its element is <{root.name}>, and not <cluster>")
    converted = Converted()
    servers: dict[str, dict[str, str]] = {}
    lans = [lan for lans in root.all("lans") for lan in lans.all("lan")]
    for number, lan in enumerate(lans, 1):
        network = lan.attributes.get("name", "")
        network = network if is_name(network) else f"lan{number}"
        for node in lan.all("node"):
            server = node.attributes.get("name", "")
            if not is_name(server):
                raise NotConverted(f"line {node.line}: the node {server!r} has a name that is not accepted here")
            servers.setdefault(server, {})[network] = node.attributes.get("addr", "")
            if "laddr" in node.attributes:
                converted.notes.append(_note(node, "laddr (address translation between the servers)"))
    if len(servers) != 2:
        raise NotConverted(f"it has {len(servers)} nodes: a pair has two")
    both = [network for network in next(iter(servers.values())) if all(network in one for one in servers.values())]
    if not both:
        raise NotConverted("there is no lan that both nodes are in")
    lines = [f"name = {value_text(name)}"]
    for server, networks in servers.items():
        inline = ", ".join(f"{network} = {value_text(networks[network])}" for network in both)
        lines += ["", "[[servers]]", f"name = {value_text(server)}", f"address = {value_text(networks[both[0]])}"]
        lines.append(f"networks = {{ {inline} }}")
    lines += _heartbeat(heart)
    if ping:
        lines += [
            "",
            "[arbitration]",
            'kind = "ping"',
            "",
            "[arbitration.ping]",
            f"addresses = {value_text(list(ping))}",
        ]
        converted.notes.append("arbitration: ping as in the splitbrain checker; two isolated servers that reach it "
                               "may both run: a witness on any third machine is better")  # fmt: skip
    else:
        lines += ["", "[arbitration]", 'kind = "manual"']
        converted.notes.append("arbitration: safekit had none, so that both servers could run; it is manual now, and "
                               "nothing fails over by itself: choose a kind, best a witness")  # fmt: skip
    converted.notes.append("pair.key and the certificates in [security] have to be made: docs/configuration.md")
    converted.text = "\n".join(lines) + "\n"
    return converted


def _heartbeat(heart: Element | None) -> list[str]:
    if heart is None or not {"pulse", "timeout"} & set(heart.attributes):
        return []
    pulse = seconds(heart.attributes.get("pulse", "700ms"), "ms")
    timeout = seconds(heart.attributes.get("timeout", "30000ms"), "ms")
    return ["", "[heartbeat]", f"pulse_s = {pulse:g}", f"timeout_s = {timeout:g}"]


# ---- userconfig.xml


@dataclass
class _Module:
    """modules/NAME.toml while it is made."""

    servers: Collection[str]
    top: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    macros: dict[str, str] = field(default_factory=dict)

    def table(self, name: str) -> dict[str, Any]:
        return self.tables.setdefault(name, {})

    def note(self, element: Element, what: str) -> None:
        self.notes.append(_note(element, what))

    def left(self, element: Element, known: Collection[str]) -> None:
        """Attributes that nobody has taken."""
        for name in element.attributes.keys() - set(known):
            self.note(element, f"{name}={element.attributes[name]!r}")

    def checker(self, element: Element, kind: str, values: Mapping[str, Any]) -> None:
        given = element.attributes.get("ident") or element.attributes.get("name") or kind
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", given).strip("-_")[:30] or kind
        names = [name, *(f"{name}-{number}" for number in range(2, 100))]
        free = next(one for one in names if f"checkers.{one}" not in self.tables)
        self.tables[f"checkers.{free}"] = {"kind": kind, **values}


def convert_module(root: Element, servers: Collection[str], mirror_port: int) -> Converted:
    """modules/NAME.toml."""
    if root.name != "safe":
        raise NotConverted(f"its element is <{root.name}>, and not <safe>")
    service = root.first("service")
    if service is None:
        raise NotConverted("there is no <service> in it")
    if service.attributes.get("mode", "mirror") != "mirror":
        raise NotConverted(
            f"line {service.line}: mode {service.attributes['mode']!r}: only mirror modules have an equivalent"
        )
    module = _Module(servers)
    module.macros = {one.attributes.get("name", ""): one.attributes.get("value", "") for one in root.all("macro")}
    for element in root.walk():
        element.attributes = {name: _expand(value, module.macros) for name, value in element.attributes.items()}
    module.top["mirror_port"] = mirror_port
    module.tables["mirror"], module.tables["vm"] = {}, {}
    _service(module, service)
    for element in service.children:
        _ELEMENTS.get(element.name, _no_equivalent)(module, element)
    for element in root.children:
        if element.name not in ("service", "macro"):
            _no_equivalent(module, element)
    if "directory" not in module.top:
        raise NotConverted("there is no <replicated dir=...> in it: nothing is mirrored")
    _driver(module, service)
    return Converted(_written(module), module.notes)


def splitbrain_of(root: Element) -> tuple[str, ...]:
    """The addresses of its splitbrain checkers."""
    found = [one.attributes.get("arg", "") for one in root.walk() if one.name == "splitbrain"]
    return tuple(address for words in found for address in words.split() if address)


def _service(module: _Module, service: Element) -> None:
    given = service.attributes
    boots = {"on": "on", "off": "off", "auto": "as-before", "ignore": "as-before"}
    if "boot" in given:
        module.top["boot"] = boots.get(given["boot"], "as-before")
    preferred = given.get("defaultprim", "alone")
    if preferred in module.servers:
        module.top["preferred"], module.top["failback"] = preferred, "automatic"
    elif preferred not in ("alone", "lastprim"):
        module.note(service, f"defaultprim={preferred!r}: no server of the pair is called so")
    if "maxloop" in given:
        module.table("loop")["max_loop"] = _whole(service, "maxloop")
    if "loop_interval" in given:
        module.table("loop")["loop_interval_s"] = _seconds(service, "loop_interval", "h")
    if given.get("failover", "on") != "on":
        module.note(service, "failover='off': hotpair maintenance on MODULE, or arbitration manual for the whole pair")
    module.left(service, ("mode", "boot", "defaultprim", "maxloop", "loop_interval", "failover"))


def _heart(module: _Module, heart: Element) -> None:
    if {"pulse", "timeout"} & set(heart.attributes):
        module.note(heart, "pulse and timeout are the pair's: [heartbeat] in cluster.toml")
    module.left(heart, ("pulse", "timeout", "permanent_arp", "port"))
    for one in heart.all("heartbeat"):
        if one.attributes.get("ident") == "flow":
            module.note(one, "ident='flow': the mirror goes by the servers' address in cluster.toml")


def _rfs(module: _Module, rfs: Element) -> None:
    given = rfs.attributes
    # what the other side answers when it has received it is weaker than "memory": there it has been written as well
    module.tables["mirror"]["durability"] = "disk" if given.get("async", "second") == "none" else "memory"
    needless = (
        "async", "mountover", "mountoversuffix", "acl", "packetsize", "reipacketsize", "ruzone_blocksize", "nbrei",
        "namespacepolicy", "reicommit", "allocthreshold", "nbremconn", "nfsbox_options", "scripts", "checktime",
        "checkintv",
    )  # fmt: skip
    module.left(rfs, needless)
    directories = list(rfs.all("replicated"))
    for number, replicated in enumerate(directories):
        directory = replicated.attributes.get("dir", "")
        if number == 0:
            module.top["directory"] = _directory(module, replicated, directory)
        else:
            module.note(
                replicated,
                f"the directory {directory!r}: a module has one: make it another module, or put it below the first",
            )
        module.left(replicated, ("dir", "mode"))
        for child in replicated.children:
            where = child.attributes.get("path") or child.attributes.get("regexpath") or ""
            module.note(child, f"<{child.name}> {where!r}: everything below the directory is mirrored")


def _directory(module: _Module, element: Element, directory: str) -> str:
    if _WINDOWS.search(directory):
        module.note(
            element, f"the directory {directory!r} is a Windows path: the mirrored volume on the controller goes there"
        )
        directory = "/vm/" + re.sub(r"[^A-Za-z0-9_.-]+", "-", re.split(r"[\\/]", directory.rstrip("\\/"))[-1])
    return directory


def _user(module: _Module, user: Element) -> None:
    vm = module.tables["vm"]
    if "nicestoptimeout" in user.attributes:
        vm["stop_timeout_s"] = _seconds(user, "nicestoptimeout", "s")
    module.left(user, ("nicestoptimeout",))
    for child in user.children:
        module.note(child, f"<{child.name}> {child.attributes.get('name', '')!r}: set it in the start command")


def _errd(module: _Module, errd: Element) -> None:
    for one in errd.all("proc"):
        given = one.attributes
        name = given.get("name")
        if not name or given.get("class", "prim") not in ("prim", "both"):
            module.note(one, "a process that is not the primary's, or has no name")
            continue
        values: dict[str, Any] = {"process": name, "action": _action(module, one, "stopstart")}
        if "polltimer" in errd.attributes:
            values["period_s"] = _seconds(errd, "polltimer", "s")
        module.checker(one, "process", values)
        module.left(one, ("name", "action", "class"))


def _check(module: _Module, check: Element) -> None:
    for one in check.children:
        _CHECKERS.get(one.name, _no_equivalent)(module, one)


def _tcp(module: _Module, one: Element) -> None:
    for to in one.all("to"):
        address, port = to.attributes.get("addr", ""), to.attributes.get("port", "")
        shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        module.checker(one, "tcp", {"address": shown, **_times(to), "action": _action(module, one, "restart")})
    module.left(one, ("ident", "when", "action"))


def _ping(module: _Module, one: Element) -> None:
    for to in one.all("to"):
        values = {"address": to.attributes.get("addr", ""), **_times(to), "action": _action(module, one, "wait")}
        module.checker(one, "ping", values)
    module.left(one, ("ident", "when", "action"))


def _intf(module: _Module, one: Element) -> None:
    address = next((to.attributes.get("local_addr", "") for to in one.all("to")), "")
    module.note(one, f"<intf> {address!r}: a checker of the kind interface, with the interface's name")


def _custom(module: _Module, one: Element) -> None:
    program = one.attributes.get("exec", "")
    words = " ".join(word for word in (program, one.attributes.get("arg", "")) if word)
    module.note(
        one, f"<custom> {words!r}: a checker of the kind command; its program ends with 0 or not, and does not loop"
    )


def _module(module: _Module, one: Element) -> None:
    name = one.attributes.get("name", "")
    if is_name(name):
        module.checker(one, "module", {"module": name, "action": _action(module, one, "wait")})
    else:
        module.note(one, f"<module> {name!r}")


def _splitbrain(module: _Module, one: Element) -> None:
    module.note(one, "<splitbrain>: arbitration of the whole pair, in cluster.toml")


def _no_equivalent(module: _Module, element: Element) -> None:
    module.note(element, f"<{element.name}>{_WHY.get(element.name, '')}")


_WHY = {
    "vip": ": the VM keeps its own addresses; for an application, set one in its start command, or use a load balancer "
    "with /health/MODULE",
    "farm": ": there are no farms",
    "loadbalancing_list": ": there are no farms",
    "vhost": ": a VM has its own host name",
    "failover": ": rules of one's own; each checker has an action",
    "lan": ": the pair's networks are in cluster.toml",
}
_ELEMENTS: dict[str, Callable[[_Module, Element], None]] = {
    "heart": _heart, "rfs": _rfs, "user": _user, "errd": _errd, "check": _check,
}  # fmt: skip
_CHECKERS: dict[str, Callable[[_Module, Element], None]] = {
    "tcp": _tcp, "ping": _ping, "intf": _intf, "custom": _custom, "module": _module, "splitbrain": _splitbrain,
}  # fmt: skip


def _driver(module: _Module, service: Element) -> None:
    """A VM if there are the macros of safekit's modules for VMs, else commands."""
    vm, macros = module.tables["vm"], module.macros
    normal = macros.get("NORMAL_STOP", "").lower()
    if "VM_NAME" not in macros:
        vm["driver"] = "command"
        module.table("vm.options").update(start="/bin/false", stop="")
        module.note(service, "scripts: write start_prim's and stop_prim's commands into start and stop of [vm.options]")
        return
    if normal in ("stop", "save", "off"):
        vm["normal_stop"] = normal
    if _WINDOWS.search(macros.get("VM_PATH", "")):
        vm["driver"] = "hyperv"
        module.note(
            service, f"VM_NAME={macros['VM_NAME']!r}: what the driver for Hyper-V asks for goes into [vm.options]"
        )
    else:
        vm["driver"] = "libvirt"
        module.note(service, f"VM_NAME={macros['VM_NAME']!r}: save its definition in the mirrored directory, once: "
                    f"virsh dumpxml {macros['VM_NAME']} > domain.xml")  # fmt: skip


# ---- values


def seconds(text: str, unit: str) -> float:
    """`unit`: of a bare number. Raises NotConverted."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(d|h|m|s|ms|us)?\s*", text)
    if match is None:
        raise NotConverted(f"{text!r} is no time")
    return round(float(match[1]) * _UNITS[match[2] or unit], 6)


def _seconds(element: Element, name: str, unit: str) -> float:
    try:
        return seconds(element.attributes[name], unit)
    except NotConverted as error:
        raise NotConverted(f"line {element.line}: {name}: {error}") from error


def _whole(element: Element, name: str) -> int:
    text = element.attributes[name]
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise NotConverted(f"line {element.line}: {name}: {text!r} is no number")
    return int(text)


def _times(to: Element) -> dict[str, float]:
    names = {"interval": "period_s", "timeout": "timeout_s"}
    return {ours: _seconds(to, theirs, "s") for theirs, ours in names.items() if theirs in to.attributes}


def _action(module: _Module, element: Element, default: str) -> str:
    given = element.attributes.get("action", default)
    if given in ("restart", "stopstart", "stop", "wait", "swap"):
        return given
    if given != "noaction":
        module.note(element, f"action={given!r}: a handler of one's own; the action is none now")
    return "none"


def _expand(text: str, macros: Mapping[str, str]) -> str:
    for _ in range(MACRO_ROUNDS):
        expanded = re.sub(r"%([A-Za-z_][A-Za-z0-9_]*)%", lambda match: macros.get(match[1], match[0]), text)[:4096]
        if expanded == text:
            break
        text = expanded
    return text


def _note(element: Element, what: str) -> str:
    shown = what if what.startswith("<") else f"<{element.name}> {what}"
    return f"line {element.line}: {shown}"


def _written(module: _Module) -> str:
    lines = [f"{name} = {value_text(value)}" for name, value in module.top.items()]
    for table, values in module.tables.items():
        lines += ["", f"[{table}]", *(f"{name} = {value_text(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"
