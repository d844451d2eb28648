"""virsh, each call limited in time.

Why virsh and not libvirt's Python binding: a call of the binding cannot be limited in time or given up, and a library
of C in our process can end it; and the binding must be compiled against the server's libvirt, while virsh is there
wherever libvirt is administered.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hotpair.hyperv.commands_io import Ended, run_command
from hotpair.hyperv.errors import VmFailed
from hotpair.hyperv.libvirt_values import NO_DOMAIN, NO_LIBVIRT, DomainState, parse_state, says

CALL_LIMIT_S = 10.0


class NoDomain(VmFailed):
    """This libvirt does not know the domain."""


@dataclass(frozen=True)
class Virsh:
    """`program`: its path. `uri`: of libvirt on this server."""

    program: str
    uri: str

    def run(self, *words: str, limit_s: float = CALL_LIMIT_S) -> Ended:
        """However it ends. Raises VmFailed only when it cannot be run, or does not reach libvirt."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": os.environ.get("HOME", "/")}
        ended = run_command([self.program, "--quiet", "--connect", self.uri, *words], limit_s, environment)
        if ended.code != 0 and says(ended.errors, NO_LIBVIRT):
            raise VmFailed(f"libvirt cannot be reached: {ended.said}: start libvirtd, or correct the option uri")
        return ended

    def call(self, *words: str, limit_s: float = CALL_LIMIT_S) -> str:
        """What it prints. Raises VmFailed with what it says, NoDomain."""
        ended = self.run(*words, limit_s=limit_s)
        if ended.code is None:
            raise VmFailed(f"virsh {words[0]} did not end within {limit_s:.0f} s")
        if ended.code != 0:
            kind = NoDomain if says(ended.errors, NO_DOMAIN) else VmFailed
            raise kind(f"virsh {words[0]}: {ended.said}")
        return ended.output.strip()

    def state(self, domain: str) -> DomainState | None:
        """None when this libvirt does not know it. Raises VmFailed."""
        try:
            output = self.call("domstate", "--reason", domain)
        except NoDomain:
            return None
        state = parse_state(output)
        if state is None:
            raise VmFailed(f"virsh domstate says what this driver does not understand: {output[:200]}")
        return state
