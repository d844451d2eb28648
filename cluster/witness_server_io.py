"""The witness process: one for any number of pairs.

A thread for each connection, one request on each, and a time limit for all of it. Nobody who cannot prove to have a
pair's key can keep the others from being served: when all connections are taken, the oldest that has proved nothing yet
is closed.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from hotpair.cluster import witness_messages as messages
from hotpair.cluster.arbitration import Answer, Claim
from hotpair.cluster.connection_io import (
    Address,
    Deadline,
    ServerTls,
    Unreachable,
    describe,
    receive_exactly,
    send_all,
    shut,
)
from hotpair.cluster.witness import decide, look
from hotpair.cluster.witness_keys_io import BadKeys, read_keys
from hotpair.cluster.witness_store_io import SqliteStore, StoreBusy, StoreFailed

CONNECTIONS = 128  # at once; each is a thread that mostly waits
CONNECTION_S = 5.0  # for one connection, handshake included; a server's own time limit is shorter
FAREWELL_S = 1.0  # to tell a stranger why it is not served
END_S = 5.0  # for requests under way when the witness is told to end
BACKLOG = 128
REFUSALS_PER_SECOND = 20  # lines in the log; the rest of that second is counted

log = logging.getLogger("hotpair.witness")


class CannotListen(Exception):
    """The address cannot be used."""


class Refusals:
    """One line for each refusal, but no more than a stranger may fill a disk with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second = 0
        self._lines = 0

    def say(self, where: str, reason: str) -> None:
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                if self._lines > REFUSALS_PER_SECOND:
                    log.warning("refused %d more in the same second", self._lines - REFUSALS_PER_SECOND)
                self._second, self._lines = second, 0
            self._lines += 1
            if self._lines <= REFUSALS_PER_SECOND:
                log.warning("refused %s: %s", where, reason)


