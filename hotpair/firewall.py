"""The firewall rules that the configuration asks for, for nftables. Pure.

Only hotpair's own ports are ruled, in a table of its own: whatever else the machine's firewall says stays as it is.
What is accepted here can still be dropped by another table.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

TABLE = "hotpair"


@dataclass(frozen=True)
class Openings:
    """`peer`: the peer's numeric addresses. `modules`: their ports, TCP (mirror) and UDP (pulses).

    ray      first and last port of the runtime: for this machine alone
    api      port of the HTTP API; `api_open`: for everybody, since it has TLS and asks for tokens; else for the peer
    """

    peer: Collection[str]
    modules: Collection[int]
    ray: tuple[int, int]
    api: int
    api_open: bool


def rules(openings: Openings) -> str:
    """For `nft -f`; replaces what it was given before, at once."""
    lines = [
        f"table inet {TABLE}",  # so that there is one to delete
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        "\tchain input {",
        "\t\ttype filter hook input priority filter; policy accept;",
        '\t\tiifname "lo" accept',
    ]
    if openings.modules:
        ports = "{ " + ", ".join(str(port) for port in sorted(openings.modules)) + " }"
        for family, addresses in _by_family(openings.peer).items():
            source = f"{family} saddr {{ {', '.join(addresses)} }}"
            lines.append(f'\t\t{source} tcp dport {ports} accept comment "mirrors of the modules, from the peer"')
            lines.append(f'\t\t{source} udp dport {ports} accept comment "pulses of the modules, from the peer"')
        lines.append(f"\t\ttcp dport {ports} drop")
        lines.append(f"\t\tudp dport {ports} drop")
    first, last = openings.ray
    lines.append(f'\t\ttcp dport {first}-{last} drop comment "Ray: for this machine alone"')
    if not openings.api_open:
        for family, addresses in _by_family(openings.peer).items():
            source = f"{family} saddr {{ {', '.join(addresses)} }}"
            lines.append(f'\t\t{source} tcp dport {openings.api} accept comment "pair channel, from the peer"')
    verdict, why = ("accept", "API, with TLS and tokens") if openings.api_open else ("drop", "API without TLS")
    lines.append(f'\t\ttcp dport {openings.api} {verdict} comment "{why}"')
    return "\n".join([*lines, "\t}", "}"]) + "\n"


def _by_family(addresses: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for address in sorted({ipaddress.ip_address(one) for one in addresses}, key=lambda one: (one.version, int(one))):
        found.setdefault("ip" if address.version == 4 else "ip6", []).append(str(address))
    return found
