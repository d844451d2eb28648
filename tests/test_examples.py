"""The examples do what they say, each as its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mirror_pair import MirrorPair

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    with MirrorPair() as made:
        made.start()
        with open(f"{made.source_dir}/disk", "wb") as file:
            file.write(os.urandom(1 << 20))
        yield made


def compare(pair: MirrorPair, *options: str) -> tuple[int, str, str]:
    """The exit code of compare_copies.py, and what it printed."""
    line = [sys.executable, str(EXAMPLES / "compare_copies.py"), pair.source_state, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    return done.returncode, done.stdout, done.stderr


def damage(pair: MirrorPair) -> None:
    """Change the target's copy behind the mirror's back."""
    fd = os.open(f"{pair.target_dir}/disk", os.O_WRONLY)
    try:
        os.pwrite(fd, b"damaged", 300_000)
    finally:
        os.close(fd)


def test_equal_copies(pair: MirrorPair) -> None:
    code, said, _ = compare(pair)
    assert (code, said) == (0, "1 files, 1048576 bytes: no difference\n")


def test_damage_is_found_and_repaired(pair: MirrorPair) -> None:
    damage(pair)
    code, said, _ = compare(pair)
    assert code == 1
    assert said.startswith("disk: content at byte 262144\n")
    code, said, _ = compare(pair, "--repair")
    assert code == 1
    assert said.startswith("disk: content at byte 262144, repaired\n")
    assert compare(pair)[0] == 0


def test_mirror_that_does_not_run(pair: MirrorPair) -> None:
    pair.stop()
    code, said, told = compare(pair)
    assert (code, said) == (2, "")
    assert told.startswith("compare_copies: ") and "the mirror process does not run" in told
    assert told.count("\n") == 1
