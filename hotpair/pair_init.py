"""cluster.toml of a new pair, from what `hotpair init` is given. Pure: addresses are not looked up, files not read."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotpair.cluster.configuration_files import CLUSTER_FILE
from hotpair.toml_text import table_text, value_text

FIRST_NETWORK = "lan"
WITNESS_AUTHORITY = "tls/witness-authority.pem"

MEANINGS = {
    "witness": "a third machine decides (recommended)",
    "etcd": "an etcd cluster decides",
    "fence": "a command that switches the peer off decides",
    "ping": "whoever reaches an address goes on: two servers that both reach it, but not each other, both do",
    "manual": "nobody: when a server is lost, the module waits until you say prim on the other",
    "none": "nobody: a server that does not hear the other goes on, and if the network was cut, both do (split brain)",
}


class NotUnderstood(Exception):
    """What was typed does not make a pair; one line says what is wanted."""


@dataclass(frozen=True)
class Named:
    """NAME=ADDRESS."""

    name: str
    address: str


@dataclass(frozen=True)
class Options:
    """As typed. `here` and `peer`: NAME=ADDRESS. `networks`: NAME=ADDRESS-HERE,ADDRESS-OF-PEER."""

    pair: str
    here: str
    peer: str
    networks: Sequence[str] = ()
    arbitration: str = ""
    witness: str = ""
    witness_authority: bool = False
    witness_tls: bool = True
    etcd: Sequence[str] = ()
    fence: str = ""
    ping: Sequence[str] = ()


@dataclass(frozen=True)
class Pair:
    """`text`: cluster.toml."""

    name: str
    here: Named
    peer: Named
    text: str


def pair_of(options: Options) -> Pair:
    """Raises NotUnderstood. What stands in the text is checked when it is loaded."""
    here, peer = _named(options.here, "--server"), _named(options.peer, "--peer")
    mine, theirs = _networks(options.networks, here, peer)
    servers = "".join(
        f"\n[[servers]]\nname = {value_text(one.name)}\naddress = {value_text(one.address)}\nnetworks = {{ "
        + ", ".join(f"{name} = {value_text(address)}" for name, address in networks.items())
        + " }\n"
        for one, networks in ((here, mine), (peer, theirs))
    )
    arbitration = table_text({"arbitration": {"kind": options.arbitration, **_arbitration(options)}})
    text = f"# {CLUSTER_FILE}: the same on both servers\nname = {value_text(options.pair)}\n{servers}{arbitration}"
    return Pair(options.pair, here, peer, text)


def _named(text: str, option: str) -> Named:
    name, equals, address = text.partition("=")
    if not equals or not name or not address:
        raise NotUnderstood(f"{option} {text}: give NAME=ADDRESS, for example {option} alpha=10.0.0.1")
    return Named(name, address)


def _networks(texts: Sequence[str], here: Named, peer: Named) -> tuple[dict[str, str], dict[str, str]]:
    if not texts:
        if not _is_numeric(here.address) or not _is_numeric(peer.address):
            raise NotUnderstood(
                "pulses need numeric addresses: give --network NAME=ADDRESS,PEERS-ADDRESS for each network, for "
                "example --network lan=10.0.0.1,10.0.0.2"
            )
        return {FIRST_NETWORK: here.address}, {FIRST_NETWORK: peer.address}
    mine: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for text in texts:
        name, _, addresses = text.partition("=")
        first, comma, second = addresses.partition(",")
        if not name or not comma or not first or not second:
            raise NotUnderstood(
                f"--network {text}: give NAME=ADDRESS,PEERS-ADDRESS, for example --network lan=10.0.0.1,10.0.0.2"
            )
        if name in mine:
            raise NotUnderstood(f"--network {name} is given twice: each network has a name of its own")
        mine[name], theirs[name] = first.strip(), second.strip()
    return mine, theirs


def _is_numeric(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _arbitration(options: Options) -> Mapping[str, Any]:
    """The table of the chosen kind."""
    kind = options.arbitration
    if kind not in MEANINGS:
        known = "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
        what = f"--arbitration {kind} is not known" if kind else "--arbitration is missing"
        raise NotUnderstood(f"{what}. It says who decides when the servers do not hear each other. {known}")
    given = {"witness": options.witness, "etcd": options.etcd, "fence": options.fence, "ping": options.ping}
    for other, value in given.items():
        if value and other != kind:
            raise NotUnderstood(f"--{other} goes with --arbitration {other}, and this is {kind}: leave one out")
    if kind in given and not given[kind]:
        examples = {
            "witness": "--witness HOST:PORT",
            "etcd": "--etcd HOST:PORT, once for each member",
            "fence": "--fence 'COMMAND WORDS'",
            "ping": "--ping ADDRESS, once for each",
        }
        raise NotUnderstood(f"--arbitration {kind} needs {examples[kind]}")
    match kind:
        case "witness":
            return {kind: _witness(options)}
        case "etcd":
            return {kind: {"endpoints": list(options.etcd)}}
        case "fence":
            return {kind: {"command": _words(options.fence)}}
        case "ping":
            return {kind: {"addresses": list(options.ping)}}
    return {}


def _witness(options: Options) -> dict[str, Any]:
    table: dict[str, Any] = {"address": options.witness}
    if not options.witness_tls:
        table["tls"] = False
    elif options.witness_authority:
        table["tls_authority"] = WITNESS_AUTHORITY
    return table


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise NotUnderstood(f"--fence {text}: {error}") from error
