"""The journal of the mount: what the kernel knows of us, kept where a new mirror process finds it.

A file of msgpack records, appended before the kernel hears of what they say. Nothing is flushed: it has to survive the
death of the process, not that of the host. What the last record says twice (a look-up whose answer never went out)
costs a node that is kept too long, nothing else.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import msgpack

from hotpair.replication.dirty_log import FileMarks
from hotpair.replication.nodes import Handle, Node, NodeTable

log = logging.getLogger("hotpair.replication")

REWRITE_ABOVE: Final = 4 << 20  # bytes: then the journal is written anew, if that makes it half as long
INIT, NODE, LOOKED_UP, FORGOTTEN, NAMED, ORPHANED, OPENED, RELEASED, INTENT = range(9)

# Of a rename under way: the identities of what moves and of what stands at its goal, and whether they change places
Intent = tuple[bytes, bytes, bool]


class Journal:
    """Appends to the journal in ``path``."""

    def __init__(self, path: str, nodes: NodeTable) -> None:
        self._path = path
        self._nodes = nodes
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._next_rewrite = REWRITE_ABOVE
        self._agreed = 0
        self._broken = False
        self._pack = msgpack.Packer(autoreset=True).pack

    def _append(self, *record: Any) -> None:
        if self._broken:
            return
        data = self._pack(record)
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._break(str(error))
            return
        if written != len(data):
            self._break("a short write")
            return
        self._size += written
        if self._size > self._next_rewrite:
            self._rewrite()

    def _break(self, reason: str) -> None:
        """It cannot be written (its disk is full): there is none then, and a mirror that dies costs the mount."""
        log.error("the journal of the mount cannot be written (%s): this mount cannot be adopted", reason)
        self._broken = True
        os.ftruncate(self._fd, 0)

    def begin(self, agreed: int) -> None:
        """A new mount: nothing of an earlier one counts. ``agreed``: the flags of INIT."""
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._agreed = agreed
        self._append(INIT, agreed)

    def node(self, node: Node) -> None:
        """The kernel is about to hear of a node."""
        self._append(*_node_record(node))

    def looked_up(self, node: Node) -> None:
        """The kernel is about to get a reference to a node."""
        self._append(LOOKED_UP, node.nodeid)

    def forgotten(self, nodeid: int, lookups: int) -> None:
        """The kernel has given references back."""
        self._append(FORGOTTEN, nodeid, lookups)

    def named(self, node: Node) -> None:
        """A node is known by another name, or by none."""
        self._append(NAMED, node.nodeid, node.parent.nodeid if node.parent else 0, node.name)

    def orphaned(self, node: Node) -> None:
        """A node has lost its last name."""
        self._append(ORPHANED, node.nodeid)

    def opened(self, number: int, node: Node, is_directory: bool) -> None:
        """The kernel is about to hear of a handle."""
        self._append(OPENED, number, node.nodeid, is_directory)

    def released(self, number: int) -> None:
        """The kernel has released a handle."""
        self._append(RELEASED, number)

    def intent(self, unique: int, moved: bytes, replaced: bytes, exchange: bool) -> None:
        """A rename that cannot be told from its repetition by looking at the names is about to happen."""
        self._append(INTENT, unique, moved, replaced, exchange)

    def _rewrite(self) -> None:
        """Write a new journal of what counts now, and put it in place of the old one."""
        table = self._nodes
        records: list[Any] = [(INIT, self._agreed)]
        for node in table.by_number.values():
            records.append(_node_record(node))
            if node.orphan:
                records.append((ORPHANED, node.nodeid))
        records += [
            (OPENED, number, handle.node.nodeid, handle.directory_fd >= 0) for number, handle in table.handles.items()
        ]
        data = b"".join(self._pack(record) for record in records)
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.rename(temporary, self._path)
        os.close(self._fd)
        self._fd = fd
        self._size = len(data)
        self._next_rewrite = max(REWRITE_ABOVE, 2 * len(data))

    def close(self, forget: bool) -> None:
        """Stop writing; ``forget`` when the mount is gone."""
        if forget:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _node_record(node: Node) -> tuple[Any, ...]:
    parent = node.parent.nodeid if node.parent else 0
    return (NODE, node.nodeid, node.identity, node.handle, node.kind, parent, node.name, node.lookups)


class Restored:
    """What a journal says."""

    def __init__(self) -> None:
        self.agreed: int | None = None  # flags of INIT; None: there is nothing to adopt
        self.nodes: dict[int, list[Any]] = {}  # identity, handle, kind, parent, name, lookups
        self.orphans: set[int] = set()
        self.handles: dict[int, tuple[int, bool]] = {}  # handle -> node, whether a directory
        self.intents: dict[int, Intent] = {}


def read(path: str) -> Restored:
    """The state that a journal describes; a torn last record is what had not been said yet."""
    restored = Restored()
    try:
        with open(path, "rb") as file:
            unpacker = msgpack.Unpacker(file, use_list=True)
            for record in unpacker:
                _replay(restored, record)
    except FileNotFoundError:
        pass
    return restored


def _replay(restored: Restored, record: list[Any]) -> None:
    kind = record[0]
    if kind == INIT:
        restored.agreed = record[1]
    elif kind == NODE:
        restored.nodes[record[1]] = record[2:]
    elif kind == LOOKED_UP:
        if record[1] in restored.nodes:  # the root has no record
            restored.nodes[record[1]][5] += 1
    elif kind == FORGOTTEN:
        node = restored.nodes.get(record[1])
        if node is not None:
            node[5] -= record[2]
            if node[5] <= 0:
                del restored.nodes[record[1]]
    elif kind == NAMED:
        if record[1] in restored.nodes:
            restored.nodes[record[1]][3:5] = record[2:4]
    elif kind == ORPHANED:
        restored.orphans.add(record[1])
    elif kind == OPENED:
        restored.handles[record[1]] = (record[2], record[3])
    elif kind == RELEASED:
        restored.handles.pop(record[1], None)
    elif kind == INTENT:
        restored.intents[record[1]] = (record[2], record[3], record[4])


def rebuild(restored: Restored, table: NodeTable, marks_of: Any) -> None:
    """Fill an empty node table, whose root is there already, with what the journal says."""
    for number, (identity, handle, kind, _, _, lookups) in restored.nodes.items():
        if number == table.root_number:
            continue
        marks: FileMarks = marks_of(identity)
        node = Node(number, identity, handle, kind, -1, marks)
        node.lookups = lookups
        node.orphan = number in restored.orphans
        table.restore(node)
    for number, (_, _, _, parent, name, _) in restored.nodes.items():
        node = table.by_number[number]
        node.parent = table.by_number.get(parent)
        node.name = name
    for number, (nodeid, _) in restored.handles.items():
        owner = table.by_number.get(nodeid)
        if owner is not None:
            table.restore_handle(number, Handle(owner))
