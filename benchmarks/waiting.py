"""Waiting until something is so, where nobody tells: for benchmarks, and for tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until_true(look: Callable[[], Any], timeout_s: float, pause_s: float = 0.01) -> Any:
    """Look (a function, or one that returns an awaitable) every ``pause_s`` seconds; return the first true thing seen.

    Raises:
        TimeoutError: nothing was within ``timeout_s`` seconds.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            seen = look()
            if inspect.isawaitable(seen):
                seen = await seen
            if seen:
                return seen
            await asyncio.sleep(pause_s)
