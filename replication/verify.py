"""The source's half of verify: are both copies equal? Asked while the VM runs, answered without a false alarm.

A directory's listing is made by the helper and compared by the target part by part, at no particular time: it is a
sieve. What does not pass is looked at again by the loop, which reads the object and queues the question in one step,
so that the target answers at the same place in the stream; only when two such answers agree is it a difference.
Content goes the same way (verify_content.py). Modification times, which lag behind by nature, are not compared.

It must not know FUSE, verdicts or the link. Whoever runs it calls ``step`` after each turn, in PRIM, and ``end`` when
that is over. A directory that is renamed from where it is still to be compared to where all is compared is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hotpair.replication import comparison, frames, helper, linux_io
from hotpair.replication.dirty_log import Extents, Metadata
from hotpair.replication.errors import ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import CHECKS_IN_FLIGHT, LISTING_BYTES, LOOKS, OBJECTS_PER_CHECK
from hotpair.replication.nodes import Node, NodeTable
from hotpair.replication.objects_io import open_path
from hotpair.replication.operations import Operation
from hotpair.replication.source import Source
from hotpair.replication.verify_content import Content
from hotpair.replication.verify_report import Difference, Report

HELD: Final = (stat.S_IFDIR, stat.S_IFREG)
NOT_THE_SAME: Final = (comparison.MISSING, comparison.SURPLUS, comparison.ANOTHER, comparison.TYPE)
TO_END: Final = (1 << 64) - 1

Entry = list[Any]  # name, identity, description, size, mtime, links, handle: helper.describe_entry


class Place(NamedTuple):
    """A directory that is still to be compared."""

    identity: bytes
    handle: bytes
    path: bytes


class Visit:
    """A directory that is being compared."""

    def __init__(self, place: Place, fd: int, token: int) -> None:
        self.place = place
        self.fd = fd
        self.token = token  # of the helper's job
        self.entries: deque[Entry] = deque()  # listed, not yet asked for
        self.names: set[bytes] = set()
        self.listed = False
        self.position = 0  # in the target's listing
        self.doubts: deque[Doubt] = deque()
        self.in_work = 0  # questions and repairs under way

    def path_of(self, name: bytes) -> bytes:
        return b"/".join(part for part in (self.place.path, name) if part)


class Doubt:
    """A name that did not pass."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.last: list[str] = []  # what the last look found
        self.looks = 0
        self.reported: Difference | None = None


