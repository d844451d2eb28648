"""Reads of what is not in the page cache: the right bytes at any place and of any length, also beside writes."""

import os
import random
import signal
import subprocess

import pytest

from tests.faults import equal_after_stop, healthy, on_mount
from tests.mirror_pair import MirrorPair, mounts_below

pytestmark = pytest.mark.timeout(120)

SIZE = (8 << 20) + 1234  # bytes; the end is in the middle of a block
SEED = 1

# Of each read: what a plain file would give. The backing file's cached pages are thrown away before each of them
READS = """
    import random
    draw, size, backing = random.Random(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    content = bytearray(random.Random(7).randbytes(size))
    f = os.open('file', os.O_RDWR)
    for number in range(400):
        offset = draw.randrange(size)
        offset = draw.choice((offset, offset & ~4095, size - draw.randrange(9000), size + 5))
        length = draw.choice((1, 511, 4096, 5000, 70_000, 1 << 20))
        if number % 5 == 0:
            start = max(0, min(offset + draw.randrange(-6000, 6000), size - 3000))
            data = draw.randbytes(3000)
            assert os.pwrite(f, data, start) == 3000
            content[start:start + 3000] = data
        elif number % 2:
            os.fsync(f)
            os.posix_fadvise(backing, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(f, length, offset) == content[offset:offset + length], (number, offset, length)
    print('right')
"""

READERS = """
    import random, threading
    draw, size = random.Random(3), int(sys.argv[1])
    content = random.Random(7).randbytes(size)
    def read(seed):
        draw, f = random.Random(seed), os.open('file', os.O_RDONLY)
        for _ in range(100):
            offset = draw.randrange(size - 8192) & ~511
            assert os.pread(f, 8192, offset) == content[offset:offset + 8192], offset
        done.append(seed)
    done = []
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(80)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(done))
"""


def filled(pair: MirrorPair) -> int:
    """A descriptor of the source's own copy, with the file's content in it and nothing of it in the page cache."""
    descriptor = os.open(pair.source_dir, os.O_PATH)
    with open(f"{pair.source_dir}/file", "wb") as file:
        file.write(random.Random(7).randbytes(SIZE))
    pair.start()
    backing = os.open("file", os.O_RDONLY, dir_fd=descriptor)
    os.fsync(backing)
    os.posix_fadvise(backing, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return backing


@pytest.mark.parametrize("cache", ["direct", "page"])
def test_any_place_and_length(cache: str) -> None:
    with MirrorPair(source_arguments=["--cache", cache]) as pair:
        backing = filled(pair)
        assert on_mount(pair, READS, SEED, SIZE, backing, pass_fds=[backing]) == "right\n"
        os.close(backing)
        healthy(pair)
        equal_after_stop(pair)


def test_more_readers_than_requests_can_be_held() -> None:
    with MirrorPair() as pair:
        backing = filled(pair)
        assert on_mount(pair, READERS, SIZE) == "80\n"
        os.close(backing)
        healthy(pair)
        equal_after_stop(pair)


def test_a_file_system_that_cannot_say_what_is_cached() -> None:
    """tmpfs, for example, has no reads that do not wait."""
    with MirrorPair() as pair:
        for directory in (pair.source_dir, pair.target_dir):  # taken away with the pair
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
        pair.start()
        code = "open('file', 'wb').write(b'x' * 5000); print(open('file', 'rb').read() == b'x' * 5000)"
        assert on_mount(pair, code).split() == ["True"]
        healthy(pair)
        assert pair.source is not None
        pair.source.signal(signal.SIGTERM)
        assert pair.source.wait_end(30.0) == 0
        mounted = [kind for point, kind, _ in mounts_below(pair.source_dir) if point == pair.source_dir]
        assert mounted == ["tmpfs"], "what was mounted there before is not the mirror's to take away"