class WitnessServer:
    """`run` serves until SIGTERM or SIGINT. SIGHUP reads the keys again."""

    def __init__(self, listen: Address, tls: ServerTls | None, keys_path: str, store: SqliteStore) -> None:
        """Raises CannotListen, BadKeys, ValueError (TLS files)."""
        self._tls = None if tls is None else tls.context()
        self._keys_path = keys_path
        self._keys = read_keys(keys_path)
        self._nobody = os.urandom(messages.KEY_BYTES)  # the key of unknown pairs: they take as long as a wrong key
        self._store = store
        self._deciding = threading.Lock()  # reading, deciding and writing is one step
        self._refusals = Refusals()
        self._table = threading.Lock()
        self._strangers: dict[int, socket.socket] = {}  # connections that have proved nothing yet, oldest first
        self._threads: dict[int, threading.Thread] = {}
        self._numbers = itertools.count()
        self._failure: StoreFailed | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._listener = _listen(listen)

    def run(self, ready: Callable[[], None]) -> int:
        """The exit code: 0 when told to end, 1 when the database failed. To be called on the main thread."""
        previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _noted)  # what matters is the byte that arrives at the wake-up descriptor
        try:
            ready()
            self._accept_until_told()
        finally:
            self._listener.close()
            signal.set_wakeup_fd(previous)
        self._finish()
        if self._failure is not None:
            log.error("%s: the witness ends, nothing was granted; start it again when the disk works", self._failure)
            return 1
        return 0

    def _accept_until_told(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while self._failure is None:
            for descriptor, _ in poll.poll():
                if descriptor != self._wake_read:
                    self._accept()
                    continue
                numbers = os.read(self._wake_read, 64)
                if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                    return
                if signal.SIGHUP in numbers:
                    self._read_keys_again()

    def _read_keys_again(self) -> None:
        try:
            self._keys = read_keys(self._keys_path)
        except BadKeys as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("keys read again: %d pairs", len(self._keys))

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except BlockingIOError:
            return  # it went away again
        except OSError as error:
            self._refusals.say("a connection", f"it cannot be accepted: {error.strerror}")
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
            return
        where = str(Address(peer[0], peer[1]))
        with self._table:
            full = len(self._threads) >= CONNECTIONS
        if full and not self._make_room():
            self._refusals.say(where, f"all {CONNECTIONS} connections are serving somebody")
            sock.close()
            return
        number = next(self._numbers)
        thread = threading.Thread(target=self._serve, args=(number, sock, where), name=f"from {where}", daemon=True)
        with self._table:
            self._strangers[number] = sock
            self._threads[number] = thread
        thread.start()

    def _make_room(self) -> bool:
        """Close the oldest connection that has proved nothing; whether there was one."""
        with self._table:
            if not self._strangers:
                return False
            oldest = min(self._strangers)
            shut(self._strangers.pop(oldest))
            del self._threads[oldest]  # it ends at once, and its place is free
        return True

    def _serve(self, number: int, sock: socket.socket, where: str) -> None:
        """One connection, from its first byte to its last."""
        deadline = Deadline.after(CONNECTION_S)
        try:
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is None:
                    self._converse(number, sock, where, deadline)
                else:
                    sock.settimeout(CONNECTION_S)
                    with self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secure:
                        with self._table:
                            if number not in self._strangers:
                                return  # its place was given away
                            self._strangers[number] = secure  # wrapping detaches the plain one
                        secure.settimeout(deadline.remaining_s())
                        secure.do_handshake()
                        self._converse(number, secure, where, deadline)
        except (OSError, Unreachable) as error:
            self._refusals.say(where, describe(error))
        finally:
            with self._table:
                self._strangers.pop(number, None)
                self._threads.pop(number, None)

    def _converse(self, number: int, sock: socket.socket, where: str, deadline: Deadline) -> None:
        nonce = os.urandom(messages.NONCE_BYTES)
        send_all(sock, messages.frame(messages.hello(nonce)), deadline)
        try:
            prefix = receive_exactly(sock, messages.LENGTH.size, deadline)
            sealed = messages.read_ask(receive_exactly(sock, messages.frame_length(prefix), deadline))
            key = self._keys.get(sealed.pair)
            request = messages.unseal(sealed, key or self._nobody, nonce)
            assert key is not None, "nobody knows the other key"
        except messages.NotAuthentic as error:
            known = sealed.pair in self._keys
            self._refuse(
                sock, where, str(error) if known else f"pair {sealed.pair!r}: unknown here", "unknown pair or wrong key"
            )
            return
        except (messages.BadMessage, messages.ErrorSaid) as error:
            self._refuse(sock, where, f"it sent {error}", f"you sent {error}")
            return
        with self._table:
            if self._strangers.pop(number, None) is None:
                return  # its place was given away a moment ago
        try:
            answer = self._answer(request, where)
        except StoreBusy as error:
            self._refuse(sock, where, str(error), f"not possible now: {error}")
            return
        except StoreFailed as error:
            self._failure = error
            os.write(self._wake_write, b"\0")
            return
        send_all(sock, messages.frame(messages.answer(answer, key, nonce)), deadline)

    def _answer(self, request: messages.Request, where: str) -> Answer:
        with self._deciding:
            if self._failure is not None:
                raise self._failure
            if isinstance(request, messages.Look):
                return messages.standing_answer(request, look(self._store, request.pair, request.module))
            answer = decide(self._store, request)
        _log_claim(self._refusals, where, request, answer)
        return answer

    def _refuse(self, sock: socket.socket, where: str, for_us: str, for_them: str) -> None:
        """Say it here and there."""
        self._refusals.say(where, for_us)
        send_all(sock, messages.frame(messages.error(for_them)), Deadline.after(FAREWELL_S))

    def _finish(self) -> None:
        """Let what has been claimed be answered, and close the rest."""
        with self._table:
            strangers, threads = list(self._strangers.values()), list(self._threads.values())
            self._strangers.clear()
            for sock in strangers:
                shut(sock)
        end = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self._deciding.acquire(timeout=END_S):  # a disk that hangs must not keep the process from ending
            self._store.close()


def _log_claim(refusals: Refusals, where: str, claim: Claim, answer: Answer) -> None:
    text = f"pair {claim.pair}, module {claim.module}, {claim.server} ({claim.purpose.value}): {answer.reason}"
    if answer.granted:
        log.info("granted %s: %s", where, text)
    elif answer.epoch is not None and answer.epoch < claim.epoch:
        log.error("refused %s: %s", where, text)
    else:
        refusals.say(where, text)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _noted(number: int, frame: FrameType | None) -> None:
    pass
