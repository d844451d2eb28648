"""The link over TLS: certificates that are right, and all the ways in which they are not."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections import deque
from pathlib import Path

import pytest

from hotpair.replication import link_io
from hotpair.replication.errors import BadConfiguration, LinkLost
from hotpair.replication.link_io import MAX_STRANGERS
from hotpair.replication.transport_io import TlsConnection, TlsFiles
from tests.link_ends import HELLO, SOON_S, Ends, readable, receive, send_all, within

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def hello_timeout_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """A limit that a test can wait for."""
    monkeypatch.setattr(link_io, "HELLO_TIMEOUT_S", 0.5)
    return 0.5


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


class Authority:
    """One that signs certificates."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", "-days", "2", *self._out(name))

    def _out(self, name: str) -> tuple[str, ...]:
        return "-keyout", f"{self.folder}/{name}.key", "-out", f"{self.folder}/{name}.pem"

    def files(self, name: str, days: int = 2) -> TlsFiles:
        """A server's certificate, with this authority as the one that it trusts."""
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        request = f"{self.folder}/{name}.request"
        openssl("req", "-new", *key, "-subj", f"/CN={name}", "-keyout", f"{self.folder}/{name}.key", "-out", request)
        signer = (
            "-CA",
            f"{self.folder}/{self.name}.pem",
            "-CAkey",
            f"{self.folder}/{self.name}.key",
            "-CAcreateserial",
        )
        openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-out", f"{self.folder}/{name}.pem")
        return TlsFiles(f"{self.folder}/{name}.pem", f"{self.folder}/{name}.key", f"{self.folder}/{self.name}.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    folder = tmp_path_factory.mktemp("certificates")
    good, other = Authority(folder, "authority"), Authority(folder, "another")
    first, stranger = good.files("first"), other.files("stranger")
    return {
        "first": first,
        "second": good.files("second"),
        "stranger": stranger,  # signed by another authority, which it trusts as well
        "impostor": TlsFiles(stranger.certificate, stranger.key, first.authority),  # trusts ours, is not of ours
        "gullible": TlsFiles(first.certificate, first.key, stranger.authority),  # is of ours, trusts another
        "expired": good.files("expired", days=-1),
    }


@needs_openssl
def test_tls_carries_bytes_both_ways(certificates: dict[str, TlsFiles]) -> None:
    ends = Ends(tls=certificates["first"])
    try:
        ends.connector(certificates["second"]).connect()
        ours = ends.delivered(ends.connected)
        assert isinstance(ours, TlsConnection)
        send_all(ours, HELLO)
        theirs, _ = ends.delivered(ends.accepted)
        assert isinstance(theirs, TlsConnection)
        assert theirs._sock.version() == "TLSv1.3"
        views = deque(memoryview(bytes([number % 256]) * (number * 37 % 30_000 + 1)) for number in range(300))
        expected = b"".join(views)
        received = bytearray()
        end = time.monotonic() + 4 * SOON_S
        while len(received) < len(expected) and time.monotonic() < end:
            if views:
                ours.send(views)
            view = memoryview(bytearray(100_000))
            received += view[: theirs.receive(view)]
        assert received == expected
    finally:
        ends.close()


@needs_openssl
def test_tls_bytes_that_epoll_does_not_see_are_pending(certificates: dict[str, TlsFiles]) -> None:
    """A record that is read in part stays in the TLS layer: the socket is not readable, `pending` says so."""
    ends = Ends(tls=certificates["first"])
    try:
        ends.connector(certificates["second"]).connect()
        ours = ends.delivered(ends.connected)
        send_all(ours, HELLO)
        theirs, _ = ends.delivered(ends.accepted)
        send_all(ours, b"x" * 10_000)
        assert len(receive(theirs, 1000)) == 1000
        assert not readable(theirs, 0.05)
        assert theirs.pending()
        assert receive(theirs, 9000) == b"x" * 9000
        assert not theirs.pending()
    finally:
        ends.close()


@needs_openssl
@pytest.mark.parametrize("client", ["stranger", "impostor", "expired", "none"])
def test_wrong_client_certificate_gets_no_further(certificates: dict[str, TlsFiles], client: str) -> None:
    """TLS 1.3 tells the client after its handshake: it may believe to be connected, and then is not."""
    ends = Ends(tls=certificates["first"])
    try:
        if client == "none":
            context = ssl.create_default_context(cafile=certificates["first"].authority)
            context.check_hostname = False
            with pytest.raises((ssl.SSLError, ConnectionError)), context.wrap_socket(ends.stranger()) as sock:
                sock.sendall(HELLO)
                assert sock.recv(1) == b""
                raise ConnectionError
        else:
            connector = ends.connector(certificates[client])
            connector.connect()
            within(SOON_S, lambda: connector.last_error != "not tried yet")
        within(SOON_S, lambda: ends.acceptor._strangers._value == MAX_STRANGERS)
        assert ends.accepted.take() == []
        for connection in ends.connected.take():
            with pytest.raises(LinkLost):
                send_all(connection, HELLO)
                receive(connection, 1)
            connection.close()
    finally:
        ends.close()


@needs_openssl
@pytest.mark.parametrize("server", ["stranger", "impostor", "expired"])
def test_wrong_server_certificate_is_not_connected_to(certificates: dict[str, TlsFiles], server: str) -> None:
    ends = Ends(tls=certificates[server])
    try:
        connector = ends.connector(certificates["second"])
        connector.connect()
        within(SOON_S, lambda: "certificate" in connector.last_error.lower())
        assert ends.connected.take() == [] and ends.accepted.take() == []
    finally:
        ends.close()


@needs_openssl
@pytest.mark.parametrize("which", ["server", "client"])
def test_tls_on_one_side_only(certificates: dict[str, TlsFiles], hello_timeout_s: float, which: str) -> None:
    ends = Ends(tls=certificates["first"] if which == "server" else None)
    try:
        connector = ends.connector(certificates["second"] if which == "client" else None)
        connector.connect()
        if which == "client":
            within(SOON_S, lambda: connector.last_error not in ("", "not tried yet"))
        else:
            ours = ends.delivered(ends.connected)
            send_all(ours, HELLO)
            with pytest.raises(LinkLost):
                for _ in range(100):
                    receive(ours, 100)
        within(SOON_S, lambda: ends.acceptor._strangers._value == MAX_STRANGERS)
        assert ends.accepted.take() == []
    finally:
        ends.close()


@needs_openssl
def test_older_tls_is_refused(certificates: dict[str, TlsFiles]) -> None:
    ends = Ends(tls=certificates["first"])
    try:
        context = certificates["second"].context(server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(ends.stranger())
        assert ends.accepted.take() == []
    finally:
        ends.close()


@needs_openssl
@pytest.mark.parametrize("missing", ["certificate", "key", "authority"])
def test_missing_tls_files_are_named(certificates: dict[str, TlsFiles], missing: str, tmp_path: Path) -> None:
    files = vars(certificates["first"]) | {missing: str(tmp_path / "nothing.pem")}
    with pytest.raises(BadConfiguration, match=r"nothing\.pem"):
        TlsFiles(**files).context(server=True)
