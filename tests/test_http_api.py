"""The API of one server: the real application over its Unix socket and over TCP, before the real supervisor."""

from __future__ import annotations

import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotpair.actors.said import MirrorSays
from hotpair.api_values import API, LONGEST_BODY
from hotpair.http_server_io import NotServed, local_socket
from tests.api_server import ApiServer, prim, second, stopped
from tests.test_link_tls import Authority, needs_openssl

NOT_HELD_UP_S = 5.0  # nothing that is asked answers before the test ends


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path, {"web": prim(), "db": stopped(), "copy": second()})
    yield made
    made.close()


@pytest.fixture
def local(server: ApiServer) -> Iterator[httpx.Client]:
    """Root, over the Unix socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=server.home.socket), base_url="http://hotpair") as client:
        yield client


@pytest.fixture
def remote(server: ApiServer) -> Iterator[httpx.Client]:
    """Over TCP; each request brings its own token."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def bearer(server: ApiServer, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.tokens[role]}"}


def states(client: httpx.Client) -> dict[str, tuple[str, str]]:
    return {one["module"]: (one["state"], one["colour"]) for one in client.get(f"{API}/modules").json()}


def until(server: ApiServer, client: httpx.Client, module: str, state: str, colour: str) -> None:
    """What the made-up helpers do comes back by the event loop: a few turns of it."""
    deadline = time.monotonic() + 10
    while states(client)[module] != (state, colour):
        assert time.monotonic() < deadline, (states(client), server.group(module).said)
        server.call(lambda: None)


def test_all_modules_with_both_servers_view(server: ApiServer, local: httpx.Client) -> None:
    assert states(local) == {"copy": ("SECOND", "green"), "db": ("STOP", "red"), "web": ("PRIM", "green")}
    web = next(one for one in local.get(f"{API}/modules").json() if one["module"] == "web")
    assert (web["server"], web["peer"], web["peer_state"], web["peer_colour"]) == ("alpha", "beta", "SECOND", "green")
    assert (web["vm"], web["data"], web["in_sync"], web["problem"]) == ("on", "up to date", True, "")
    assert local.get(API).json() | {"version": ""} == {
        "version": "", "cluster": "rack7", "server": "alpha", "peer": "beta",
    }  # fmt: skip


def test_one_module_with_what_its_helpers_say(server: ApiServer, local: httpx.Client) -> None:
    server.group("web").details = {"heartbeat": {"peer": "alive"}, "replication": {"held": 3}, "vm": {"problem": ""}}
    web = local.get(f"{API}/modules/web").json()
    assert (web["mirror"], web["heartbeat"]) == ({"held": 3}, {"peer": "alive"})
    assert (web["directory"], web["mirror_port"], web["driver"]) == ("vm/web", 5600, "command")
    assert len(bytes.fromhex(web["record"]["generation"])) == 16
    assert "the-password" not in str(web)


def test_helpers_that_do_not_answer_hold_nothing_up(server: ApiServer, local: httpx.Client) -> None:
    server.group("web").hangs = True
    local.get(f"{API}/modules")  # the connection is made
    for path in (f"{API}/modules/web", "/metrics"):
        began = time.monotonic()
        answer = local.get(path)
        assert time.monotonic() - began < NOT_HELD_UP_S, path
        assert answer.status_code == 200
    assert local.get(f"{API}/modules/web").json()["age_s"] is None


# ---- commands

COMMANDS = [
    ("db", {"command": "start"}, "control", 200, ""),
    ("db", {"command": "stop"}, "control", 200, ""),
    ("db", {"command": "stopstart"}, "control", 200, ""),
    ("db", {"command": "restart"}, "control", 409, "The VM does not run here."),
    ("db", {"command": "swap"}, "control", 409, "A swap needs PRIM here and SECOND at the peer, both green."),
    ("db", {"command": "prim"}, "admin", 200, ""),
    ("db", {"command": "prim", "force": True}, "admin", 200, ""),
    ("web", {"command": "prim"}, "admin", 409, "It runs here already."),
    ("web", {"command": "second"}, "admin", 409, "It has its role in the pair: swap, or stop it first."),
    ("web", {"command": "second", "full": True}, "admin", 409, "It has its role in the pair: swap, or stop it first."),
    ("web", {"command": "restart"}, "control", 200, ""),
    ("web", {"command": "swap"}, "control", 200, ""),
    ("web", {"command": "maintenance", "on": True}, "control", 200, ""),
    ("web", {"command": "maintenance", "on": False}, "control", 200, ""),
]


