"""Compare both copies of a running mirror, for example each Sunday night: python compare_copies.py STATE [--repair]

STATE is the source's state directory. Differences are printed one to a line. The exit code is 0 when the copies are
equal, 1 when they differ, 2 when they could not be compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError

LOOK_S = 0.2  # the mirror tells nobody when a comparison ends: it is asked


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare both copies of a running mirror.")
    parser.add_argument("state", help="the source's state directory")
    parser.add_argument("--repair", action="store_true", help="bring the target's copy to what the source has")
    parser.add_argument("--mib-per-second", type=int, default=0, help="read no faster than this; 0: no limit")
    given = parser.parse_args()
    try:
        with ControlClient(given.state) as mirror:
            mirror.ask("set_ceiling", bytes_per_second=given.mib_per_second << 20)
            mirror.ask("verify_start", repair=given.repair)
            return tell(wait(mirror))
    except MirrorError as error:
        print(f"compare_copies: {error}", file=sys.stderr)
        return 2


def wait(mirror: ControlClient) -> dict[str, Any]:
    """What the comparison has found, when it has ended."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing", total=None)
        while True:
            found: dict[str, Any] = mirror.ask("status")["verify"]
            progress.update(task, completed=found["bytes_done"], total=found["bytes_total"])
            if not found["running"]:
                return found
            time.sleep(LOOK_S)


def tell(found: dict[str, Any]) -> int:
    """Print what differs; the exit code."""
    for difference in found["differences"]:
        where = "" if difference["offset"] is None else f" at byte {difference['offset']}"
        repaired = ", repaired" if difference["repaired"] else ""
        print(f"{difference['path']}: {difference['what']}{where}{repaired}")
    print(f"{found['files_done']} files, {found['bytes_done']} bytes: {found['result']}")
    if found["difference_count"]:
        return 1
    return 0 if found["result"] == "no difference" else 2


if __name__ == "__main__":
    sys.exit(main())
