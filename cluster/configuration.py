"""What the user configured: cluster.toml and modules/NAME.toml as values, checked. Pure code.

Knows: the keys (configuration_tables.py), what must fit together, the digest that both servers compare. Must not know:
files, the network, whether an address or a directory exists.

A value of these classes has passed all checks: make them with `parse_cluster` and `parse_module` only.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hotpair.cluster import configuration_checks as checks
from hotpair.cluster.admission import NAME_RULE, is_name
from hotpair.cluster.checker_rules import Action, Rule, Rules
from hotpair.cluster.configuration_keys import (
    ConfigurationError,
    NotAccepted,
    Path,
    Problem,
    Report,
    did_you_mean,
    ip_address,
    read_table,
    shown,
)
from hotpair.cluster.configuration_tables import (
    ANSWER_ROOM_S,
    ARBITRATION,
    ARBITRATION_OPTIONS,
    CHECKER_KIND,
    CHECKER_KINDS,
    CHECKERS_PER_MODULE,
    CLUSTER,
    FENCE_AFTER_S,
    FENCE_ROOM_S,
    HEARTBEAT,
    LOOP,
    MIRROR,
    MODULE,
    SECURITY,
    SERVER,
    VM,
    checker_keys,
)
from hotpair.cluster.pulse import NETWORKS

_DIGEST_LABEL = b"hotpair configuration 1\n"  # another number when the canonical form changes


@dataclass(frozen=True)
class Server:
    """`networks`: the server's address on each."""

    name: str
    address: str
    networks: Mapping[str, str]


@dataclass(frozen=True)
class Heartbeat:
    pulse_s: float
    timeout_s: float
    fence_after_s: float
    vm_kill_s: float


@dataclass(frozen=True)
class Tls:
    """Paths, below the home directory if relative."""

    authority: str
    certificate: str
    key: str


@dataclass(frozen=True)
class Arbitration:
    """`options` has the keys of the kind's table, as in docs/configuration.md, except those of TLS."""

    kind: Literal["witness", "etcd", "fence", "ping", "none", "manual"]
    options: Mapping[str, Any]
    tls: Tls | None

    @property
    def asking_s(self) -> float:
        """How long one question may take; 0 where nobody is asked."""
        limit: float = self.options.get("timeout_s", 0.0)
        return limit

    @property
    def answered_s(self) -> float:
        """How long a module waits for the answer: longer than the question may take, or it would come too late."""
        return self.asking_s + ANSWER_ROOM_S


def default_fence_after_s(arbitration: Arbitration) -> float:
    """A fencing command may be slow, and its answer must find the primary's writes still held."""
    return arbitration.asking_s + FENCE_ROOM_S if arbitration.kind == "fence" else FENCE_AFTER_S


@dataclass(frozen=True)
class Security:
    """`tls` None: said plainly in the file that there is none."""

    key_file: str
    tls: Tls | None


@dataclass(frozen=True)
class Cluster:
    name: str
    servers: tuple[Server, Server]
    heartbeat: Heartbeat
    arbitration: Arbitration
    security: Security

    def peer_of(self, server: str) -> Server:
        """The other server. KeyError for a name that is neither."""
        first, second = self.servers
        return {first.name: second, second.name: first}[server]


@dataclass(frozen=True)
class Mirror:
    durability: Literal["memory", "disk"]
    cache: Literal["direct", "page"]
    extent_size: int
    hot_extents: int
    silence_timeout_s: float
    stall_timeout_s: float


@dataclass(frozen=True)
class Vm:
    """`driver`: a name; whether it is installed, and what it says of `options`, is checked by who uses it."""

    driver: str
    normal_stop: Literal["stop", "save", "off"]
    start_timeout_s: float
    stop_timeout_s: float
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Loop:
    max_loop: int
    loop_interval_s: float


