"""The process that does one side's operations: reads calls from standard input, writes outcomes to standard output.

A process of its own for each side, because an operation on a frozen mount blocks its process and cannot be
interrupted; the driver waits with a time limit. Messages are a 4-byte length and a pickle, both ends ours.
"""

import contextlib
import errno
import os
import pickle
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple


@dataclass(frozen=True)
class Call:
    """One operation: a method of ``Operations``, who does it, and with which umask."""

    operation: str
    arguments: dict[str, Any] = field(default_factory=dict)
    user: str = "root"
    umask: int = 0o022

    def __str__(self) -> str:
        arguments = [f"{name}={value!r}" for name, value in self.arguments.items()]
        if self.user != "root":
            arguments.append(f"user={self.user!r}")
        if self.umask != 0o022:
            arguments.append(f"umask={self.umask:#o}")
        return f"{self.operation}({', '.join(arguments)})"


class Outcome(NamedTuple):
    """What an operation has returned; or the name of its errno; or, for a mistake of the test, a traceback."""

    value: Any = None
    error: str | None = None
    bug: str | None = None


class User(NamedTuple):
    """Ids of a caller; those of the unprivileged ones belong to nobody."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


USERS = {
    "root": User(0, 0),
    "alice": User(60001, 60001, (60010,)),
    "bob": User(60002, 60002, ()),
}


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    body = pickle.dumps(message)
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message; EOFError when the other end has gone."""
    header = stream.read(4)
    if len(header) < 4:
        raise EOFError
    return pickle.loads(stream.read(int.from_bytes(header, "big")))


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Take the real and effective ids of a user; the saved id stays 0, and with it the way back."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])


def perform(operations: Any, call: Call) -> Outcome:
    """Do one call; every OSError is an outcome, anything else is a mistake of the test."""
    os.umask(call.umask)
    try:
        with acting_as(USERS[call.user]):
            return Outcome(getattr(operations, call.operation)(**call.arguments))
    except OSError as error:
        return Outcome(error=errno.errorcode[error.errno or 0])
    finally:
        os.umask(0o022)


# --- faults, for the tests of the test -------------------------------------------------------------------------

Perform = Callable[[Call], Outcome]


def _with(call: Call, **arguments: Any) -> Call:
    return replace(call, arguments={**call.arguments, **arguments})


def lose_last_byte(do: Perform, call: Call) -> Outcome:
    """A long write is one byte short and says nothing."""
    if call.operation in ("write", "pwrite") and call.arguments["length"] > 100:
        do(_with(call, length=call.arguments["length"] - 1))
        return Outcome(call.arguments["length"])
    return do(call)


def append_ignored(do: Perform, call: Call) -> Outcome:
    """O_APPEND is forgotten."""
    if call.operation == "open":
        call = _with(call, flags=call.arguments["flags"] & ~os.O_APPEND)
    return do(call)


def keep_size_ignored(do: Perform, call: Call) -> Outcome:
    """Preallocation always extends the file."""
    if call.operation == "fallocate" and call.arguments["mode"] == 1:
        call = _with(call, mode=0)
    return do(call)


def rename_replaces(do: Perform, call: Call) -> Outcome:
    """RENAME_NOREPLACE replaces."""
    if call.operation == "rename":
        call = _with(call, flags=0)
    return do(call)


def set_id_kept(do: Perform, call: Call) -> Outcome:
    """Another user's write is done by root, and the set-id bits stay."""
    return do(replace(call, user="root")) if call.operation == "write" else do(call)


def umask_ignored(do: Perform, call: Call) -> Outcome:
    """New objects get all the bits they ask for."""
    return do(replace(call, umask=0))


def owner_ignored(do: Perform, call: Call) -> Outcome:
    """New directories belong to root."""
    return do(replace(call, user="root")) if call.operation == "mkdir" else do(call)


def times_ignored(do: Perform, call: Call) -> Outcome:
    """Setting times does nothing."""
    return Outcome() if call.operation == "utimens" else do(call)


def wrong_error(do: Perform, call: Call) -> Outcome:
    """Removing a directory that is not empty fails in another way."""
    outcome = do(call)
    return Outcome(error="EIO") if outcome.error == "ENOTEMPTY" else outcome


def access_list_lost(do: Perform, call: Call) -> Outcome:
    """ACLs are accepted and forgotten."""
    if call.operation == "setxattr" and call.arguments["name"].startswith(b"system."):
        return Outcome()
    return do(call)


def link_copied(do: Perform, call: Call) -> Outcome:
    """A hard link becomes a file of its own."""
    if call.operation != "link":
        return do(call)
    shutil.copy2(call.arguments["old"], call.arguments["new"])
    return Outcome()


def hole_filled(do: Perform, call: Call) -> Outcome:
    """A hole is not punched."""
    return Outcome() if call.operation == "fallocate" and call.arguments["mode"] & 2 else do(call)


def frozen(do: Perform, call: Call) -> Outcome:
    """A flush never ends."""
    if call.operation == "fsync":
        reader, _ = os.pipe()
        os.read(reader, 1)
    return do(call)


FAULTS: dict[str, Callable[[Perform, Call], Outcome]] = {
    fault.__name__: fault
    for fault in (
        lose_last_byte,
        append_ignored,
        keep_size_ignored,
        rename_replaces,
        set_id_kept,
        umask_ignored,
        owner_ignored,
        times_ignored,
        wrong_error,
        access_list_lost,
        link_copied,
        hole_filled,
        frozen,
    )
}


def main(fault: str, root: str) -> None:
    """Serve calls until standard input ends, in a working directory that is not the repository."""
    # Here, not above: the driver imports this module for its types, and tests import it only below ``tests``.
    from tests.posix_operations import Operations

    operations = Operations(os.fsencode(root))
    operations.go_home()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])

    def do(call: Call) -> Outcome:
        return perform(operations, call)

    while True:
        try:
            call = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            outcome = FAULTS[fault](do, call) if fault else do(call)
        except Exception:  # noqa: BLE001 (handed to the driver, which raises it)
            outcome = Outcome(bug=traceback.format_exc())
        send(sys.stdout.buffer, outcome)


if __name__ == "__main__":
    # The module under its own name: what is pickled here must be what the driver knows.
    from tests import posix_worker

    posix_worker.main(*sys.argv[1:])
