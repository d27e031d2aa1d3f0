"""The Python client without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_fixtures import Cluster
from python_client import cluster_fixture, serve

from broker.errors import RedisUnavailableError, UnknownBatchError, UsageError
from tokenyard import Client
from tokenyard.client import RequestError
from tokenyard.client.items import position_of

#: pytest finds it among the module's names.
__all__ = ["cluster_fixture"]


class TestSync:
    async def test_it_does_the_same(self, cluster: Cluster) -> None:
        await serve(cluster)
        key = f"step-{cluster.settings.pool}"

        def work() -> None:
            with Client(cluster.url, model=cluster.model, durable=False) as client:
                prompts: Iterator[str] = (f"prompt {number}" for number in range(600))
                report = client.submit(prompts, batch=key)
                assert (report.accepted, report.batch) == (600, key)
                results = list(client.results(key, order="input"))
                assert [position_of(r.custom_id) for r in results] == list(range(600))
                assert len(list(client.results(key))) == 600
                assert client.status(key).complete
                assert [r.ok for r in client.map(["a", "b"])] == [True, True]
                left = client.map(["a", "b"])
                next(left)
                left.close()
            with pytest.raises(UsageError, match="the client is closed"):
                client.status(key)
            client.close()

        await asyncio.to_thread(work)

    async def test_a_map_hands_out_results_while_its_input_goes_on(self, cluster: Cluster) -> None:
        """The input ends only because a result was handed out; and what comes is neither lost nor out of order."""
        await serve(cluster)
        seen: list[int | None] = []
        taken = 0

        def prompts() -> Iterator[str]:
            nonlocal taken
            while not seen and taken < 200_000:
                yield f"prompt {taken}"
                taken += 1
            for _ in range(300):
                yield f"prompt {taken}"
                taken += 1

        def work() -> None:
            with Client(cluster.url, model=cluster.model, durable=False) as client:
                results = client.map(prompts())
                seen.append(position_of(next(results).custom_id))
                seen.extend(position_of(result.custom_id) for result in results)

        await asyncio.to_thread(work)
        assert taken < 200_000
        assert seen == list(range(taken))

    async def test_a_map_of_a_key_that_was_there_reads_when_all_is_submitted(self, cluster: Cluster) -> None:
        await serve(cluster)
        key = f"step-{cluster.settings.pool}"
        prompts = [f"prompt {number}" for number in range(600)]

        def work() -> None:
            with Client(cluster.url, model=cluster.model, durable=False) as client:
                first = list(client.map(prompts[:300], batch=key))
                grown = list(client.map(prompts, batch=key, order="completion"))
                assert {r.custom_id for r in first} < {r.custom_id for r in grown}
                assert len({r.custom_id for r in grown}) == len(grown) == client.status(key).total == 600

        await asyncio.to_thread(work)

    async def test_a_map_fails_with_its_input(self, cluster: Cluster) -> None:
        """Also while results come; and what nobody could find is cancelled."""
        await serve(cluster)

        def prompts() -> Iterator[Any]:
            yield from (f"prompt {number}" for number in range(1000))
            yield 7

        def work() -> None:
            with Client(cluster.url, model=cluster.model, durable=False) as client:
                with pytest.raises(RequestError, match="item 1000 is of type int"):
                    list(client.map(prompts()))
                own = [{"custom_id": f"r{number}", "prompt": "x"} for number in range(600)]
                with pytest.raises(UsageError, match="tells no order"):
                    list(client.map(own))
                names = [str(item["custom_id"]) for item in own]
                assert [r.custom_id for r in client.map(own, order=names)] == names

        await asyncio.to_thread(work)

    async def test_leaving_a_map_cancels_it(self, cluster: Cluster) -> None:
        await cluster.register_model()

        def broken() -> Iterator[str]:
            yield from ["x"] * 250
            raise ZeroDivisionError

        def work() -> str:
            with Client(cluster.url, model=cluster.model, durable=False) as client:
                with pytest.raises(ZeroDivisionError):
                    list(client.map(broken()))
                with pytest.raises(UnknownBatchError):
                    client.cancel("nothing")
            with pytest.raises(RedisUnavailableError):
                Client("unix:///no/such.sock")
            return ""

        await asyncio.to_thread(work)
        [batch] = await cluster.monitor.batches()
        assert (await cluster.client.counts(batch)).state == "cancelled"
