"""What a directory tree holds, read without trusting paths, and the comparison of the mirror's two copies.

Directories are walked by descriptors, so that trees deeper than PATH_MAX can be read; names are bytes;
sparse files are read where they have data; sockets, fifos and devices are never opened.
"""

import errno
import hashlib
import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 4096
READ_LIMIT = 256 << 20  # bytes of data in one file: more is a mistake of the test or a file without its holes

IDENTITY_ATTRIBUTES = ("trusted.hotpair.id", "user.hotpair.id")  # the first that an object has
OWN_ATTRIBUTES = ("trusted.hotpair.", "user.hotpair.")
OWN_FOLDER = b".hotpair"  # at the top of each copy: orphans and trash, each side's own business


def identity_of(attributes: dict[str, str], missing: str) -> str:
    """The object's identity among its attributes."""
    return next((attributes[name] for name in IDENTITY_ATTRIBUTES if name in attributes), missing)


class Found(NamedTuple):
    """One object met on a walk; ``directory`` is an open descriptor that is valid only until the next step."""

    path: bytes
    directory: int
    name: bytes
    status: os.stat_result


class Copy(NamedTuple):
    """Everything that is compared about one object of a copy."""

    kind: str
    mode: str
    owner: tuple[int, int]
    size: int | None
    device: int | None
    modified_ns: int
    content: str
    attributes: dict[str, str]
    identity: str


def walk(directory: int, prefix: bytes = b"") -> Iterator[Found]:
    """All objects below an open directory, sorted by name, each directory before what it holds."""
    for raw in sorted(os.listdir(directory)):
        name = os.fsencode(raw)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        path = prefix + name
        yield Found(path, directory, name, status)
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                yield from walk(below, path + b"/")
            finally:
                os.close(below)


def data_segments(descriptor: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of a file that are not holes."""
    end = os.fstat(descriptor).st_size
    position = 0
    while position < end:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def content_digest(descriptor: int) -> str:
    """A digest of a file's bytes that does not depend on which zeros are holes; short files are shown as they are."""
    status = os.fstat(descriptor)
    if status.st_size <= 32:
        return repr(os.pread(descriptor, 64, 0))
    digest = hashlib.blake2b(digest_size=12)
    read = 0
    for start, end in data_segments(descriptor):
        position = start - start % BLOCK
        while position < end:
            chunk = os.pread(descriptor, min(1 << 20, end - position), position)
            if not chunk:
                break
            read += len(chunk)
            if read > READ_LIMIT:
                return f"more than {READ_LIMIT} bytes that are not holes"
            for offset in range(0, len(chunk), BLOCK):
                block = chunk[offset : offset + BLOCK].rstrip(b"\0")
                if block:
                    digest.update((position + offset).to_bytes(8, "big") + len(block).to_bytes(4, "big") + block)
            position += len(chunk)
    return f"{status.st_size} bytes {digest.hexdigest()}"


def object_content(found: Found) -> str:
    """Digest of a regular file, target of a symbolic link, else nothing."""
    if stat.S_ISLNK(found.status.st_mode):
        return repr(os.readlink(found.name, dir_fd=found.directory))
    if not stat.S_ISREG(found.status.st_mode):
        return ""
    descriptor = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=found.directory)
    try:
        return content_digest(descriptor)
    finally:
        os.close(descriptor)


def attributes_of(path: bytes) -> dict[str, str]:
    """All extended attributes of one object (no link is followed); long values as digests."""
    values: dict[str, str] = {}
    for name in os.listxattr(path, follow_symlinks=False):
        value = os.getxattr(path, name, follow_symlinks=False)
        values[name] = (
            repr(value) if len(value) <= 64 else f"{len(value)} bytes {hashlib.blake2b(value).hexdigest()[:24]}"
        )
    return values


def path_below(directory: int, name: bytes) -> bytes:
    """A path for the calls that know no directory descriptor."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read_copy(root: bytes) -> tuple[dict[bytes, Copy], dict[int, set[bytes]]]:
    """One copy: its objects by path, and the paths of each inode."""
    objects: dict[bytes, Copy] = {}
    links: dict[int, set[bytes]] = defaultdict(set)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        top = Found(b".", directory, b".", os.fstat(directory))
        for found in itertools.chain([top], walk(directory)):
            if found.path == OWN_FOLDER or found.path.startswith(OWN_FOLDER + b"/"):
                continue
            status = found.status
            links[status.st_ino].add(found.path)
            attributes = attributes_of(path_below(found.directory, found.name))
            mode = status.st_mode
            objects[found.path] = Copy(
                kind=stat.filemode(mode)[0],
                mode=oct(stat.S_IMODE(mode)),
                owner=(status.st_uid, status.st_gid),
                size=status.st_size if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else None,
                device=status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None,
                modified_ns=status.st_mtime_ns,
                content=object_content(found),
                attributes={k: v for k, v in attributes.items() if not k.startswith(OWN_ATTRIBUTES)},
                identity=identity_of(attributes, "none"),
            )
    finally:
        os.close(directory)
    return objects, links


def compare_copies(
    source_dir_below: str, target_dir: str, *, times_of: str = "all", identities: bool = True
) -> list[str]:
    """Differences between the two copies of a stopped mirror, one line each; an empty list when there is none.

    Compares names, types, contents, sizes, permission bits, owners, device numbers, modification times, extended
    attributes (ACLs are among them), which names are hard links of one file, and that ``trusted.hotpair.id`` is
    present and equal on both sides. ``times_of`` is "all", "files" (regular files only) or "none".
    ``identities=False`` is for copies that no mirror has made.
    """
    source, source_links = read_copy(os.fsencode(source_dir_below))
    target, target_links = read_copy(os.fsencode(target_dir))
    differences = [f"only on the source: {path!r}" for path in sorted(source.keys() - target.keys())]
    differences += [f"only on the target: {path!r}" for path in sorted(target.keys() - source.keys())]
    for path in sorted(source.keys() & target.keys()):
        here, there = source[path], target[path]
        for field in Copy._fields:
            if field == "modified_ns" and (times_of == "none" or (times_of == "files" and here.kind != "-")):
                continue
            if field == "identity" and not identities:
                continue
            one, other = getattr(here, field), getattr(there, field)
            if one != other:
                differences.append(f"{path!r}: {field} is {one!r} on the source, {other!r} on the target")
        if identities and here.identity == "none":
            differences.append(f"{path!r}: no {IDENTITY_ATTRIBUTES[0]} on the source")
    groups = {frozenset(paths) for paths in source_links.values()}
    other_groups = {frozenset(paths) for paths in target_links.values()}
    differences += [
        f"hard links only on the source: {sorted(group)!r}" for group in groups - other_groups if len(group) > 1
    ]
    differences += [
        f"hard links only on the target: {sorted(group)!r}" for group in other_groups - groups if len(group) > 1
    ]
    return differences
