"""The web page in a real browser: what it shows, whom it lets in, what it makes of forged names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browser import Page, browser, needs_chromium
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine
from gateway_fixtures import scheduled_cluster, serving

from broker.client import new_batch_id
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.plans import PlanStore
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.gateway.api_keys import read_keys

pytestmark = needs_chromium

#: A phone's width, in pixels.
PHONE = 360
FORGED = "<img src=x onerror=window.forged=1>" + "'\"&lt;" + "n" * 80


@pytest.fixture
async def page(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    async with browser(tmp_path_factory.mktemp("browser")) as page:
        await page.see(PHONE, 780)
        yield page


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own: nothing else is on the page."""
    async with EmbeddedServer(tmp_path_factory.mktemp("own")) as server:
        yield server


async def fits(page: Page) -> bool:
    """Whether nothing reaches beyond the screen."""
    width = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return width[0] <= width[1]


async def click(page: Page, selector: str) -> None:
    await page.evaluate(f"document.querySelector({selector!r}).click()")


async def test_devices_batches_and_a_time_line(server: EmbeddedServer, pool: str, page: Page, tmp_path: Path) -> None:
    async with scheduled_cluster(server.url, pool) as cluster:
        engine = ManualEngine()
        await cluster.join("gpu-0", engine)
        await cluster.puppet(FORGED, device=FORGED, state="paused")
        plans = PlanStore(cluster.redis, pool)
        plan = PoolPlan(1, 0.0, (PlannedWorker("gpu-0", "host-1", price_per_hour=3.5),), reason=FORGED)
        assert await plans.write(plan, await plans.read())
        batch = await cluster.submit(5)
        await eventually(lambda: len(engine.running) >= 4)
        engine.finish(3)
        await eventually(lambda: cluster.done(batch, 3))
        async with serving(cluster, tmp_path) as url:
            await page.go(url.removesuffix("/v1") + "/")
            await page.shows(f"Pool {pool}", cluster.model, "gpu-0", "1 of 2", batch, "3 of 5 done", FORGED)
            assert await fits(page)
            await click(page, "button.batch")
            await page.shows(f"Time line of {batch}", "3 jobs", "share of the bound", "unknown", "cost so far")
            shapes = "document.querySelectorAll('.time-line svg path.running').length"
            assert await page.evaluate(shapes) == 1
            for width, dark in ((PHONE, True), (1200, False)):
                await page.see(width, 800, dark=dark)
                assert await fits(page)
            engine.finish(2)
            await page.shows("5 of 5 done", "complete", "5 jobs")
            await click(page, "button.batch")
            await eventually(lambda: _gone(page, "Time line of"))
            assert await page.evaluate("[window.forged, document.querySelectorAll('main img').length]") == [None, 0]
            assert page.problems == []


async def _gone(page: Page, text: str) -> bool:
    return text not in await page.text()


async def test_a_key_shows_what_its_tenant_may_see(
    server: EmbeddedServer, pool: str, page: Page, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("acme acme-key-0123456789\n* operator-key-0123456\n")
    async with scheduled_cluster(server.url, pool) as cluster:
        await cluster.join("w", instant_engine(cluster.model))
        batches = [new_batch_id("acme"), new_batch_id()]
        for batch in batches:
            await cluster.submit(1, batch=batch)
            await cluster.collect(batch)
        async with serving(cluster, tmp_path / "shelves", read_keys(tmp_path / "keys")) as url:
            await page.go(url.removesuffix("/v1") + "/live")
            await page.shows("API key of this gateway", "key needed")
            await _enter(page, "nobody-has-this-key")
            await page.shows("This is no key of this gateway.")
            await _enter(page, "acme-key-0123456789")
            await page.shows(f"Pool {pool}", batches[0])
            seen = await page.text()
            assert batches[1] not in seen
            assert "price an hour" not in seen
            await page.call("Page.reload")
            await page.shows(batches[0])
            await click(page, "#leave")
            await page.shows("API key of this gateway")
            assert await page.evaluate("sessionStorage.length + document.cookie.length") == 0
            await _enter(page, "operator-key-0123456")
            await page.shows(*batches, "price an hour")
            # An answer of 401 is told in the console, too: by the browser.
            assert all("401" in problem for problem in page.problems)


async def _enter(page: Page, key: str) -> None:
    """Type a key and send it."""
    await page.evaluate(
        f"document.getElementById('key').value = {key!r}; document.querySelector('form button').click()"
    )


async def test_nothing_there_nobody_schedules_redis_gone_and_back(
    server: EmbeddedServer, pool: str, page: Page, tmp_path: Path
) -> None:
    async with cluster_of(server.url, pool) as cluster, serving(cluster, tmp_path) as url:
        await page.go(url.removesuffix("/v1") + "/live")
        await page.shows("No pools yet", "No batches.", "live")
        await cluster.register_model()
        await cluster.submit(2)
        await page.shows("No scheduler leads this pool", "No workers")
        await server.stop()
        await page.shows("cannot reach Redis", "trying again", f"Pool {pool}")
        await server.start()
        await eventually(lambda: _gone(page, "cannot reach Redis"))
        await page.shows("live")


async def test_a_gateway_that_went_away_is_told(cluster: Cluster, page: Page, tmp_path: Path) -> None:
    async with serving(cluster, tmp_path) as url:
        await page.go(url.removesuffix("/v1") + "/live")
        await page.shows("Batches")
    await page.shows("The gateway does not answer.", "trying again")


@pytest.fixture
async def cluster(server: EmbeddedServer, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(server.url, pool) as cluster:
        yield cluster