@dataclass(frozen=True)
class Checker:
    """`options` has the keys of its kind. `before_start`: it is run before the module is started as well."""

    name: str
    kind: str
    period_s: float
    timeout_s: float
    confirm_s: float
    start_s: float
    action: Action
    before_start: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Module:
    """`preferred` and `data_on` are None where no server is named."""

    name: str
    directory: str
    mirror_port: int
    boot: Literal["on", "off", "as-before"]
    preferred: str | None
    failback: Literal["manual", "automatic"]
    split_brain: str
    data_on: str | None
    mirror: Mirror
    vm: Vm
    loop: Loop
    checkers: tuple[Checker, ...]

    @property
    def rules(self) -> Rules:
        """For checker_rules.py."""
        each = {one.name: Rule(one.name, one.action, one.confirm_s, one.start_s) for one in self.checkers}
        return Rules(each, self.loop.max_loop, self.loop.loop_interval_s)


def digest(configuration: Cluster | Module) -> bytes:
    """32 bytes: equal on both servers if and only if the values are, however the files are written."""
    canonical = json.dumps(asdict(configuration), sort_keys=True, default=_plain)
    return hashlib.sha256(_DIGEST_LABEL + canonical.encode()).digest()


def _plain(value: object) -> str:
    assert isinstance(value, Action), "nothing else in a configuration is not JSON"
    return value.value


# ---- cluster.toml


def parse_cluster(text: str, file: str = "cluster.toml") -> Cluster:
    """Raises ConfigurationError with all that is wrong."""
    top, report = _toml(text, file)
    tables = ("servers", "heartbeat", "arbitration", "security")
    values = read_table(CLUSTER, top, (), report, tables)
    servers = _servers(top, report)
    heartbeat = read_table(HEARTBEAT, top.get("heartbeat", {}), ("heartbeat",), report)
    arbitration = _arbitration(top, report)
    if arbitration is not None:
        heartbeat.setdefault("fence_after_s", default_fence_after_s(arbitration))
    security, security_tls = _with_tls(read_table(SECURITY, top.get("security", {}), ("security",), report))
    report.end()
    assert arbitration is not None and len(servers) == 2
    cluster = Cluster(
        name=values["name"],
        servers=(servers[0], servers[1]),
        heartbeat=Heartbeat(**heartbeat),
        arbitration=arbitration,
        security=Security(tls=security_tls, **security),
    )
    checks.check_cluster(cluster, report)
    report.end()
    return cluster


def _toml(text: str, file: str) -> tuple[dict[str, Any], Report]:
    try:
        return tomllib.loads(text), Report(file, text)
    except (ValueError, RecursionError) as error:  # says the line; numbers too long and lists too deep are not its own
        raise ConfigurationError([Problem(file, None, "", f"this is not TOML: {error}")]) from error


def _servers(top: Mapping[str, Any], report: Report) -> list[Server]:
    tables = top.get("servers")
    if not isinstance(tables, list) or len(tables) != 2:
        report.say(("servers",), "give exactly two tables [[servers]], one for each server")
        return []
    servers = []
    for i, table in enumerate(tables):
        values = read_table(SERVER, table, ("servers", i), report, ("networks",))
        networks = _networks(table, ("servers", i, "networks"), report) if isinstance(table, dict) else {}
        if len(values) == len(SERVER):
            servers.append(Server(networks=networks, **values))
    return servers


def _networks(server: Mapping[str, Any], path: Path, report: Report) -> dict[str, str]:
    table = server.get("networks")
    if not isinstance(table, dict) or not 1 <= len(table) <= NETWORKS:
        report.say(path, f'give a table of 1 to {NETWORKS} networks, for example {{ lan = "10.0.0.1" }}')
        return {}
    kind, networks = ip_address(), {}
    for name, address in table.items():
        if not is_name(name):
            report.say((*path, name), f"a network cannot be called {shown(name)}: use {NAME_RULE}")
        try:
            networks[name] = str(kind.read(address))
        except NotAccepted:
            report.say((*path, name), f"{shown(address)} is not accepted: give {kind.accepted}")
    return networks


