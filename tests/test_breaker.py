"""An engine that fails whatever it is asked does not use up the attempts of a whole queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, exactly_once
from hypothesis import given
from hypothesis import strategies as st

from workers.breaker import LONGEST_S, MOST_IN_A_ROW, Breaker
from workers.engines.base import EngineRequest, EngineResponse


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestRule:
    @given(st.lists(st.booleans(), max_size=40))
    def test_it_trips_after_failures_in_a_row_and_no_others(self, failures: list[bool]) -> None:
        breaker, in_a_row = Breaker(1.0), 0
        for failed in failures:
            breaker.answered(failed=failed)
            in_a_row = in_a_row + 1 if failed else 0
            assert breaker.tripped == (in_a_row >= MOST_IN_A_ROW)

    def test_after_a_rest_one_failure_is_enough_and_each_rest_is_longer(self) -> None:
        breaker, rests = Breaker(1.0), list[float]()
        for _ in range(MOST_IN_A_ROW):
            breaker.answered(failed=True)
        for _ in range(6):
            assert breaker.tripped
            rests.append(breaker.rest())
            assert not breaker.tripped
            assert breaker.trying
            breaker.answered(failed=True)
        assert rests == [1, 2, 4, 8, LONGEST_S, LONGEST_S]
        breaker.answered(failed=False)
        assert not breaker.trying
        for _ in range(MOST_IN_A_ROW):
            breaker.answered(failed=True)
        assert breaker.rest() == 1


class BlackHole(ManualEngine):
    """Fails whatever it is asked, at once, until it is told to work."""

    works = False

    async def run(self, request: EngineRequest) -> EngineResponse:
        self.started.append(request.job_id)
        return EngineResponse(200 if self.works else 500, b'{"object": "made up"}', 1, 1)


class TestWorker:
    async def test_a_black_hole_fails_a_few_and_serves_all_the_others_later(self, cluster: Cluster) -> None:
        engine = BlackHole(seats=4)
        cluster.schedule()
        await cluster.join("w", engine)
        batch = await cluster.submit(300)
        await cluster.in_state("w", "paused")
        await eventually(lambda: len(engine.started) >= MOST_IN_A_ROW + 2, "single requests are tried")
        failed = len(engine.started)
        engine.works = True
        results = await cluster.collect(batch)
        bad = [r for r in results if not r.ok]
        assert len(results) == 300
        assert len(bad) <= failed // 3
        assert len(bad) + sum(r.ok for r in results) == 300

    async def test_another_worker_has_what_was_not_started(self, cluster: Cluster) -> None:
        hole, engine = BlackHole(seats=4), BlackHole(seats=4)
        engine.works = True
        cluster.schedule()
        await cluster.join("hole", hole)
        batch = await cluster.submit(50)
        await cluster.in_state("hole", "paused")
        await cluster.join("w", engine)
        results = await cluster.collect(batch)
        assert len(results) == 50
        assert sum(r.ok for r in results) >= 50 - len(hole.started) // 3
        hole.works = True
        exactly_once(await cluster.collect(await cluster.submit(20)), 20)
        await cluster.in_state("hole", "ready")
