"""The client's connection against servers that follow a script: what is kept, what is said again, what is cut off."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpair.client import ApiError, Client, NotAllowed, NotRunning
from hotpair.http_client_io import Connection, over_socket

SOON_S = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Scripted:
    """Answers the requests of each connection with the texts of one line of the script, then ends it."""

    def __init__(self, path: Path, *script: list[bytes]) -> None:
        self.heard: list[list[bytes]] = [[] for _ in script]
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._ended = [threading.Event() for _ in script]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for number, answers in enumerate(self._script):
            connection, _ = self._listener.accept()
            with connection:
                for answer in answers:
                    self.heard[number].append(_request(connection))
                    connection.sendall(answer)
            self._ended[number].set()

    def has_ended(self, number: int) -> None:
        assert self._ended[number].wait(SOON_S)

    def close(self) -> None:
        self._thread.join(SOON_S)
        self._listener.close()
        assert not self._thread.is_alive()


def _request(connection: socket.socket) -> bytes:
    """One, with its body."""
    with connection.makefile("rb") as lines:
        head = b""
        length = 0
        while (line := lines.readline()).strip():
            head += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head + lines.read(length)


@contextlib.contextmanager
def scripted(folder: Path, *script: list[bytes]) -> Iterator[tuple[Scripted, Connection]]:
    path = folder / "socket"
    server, connection = Scripted(path, *script), Connection(over_socket(str(path)), {"Authorization": "Bearer t"})
    try:
        yield server, connection
    finally:
        connection.close()
        server.close()


def test_a_connection_is_kept(tmp_path: Path) -> None:
    with scripted(tmp_path, [OK, OK, OK]) as (server, connection):
        for method, body in (("GET", None), ("POST", {"a": "é"}), ("DELETE", None)):
            answer = connection.ask(method, "/x?y=1", body, SOON_S)
            assert (answer.status, answer.body, answer.is_success) == (200, b"{}", True)
    assert [one.split(b" ")[:2] for one in server.heard[0]] == [
        [b"GET", b"/x?y=1"],
        [b"POST", b"/x?y=1"],
        [b"DELETE", b"/x?y=1"],
    ]
    assert server.heard[0][1].endswith('{"a":"é"}'.encode())
    assert all(b"Authorization: Bearer t\r\n" in one for one in server.heard[0])


@pytest.mark.parametrize("first", [OK, LAST])
def test_one_that_the_server_has_ended_meanwhile_is_made_anew(tmp_path: Path, first: bytes) -> None:
    with scripted(tmp_path, [first], [OK]) as (server, connection):
        connection.ask("POST", "/x", {}, SOON_S)
        server.has_ended(0)
        assert connection.ask("POST", "/x", {}, SOON_S).status == 200


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with scripted(tmp_path, [b""], [OK]) as (server, connection):
        with pytest.raises(http.client.RemoteDisconnected):
            connection.ask("POST", "/x", {}, SOON_S)
        assert server.heard[1] == []
        assert connection.ask("GET", "/x", None, SOON_S).status == 200


@pytest.mark.parametrize(
    "cut", [OK.replace(b"2", b"9"), STREAM + b"2\r\n{}\r\n", STREAM + b"9\r\n{}", b"what?\r\n\r\n"]
)
def test_an_answer_that_is_cut_off_is_none(tmp_path: Path, cut: bytes) -> None:
    with scripted(tmp_path, [cut]) as (_, connection), pytest.raises(http.client.HTTPException):
        connection.ask("GET", "/x", None, SOON_S)


def test_silence_has_a_limit(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        connection = Connection(over_socket(str(tmp_path / "socket")))
        with pytest.raises(TimeoutError):
            connection.ask("GET", "/x", None, 0.05)
        with pytest.raises(TimeoutError), connection.stream("/x", 0.05):
            pass


def test_a_stream_is_read_line_by_line_as_it_comes(tmp_path: Path) -> None:
    data = STREAM + b"4\r\none\n\r\n" + b"3\r\ntw\xc3\r\n" + "5\r\n\xa9\r\n\nx\r\n".encode("latin-1") + b"0\r\n\r\n"
    with scripted(tmp_path, [data]) as (_, connection), connection.stream("/x", SOON_S) as (answer, lines):
        assert answer.is_success
        assert list(lines) == ["one", "twé", ""]


@pytest.mark.parametrize("end", [b"", b"5\r\ntw", b"5"])
def test_a_stream_that_is_cut_off_has_not_ended(tmp_path: Path, end: bytes) -> None:
    data = STREAM + b"4\r\none\n\r\n" + end
    with scripted(tmp_path, [data]) as (_, connection), connection.stream("/x", SOON_S) as (_, lines):
        assert next(lines) == "one"
        with pytest.raises(http.client.HTTPException):
            list(lines)


def test_a_stream_that_is_refused_says_why(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!"
    with scripted(tmp_path, [refusal]) as (_, connection), connection.stream("/x", SOON_S) as (answer, lines):
        assert (answer.status, answer.body, list(lines)) == (404, b"no!", [])


def test_addresses(tmp_path: Path) -> None:
    for url in ("beta:9010", "ftp://beta", "https://", "https://beta:99999"):
        with pytest.raises(ApiError):
            Client.at(url, "t")
    with pytest.raises(NotAllowed):
        Client.at("https://beta:9010", "t\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client.at(f"http://127.0.0.1:{port}", "t") as client,
        pytest.raises(NotRunning, match="does not answer at http"),
    ):
        client.server()
    with Client.at("http://.:1", "t") as client, pytest.raises(NotRunning):
        client.server()


def test_behind_a_proxy_the_path_is_below_the_addresses(tmp_path: Path) -> None:
    said = b'{"version": "1", "cluster": "rack7", "server": "alpha", "peer": "beta"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(_request(connection))
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        port = listener.getsockname()[1]
        with Client.at(f"http://127.0.0.1:{port}/hot/", "t") as client:
            assert client.server().peer == "beta"
        thread.join(SOON_S)
    assert heard[0].startswith(b"GET /hot/api/v1 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in heard[0]


@pytest.mark.parametrize("said", [b"hello", b"[]", b'{"version": 1}'])
def test_a_stranger_is_not_taken_for_hotpair(tmp_path: Path, said: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    with scripted(tmp_path, [answer]) as (_, connection), pytest.raises(ApiError, match="not hotpair"):
        Client(connection, "here").server()
