"""Submitting and reading at once: prompts in, results out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cluster_fixtures import Cluster, ManualEngine, eventually
from python_client import all_of, client_fixture, cluster_fixture, serve

from tokenyard import AsyncClient
from tokenyard.client import RequestError
from tokenyard.client.items import position_of

#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]


class TestMap:
    async def test_the_results_of_prompts_in_their_order(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        results = await all_of(client.map((f"prompt {number}" for number in range(600)), max_tokens=4))
        assert [position_of(result.custom_id) for result in results] == list(range(600))
        assert all(result.ok for result in results)

    async def test_nothing_in_nothing_out(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()
        assert await all_of(client.map([])) == []

    async def test_results_come_while_more_is_submitted(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        first = asyncio.Event()

        async def prompts() -> AsyncIterator[str]:
            for number in range(250):
                yield f"prompt {number}"
            await first.wait()
            yield "the last"

        count = 0
        async for _ in client.map(prompts()):
            first.set()
            count += 1
        assert count == 251

    async def test_the_same_key_again_runs_nothing_twice(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        key = f"step-{cluster.settings.pool}"
        first = await all_of(client.map(["a", "b"], batch=key))
        grown = await all_of(client.map(["a", "b", "c"], batch=key))
        assert grown[:2] == first
        assert len(grown) == 3
        assert (await client.status(key)).total == 3

    async def test_results_of_an_earlier_input_are_not_handed_out(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        key = f"step-{cluster.settings.pool}"
        first = await all_of(client.map(["a", "b", "c"], batch=key))
        changed = await all_of(client.map(["a", "x", "c"], batch=key))
        assert [result == old for result, old in zip(changed, first, strict=True)] == [True, False, True]

    async def test_left_early_it_cancels_what_nobody_could_find(self, cluster: Cluster, client: AsyncClient) -> None:
        engine = ManualEngine(seats=4)
        await cluster.join("w", engine)
        cluster.schedule()
        results = client.map(["a", "b", "c"])
        reading = asyncio.ensure_future(anext(results))
        await eventually(lambda: len(engine.running) == 3)
        engine.finish(3)
        await reading
        await results.aclose()
        [batch] = await cluster.monitor.batches()
        assert (await client.status(batch)).state in ("cancelled", "complete")
        keyed = client.map(["a", "b"], batch=f"step-{cluster.settings.pool}")
        reading = asyncio.ensure_future(anext(keyed))
        await eventually(lambda: len(engine.running) == 2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (await client.status(f"step-{cluster.settings.pool}")).state in ("open", "running")

    async def test_an_item_that_is_none_ends_it(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()
        items: list[Any] = [*["x"] * 250, 7]
        with pytest.raises(RequestError, match="item 250 is of type int"):
            await all_of(client.map(items))
        [batch] = await cluster.monitor.batches()
        assert (await client.status(batch)).state == "cancelling"
