"""The differential test: the same operations on a plain directory and on a mirror, and every difference an error.

``BothSides`` sends each call to two worker processes and compares what comes back. Hypothesis drives it
(``posix_machine``) and so do fixed scenarios (``posix_scenarios_*``).
"""

import errno
import os
import select
import shutil
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from tests.mirror_pair import BASE_PARENT, MirrorPair
from tests.posix_operations import Metadata, Offset
from tests.posix_worker import Call, Outcome, receive, send

CALL_TIMEOUT_S = 30.0
KEPT_EXAMPLES = 40  # older ones are removed, through the mount: a long run must not fill the disk

# What differs from the file system below by nature, and so is neither done nor compared. One line of reason each.
EXCLUDED = {
    "st_dev": "another file system",
    "st_ino": "numbers are the mount's own; which names share one, and d_ino against st_ino, is compared",
    "atime": "not replicated, and reads of the two sides are not simultaneous",
    "ctime, and mtime unless a test has set it": "the two sides do not act at the same instant",
    "size and blocks of directories, st_blocks": "a matter of the layout on disk; blocks are compared roughly",
    "order of a directory's entries, telldir values": "a matter of the hashes of the file system",
    "f_type, f_fsid, f_flag, free space": "another file system, with nosuid and nodev, on the same disk",
    "opening a device": "the mount is nodev: EACCES there",
    "SEEK_HOLE and SEEK_DATA once space was preallocated": "ext4 shows it as data while pages of it are cached",
    "a write that crosses the largest file size": "short on ext4; the mirror answers the error (contract, point 7)",
    "lseek beyond the largest file size": "the kernel asks the FUSE mount's own limit, 2^63 - 1",
    "shared mappings without msync": "times move when the page is written back; the test always calls msync",
    "O_DIRECT from unaligned memory": "the disk's rule, which a FUSE mount does not have",
    "extended attributes that fill the inode to the last byte": "the mirror's own id takes some of the room",
    "trusted.hotpair.*": "the mirror's own, hidden",
    "O_TMPFILE, RENAME_WHITEOUT": "refused by FUSE",
    "FICLONE, leases, collapse and insert range": "refused by the mirror",
    "syncfs": "does not reach the mirror",
}


class DifferenceFound(AssertionError):
    """The two sides have not behaved alike."""


class SideHangs(BaseException):
    """A side has not answered in time. Not an Exception: Hypothesis must not go on with a side that is dead."""


class Side:
    """One worker process, working below one directory."""

    def __init__(self, name: str, root: str, environment: dict[str, str], fault: str = "") -> None:
        self.name = name
        self.root = os.fsencode(root)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.posix_worker", fault, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            env=environment,
        )

    def ask(self, call: Call) -> None:
        """Send a call without waiting for its outcome."""
        assert self._process.stdin is not None
        send(self._process.stdin, call)

    def answer(self, call: Call) -> Outcome:
        """The outcome of the call that was sent last."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(CALL_TIMEOUT_S * 1000):
            raise SideHangs(f"{self.name}: no answer within {CALL_TIMEOUT_S} s to {call}")
        try:
            outcome = receive(self._process.stdout)
        except EOFError:
            # Not waited for: with files on a frozen mount open it does not get as far as its exit code.
            raise SideHangs(f"{self.name}: the worker has ended ({self._process.poll()}) in {call}") from None
        assert isinstance(outcome, Outcome)
        return outcome

    def close(self) -> None:
        """End the worker; one that waits in a frozen mount ends when the mount is aborted, which is not done here."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()

    def wait(self) -> None:
        """Wait until the worker has gone."""
        self._process.wait(CALL_TIMEOUT_S)


