"""The foreground commands: one module's source or target, without Ray and without a configuration file.

    python -m hotpair.replication target --dir DIR --state DIR --listen HOST:PORT
    python -m hotpair.replication source --dir DIR --state DIR --peer HOST:PORT [--alone-after SECONDS]
    python -m hotpair.replication protect --dir DIR
    python -m hotpair.replication unprotect --dir DIR
    python -m hotpair.replication restore --dir DIR --state DIR
    python -m hotpair.replication salvage --dir DIR --state DIR --generation HEX
    python -m hotpair.replication unsalvage --file FILE [--to DIR]

Source and target each print ``ready`` when they are, and what happens afterwards, a line each. SIGTERM unmounts and
ends cleanly.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from hotpair.cluster.record import ID_BYTES
from hotpair.replication.control import ControlServer, source_commands, target_commands
from hotpair.replication.errors import BadConfiguration, MirrorError
from hotpair.replication.fuse_io import mount_at
from hotpair.replication.limits import (
    EXTENT_SIZE,
    EXTENT_SIZE_LARGEST,
    EXTENT_SIZE_SMALLEST,
    HOT_EXTENTS,
    KNOWN_OBJECTS,
    SHORTEST_SILENCE_S,
    SILENCE_TIMEOUT_S,
    STALL_TIMEOUT_S,
)
from hotpair.replication.process_io import keep_running
from hotpair.replication.protect_io import protect, unprotect
from hotpair.replication.restore_io import Restore
from hotpair.replication.salvage_io import Salvage
from hotpair.replication.source_process import SourceProcess
from hotpair.replication.source_start import SourceOptions
from hotpair.replication.target_process import TargetProcess
from hotpair.replication.target_start import TargetOptions
from hotpair.replication.transport_io import TlsFiles, parse_address
from hotpair.replication.unsalvage_io import unsalvage

LAYOUT_COMMANDS = {"protect": protect, "unprotect": unprotect}
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise BadConfiguration(message)


def parser() -> Parser:
    """The command line."""
    top = Parser(prog="python -m hotpair.replication", description="Mirror one directory in the foreground.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    source = commands.add_parser("source", help="mount over DIR and replicate what is written there")
    target = commands.add_parser("target", help="hold the copy")
    protect_command = commands.add_parser("protect", help="move the data beside DIR: nothing is there without a mirror")
    unprotect_command = commands.add_parser("unprotect", help="move the data back into DIR")
    restore_command = commands.add_parser("restore", help="put back the copy as it was before a reintegration")
    salvage_command = commands.add_parser("salvage", help="save what a copy has that was given up after a split brain")
    for command in (protect_command, unprotect_command, restore_command, salvage_command):
        command.add_argument("--dir", required=True, help="the module's directory")
    for command in (restore_command, salvage_command):
        command.add_argument("--state", required=True, help="the state directory of this copy")
    salvage_command.add_argument("--generation", required=True, metavar="HEX", help="of the copy that was given up")
    for command in (salvage_command, target):
        command.add_argument("--salvage-dir", metavar="DIR", help="for salvage files; the state directory by default")
    unsalvage_command = commands.add_parser("unsalvage", help="list what is in a salvage file, or get it back")
    unsalvage_command.add_argument("--file", required=True, help="the salvage file")
    unsalvage_command.add_argument("--to", metavar="DIR", help="get it back into new files below DIR")
    unsalvage_command.add_argument("--path", help="of one file in it; all by default")
    for command in (source, target):
        command.add_argument("--dir", required=True, help="the module's directory")
        command.add_argument("--state", required=True, help="where the durable record and the dirty log are kept")
        command.add_argument("--durability", default="memory", help="memory (default) or disk")
        command.add_argument(
            "--stall-timeout", default=f"{STALL_TIMEOUT_S:g}", metavar="SECONDS", help="%(default)s by default"
        )
        command.add_argument("--tls-certificate", metavar="FILE")
        command.add_argument("--tls-key", metavar="FILE")
        command.add_argument("--tls-ca", metavar="FILE", help="the authority that signed the peer's certificate")
        command.add_argument("--no-tls", action="store_true", help="allow a connection beyond this host without TLS")
        command.add_argument("--verbose", action="store_true", help="log more")
    source.add_argument("--peer", required=True, metavar="HOST:PORT")
    source.add_argument("--alone", action="store_true", help="go on at once, as the record says")
    source.add_argument("--alone-after", metavar="SECONDS", help="the verdict after a lost link; none by default")
    source.add_argument(
        "--fence-after", metavar="SECONDS", help="fail the mount when no verdict has come so long after a lost link"
    )
    source.add_argument(
        "--silence-timeout", default=f"{SILENCE_TIMEOUT_S:g}", metavar="SECONDS", help="%(default)s by default"
    )
    source.add_argument("--cache", default="direct", help="direct (default) or page")
    source.add_argument(
        "--extent-size", default=str(EXTENT_SIZE), metavar="BYTES", help="a power of two; 4m by default"
    )
    source.add_argument("--hot-extents", default=str(HOT_EXTENTS), metavar="N", help="size of the activity log")
    source.add_argument(
        "--known-objects", default=str(KNOWN_OBJECTS), metavar="N", help="files and directories kept in memory"
    )
    target.add_argument("--listen", required=True, metavar="HOST:PORT")
    target.add_argument("--overwrite", action="store_true", help="replace what is in DIR although it was never a copy")
    return top


def seconds(option: str, text: str, least: float = 0.0) -> float:
    """A time. Raises BadConfiguration."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e6:
        raise BadConfiguration(f"{option} {text}: give a number of seconds, at least {least:g}, for example 5")
    return value


