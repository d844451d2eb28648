"""A QEMU guest on a real mirror: it runs on the mount, is saved there, and goes on from the other server's copy."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.hyperv.driver import Place, VmState
from hotpair.hyperv.errors import StillRunning
from hotpair.hyperv.qemu_io import QemuDriver
from tests.guest import APPEND, build, read_sign, wait_for_sign
from tests.mirror_pair import MirrorPair
from tests.programs import run

DESCRIPTION = f"""
memory = "128m"
kernel = "kernel"
initrd = "initrd"
append = "{APPEND}"
[[disks]]
file = "disk.raw"
aio = "AIO"
"""
LIMIT_S = 60.0


def prepare(pair: MirrorPair, aio: str = "threads") -> Place:
    """A guest in the mirrored directory."""
    guest = build(Path(tempfile.gettempdir()) / f"hotpair-guest-{os.getuid()}")
    pair.start()
    for file, name in ((guest.kernel, "kernel"), (guest.initrd, "initrd")):
        run(pair, ["cp", str(file), f"{pair.mount}/{name}"])
    run(pair, ["truncate", "-s", "4M", f"{pair.mount}/disk.raw"])
    run(pair, ["tee", f"{pair.mount}/vm.toml"], given=DESCRIPTION.replace("AIO", aio))
    return Place(
        module="web",
        directory=pair.mount,
        state_directory=f"{pair.base}/s1",
        options={"accelerator": "tcg"},
        application_log=f"{pair.base}/one.log",
        lock=f"{pair.base}/one.lock",
    )


@pytest.mark.timeout(300)
def test_a_guest_that_hangs_in_a_frozen_mirror_is_not_off() -> None:
    """A process that waits for a frozen write cannot be killed: it is off only once the mount has been aborted."""
    with MirrorPair() as pair:
        place = prepare(pair)
        driver = QemuDriver(place)
        try:
            driver.start(LIMIT_S)
            wait_for_sign(Path(pair.target_dir, "disk.raw"))
            pair.kill_target()
            assert driver.observe().state is VmState.ON
            time.sleep(1)  # five writes of the guest are due, and the first one is held
            with pytest.raises(StillRunning, match="waits in the kernel"):
                driver.turn_off(1)
            assert not driver.is_off().off
            assert driver.observe().state is not VmState.OFF
            pair.abort()
            driver.turn_off()
            assert driver.is_off().off
        finally:
            pair.abort()
            driver.turn_off()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("aio", ["threads", "native"])
def test_a_guest_goes_on_from_the_other_copy(aio: str) -> None:
    with MirrorPair() as pair:
        here = prepare(pair, aio)
        there = replace(
            here,
            directory=pair.target_dir,
            state_directory=f"{pair.base}/s2",
            application_log=f"{pair.base}/two.log",
            lock=f"{pair.base}/two.lock",
        )
        try:
            QemuDriver(here).start(LIMIT_S)
            first = wait_for_sign(Path(pair.mount, "disk.raw"))
            QemuDriver(here).save(LIMIT_S)
            pair.stop()
            assert pair.compare() == []
            saved = read_sign(Path(pair.target_dir, "disk.raw"))
            assert saved is not None and saved.boot == first.boot
            QemuDriver(there).start(LIMIT_S)
            found = QemuDriver(there).observe()
            assert found.state is VmState.ON and "saved state" not in found.detail
            now = wait_for_sign(Path(pair.target_dir, "disk.raw"), saved)
            assert now.boot == saved.boot and now.count > saved.count
            QemuDriver(there).stop(LIMIT_S)
        finally:
            for place in (here, there):
                QemuDriver(place).turn_off()