class Verification:
    """One run over all of the module."""

    def __init__(
        self,
        source: Source,
        nodes: NodeTable,
        root_fd: int,
        root: Node,
        helper_process: Helper,
        repair: bool,
        ended: Callable[[str], None],
    ) -> None:
        self._source = source
        self._nodes = nodes
        self._root_fd = root_fd
        self._helper = helper_process
        self._repair = repair
        self._ended = ended
        self.report = Report()
        self.content = Content(source, root_fd, helper_process, self.report, self._ask, self._release, repair)
        self.running = True
        self.result: str | None = None
        self._asked: dict[int, Callable[[Any], None]] = {}  # by sequence number
        self._uses: Counter[bytes] = Counter()  # objects that the target must know for us
        self._removed: set[bytes] = set()  # of these: their last name is gone, and with it what the target knew
        self._linked: set[bytes] = set()  # files with several names that have had their turn
        self._visit: Visit | None = None
        self._uses[root.identity] = 1
        self._places = [Place(root.identity, root.handle, b"")]

    # --- what the core asks ---------------------------------------------------------------------------------------

    def holds(self, identity: bytes) -> bool:
        """Whether the target must keep the object although the kernel has forgotten it."""
        return identity in self._uses

    def removed(self, identity: bytes) -> None:
        """The last name of an object is gone, and the target has been told."""
        self.content.removed(identity)
        if identity in self._uses:
            self._removed.add(identity)

    # --- questions ------------------------------------------------------------------------------------------------

    def _ask(self, fields: tuple[Any, ...], answered: Callable[[Any], None]) -> None:
        self._asked[self._source.operation(fields)] = answered

    def answered_by_target(self, fields: list[Any]) -> None:
        """CHECKED, COMPARED or NAMES. One that nobody waits for is the answer to a run that was stopped."""
        _check_answer(fields)
        answered = self._asked.pop(fields[1], None)
        if answered is not None:
            answered(fields[2] if fields[0] != Kind.NAMES else (fields[2], fields[3]))

    def answered(self, answer: list[Any]) -> bool:
        """The helper has something to say; False when it is not about this run."""
        visit = self._visit
        if not self.running or visit is None:
            return False
        if answer[0] != visit.token:
            return self.content.answered(answer)
        if answer[1] == "part":
            visit.entries.extend(answer[2])
            visit.names.update(entry[0] for entry in answer[2])
        else:
            visit.listed = True
        return True

    def step(self) -> None:
        """Start what can be started now; called by the loop after each turn."""
        if not self.running:
            return
        visit = self._visit or self._next_visit()
        if visit is None:
            if not self._places:
                self.end("differences found" if self.report.count else "no difference")
            return
        while len(self._asked) < CHECKS_IN_FLIGHT and len(self._source.out) < 4 and self._ask_one(visit):
            pass
        self.content.read_more()
        if self._is_over(visit):
            os.close(visit.fd)
            self._visit = None
            self._release(visit.place.identity)

    def _ask_one(self, visit: Visit) -> bool:
        if self.content.check_next():
            return True
        if visit.doubts:
            self._look_again(visit, visit.doubts.popleft())
        elif visit.entries:
            self._sift(visit)
        elif visit.listed and visit.position != comparison.END and not visit.in_work:
            self._ask_names(visit)
        else:
            return False
        return True

    def _is_over(self, visit: Visit) -> bool:
        over = visit.listed and visit.position == comparison.END
        return over and not (visit.entries or visit.doubts or visit.in_work or self.content.busy)

    # --- directories ----------------------------------------------------------------------------------------------

    def _next_visit(self) -> Visit | None:
        while self._places:
            place = self._places.pop()
            try:
                fd = linux_io.open_by_handle(self._root_fd, place.handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                self._release(place.identity)
                continue
            token = self._helper.new_token()
            if not self._helper.ask(["list", token, place.handle], self._root_fd):
                os.close(fd)
                self._places.append(place)
                return None
            self._visit = Visit(place, fd, token)
            if not place.path:
                self._visit.doubts.append(Doubt(b""))  # the root itself, which no directory lists
            return self._visit
        return None

    def _sift(self, visit: Visit) -> None:
        """Have the target compare the next part of the listing, which may be out of date by now."""
        part: list[Entry] = []
        room = LISTING_BYTES
        while visit.entries and len(part) < OBJECTS_PER_CHECK:
            room -= len(frames.pack(tuple(visit.entries[0])))
            if part and room < 0:
                break
            part.append(visit.entries.popleft())
        self._compare(visit, part, lambda differences: self._sifted(visit, part, differences))

    def _compare(self, visit: Visit, part: list[Entry], answered: Callable[[Any], None]) -> None:
        """Ask about entries. The target knows from then on those directories and files that are the same."""
        question = []
        for name, identity, what, size, *_ in part:
            hold = bool(identity) and stat.S_IFMT(what[0]) in HELD
            if hold:
                self._uses[identity] += 1
            question.append([name, identity, what, size, hold])
        visit.in_work += 1
        self._ask((Kind.CHECK_OBJECTS, visit.place.identity, question), answered)

    def _sifted(self, visit: Visit, part: list[Entry], differences: list[list[Any]] | None) -> None:
        visit.in_work -= 1
        doubtful = None if differences is None else {name for name, _ in differences}
        for entry in part:
            if doubtful is None or entry[0] in doubtful:
                self._release_entry(entry)
            else:
                self._go_into(visit, entry)
        visit.doubts.extend(Doubt(name) for name in doubtful or ())

    def _ask_names(self, visit: Visit) -> None:
        visit.in_work += 1
        self._ask((Kind.CHECK_NAMES, visit.place.identity, visit.position), lambda answer: self._named(visit, *answer))

    def _named(self, visit: Visit, names: list[bytes], position: int) -> None:
        visit.in_work -= 1
        visit.position = position
        visit.doubts.extend(Doubt(name) for name in names if name not in visit.names)

    def _go_into(self, visit: Visit, entry: Entry) -> None:
        """An object is the same on both sides: what is in it comes next."""
        name, identity, what, size, _, links, handle = entry
        kind = stat.S_IFMT(what[0])
        if identity in self._removed:  # after the question, before the answer
            self._release_entry(entry)
        elif kind == stat.S_IFDIR and name:
            self._places.append(Place(identity, handle, visit.path_of(name)))
        elif kind == stat.S_IFREG and size and identity not in self._linked:
            if links > 1:
                self._linked.add(identity)
            self.content.add(identity, handle, visit.path_of(name), size)
        else:
            self._release_entry(entry)

    def _release_entry(self, entry: Entry) -> None:
        if entry[1] and stat.S_IFMT(entry[2][0]) in HELD:
            self._release(entry[1])

    def _release(self, identity: bytes) -> None:
        """The target need not know the object for us any more; perhaps it must for the kernel."""
        self._uses[identity] -= 1
        if self._uses[identity]:
            return
        del self._uses[identity]
        self._removed.discard(identity)
        node = self._nodes.by_identity.get(identity)
        if node is None or node.declared != self._source.session:
            self._source.operation((Kind.FORGET, identity))

    # --- doubts ---------------------------------------------------------------------------------------------------

    def _look_again(self, visit: Visit, doubt: Doubt) -> None:
        """Read an object and ask about it in one step: the target compares at the same place in the stream."""
        self._source.apply_local()
        doubt.looks += 1
        entry = _entry(visit.fd, doubt.name)
        self._compare(visit, [entry], lambda differences: self._looked(visit, doubt, entry, differences))

    def _looked(self, visit: Visit, doubt: Doubt, entry: Entry, differences: list[list[Any]] | None) -> None:
        visit.in_work -= 1
        what: list[str] = differences[0][1] if differences else []
        if not what:
            if doubt.reported is not None:
                self.report.repaired(doubt.reported)
            self._settle(visit, entry, what if differences is not None else [comparison.MISSING])
        elif doubt.reported is not None:  # the repair has not helped
            self._settle(visit, entry, what)
        elif what != doubt.last and doubt.looks < LOOKS:
            doubt.last = what
            self._release_entry(entry)
            visit.doubts.append(doubt)
        else:
            doubt.reported = self.report.add(visit.path_of(doubt.name), what)
            if self._repair and not _is_another(what):
                self._repair_object(visit, doubt, entry)
            else:
                self._settle(visit, entry, what)

    def _settle(self, visit: Visit, entry: Entry, what: list[str]) -> None:
        """Nothing more is to be found out about the object itself."""
        if entry[1] and not _is_another(what):
            self._go_into(visit, entry)
        else:
            self._release_entry(entry)

    def _repair_object(self, visit: Visit, doubt: Doubt, entry: Entry) -> None:
        """Owner, mode, attributes and size are set as they are here; then it is looked at once more."""
        identity = entry[1]
        marks: list[Any] = [Metadata(identity)]
        if comparison.SIZE in doubt.last:
            marks.append(Extents(identity, 0, TO_END))
        visit.in_work += 1

        def perform() -> list[Operation]:
            if self.running:
                now = _entry(visit.fd, doubt.name)
                if now[1] == identity:
                    self._describe(now)
            return []

        def done(_: OSError | None) -> None:
            if self.running:
                visit.in_work -= 1
                visit.doubts.append(doubt)
                self._release_entry(entry)

        self._source.change(marks, perform, done)

    def _describe(self, entry: Entry) -> None:
        _, identity, what, size, mtime_ns, _, _ = entry
        if stat.S_IFMT(what[0]) not in HELD:
            return  # not known to the stream: reported only
        self._source.operation((Kind.DESCRIBE, identity, what))
        if stat.S_ISREG(what[0]):
            self._source.operation((Kind.TRUNCATE, identity, size))
        self._source.operation((Kind.ATTRIBUTES, identity, None, None, None, mtime_ns))

    # --- the end --------------------------------------------------------------------------------------------------

    def end(self, result: str) -> None:
        """All is compared, or it was stopped, or the link is lost: give back what is open and say so."""
        if not self.running:
            return
        self.running = False
        self.result = result
        self._asked.clear()
        self.content.close()
        if self._visit is not None:
            os.close(self._visit.fd)
            self._visit = None
        self._places.clear()
        for identity in list(self._uses):
            self._uses[identity] = 1
            self._release(identity)
        self._ended(result)

    def progress(self) -> dict[str, Any]:
        """What is known so far. ``bytes_total`` grows while directories are found."""
        return {
            "running": self.running,
            "bytes_done": self.content.bytes_done,
            "bytes_total": self.content.bytes_total,
            "files_done": self.content.files_done,
            "difference_count": self.report.count,
            "differences": [difference.shown() for difference in list(self.report.first)],
            "repaired": self.report.repaired_count,
            "result": self.result,
        }


def _is_another(what: list[str]) -> bool:
    """Whether the target does not have the object at all under this name, or cannot read it."""
    return any(text in NOT_THE_SAME or text.startswith(comparison.UNREADABLE) for text in what)


def _entry(directory_fd: int, name: bytes) -> Entry:
    """What stands under a name now; an entry without identity when nothing does. An empty name: the directory."""
    try:
        fd = open_path(directory_fd, name or b".")
    except FileNotFoundError:
        return [name, b"", None, 0, 0, 0, b""]
    try:
        return helper.describe_entry(name, fd)
    finally:
        os.close(fd)


def _check_answer(fields: list[Any]) -> None:
    """Raise ProtocolError unless the fields are of the protocol's types: what is made of them is used later."""
    kind, sequence, answer = fields[:3]
    match kind:
        case Kind.CHECKED:
            right = answer is None or type(answer) is bool
        case Kind.COMPARED:
            right = answer is None or (type(answer) is list and all(_is_difference(one) for one in answer))
        case _:
            right = type(answer) is list and type(fields[3]) is int and all(type(name) is bytes for name in answer)
    if type(sequence) is not int or not right:
        raise ProtocolError(f"the peer sent a malformed {Kind(kind).name}")


def _is_difference(one: Any) -> bool:
    """Whether it is a name and what differs."""
    if type(one) is not list or len(one) != 2 or type(one[0]) is not bytes or type(one[1]) is not list:
        return False
    return all(type(what) is str for what in one[1])
