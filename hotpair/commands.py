"""The commands for people and scripts. mirror, witness, simulate, run and demo have their own arguments
(command_line.py).

Exit codes: 0 done; 1 refused, with the reason; 2 what was asked for makes no sense, or nobody answers. `state MODULE`
has its own: 0 STOP, 1 WAIT, 2 ALONE, 3 PRIM, 4 SECOND, and 5 whenever the state cannot be said.

Who asks something does not wait for what only other commands need: what is looked for first is imported first, and a
command imports itself what it needs alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from hotpair import commands_asking
from hotpair.client import ApiError, Refused
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.command_options import CommandFailed, argument
from hotpair.command_parsers import parser_of, tree
from hotpair.shown import NOT_KNOWN

REFUSED, NOT_DONE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str]) -> int:
    """The exit code. Every error is one line on standard error."""
    failed = NOT_KNOWN if list(arguments[:1]) == ["state"] else NOT_DONE
    try:
        code = _run(list(arguments))
        sys.stdout.flush()  # here, where it is known what to do when nobody reads any more
    except Refused as error:
        return _say(str(error), REFUSED)
    except (ApiError, CommandFailed) as error:
        return _say(str(error), failed)
    except ConfigurationError as error:
        return _say(error.brief, failed)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        with open(os.devnull, "wb") as nobody:  # whoever read has gone; Python would say so at its end
            os.dup2(nobody.fileno(), sys.stdout.fileno())
        return NOT_KNOWN if failed == NOT_KNOWN else 0  # 0 would be STOP
    return code if isinstance(code, int) else 0


def _run(arguments: list[str]) -> Any:
    commands = commands_asking.COMMANDS
    words = _words(arguments, commands)
    if not words:
        commands = all_commands()
        words = _words(arguments, commands)
    try:
        if not words:
            tree(commands).parse_args(arguments).shown.print_help(sys.stderr)
            return NOT_DONE
        given = parser_of(words, commands[words]).parse_intermixed_args(arguments[len(words.split()) :])
    except SystemExit:  # --help or --version, and it is printed
        return 0
    return commands[words](**vars(given))


def _words(arguments: list[str], commands: Mapping[str, Callable[..., Any]]) -> str:
    """Those that name a command, if any do."""
    return next((words for count in (1, 2) if (words := " ".join(arguments[:count])) in commands), "")


def all_commands() -> dict[str, Callable[..., Any]]:
    from hotpair import commands_local, commands_pair

    others = {**commands_local.COMMANDS, **commands_pair.COMMANDS}
    return {**commands_asking.COMMANDS, **others, "completion": completion}


def completion(shell: Annotated[str, argument(choices=("bash", "zsh"), help="bash or zsh")]) -> None:
    """Print what makes a shell complete these commands."""
    import shtab

    print(shtab.complete(tree(all_commands()), shell))


def _say(text: str, code: int) -> int:
    print(f"hotpair: {' '.join(text.split())}", file=sys.stderr)
    return code
