"""The same compare-and-swap in a real etcd, and in servers that only pretend to be one."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hotpair.cluster.arbiter_io import Arbiter
from hotpair.cluster.arbitration import Claim, Kind, Purpose, Standing, Verdict, judge
from hotpair.cluster.connection_io import Address, ClientTls, Deadline
from hotpair.cluster.etcd_io import LARGEST_ANSWER_BYTES, EtcdArbiter, User
from tests.test_link_tls import Authority, needs_openssl
from tests.witness_process import claim, free_port

START_S = 30.0


def etcd_program() -> str:
    found = shutil.which("etcd")
    if found is None:
        pytest.skip("etcd is not installed, and make could not install the package etcd-server")
    return found


class Etcd:
    """A cluster of one, on loopback."""

    def __init__(self, folder: Path, tls: tuple[str, str] | None = None) -> None:
        self.address = Address("127.0.0.1", free_port())
        scheme = "https" if tls else "http"
        client, peer = f"{scheme}://{self.address}", f"http://127.0.0.1:{free_port()}"
        self._command = [etcd_program(), "--name", "one", "--data-dir", str(folder / "etcd")]
        self._command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        self._command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        self._command += ["--initial-cluster", f"one={peer}"]
        if tls:
            self._command += ["--cert-file", tls[0], "--key-file", tls[1]]
        self._log = folder / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arbiter: Callable[[], Arbiter]) -> None:
        """Started when it answers."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while arbiter().look("pair", "no module") is None:
            assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()[-2000:]
            time.sleep(0.05)  # nothing says when it is ready

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def post(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=10)
        connection.request("POST", f"/v3/{method}", json.dumps(request))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        connection.close()
        assert response.status == 200, answer
        return answer


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    made = Etcd(tmp_path_factory.mktemp("etcd"))
    made.start(lambda: EtcdArbiter([made.address], None))
    yield made
    made.kill()


@pytest.fixture
def module(request: pytest.FixtureRequest) -> str:
    """A module of its own for each test."""
    return str(request.node.name)[:60]


@pytest.fixture
def arbiter(etcd: Etcd) -> EtcdArbiter:
    return EtcdArbiter([etcd.address], None, timeout_s=10)


def test_the_first_is_granted_the_second_refused_and_both_can_look(arbiter: EtcdArbiter, module: str) -> None:
    assert arbiter.look("pair", module) == Standing(0, None)
    answer = arbiter.claim(claim("a", module=module))
    assert (answer.granted, answer.epoch, answer.holder) == (True, 1, "a")
    answer = arbiter.claim(claim("b", module=module))
    assert (answer.granted, answer.reachable, answer.epoch, answer.holder) == (False, True, 1, "a")
    assert arbiter.claim(claim("a", module=module)).granted  # again
    assert arbiter.look("pair", module) == Standing(1, "a")
    assert arbiter.look("pair2", module) == Standing(0, None)


def test_all_purposes_reach_it(arbiter: EtcdArbiter, module: str) -> None:
    def ask(server: str, epoch: int, purpose: Purpose) -> tuple[bool, int | None]:
        answer = arbiter.claim(claim(server, epoch, purpose, module=module))
        return answer.granted, answer.epoch

    assert ask("a", 0, Purpose.START_ALONE) == (True, 1)
    assert ask("a", 1, Purpose.SOLO_START) == (True, 2)
    assert ask("b", 2, Purpose.OPERATOR) == (False, 2)
    assert ask("b", 2, Purpose.OPERATOR_FORCED) == (True, 3)
    assert ask("b", 3, Purpose.OPERATOR) == (True, 4)
    asked = claim("b", 9, module=module)
    assert judge(Kind.ETCD, asked, arbiter.claim(asked)) is Verdict.BEHIND


def test_names_with_slashes_do_not_meet(arbiter: EtcdArbiter, module: str) -> None:
    assert arbiter.claim(claim("a", pair="x/y", module=module)).granted
    assert arbiter.look("x", f"y/{module}") == Standing(0, None)
    assert arbiter.look("x/y", module) == Standing(1, "a")


