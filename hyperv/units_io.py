"""A systemd scope of its own for each VM, where systemd runs: stopping hotpair's service then does not stop the VM."""

from __future__ import annotations

import hashlib
import os
import shutil

SLICE = "hotpair-vms.slice"
STOPPED_BY = "hotpair-modules.service"  # at shutdown systemd ends a scope only after what it is ordered before
BOOTED = "/run/systemd/system"  # sd_booted(3)


def scope_prefix(module: str, state_directory: str, booted: str = BOOTED) -> list[str]:
    """The words to put before a command; none where there is no systemd, or we may not ask it.

    Two hotpairs on one machine may have modules of the same name, so the state directory is in the unit's name.
    """
    program = shutil.which("systemd-run")
    if program is None or os.geteuid() != 0 or not os.path.isdir(booted):
        return []
    which = hashlib.sha256(state_directory.encode()).hexdigest()[:8]
    unit = [f"--unit=hotpair-vm-{module}-{which}", f"--slice={SLICE}", f"--property=Before={STOPPED_BY}"]
    return [program, "--scope", "--quiet", "--collect", *unit, "--"]
