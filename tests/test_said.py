"""What an actor hears in the wrong order: the newest of each thing counts."""

from __future__ import annotations

from hotpair.actors.said import MirrorSays, Newest, Origin
from hotpair.cluster.module_events import Doubted, MirrorReported, PeerHeard, PeerLost, VmReported
from hotpair.cluster.module_values import PeerView, State, Vm

BEAT = Origin("web", "heartbeat", 1)
HEARD = PeerHeard(PeerView(State.PRIM, True, None, "boot"))


def test_an_older_level_is_not_news() -> None:
    newest = Newest()
    assert newest.is_news(BEAT, HEARD, 2)
    assert not newest.is_news(BEAT, PeerLost(), 1), "lost, and then heard"
    assert newest.is_news(BEAT, PeerLost(), 3)


def test_levels_of_other_things_and_modules_are() -> None:
    newest = Newest()
    assert newest.is_news(BEAT, HEARD, 5)
    assert newest.is_news(Origin("web", "vm", 1), VmReported(Vm.ON), 1)
    assert newest.is_news(Origin("web", "replication", 1), MirrorReported(None, None), 1)
    assert newest.is_news(Origin("app", "heartbeat", 1), HEARD, 1)


def test_an_older_reason_of_a_mirror_is_not_news_and_its_report_is() -> None:
    newest, mirror = Newest(), Origin("web", "replication", 1)
    assert newest.is_news(mirror, MirrorSays(""), 5)
    assert not newest.is_news(mirror, MirrorSays("no room"), 4)
    assert newest.is_news(mirror, MirrorReported(None, None), 3)


def test_a_doubt_is_always_news() -> None:
    newest = Newest()
    assert newest.is_news(BEAT, HEARD, 5)
    assert newest.is_news(BEAT, Doubted(), 1)


def test_who_was_replaced_is_not_listened_to() -> None:
    newest = Newest()
    assert not newest.is_replaced(BEAT)
    assert not newest.is_replaced(Origin("web", "heartbeat", 2))
    assert newest.is_replaced(BEAT)
    assert not newest.is_replaced(Origin("web", "heartbeat", 2))
