"""The loop counter on disk: kept, whole or the old one, and never taken for empty when it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpair.actors.module_runner import NotStored
from hotpair.actors.shelf_io import LOOP_FILE, ModuleShelf
from hotpair.cluster.loop_counter_io import LONGEST_TEXT, LoopCounter, LoopCounterUnusable, load, store


def test_it_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "loop")
    assert load(path) == LoopCounter()
    for counter in (LoopCounter((1.5, 1.7e9), "Stopped: the guest « web » is down."), LoopCounter()):
        store(path, counter)
        assert load(path) == counter


def test_the_largest_can_be_read_back(tmp_path: Path) -> None:
    path = str(tmp_path / "loop")
    counter = LoopCounter(tuple(1.7e9 + i + 0.123 for i in range(1000)), "ü" * LONGEST_TEXT)
    store(path, LoopCounter(counter.actions_at, counter.stopped + "and more"))
    assert load(path) == counter


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1}', '{"version": 2, "actions_at": [], "stopped": ""}',
     '{"version": 1, "actions_at": ["now"], "stopped": ""}', '{"version": 1, "actions_at": 5, "stopped": ""}',
     '{"version": 1, "actions_at": [true], "stopped": ""}', '{"version": 1, "actions_at": [], "stopped": null}'],
)  # fmt: skip
def test_a_damaged_one_is_said_and_not_taken_for_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "loop").write_text(text)
    with pytest.raises(LoopCounterUnusable, match="Remove the file"):
        load(str(tmp_path / "loop"))


def test_what_cannot_be_stored_says_where_and_why(tmp_path: Path) -> None:
    shelf = ModuleShelf(str(tmp_path), str(tmp_path / "mirror"), str(tmp_path / "vm"), "boot")
    shelf.store_loop(LoopCounter((5.0,)))
    assert shelf.load_loop() == LoopCounter((5.0,))
    (tmp_path / f"{LOOP_FILE}.new").mkdir()
    with pytest.raises(NotStored, match=r"loop: Is a directory"):
        shelf.store_loop(LoopCounter())
