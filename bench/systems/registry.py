"""Every system under test by its name; each has a file of its own beside this one."""

from collections.abc import Callable

from bench.systems.base import System
from bench.systems.c_loop import CLoop
from bench.systems.gluster import Gluster
from bench.systems.hotpair import Hotpair
from bench.systems.plain import Plain
from bench.systems.qemu import Qemu
from bench.workloads import Sizes


def factories(sizes: Sizes) -> dict[str, Callable[[], System]]:
    """How to make each system, by its name, in the order in which they are measured."""
    return {
        "plain": Plain,
        "qemu": lambda: Qemu(sizes.data),
        "gluster": Gluster,
        "c-loop": CLoop,  # beside hotpair: the machine is the same minute's for both
        "hotpair": lambda: Hotpair(sparse_bytes=sizes.sparse),
        "hotpair-tls": lambda: Hotpair(tls=True),
    }
