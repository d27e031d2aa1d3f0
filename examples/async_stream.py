"""asyncio: requests come from an async generator, results are read while it still runs, whichever ends first."""

import asyncio
from collections.abc import AsyncIterator

from tokenyard import AsyncClient


async def prompts() -> AsyncIterator[str]:
    """From wherever they come: a socket, a database, another model."""
    for number in range(1000):
        yield f"Write the number {number} in words."


async def main() -> None:
    ended = 0
    async with AsyncClient() as client:
        async for result in client.map(prompts(), batch="numbers", order="completion", max_tokens=16):
            ended += result.ok
        status = await client.status("numbers")
    print(f"{ended} answers, {status.output_tokens} tokens")


asyncio.run(main())