def _arbitration(top: Mapping[str, Any], report: Report) -> Arbitration | None:
    table = top.get("arbitration", {})
    values = read_table(ARBITRATION, table, ("arbitration",), report, tuple(ARBITRATION_OPTIONS))
    kind = values.get("kind")
    if kind is None:
        return None
    for other in ARBITRATION_OPTIONS:
        if other != kind and other in table:
            report.say(
                ("arbitration", other), f'this table is for kind = "{other}", but the kind is "{kind}": remove one'
            )
    if kind not in ARBITRATION_OPTIONS:
        return Arbitration(kind, {}, None)
    options = read_table(ARBITRATION_OPTIONS[kind], table.get(kind, {}), ("arbitration", kind), report)
    return Arbitration(kind, *_with_tls(options))


def _with_tls(values: dict[str, Any]) -> tuple[dict[str, Any], Tls | None]:
    """The values without those of TLS, and these."""
    files = {name: values[f"tls_{name}"] for name in ("authority", "certificate", "key") if f"tls_{name}" in values}
    rest = {name: value for name, value in values.items() if name != "tls" and not name.startswith("tls_")}
    return rest, Tls(**files) if values.get("tls") and len(files) == 3 else None


# ---- modules/NAME.toml


def parse_module(text: str, name: str, cluster: Cluster, file: str | None = None) -> Module:
    """The module `name` of this pair. Raises ConfigurationError with all that is wrong."""
    top, report = _toml(text, file or f"modules/{name}.toml")
    if not is_name(name):
        report.say((), f"a module cannot be called {shown(name)}: use {NAME_RULE}")
    values = read_table(MODULE, top, (), report, ("mirror", "vm", "loop", "checkers"))
    mirror = read_table(MIRROR, top.get("mirror", {}), ("mirror",), report)
    vm = read_table(VM, top.get("vm", {}), ("vm",), report, ("options",))
    loop = read_table(LOOP, top.get("loop", {}), ("loop",), report)
    options = _driver_options(top.get("vm", {}), report)
    checkers = _checkers(top.get("checkers", {}), report)
    report.end()
    for key in ("preferred", "data_on"):
        values[key] = values[key] or None
    module = Module(
        name=name,
        mirror=Mirror(**mirror),
        vm=Vm(options=options, **vm),
        loop=Loop(**loop),
        checkers=checkers,
        **values,
    )
    checks.check_module(module, cluster, report)
    report.end()
    return module


def _driver_options(vm: object, report: Report) -> dict[str, Any]:
    options = vm.get("options", {}) if isinstance(vm, dict) else {}
    if not isinstance(options, dict):
        report.say(("vm", "options"), "give a table of the driver's options")
        return {}
    for name, value in options.items():
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str | int) for entry in entries):  # a truth value is an int
            report.say(("vm", "options", name), "give text, a whole number, true or false, or a list of them")
    return options


def _checkers(tables: object, report: Report) -> tuple[Checker, ...]:
    if not isinstance(tables, dict) or len(tables) > CHECKERS_PER_MODULE:
        report.say(("checkers",), f"give at most {CHECKERS_PER_MODULE} tables [checkers.NAME]")
        return ()
    return tuple(checker for name in sorted(tables) if (checker := _checker(name, tables[name], report)) is not None)


def _checker(name: str, table: object, report: Report) -> Checker | None:
    path = ("checkers", name)
    if not is_name(name):
        report.say(path, f"a checker cannot be called {shown(name)}: use {NAME_RULE}")
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind not in CHECKER_KINDS:
        known = did_you_mean(kind, CHECKER_KINDS) if isinstance(kind, str) else ""
        what = "it is missing" if kind is None else f"{shown(kind)} is not accepted{known}"
        report.say((*path, "kind"), f"{what}; give {CHECKER_KIND.kind.accepted}")
        return None
    before = len(report.problems)
    values = read_table(checker_keys(kind), table, path, report)
    if len(report.problems) > before:
        return None
    own = {key.name for key in CHECKER_KINDS[kind].options}
    return Checker(
        name=name,
        action=Action(values.pop("action")),
        before_start=CHECKER_KINDS[kind].before_start,
        options={key: value for key, value in values.items() if key in own},
        **{key: value for key, value in values.items() if key not in own},
    )
