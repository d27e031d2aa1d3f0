"""The Python client against a running cluster: submit, read, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cluster_fixtures import Cluster, ManualEngine, eventually
from python_client import all_of, client_fixture, cluster_fixture, serve

from broker.errors import RedisUnavailableError, UnknownBatchError, UsageError
from broker.jobs import job_id
from tokenyard import AsyncClient
from tokenyard.client import RequestError
from tokenyard.client.batch_result import RequestFailedError
from tokenyard.client.items import made_id, position_of

#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]


class TestSubmit:
    async def test_any_iterable_is_queued_and_sealed(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()

        async def asynchronous() -> AsyncIterator[str]:
            for number in range(600):
                yield f"prompt {number}"

        report = await client.submit(asynchronous())
        assert (report.accepted, report.known) == (600, 0)
        status = await client.status(report.batch)
        assert (status.state, status.total, status.complete) == ("running", 600, False)

    async def test_the_same_key_again_queues_only_what_is_new(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()
        key = f"step-{cluster.settings.pool}"
        prompts = [f"prompt {number}" for number in range(10)]
        first = await client.submit(prompts[:6], batch=key, seal=False)
        assert (await client.status(key)).state == "open"
        again = await client.submit(prompts, batch=key)
        assert (first.batch, first.accepted, again.accepted, again.known) == (key, 6, 4, 6)
        assert (await client.status(key)).total == 10

    async def test_what_cannot_run_stops_it_and_the_corrected_input_goes_on(
        self, cluster: Cluster, client: AsyncClient
    ) -> None:
        await cluster.register_model()
        key = f"step-{cluster.settings.pool}"
        items: list[Any] = [{"custom_id": f"r{i}", "prompt": "x"} for i in range(300)]
        with pytest.raises(RequestError, match="item 280: no pool serves model 'odd'"):
            await client.submit([*items[:280], {"prompt": "x", "model": "odd"}], batch=key)
        with pytest.raises(RequestError, match="item 300: custom_id 'r3' is that of item 3"):
            await client.submit([*items, {"custom_id": "r3", "prompt": "y"}], batch=key)
        assert (await client.status(key)).state == "open"
        report = await client.submit(items, batch=key)
        assert report.accepted + report.known == (await client.status(key)).total == 300

    async def test_a_cancelled_submission_goes_on(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()
        key = f"step-{cluster.settings.pool}"
        prompts = [f"prompt {number}" for number in range(700)]
        stuck = asyncio.Event()

        async def slow() -> AsyncIterator[str]:
            for prompt in prompts[:550]:
                yield prompt
            stuck.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(client.submit(slow(), batch=key))
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        report = await client.submit(prompts, batch=key)
        assert report.accepted + report.known == (await client.status(key)).total == 700
        assert report.known == 500

    @pytest.mark.parametrize("key", ["", "a b", "input_x", "x" * 101, "a/b", "ü"])
    async def test_a_key_that_is_none_is_refused(self, client: AsyncClient, key: str) -> None:
        with pytest.raises(UsageError, match="use up to 100 letters"):
            await client.submit(["x"], batch=key)

    async def test_a_priority_that_is_none_is_refused(self, cluster: Cluster, client: AsyncClient) -> None:
        with pytest.raises(UsageError, match="use high, normal or low"):
            await client.submit(["x"], priority="urgent")
        await cluster.register_model()
        await client.submit(["x"], priority="high")
        assert (await cluster.monitor.waiting())["high"] == 1


class TestResults:
    async def test_they_come_in_the_order_of_the_input(self, cluster: Cluster, client: AsyncClient) -> None:
        engine = ManualEngine(seats=8)
        await cluster.join("w", engine)
        cluster.schedule()
        report = await client.submit([f"prompt {number}" for number in range(8)])
        await eventually(lambda: len(engine.running) == 8)
        read = asyncio.ensure_future(all_of(client.results(report.batch, order="input")))
        engine.finish(3)
        engine.finish(1, status_code=400)
        await cluster.finish(report.batch, engine)
        results = await read
        assert [position_of(result.custom_id) for result in results] == list(range(8))
        assert sum(result.ok for result in results) == 7
        ended = await all_of(client.results(report.batch))
        assert sorted(ended, key=lambda r: r.custom_id) == sorted(results, key=lambda r: r.custom_id)

    async def test_more_than_are_kept_whole_are_read_again(
        self, cluster: Cluster, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tokenyard.client.reading._KEPT", 5)
        await serve(cluster)
        batch = f"step-{cluster.settings.pool}"
        items = [{"custom_id": made_id(number, b"x"), "prompt": "x"} for number in range(450)]
        await client.submit(items[::-1], batch=batch)
        results = await all_of(client.results(batch, order="input"))
        assert [position_of(result.custom_id) for result in results] == list(range(450))

    async def test_own_ids_come_in_the_order_that_is_given(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        names = [f"r{number}" for number in range(450)]
        report = await client.submit([{"custom_id": name, "prompt": "x"} for name in names])
        order = [*reversed(names), "r7"]
        assert [r.custom_id async for r in client.results(report.batch, order=order)] == order
        with pytest.raises(UsageError, match="ended without a request 'strange'"):
            await all_of(client.results(report.batch, order=["r1", "strange"]))
        with pytest.raises(UsageError, match=r"tells no order: give the custom_ids"):
            await all_of(client.results(report.batch, order="input"))

    async def test_an_outage_is_waited_through(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        prompts = [f"prompt {number}" for number in range(600)]
        batch = (await client.submit(prompts[:500], seal=False)).batch
        seen = 0
        async for _ in client.results(batch):
            seen += 1
            if seen == 500:  # all connections end, also the one that the reader waits on
                await cluster.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await client.submit(prompts, batch=batch)
        assert seen == 600

    async def test_one_that_is_not_there_is_named(self, client: AsyncClient) -> None:
        for look in (client.status("nothing"), client.cancel("nothing"), all_of(client.results("nothing"))):
            with pytest.raises(UnknownBatchError, match="no batch nothing"):
                await look

    async def test_nobody_at_that_address_is_one_clear_error(self) -> None:
        with pytest.raises(RedisUnavailableError, match="is it running"):
            async with AsyncClient("unix:///no/such.sock"):
                pass

    async def test_what_is_forged_is_not_followed(self, cluster: Cluster, client: AsyncClient) -> None:
        await serve(cluster)
        report = await client.submit([{"custom_id": name, "prompt": "x"} for name in "ab"])
        await all_of(client.results(report.batch))
        short = job_id(report.batch, "b").rpartition(".")[2]
        await cluster.write(cluster.keys.ended(report.batch), **{short: "- +"})
        with pytest.raises(UsageError, match="without a request 'b'"):
            await all_of(client.results(report.batch, order=["a", "b"]))


class TestCancel:
    async def test_some_requests_and_then_all(self, cluster: Cluster, client: AsyncClient) -> None:
        await cluster.register_model()
        report = await client.submit([{"custom_id": name, "prompt": "x"} for name in "abc"])
        assert (await client.cancel(report.batch, ["b"])).cancelled == 1
        assert (await client.cancel(report.batch)).state == "cancelling"
        cluster.schedule()
        results = await all_of(client.results(report.batch))
        assert {result.error_code for result in results} == {"batch_cancelled"}
        assert (await client.status(report.batch)).state == "cancelled"
        with pytest.raises(RequestFailedError, match="was cancelled"):
            results[0].check()
