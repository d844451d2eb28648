"""The rules that nft takes, by nft itself; and an archive in which no secret is left, by looking for each."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpair.actors.ray_runtime_io import token
from hotpair.firewall import Openings, rules
from hotpair.support_io import Blackener, NotCollected, collect, secrets_of
from tests.api_server import ApiServer, prim, stopped
from tests.test_commands import one_line, run

OPENINGS = Openings({"10.0.0.2", "192.168.7.2", "fd00::2"}, {5601, 5600}, (21000, 21210), 9010, True)


def nft(text: str) -> subprocess.CompletedProcess[str]:
    """In a network of its own, so that nothing of this machine is changed."""
    if shutil.which("nft") is None or os.geteuid() != 0:
        pytest.skip("nft (package nftables) is missing, or this is not root")
    command = ["unshare", "--net", "sh", "-c", "nft -f - <<'END' && nft -f - <<'END' && nft list ruleset\n"]
    command[-1] += f"{text}END\n{text}END\n"
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_nft_takes_the_rules_twice() -> None:
    done = nft(rules(OPENINGS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("chain input") == 1
    for line in (
        "ip saddr { 10.0.0.2, 192.168.7.2 } tcp dport { 5600, 5601 } accept",
        "ip saddr { 10.0.0.2, 192.168.7.2 } udp dport { 5600, 5601 } accept",
        "ip6 saddr fd00::2 tcp dport { 5600, 5601 } accept",
        "tcp dport 21000-21210 drop",
        "tcp dport 9010 accept",
    ):
        assert line in done.stdout.replace("ip6 saddr { fd00::2 }", "ip6 saddr fd00::2"), done.stdout


def test_a_port_is_open_to_the_peer_before_it_is_closed_to_all() -> None:
    lines = [line.strip() for line in rules(OPENINGS).splitlines()]
    for protocol in ("tcp", "udp"):
        closed = lines.index(f"{protocol} dport {{ 5600, 5601 }} drop")
        opened = [
            number for number, line in enumerate(lines) if f"{protocol} dport {{ 5600" in line and "saddr" in line
        ]
        assert len(opened) == 2
        assert max(opened) < closed
    assert lines.index('iifname "lo" accept') < min(number for number, line in enumerate(lines) if "drop" in line)


def test_without_tls_the_api_is_the_peers_only_and_without_modules_nothing_is_opened() -> None:
    text = rules(Openings({"10.0.0.2"}, set(), (21000, 21210), 9010, False))
    assert "tcp dport 9010 drop" in text
    lines = [line.strip() for line in text.splitlines()]
    (opened,) = [line for line in lines if "saddr" in line]  # for the other server, which proves that it has the key
    assert opened.startswith("ip saddr { 10.0.0.2 } tcp dport 9010 accept")
    assert lines.index(opened) < next(number for number, line in enumerate(lines) if "9010 drop" in line)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path, {"web": prim(), "db": stopped()})
    yield made
    made.close()


def test_the_command_prints_them_from_the_configuration(server: ApiServer) -> None:
    home = server.home.configuration
    done = run("firewall", "--server", "alpha", home=home)
    assert "ip saddr { 127.0.0.2 } tcp dport { 5600, 5601 } accept" in done.stdout
    assert "--server alpha or beta" in one_line(run("firewall", "--server", "gamma", home=home), 2)
    assert "cluster.toml" in one_line(run("firewall", home=home + "/nowhere"), 2)
    refused = run("firewall", "--server", "alpha", "--apply", home=home, PATH="/nowhere")
    assert "apt install nftables" in one_line(refused, 2)


# ---- support

PASSWORD = "correct-horse-battery"
PEM = (
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIFakeKeyMaterialLineOne1234567890\n"
    "abcdefLineTwo==\n-----END EC PRIVATE KEY-----\n"
)


def plant(server: ApiServer) -> list[bytes]:
    """Secrets where they belong, and where they do not. Returns what must not be in the archive."""
    home, keys = server.home, {"pair.key": os.urandom(32).hex(), "witness.key": os.urandom(32).hex()}
    folder = Path(home.configuration)
    for name, key in keys.items():
        (folder / name).write_text(key + "\n")
    (folder / "tls").mkdir()
    (folder / "tls" / "server.key").write_text(PEM)
    os.makedirs(home.ray)
    ray = Path(token(os.path.join(home.ray, "token"))).read_text()
    module = folder / "modules" / "web.toml"
    module.write_text(module.read_text() + f'host_password = "{PASSWORD}"\npassword = "a \\" {PASSWORD}"\n')
    (folder / "modules" / "db.toml.bak").write_text(PASSWORD)
    everything = [*keys.values(), ray, PEM]
    log = f"password: {PASSWORD}\nAuthorization: Bearer {server.tokens['admin']}\n" + "\n".join(everything)
    log += f'\n{{"token": "{server.tokens["control"]}"}} {keys["pair.key"].upper()}\n'
    log += "-----BEGIN PRIVATE KEY-----\nhalf-a-key-without-an-end"
    Path(home.application_log("web")).write_bytes(log.encode() + bytes.fromhex(keys["pair.key"]))
    Path(home.mirror_log("db") + ".1").write_text(keys["witness.key"])
    tokens = [server.tokens["admin"], server.tokens["control"]]
    digests = (folder / "tokens.toml").read_text().split('"')[3::4]
    assert len(digests) == 3
    secrets = [*keys.values(), ray, PASSWORD, "FakeKeyMaterial", "LineTwo", "half-a-key", *tokens, *digests]
    return [*(one.encode() for one in secrets), bytes.fromhex(keys["pair.key"])]


def contents(path: str) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {entry.name.removeprefix("hotpair-support/"): archive.extractfile(entry) for entry in archive}
        return {name: opened.read() for name, opened in found.items() if opened is not None}


def test_the_archive_has_what_helps_and_no_secret(server: ApiServer, tmp_path: Path) -> None:
    secrets = plant(server)
    out = str(tmp_path / "out.tar.gz")
    done = run("support", "--out", out, home=server.home.configuration)
    assert (done.returncode, done.stdout) == (0, out + "\n"), done.stderr
    assert os.stat(out).st_mode & 0o777 == 0o600
    found = contents(out)
    for name, data in found.items():
        for secret in secrets:
            assert secret not in data, (name, secret)
            assert secret.lower() not in data.lower(), (name, secret)
    assert not [name for name in found if "key" in name or "token" in name or name.endswith(".bak")]
    assert {"cluster.toml", "modules/web.toml", "state/web/application.log", "state/web/events.jsonl"} <= set(found)
    assert b'"last_role": "PRIM"' in found["state/web/record.json"]
    assert b"STOP" in found["service.json"] and b"hotpair_module_state" in found["service.json"]
    assert b"mirror_port = 5600" in found["modules/web.toml"]
    assert b"MemTotal" in found["host/meminfo"]


def test_what_is_searched_for_is_really_found(server: ApiServer) -> None:
    """The search above could be for the wrong things: without blackening they are all there."""
    secrets = plant(server)
    log = Path(server.home.application_log("web")).read_bytes()
    assert sum(secret in log for secret in secrets) >= 8
    assert len(secrets_of(server.home)) >= 6


def test_an_archive_is_made_without_a_service_and_with_damaged_files(tmp_path: Path) -> None:
    state = tmp_path / "state" / "modules" / "web" / "mirror"
    state.mkdir(parents=True)
    (state / "record").write_bytes(b"damaged")
    (tmp_path / "cluster.toml").write_text("this is no TOML")
    out = str(tmp_path / "out.tar.gz")
    assert run("support", "--out", out, home=tmp_path).returncode == 0
    found = contents(out)
    assert b"is damaged" in found["state/web/record.json"]
    assert b"not running here" in found["service.json"]
    assert found["cluster.toml"] == b"this is no TOML"
    assert "cannot be written: File exists" in one_line(run("support", "--out", out, home=tmp_path), 2)


def test_nothing_else_is_blackened() -> None:
    text = b'name = "rack7"\nkey_file = "pair.key"\nreason: the peer was heard, tokens were read\nmirror_port = 5600\n'
    assert Blackener({b"x" * 64}).clean(text) == text


def test_out_of_reach_is_said(server: ApiServer) -> None:
    with pytest.raises(NotCollected, match="No such file"):
        collect(server.home, "/nowhere/out.tar.gz")