def test_of_two_that_claim_at_once_one_is_granted(etcd: Etcd, module: str) -> None:
    grants: dict[int, set[str]] = {}
    barrier = threading.Barrier(2)

    def compete(server: str) -> None:
        arbiter = EtcdArbiter([etcd.address], None, timeout_s=10)
        for epoch in range(30):
            barrier.wait(30)
            if arbiter.claim(claim(server, epoch, module=module)).granted:
                grants.setdefault(epoch + 1, set()).add(server)

    threads = [threading.Thread(target=compete, args=(server,)) for server in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(grants) == list(range(1, 31)) and {len(names) for names in grants.values()} == {1}
    assert {name for names in grants.values() for name in names} == {"a", "b"}, "no race has happened"


def test_an_endpoint_that_is_away_is_passed_over(etcd: Etcd, module: str) -> None:
    away = Address("127.0.0.1", free_port())
    assert EtcdArbiter([away, etcd.address], None, timeout_s=10).claim(claim("a", module=module)).granted
    answer = EtcdArbiter([away, away], None, timeout_s=2).claim(claim("a", 1, module=module))
    assert not answer.granted and not answer.reachable and answer.reason.count(str(away)) == 2
    assert EtcdArbiter([away], None).look("pair", module) is None


def test_what_is_no_standing_is_not_believed(etcd: Etcd, arbiter: EtcdArbiter, module: str) -> None:
    for value in ('{"epoch": -1, "holder": "a"}', "[]", "text", '{"epoch": 3, "holder": null}', '{"epoch": true}'):
        key = base64.b64encode(f"/hotpair/pair/{module}".encode()).decode()
        etcd.post("kv/put", {"key": key, "value": base64.b64encode(value.encode()).decode()})
        answer = arbiter.claim(claim("a", module=module))
        assert not answer.granted and not answer.reachable and "not a standing" in answer.reason


def test_it_survives_its_etcd_being_killed(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    arbiter = EtcdArbiter([etcd.address], None, timeout_s=10)
    etcd.start(lambda: arbiter)
    try:
        assert arbiter.claim(claim("a")).granted
        etcd.kill()
        assert not arbiter.claim(claim("b")).reachable
        etcd.start(lambda: arbiter)
        assert arbiter.look("pair", "vm") == Standing(1, "a")
        assert not arbiter.claim(claim("b")).granted
    finally:
        etcd.kill()


@needs_openssl
def test_over_tls_and_as_a_user(tmp_path: Path) -> None:
    files = Authority(tmp_path, "ca").files("etcd")
    etcd = Etcd(tmp_path, (files.certificate, files.key))
    tls = ClientTls(files.authority, check_name=False)
    arbiter = EtcdArbiter([etcd.address], tls, timeout_s=10)
    etcd.start(lambda: arbiter)
    try:
        assert arbiter.claim(claim("a")).granted
        named = EtcdArbiter([etcd.address], ClientTls(files.authority)).claim(claim("a"))
        assert not named.reachable and "not trusted" in named.reason
        assert not EtcdArbiter([etcd.address], None).claim(claim("a", 1)).reachable

        for method, request in (
            ("user/add", {"name": "root", "password": "secret"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            with EtcdOverTls(tls, etcd.address) as connection:
                connection.request("POST", f"/v3/auth/{method}", json.dumps(request))
                assert connection.getresponse().status == 200, method
        answer = arbiter.claim(claim("a", 1))
        assert not answer.granted and not answer.reachable and "HTTP 4" in answer.reason, answer.reason
        wrong = EtcdArbiter([etcd.address], tls, user=User("root", "wrong")).claim(claim("a", 1))
        assert not wrong.reachable and "authentication failed" in wrong.reason and "wrong" not in wrong.reason
        assert EtcdArbiter([etcd.address], tls, user=User("root", "secret")).claim(claim("a", 1)).epoch == 2
    finally:
        etcd.kill()


class EtcdOverTls(http.client.HTTPSConnection):
    def __init__(self, tls: ClientTls, address: Address) -> None:
        super().__init__(address.host, address.port, context=tls.context(), timeout=10)

    def __enter__(self) -> EtcdOverTls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- a server that is no etcd, or a very slow one


def pretended(reply: Callable[[http.server.BaseHTTPRequestHandler], None], timeout_s: float = 5.0) -> tuple[Claim, Any]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            reply(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            asked = claim("a")
            arbiter = EtcdArbiter([Address("127.0.0.1", server.server_port)], None, timeout_s=timeout_s)
            return asked, arbiter.claim(asked)
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (404, b"404 page not found"),
        (503, b'{"error": "etcdserver: no leader"}'),
        (200, b"[" * 5000),
        (200, b" " * (LARGEST_ANSWER_BYTES + 2)),
        (200, b'{"kvs": 5}'),
        (200, b'{"kvs": [{"value": "e30="}]}'),
    ],
)
def test_other_answers_are_no_grant(status: int, body: bytes) -> None:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    asked, answer = pretended(reply)
    assert not answer.granted and not answer.reachable
    assert judge(Kind.ETCD, asked, answer) is Verdict.UNREACHABLE
    if status == 503:
        assert "no leader" in answer.reason


def test_a_transaction_that_did_not_succeed_is_no_grant() -> None:
    """Somebody else is always quicker: it is tried again, and not for ever."""
    asked_for = []

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked_for.append(handler.path)
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    _, answer = pretended(reply)
    assert not answer.granted and not answer.reachable
    assert "/v3/kv/txn" in asked_for and len(asked_for) < 40


def test_a_drip_of_bytes_does_not_outlast_the_time_limit() -> None:
    over = threading.Event()

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100:
            if over.wait(0.1):
                return
            try:
                handler.wfile.write(bytes([byte]))
            except OSError:
                return

    timer = threading.Timer(4, over.set)
    timer.start()
    started = time.monotonic()
    _, answer = pretended(reply, 0.5)
    assert not answer.reachable
    assert time.monotonic() - started < 3
    over.set()
    timer.cancel()


def test_a_deadline_is_shared_by_the_endpoints() -> None:
    assert Deadline.after(10).share(4).remaining_s() < 3
