"""What a client sees of a stream whose news get lost, come twice or come from two runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from cluster_fixtures import Cluster, ManualEngine, eventually
from gateway_fixtures import openai_of, scheduled_cluster, serving
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from broker.errors import RedisUnavailableError
from broker.job_record import batch_of
from broker.jobs import Delivery
from broker.store.client import NO_BOUNDS
from broker.throughput import Profile
from broker.token_news import TokenNews, news_text, parse_news
from tokenyard.gateway.chunks import BrokenStreamError, StreamWriter
from tokenyard.gateway.event_stream import Caller, EventStream
from tokenyard.gateway.live_job import LiveJob
from tokenyard.gateway.live_jobs import LiveJobs
from workers.engines.base import EngineRequest, EngineResponse, Tell
from workers.engines.simulated import SimulatedEngine, SimulatedOptions
from workers.token_feed import TokenFeed

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
SLOW = Profile(0.0, 0.0, 0.0, 0.01, 0.0, 0.0, kv_tokens=100_000, seats=8)


def piece(number: int, text: str, *, run: str = "1-0", end: str | None = None) -> TokenNews:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": end}
    return TokenNews("job", run, number, Raw(json.dumps([choice]).encode()))


def whole(text: str, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]}).encode()


def said(events: Sequence[bytes]) -> tuple[str, list[str]]:
    """Text and ends of some events."""
    choices = [c for event in events if event for c in json.loads(event.removeprefix(b"data: "))["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


class TestWriter:
    @given(
        parts=st.lists(st.text(max_size=5), min_size=1, max_size=8),
        data=st.data(),
    )
    def test_whatever_gets_lost_or_comes_twice_the_text_is_whole(self, parts: list[str], data: st.DataObject) -> None:
        ends = [None] * (len(parts) - 1) + ["stop"]
        news = [piece(n, text, end=end) for n, (text, end) in enumerate(zip(parts, ends, strict=True))]
        heard = data.draw(st.lists(st.sampled_from(range(len(news))), max_size=12).map(sorted))
        writer = StreamWriter(HEAD, chat=True)
        events = [writer.news(news[n]) for n in heard]
        events += writer.rest(whole("".join(parts)))
        assert said(events) == ("".join(parts), ["stop"])

    @given(first=st.text(max_size=6), final=st.text(max_size=6))
    def test_another_run_s_answer_is_gone_on_with_or_refused(self, first: str, final: str) -> None:
        writer = StreamWriter(HEAD, chat=True)
        events = [writer.news(piece(0, first, run="a")), writer.news(piece(0, final, run="b"))]
        if final.startswith(first):
            assert said([*events, *writer.rest(whole(final))]) == (final, ["stop"])
        else:
            with pytest.raises(BrokenStreamError):
                writer.rest(whole(final))

    def test_a_whole_answer_keeps_its_tool_calls(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        [event] = StreamWriter(HEAD, chat=True).rest(whole("", tool_calls=[call]))
        delta = json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]
        assert delta["tool_calls"] == [{"index": 0, **call}]
        assert delta["role"] == "assistant"

    @pytest.mark.parametrize(
        "raw", [b"1", b'"x"', b"[1]", b"[{}]", b'[{"index": "a"}]', b"{}", b'[{"index": 0, "delta": [1]}]']
    )
    def test_rubbish_says_nothing(self, raw: bytes) -> None:
        writer = StreamWriter(HEAD, chat=True)
        assert writer.news(TokenNews("job", "1-0", 0, Raw(raw))) == b""
        assert said(writer.rest(whole("all"))) == ("all", ["stop"])

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": 1}', b'{"choices": [{"index": 0, "message": "x"}]}'])
    def test_a_result_that_is_no_response_breaks_the_stream(self, body: bytes) -> None:
        with pytest.raises(BrokenStreamError):
            StreamWriter(HEAD, chat=True).rest(body)


class TestNews:
    def test_they_are_read_as_they_were_written(self) -> None:
        news = [piece(0, "a"), piece(1, "b")]
        read = parse_news({b"news": news_text(news)})
        assert [(n.job_id, n.run, n.number, bytes(n.choices)) for n in read] == [
            (n.job_id, n.run, n.number, bytes(n.choices)) for n in news
        ]

    @given(st.binary())
    def test_rubbish_is_no_news(self, raw: bytes) -> None:
        assert all(isinstance(news, TokenNews) for news in parse_news({b"news": raw}))
        assert parse_news({}) == []

    async def test_what_could_not_be_told_is_told_later_once(self) -> None:
        feed, told, down = TokenFeed(), list[int](), [True]
        tell = feed.teller(Delivery("1-0", "job", "b", "c", 1, "", "", "", b"", follow=True))

        async def send(batch_id: str, news: Sequence[TokenNews]) -> None:
            if down.pop() if down else False:
                raise ConnectionError
            told.extend(n.number for n in news)

        tell(b"[]")
        with pytest.raises(ConnectionError):
            await feed.flush(send)
        tell(b"[]")
        await asyncio.gather(feed.flush(send), feed.flush(send))
        assert told == [0, 1]
        assert not feed.some.is_set()


class Stuck:
    """A simulated engine that never ends an answer it has begun to tell."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.start, self.run, self.load, self.stop = engine.start, engine.run, engine.load, engine.stop

    async def run_telling(self, request: EngineRequest, tell: Tell) -> EngineResponse:
        tell(b'[{"index": 0, "delta": {"role": "assistant", "content": "sim "}, "finish_reason": null}]')
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("first", ["sim ", "other "])
async def test_a_worker_dies_under_a_stream(first: str, redis_url: str, pool: str, tmp_path: Path) -> None:
    """Another ends the job: the stream goes on where the answers begin alike, else it ends with an error."""
    async with scheduled_cluster(redis_url, pool) as cluster:
        engine = SimulatedEngine(SimulatedOptions(profile=SLOW, models=(cluster.model,)))
        stuck = Stuck(engine)
        if first == "other ":
            stuck.run_telling = _telling_other  # type: ignore[method-assign]
        dying = await cluster.join("dying", stuck)
        async with serving(cluster, tmp_path) as url, openai_of(url) as client:
            stream = await client.chat.completions.create(
                model=cluster.model,
                messages=[{"role": "user", "content": "Hi."}],
                max_tokens=4,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            texts = [(await anext(stream)).choices[0].delta.content]
            await _replace(cluster, dying)
            if first == "sim ":
                texts += [chunk.choices[0].delta.content async for chunk in stream]
                assert "".join(text or "" for text in texts) == "sim " * 4
            else:
                with pytest.raises(openai.APIError, match="lost"):
                    [chunk async for chunk in stream]


async def _telling_other(request: EngineRequest, tell: Tell) -> EngineResponse:
    tell(b'[{"index": 0, "delta": {"content": "other "}, "finish_reason": null}]')
    await asyncio.Event().wait()
    raise AssertionError


async def _replace(cluster: Cluster, dying: Any) -> None:
    """That worker leaves at once, another takes what it had."""
    await dying.stop(at_once=True)
    await cluster.join("other", SimulatedEngine(SimulatedOptions(profile=SLOW, models=(cluster.model,))))


async def test_who_still_waits_when_the_gateway_stops_is_told(redis_url: str, pool: str) -> None:
    async with scheduled_cluster(redis_url, pool) as cluster:
        engine = ManualEngine()
        await cluster.join("w", engine)
        live = LiveJobs(cluster.client, NO_BOUNDS)
        job = await live.submit(cluster.requests(1)[0], pool, "default")
        await eventually(lambda: engine.running)
        await live.close()
        assert await job.news() == []
        with pytest.raises(RedisUnavailableError, match="ask again"):
            await job.result
        await eventually(lambda: engine.aborted)
        assert live.waiting == 0


async def test_a_first_token_goes_ahead_of_others_later_ones(redis_url: str, pool: str) -> None:
    async with scheduled_cluster(redis_url, pool) as cluster:
        worker = await cluster.puppet()
        live = LiveJobs(cluster.client, NO_BOUNDS)
        jobs = [await live.submit(request, pool, "default", follow=True) for request in cluster.requests(70)]
        batch, ids = batch_of(jobs[0].job_id), [job.job_id for job in jobs]
        new, old = ids[-1], ids[:-1]
        await worker.tell_tokens(batch, [TokenNews(one, "1-0", n, Raw(b"[]")) for one in old for n in (0, 1)])
        for job in jobs[:-1]:
            heard = 0
            while heard < 2:
                heard += len(await job.news())
        told: list[str] = []

        async def listen(job: LiveJob) -> None:
            [piece] = await job.news()
            told.append(piece.job_id)

        listening = asyncio.gather(*(listen(job) for job in jobs))
        await asyncio.sleep(0)  # all wait
        await worker.tell_tokens(
            batch, [TokenNews(one, "1-0", n, Raw(b"[]")) for one, n in [*((one, 2) for one in old), (new, 0)]]
        )
        await listening
        assert told == [new, *old]
        for job in jobs:
            job.leave()
        await live.close()


async def test_what_came_meanwhile_is_one_piece(redis_url: str, pool: str) -> None:
    """Of three events that are there at once the caller gets all, in one send."""
    async with scheduled_cluster(redis_url, pool) as cluster:
        live = LiveJobs(cluster.client, NO_BOUNDS)
        await cluster.register_model()
        job = await live.submit(cluster.requests(1)[0], pool, "default", follow=True)
        sent: list[dict[str, Any]] = []

        async def never() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(dict(message))
            if len(sent) == 2:
                job.tell(piece(3, "d"))
                await live.close()

        news = [piece(n, text) for n, text in enumerate("abc")]
        stream = EventStream(job, Caller(never, job.wake), StreamWriter(HEAD, chat=True), news, with_usage=False)
        await stream({"type": "http"}, never, send)
        assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
        first, last = (message["body"] for message in sent[1:])
        assert said([event for event in first.split(b"\n\n") if event]) == ("abc", [])
        *events, error, _ = last.split(b"\n\n")
        assert said(events) == ("d", [])
        assert "ask again" in json.loads(error.removeprefix(b"data: "))["error"]["message"]
        assert not sent[-1]["more_body"]
