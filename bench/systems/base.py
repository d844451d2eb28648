"""What every system under test offers to the benchmark."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

DATA = "data"  # the file that most workloads write to
COLD = "cold"  # read from the disk while others write
SPARSE = "sparse"  # very large, hardly anything in it


@dataclass(frozen=True)
class Abilities:
    """What a system can be measured with."""

    files: frozenset[str] = field(default=frozenset({DATA, COLD, SPARSE}))
    direct: bool = True
    engine: str = "libaio"


class System(Protocol):
    """A way to keep a directory, or one file, in two copies. Started once, measured many times, then stopped."""

    name: str
    abilities: Abilities

    def start(self, directory: Path) -> None:
        """Start everything in an empty work directory; raises BenchError when that fails."""

    def target(self, name: str) -> list[str]:
        """The arguments that make fio work on one of the files."""

    def create(self, name: str, size: int) -> None:
        """Make one of the files with this size, through the system."""

    def processes(self) -> dict[str, int]:
        """Every process of the system by a name for it. Empty when the kernel does it all."""

    def copies(self) -> list[Path]:
        """Where the copies are: two directories or two files that must be equal once stopped, or one."""

    def stop(self) -> None:
        """End everything, in order. Raises BenchError when a process had to be killed or failed."""

    def abandon(self) -> None:
        """End everything at once, whatever state it is in. Never raises; harmless when nothing runs."""