@pytest.mark.parametrize(("module", "order", "needed", "status", "text"), COMMANDS)
def test_each_command_with_each_role(
    server: ApiServer, remote: httpx.Client,
    module: str, order: dict[str, object], needed: str, status: int, text: str,
) -> None:  # fmt: skip
    """Refused by the role, nothing is done; then accepted or refused by the state machine, with its reason."""
    path = f"{API}/modules/{module}/commands"
    roles = ["monitor", "control", "admin"]
    before = remote.get(f"{API}/modules", headers=bearer(server, "monitor")).json()
    for role in roles[: roles.index(needed)]:
        refused = remote.post(path, json=order, headers=bearer(server, role))
        assert refused.status_code == 403
        assert needed in refused.json()["error"]
    assert remote.get(f"{API}/modules", headers=bearer(server, "monitor")).json() == before
    answer = remote.post(path, json=order, headers=bearer(server, needed))
    assert answer.status_code == status, answer.text
    if status == 409:
        assert answer.json() == {"error": text}
    else:
        assert answer.json()["accepted"] is True


def test_start_and_stop_do_what_they_say(server: ApiServer, local: httpx.Client) -> None:
    assert local.post(f"{API}/modules/db/commands", json={"command": "start"}).status_code == 200
    until(server, local, "db", "ALONE", "green")
    assert local.get("/health/db").status_code == 200
    local.post(f"{API}/modules/db/commands", json={"command": "stop"})
    until(server, local, "db", "STOP", "red")
    assert [word for word in server.group("db").said if not word.startswith("link")] == [
        "start source", "start vm", "stop vm", "stop mirror",
    ]  # fmt: skip


def test_maintenance_is_shown(local: httpx.Client) -> None:
    for on in (True, False):
        local.post(f"{API}/modules/web/commands", json={"command": "maintenance", "on": on})
        assert local.get(f"{API}/modules/web").json()["module"]["maintenance"] is on


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({}, "command: Field required"),
        ({"command": "explode"}, "command: Input should be"),
        ({"command": "start", "force": True}, "force goes with prim only."),
        ({"command": "prim", "full": True}, "full goes with second only."),
        ({"command": "maintenance"}, "on is given with maintenance"),
        ({"command": "start", "on": True}, "on is given with maintenance"),
        ({"command": "start", "faster": True}, "faster: Extra inputs are not permitted"),
        ([1], "Input should be"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(local: httpx.Client, order: object, text: str) -> None:
    answer = local.post(f"{API}/modules/db/commands", json=order)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]


def test_unknown_things_are_said_as_json(local: httpx.Client) -> None:
    for path in ("/modules/wbe", "/modules/wbe/log", "/events?module=wbe", "/events/stream?module=wbe"):
        answer = local.get(API + path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), path
        assert "there is no module 'wbe' on this server; there are: copy, db, web" in answer.json()["error"]
    assert local.get("/nothing").json() == {"error": "There is nothing at /nothing."}
    assert local.put(API).json() == {"error": "This cannot be done there."}


def test_a_request_that_is_too_long_is_not_read(local: httpx.Client) -> None:
    answer = local.post(f"{API}/modules/db/commands", content=b'"' + b"x" * LONGEST_BODY)
    assert answer.status_code == 413
    assert "at most" in answer.json()["error"]


# ---- who may


def test_without_a_token_nothing_but_health_and_documentation(server: ApiServer, remote: httpx.Client) -> None:
    for path in (API, f"{API}/modules", f"{API}/modules/web", f"{API}/events", f"{API}/events/stream", "/metrics"):
        answer = remote.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    for token in ("x", "é", "x" * 1000, server.tokens["admin"] + "x"):
        answer = remote.get(API, headers={"Authorization": f"Bearer {token}".encode()})
        assert answer.status_code == 401
        assert server.tokens["admin"] not in answer.text
    assert remote.get(API, headers={"Authorization": f"Basic {server.tokens['admin']}"}).status_code == 401
    assert remote.get("/health/web").status_code == 200
    assert remote.get("/docs").status_code == 200
    assert remote.get("/openapi.json").status_code == 200


def test_every_role_may_look(server: ApiServer, remote: httpx.Client) -> None:
    for role in ("monitor", "control", "admin"):
        for path in (f"{API}/modules", f"{API}/modules/web", f"{API}/events", f"{API}/modules/web/log", "/metrics"):
            assert remote.get(path, headers=bearer(server, role)).status_code == 200, (role, path)
    assert remote.post(f"{API}/modules/web/verify", json={}, headers=bearer(server, "monitor")).status_code == 403
    assert remote.post(f"{API}/modules/web/retry", headers=bearer(server, "monitor")).status_code == 403


def test_a_token_that_is_removed_is_refused_soon(server: ApiServer, remote: httpx.Client) -> None:
    assert remote.get(API, headers=bearer(server, "monitor")).status_code == 200
    os.unlink(server.home.below("tokens.toml"))
    deadline = time.monotonic() + 5
    while remote.get(API, headers=bearer(server, "monitor")).status_code != 401:
        assert time.monotonic() < deadline


