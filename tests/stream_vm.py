"""A kernel and a process on the mount of a StreamPair: it speaks the FUSE protocol to the tap over a socket pair.

It keeps what a kernel keeps (names, lookups, locks), so that only requests come that a kernel would send.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io
from tests.stream_pair import StreamPair


class Inode:
    """What the kernel keeps of an object."""

    def __init__(self, nodeid: int, directory: bool) -> None:
        self.nodeid, self.directory = nodeid, directory
        self.lookups = 0
        self.names: set[tuple[int, bytes]] = set()
        self.children: dict[bytes, Inode] = {}
        self.handle = -1
        self.locks = 0  # requests under way on it: -1 exclusive


class Request:
    """One request; ``code`` is None until it is answered, then 0 or an errno."""

    def __init__(self, accept: Callable[[bytes], None] | None, locked: tuple[Inode, ...]) -> None:
        self.accept, self.locked = accept, locked
        self.code: int | None = None

    @property
    def answered(self) -> bool:
        return self.code is not None


class Vm:
    """A kernel and a process on it. Each call sends one request, which the source takes at once; none waits.

    As in Linux, a directory is locked while one of its names changes, and a file while anything but a write is
    under way: ``Locked`` is raised where the kernel would make the caller wait.
    """

    class Locked(Exception):
        pass

    def __init__(self, pair: StreamPair) -> None:
        self.pair = pair
        self.root = Inode(abi.ROOT_NODEID, True)
        self.inodes = {self.root.nodeid: self.root}
        self.pending: dict[int, Request] = {}
        self._unique = 0

    def _ask(
        self, opcode: int, nodeid: int, body: bytes,
        accept: Callable[[bytes], None] | None = None, locked: tuple[Inode, ...] = (),
    ) -> Request:  # fmt: skip
        self._unique += 2
        request = self.pending[self._unique] = Request(accept, locked)
        header = abi.IN_HEADER.pack(abi.HEADER_SIZE + len(body), opcode, self._unique, nodeid, 0, 0, 1, 0, 0)
        self.pair.kernel_end.send(header + body)
        self.pair.take()
        self.hear()
        return request

    def hear(self) -> None:
        """Take what has been answered."""
        while True:
            try:
                answer = self.pair.kernel_end.recv(1 << 20)
            except BlockingIOError:
                return
            _, code, unique = abi.OUT_HEADER.unpack_from(answer)
            request = self.pending.pop(unique)  # a KeyError here: answered twice
            for inode in request.locked:
                inode.locks = 0 if inode.locks < 0 else inode.locks - 1
            request.code = -code
            if not code and request.accept is not None:
                request.accept(answer[abi.OUT_HEADER.size :])

    def _lock(self, *inodes: Inode) -> tuple[Inode, ...]:
        different = tuple({inode.nodeid: inode for inode in inodes}.values())
        if any(inode.locks for inode in different):
            raise Vm.Locked
        for inode in different:
            inode.locks = -1
        return different

    def _entry(self, parent: Inode, name: bytes, body: bytes) -> Inode | None:
        nodeid = abi.ENTRY_OUT_PREFIX.unpack_from(body)[0]
        if not nodeid:
            return None
        mode = abi.ATTR.unpack_from(body, abi.ENTRY_OUT_PREFIX.size)[9]
        inode = self.inodes.setdefault(nodeid, Inode(nodeid, mode & 0o170000 == 0o040000))
        inode.lookups += 1
        inode.names.add((parent.nodeid, name))
        parent.children[name] = inode
        return inode

    def _entry_of(self, parent: Inode, name: bytes) -> Callable[[bytes], None]:
        """Accepts an answer that brings an entry."""
        return lambda body: void(self._entry(parent, name, body))

    def _gone(self, parent: Inode, name: bytes) -> None:
        inode = parent.children.pop(name, None)
        if inode is not None:
            inode.names.discard((parent.nodeid, name))

    def find(self, path: bytes) -> Inode:
        """Look up a path. FileNotFoundError; Locked when a directory on the way is."""
        inode = self.root
        for name in path.split(b"/") if path else ():
            child = inode.children.get(name)
            if child is None:
                if inode.locks:
                    raise Vm.Locked
                parent = inode
                self._ask(abi.LOOKUP, parent.nodeid, name + b"\0", self._entry_of(parent, name))
                child = parent.children.get(name)
                if child is None:
                    raise FileNotFoundError(errno.ENOENT, path)
            inode = child
        return inode

    def _place(self, path: bytes) -> tuple[Inode, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self.find(directory), name

    def open(self, path: bytes) -> Inode:
        """Open a file, once; it stays open after its names are gone."""
        inode = self.find(path)
        if inode.handle < 0:

            def opened(body: bytes) -> None:
                inode.handle = abi.OPEN_OUT.unpack_from(body)[0]

            assert self._ask(abi.OPEN, inode.nodeid, abi.OPEN_IN.pack(os.O_RDWR, 0), opened).code == 0
        return inode

    def close(self, inode: Inode) -> None:
        handle, inode.handle = inode.handle, -1
        self._ask(abi.RELEASE, inode.nodeid, abi.RELEASE_IN.pack(handle, 0, 0, 0))
        self._evict(inode)

    def _evict(self, inode: Inode) -> bool:
        """Forget an object that has no name in the cache and is not in use."""
        if inode.names or inode.handle >= 0 or inode.locks or inode.nodeid not in self.inodes:
            return False
        del self.inodes[inode.nodeid]
        self._ask(abi.FORGET, inode.nodeid, abi.FORGET_IN.pack(inode.lookups))
        self.pending.popitem()  # it has no answer
        return True

    def create(self, path: bytes) -> Request:
        parent, name = self._place(path)

        def created(body: bytes) -> None:
            inode = self._entry(parent, name, body)
            assert inode is not None
            inode.handle = abi.OPEN_OUT.unpack_from(body, abi.ENTRY_OUT_PREFIX.size + abi.ATTR.size)[0]

        body = abi.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + name + b"\0"
        return self._ask(abi.CREATE, parent.nodeid, body, created, self._lock(parent))

    def mkdir(self, path: bytes) -> Request:
        parent, name = self._place(path)
        body = abi.MKDIR_IN.pack(0o755, 0) + name + b"\0"
        return self._ask(abi.MKDIR, parent.nodeid, body, self._entry_of(parent, name), self._lock(parent))

    def unlink(self, path: bytes) -> Request:
        parent, name = self._place(path)
        inode = self.find(path)
        opcode = abi.RMDIR if inode.directory else abi.UNLINK

        def unlinked(_: bytes) -> None:
            self._gone(parent, name)
            self._evict(inode)

        return self._ask(opcode, parent.nodeid, name + b"\0", unlinked, self._lock(parent, inode))

    def link(self, old: bytes, new: bytes) -> Request:
        inode = self.find(old)
        parent, name = self._place(new)
        body = abi.LINK_IN.pack(inode.nodeid) + name + b"\0"
        locked = self._lock(parent, inode)
        return self._ask(abi.LINK, parent.nodeid, body, self._entry_of(parent, name), locked)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> Request:
        moved = self.find(old)
        (old_parent, old_name), (new_parent, new_name) = self._place(old), self._place(new)
        try:
            replaced = self.find(new)
        except FileNotFoundError:
            replaced = None

        def renamed(_: bytes) -> None:
            if moved is replaced:
                return
            self._gone(old_parent, old_name)
            self._gone(new_parent, new_name)
            new_parent.children[new_name] = moved
            moved.names.add((new_parent.nodeid, new_name))
            if replaced is not None and flags & linux_io.RENAME_EXCHANGE:
                old_parent.children[old_name] = replaced
                replaced.names.add((old_parent.nodeid, old_name))

        body = abi.RENAME2_IN.pack(new_parent.nodeid, flags, 0) + old_name + b"\0" + new_name + b"\0"
        locked = self._lock(old_parent, new_parent, moved, *([replaced] if replaced is not None else []))
        return self._ask(abi.RENAME2, old_parent.nodeid, body, renamed, locked)

    def write(self, file: Inode, offset: int, data: bytes) -> Request:
        if file.locks < 0:
            raise Vm.Locked
        file.locks += 1
        body = abi.WRITE_IN.pack(file.handle, offset, len(data), 0, 0, 0, 0) + data
        return self._ask(abi.WRITE, file.nodeid, body, None, (file,))

    def truncate(self, file: Inode, size: int) -> Request:
        body = abi.SETATTR_IN.pack(abi.FATTR_SIZE, 0, 0, size, *([0] * 12))
        return self._ask(abi.SETATTR, file.nodeid, body, None, self._lock(file))

    def chmod(self, inode: Inode, mode: int) -> Request:
        body = abi.SETATTR_IN.pack(abi.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0)
        return self._ask(abi.SETATTR, inode.nodeid, body, None, self._lock(inode))

    def punch(self, file: Inode, offset: int, length: int) -> Request:
        mode = linux_io.FALLOC_FL_PUNCH_HOLE | linux_io.FALLOC_FL_KEEP_SIZE
        body = abi.FALLOCATE_IN.pack(file.handle, offset, length, mode, 0)
        return self._ask(abi.FALLOCATE, file.nodeid, body, None, self._lock(file))

    def fsync(self, file: Inode) -> Request:
        if file.locks < 0:
            raise Vm.Locked
        file.locks += 1  # the caller holds the file open
        return self._ask(abi.FSYNC, file.nodeid, abi.FSYNC_IN.pack(file.handle, 0, 0), None, (file,))

    def forget(self, path: bytes) -> bool:
        """Drop a name from the cache, and the object if that was the last and nobody uses it."""
        parent, name = self._place(path)
        inode = parent.children.get(name)
        if inode is None or inode.locks or parent.locks or inode.children:
            return False
        self._gone(parent, name)
        self._evict(inode)
        return True

    def evict_all(self) -> None:
        """What a shortage of memory does."""
        for inode in list(self.inodes.values()):
            self._evict(inode)


def void(_: object) -> None:
    """A result that nobody needs."""


# --- stories ------------------------------------------------------------------------------------------------

Pair = tuple[StreamPair, Vm]


def settle(pair: Pair, *requests: Request) -> None:
    """Until nothing happens any more; the requests have succeeded."""
    pair[0].run()
    pair[1].hear()
    assert [request.code for request in requests] == [0] * len(requests)


def fill(pair: Pair, *paths: str, content: bytes = b"") -> None:
    """Make directories (ending with a slash) and files in the source's copy, before the mirror knows them."""
    for path in paths:
        if path.endswith("/"):
            os.mkdir(f"{pair[0].source_dir}/{path}")
        else:
            with open(f"{pair[0].source_dir}/{path}", "wb") as file:
                file.write(content or path.encode())


def finish(pair: Pair) -> None:
    """To the end of the reintegration: equal, in sync, nothing held, and no trouble on the way."""
    stream, vm = pair
    stream.synchronise()
    vm.hear()
    assert vm.pending == {}
    assert stream.differences("files") == []
    assert stream.lost == []
    stream.check_nothing_is_held()


def small_step(stream: StreamPair, number: int) -> None:
    """One of the things that can happen next, in turn."""
    steps: tuple[Callable[[], object], ...] = (
        stream.turn,
        stream.helper.perform,
        stream.answer,
        stream.flushed,
        stream.turn,
        lambda: stream.deliver_frames(1),
        stream.deliver,
        stream.deliver_back,
    )
    steps[number % len(steps)]()


def until_chunk_is_asked(stream: StreamPair) -> None:
    """The walk is over and the helper has been asked for the first chunk, but has not read it."""
    for _ in range(1000):
        if stream.helper.asked and stream.helper.asked[0][0][0] == "chunk":
            return
        stream.flushed()
        stream.helper.perform()
        stream.answer()
        stream.turn()
        stream.deliver()
        stream.deliver_back()
    raise AssertionError("no chunk was asked for")
