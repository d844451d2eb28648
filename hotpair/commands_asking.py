"""The commands that ask the running service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from hotpair.actors.home import Home
from hotpair.api_values import Module
from hotpair.client import Client, Refused
from hotpair.command_options import CommandFailed, HomeOption, ModuleArgument, argument, home_of, option
from hotpair.event_line import event_line
from hotpair.shown import STATES, exit_code

LOOK_S = 0.2  # between two looks while something is waited for
BEGIN_S = 1.0  # until a comparison that was just begun is seen: what the service shows may be half a second old

# ---- what is seen


def state(
    module: Annotated[str | None, argument(metavar="MODULE", help="All modules if left out")] = None,
    as_json: Annotated[bool, option("--json", help="For programs")] = False,
    home: HomeOption = None,
) -> int:
    """The modules' states on both servers.

    With MODULE the exit code is its state here: 0 STOP, 1 WAIT, 2 ALONE, 3 PRIM, 4 SECOND, 5 it cannot be said.
    """
    with _client(home) as client:
        modules = client.modules() if module is None else [client.module(module)]
    if as_json:
        shown = [asdict(one) for one in modules]
        print(json.dumps(shown if module is None else shown[0], indent=2))
    else:
        from hotpair.terminal import modules_table, show_table

        show_table(modules_table(modules))
    return 0 if module is None else exit_code(modules[0].state)


def show(
    module: ModuleArgument,
    as_json: Annotated[bool, option("--json", help="For programs")] = False,
    home: HomeOption = None,
) -> None:
    """Configuration, record, and what mirror, VM and pulses say."""
    with _client(home) as client:
        details = client.details(module)
    if as_json:
        print(json.dumps(asdict(details), indent=2, ensure_ascii=False))
    else:
        from hotpair.terminal import details_text, show_table

        show_table(details_text(details))


def events(
    module: Annotated[str | None, argument(metavar="MODULE", help="All modules if left out")] = None,
    follow: Annotated[bool, option("--follow", "-f", help="Go on with what happens, until Ctrl-C")] = False,
    lines: Annotated[int, option("--lines", "-n", least=1, most=1000, help="How many of the past")] = 50,
    as_json: Annotated[bool, option("--json", help="One object for each line")] = False,
    home: HomeOption = None,
) -> None:
    """What happened: changes of state, their causes, commands."""
    said: Callable[[dict[str, Any]], str] = json.dumps if as_json else event_line
    with _client(home) as client:
        for entry in client.follow_events(module, lines) if follow else client.events(module, lines):
            print(said(entry), flush=True)


def log(
    module: ModuleArgument,
    follow: Annotated[bool, option("--follow", "-f", help="Go on with what is added, until Ctrl-C")] = False,
    lines: Annotated[int, option("--lines", "-n", least=0, most=2000, help="How many of the past")] = 50,
    home: HomeOption = None,
) -> None:
    """The application log: what the driver does, and what the VM or the application says."""
    with _client(home) as client:
        for line in client.follow_log(module, lines) if follow else client.log(module, lines):
            print(line, flush=True)


def wait(
    module: ModuleArgument,
    wanted: Annotated[str, argument(metavar="STATE", help=", ".join(STATES))],
    timeout: Annotated[float, option("--timeout", least=0, help="Seconds")] = 60.0,
    green: Annotated[bool, option("--green", help="And green: it serves, or can take over")] = False,
    home: HomeOption = None,
) -> None:
    """Wait until the module is in STATE on this server. Exit code 1 when it is not in time."""
    if wanted.upper() not in STATES:
        raise CommandFailed(f"{wanted!r} is no state: give one of {', '.join(STATES)}")
    until = time.monotonic() + timeout
    with _client(home) as client:
        while True:
            now = client.module(module)
            if now.state == wanted.upper() and (now.ready or not green):
                return
            if time.monotonic() >= until:
                shown = f"{now.state}{' (green)' if now.ready else ''}{': ' + now.reason if now.reason else ''}"
                raise Refused(f"{module} is still {shown}")
            time.sleep(LOOK_S)


# ---- what is done


def _command(word: str, what: str) -> Callable[..., None]:
    """One of the commands that take a module and nothing else."""

    def give(module: ModuleArgument, home: HomeOption = None) -> None:
        with _client(home) as client:
            client.command(module, word)

    give.__doc__ = what
    return give


def shutdown(
    timeout: Annotated[
        float, option("--timeout", least=0, help="Seconds until what still runs is left running")
    ] = 600.0,
    home: HomeOption = None,
) -> None:
    """Stop all modules here before the host goes down, the peer's copies first; they stay wanted for the next boot."""
    until = time.monotonic() + timeout
    with _client(home) as client:
        client.shutdown()
        while running := [one.module for one in client.modules() if _is_to_stop(one)]:
            if time.monotonic() >= until:
                raise Refused(f"not stopped within {timeout:g} s: {', '.join(running)}")
            time.sleep(LOOK_S)