def test_tokens_that_others_could_read_are_not_accepted(server: ApiServer, remote: httpx.Client) -> None:
    os.chmod(server.home.below("tokens.toml"), 0o640)
    assert remote.get(API, headers=bearer(server, "admin")).status_code == 401
    assert "chmod 600" in server.api.served.tokens_problem


def test_the_socket_is_for_its_owner_only(server: ApiServer) -> None:
    status = os.stat(server.home.socket)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_whatever_the_mode(server: ApiServer) -> None:
    """In a file system that does not look at modes, or after somebody changed it."""
    folder = os.path.dirname(server.home.socket)
    os.chmod(server.home.socket, 0o666)
    os.chmod(folder, 0o755)
    program = (
        "import os, socket\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect('api.sock')\n"  # relative: no way leads there for nobody
        "try: s.sendall(b'GET /api/v1/modules HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n')\n"
        "except OSError: pass\n"
        "print(s.recv(4096).decode())\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert "403" in done.stdout, done.stderr
    assert "for root only" in done.stdout
    assert "web" not in done.stdout


def test_a_socket_that_is_served_is_not_taken_away(server: ApiServer) -> None:
    with pytest.raises(NotServed, match="another hotpair run serves"):
        local_socket(server.home.socket)
    assert os.path.exists(server.home.socket)


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    local_socket(path).close()
    with pytest.raises(NotServed, match="too long"):
        local_socket(str(tmp_path / ("x" * 120)))


# ---- health, metrics, verify, documentation


def test_health_says_where_the_module_runs_and_nothing_else(server: ApiServer, remote: httpx.Client) -> None:
    answers = {name: remote.get(f"/health/{name}") for name in ("web", "db", "copy", "wbe")}
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "web": 200, "db": 503, "copy": 503, "wbe": 503,
    }  # fmt: skip
    assert answers["wbe"].json()["error"].replace("wbe", "db") == answers["db"].json()["error"]


