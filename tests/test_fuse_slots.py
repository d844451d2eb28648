"""The buffers that requests are taken into: a page that is missing when a process is killed costs a writer EIO."""

from __future__ import annotations

import os
import struct

from hotpair.replication.fuse_io import SLOT_SIZE, Slot, make_slots
from hotpair.replication.limits import PAGE, READY_BYTES, WHOLE_SLOTS

PRESENT = 1 << 63  # of an entry in /proc/PID/pagemap (proc(5))


def pages_there(slot: Slot, size: int) -> int:
    """How many of the pages at its beginning have memory behind them."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), size // PAGE * 8, slot.address // PAGE * 8)
    return sum(bool(entry & PRESENT) for (entry,) in struct.iter_unpack("=Q", data))


def test_what_most_requests_fill_is_there_before_the_first_one() -> None:
    slots = make_slots()
    assert all(slot.address % PAGE == 0 for slot in slots)
    for slot in slots:
        assert pages_there(slot, PAGE + READY_BYTES) == 1 + READY_BYTES // PAGE
    taken_first = [slots.pop() for _ in range(WHOLE_SLOTS)]
    assert [pages_there(slot, SLOT_SIZE) for slot in taken_first] == [SLOT_SIZE // PAGE] * WHOLE_SLOTS


def test_the_rest_costs_nothing_before_it_is_used() -> None:
    slots = make_slots()
    assert sum(pages_there(slot, SLOT_SIZE) for slot in slots) * PAGE < 16 << 20
