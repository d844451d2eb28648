"""What fio does to each system.

Writes of up to 64 KiB go to the first half of the file `data`, writes of 1 MiB to the second: after a large write the
page cache of ext4 keeps large folios, and each 4 KiB write into one of those walks a list of up to 512 buffer heads.
That would measure ext4, and hide more of the differences the faster a system is.
"""

from dataclasses import dataclass

from bench.systems.base import COLD, DATA, SPARSE, Abilities

MIB = 1 << 20
GIB = 1 << 30
READERS = 16
BLOCK_BYTES = 4096  # the smallest that is written
EXTENT_BYTES = 4 * MIB  # what one mark of the dirty log covers


@dataclass(frozen=True)
class Sizes:
    """Sizes of the files, in bytes."""

    data: int = 512 * MIB
    cold: int = 2 * GIB
    sparse: int = 100 * GIB
    resync: int = 4 * GIB


QUICK_SIZES = Sizes(cold=GIB, resync=GIB)


@dataclass(frozen=True)
class Workload:
    """One measured job named `main`; beside it, where `readers` is set, that many cold readers named `readers`."""

    name: str
    title: str
    options: tuple[str, ...]
    file: str = DATA
    readers: int = 0

    def files(self) -> frozenset[str]:
        return frozenset({self.file, COLD} if self.readers else {self.file})

    def fits(self, abilities: Abilities) -> bool:
        return self.files() <= abilities.files


def _writes(size: str, depth: int, *more: str) -> tuple[str, ...]:
    return ("--rw=randwrite", f"--bs={size}", f"--iodepth={depth}", *more)


_SMALL = ("--offset=0", "--size=256m")
_LARGE = ("--offset=256m", "--size=256m")

WORKLOADS = (
    Workload("4k-qd1", "4 KiB random writes, depth 1", (*_writes("4k", 1), *_SMALL)),
    Workload("4k-qd16", "4 KiB random writes, depth 16", (*_writes("4k", 16), *_SMALL)),
    Workload("4k-qd32", "4 KiB random writes, depth 32", (*_writes("4k", 32), *_SMALL)),
    Workload("64k-qd8", "64 KiB random writes, depth 8", (*_writes("64k", 8), *_SMALL)),
    Workload("1m-qd8", "1 MiB sequential writes, depth 8", ("--rw=write", "--bs=1m", "--iodepth=8", *_LARGE)),
    Workload(
        "mixed-qd16",
        "4 KiB random, 70 % reads, depth 16",
        ("--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=16", *_SMALL),
    ),
    Workload("fsync", "4 KiB random write, then fsync", (*_writes("4k", 1, "--fsync=1"), *_SMALL)),
    Workload(
        "4k-qd1-readers", "4 KiB writes, depth 1, beside 16 cold readers", (*_writes("4k", 1), *_SMALL), readers=READERS
    ),
    Workload("sparse-qd16", "4 KiB random writes over 100 GiB, depth 16", _writes("4k", 16), file=SPARSE),
)


def global_options(abilities: Abilities, seconds: float) -> list[str]:
    """What all timed jobs share. `lat` percentiles: from submission to completion, whoever does the work."""
    return [
        *(f"--ioengine={abilities.engine}", f"--direct={int(abilities.direct)}"),
        *("--time_based", f"--runtime={seconds * 1000:.0f}ms", "--norandommap", "--randrepeat=0", "--invalidate=0"),
        *("--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"),
    ]


def reader_options(count: int, seed: int) -> list[str]:
    """The jobs that read what is not cached, added up in one report."""
    return [
        *("--name=readers", "--rw=randread", "--bs=4k", "--iodepth=1", f"--numjobs={count}"),
        *("--new_group", "--group_reporting", f"--randseed={seed}"),
    ]


def fill_options(abilities: Abilities, name: str, size: int) -> list[list[str]]:
    """Write a file once, untimed; the part that is written in small pieces not in large ones (see above).

    Of the sparse file each extent is touched.
    """
    common = [f"--ioengine={abilities.engine}", f"--direct={int(abilities.direct)}", "--name=fill"]
    common += ["--invalidate=0", "--refill_buffers"]
    large = ["--rw=write", "--bs=1m", "--iodepth=8"]
    if name == SPARSE:  # one write to each extent: as with the other file, the first touch of each is behind it
        rest_kib, touched = (EXTENT_BYTES - BLOCK_BYTES) >> 10, size // EXTENT_BYTES * BLOCK_BYTES
        steps = [f"--rw=write:{rest_kib}k", f"--bs={BLOCK_BYTES}", "--iodepth=16"]
        return [[*common, *steps, f"--size={size}", f"--io_size={touched}"]]
    if name != DATA:
        return [[*common, *large, f"--size={size}"]]
    return [[*common, "--rw=write", "--bs=16k", "--iodepth=16", *_SMALL], [*common, *large, *_LARGE]]


def verify_options(abilities: Abilities) -> list[list[str]]:
    """Jobs of their own, untimed: write blocks that carry their own checksum, then read them all and check."""
    common = [
        *(f"--ioengine={abilities.engine}", f"--direct={int(abilities.direct)}", "--name=verify", "--rw=randwrite"),
        *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--invalidate=0", "--size=32m"),
    ]
    return [
        [*common, "--bs=4k", "--iodepth=32", "--offset=0"],
        [*common, "--bs=64k", "--iodepth=8", "--offset=64m"],
        [*common, "--bs=1m", "--iodepth=8", "--offset=256m"],
    ]
