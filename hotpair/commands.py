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
from collections.abc import Callable, Sequence
from typing import Any

from hotpair import commands_asking
from hotpair.client import ApiError, Refused
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.command_options import CommandFailed, plainly
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
    found = _found(arguments)
    if found is not None:
        command, words = found
        given = plainly(command, words)
        if given is not None:
            return command(**given)
    from hotpair.command_app import run

    return run(arguments)


def _found(arguments: list[str]) -> tuple[Callable[..., Any], list[str]] | None:
    """The command, and the words after it."""
    names = [(" ".join(arguments[:count]), arguments[count:]) for count in (1, 2)]
    for name, words in names:
        if name in commands_asking.COMMANDS:
            return commands_asking.COMMANDS[name], words
    from hotpair import commands_local, commands_pair

    others = {**commands_local.COMMANDS, **commands_pair.COMMANDS}
    return next(((others[name], words) for name, words in names if name in others), None)


def _say(text: str, code: int) -> int:
    print(f"hotpair: {' '.join(text.split())}", file=sys.stderr)
    return code
