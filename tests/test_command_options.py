"""Words that are plainly right are read without Typer: to the same meaning, or not at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpair import command_app, commands_asking, commands_local, commands_pair
from hotpair.command_app import app_of
from hotpair.command_options import HomeOption, ModuleArgument, argument, option, plainly, taken_by

COMMANDS = {**commands_asking.COMMANDS, **commands_local.COMMANDS, **commands_pair.COMMANDS}


class Heard(Exception):
    """What Typer has given a command."""


def many(
    module: ModuleArgument,
    state: Annotated[str, argument(metavar="STATE")],
    other: Annotated[str | None, argument()] = None,
    lines: Annotated[int, option("--lines", "-n", least=1, most=1000)] = 50,
    timeout: Annotated[float, option("--timeout", least=0)] = 60.0,
    port: Annotated[int | None, option("--port")] = None,
    force: Annotated[bool, option("--force", "-f")] = False,
    tls: Annotated[bool, option("--tls/--no-tls")] = True,
    given: Annotated[list[str] | None, option("--set")] = None,
    home: HomeOption = None,
) -> None:
    """One parameter of each kind."""


def by_typer(command: Callable[..., Any], words: list[str]) -> dict[str, Any] | None:
    """Nothing for words that it refuses."""

    def hear(**heard: Any) -> None:
        raise Heard(heard)

    hear.__signature__ = inspect.signature(command, eval_str=True)  # type: ignore[attr-defined]
    hear.__annotations__ = {one.name: one.annotation for one in hear.__signature__.parameters.values()}  # type: ignore[attr-defined]
    app = app_of({"it": hear, "another": hear})
    try:
        app(["it", *words], prog_name="hotpair", standalone_mode=False)
    except Heard as error:
        found: dict[str, Any] = error.args[0]
        return found
    except command_app.typer.TyperException:
        return None
    return None  # it was --help


def same(command: Callable[..., Any], words: list[str]) -> bool:
    """Whether they were plain; then both must say the same."""
    read = plainly(command, words)
    if read is None:
        return False
    defaults = {one.name: one.default for one in inspect.signature(command).parameters.values()}
    assert {**defaults, **read} == by_typer(command, words), words
    return True


WORDS = (
    "web", "PRIM", "7", "0", "1000", "1001", "2.5", ".5", "1e3", "-1", "", " ", "é", "--", "-", "-n", "-n7", "--lines",
    "--lines=7", "--timeout", "--port", "--force", "-f", "-fn", "--no-force", "--tls", "--no-tls", "--set", "a=b",
    "--home", "/x", "--help", "-h", "--li", "\u0667", "1_0", "+7", "07", "0x7", "nan", "inf", "--home=/x",
)  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=6).map(lambda words: ["web", "PRIM", *words]))
def test_whatever_is_read_plainly_typer_reads_as_well(words: list[str]) -> None:
    same(many, words)


@pytest.mark.parametrize(
    "words",
    [
        "web PRIM",
        "web PRIM x",
        "web --force PRIM -n 7 --timeout 2.5 --home /x",
        "--lines 1000 --timeout 0 web PRIM --port 5600",
        "-f web PRIM",
    ],
)
def test_plain_words_need_no_typer(words: str) -> None:
    assert same(many, words.split())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "web",
        "web PRIM x y",
        "web PRIM --force --force",
        "web PRIM -n 0",
        "web PRIM -n 1001",
        "web PRIM -n x",
        "web PRIM -n",
        "web PRIM --timeout -1",
        "web PRIM --home --force",
        "web PRIM --lines=7",
        "web PRIM --no-tls",
        "web PRIM --set a=b",
        "web PRIM -- x",
        "web PRIM --help",
        "web PRIM --explode",
    ],
)
def test_all_others_are_not_guessed_at(words: str) -> None:
    assert plainly(many, words.split()) is None


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_read_as_typer_reads_it(name: str) -> None:
    """With what it needs, and with each of its options."""
    command = COMMANDS[name]
    sample = {str: "web", int: "5600", float: "2.5"}
    needed: list[str] = []
    for one in taken_by(command):
        if one.is_needed:
            needed += [*one.said.names[:1], sample[one.kind]]
    assert same(command, needed)
    for one in taken_by(command):
        if one.is_needed or one.kind not in (str, int, float, bool) or "/" in "".join(one.said.names):
            continue
        for option_name in one.said.names or ("",):
            value = "7" if one.said.most is not None and one.said.most < 5600 else sample.get(one.kind, "")
            words = [*needed, *(word for word in (option_name, value) if word)]
            assert same(command, words), words
