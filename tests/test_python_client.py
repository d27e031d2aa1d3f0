"""The Python client against a running cluster: submit, read, map, repeat, leave early; sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import RedisUnavailableError, UnknownBatchError, UsageError
from broker.jobs import job_id
from broker.openai_batch import RequestLine
from tokenyard import AsyncClient, Client
from tokenyard.client import BatchResult, RequestError
from tokenyard.client.batch_result import RequestFailedError
from tokenyard.client.input_order import InputOrder, Place
from tokenyard.client.items import RequestMaker, made_id, only_model, position_of


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.url, model=cluster.model, durable=False) as client:
        yield client


async def serve(cluster: Cluster) -> None:
    """A worker that ends requests at once."""
    await cluster.join("w", instant_engine(cluster.model))
    cluster.schedule()


async def all_of(results: AsyncIterator[BatchResult]) -> list[BatchResult]:
    return [result async for result in results]


class TestItems:
    def body(self, item: Any, **options: Any) -> tuple[RequestLine, dict[str, Any]]:
        request = RequestMaker("m", **options).request(3, item)
        return request, msgspec.json.decode(request.body)

    def test_a_prompt_becomes_a_chat(self) -> None:
        request, body = self.body("Hi.", system="Be short.", parameters={"max_tokens": 7})
        assert (request.url, request.model, request.max_tokens) == ("/v1/chat/completions", "m", 7)
        system, user = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi."}
        assert body == {"model": "m", "max_tokens": 7, "messages": [system, user]}
        assert request.custom_id == made_id(3, request.body)

    @pytest.mark.parametrize(
        ("item", "url"),
        [
            ({"messages": []}, "/v1/chat/completions"),
            ({"prompt": "x"}, "/v1/completions"),
            ({"input": "x"}, "/v1/embeddings"),
        ],
    )
    def test_the_field_of_a_body_tells_its_endpoint(self, item: dict[str, Any], url: str) -> None:
        request, body = self.body({**item, "custom_id": "mine", "model": "own"})
        assert (request.url, request.custom_id, request.model) == (url, "mine", "own")
        assert body == {**item, "model": "own"}

    def test_a_line_of_a_batch_file_stays_as_it_is_and_what_it_says_wins(self) -> None:
        line = {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2}}
        request, body = self.body(line, parameters={"max_tokens": 9, "temperature": 0})
        assert (request.custom_id, request.url) == ("q", "/v1/completions")
        assert body == {"model": "m", "prompt": "x", "max_tokens": 2, "temperature": 0}

    @pytest.mark.parametrize(
        ("item", "said"),
        [
            (7, "item 3 is of type int: give a prompt"),
            ({"messages": "no list"}, "item 3: body.messages must be a list"),
            ({"custom_id": 5, "prompt": "x"}, "item 3: custom_id must be a text"),
            ({"prompt": "x", "stream": True}, "item 3: body.stream cannot be used"),
            ({"prompt": object()}, "item 3 cannot be written as JSON"),
            ({"url": "/v1/odd", "body": {"prompt": "x"}}, "item 3: url '/v1/odd' is unknown"),
        ],
    )
    def test_what_is_no_request_is_named(self, item: Any, said: str) -> None:
        with pytest.raises(RequestError, match=said):
            RequestMaker("m").request(3, item)

    def test_a_request_without_a_model(self) -> None:
        assert only_model({"b": "pool", "a": "pool"}) == "a"
        assert only_model({"a": "pool", "b": "other"}) == only_model({}) == ""
        for item in ("x", {"prompt": "x"}, {"custom_id": "q", "url": "/v1/completions", "body": {"prompt": "x"}}):
            with pytest.raises(RequestError, match="item 3 names no model, and not just one is served: give model="):
                RequestMaker("").request(3, item)

    def test_a_made_id_changes_with_place_and_content_and_nothing_else(self) -> None:
        maker = RequestMaker("m")
        ids = [maker.request(at, text).custom_id for at in (0, 1) for text in ("a", "b")]
        assert len(set(ids)) == 4
        assert ids == [maker.request(at, text).custom_id for at in (0, 1) for text in ("a", "b")]
        assert [position_of(name) for name in ids] == [0, 0, 1, 1]

    @pytest.mark.parametrize("name", ["q1", "7", "7-abc", "x7-0123456789ab", "7-0123456789ab-", "-0123456789ab"])
    def test_other_ids_name_no_position(self, name: str) -> None:
        assert position_of(name) is None


@given(st.permutations(range(30)), st.sets(st.integers(0, 29)), st.integers(1, 7))
def test_places_come_in_order_none_before_its_turn(came: list[int], gaps: set[int], limit: int) -> None:
    order = InputOrder()
    given_out: list[int] = []
    there: set[int] = set()
    for position in came:
        if position in gaps:
            continue
        order.add(Place(position, "p", "1-1"))
        there.add(position)
        while due := order.due(limit):
            assert len(due) <= limit
            given_out += [place.position for place in due]
        assert set(range(given_out[-1] + 1) if given_out else ()) <= there  # nobody overtook one that is to come
        turn = len(given_out)
        assert turn not in there or turn in gaps
    while due := order.due(limit, is_end=True):
        given_out += [place.position for place in due]
    assert given_out == sorted(there)
    assert len(order) == 0


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


class TestResultValues:
    def result(self, body: Any, status_code: int = 200) -> BatchResult:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return BatchResult("q", status_code, raw, "", "", 1, 2, "w", 1, "b.x")

    def test_text_and_embedding(self) -> None:
        assert self.result({"choices": [{"message": {"content": "Paris"}}]}).text == "Paris"
        assert self.result({"choices": [{"text": "Paris"}]}).text == "Paris"
        assert self.result({"data": [{"embedding": [0.5]}]}).embedding == [0.5]

    @pytest.mark.parametrize("body", [b"", b"no json", b"\xff", {}, [], {"choices": []}, {"choices": [{"message": 1}]}])
    def test_where_there_is_none(self, body: Any) -> None:
        result = self.result(body)
        assert (result.text, result.embedding) == (None, None)

    def test_a_failure_says_why(self) -> None:
        failed = self.result({"error": {"message": "too long"}}, 400)
        assert "400" in failed.why
        assert "too long" in failed.why
        with pytest.raises(RequestFailedError, match=r"tokenyard explain b\.x"):
            failed.check()
        assert self.result({}).check().why == ""
