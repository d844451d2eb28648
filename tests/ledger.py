"""A writer whose every operation is on record, and the check of a copy against that record.

The writer is a program of its own, because a process that waits for a frozen mount cannot be ended:

    python -m tests.ledger --directory MOUNT --ledger FILE --roles random,sequential,names --incarnation N --seed S

It works until its standard input ends. A line with a number N on its standard input is answered by the same line on
its standard output when N more operations have been acknowledged. It ends with 1 at the first error of an operation.

The ledger is one file outside the mount, in page cache only: processes are killed here, not the machine. Lines are
appended by single calls, so their order is an order of time: an operation whose intent stands behind another one's
acknowledgement began after that.

    i TAG write FILE OFFSET SIZE        a TAG          e TAG ERRNO
    i TAG flush FILE
    i TAG create PATH | rename PATH PATH | unlink PATH | mkdir PATH | rmdir PATH

Tags are unique and increase within one thread. Each page that is written says which file, page and tag it is of, with
a checksum. So the check is one pass over the ledger and one over the data.
"""

import argparse
import errno
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PAGE = 4096
MAGIC = b"HOTPLEDG"
HEADER = struct.Struct("<8sIIQ")  # magic, file, page, tag
CHECKSUM = struct.Struct("<I4x")
BODY_WORDS = (PAGE - HEADER.size - CHECKSUM.size) // 8
HOLE = bytes(PAGE)
NOTHING = 0  # the tag of a page that was never written
DAMAGED = -1
DIRECTORY = -2  # stands for the tag of a directory
INCOMPLETE = -3  # a file that has been made, and has not got its content
INCARNATION_TAGS = 1 << 40
PROCESS_TAGS = 1 << 36
LARGEST_PAGES = 64  # in one write
FILES_OF_A_WORKER = 24
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---- pages


def make_page(file: int, page: int, tag: int) -> bytes:
    """A page that says what it is."""
    head = HEADER.pack(MAGIC, file, page, tag)
    body = tag.to_bytes(8, "little") * BODY_WORDS
    return head + CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def tag_of(data: bytes, file: int, page: int) -> int:
    """The tag of a page, NOTHING for a hole or what is beyond the end, DAMAGED for anything else."""
    data = data.ljust(PAGE, b"\0")
    if data == HOLE:
        return NOTHING
    magic, of_file, of_page, tag = HEADER.unpack_from(data)
    if (magic, of_file, of_page) != (MAGIC, file, page):
        return DAMAGED
    (checksum,) = CHECKSUM.unpack_from(data, HEADER.size)
    body = data[HEADER.size + CHECKSUM.size :]
    right = checksum == zlib.crc32(body, zlib.crc32(data[: HEADER.size]))
    return int(tag) if right else DAMAGED


def block_path(file: int) -> str:
    """Where a file of blocks is, below the directory."""
    return f"blocks-{file}"


