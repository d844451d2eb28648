"""`hotpair demo`: the main job, shown on one machine: a power cut, the take-over, the return, a swap, equal copies."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from hotpair.client import ApiError
from hotpair.demo_servers_io import DemoFailed, TwoServers, two_servers

FIRST_PORT = 26000
WRITTEN = 300  # lines before something is done to it
COMPARED_S = 60.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hotpair demo",
        description="Two servers on this machine run an application that writes all the time; one loses its power. "
        "Takes about a minute, needs root, and leaves nothing behind.",
    )
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="first of 1000 local ports (default %(default)s)")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("hotpair demo: mounting needs root: sudo hotpair demo", file=sys.stderr)
        return 2
    if not os.path.exists("/dev/fuse"):
        print("hotpair demo: there is no /dev/fuse: modprobe fuse", file=sys.stderr)
        return 2
    console = Console()
    try:
        return Demo(console).run(given.port)
    except (DemoFailed, ApiError) as error:
        console.print(f"[bold red]It did not work:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left behind")
        return 130


class Demo:
    """One run; what took how long, and what was wrong, is kept for the summary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._times: list[tuple[str, str]] = []
        self._wrong: list[str] = []

    def run(self, port: int) -> int:
        began = time.monotonic()
        self._say("Two servers, [bold]a[/] and [bold]b[/], each with its own Ray runtime, start on this machine.")
        with two_servers(port) as servers:
            self._note("both servers and the module started", time.monotonic() - began)
            self._show(servers)
            self._step("The application writes lines, each flushed to both copies.", servers.until_more, WRITTEN)
            self._power_cut(servers)
            self._return(servers)
            self._swap(servers)
            self._compare(servers)
            self._say("Everything is ended and removed.")
        return self._sum_up(time.monotonic() - began)

    def _power_cut(self, servers: TwoServers) -> None:
        self._say("[bold]a loses its power[/]: kill -9 of everything that it runs.")
        before = servers.acknowledged()
        servers["a"].cut_power()
        took_s = servers.until(lambda: servers["b"].state() == "ALONE green", "b goes on")
        self._note("b noticed, and runs the application", took_s)
        self._note("until it wrote again", servers.until_more(1))
        self._show(servers)
        self._check(servers, "b", before)

    def _return(self, servers: TwoServers) -> None:
        self._say("[bold]a comes back[/]: only what changed is copied, while the application runs on b.")
        servers["a"].start()
        self._note("a is in sync again, from its boot", servers.until_states("SECOND green", "PRIM green", 120.0))
        self._show(servers)
        servers.until_more(WRITTEN)

    def _swap(self, servers: TwoServers) -> None:
        self._say("[bold]swap[/]: the application goes back to a.")
        servers.command("b", "swap")
        self._note("swapped, both green", servers.until_states("PRIM green", "SECOND green"))
        servers.until_more(WRITTEN)
        self._show(servers)
        self._check(servers, "a", servers.acknowledged())

    def _compare(self, servers: TwoServers) -> None:
        self._say("Both copies are compared, while the application writes.")
        with servers["a"].client() as client:
            client.verify("app")
            took_s = servers.until(lambda: client.verification("app").result is not None, "compared", COMPARED_S)
            found = client.verification("app")
        self._note(f"compared: {found.result}", took_s)
        if found.difference_count:
            self._wrong.append(f"{found.difference_count} differences between the copies")

    def _check(self, servers: TwoServers, where: str, acknowledged: int) -> None:
        """Every line that was acknowledged is there, in its place."""
        found = servers.journal(where)
        whole = found == list(range(1, len(found) + 1))
        lost = max(0, acknowledged - len(found))
        self._note(f"acknowledged before: {acknowledged:,} lines; there on {where}: {len(found):,}; lost: {lost}", None)
        if lost or not whole:
            self._wrong.append(f"{lost} acknowledged lines are not there on {where}, or not in their order")

    # ---- what is shown

    def _say(self, text: str) -> None:
        self._console.print(f"\n{text}", highlight=False)

    def _step(self, text: str, work: Callable[[int], float], lines: int) -> None:
        self._say(text)
        took_s = work(lines)
        self._note(f"{lines} lines", took_s)

    def _note(self, what: str, took_s: float | None) -> None:
        took = "" if took_s is None else f"{took_s:.1f} s"
        self._times.append((what, took))
        self._console.print(f"  {what}" + (f": {took}" if took else ""), highlight=False)

    def _show(self, servers: TwoServers) -> None:
        words = []
        for name, server in servers.servers.items():
            state = server.state()
            colour = "green" if state.endswith("green") else "magenta" if state else "red"
            words.append(f"[bold]{name}[/] [{colour}]{state.removesuffix(' green') or 'no power'}[/]")
        self._console.print("  " + "   ".join(words), highlight=False)

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
