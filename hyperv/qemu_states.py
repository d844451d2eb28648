"""What QEMU's run states mean. A total table over RunState of QEMU's interface (qapi/run-state.json). Pure code."""

from __future__ import annotations

from hotpair.hyperv.driver import VmState

_STATES: dict[str, tuple[VmState, str]] = {
    "running": (VmState.ON, ""),
    "suspended": (VmState.ON, "the guest has suspended itself"),
    "debug": (VmState.ON, "a debugger holds the guest"),
    "watchdog": (VmState.ON, "the guest's watchdog has expired"),
    "guest-panicked": (VmState.ON, "the guest has crashed"),
    "internal-error": (VmState.ON, "QEMU stopped the guest after an internal error"),
    "io-error": (VmState.ON, "the guest is held: a disk failed, or has no space left"),
    "paused": (VmState.ON, "the guest is held: somebody paused it"),
    "colo": (VmState.ON, "the guest is held by QEMU's own replication"),
    "prelaunch": (VmState.STARTING, ""),
    "inmigrate": (VmState.STARTING, "the saved state is being read"),
    "restore-vm": (VmState.STARTING, "the saved state is being read"),
    "finish-migrate": (VmState.STOPPING, "the state is being saved"),
    "postmigrate": (VmState.STOPPING, "the state has been saved"),
    "save-vm": (VmState.STOPPING, "the state is being saved"),
    "shutdown": (VmState.STOPPING, "the guest has shut down"),
}

# Where the guest is at rest before it was allowed to run, or after it was saved.
HELD_BY_US = {"restoring": VmState.STARTING, "saving": VmState.STOPPING}


def state_of(status: str, phase: str) -> tuple[VmState, str]:
    """State and detail for QEMU's status and the phase in the run's document."""
    if status == "paused" and phase in HELD_BY_US:
        return HELD_BY_US[phase], f"the guest is held: {phase} its state"
    state, detail = _STATES.get(status, (VmState.ON, f'QEMU says "{status}", which this driver does not know'))
    if phase == "stopping" and state is VmState.ON:
        return VmState.STOPPING, detail or "the guest was asked to shut down"
    return state, detail
