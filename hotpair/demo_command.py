"""`hotpair demo`: the main job, shown on one machine: a power cut, the take-over, the return, a swap, equal copies."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hotpair.client import ApiError
from hotpair.demo_applications_io import Application, guest, plain_process
from hotpair.demo_guest_io import QEMU, NoGuest, ledger_guest
from hotpair.demo_screen import Screen
from hotpair.demo_servers_io import LOOPBACK_WITNESS, MODULE, DemoFailed, TwoServers, two_servers
from hotpair.hyperv.qemu_acceleration_io import kvm_problem
from hotpair.terminal import bytes_text

FIRST_PORT = 26000
WRITTEN = {"guest": 60, "process": 300}  # numbers before something is done to it: a guest is emulated, maybe
BALLAST_BYTES = 64 << 20
COMPARED_S = 60.0
NO_DIFFERENCE = "no difference"
RETURNED_S = 120.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hotpair demo",
        description="Two servers and a witness on this machine run a QEMU guest that writes all the time; one server "
        "loses its power. Takes one to three minutes, needs root, and leaves nothing behind. Without QEMU or a kernel "
        "a plain process runs instead.",
    )
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="first of 1000 local ports (default %(default)s)")
    parser.add_argument(
        "--kernel",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where boot/ and lib/modules/ of the guest's kernel are (default: this machine's own)",
    )
    parser.add_argument("--process", action="store_true", help="a plain process, even where a guest could run")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("hotpair demo: mounting needs root: sudo hotpair demo", file=sys.stderr)
        return 2
    if not os.path.exists("/dev/fuse"):
        print("hotpair demo: there is no /dev/fuse: modprobe fuse", file=sys.stderr)
        return 2
    console = Console()
    kind, make = _application(console, given.kernel, only_process=given.process)
    try:
        return Demo(console, kind).run(given.port, make)
    except (DemoFailed, ApiError) as error:
        console.print(f"[bold red]It did not work:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left behind")
        return 130


def _application(console: Console, kernel: Path, *, only_process: bool) -> tuple[str, Callable[[Path], Application]]:
    """What runs: a guest where one can be made."""
    why = "as asked for"
    if not only_process:
        try:
            image, initrd = ledger_guest(kernel)
        except NoGuest as error:
            why = str(error)
        else:
            accelerated = "with KVM" if kvm_problem(QEMU, "host") is None else "without KVM"
            console.print(f"What runs: a QEMU guest, {accelerated}, that writes numbers to its disk and flushes each.")
            return "guest", lambda folder: guest(MODULE, "a", folder, image, initrd, BALLAST_BYTES)
    console.print(f"What runs: a plain process that appends lines and flushes each, no guest: {why}.", markup=False)
    return "process", lambda folder: plain_process(MODULE, "a", folder)


class Demo:
    """One run; what took how long, and what was wrong, is kept for the summary."""

    def __init__(self, console: Console, kind: str) -> None:
        self._console = console
        self._what = "the guest" if kind == "guest" else "the application"
        self._written = WRITTEN[kind]
        self._times: list[tuple[str, str]] = []
        self._wrong: list[str] = []

    def run(self, port: int, make: Callable[[Path], Application]) -> int:
        began = time.monotonic()
        self._say("Two servers, [bold]a[/] and [bold]b[/], each with its own Ray runtime, and a witness start here.")
        with two_servers(port, applications=lambda folder: [make(folder)], witness=LOOPBACK_WITNESS) as servers:
            self._note("both servers and the module started", time.monotonic() - began)
            with Screen(self._console, servers) as screen:
                servers.looking = screen.look
                self._say(f"{self._what.capitalize()} writes numbers, each flushed to both copies.")
                self._note(f"{self._written} of them", servers.until_more(self._written))
                self._power_cut(servers)
                self._return(servers)
                self._swap(servers)
                self._compare(servers)
            self._say("Everything is ended and removed.")
        return self._sum_up(time.monotonic() - began)

    def _power_cut(self, servers: TwoServers) -> None:
        self._say("[bold]a loses its power[/]: kill -9 of everything that it runs.")
        servers["a"].cut_power()
        before = servers.acknowledged()
        took_s = servers.until(lambda: servers["b"].state() == "ALONE green", "b goes on")
        self._note(f"b noticed, was granted it by the witness, and runs {self._what}", took_s)
        self._note("until it wrote again", servers.until_more(1))
        self._check(servers, "b", before)
        servers.until_more(self._written)

    def _return(self, servers: TwoServers) -> None:
        self._say(f"[bold]a comes back[/]: only what changed is copied, while {self._what} runs on b.")
        servers["a"].start()
        self._note("a is in sync again, from its boot", servers.until_states("SECOND green", "PRIM green", RETURNED_S))
        with servers["b"].client() as client:
            done = client.details(MODULE).mirror.get("reintegrated")
        if done is not None:
            whole = sum(file.stat().st_size for file in servers["b"].data(MODULE).iterdir())
            how = "compared everything" if done["full"] else "looked only at what the dirty log names"
            self._note(f"it {how}: {bytes_text(done['bytes_done'])} of {bytes_text(whole)}", None)
        servers.until_more(self._written)

    def _swap(self, servers: TwoServers) -> None:
        self._say(f"[bold]swap[/]: {self._what} goes back to a.")
        servers.command("b", "swap")
        self._note("swapped, both green", servers.until_states("PRIM green", "SECOND green"))
        before = servers.acknowledged()
        self._note("until it wrote again", servers.until_more(1))
        self._check(servers, "a", before)

    def _compare(self, servers: TwoServers) -> None:
        self._say(f"Both copies are compared, while {self._what} writes.")
        with servers["a"].client() as client:
            client.verify(MODULE)
            took_s = servers.until(lambda: client.verification(MODULE).result is not None, "compared", COMPARED_S)
            found = client.verification(MODULE)
        self._note(f"compared {bytes_text(found.bytes_done)}: {found.result}", took_s)
        if found.result != NO_DIFFERENCE:
            self._wrong.append(f"the copies are not equal: {found.result} ({found.difference_count})")

    def _check(self, servers: TwoServers, where: str, acknowledged: int) -> None:
        """Every number that was acknowledged is there, in its place."""
        found = servers.journal(where)
        whole = found == list(range(1, len(found) + 1))
        lost = max(0, acknowledged - len(found))
        self._note(
            f"acknowledged before: {acknowledged:,} numbers; there on {where}: {len(found):,}; lost: {lost}", None
        )
        if lost or not whole:
            self._wrong.append(f"{lost} acknowledged numbers are not there on {where}, or not in their order")
        if servers.applications[MODULE].ran_twice():
            self._wrong.append("two of the application ran at the same time")

    # ---- what is shown

    def _say(self, text: str) -> None:
        self._console.print(f"\n{text}", highlight=False)

    def _note(self, what: str, took_s: float | None) -> None:
        took = "" if took_s is None else f"{took_s:.1f} s"
        self._times.append((what, took))
        self._console.print(f"  {what}" + (f": {took}" if took else ""), highlight=False)

    def _sum_up(self, took_s: float) -> int:
        table = Table(title="What happened", show_header=False)
        for what, took in self._times:
            table.add_row(what, took)
        self._console.print()
        self._console.print(table)
        for wrong in self._wrong:
            self._console.print(f"[bold red]{wrong}[/]")
        verdict = "[bold red]something is wrong[/]" if self._wrong else "[bold green]nothing was lost[/]"
        self._console.print(f"{verdict}, in {took_s:.0f} s", highlight=False)
        return 1 if self._wrong else 0