def scraped(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    found: dict[tuple[str, ...], float] = {}
    for family in families:
        assert family.documentation, family.name
        for sample in family.samples:
            found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_say_what_is_known(server: ApiServer, local: httpx.Client) -> None:
    server.group("web").details = {
        "heartbeat": {"networks": {"lan": {"sent": 10, "received": 9, "lost": 1}}},
        "replication": {"held": 2, "sent_bytes": 4096},
        "vm": {},
    }
    found = scraped(local)
    for state in ("STOP", "WAIT", "ALONE", "PRIM", "SECOND"):
        assert found["hotpair_module_state", "web", state] == (state == "PRIM")
        assert found["hotpair_module_state", "copy", state] == (state == "SECOND")
    assert found["hotpair_module_ready", "web"] == 1
    assert found["hotpair_module_running", "copy"] == 0
    assert found["hotpair_module_out_of_sync_bytes", "web"] == 0
    assert ("hotpair_module_out_of_sync_bytes", "db") not in found  # not known is not zero
    assert found["hotpair_pulses_lost_total", "web", "lan"] == 1
    assert found["hotpair_module_held_requests", "web"] == 2
    assert found["hotpair_modules",] == 3
    assert ("hotpair_module_last_service_gap_seconds", "web") not in found


def test_metrics_of_a_reintegration(server: ApiServer, local: httpx.Client) -> None:
    progress = {"bytes_done": 25, "bytes_left": 75, "rate": 5, "seconds_left": 15.0}
    server.group("db").details = {"replication": {"reintegration": progress}}
    found = scraped(local)
    assert found["hotpair_module_out_of_sync_bytes", "db"] == 75
    assert found["hotpair_module_reintegration_progress_ratio", "db"] == 0.25
    assert found["hotpair_module_reintegration_rate_bytes_per_second", "db"] == 5


def test_a_failover_is_counted_and_its_gap_measured(server: ApiServer, local: httpx.Client) -> None:
    server.call(server.group("copy").lose_peer)
    until(server, local, "copy", "ALONE", "green")
    found = scraped(local)
    assert found["hotpair_module_failovers_total", "copy"] == 1
    assert found["hotpair_module_handovers_total", "copy"] == 0
    assert 0 <= found["hotpair_module_last_service_gap_seconds", "copy"] < 10
    assert found["hotpair_module_failovers_total", "web"] == 0


def test_verify_is_asked_of_the_mirror(server: ApiServer, local: httpx.Client) -> None:
    assert local.post(f"{API}/modules/web/verify", json={"repair": True}).status_code == 200
    assert local.delete(f"{API}/modules/web/verify").status_code == 200
    assert server.mirrors.asked == [("web", "verify_start", {"repair": True}), ("web", "verify_stop", {})]
    server.mirrors.refuses = "a verification is under way"
    answer = local.post(f"{API}/modules/web/verify", json={})
    assert (answer.status_code, answer.json()) == (409, {"error": "a verification is under way"})
    assert local.post(f"{API}/modules/copy/verify", json={}).status_code == 409
    assert local.get(f"{API}/modules/web/verify").json()["known"] is False
    server.group("db").details = {"replication": {"verify": {"running": True, "bytes_done": 7, "bytes_total": 9}}}
    said = local.get(f"{API}/modules/db/verify").json()
    assert (said["known"], said["running"], said["bytes_done"]) == (True, True, 7)


def test_a_mirror_says_why_it_is_stuck_and_is_tried_again(server: ApiServer, local: httpx.Client) -> None:
    full = "the peer cannot hold the copy: No space left on device"
    server.call(lambda: server.group("web").hear(MirrorSays(full)))
    shown = {one["module"]: one["mirror_reason"] for one in local.get(f"{API}/modules").json()}
    assert shown == {"web": full, "db": "", "copy": ""}
    assert local.get(f"{API}/modules/web").json()["module"]["mirror_reason"] == full
    assert local.post(f"{API}/modules/web/retry").status_code == 200
    assert server.mirrors.asked == [("web", "retry", {})]
    answer = local.post(f"{API}/modules/copy/retry")
    assert (answer.status_code, answer.json()) == (
        409, {"error": "copy does not run here: retry is for the server that runs it."},
    )  # fmt: skip
    server.call(lambda: server.group("web").hear(MirrorSays("")))
    assert local.get(f"{API}/modules/web").json()["module"]["mirror_reason"] == ""


def test_a_mirror_that_does_not_answer_holds_nothing_up(server: ApiServer, local: httpx.Client) -> None:
    local.get(API)
    server.mirrors.blocks = threading.Event()
    try:
        began = time.monotonic()
        answer = local.post(f"{API}/modules/web/verify", json={})
        assert time.monotonic() - began < NOT_HELD_UP_S
        assert answer.status_code == 200
        assert "busy" in answer.json()["note"]
    finally:
        server.mirrors.blocks.set()


def test_the_page_describes_every_route_and_loads_nothing(local: httpx.Client) -> None:
    paths = local.get("/openapi.json").json()["paths"]
    page = local.get("/docs").text
    text = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    assert len(paths) >= 11
    for path in paths:
        assert path in page
        assert path.replace("{module}", "MODULE").replace("/api/v1/modules/MODULE/log/stream", "/log/stream") in text
    for name in re.findall(r"# HELP (\w+) ", local.get("/metrics").text):
        base = name.removesuffix("_total")
        assert any(base.endswith(word.removesuffix("_total")) for word in re.findall(r"`(\w+)", text)), name
    assert "<script" not in page
    assert "http://" not in page and "https://" not in page


# ---- TLS


@needs_openssl
def test_with_tls_the_certificate_is_the_servers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tls").mkdir(parents=True)
    files = Authority(tmp_path, "authority").files("server")
    os.rename(files.certificate, home / "tls" / "server.pem")
    os.rename(files.key, home / "tls" / "server.key")
    server = ApiServer(home, {"db": stopped()}, tls=True)
    try:
        context = ssl.create_default_context(cafile=files.authority)
        context.check_hostname = False
        with httpx.Client(base_url=server.url, verify=context, trust_env=False) as client:
            assert client.get("/health/db").status_code == 503
            assert client.get(API, headers=bearer(server, "admin")).json()["server"] == "alpha"
        with pytest.raises(httpx.ConnectError), httpx.Client(base_url=server.url, trust_env=False) as stranger:
            stranger.get("/health/db")
    finally:
        server.close()


@needs_openssl
def test_without_its_certificate_only_the_socket_is_served_until_it_is_there(tmp_path: Path) -> None:
    """The modules must be looked after all the same, and nothing goes over the network in the clear."""
    home = tmp_path / "home"
    (home / "tls").mkdir(parents=True)
    server = ApiServer(home, {"db": stopped()}, tls=True)
    try:
        assert "certificate" in server.api.problem
        assert server.api.address == ("", 0)
        transport = httpx.HTTPTransport(uds=server.home.socket)
        with httpx.Client(transport=transport, base_url="http://hotpair") as client:
            assert client.get(API).status_code == 200
        files = Authority(tmp_path, "authority").files("server")
        os.rename(files.key, home / "tls" / "server.key")
        os.rename(files.certificate, home / "tls" / "server.pem")
        deadline = time.monotonic() + 20
        while server.api.problem:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        context = ssl.create_default_context(cafile=files.authority)
        context.check_hostname = False
        with httpx.Client(base_url=server.url, verify=context, trust_env=False) as client:
            assert client.get("/health/db").status_code == 503
    finally:
        server.close()
