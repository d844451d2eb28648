"""What a command's annotations say, and what is read for it."""

from __future__ import annotations

import contextlib
import io
from typing import Annotated, Any

import pytest

from hotpair.command_options import CommandFailed, HomeOption, ModuleArgument, argument, option
from hotpair.command_parsers import GROUPS, parser_of, tree
from hotpair.commands import all_commands


def many(
    module: ModuleArgument,
    state: Annotated[str, argument(metavar="STATE")],
    other: Annotated[str | None, argument()] = None,
    lines: Annotated[int, option("--lines", "-n", least=1, most=1000, help="100 % of them")] = 50,
    timeout: Annotated[float, option("--timeout")] = 60.0,
    force: Annotated[bool, option("--force", "-f")] = False,
    tls: Annotated[bool, option("--tls")] = True,
    given: Annotated[list[str] | None, option("--set")] = None,
    role: Annotated[str, option("--role", choices=("admin", "monitor"))] = "monitor",
    home: HomeOption = None,
) -> None:
    """One parameter of each kind."""


def read(words: str) -> dict[str, Any]:
    return vars(parser_of("it", many).parse_intermixed_args(words.split()))


BOTH = {"module": "web", "state": "PRIM"}


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("web PRIM", {}),
        ("web PRIM x", {"other": "x"}),
        ("web --force PRIM -n 7 x --timeout 2.5", {"force": True, "lines": 7, "other": "x", "timeout": 2.5}),
        ("web PRIM --force x", {"force": True, "other": "x"}),
        ("--lines=1000 --timeout 0 web PRIM", {"lines": 1000, "timeout": 0.0}),
        ("-fn7 web PRIM", {"force": True, "lines": 7}),
        ("web PRIM --tls", {"tls": True}),
        ("web PRIM --no-tls", {"tls": False}),
        ("--set a=b web PRIM --set c=d", {"given": ["a=b", "c=d"]}),
        ("web PRIM --role admin --home /x", {"role": "admin", "home": "/x"}),
        ("web PRIM -- -x", {"other": "-x"}),
    ],
)
def test_only_what_was_typed_is_given(words: str, given: dict[str, Any]) -> None:
    assert read(words) == {**BOTH, **given}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: MODULE, STATE"),
        ("web", "required: STATE"),
        ("web PRIM x y", "unrecognized arguments: y"),
        ("web PRIM -n 0", "'0': give a whole number, 1 to 1000"),
        ("web PRIM -n 1001", "'1001': give a whole number, 1 to 1000"),
        ("web PRIM -n 1.5", "'1.5': give a whole number, 1 to 1000"),
        ("web PRIM -n", "--lines/-n: expected one argument"),
        ("web PRIM --timeout -1", "'-1': give a number, at least 0"),
        ("web PRIM --timeout nan", "'nan': give a number, at least 0"),
        ("web PRIM --home --force", "--home: expected one argument"),
        ("web PRIM --no-force", "unrecognized arguments: --no-force"),
        ("web PRIM --line 7", "unrecognized arguments: --line 7"),
        ("web PRIM --role root", "invalid choice: 'root' (choose from"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(words: str, said: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        read(words)
    assert said in str(failed.value)
    assert "(usage: hotpair it [-h] [--lines LINES]" in str(failed.value)


@pytest.mark.parametrize("columns", ["20", "200"])
@pytest.mark.parametrize("words", [*all_commands(), *GROUPS, ""])
def test_each_help_can_be_shown(words: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        tree(all_commands()).parse_args([*words.split(), "--help"])
    assert ended.value.code == 0
    assert " ".join(shown.getvalue().split()).startswith(f"usage: hotpair {words}".strip())


def test_help_says_bounds_and_defaults() -> None:
    said = " ".join(parser_of("it", many).format_help().split())
    assert " 100 % of them (1 to 1000; default: 50)" in said
