"""What the peer last said is the latest it said, whichever network was quicker and whatever was lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.pulse import Pulse, decode, pack
from hotpair.cluster.pulse_views import Views, merge
from tests.test_pulse import KEY, a_pulse, a_view


def a_round(number: int, names: list[str], network: str = "lan", **fields: object) -> list[Pulse]:
    """As it comes out of `pack`: with records, four or so modules fill a datagram."""
    modules = tuple(a_view(name, applied=number) for name in names)
    whole = replace(a_pulse(network=network, modules=modules), round=number, counter=number * 30, **fields)  # type: ignore[arg-type]
    return [decode(datagram, KEY) for datagram in pack(whole, KEY)]


def merged(views: Views | None, *pulses: Pulse) -> Views:
    for pulse in pulses:
        views = merge(views, pulse)
    assert views is not None
    return views


def applied(views: Views) -> dict[str, int]:
    return {name: said.view.applied for name, said in views.modules.items()}


MANY = [f"m{i}" for i in range(12)]


def test_a_round_in_several_parts_is_put_together() -> None:
    parts = a_round(1, MANY)
    assert len(parts) > 1
    assert applied(merged(None, *parts)) == dict.fromkeys(MANY, 1)


def test_an_earlier_round_that_comes_later_changes_nothing() -> None:
    late = a_round(1, MANY, "direct", boot="before")
    views = merged(None, *a_round(2, MANY[:3], boot="after"))
    after = merged(views, *late)
    assert applied(after) == dict.fromkeys(MANY[:3], 2)
    assert after.boot == "after" and after.round == 2


def test_a_module_is_forgotten_when_a_whole_round_did_not_name_it() -> None:
    views = merged(None, *a_round(1, MANY))
    *most, last = a_round(2, MANY[1:])
    assert most
    views = merged(views, *most)
    assert "m0" in views.modules
    views = merged(views, last)
    assert list(applied(views)) == MANY[1:]


def test_parts_of_different_networks_do_not_make_a_round() -> None:
    """The networks' names may be of different length, so that the modules are spread in another way."""
    few = MANY[1:5]
    views = merged(None, *a_round(1, MANY))
    first, _ = a_round(2, few, "lan")
    _, second = a_round(2, few, "direct")
    views = merged(views, first, second)
    assert "m0" in views.modules
    assert list(applied(merged(views, a_round(2, few, "lan")[1]))) == few


def test_a_module_that_a_later_round_named_stays_when_an_earlier_one_becomes_whole() -> None:
    first, *rest = a_round(3, ["new", *MANY])
    assert rest
    views = merged(None, *a_round(1, MANY), first, *a_round(2, MANY, "direct"))
    assert applied(views)["new"] == 3


def test_a_short_round_that_was_overtaken_does_not_complete_a_long_one() -> None:
    short, (first, *_) = a_round(2, ["m0"]), a_round(3, MANY)
    assert len(short) == 1
    views = merged(merged(None, *a_round(1, MANY)), first, *short)
    assert set(applied(views)) == set(MANY)


def test_a_module_that_was_forgotten_does_not_come_back_with_an_earlier_round() -> None:
    views = merged(None, *a_round(2, ["m1"]))
    assert applied(merged(views, *a_round(1, MANY, "direct"))) == {"m1": 2}


def test_a_new_process_begins_from_nothing() -> None:
    views = merged(None, *a_round(7, MANY))
    views = merged(views, *a_round(1, ["m3"], incarnation=b"2" * 16, boot="rebooted"))
    assert applied(views) == {"m3": 1} and views.boot == "rebooted" and views.round == 1


def test_a_peer_without_modules_says_so() -> None:
    views = merged(None, *a_round(1, MANY), *a_round(2, []))
    assert views.modules == {}


@given(
    st.lists(st.sets(st.sampled_from(MANY)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.floats(0, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_in_any_order_with_any_loss_the_last_word_counts(rounds: list[set[str]], chance: object, loss: float) -> None:
    """Shuffled and thinned over two networks; then the last round comes whole over one of them."""
    pulses = [
        pulse
        for number, names in enumerate(rounds, 1)
        for network in ("lan", "direct")
        for pulse in a_round(number, sorted(names), network)
    ]
    chance.shuffle(pulses)  # type: ignore[attr-defined]
    heard = [pulse for pulse in pulses if chance.random() >= loss]  # type: ignore[attr-defined]
    views = None
    for pulse in heard:
        before = {} if views is None else applied(views)
        views = merge(views, pulse)
        for name, number in applied(views).items():
            assert number >= before.get(name, 0)
    views = merged(views, *a_round(len(rounds), sorted(rounds[-1])))
    assert applied(views) == dict.fromkeys(rounds[-1], len(rounds))
