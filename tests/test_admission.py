"""At most 25 modules on a pair, with names that every file system, unit and screen can carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpair.cluster.admission import MODULES_PER_PAIR, ModuleRefused, admit, is_name, meet


def numbered(first: int, last: int) -> list[str]:
    return [f"m{i:02}" for i in range(first, last + 1)]


@pytest.mark.parametrize("name", ["a", "7", "SQL-Server_2", "n" * 40])
def test_names_that_are_taken(name: str) -> None:
    admit(name, [], [])
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n" * 41,
        "-a",
        "_a",
        ".a",
        "a b",
        "a/b",
        "..",
        "a.b",
        "a\n",
        "größe",
        "a\0",
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "٣",
    ],
)
def test_names_that_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ModuleRefused, match="1 to 40 letters, digits, - and _"):
        admit(name, [], [])


def test_the_25th_module_is_taken_and_the_26th_is_not() -> None:
    admit("new", numbered(1, 12), numbered(13, 24))
    with pytest.raises(ModuleRefused, match="25 modules together, a pair takes at most 25"):
        admit("new", numbered(1, 12), numbered(13, 25))


def test_a_module_on_both_servers_counts_once() -> None:
    admit("new", numbered(1, 24), numbered(1, 24))
    with pytest.raises(ModuleRefused):
        admit("new", numbered(1, 25), numbered(1, 25))


def test_a_name_is_taken_once_on_either_server_whatever_its_case() -> None:
    with pytest.raises(ModuleRefused, match="there is a module web already"):
        admit("web", ["web"], [])
    with pytest.raises(ModuleRefused, match="there is a module web already"):
        admit("web", [], ["web"])
    with pytest.raises(ModuleRefused, match="only in upper and lower case"):
        admit("Web", [], ["web"])


def test_when_both_created_modules_alone_those_on_both_come_first() -> None:
    union = meet(["zz", *numbered(1, 20)], ["zz", *numbered(11, 30)])
    assert union.admitted == (*numbered(11, 20), "zz", *numbered(1, 10), *numbered(21, 24))
    assert union.refused == tuple(numbered(25, 30))


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_both_servers_come_to_the_same_result_and_nothing_is_forgotten(mine: set[int], peers: set[int]) -> None:
    here, there = [f"m{i}" for i in mine], [f"m{i}" for i in peers]
    union = meet(here, there)
    assert union == meet(there, here)
    assert len(union.admitted) <= MODULES_PER_PAIR
    assert sorted((*union.admitted, *union.refused)) == sorted({*here, *there})
    assert not union.refused or len(union.admitted) == MODULES_PER_PAIR