def one_of(option: str, text: str, accepted: tuple[str, ...]) -> str:
    """A word out of a few. Raises BadConfiguration."""
    if text not in accepted:
        raise BadConfiguration(f"{option} {text}: give one of {', '.join(accepted)}")
    return text


def extent_size(text: str) -> int:
    """A power of two within the limits. Raises BadConfiguration."""
    unit = UNITS.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    value = whole_number(digits) * unit
    if not EXTENT_SIZE_SMALLEST <= value <= EXTENT_SIZE_LARGEST or value & (value - 1):
        raise BadConfiguration(
            f"--extent-size {text}: give a power of two from {EXTENT_SIZE_SMALLEST} to {EXTENT_SIZE_LARGEST}, "
            "for example 4m"
        )
    return value


def count(option: str, text: str, least: int, most: int) -> int:
    """A whole number within limits. Raises BadConfiguration."""
    value = whole_number(text)
    if not least <= value <= most:
        raise BadConfiguration(f"{option} {text}: give a whole number from {least} to {most}")
    return value


def whole_number(text: str) -> int:
    """The number that ASCII digits say, -1 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def tls_files(options: argparse.Namespace, host: str) -> TlsFiles | None:
    """The TLS files, all three or none. Without them only a loopback address, unless said plainly."""
    given = (options.tls_certificate, options.tls_key, options.tls_ca)
    if all(given):
        return TlsFiles(*given)
    if any(given):
        raise BadConfiguration("--tls-certificate, --tls-key and --tls-ca go together: give all three, or --no-tls")
    if not options.no_tls and not is_loopback(host):
        raise BadConfiguration(f"{host} is not a loopback address: give the --tls options, or say --no-tls")
    return None


def is_loopback(host: str) -> bool:
    """Whether an address cannot leave this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def directory(text: str) -> bytes:
    """The module's directory, absolute.

    It is not looked at when one of our mounts is there, left by a mirror process that died: a look would wait for an
    answer that only we can give.
    """
    absolute = os.path.abspath(text)
    path = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    if mount_at(os.fsencode(path)) is None:
        path = os.path.realpath(path)
        if not os.path.isdir(path):
            raise BadConfiguration(f"--dir {text}: not a directory: create it, or name another")
    return os.fsencode(path)


def folder(text: str | None) -> str | None:
    """An optional directory, absolute."""
    return None if text is None else os.path.realpath(text)