def _is_to_stop(module: Module) -> bool:
    """Nothing is decided for one with a problem, so that it is not waited for."""
    return not module.problem and module.state not in (None, "STOP")


def prim(
    module: ModuleArgument,
    force: Annotated[bool, option("--force", help="The peer is off for certain, or its copy is given up")] = False,
    home: HomeOption = None,
) -> None:
    """Declare the copy on this server the current one, and run it. The other copy's later changes are given up."""
    with _client(home) as client:
        client.command(module, "prim", force=force)


def second(
    module: ModuleArgument,
    full: Annotated[bool, option("--full", help="Compare everything, whatever the logs say")] = False,
    home: HomeOption = None,
) -> None:
    """Let this server's copy be brought to what the peer has. Its own later changes are given up."""
    with _client(home) as client:
        client.command(module, "second", full=full)


def maintenance_on(module: ModuleArgument, home: HomeOption = None) -> None:
    """No automatic failover, no checkers, until it is lifted."""
    with _client(home) as client:
        client.command(module, "maintenance", on=True)


def maintenance_off(module: ModuleArgument, home: HomeOption = None) -> None:
    """Automatic failover and checkers again."""
    with _client(home) as client:
        client.command(module, "maintenance", on=False)


def retry(module: ModuleArgument, home: HomeOption = None) -> None:
    """Have the mirror try the peer's copy again now; on the server that runs the module.

    After a disk that was full there, or whatever hotpair state gives as the mirror's reason, was put right.
    """
    with _client(home) as client:
        client.retry(module)


def verify(
    module: ModuleArgument,
    repair: Annotated[bool, option("--repair", help="Where they differ, the peer's copy is replaced")] = False,
    begin: Annotated[bool, option("--begin", help="Only begin; hotpair module show says how far it is")] = False,
    end: Annotated[bool, option("--end", help="End the one under way")] = False,
    home: HomeOption = None,
) -> None:
    """Compare both copies while the VM runs; on the server that runs it. Exit code 1 if they differ."""
    with _client(home) as client:
        if end:
            client.end_verify(module)
            return
        client.verify(module, repair=repair)
        if not begin:
            _until_verified(client, module)


def _until_verified(client: Client, module: str) -> None:
    time.sleep(BEGIN_S)
    while (found := client.verification(module)).running:
        time.sleep(LOOK_S)
    if not found.known or found.result is None:
        raise Refused("the comparison has not ended as it should: the mirror process is another one")
    for difference in found.differences:
        where = "" if difference["offset"] is None else f" at {difference['offset']}, {difference['length']} bytes"
        repaired = " (repaired)" if difference["repaired"] else ""
        print(f"{difference['path']}: {difference['what']}{where}{repaired}")
    print(f"{found.bytes_done} bytes compared: {found.result}")
    if found.result != "no difference" and not 0 < found.difference_count == found.repaired:
        raise Refused(f"{found.result}: {found.difference_count} places, {found.repaired} repaired")


def _client(home: str | None) -> Client:
    found: Home = home_of(home)
    return Client.here(found)


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "state": state,
    "module show": show,
    "events": events,
    "log": log,
    "wait": wait,
    "start": _command("start", "Let the module run: here, or as the peer's copy; both servers then agree on who does."),
    "stop": _command("stop", "Stop the module here. An equal peer goes on with it."),
    "restart": _command("restart", "Stop and start the VM only; it stays on this server."),
    "stopstart": _command(
        "stopstart", "Stop the module here, then start it here: an equal peer takes over in between."
    ),
    "swap": _command("swap", "Let the two servers change their roles. Both must be green."),
    "shutdown": shutdown,
    "prim": prim,
    "second": second,
    "maintenance on": maintenance_on,
    "maintenance off": maintenance_off,
    "retry": retry,
    "verify": verify,
}
