"""Waiting a moment for work that may block, in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(threads: Executor, work: Callable[[], T], limit_s: float) -> T:
    """Raises TimeoutError after `limit_s`; the work goes on."""
    done = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.shield(done)
    except TimeoutError:
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # seen, so not logged
        raise