def generation(text: str) -> bytes:
    """A generation in hexadecimal digits. Raises BadConfiguration."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != ID_BYTES:
        raise BadConfiguration(f"--generation {text}: give {2 * ID_BYTES} hexadecimal digits")
    return value


def restore(options: argparse.Namespace) -> Iterable[str]:
    """The command `restore`."""
    return Restore(directory(options.dir), os.path.realpath(options.state)).run()


def salvage(options: argparse.Namespace) -> Iterable[str]:
    """The command `salvage`."""
    state, name = os.path.realpath(options.state), generation(options.generation)
    return Salvage(directory(options.dir), state, name, folder(options.salvage_dir)).run()


def list_salvaged(options: argparse.Namespace) -> Iterable[str]:
    """The command `unsalvage`."""
    return unsalvage(options.file, folder(options.to), options.path)


OFFLINE_COMMANDS: dict[str, Callable[[argparse.Namespace], Iterable[str]]] = {
    "restore": restore,
    "salvage": salvage,
    "unsalvage": list_salvaged,
}


def build(options: argparse.Namespace) -> tuple[SourceProcess | TargetProcess, str]:
    """The mirror process that the options describe, and its state directory. Raises MirrorError."""
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    durability = one_of("--durability", options.durability, ("memory", "disk"))
    stall = seconds("--stall-timeout", options.stall_timeout, least=0.1)
    state = os.path.realpath(options.state)
    if options.command == "target":
        host, port = parse_address(options.listen)
        return TargetProcess(
            TargetOptions(
                directory=directory(options.dir),
                state=state,
                listen=(host, port),
                durability=durability,
                stall_timeout_s=stall,
                overwrite=options.overwrite,
                salvage_folder=folder(options.salvage_dir),
                tls=tls_files(options, host),
            ),
            say,
        ), state
    host, port = parse_address(options.peer)
    alone_after = None if options.alone_after is None else seconds("--alone-after", options.alone_after)
    fence_after = None if options.fence_after is None else seconds("--fence-after", options.fence_after, least=0.1)
    silence = seconds("--silence-timeout", options.silence_timeout, least=SHORTEST_SILENCE_S)
    if alone_after is not None and fence_after is not None and fence_after <= alone_after + silence:
        raise BadConfiguration(
            f"--fence-after {fence_after:g}: give more than --silence-timeout and --alone-after together "
            f"({silence + alone_after:g}), or the mount could fail before the verdict"
        )
    return SourceProcess(
        SourceOptions(
            directory=directory(options.dir),
            state=state,
            peer=(host, port),
            alone_after_s=alone_after,
            fence_after_s=fence_after,
            durability=durability,
            cache=one_of("--cache", options.cache, ("direct", "page")),
            extent_size=extent_size(options.extent_size),
            hot_extents=count("--hot-extents", options.hot_extents, 64, 1 << 22),
            known_objects=count("--known-objects", options.known_objects, 1000, 1 << 30),
            silence_timeout_s=silence,
            stall_timeout_s=stall,
            tls=tls_files(options, host),
            alone=options.alone,
        ),
        say,
    ), state


def say(text: str) -> None:
    """A line for whoever started the command."""
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    """Run one of the commands; the exit code."""
    sys.setswitchinterval(0.0001)  # a thread that wants the interpreter's lock gets it soon
    try:
        options = parser().parse_args(arguments)
        if options.command in LAYOUT_COMMANDS:
            for line in LAYOUT_COMMANDS[options.command](options.dir):
                say(line)
            return 0
        if options.command in OFFLINE_COMMANDS:
            for line in OFFLINE_COMMANDS[options.command](options):
                say(line)
            return 0
        process, state = build(options)
    except MirrorError as error:
        print(f"hotpair: {error}", file=sys.stderr)
        return 2
    os.chdir("/")
    keep_running()
    gc.freeze()
    commands = source_commands(process) if isinstance(process, SourceProcess) else target_commands(process)
    server = ControlServer(os.path.join(state, "control.sock"), commands, process.reports)
    try:
        return process.run()
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
