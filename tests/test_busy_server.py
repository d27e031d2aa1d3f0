"""A server that is too busy (429, 503) is waited for: no engine is started again, no job is charged an attempt."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from attached_server import GOOD, attached, chat, serving
from cluster_fixtures import Cluster, cluster_of, eventually, exactly_once
from hypothesis import example, given
from hypothesis import strategies as st

from workers.engines.back_pressure import LONGEST_RETRY_AFTER_S, BackPressure, retry_after_s
from workers.engines.base import EngineUnavailableError
from workers.engines.openai import OpenAIEngine, OpenAIOptions

QUICK: dict[str, Any] = {"busy_first_s": 0.001, "busy_longest_s": 0.01}


def pressure(patience_s: float = 100.0, seed: int = 0) -> BackPressure:
    return BackPressure(first_s=0.5, longest_s=15.0, patience_s=patience_s, rng=random.Random(seed))


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "7"}, 7.0),
            ({"retry-after": "0"}, 0.0),
            ({"retry-after": "86400"}, LONGEST_RETRY_AFTER_S),
            ({"retry-after": "inf"}, LONGEST_RETRY_AFTER_S),
            ({"retry-after": "-1"}, None),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "soon"}, None),
            ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
            ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ],
    )
    def test_what_a_server_asks_for(self, headers: Mapping[str, str], seconds: float | None) -> None:
        assert retry_after_s(headers, 1e9) == seconds

    def test_a_date_is_told_from_the_time_it_is(self) -> None:
        now = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
        for offset, seconds in ((30, 30.0), (-30, None), (86_400, LONGEST_RETRY_AFTER_S)):
            text = format_datetime(now + timedelta(seconds=offset), usegmt=True)
            assert retry_after_s({"retry-after": text}, now.timestamp()) == seconds

    @given(st.text(max_size=40), st.text(max_size=40))
    @example("", "Mon, 99 Jan 99999999999 00:00:00 GMT")
    @example("9" * 400, "9" * 400)
    def test_whatever_it_says_is_a_time_or_none(self, milliseconds: str, text: str) -> None:
        found = retry_after_s({"retry-after-ms": milliseconds, "retry-after": text}, 1e9)
        assert found is None or 0 <= found <= LONGEST_RETRY_AFTER_S


class TestRule:
    @given(st.floats(0.01, LONGEST_RETRY_AFTER_S), st.integers(1, 50), st.integers(0, 99))
    def test_nobody_comes_before_the_time_that_the_server_asks_for(self, after_s: float, times: int, seed: int) -> None:
        rule = pressure(seed=seed)
        wait = rule.refused(10.0, 10.0, times, after_s)
        assert wait is not None
        assert after_s <= wait <= 1.25 * after_s
        assert rule.pause_s(10.0) >= after_s * 0.999  # not even those that were not asked for yet
        assert rule.pause_s(10.0 + after_s) <= 1e-6

    @given(st.none() | st.just(0.0), st.integers(1, 2000), st.integers(0, 99))
    def test_where_it_asks_for_none_the_wait_doubles_up_to_a_limit(
        self, after_s: float | None, times: int, seed: int
    ) -> None:
        rule = pressure(seed=seed)
        longest = min(0.5 * 2.0 ** min(times - 1, 30), 15.0)
        wait = rule.refused(10.0, 10.0, times, after_s)
        assert wait is not None
        assert longest / 2 <= wait <= longest
        assert rule.pause_s(10.0) == 0

    def test_patience_ends_where_nothing_was_taken_for_too_long(self) -> None:
        rule = pressure(patience_s=100)
        assert rule.refused(1000.0, 900.0, 5, None) is not None
        assert rule.refused(1001.0, 900.0, 6, None) is None
        assert rule.refused(1001.0, 1001.0, 1, None) is not None  # another that has just come
        rule.took(950.0)
        assert rule.refused(1001.0, 900.0, 6, None) is not None
        assert rule.refused(1051.0, 900.0, 6, None) is None

    def test_a_request_that_the_server_works_on_keeps_patience_alive(self) -> None:
        rule = pressure(patience_s=100)
        long = rule.ask(880.0)
        quick = rule.ask(1000.5)
        rule.gone(quick)
        assert rule.refused(1001.0, 900.0, 9, None) is not None
        rule.gone(long)
        assert rule.refused(1101.0, 900.0, 9, None) is not None
        assert rule.refused(1102.0, 900.0, 9, None) is None


class Busy:
    """Chat answers of a server that refuses the first requests."""

    def __init__(self, refusals: int, status: int = 429, headers: Mapping[str, str] | None = None) -> None:
        self.refusals = refusals
        self.status = status
        self.headers = headers
        self.asked = 0

    async def answer(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.asked <= self.refusals:
            return web.json_response({"detail": "busy"}, status=self.status, headers=self.headers)
        return web.json_response(GOOD)


class TestEngine:
    @pytest.mark.parametrize("status", [429, 503])
    async def test_it_asks_until_it_is_served(self, status: int, caplog: pytest.LogCaptureFixture) -> None:
        busy = Busy(20, status)
        async with serving(busy.answer) as url, attached(url, **QUICK) as engine:
            response = await engine.run(chat())
        assert (response.status_code, busy.asked) == (200, 21)
        assert caplog.text.count(f"is busy (status {status})") == 1

    async def test_it_does_not_ask_before_the_time_that_the_server_asks_for(self) -> None:
        busy = Busy(1, headers={"Retry-After": "3600"})
        async with serving(busy.answer) as url, attached(url, **QUICK) as engine:
            first = asyncio.ensure_future(engine.run(chat()))
            await eventually(lambda: engine.load().waiting == 1)
            second = asyncio.ensure_future(engine.run(chat()))
            await eventually(lambda: engine.load().waiting == 2)
            assert (busy.asked, engine.load().running) == (1, 0)
            await engine.stop()
            for waiting in (first, second):
                with pytest.raises(EngineUnavailableError, match="not attached"):
                    await waiting

    async def test_what_waits_can_be_cancelled(self) -> None:
        busy = Busy(10**6)
        async with serving(busy.answer) as url, attached(url) as engine:
            running = asyncio.ensure_future(engine.run(chat()))
            await eventually(lambda: engine.load().waiting == 1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert engine.load().waiting == 0

    async def test_a_server_that_stays_busy_is_given_up(self) -> None:
        busy = Busy(10**6)
        async with serving(busy.answer) as url, attached(url, busy_patience_s=0.05, **QUICK) as engine:
            with pytest.raises(EngineUnavailableError, match=r"too busy for any request for too long \(status 429\)"):
                await engine.run(chat())
        assert busy.asked > 1


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool, max_attempts=1) as running:
        yield running


class TestWorker:
    async def test_no_attempt_is_charged_and_no_engine_started_again(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With a single attempt a job, each that was charged one would be in the dead letters."""
        caplog.set_level(logging.INFO)
        busy = Busy(200, 503)
        async with serving(busy.answer, cluster.model) as url:
            engine = OpenAIEngine(OpenAIOptions(url=url, model=cluster.model, seats=4, **QUICK))
            cluster.schedule()
            worker = await cluster.join("w", engine)
            results = await cluster.collect(await cluster.submit(40))
            await worker.stop()
        exactly_once(results, 40)
        assert {r.attempt for r in results} == {1}
        assert busy.asked == 240
        assert "starting it again" not in caplog.text
        assert "resting" not in caplog.text
