"""A QEMU guest on a real mirror: it runs on the mount, is saved there, and goes on from the other server's copy."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.hyperv.driver import Place, VmState
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("aio", ["threads", "native"])
def test_a_guest_goes_on_from_the_other_copy(aio: str) -> None:
    guest = build(Path(tempfile.gettempdir()) / f"hotpair-guest-{os.getuid()}")
    with MirrorPair() as pair:
        pair.start()
        run(pair, ["cp", str(guest.kernel), str(guest.initrd), pair.mount])
        run(pair, ["truncate", "-s", "4M", f"{pair.mount}/disk.raw"])
        run(pair, ["tee", f"{pair.mount}/vm.toml"], given=DESCRIPTION.replace("AIO", aio))
        here = Place(
            module="web",
            directory=pair.mount,
            state_directory=f"{pair.base}/s1",
            options={"accelerator": "tcg"},
            application_log=f"{pair.base}/one.log",
            lock=f"{pair.base}/one.lock",
        )
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
