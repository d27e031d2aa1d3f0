"""The web page's data against a live cluster: who sees what, and a Redis that comes and goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from acl_server import acl_server
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually, instant_engine
from gateway_fixtures import openai_of, scheduled_cluster, serving
from openai import PermissionDeniedError
from test_acl import POOL, RoleCluster

from broker.acl import Role
from broker.client import new_batch_id
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.plans import PlanStore
from tokenyard.embedded_server import EmbeddedServer, find_binary
from tokenyard.gateway.api_keys import read_keys

KEYS = "acme acme-key-0123456789\ndefault default-key-012345\n* operator-key-0123456\n"


@pytest.fixture
async def cluster(pool: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """On a server of its own: the page shows all pools there are."""
    async with (
        EmbeddedServer(tmp_path_factory.mktemp("own")) as server,
        scheduled_cluster(server.url, pool) as running,
    ):
        yield running


async def get(url: str, path: str, key: str = "") -> httpx.Response:
    """An answer of the gateway."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient() as http:
        return await http.get(url.removesuffix("/v1") + path, headers=headers)


async def told(url: str, path: str, key: str = "") -> Any:
    answer = await get(url, path, key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def pool_of(url: str, cluster: Cluster, key: str = "") -> Any:
    pools = (await told(url, "/live/state", key))["pools"]
    return next(pool for pool in pools if pool["name"] == cluster.settings.pool)


async def test_it_tells_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    plans = PlanStore(cluster.redis, cluster.settings.pool)
    planned = tuple(PlannedWorker(name, "host-1", price_per_hour=price) for name, price in (("w", 7.2), ("x", None)))
    assert await plans.write(PoolPlan(1, 0.0, planned, 100.0), await plans.read())
    batch = await cluster.submit(6)
    await eventually(lambda: len(engine.running) >= 4)
    engine.finish(2)
    await eventually(lambda: cluster.done(batch, 2))
    async with serving(cluster, tmp_path) as url:

        async def all_seen() -> Any:
            pool = await pool_of(url, cluster)
            [device] = pool["devices"]
            return pool if (device["running"], device["queue"]) == (4, 4) else None

        pool = await eventually(all_seen)
        assert (pool["models"]["first"], pool["price_per_hour"]) == ([cluster.model], 7.2)
        assert (pool["plan"]["version"], pool["plan"]["missing"]) == (1, {"count": 1, "first": ["x"]})
        assert pool["plan"]["without_supervisor"]["first"] == ["host-1"]
        [device] = pool["devices"]
        assert (device["name"], device["state"], device["seats"], device["kind"]) == ("w", "ready", 4, "test device")

        line = (await told(url, f"/live/batches/{batch}"))["line"]
        assert (line["read"], line["share_of_bound"]) == (2, None)
        assert [(d["name"], d["jobs"], d["tokens"]) for d in line["devices"]] == [("w", 2, 30)]
        assert line["cost"] == pytest.approx(7.2 / 3600 * line["devices"][0]["busy_s"])
        engine.finish(4)
        await eventually(lambda: cluster.done(batch, 6))
        found = await told(url, f"/live/batches/{batch}")
        assert (found["complete"], found["ended"], found["line"]["read"]) == (True, 6, 6)


async def test_a_batch_of_the_same_id_begins_anew(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    async with serving(cluster, tmp_path) as url:
        batch = await cluster.submit(3)
        await cluster.collect(batch)
        assert (await told(url, f"/live/batches/{batch}"))["line"]["read"] == 3
        await cluster.client.forget(batch)
        assert (await get(url, f"/live/batches/{batch}")).status_code == 404
        await cluster.submit(2, batch=batch)
        await cluster.collect(batch)
        assert (await told(url, f"/live/batches/{batch}"))["line"]["read"] == 2


async def test_who_sees_what(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    await cluster.join("w", instant_engine(cluster.model))
    batches = {tenant: new_batch_id(tenant) for tenant in ("acme", "default")}
    for batch in batches.values():
        await cluster.submit(1, batch=batch)
        await cluster.collect(batch)
    async with serving(cluster, tmp_path / "shelves", read_keys(tmp_path / "keys")) as url:
        for path in ("/live/state", f"/live/batches/{batches['acme']}"):
            for key in ("", "nobody-has-this-key"):
                assert (await get(url, path, key)).status_code == 401
        keys = {"acme": "acme-key-0123456789", "default": "default-key-012345", "*": "operator-key-0123456"}
        for viewer, key in keys.items():
            state = await told(url, "/live/state", key)
            assert state["operator"] == (viewer == "*")
            seen = {batch["id"] for batch in state["batches"]} & set(batches.values())
            mine = {batch for tenant, batch in batches.items() if viewer in (tenant, "*")}
            assert seen == mine
            for batch in batches.values():
                answer = await get(url, f"/live/batches/{batch}", key)
                assert answer.status_code == (200 if batch in mine else 404)
                assert "choices" not in answer.text  # no answer of any engine
        async with openai_of(url, keys["*"]) as client:
            with pytest.raises(PermissionDeniedError):
                await client.models.list()


async def test_the_page_itself_needs_no_key_and_lets_nothing_in(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    async with serving(cluster, tmp_path / "shelves", read_keys(tmp_path / "keys")) as url:
        for name in ("", "/live.js", "/live.css", "/view.js", "/chart.js", "/words.js", "/icon.svg"):
            answer = await get(url, f"/live{name}")
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")  # nothing from outside
        assert (await get(url, "/")).headers["location"] == "/live"
        for name in ("none.js", "..%2Flive_page.py", "__init__.py"):
            assert (await get(url, f"/live/{name}")).status_code == 404


async def test_without_pools_and_without_redis(tmp_path: Path, pool: str) -> None:
    server = EmbeddedServer(tmp_path / "valkey")
    await server.start()
    try:
        async with cluster_of(server.url, pool) as cluster, serving(cluster, tmp_path / "shelves") as url:
            state = await told(url, "/live/state")
            assert (state["pools"], state["batches"]) == ([], [])
            await cluster.register_model()
            batch = await cluster.submit(2)

            async def waits_for_a_scheduler() -> bool:
                state = await told(url, "/live/state")
                return [(p["scheduler"], p["waiting"]["normal"]) for p in state["pools"]] == [(None, 2)]

            await eventually(waits_for_a_scheduler)
            assert (await told(url, f"/live/batches/{batch}"))["line"]["devices"] == []
            await server.stop()

            async def says_so() -> bool:
                answer = await get(url, "/live/state")
                return answer.status_code == 503 and "cannot reach Redis" in answer.json()["error"]["message"]

            await eventually(says_so)
            await server.start()

            async def is_back() -> bool:
                return (await get(url, "/live/state")).status_code == 200

            await eventually(is_back)
    finally:
        await server.stop()


async def test_the_gateways_own_rights_are_enough(tmp_path: Path) -> None:
    async with acl_server(find_binary(), tmp_path, POOL) as server:
        cluster: Cluster = RoleCluster(server)
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        batch = await cluster.submit(3)
        await cluster.collect(batch)
        cluster.url = server.url_of(Role.GATEWAY)
        async with serving(cluster, tmp_path / "shelves") as url:
            assert (await pool_of(url, cluster))["devices"][0]["name"] == "w"
            assert (await told(url, f"/live/batches/{batch}"))["line"]["read"] == 3
        await cluster.close()
