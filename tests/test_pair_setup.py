"""From nothing to a running module, on two servers behind their real APIs: init, join, module add, edit, remove.

And every way in which that can be wrong: one line, the right exit code, and nothing written on either server.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import Response

from hotpair import pair_channel_io
from hotpair.access import Role
from hotpair.actors.groups import NotOpened
from hotpair.actors.home import Home
from hotpair.client import Client, NotAllowed
from hotpair.cluster.configuration import parse_cluster
from hotpair.cluster.configuration_io import load_cluster, load_key
from hotpair.commands import main
from hotpair.home_files_io import NotMade
from hotpair.http_server_io import places
from hotpair.invitations import Token, read_token
from hotpair.invitations_io import invite
from hotpair.join_io import join
from hotpair.pair_channel_io import PeerChannel, PeerNotAsked, PeerRefused, PeerUnreachable
from hotpair.pair_facts_io import Looks, found_at, fuse_problem
from hotpair.pair_home_io import WitnessFiles, init
from hotpair.pair_init import pair_of
from hotpair.support_io import secrets_of
from hotpair.tokens_io import TOKENS_FILE, add
from tests.pair_servers import ADDRESSES, HERE, LOOKS, OPTIONS, THERE, PairServers, pair_servers, tree

Said = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[PairServers]:
    with pair_servers(tmp_path) as made:
        yield made


def run(home: Home, *words: str) -> int:
    return main([*words, "--home", home.configuration])


def one_line(said: Said) -> str:
    found = said.readouterr()
    assert found.out == ""
    assert found.err.startswith("hotpair: ")
    assert found.err.count("\n") == 1, found.err
    return found.err


def added(pair: PairServers, *words: str, name: str = "web", at: str = HERE) -> int:
    given = ["--directory", pair.directory(name=name), "--data-on", HERE, "--driver", "command"]
    return run(pair.homes[at], "module", "add", name, *given, "--option", 'start=["/bin/sleep", "9"]', *words)


def modes(home: Home) -> dict[str, int]:
    files = (path for path in Path(home.configuration).rglob("*") if path.is_file())
    return {str(path.relative_to(home.configuration)): path.stat().st_mode & 0o777 for path in files}


# ---- init and join


def test_init_and_join_make_two_homes_of_one_pair(pair: PairServers) -> None:
    first, second = pair.homes[HERE], pair.homes[THERE]
    names = {"cluster.toml", "pair.key", "service.env", "tls/authority.pem", "tls/authority.key", "tls/server.pem",
             "tls/server.key"}  # fmt: skip
    assert load_cluster(first.configuration) == load_cluster(second.configuration)
    for name in names:
        same = Path(first.below(name)).read_bytes() == Path(second.below(name)).read_bytes()
        assert same == (name not in ("tls/server.pem", "tls/server.key", "service.env")), name
    for home in (first, second):
        found = {name: mode for name, mode in modes(home).items() if not name.startswith("state/")}
        assert found == dict.fromkeys(names, 0o600)
    assert Path(second.below("service.env")).read_text() == "SERVER=beta\n"
    assert Path(first.below("tls/authority.key")).read_bytes().strip() in secrets_of(first)


def test_a_token_counts_once_for_its_time_and_for_the_other_server(pair: PairServers, tmp_path: Path) -> None:
    where = f"{ADDRESSES[HERE]}:{pair.port}"
    third = Home.at(str(tmp_path / "third"))
    text = invite(pair.homes[HERE], 5)

    def refused(token: Token, server: str, match: str, address: str = where) -> None:
        with pytest.raises(NotMade, match=match):
            join(third, address, token, server, overwrite=False)
        assert not os.path.exists(third.configuration)

    token = read_token(text)
    refused(replace(token, secret=b"x" * 32), THERE, "wrong, was used, or has expired")
    refused(replace(token, fingerprint=b"x" * 32), THERE, "not the one that the token is from")
    refused(token, "gamma", "is beta, not gamma")
    refused(token, HERE, "is beta, not alpha")
    refused(token, THERE, "not the one that the token is from", f"{ADDRESSES[THERE]}:{pair.port}")
    refused(token, THERE, "nothing that speaks TLS answers", f"{ADDRESSES[HERE]}:1")
    refused(token, THERE, "is not an address", "::1")
    join(third, where, token, THERE, overwrite=False)  # none of those has used it up
    fourth = Home.at(str(tmp_path / "fourth"))
    with pytest.raises(NotMade, match="was used"):
        join(fourth, where, token, THERE, overwrite=False)
    expired = read_token(invite(pair.homes[HERE], 5, now=lambda: time.time() - 301))
    with pytest.raises(NotMade, match="has expired"):
        join(fourth, where, expired, THERE, overwrite=False)
    assert not os.path.exists(fourth.configuration)


def test_the_secret_is_not_kept_and_another_invitation_ends_the_last(pair: PairServers) -> None:
    home = pair.homes[HERE]
    first, second = read_token(invite(home, 5)), read_token(invite(home, 5))
    kept = Path(home.state, "invitation").read_bytes()
    assert second.secret.hex().encode() not in kept and second.secret not in kept
    third = Home.at(str(pair.folder / "third"))
    with pytest.raises(NotMade, match="wrong"):
        join(third, f"{ADDRESSES[HERE]}:{pair.port}", first, THERE, overwrite=False)


def test_init_says_what_to_do_next_and_is_not_done_twice(tmp_path: Path, capsys: Said) -> None:
    home = Home.at(str(tmp_path / "home"))
    words = ["init", "--name", "rack7", "--server", "alpha=10.0.0.1", "--peer", "beta=10.0.0.2"]
    assert run(home, *words) == 2
    assert "--arbitration is missing" in one_line(capsys)
    assert run(home, *words, "--arbitration", "none", "--network", "lan=10.0.0.1,10.0.0.1") == 2
    assert "both servers have 10.0.0.1" in one_line(capsys)
    assert not os.path.exists(home.configuration)
    strange = [word.replace("beta", "b\N{LATIN SMALL LETTER E WITH ACUTE}ta") for word in words]
    assert run(home, *strange, "--arbitration", "none") == 2
    assert "no other alphabets" in one_line(capsys)
    assert run(home, *words, "--arbitration", "none") == 0
    said = capsys.readouterr().out
    assert "split brain" in said and "--server beta" in said
    token = next(word for word in said.split() if word.startswith("join-"))
    assert len(read_token(token).fingerprint) == 32
    before = modes(home)
    assert run(home, *words, "--arbitration", "none") == 2
    assert "there is a configuration already" in one_line(capsys)
    assert modes(home) == before
    assert run(home, "join", "10.0.0.1", token) == 2
    assert "there is a configuration already" in one_line(capsys)
    assert run(home, "join", "10.0.0.1", "join-x") == 2
    assert "hotpair invite" in one_line(capsys)


def test_a_home_that_was_left_half_made_is_named_and_not_used(tmp_path: Path) -> None:
    home = Home.at(str(tmp_path / "home"))
    os.makedirs(home.configuration)
    Path(home.below("service.env")).write_text("SERVER=other\n")  # the package's: no objection
    Path(home.below("pair.key")).write_text("of an interrupted init")
    with pytest.raises(NotMade, match=r"pair\.key is there, without a cluster\.toml"):
        init(home, OPTIONS, WitnessFiles())
    assert set(modes(home)) == {"service.env", "pair.key"}
    os.unlink(home.below("pair.key"))
    os.makedirs(home.module_state("web"))
    with pytest.raises(NotMade, match="state of other modules"):
        init(home, OPTIONS, WitnessFiles())


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    home = Home.at(str(tmp_path / "home"))
    os.makedirs(home.configuration)
    Path(home.below("tls")).write_text("a file where a directory is needed")
    with pytest.raises(NotMade, match="tls"):
        init(home, OPTIONS, WitnessFiles())
    assert sorted(os.listdir(home.configuration)) == ["tls"]


def test_a_new_witness_gets_its_files(tmp_path: Path) -> None:
    home = Home.at(str(tmp_path / "home"))
    options = replace(OPTIONS, arbitration="witness", witness="10.0.0.9:5700")
    _, to_do = init(home, options, WitnessFiles())
    assert len(to_do) == 1 and home.below("for-the-witness") in to_do[0]
    key = load_key(home.below("witness.key")).hex()
    assert Path(home.below("for-the-witness/witness-keys.toml")).read_text() == f'rack7 = "{key}"\n'
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.below("for-the-witness/witness.pem"), home.below("for-the-witness/witness.key"))


def test_a_lost_server_is_replaced_with_the_pairs_modules(pair: PairServers) -> None:
    assert added(pair) == 0
    pair.stop(THERE)
    pair.homes[THERE] = Home.at(str(pair.folder / "replaced"))
    Path(pair.directory(), "disk").write_text("what the old server had")
    with pytest.raises(NotMade, match="is not empty"):
        pair.join()
    assert not os.path.exists(pair.homes[THERE].configuration)
    assert pair.join(overwrite=True) == ["web is a module of the pair: hotpair start web"]
    assert os.path.exists(pair.homes[THERE].overwrite_mark("web"))
    pair.start(THERE)
    assert pair[THERE].modules() == {"web": "STOP"}


# ---- modules, as it should be


def test_a_module_is_added_edited_and_removed_on_both(pair: PairServers, capsys: Said) -> None:
    assert added(pair, "--start") == 0
    assert capsys.readouterr().out == ""
    texts = {Path(pair.homes[name].module_file("web")).read_text() for name in ADDRESSES}
    assert len(texts) == 1
    assert "mirror_port = " in next(iter(texts)) and 'start = ["/bin/sleep", "9"]' in next(iter(texts))
    for name in ADDRESSES:
        assert pair[name].modules()["web"] != "STOP"
        assert run(pair.homes[name], "module", "edit", "web", "--set", "boot=off") == 1  # it runs, or wants to
        assert "stop it on both servers first" in one_line(capsys)
    for name in ADDRESSES:
        assert run(pair.homes[name], "stop", "web") == 0
    assert run(pair.homes[THERE], "module", "edit", "web", "--set", "boot=off", "--set", "mirror.durability=disk") == 0
    for name in ADDRESSES:
        assert 'boot = "off"' in Path(pair.homes[name].module_file("web")).read_text()
        assert pair[name].supervisor.configured("web").boot == "off"
    record = Path(pair.homes[HERE].mirror_state("web"), "record")
    had_record = record.exists()
    capsys.readouterr()
    assert run(pair.homes[THERE], "module", "remove", "web") == 0
    said = capsys.readouterr().out
    assert said.count(f"the data is still in {pair.directory()}") == 2
    for name in ADDRESSES:
        assert pair[name].modules() == {}
        home = pair.homes[name]
        assert not os.path.exists(home.module_file("web")) and not os.path.exists(home.module_state("web"))
        (aside,) = Path(home.state, "removed").iterdir()
        assert (aside / "web.toml").exists() and (aside / "state").is_dir()
    assert not had_record or not record.exists()
    assert added(pair) == 0  # and once more, with nothing of the first one
    assert pair[THERE].modules() == {"web": "STOP"}


def test_a_file_is_taken_as_it_is_and_ports_are_chosen(pair: PairServers, tmp_path: Path) -> None:
    given = tmp_path / "db.toml"
    given.write_text(
        f'# ours\ndirectory = "{pair.directory(name="db")}"\ndata_on = "beta"\n[vm]\ndriver = "command"\n'
        '[vm.options]\nstart = ["/bin/true"]\n'
    )
    assert added(pair) == 0
    assert run(pair.homes[THERE], "module", "add", "db", "--from", str(given)) == 0
    text = Path(pair.homes[HERE].module_file("db")).read_text()
    ports = [pair[HERE].supervisor.configured(name).mirror_port for name in ("web", "db")]
    assert 5600 <= ports[0] < ports[1]
    assert text == f"mirror_port = {ports[1]}\n" + given.read_text()
    given.write_text(text.replace("# ours", "# theirs"))
    assert run(pair.homes[HERE], "module", "edit", "db", "--from", str(given)) == 0
    assert pair[THERE].modules() == {"db": "STOP", "web": "STOP"}
    pair.stop(THERE)
    pair.start(THERE)  # what was written is what a service loads
    assert pair[THERE].modules() == {"db": "STOP", "web": "STOP"}


def test_what_was_begun_on_one_server_is_completed_by_repeating_it(pair: PairServers, capsys: Said) -> None:
    assert added(pair) == 0
    pair.stop(THERE)
    os.unlink(pair.homes[THERE].module_file("web"))
    pair.start(THERE)
    assert pair[THERE].modules() == {}
    assert added(pair) == 0
    assert pair[THERE].modules() == {"web": "STOP"}
    assert added(pair) == 2
    assert "there is a module web already" in one_line(capsys)
    pair.stop(THERE)
    os.unlink(pair.homes[THERE].module_file("web"))
    pair.start(THERE)
    assert run(pair.homes[THERE], "module", "remove", "web") == 0
    assert pair[HERE].modules() == {}
    capsys.readouterr()
    assert run(pair.homes[THERE], "module", "remove", "web") == 2
    assert "there is no module 'web' on this pair" in one_line(capsys)


def test_a_port_that_only_the_other_server_has_in_use_is_not_chosen(tmp_path: Path) -> None:
    busy = {
        HERE: replace(LOOKS, port=lambda cluster, server, port: "" if port in (7000, 7003, 7005) else "in use"),
        THERE: replace(LOOKS, port=lambda cluster, server, port: "" if port in (7001, 7004, 7005) else "in use"),
    }
    with pair_servers(tmp_path, busy) as pair:
        assert added(pair) == 0
        assert pair[THERE].supervisor.configured("web").mirror_port == 7005


# ---- what is wrong, before anything is done

WRONG: Mapping[str, tuple[tuple[str, ...], int, str]] = {
    # words, exit code, what is said
    "no directory": (("--directory", "/nowhere/at/all"), 2, "/nowhere/at does not exist"),
    "relative": (("--directory", "vm/web"), 2, "is not absolute"),
    "server": (("--data-on", "gamma"), 2, "there is no server gamma"),
    "port": (("--port", "PORT"), 2, "cannot be used at 127.0.0.1"),
    "port number": (("--port", "80"), 2, "80 is not accepted"),
    "driver": (("--driver", "vmware"), 2, 'no driver "vmware" is installed here'),
    "program": (("--option", 'start=["/no/program"]'), 2, "there is no program /no/program"),
    "option": (("--option", "starts=x"), 2, "starts"),
    "key": (("--option", "=x"), 2, "give KEY=VALUE"),
    "name": (("--name", "a/b"), 2, "cannot be called"),
}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PairServers]:
    """Nothing is ever changed on it: after each test both homes are as before."""
    with pair_servers(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture
def unchanged(looked_at: PairServers) -> Iterator[PairServers]:
    before = [tree(home) for home in looked_at.homes.values()]
    yield looked_at
    assert [tree(home) for home in looked_at.homes.values()] == before
    assert [looked_at[name].modules() for name in ADDRESSES] == [{}, {}]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_done(unchanged: PairServers, case: str, capsys: Said) -> None:
    words, code, expected = WRONG[case]
    name = words[1] if words[0] == "--name" else "web"
    given = [] if words[0] == "--name" else [str(unchanged.port) if word == "PORT" else word for word in words]
    directory = unchanged.directory()
    defaults = {"--directory": directory, "--data-on": HERE, "--driver": "command", "--option": 'start=["/bin/true"]'}
    for option, value in defaults.items():
        if option not in given:
            given += [option, value]
    assert run(unchanged.homes[HERE], "module", "add", name, *given) == code
    assert expected in one_line(capsys)


def test_a_file_that_is_no_toml_is_named_with_line_and_column(unchanged: PairServers, capsys: Said) -> None:
    path = unchanged.folder / "bad.toml"
    path.write_text('directory = "/x"\nmirror_port = = 5\n')
    home = unchanged.homes[HERE]
    for words in (("add", "web"), ("edit", "web")):
        assert run(home, "module", *words, "--from", str(path)) == 2
        assert "(at line 2, column 15)" in one_line(capsys)
    path.write_text('directory = "/x"\ndata_on = "alpha"\ncolour = "red"\n[vm]\ndriver = "command"\n')
    assert run(home, "module", "add", "web", "--from", str(path)) == 2
    assert "modules/web.toml, line 3: colour" in one_line(capsys)
    assert run(home, "module", "add", "web", "--from", str(path) + "x") == 2
    assert "cannot be read" in one_line(capsys)
    assert run(home, "module", "add", "web") == 2
    assert "--from FILE.toml" in one_line(capsys)
    assert run(home, "module", "edit", "web", "--set", "boot=off") == 2
    assert "there is no module 'web'" in one_line(capsys)
    assert run(home, "module", "edit", "web") == 2
    assert "--set KEY=VALUE" in one_line(capsys)


def test_data_on_the_other_server_is_not_overwritten(unchanged: PairServers, capsys: Said) -> None:
    """On one machine both see the same directory: the server without the data objects."""
    disk = Path(unchanged.directory(name="full"), "disk")
    disk.write_text("data")
    assert added(unchanged, name="full") == 1
    assert "on beta" in (said := one_line(capsys)) and "--overwrite" in said
    assert added(unchanged, name="full", at=THERE) == 2
    assert "on beta" in one_line(capsys)
    assert disk.read_text() == "data"


def test_who_may_not_is_told(unchanged: PairServers) -> None:
    home = unchanged.homes[HERE]
    token = add(home.below(TOKENS_FILE), "operator", Role.CONTROL)
    url = f"https://{ADDRESSES[HERE]}:{unchanged.port}"
    with Client.at(url, token, authority=home.below("tls/authority.pem")) as client:  # its certificate has the address
        deadline = time.monotonic() + 10
        while True:
            try:
                client.modules()
                break
            except NotAllowed:  # the file is read again within a second
                assert time.monotonic() < deadline
        with pytest.raises(NotAllowed, match="needs admin"):
            client.add_module("web", toml="")
        with pytest.raises(NotAllowed):
            client.remove_module("web")
    os.unlink(home.below(TOKENS_FILE))


def test_what_is_given_up_is_marked_for_the_mirror_where_it_is(pair: PairServers) -> None:
    Path(pair.directory(), "disk").write_text("data")
    assert added(pair, "--overwrite") == 0
    assert not os.path.exists(pair.homes[HERE].overwrite_mark("web"))
    assert os.path.exists(pair.homes[THERE].overwrite_mark("web"))


# ---- the other server, and what happens in between


def refusing(what: str) -> dict[str, Looks]:
    return {THERE: replace(LOOKS, **{what: lambda *given: f"{what} is missing"})}


@pytest.mark.parametrize("what", ["fuse", "driver", "port"])
def test_what_the_other_server_lacks_is_said_from_there(tmp_path: Path, what: str, capsys: Said) -> None:
    with pair_servers(tmp_path, refusing(what)) as pair:
        assert added(pair, "--port", "7000") == 1
        assert f"on beta: {what} is missing" in one_line(capsys)
        assert added(pair, "--port", "7000", at=THERE) == 2
        assert f"on beta: {what} is missing" in one_line(capsys)
        assert [tree(home) for home in pair.homes.values()] == [{}, {}]
        pair.stop(THERE)
        pair.looks = {}
        pair.start(THERE)
        assert added(pair) == 0  # no promise is left behind


def test_without_the_other_server_nothing_is_changed(pair: PairServers, capsys: Said) -> None:
    pair.stop(THERE)
    assert added(pair) == 2
    assert "beta does not answer at 127.0.0.2" in one_line(capsys)
    assert tree(pair.homes[HERE]) == {}


def test_another_cluster_is_named_by_its_first_difference(pair: PairServers, capsys: Said) -> None:
    pair.stop(THERE)
    path = Path(pair.homes[THERE].cluster_file)
    path.write_text(path.read_text() + "[heartbeat]\ntimeout_s = 8\n")
    pair.start(THERE)
    assert added(pair) == 2
    assert "heartbeat.timeout_s is 5.0 on alpha and 8" in one_line(capsys)
    assert [tree(home) for home in pair.homes.values()] == [{}, {}]


def test_another_key_is_no_peer(pair: PairServers, capsys: Said) -> None:
    pair.stop(THERE)
    Path(pair.homes[THERE].below("pair.key")).write_text("ab" * 32)
    pair.start(THERE)
    assert added(pair) == 2
    assert "the pair's key" in one_line(capsys)


def test_a_server_with_another_name_or_authority_is_no_peer(pair: PairServers, tmp_path: Path) -> None:
    cluster, home = load_cluster(pair.homes[HERE].configuration), pair.homes[HERE]
    first, second = cluster.servers
    swapped = replace(cluster, servers=(first, replace(second, address="localhost")))
    with pytest.raises(PeerNotAsked, match=r"is that of .*alpha.*, not of beta"):
        PeerChannel(swapped, home, HERE, pair.port).ask("standing", {})
    other = Home.at(str(tmp_path / "other"))
    init(other, OPTIONS, WitnessFiles())
    with pytest.raises(PeerNotAsked, match="signed by the pair's authority"):
        PeerChannel(cluster, other, HERE, pair.port).ask("standing", {})


@pytest.mark.parametrize("failing", [HERE, THERE])
def test_a_module_that_one_server_cannot_open_is_on_neither(pair: PairServers, failing: str, capsys: Said) -> None:
    pair[failing].groups.fails = NotOpened("no actor starts")
    assert added(pair) == 1
    assert f"on {failing}: no actor starts" in one_line(capsys)
    assert [pair[name].modules() for name in ADDRESSES] == [{}, {}]
    for home in pair.homes.values():
        assert [name for name, content in tree(home).items() if content != b"directory"] == []
    pair[failing].groups.fails = None
    assert added(pair) == 0


@pytest.mark.parametrize("failing", [HERE, THERE])
def test_a_change_that_one_server_cannot_take_leaves_the_old_one_on_both(
    pair: PairServers, failing: str, capsys: Said
) -> None:
    assert added(pair) == 0
    before = [Path(home.module_file("web")).read_text() for home in pair.homes.values()]
    capsys.readouterr()
    path = Path(pair.homes[failing].configuration, "modules", "web.toml.new")
    path.mkdir()  # so that the file cannot be replaced
    assert run(pair.homes[HERE], "module", "edit", "web", "--set", "boot=off") == 1
    one_line(capsys)
    path.rmdir()
    assert [Path(home.module_file("web")).read_text() for home in pair.homes.values()] == before
    assert [pair[name].modules() for name in ADDRESSES] == [{"web": "STOP"}] * 2
    assert [pair[name].supervisor.configured("web").boot for name in ADDRESSES] == ["as-before"] * 2


@pytest.mark.parametrize("failing", [HERE, THERE])
def test_a_removal_that_one_server_cannot_do_is_taken_back_on_both(
    pair: PairServers, failing: str, capsys: Said
) -> None:
    assert added(pair) == 0

    def kept() -> list[dict[str, bytes]]:
        """What is not only said of it."""
        return [
            {name: text for name, text in tree(home).items() if name.endswith((".toml", "wishes", "mirror"))}
            for home in pair.homes.values()
        ]

    before = kept()
    Path(pair.homes[failing].state, "removed").write_text("a file where a directory is needed")
    capsys.readouterr()
    assert run(pair.homes[HERE], "module", "remove", "web") == 1
    assert f"on {failing}" in one_line(capsys)
    os.unlink(Path(pair.homes[failing].state, "removed"))
    assert kept() == before
    assert [pair[name].modules() for name in ADDRESSES] == [{"web": "STOP"}] * 2
    assert run(pair.homes[HERE], "module", "remove", "web") == 0


def test_an_answer_that_is_lost_is_asked_about_and_taken_back(
    pair: PairServers, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    """The other server has done it, and this one does not hear so: nothing stays, or it is said that it may."""
    heard: list[str] = []
    lost = {"commit"}
    real = PeerChannel.ask

    def ask(self: PeerChannel, word: str, given: Mapping[str, Any], limit_s: float = 20.0) -> dict[str, Any]:
        answer = real(self, word, given, limit_s)
        heard.append(word)
        if word in lost:
            raise PeerUnreachable("beta has not answered")
        return answer

    monkeypatch.setattr(PeerChannel, "ask", ask)
    assert added(pair) == 2
    asked = [word for word, _ in itertools.groupby(heard)]  # a port that is taken here or there is not the one
    assert asked == ["standing", "free-port", "prepare", "commit", "undo"]
    assert "beta has not answered" in one_line(capsys)
    assert [pair[name].modules() for name in ADDRESSES] == [{}, {}]
    lost |= {"undo"}
    assert added(pair) == 1
    assert "Repeat the command" in one_line(capsys)
    assert pair[HERE].modules() == {}
    lost.clear()
    assert added(pair) == 0
    assert [pair[name].modules() for name in ADDRESSES] == [{"web": "STOP"}] * 2


# ---- the channel


def ask_raw(pair: PairServers, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    context = pair_channel_io.authority_context(pair.homes[HERE].below("tls/authority.pem"))
    connection = http.client.HTTPSConnection(ADDRESSES[HERE], pair.port, timeout=10, context=context)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_only_the_peer_uses_its_routes(unchanged: PairServers) -> None:
    for authorization in ("", "Bearer x", "Hotpair-Pair 1:2:3"):
        status, said = ask_raw(unchanged, "POST", "/api/v1/pair/standing", b"{}", Authorization=authorization)
        assert status == 403, said
    status, _ = ask_raw(unchanged, "POST", "/api/v1/pair/join", b"{}")
    assert status == 403
    status, said = ask_raw(unchanged, "GET", "/api/v1/pair/challenge")
    assert status == 200 and set(said) == {"challenge"}
    cluster = load_cluster(unchanged.homes[THERE].configuration)
    channel = PeerChannel(cluster, unchanged.homes[THERE], THERE, unchanged.port)
    assert channel.ask("standing", {})["server"] == HERE
    for word, given in (("explode", {}), ("commit", {}), ("prepare", {"identity": 1}), ("start", {})):
        with pytest.raises(PeerRefused, match="update both servers"):
            channel.ask(word, given)


def test_without_tls_the_channel_is_the_same_and_nobody_else_is_answered(pair: PairServers, capsys: Said) -> None:
    for name in ADDRESSES:
        pair.stop(name)
        path = Path(pair.homes[name].cluster_file)
        path.write_text(path.read_text() + "[security]\ntls = false\n")
    for name in ADDRESSES:
        pair.start(name)
    assert added(pair) == 0
    assert pair[THERE].modules() == {"web": "STOP"}
    assert run(pair.homes[HERE], "invite") == 2
    assert "by hand" in one_line(capsys)
    assert run(pair.homes[HERE], "module", "remove", "web") == 0


def test_without_tls_another_address_than_loopback_is_the_peers_only() -> None:
    cluster = parse_cluster(pair_of(replace(OPTIONS, here="alpha=10.0.0.1", peer="beta=10.0.0.2")).text)
    plain = replace(cluster, security=replace(cluster.security, tls=None))

    async def everything(scope: Any, receive: Any, send: Any) -> None:
        await Response("let in")(scope, receive, send)

    first, second = places(everything, plain, HERE, 9010, None)
    assert (first.address, second.address) == ("127.0.0.1", "10.0.0.1")
    assert [one.address for one in places(everything, cluster, HERE, 9010, ("a", "b"))] == ["10.0.0.1"]

    async def asked(place: Any, path: str) -> int:
        transport = httpx.ASGITransport(app=place.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://hotpair") as client:
            return (await client.get(path)).status_code

    paths = ("/api/v1/pair/challenge", "/api/v1/modules", "/health/web", "/metrics", "/api/v1/pair")
    assert [asyncio.run(asked(first, path)) for path in paths] == [200] * 5
    assert [asyncio.run(asked(second, path)) for path in paths] == [200, 404, 404, 404, 404]


def test_a_server_that_says_nothing_is_given_up(unchanged: PairServers) -> None:
    with socket.socket() as silent:
        silent.bind((ADDRESSES[HERE], 0))
        silent.listen()
        cluster = load_cluster(unchanged.homes[THERE].configuration)
        channel = PeerChannel(cluster, unchanged.homes[THERE], THERE, silent.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(PeerNotAsked, match="does not answer"):
            channel.ask("standing", {}, 0.3)
        assert time.monotonic() - began < 5


# ---- what is looked at


def test_what_is_at_a_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "was-mirrored" / ".hotpair").mkdir(parents=True)
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "point").mkdir()
    (tmp_path / ".point.hotpair").mkdir()
    names = ("empty", "full", "file", "link", "point", "new", "a/new", "was-mirrored")
    found = {name: found_at(str(tmp_path / name)).name for name in names}
    assert found == {"empty": "EMPTY", "full": "FULL", "file": "OTHER", "link": "OTHER", "point": "FULL",
                     "new": "MISSING", "a/new": "NO_WAY", "was-mirrored": "EMPTY"}  # fmt: skip


def test_a_missing_fuse_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hotpair.pair_facts_io.FUSE_DEVICE", str(tmp_path / "fuse"))
    assert "modprobe fuse" in fuse_problem()
