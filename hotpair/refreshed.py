"""A value that takes long to get, for askers who cannot wait: the last one is given while a new one is on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Refreshed(Generic[T]):
    """`make` gets it; one call at a time. Times in seconds."""

    def __init__(
        self,
        make: Callable[[], Awaitable[T]],
        *,
        fresh_s: float,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._wait_s = wait_s
        self._clock = clock
        self._last: tuple[T, float] | None = None
        self._task: asyncio.Task[None] | None = None

    async def get(self) -> tuple[T, float] | None:
        """The value and its age, after `wait_s` at the latest; None when there was none in that time.

        What `make` raises is raised here, if it is still being waited for.
        """
        last = self._last
        if last is None or self._clock() - last[1] > self._fresh_s:
            task = self._task
            if task is None or task.done():
                task = self._task = asyncio.get_running_loop().create_task(self._make_again())
            done, _ = await asyncio.wait({task}, timeout=self._wait_s)
            for one in done:
                one.result()
            last = self._last
        return None if last is None else (last[0], self._clock() - last[1])

    async def _make_again(self) -> None:
        asked_at = self._clock()  # what changes while it is on its way may not be in it
        self._last = (await self._make(), asked_at)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
