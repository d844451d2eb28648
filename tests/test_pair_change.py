"""What keeps a module from being added, edited or removed: tables. And how the two servers know each other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hotpair.cluster.configuration import Module, digest, parse_cluster, parse_module
from hotpair.invitations import Invitation, NotInvited, NoToken, Token, check, digest_of, read_token, token_text
from hotpair.pair_change import (
    Change,
    Facts,
    Found,
    Kind,
    Objection,
    Present,
    difference,
    flat,
    free_port,
    is_done,
    objection,
    with_settings,
)
from hotpair.pair_gate import CHALLENGE_S, SCHEME, USED, NotThePeer, PairGate, answer_mac, channel_key, request_mac
from hotpair.pair_init import MEANINGS, NotUnderstood, Options, pair_of
from hotpair.toml_text import NotWritable, table_text

OPTIONS = Options("rack7", "alpha=10.0.0.1", "beta=10.0.0.2", arbitration="manual")
CLUSTER = parse_cluster(pair_of(OPTIONS).text)
TEXT = 'directory = "/vm/web"\nmirror_port = 5600\ndata_on = "alpha"\n[vm]\ndriver = "command"\n'


def module(**changes: object) -> Module:
    table = with_settings(tomllib.loads(TEXT), changes)
    return parse_module(table_text(table), "web", CLUSTER)


WEB = module()
OTHER = Present("/vm/db", 5601, "STOP", "d" * 64)
FACTS = Facts("beta", {"db": OTHER}, ("db",), own=("/etc/hotpair", "/var/lib/hotpair"), directory="/vm/web",
              found=Found.EMPTY, digest=digest(WEB).hex())  # fmt: skip
HAS_IT = Present("/vm/web", 5600, "STOP", digest(WEB).hex())
MANY = {f"m{number}": replace(OTHER, directory=f"/vm/m{number}", mirror_port=6000 + number) for number in range(25)}


def found(kind: Kind, facts: Facts, configured: Module | None = WEB, *, overwrite: bool = False) -> Objection | None:
    change = Change("1", kind, "web", TEXT, overwrite)
    return objection(change, None if kind is Kind.REMOVE else configured, facts)


ADD: Mapping[str, tuple[dict[str, Any], dict[str, object], str]] = {
    # facts, keys of the module, what is said
    "all is well": ({}, {}, ""),
    "name taken here": ({"modules": {"web": replace(HAS_IT, digest="0")}}, {}, "there is a module web already"),
    "name taken there": ({"others": ("Web",)}, {}, "only in upper and lower case"),
    "on both already": ({"modules": {"web": HAS_IT}, "others": ("web",)}, {}, "there is a module web already"),
    "begun here": ({"modules": {"web": HAS_IT}, "fuse": "no FUSE", "found": Found.FULL}, {}, ""),
    "begun there": ({"others": ("db", "web")}, {}, ""),
    "26th": ({"modules": MANY, "others": ()}, {}, "a pair takes at most 25"),
    "26th with those there": ({"modules": {}, "others": tuple(MANY)}, {}, "a pair takes at most 25"),
    "no data_on": ({}, {"data_on": ""}, "--data-on SERVER"),
    "relative": ({}, {"directory": "vm/web"}, "is not absolute"),
    "in the home": ({"directory": "/var/lib/hotpair/x"}, {}, "lie in each other"),
    "around the home": ({"directory": "/var"}, {}, "lie in each other"),
    "in another's": ({"directory": "/vm/db/web"}, {}, "the directory of db"),
    "around another's": ({"directory": "/vm"}, {}, "the directory of db"),
    "beside another's": ({"directory": "/vm/db2"}, {}, ""),
    "missing on the other": ({"found": Found.MISSING}, {}, ""),
    "missing with the data": ({"found": Found.MISSING, "server": "alpha"}, {}, "the data is to be there"),
    "no way": ({"found": Found.NO_WAY}, {}, "/vm does not exist"),
    "no directory": ({"found": Found.OTHER}, {}, "is no directory"),
    "mounted": ({"found": Found.MOUNT}, {}, "mounted by a mirror"),
    "full on the other": ({"found": Found.FULL}, {}, "--overwrite"),
    "full with the data": ({"found": Found.FULL, "server": "alpha"}, {}, ""),
    "port of another": ({}, {"mirror_port": 5601}, "the port of db"),
    "port in use": ({"port": "it is used"}, {}, "it is used"),
    "no driver": ({"driver": "no driver"}, {}, "no driver"),
    "no FUSE": ({"fuse": "no FUSE"}, {}, "no FUSE"),
    "disk": ({"disk": "no disk"}, {}, "no disk"),
}


@pytest.mark.parametrize("case", ADD)
def test_what_keeps_a_module_from_being_added(case: str) -> None:
    facts, keys, expected = ADD[case]
    said = found(Kind.ADD, replace(FACTS, **facts), module(**keys))
    assert (said is None) == (not expected), said
    assert said is None or expected in said.text
    assert said is None or not said.is_state  # what was typed is wrong, not the moment


def test_overwrite_gives_up_what_is_there() -> None:
    assert found(Kind.ADD, replace(FACTS, found=Found.FULL), overwrite=True) is None


EDIT: Mapping[str, tuple[dict[str, Any], dict[str, object], str]] = {
    "another port": ({}, {"mirror_port": 5602}, ""),
    "the same port, which it listens on": ({"port": "it is used"}, {"preferred": "alpha"}, ""),
    "a port in use": ({"port": "it is used"}, {"mirror_port": 5602}, "it is used"),
    "a port of another": ({}, {"mirror_port": 5601}, "the port of db"),
    "runs": ({"state": "PRIM"}, {"mirror_port": 5602}, "stop it on both servers first"),
    "not known": ({"state": None, "problem": "the record is damaged"}, {"mirror_port": 5602}, "the record is damaged"),
    "runs, and is so already": ({"state": "PRIM"}, {}, ""),
    "not here": ({"gone": True}, {}, "is not on beta"),
    "its file is wrong": ({"state": "", "problem": "wrong file"}, {}, "wrong file"),
    "directory": ({}, {"directory": "/vm/other"}, "directory cannot be changed"),
    "extents": ({}, {"mirror.extent_size": "8m"}, "mirror.extent_size cannot be changed"),
    "driver": ({"driver": "no driver"}, {"boot": "off"}, "no driver"),
}


@pytest.mark.parametrize("case", EDIT)
def test_what_keeps_a_module_from_being_edited(case: str) -> None:
    given, keys, expected = {**EDIT[case][0]}, *EDIT[case][1:]
    new = module(**keys)
    present = replace(HAS_IT, state=given.pop("state", "STOP"), problem=given.pop("problem", ""))
    modules = {"db": OTHER} if given.pop("gone", False) else {"db": OTHER, "web": present}
    facts = replace(FACTS, modules=modules, others=tuple(modules), before=WEB, digest=digest(new).hex(), **given)
    said = found(Kind.EDIT, facts, new)
    assert (said is None) == (not expected), said
    assert said is None or expected in said.text
    assert said is None or said.is_state == (case in ("runs", "not known"))


@pytest.mark.parametrize(
    ("state", "expected"), [("STOP", ""), ("", ""), ("WAIT", "stop it"), ("ALONE", "stop it"), (None, "not known")]
)
def test_only_what_is_stopped_is_removed(state: str | None, expected: str) -> None:
    said = found(Kind.REMOVE, replace(FACTS, modules={"web": replace(HAS_IT, state=state)}))
    assert (said is None) == (not expected)
    assert said is None or (expected in said.text and said.is_state)


def test_what_is_done_already_is_known_as_such() -> None:
    for kind, here, there in ((Kind.ADD, True, False), (Kind.EDIT, True, False), (Kind.REMOVE, False, True)):
        change = Change("1", kind, "web", TEXT)
        assert is_done(change, replace(FACTS, modules={"web": HAS_IT})) is here
        assert is_done(change, replace(FACTS, modules={})) is there
    broken = replace(HAS_IT, digest="", state="")
    assert not is_done(Change("1", Kind.ADD, "web"), replace(FACTS, modules={"web": broken}, digest=""))


def test_the_first_difference_is_named_with_both_values() -> None:
    mine = flat({"name": "rack7", "heartbeat": {"timeout_s": 5.0}, "servers": ({"name": "alpha"},), "empty": {}})
    assert mine == {"name": "rack7", "heartbeat.timeout_s": 5.0, "servers[1].name": "alpha", "empty": {}}
    assert difference(mine, dict(mine), "alpha", "beta") == ""
    assert "heartbeat.timeout_s is 5.0 on alpha and 8.0 on beta" in difference(
        mine, {**mine, "heartbeat.timeout_s": 8.0}, "alpha", "beta"
    )
    assert "more is not there on alpha and 1 on beta" in difference(mine, {**mine, "more": 1}, "alpha", "beta")


def test_a_free_port_is_the_lowest_that_nobody_has() -> None:
    assert free_port({5600, 5602}, lambda port: port != 5601) == 5603
    assert free_port(set(), lambda port: False) is None


def test_settings_are_set_and_tables_written_as_they_were() -> None:
    table = tomllib.loads(TEXT)
    text = 'tab\t, "quotes", \x7f, \N{SNOWMAN}, \U0001f600'
    changed = with_settings(table, {"vm.options.a b": text, "mirror.durability": "disk", "list": [1, True, 0.1, 1e300]})
    assert tomllib.loads(table_text(changed)) == {
        **table, "list": [1, True, 0.1, 1e300], "mirror": {"durability": "disk"},
        "vm": {"driver": "command", "options": {"a b": text}},
    }  # fmt: skip
    assert tomllib.loads(TEXT) == table  # what was given is left as it was
    assert tomllib.loads(table_text({"empty": {}, "x": {"y": {}}})) == {"empty": {}, "x": {"y": {}}}
    with pytest.raises(KeyError, match="driver"):
        with_settings(table, {"vm.driver.x": 1})
    with pytest.raises(NotWritable):
        table_text({"when": object()})


# ---- cluster.toml

KINDS: Mapping[str, dict[str, Any]] = {
    "witness": {"witness": "10.0.0.9:5700"},
    "etcd": {"etcd": ["10.0.0.9:2379", "10.0.0.8:2379"]},
    "fence": {"fence": "/usr/bin/fence --hard 'two words'"},
    "ping": {"ping": ["10.0.0.254"]},
    "manual": {},
    "none": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_arbitration_gives_a_cluster(kind: str) -> None:
    options = replace(OPTIONS, arbitration=kind, networks=["lan=10.0.0.1,10.0.0.2", "x=fd00::1,fd00::2"], **KINDS[kind])
    cluster = parse_cluster(pair_of(options).text)
    assert cluster.arbitration.kind == kind
    assert cluster.servers[1].networks == {"lan": "10.0.0.2", "x": "fd00::2"}
    assert cluster.security.tls is not None
    if kind == "fence":
        assert cluster.arbitration.options["command"] == ("/usr/bin/fence", "--hard", "two words") or list(
            cluster.arbitration.options["command"]
        ) == ["/usr/bin/fence", "--hard", "two words"]
    assert kind in MEANINGS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arbitration": ""}, "--arbitration is missing"),
        ({"arbitration": "quorum"}, "--arbitration quorum is not known"),
        ({"arbitration": "witness"}, "--witness HOST:PORT"),
        ({"arbitration": "ping", "etcd": ["10.0.0.9:1"]}, "--etcd goes with --arbitration etcd"),
        ({"here": "alpha"}, "NAME=ADDRESS"),
        ({"here": "alpha=host.example"}, "numeric addresses"),
        ({"networks": ["lan=10.0.0.1"]}, "--network lan=10.0.0.1,10.0.0.2"),
        ({"networks": ["lan=10.0.0.1,10.0.0.2"] * 2}, "twice"),
        ({"arbitration": "fence", "fence": "'open"}, "--fence"),
    ],
)
def test_what_makes_no_pair_is_said(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(NotUnderstood, match=expected):
        pair_of(replace(OPTIONS, **changes))


# ---- how the servers know each other


class Clock:
    now = 100.0


def gate(clock: Clock, key: bytes = b"k" * 32, number: int = 0) -> PairGate:
    counter = iter(range(number, 10**6))
    return PairGate(key, "beta", "alpha", clock=lambda: clock.now, random=lambda n: next(counter).to_bytes(n, "big"))


def asked(challenge: str, key: bytes = b"k" * 32, sender: str = "alpha", to: str = "beta", body: bytes = b"{}") -> str:
    return f"{SCHEME} {challenge}:{request_mac(channel_key(key), challenge, sender, to, 'POST', '/p', body)}"


def test_the_peer_is_let_in_once_and_its_answer_is_bound_to_the_question() -> None:
    clock = Clock()
    one = gate(clock)
    challenge = one.challenge()
    assert one.admit(asked(challenge), "POST", "/p", b"{}") == challenge
    with pytest.raises(NotThePeer, match="a second time"):
        one.admit(asked(challenge), "POST", "/p", b"{}")
    sealed = one.seal(challenge, 200, b"said")
    key = channel_key(b"k" * 32)
    assert sealed == answer_mac(key, challenge, "beta", "alpha", 200, b"said")
    others = [one.seal(challenge, 409, b"said"), one.seal(challenge, 200, b"sai"), one.seal("x", 200, b"said")]
    assert len({sealed, *others, answer_mac(key, challenge, "alpha", "beta", 200, b"said")}) == 5


@pytest.mark.parametrize(
    ("said", "late_s", "method", "body"),
    [
        ({"key": b"j" * 32}, 0, "POST", b"{}"),
        ({"sender": "beta", "to": "alpha"}, 0, "POST", b"{}"),  # its own question, sent back to it
        ({"body": b"[]"}, 0, "POST", b"{}"),
        ({}, 0, "PUT", b"{}"),
        ({}, CHALLENGE_S + 1, "POST", b"{}"),
    ],
)
def test_anything_else_is_refused(said: dict[str, Any], late_s: float, method: str, body: bytes) -> None:
    clock = Clock()
    one = gate(clock)
    challenge = one.challenge()
    clock.now += late_s
    with pytest.raises(NotThePeer):
        one.admit(asked(challenge, **said), method, "/p", body)


def test_a_challenge_of_another_process_or_of_nobody_is_refused() -> None:
    clock = Clock()
    one = gate(clock)
    other = gate(clock, number=10**5).challenge()
    for authorization in (asked(other), asked("1.0:aa:bb"), "Bearer x", "", f"{SCHEME} ", f"{SCHEME} :", "\x80"):
        with pytest.raises(NotThePeer):
            one.admit(authorization, "POST", "/p", b"{}")


def test_what_is_remembered_has_a_limit_and_ends() -> None:
    clock = Clock()
    one = gate(clock)
    for _ in range(USED):
        one.admit(asked(one.challenge()), "POST", "/p", b"{}")
    with pytest.raises(NotThePeer):
        one.admit(asked(one.challenge()), "POST", "/p", b"{}")
    clock.now += CHALLENGE_S + 1
    one.admit(asked(one.challenge()), "POST", "/p", b"{}")


# ---- invitations


def test_a_token_is_read_as_it_was_written_and_nothing_else_is() -> None:
    token = Token(b"s" * 32, b"f" * 32)
    text = token_text(token)
    assert read_token(f" {text}\n") == token
    for wrong in ("", text[:-2], text + "AA", text.removeprefix("join-"), text[:-1] + "!", "join-"):
        with pytest.raises(NoToken, match="hotpair invite"):
            read_token(wrong)


def test_an_invitation_counts_for_its_secret_and_its_time() -> None:
    invitation = Invitation(digest_of(b"s"), 1000.0)
    check(invitation, b"s", 999.0, "alpha")
    texts = set()
    for known, secret, now in (
        (invitation, b"t", 999.0),
        (invitation, b"s", 1001.0),
        (None, b"s", 999.0),
        (None, b"", 0.0),
    ):
        with pytest.raises(NotInvited) as refused:
            check(known, secret, now, "alpha")
        texts.add(str(refused.value))
    assert len(texts) == 1  # which of them it was is not said
