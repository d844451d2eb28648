"""Does the mirror behave like the file system below it? Random sequences and fixed scenarios on both.

Environment: HOTPAIR_POSIX_EXAMPLES and HOTPAIR_POSIX_STEPS set the length of the random test (a long run: 2000 and
100), HOTPAIR_POSIX_SEED repeats one, HOTPAIR_POSIX_MODES chooses among "plain,mirror".
"""

import importlib.util
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests import posix_scenarios_data, posix_scenarios_names, posix_scenarios_rights
from tests.mirror_pair import compare_copies
from tests.posix_difference import BothSides, DifferenceFound, SideHangs
from tests.posix_machine import machine_for
from tests.posix_scenarios import SCENARIOS
from tests.posix_worker import FAULTS

assert posix_scenarios_data and posix_scenarios_names and posix_scenarios_rights  # imported for their scenarios

EXAMPLES = int(os.environ.get("HOTPAIR_POSIX_EXAMPLES", "20"))
STEPS = int(os.environ.get("HOTPAIR_POSIX_STEPS", "50"))
MODES = os.environ.get("HOTPAIR_POSIX_MODES", "plain,mirror").split(",")

# For each planted fault a scenario that must find it.
FINDERS = {
    "lose_last_byte": "reads_and_writes_of_many_lengths",
    "append_ignored": "appending",
    "keep_size_ignored": "preallocation_and_punched_holes",
    "rename_replaces": "rename_noreplace",
    "set_id_kept": "writes_clear_set_id_bits",
    "umask_ignored": "umasks",
    "owner_ignored": "owners_of_new_objects",
    "times_ignored": "setting_times",
    "wrong_error": "directories",
    "access_list_lost": "access_lists",
    "link_copied": "hard_links",
    "hole_filled": "holes_of_a_sparse_file",
}


def start(mode: str) -> BothSides:
    """Both sides, or a skip while the mirror has not been written."""
    if mode == "mirror" and importlib.util.find_spec("hotpair.replication.__main__") is None:
        pytest.skip("hotpair.replication has no __main__ yet")
    return BothSides(mode)


@pytest.fixture(scope="module", params=MODES)
def both(request: pytest.FixtureRequest) -> Iterator[BothSides]:
    """One pair of directories for all tests of a mode; at the end the mirror's copies must be identical."""
    with start(request.param) as sides:
        yield sides
        differences = sides.finish() if sides.usable else []
        assert not differences, "\n".join(differences[:100])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(both: BothSides, name: str) -> None:
    both.begin()
    try:
        SCENARIOS[name](both)
    except BaseException:
        both.failed = True
        raise
    finally:
        both.end()


def random_test_settings(examples: int, steps: int) -> settings:
    """No database and no deadline: a run is repeated by its seed."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


@pytest.mark.timeout(24 * 3600)
def test_random_operations(both: BothSides) -> None:
    machine = machine_for(both)
    if "HOTPAIR_POSIX_SEED" in os.environ:
        machine = seed(int(os.environ["HOTPAIR_POSIX_SEED"]))(machine)
    run_state_machine_as_test(machine, settings=random_test_settings(EXAMPLES, STEPS))


@pytest.mark.parametrize("fault", FINDERS)
def test_planted_fault_is_found(fault: str) -> None:
    with BothSides("plain", fault) as sides:
        sides.begin()
        with pytest.raises((DifferenceFound, AssertionError)):
            SCENARIOS[FINDERS[fault]](sides)
            sides.end()


def test_every_fault_has_a_finder() -> None:
    assert FINDERS.keys() | {"frozen"} == FAULTS.keys()


def test_random_operations_find_a_planted_fault_and_shrink_it() -> None:
    with BothSides("plain", "umask_ignored") as sides, pytest.raises(DifferenceFound) as caught:
        run_state_machine_as_test(machine_for(sides), settings=random_test_settings(100, 12))
    assert len(sides.history) <= 8, "not shrunk: six make the first objects"
    assert "the steps so far" in str(caught.value)


def test_side_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.posix_difference.CALL_TIMEOUT_S", 0.5)
    with BothSides("plain", "frozen") as sides, pytest.raises(SideHangs):
        sides.begin()
        SCENARIOS["flushes"](sides)


def test_another_file_system_is_told_apart() -> None:
    """tmpfs differs from ext4 in many things: the test must see some."""
    with BothSides("plain", place="/dev/shm") as sides:
        sides.begin()
        with pytest.raises(DifferenceFound):
            SCENARIOS["file_system_status"](sides)


def test_differences_of_copies_are_found() -> None:
    with BothSides("plain") as sides:
        one, other = sides.directory, sides.other_directory
        for top in (one, other):
            with open(f"{top}/a", "wb") as file:
                file.write(b"x" * 5000)
            os.link(f"{top}/a", f"{top}/b")
            os.setxattr(f"{top}/a", "trusted.hotpair.id", b"1")
            os.setxattr(top, "trusted.hotpair.id", b"0")
            for path in (f"{top}/a", top):
                os.utime(path, ns=(1, 1))
        assert compare_copies(one, other) == []
        os.setxattr(f"{other}/a", "trusted.hotpair.id", b"2")
        assert any("identity" in line for line in compare_copies(one, other))
        assert compare_copies(one, other, identities=False) == []
        os.utime(f"{other}/a", ns=(1, 2))
        assert any("modified_ns" in line for line in compare_copies(one, other, identities=False))
        with open(f"{other}/a", "r+b") as file:
            file.write(b"y")
        os.chmod(f"{other}/a", 0o600)
        os.mkdir(f"{other}/d")
        text = "\n".join(compare_copies(one, other, identities=False, times_of="none"))
        assert "content" in text and "mode" in text and "only on the target: b'd'" in text
        os.unlink(f"{other}/b")
        with open(f"{other}/b", "wb") as file:
            file.write(b"x" * 5000)
        assert "hard links only on the source" in "\n".join(compare_copies(one, other))
