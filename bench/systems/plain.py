"""The file system below all the others, through its page cache as they all use it."""

import os
from pathlib import Path

from bench.systems.base import Abilities


class Plain:
    name = "plain"
    abilities = Abilities(direct=False)

    def start(self, directory: Path) -> None:
        self._directory = directory / "files"
        self._directory.mkdir()

    def target(self, name: str) -> list[str]:
        return [f"--filename={self._directory / name}"]

    def create(self, name: str, size: int) -> None:
        with (self._directory / name).open("xb") as file:
            os.truncate(file.fileno(), size)

    def processes(self) -> dict[str, int]:
        return {}

    def copies(self) -> list[Path]:
        return [self._directory]

    def stop(self) -> None:
        pass

    def abandon(self) -> None:
        pass
