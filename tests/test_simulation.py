"""Pairs simulated in time: the same seed is the same life, some hundred lives, all stories, and bugs are noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.batch import Summary, life, lives, outcome, shrink
from hotpair.cluster.simulation.faults import MOST_FAULTS, QUIET_FROM_S, plan
from hotpair.cluster.simulation.timed import simulate
from hotpair.simulate_command import main
from tests.protocol_mutants import MUTANTS, broken, hunt
from tests.story import Story, StoryWrong

STORIES = sorted((Path(__file__).parent / "stories").glob("*.story"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_story_ends_as_it_is_told(path: Path, seed: int) -> None:
    Story(path, seed).tell()
