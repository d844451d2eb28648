"""The product as a whole: two services, Ray, mirrors, applications, a QEMU guest, a witness; and what happens to them.

One test, for all of it happens to one pair.
"""

from __future__ import annotations

import pytest

from tests import server_stories as stories
from tests.pair_of_servers import pair, tell

FIRST_PORT = 23000

STORIES = [
    stories.a_server_loses_its_power,
    stories.each_actor_is_killed,
    stories.a_mirror_is_killed,
    stories.ray_is_killed,
    stories.a_vm_is_killed,
    stories.a_checker_has_the_application_restarted,
]
WITH_CABLES = [stories.the_mirrors_network_is_cut, stories.a_server_is_cut_off]


@pytest.mark.timeout(600)
def test_what_a_pair_survives() -> None:
    with pair(FIRST_PORT) as made:
        tell([*STORIES, *(WITH_CABLES if made.networks.can_cut else [])], made)