class BothSides:
    """A plain directory and the directory under test, and the rule that they behave alike.

    ``mode`` is "mirror" (below the mount of a new ``MirrorPair``) or "plain" (a second plain directory, possibly
    with a planted ``fault``: this tests the test).
    """

    def __init__(self, mode: str, fault: str = "", place: str = BASE_PARENT) -> None:
        self.mode = mode
        self.fault = fault
        self.place = place
        self.history: list[str] = []
        self._count = 0
        self._start()

    def _start(self) -> None:
        self.failed = False
        self.dead = False
        self._examples: list[bytes] = []
        self.sides: list[Side] = []
        self.pair = MirrorPair() if self.mode == "mirror" else None
        self.directory = tempfile.mkdtemp(prefix="hotpair-plain-", dir=BASE_PARENT)
        self.other_directory = tempfile.mkdtemp(prefix="hotpair-other-", dir=self.place)
        os.chmod(self.directory, 0o755)
        os.chmod(self.other_directory, 0o755)
        tested, environment = self.other_directory, dict(os.environ)
        if self.pair is not None:
            try:
                self.pair.start()
            except BaseException:
                self.close()
                raise
            tested, environment = self.pair.mount, self.pair.environment()
        self.sides.append(Side("plain", self.directory, dict(os.environ)))
        self.sides.append(Side(self.mode, tested, environment, self.fault))

    @property
    def usable(self) -> bool:
        """Whether both sides answer, and the mirror runs and has not lost its link."""
        return not self.dead and (self.pair is None or not self.pair.troubles())

    def revive(self) -> None:
        """New directories, and a new mirror, in place of those that do not answer any more."""
        self.close()
        self._start()

    def both(self, call: Call) -> tuple[Outcome, Outcome]:
        """Do a call on both sides at the same time."""
        for side in self.sides:
            side.ask(call)
        try:
            one, other = [side.answer(call) for side in self.sides]
        except BaseException as error:
            self.failed = True
            self.dead = isinstance(error, SideHangs)
            error.add_note(self._story(call))
            raise
        for outcome in (one, other):
            if outcome.bug:
                self.failed = True
                raise RuntimeError(f"the test itself fails in {call}:\n{outcome.bug}\n{self._story(call)}")
        return one, other

    def do(self, operation: str, *, user: str = "root", umask: int = 0o022, **arguments: Any) -> Outcome:
        """Do a call on both sides; DifferenceFound unless they answer alike. Returns the plain side's outcome."""
        call = Call(operation, arguments, user, umask)
        plain, tested = self.both(call)
        if self.pair is not None and (troubles := self.pair.troubles()):
            self.failed = True
            raise DifferenceFound(f"{call}, or one before it: {troubles}\n{self._story(call)}")
        if not alike(plain, tested):
            self.failed = True
            found = difference(plain, tested, self.sides[1].name)
            raise DifferenceFound(f"{call}\n{found}\n{self._story(call)}")
        self.history.append(f"{call} -> {shorten(plain.error or plain.value)}")
        return plain

    def ok(self, operation: str, **arguments: Any) -> Any:
        """Like ``do``, for what must succeed: returns the value."""
        outcome = self.do(operation, **arguments)
        assert outcome.error is None, f"{operation} fails with {outcome.error}\n{self._story(None)}"
        return outcome.value

    def fails(self, error: str, operation: str, **arguments: Any) -> None:
        """Like ``do``, for what must fail with one error on every POSIX file system."""
        outcome = self.do(operation, **arguments)
        name = errno.errorcode[getattr(errno, error)]  # ENOTSUP and EOPNOTSUPP are one
        assert outcome.error == name, f"{operation}: {outcome}\n{self._story(None)}"

    def begin(self, mode: int = 0o777) -> None:
        """Start an example: a new directory on both sides is the working directory, ``..`` of it too is new."""
        if not self.usable:
            self.revive()
        self.failed = False
        self.history = []
        self._count += 1
        example = b"example-%05d" % self._count
        self._examples.append(example)
        root = example + b"/root"
        calls = [Call("go_home"), Call("mkdir", {"path": example}), Call("mkdir", {"path": root})]
        calls += [Call("chmod", {"path": root, "mode": mode}), Call("chdir", {"path": root})]
        if len(self._examples) > KEPT_EXAMPLES:
            calls.insert(1, Call("remove_tree", {"path": self._examples.pop(0)}))
        for call in calls:
            for side, outcome in zip(self.sides, self.both(call), strict=True):
                assert outcome.error is None, f"{side.name}: {call}: {outcome.error}\n{self._story(call)}"

    def plain_example(self) -> bytes:
        """The working directory of the plain side."""
        return self.sides[0].root + b"/" + self._examples[-1] + b"/root"

    def compare_trees(self) -> None:
        """Compare all that the example has made, open files included."""
        self.do("tree", path=b"..")

    def end(self) -> None:
        """End an example: compare the trees, unless a difference was found already, and close all files."""
        if not self.usable:
            assert self.failed, f"the mirror is in trouble\n{self._story(None)}"
            return
        try:
            if not self.failed:
                self.compare_trees()
        finally:
            self.both(Call("close_all"))

    def _story(self, call: Call | None) -> str:
        steps = [*self.history[-60:], *([f"{call} <- here"] if call else [])]
        story = "the steps so far:\n  " + "\n  ".join(steps)
        if self.pair is not None and self.pair.troubles():
            story += f"\n{self.pair.logs()}"
        return story

    def finish(self) -> list[str]:
        """Stop a mirror cleanly and return the differences between its two copies (none in plain mode)."""
        self._end_workers()
        if self.pair is None:
            return []
        self.pair.stop()
        return self.pair.compare()

    def _end_workers(self) -> None:
        for side in self.sides:
            side.close()
        if self.pair is None:
            for side in self.sides:
                side.wait()

    def close(self) -> None:
        """End everything and leave nothing behind."""
        self._end_workers()
        if self.pair is not None:
            self.pair.close()
        for side in self.sides:
            side.wait()
        shutil.rmtree(self.directory)
        shutil.rmtree(self.other_directory)

    def __enter__(self) -> "BothSides":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.pair is not None:
            print(self.pair.logs(), file=sys.stderr)
        self.close()


def alike(plain: Outcome, tested: Outcome) -> bool:
    """Equal, or different in a way that ``EXCLUDED`` names."""
    if plain.value == "device":
        return tested.value == "device" or tested.error == "EACCES"
    if isinstance(plain.value, Offset) and plain.value.preallocated:
        return True
    return plain == tested


def shorten(value: object) -> str:
    """A value in one line that can be read."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:110]}... ({len(text)} characters)"


def difference(plain: Outcome, tested: Outcome, name: str) -> str:
    """Show two outcomes; of two trees, or of two stretches of bytes, only where they differ."""
    one, other = plain.value, tested.value
    if isinstance(one, dict) and isinstance(other, dict):
        lines = []
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                lines.append(f"  {key}\n    plain: {one.get(key, 'missing')}\n    {name}: {other.get(key, 'missing')}")
        return "\n".join(lines)
    if isinstance(one, bytes) and isinstance(other, bytes):
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return f"  {len(one)} and {len(other)} bytes, different from {same}: {one[same:][:16]!r}, {other[same:][:16]!r}"
    fields = Metadata._fields if isinstance(one, Metadata) else ()
    shown = [f for f in fields if getattr(one, f) != getattr(other, f, None)]
    note = f"  ({', '.join(shown)})" if shown else ""
    return f"  plain: {shorten(plain.error or one)}\n  {name}: {shorten(tested.error or other)}{note}"
