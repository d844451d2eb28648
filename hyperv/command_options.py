"""What `[vm.options]` of the driver "command" says. Pure code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hotpair.cluster.configuration_keys import (
    LIST_ENTRIES,
    REQUIRED,
    Key,
    Kind,
    NotAccepted,
    flag,
    list_of,
    text,
    whole,
)
from hotpair.hyperv.options import read_options, text_or_none

SHELL = "/bin/sh"


def _command(*, required: bool) -> Kind:
    """A list of words, or a line for the shell. Read as words, () for none."""

    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            if value == "" and not required:
                return ()
            return (SHELL, "-c", str(text("").read(value)))
        words = list_of(text(""), 1).read(value)
        if not isinstance(words, tuple):
            raise NotAccepted
        return tuple(map(str, words))

    accepted = f"a list of 1 to {LIST_ENTRIES} words, or a line for the shell"
    return Kind("command", accepted if required else f'{accepted}, or ""', read)


OPTIONS = (
    Key("start", _command(required=True), REQUIRED, "Starts the application"),
    Key("stop", _command(required=False), "", "Asks it to stop; by default it gets SIGTERM"),
    Key("force_stop", _command(required=False), "", "Run before everything that is left of it is killed"),
    Key("check", _command(required=False), "", "Ends with 0 when it is up, with 1, 2 or 3 when it is down"),
    Key("foreground", flag(), True, "Whether the start command is the application, and goes on as long as it runs"),
    Key("pid_file", text_or_none("a path"), "", "With foreground = false: where the application writes its pid"),
    Key("check_limit_s", whole(1, 600), 10, "A check that takes longer has not said anything"),
    Key("force_stop_limit_s", whole(1, 600), 5, "The command force_stop is killed after so long"),
)


@dataclass(frozen=True)
class CommandOptions:
    """Commands are words, () for none. Times in seconds."""

    start: tuple[str, ...]
    stop: tuple[str, ...]
    force_stop: tuple[str, ...]
    check: tuple[str, ...]
    foreground: bool
    pid_file: str
    check_limit_s: int
    force_stop_limit_s: int


def read_command_options(options: Mapping[str, object]) -> tuple[CommandOptions | None, tuple[str, ...]]:
    """The options, or what is wrong with them."""
    values, problems = read_options(OPTIONS, options)
    if problems:
        return None, problems
    read = CommandOptions(**values)
    if read.foreground and read.pid_file:
        return None, ("[vm.options]: pid_file: it is for foreground = false: remove one of them",)
    if not read.foreground and not (read.pid_file or read.check):
        return None, ("[vm.options]: foreground = false needs a pid_file or a check to find the application by",)
    return read, ()


class Answer(Enum):
    """What a check said."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


def answer_of(code: int | None) -> Answer:
    """By its exit code; None: it did not end in time.

    As with the "status" action of init scripts (Linux Standard Base): 1 to 3 mean that it does not run, others that
    nobody knows. A check that could not be run (126, 127) or was killed has said nothing.
    """
    if code == 0:
        return Answer.UP
    return Answer.DOWN if code in (1, 2, 3) else Answer.UNKNOWN