def read_tags(directory: str, file: int) -> list[int]:
    """The tag of each page of a file of blocks; a file that is missing has none."""
    try:
        with open(f"{directory}/{block_path(file)}", "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        return []
    return [tag_of(data[at : at + PAGE], file, at // PAGE) for at in range(0, len(data), PAGE)]


def small_content(path: str, tag: int) -> bytes:
    """What a small file holds from when it is complete: the name it was made with and its tag."""
    return f"{path} {tag}\n".encode()


def read_names(directory: str, below: str = "names") -> dict[str, int]:
    """Every path of the name workers that is there, with its tag."""
    found: dict[str, int] = {}
    for top, directories, files in os.walk(f"{directory}/{below}", onerror=_raise_unless_missing):
        relative = os.path.relpath(top, directory)
        found.update({f"{relative}/{name}": DIRECTORY for name in directories})
        for name in files:
            with open(f"{top}/{name}", "rb") as stream:
                content = stream.read()
            words = content.decode(errors="replace").split()
            tag = int(words[1]) if len(words) == 2 and words[1].isdigit() else DAMAGED
            whole = tag != DAMAGED and content == small_content(words[0], tag)
            found[f"{relative}/{name}"] = tag if whole else (DAMAGED if content else INCOMPLETE)
    return found


def _raise_unless_missing(error: OSError) -> None:
    if error.errno != errno.ENOENT:
        raise error


# ---- what the ledger says


@dataclass(eq=False, slots=True)
class Operation:
    """One line of intent. Positions are line numbers; ``end`` is None while it is in flight."""

    tag: int
    kind: str
    words: list[str]
    start: int
    end: int | None = None

    @property
    def file(self) -> int:
        return int(self.words[0])

    def pages(self) -> range:
        """The pages of a write."""
        offset, size = int(self.words[1]), int(self.words[2])
        return range(offset // PAGE, (offset + size) // PAGE)


UNWRITTEN = Operation(NOTHING, "write", [], 0, 0)


def change_names(names: dict[str, int], operation: Operation) -> None:
    """Carry out an operation on names."""
    words = operation.words
    if operation.kind == "create":
        names[words[0]] = operation.tag
    elif operation.kind == "mkdir":
        names[words[0]] = DIRECTORY
    elif operation.kind == "rename":
        names[words[1]] = names.pop(words[0])
    else:
        del names[words[0]]


def worker_of(path: str) -> str:
    """The worker to whom a path below ``names/`` belongs; nobody else touches it."""
    return path.split("/")[1]


@dataclass
class Ledger:
    """The ledger's content as far as it was read, and what a copy must hold for it."""

    path: str
    position: int = 0  # lines read
    acknowledged: int = 0
    flushes: int = 0
    errors: list[str] = field(default_factory=list)
    flying: dict[int, Operation] = field(default_factory=dict)  # by tag
    # For each page: the writes of which one must be there. The first one is the oldest.
    pages: dict[tuple[int, int], list[Operation]] = field(default_factory=dict)
    names: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))  # by worker
    _bytes: int = 0

    def read(self) -> "Ledger":
        """Take in what was appended since."""
        with open(self.path, "rb") as stream:
            stream.seek(self._bytes)
            data = stream.read()
        end = data.rfind(b"\n") + 1  # a line may be on its way
        self._bytes += end
        for line in data[:end].decode().splitlines():
            self.take(line)
        return self

    def take(self, line: str) -> None:
        """One line."""
        self.position += 1
        what, number, *words = line.split()
        tag = int(number)
        if what == "i":
            operation = self.flying[tag] = Operation(tag, words[0], words[1:], self.position)
            if operation.kind == "write":
                for page in operation.pages():
                    self.pages.setdefault((operation.file, page), [UNWRITTEN]).append(operation)
        elif what == "a":
            self._acknowledge(self.flying.pop(tag))
        else:
            self.errors.append(f"{self.flying[tag].kind} {' '.join(self.flying[tag].words)}: errno {words[0]}")

    def _acknowledge(self, operation: Operation) -> None:
        self.acknowledged += 1
        operation.end = self.position
        if operation.kind == "write":
            start = operation.start
            for page in operation.pages():  # whatever ended before this write began is overwritten now
                candidates = self.pages[operation.file, page]
                candidates[:] = [one for one in candidates if one.end is None or one.end >= start]
        elif operation.kind == "flush":
            self.flushes += 1
        else:
            path = operation.words[0]
            change_names(self.names[worker_of(path)], operation)

    # ---- the check

    def check(self, directory: str, *, settle: bool = False) -> list[str]:
        """What a copy does not hold although it must, or holds although it must not; one line each.

        ``settle``: every writer has ended, and this copy is the one that stays: what was in flight is from now on as
        it is found here.
        """
        wrong = self._check_pages(directory, settle)
        wrong += self._check_names(directory, settle)
        if settle:
            self.flying.clear()
        return wrong

    def _check_pages(self, directory: str, settle: bool) -> list[str]:
        tags = {file: read_tags(directory, file) for file in {file for file, _ in self.pages}}

        def tag_at(file: int, page: int) -> int:
            return tags[file][page] if page < len(tags[file]) else NOTHING

        wrong = self.check_pages_of(tag_at)
        if settle:
            for (file, page), candidates in self.pages.items():
                candidates[:] = [Operation(tag_at(file, page), "write", [str(file)], self.position, self.position)]
        for file, found_tags in tags.items():
            strange = [page for page, tag in enumerate(found_tags) if tag and (file, page) not in self.pages]
            wrong += [f"{block_path(file)} page {page}: never written, has data" for page in strange]
        return wrong

    def check_pages_of(self, tag_at: Callable[[int, int], int]) -> list[str]:
        """Pages, by ``tag_at(file, page)``, that hold none of the writes of which one must be there."""
        wrong = []
        for (file, page), candidates in self.pages.items():
            found = tag_at(file, page)
            if not any(one.tag == found for one in candidates):
                wanted = ", ".join(f"{one.tag} ({_when(one)})" for one in candidates)
                wrong.append(f"{block_path(file)} page {page}: tag {found}, not {wanted}")
        return wrong

    def _check_names(self, directory: str, settle: bool) -> list[str]:
        wrong = []
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for path, tag in read_names(directory).items():
            if path.count("/") > 1:  # the workers' own directories are not theirs to make
                found[worker_of(path)][path] = tag
        flying: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.flying.values():
            if operation.kind not in ("write", "flush"):
                flying[worker_of(operation.words[0])].append(operation)
        for worker in self.names.keys() | found.keys() | flying.keys():
            wanted = possible_names(self.names[worker], flying[worker])
            if found[worker] not in wanted:
                wrong.append(f"names of {worker}: {_names_difference(wanted[0], found[worker])}")
            elif settle:
                self.names[worker] = found[worker]
        return wrong


def possible_names(names: dict[str, int], flying: list[Operation]) -> list[dict[str, int]]:
    """What one worker's names may be: without the operation in flight, with it, or with half of it."""
    assert len(flying) <= 1, "a worker does one operation after the other; `settle` ends those of a worker that died"
    states = [names]
    for operation in flying:
        after = dict(names)
        change_names(after, operation)
        states.append(after)
        if operation.kind == "create":
            states.append({**names, operation.words[0]: INCOMPLETE})
    return states


def _names_difference(wanted: dict[str, int], found: dict[str, int]) -> str:
    paths = [path for path in sorted(wanted.keys() | found.keys()) if wanted.get(path) != found.get(path)]
    return "; ".join(f"{path} is {found.get(path)}, not {wanted.get(path)}" for path in paths[:5])


def _when(operation: Operation) -> str:
    return f"lines {operation.start} to {operation.end or 'in flight'}"


# ---- the writer


class Writer:
    """The program: threads that work on the mount, and their record."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stopping = threading.Event()
        self._ledger = os.open(options.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        first = options.incarnation * INCARNATION_TAGS + options.process * PROCESS_TAGS
        self._tags = itertools.count(first + 1)
        self._lock = threading.Lock()
        self._count = 0
        self._notify_at = -1
        self._notify = b""

    def perform(self, kind: str, words: str, act: Callable[[int], None]) -> None:
        """Do one operation and record it. The first error ends the process."""
        tag = next(self._tags)
        os.write(self._ledger, b"i %d %s %s\n" % (tag, kind.encode(), words.encode()))
        try:
            act(tag)
        except OSError as error:
            os.write(self._ledger, b"e %d %d\n" % (tag, error.errno or 0))
            os._exit(1)
        os.write(self._ledger, b"a %d\n" % tag)
        with self._lock:
            self._count += 1
            if self._count == self._notify_at:
                os.write(1, self._notify)

    def run(self) -> None:
        """Work until standard input ends."""
        roles = {
            "random": self.at_random,
            "sequential": self.in_sequence,
            "names": self.on_names,
            "mixed": self.on_both,
        }
        threads = []
        for number, role in enumerate(self.options.roles.split(",")):
            source = random.Random(f"{self.options.seed} {self.options.incarnation} {self.options.process} {number}")
            threads.append(threading.Thread(target=self._work, args=(roles[role](number, source),)))
            threads[-1].start()
        for line in iter(sys.stdin.readline, ""):
            with self._lock:
                self._notify_at = self._count + int(line)
                self._notify = line.encode()
        self.stopping.set()
        for thread in threads:
            thread.join()

    def _work(self, steps: Iterator[None]) -> None:
        try:
            for _ in steps:
                if self.stopping.is_set():
                    return
        except OSError as error:  # opening what is needed to work
            print(f"writer: {error}", file=sys.stderr)
            os._exit(1)

    def _open(self, flags: int = 0) -> list[int]:
        paths = [f"{self.options.directory}/{block_path(file)}" for file in range(self.options.files)]
        return [os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600) for path in paths]

    def write(self, descriptor: int, file: int, page: int, count: int) -> None:
        """One write of whole pages."""

        def act(tag: int) -> None:
            data = b"".join(make_page(file, number, tag) for number in range(page, page + count))
            written = os.pwrite(descriptor, data, page * PAGE)
            if written != len(data):
                raise OSError(errno.EIO, f"short write: {written}")

        self.perform("write", f"{file} {page * PAGE} {count * PAGE}", act)

    def flush(self, descriptor: int, file: int, data_only: bool) -> None:
        """One fsync or fdatasync."""
        call = os.fdatasync if data_only else os.fsync
        self.perform("flush", str(file), lambda _: call(descriptor))

    def at_random(self, _: int, source: random.Random) -> Iterator[None]:
        """Random offsets and sizes; one write in twenty through O_DSYNC, one flush in forty."""
        plain, synchronous = self._open(), self._open(os.O_DSYNC)
        while True:
            file = source.randrange(self.options.files)
            count = source.choice((1, 1, 1, 1, 2, 4, 16, LARGEST_PAGES))
            page = source.randrange(self.options.pages - count + 1)
            descriptor = (synchronous if source.random() < 0.05 else plain)[file]
            self.write(descriptor, file, page, count)
            if source.random() < 0.025:
                self.flush(descriptor, file, source.random() < 0.5)
            yield

    def in_sequence(self, _: int, source: random.Random) -> Iterator[None]:
        """From the beginning of a file to its end, again and again, flushed at the end."""
        descriptors = self._open()
        while True:
            file = source.randrange(self.options.files)
            count = source.choice((1, 8, 32))
            for page in range(0, self.options.pages - count + 1, count):
                self.write(descriptors[file], file, page, count)
                yield
            self.flush(descriptors[file], file, True)

    def on_both(self, number: int, source: random.Random) -> Iterator[None]:
        """Writes and names by turns, in one thread."""
        names, blocks = self.on_names(number, source), self.at_random(number, source)
        while True:
            next(names if source.random() < 0.3 else blocks)
            yield

    def on_names(self, number: int, source: random.Random) -> Iterator[None]:
        """Makes, renames and removes small files and empty directories, in two directories of its own."""
        own = f"names/{self.options.process}-{number}"
        top = self.options.directory
        places = [f"{own}/a", f"{own}/b"]
        os.makedirs(f"{top}/{own}", exist_ok=True)
        have = read_names(top, own)
        for place in places:
            if place not in have:
                self.perform("mkdir", place, lambda _, place=place: os.mkdir(f"{top}/{place}"))  # type: ignore[misc]
        files = {path for path, tag in have.items() if tag != DIRECTORY}
        empty = {path for path, tag in have.items() if tag == DIRECTORY and path not in places}
        for serial in itertools.count(self.options.incarnation * 1_000_000):
            fresh = f"{source.choice(places)}/{serial}"
            choice = source.random()
            if choice < 0.15:
                self._directories(empty, fresh, source)
            elif not files or (choice < 0.45 and len(files) < FILES_OF_A_WORKER):
                self.perform("create", fresh, lambda tag: self._create(fresh, tag))  # noqa: B023
                files.add(fresh)
            elif choice < 0.75:
                old = source.choice(sorted(files))
                new = fresh if source.random() < 0.6 else source.choice(sorted(files - {old}) or [fresh])
                self.perform("rename", f"{old} {new}", lambda _: os.rename(f"{top}/{old}", f"{top}/{new}"))  # noqa: B023
                files.discard(old)
                files.add(new)
            else:
                old = source.choice(sorted(files))
                self.perform("unlink", old, lambda _: os.unlink(f"{top}/{old}"))  # noqa: B023
                files.discard(old)
            yield

    def _directories(self, empty: set[str], fresh: str, source: random.Random) -> None:
        top = self.options.directory
        if len(empty) < 4:
            self.perform("mkdir", fresh, lambda _: os.mkdir(f"{top}/{fresh}"))
            empty.add(fresh)
        else:
            old = source.choice(sorted(empty))
            self.perform("rmdir", old, lambda _: os.rmdir(f"{top}/{old}"))
            empty.discard(old)

    def _create(self, path: str, tag: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(f"{self.options.directory}/{path}", flags, 0o600)
        try:
            os.write(descriptor, small_content(path, tag))
        finally:
            os.close(descriptor)


class WriterProcess:
    """The writer as a child, seen from a test."""

    def __init__(self, directory: str, ledger: str, roles: str, environment: dict[str, str], **options: int) -> None:
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger", "--directory", directory, "--ledger", ledger, "--roles", roles]
            + given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
            start_new_session=True,
        )
        self._identifier = os.pidfd_open(self.process.pid)

    def wait_acknowledged(self, count: int, timeout_s: float) -> bool:
        """Wait for so many more acknowledged operations; False when the writer ended, or that time is over."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(b"%d\n" % count)
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) and self.process.stdout.readline() != b""

    def wait_end(self, timeout_s: float) -> int | None:
        """The exit code; None when it has not ended within that time."""
        poll = select.poll()
        poll.register(self._identifier, select.POLLIN)
        return self.process.wait() if poll.poll(timeout_s * 1000) else None

    def stop(self, timeout_s: float = 30.0) -> int | None:
        """Have it end; its exit code as from ``wait_end``."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        return self.wait_end(timeout_s)

    def close(self) -> None:
        """Release the pipes of a writer that has ended."""
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass
        os.close(self._identifier)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--roles", required=True)
    parser.add_argument("--incarnation", type=int, default=1, help="another number for each start")
    parser.add_argument("--process", type=int, default=0, help="another number for each of several at one time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--pages", type=int, default=1024, help=f"of each file, at least {LARGEST_PAGES}")
    Writer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
