"""The mirror's hot loop in C (bench/c_loop.c), compiled here."""

import os
from pathlib import Path

from bench.mounts import unmount
from bench.process import BenchError, Child, command
from bench.systems.base import DATA, SPARSE, Abilities
from bench.systems.ports import free_port

SOURCE_CODE = Path(__file__).resolve().parent.parent / "c_loop.c"


class CLoop:
    name = "c-loop"
    # It reads in its only thread: no measure of reading from the disk beside writes.
    abilities = Abilities(files=frozenset({DATA, SPARSE}))

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}

    def start(self, directory: Path) -> None:
        program = directory / "c_loop"
        command("cc", "-O2", "-o", program, SOURCE_CODE)
        self._first, self._second, self._mount = directory / "first", directory / "second", directory / "mount"
        for each in (self._first, self._second, self._mount):
            each.mkdir()
        address = f"127.0.0.1:{free_port()}"
        self._run("target", directory, [program, "target", "--dir", self._second, "--listen", address])
        source: list[str | Path] = [program, "source", "--dir", self._first, "--mount", self._mount, "--peer", address]
        self._run("source", directory, source)

    def _run(self, role: str, directory: Path, arguments: list[str | Path]) -> None:
        self._children[role] = Child(arguments, directory / role, directory)
        self._children[role].wait_ready()

    def target(self, name: str) -> list[str]:
        return [f"--filename={self._mount / name}"]

    def create(self, name: str, size: int) -> None:
        with (self._mount / name).open("xb") as file:
            os.truncate(file.fileno(), size)

    def processes(self) -> dict[str, int]:
        return {role: child.pid for role, child in self._children.items()}

    def copies(self) -> list[Path]:
        return [self._first, self._second]

    def stop(self) -> None:
        for role in ("source", "target"):
            if code := self._children[role].stop():
                raise BenchError(f"c_loop {role} ended with {code}: {self._children[role].last_words()}")

    def abandon(self) -> None:
        for child in self._children.values():
            child.kill()
        if self._children:
            unmount(self._mount)
