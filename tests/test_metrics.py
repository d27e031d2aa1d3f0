"""What is scraped has every metric that the dashboard and the alerts use, and says what is so."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from cli_process import ROOT, start
from cluster_fixtures import Cluster, ManualEngine, cluster_of, eventually
from gateway_fixtures import serving
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from broker.keys import POOLS, PoolKeys
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.dead import DeadLetterStore
from broker.store.plans import PlanStore
from broker.throughput import Profile
from tokenyard.metrics.exporter import queue_page

MONITORING = ROOT / "monitoring"
_NAME = re.compile(r"tokenyard_[a-z_]+")
_SELECTOR = re.compile(r"(tokenyard_[a-z_]+)\{([^}]*)\}")
_BY = re.compile(r"by \(([a-z_, ]+)\)")


def of_alerts() -> Iterator[tuple[str, str]]:
    groups = cast("dict[str, Any]", yaml.safe_load((MONITORING / "alerts.yml").read_text()))["groups"]
    for group in groups:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def of_dashboard() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((MONITORING / "grafana" / "tokenyard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["name"], variable["query"]


EXPRESSIONS = [*of_alerts(), *of_dashboard()]


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def samples(found: dict[str, Metric]) -> dict[str, list[dict[str, str]]]:
    """The labels of each sample, by its name."""
    labels: dict[str, list[dict[str, str]]] = {}
    for family in found.values():
        for sample in family.samples:
            labels.setdefault(sample.name, []).append(dict(sample.labels))
    return labels


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """The one sample with these labels."""
    [one] = [
        sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= dict(sample.labels).items()
    ]
    return one


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def page_of(url: str) -> str:
    async with httpx.AsyncClient() as http:
        answer = await http.get(url)
        answer.raise_for_status()
        return answer.text


async def test_every_expression_finds_its_metrics(cluster: Cluster, redis_url: str, tmp_path: Path) -> None:
    engine = ManualEngine(seats=2)
    engine.capacity = replace(engine.capacity, profile=Profile(0.01, 1e-4, 0.0, 0.01, 1e-4, 0.0, 1_000_000, 2))
    await cluster.join("w", engine)
    plans = PlanStore(cluster.redis, cluster.settings.pool)
    planned = (PlannedWorker("w", "host", price_per_hour=2.5),)
    assert await plans.write(PoolPlan(1, 0.0, planned, price_per_hour=3.5), await plans.read())
    port = free_port()
    scheduler = await start(redis_url, "scheduler", "--pool", cluster.settings.pool, "--metrics-port", str(port))
    batch = await cluster.submit(12)
    await eventually(lambda: len(engine.running) >= 2)
    engine.finish(1)
    await eventually(lambda: cluster.done(batch, 1))
    await eventually(lambda: engine.running)
    engine.finish(1, status_code=400)
    letters = DeadLetterStore(cluster.redis, cluster.settings.pool)
    await eventually(letters.count)
    await cluster.redis.xadd(cluster.keys.recent, {"ended": "10:1000:100"})  # as the scheduler does every few seconds
    async with serving(cluster, tmp_path) as url:
        pool = {"pool": cluster.settings.pool}

        async def settled() -> dict[str, Metric] | None:
            """Every job that has not ended waits or is bound; while one is being moved, neither may show it."""
            found = families(await page_of(url.removesuffix("/v1") + "/metrics"))
            bound = value(found, "tokenyard_worker_bound_jobs", **pool, worker="w")
            return found if value(found, "tokenyard_queue_jobs", **pool, level="normal") + bound == 10 else None

        queue = await eventually(settled)
        assert value(queue, "tokenyard_scheduler_leads", **pool) == 1
        assert value(queue, "tokenyard_ready_workers", **pool) == 1
        assert value(queue, "tokenyard_worker_seats", **pool, worker="w") == 2
        assert value(queue, "tokenyard_plan_price_per_hour", **pool) == 3.5
        assert value(queue, "tokenyard_worker_price_per_hour", **pool, worker="w") == 2.5
        assert value(queue, "tokenyard_given_up_jobs_total", **pool, reason="status_400") == 1
        bound = value(queue, "tokenyard_bound_tokens_per_second", **pool)
        assert bound > 0
        assert value(queue, "tokenyard_bound_share_ratio", **pool) >= 0
        assert value(queue, "tokenyard_queue_oldest_seconds", **pool, level="normal") >= 0

    async def scheduled() -> dict[str, Metric] | None:
        found = families(await page_of(f"http://127.0.0.1:{port}/metrics"))
        return found if value(found, "tokenyard_scheduler_completed_jobs_total", **pool) else None

    own = await eventually(scheduled)
    assert value(own, "tokenyard_scheduler_decision_seconds_count", **pool) > 0
    scheduler.interrupt()
    assert (await scheduler.end()).code == 0

    there = samples(queue | own)
    for title, expression in EXPRESSIONS:
        names = _NAME.findall(expression)
        assert names, title
        for name in names:
            assert name in there, f"{title}: {name}"
        known = {label for name in names for label in there[name][0]}
        for name, selector in _SELECTOR.findall(expression):
            assert {label.strip() for label in re.findall(r"(\w+)\s*[=!]", selector)} <= there[name][0].keys(), title
        for labels in _BY.findall(expression):
            assert {label.strip() for label in labels.split(",")} <= known, title


def test_each_metric_is_shown_somewhere() -> None:
    """The page and the dashboard do not drift apart: what nobody looks at is not measured."""
    shown = {name for _, expression in EXPRESSIONS for name in _NAME.findall(expression)}
    text = "".join(path.read_text() for path in (ROOT / "tokenyard" / "metrics").glob("*.py"))
    measured = set(re.findall(r'"(tokenyard_[a-z_]+)"', text))
    unseen = {name for name in measured if not any(look.startswith(name) for look in shown)}
    assert unseen == set()


def test_each_metric_is_described() -> None:
    """The handbook's table names the metrics of the dashboard and the alerts, and no others."""
    table = (ROOT / "docs" / "monitoring.md").read_text().partition("## Metrics")[2].partition("\n\nWhat a pool")[0]
    described = set(_NAME.findall(table))
    shown = {name for _, expression in EXPRESSIONS for name in _NAME.findall(expression)}
    assert {name.removesuffix("_bucket") for name in shown} == described


async def test_a_pool_with_a_key_of_another_kind_hides_no_other(cluster: Cluster) -> None:
    await cluster.register_model()
    redis: Any = cluster.redis  # redis-py's types are those of its other client
    broken = PoolKeys(f"{cluster.settings.pool}-broken")
    await redis.sadd(POOLS, broken.pool)
    wrong = [broken.requests("normal"), broken.workers, broken.tenants, broken.lease, broken.dead, broken.plan]
    for key in wrong:
        await redis.set(key, "text")
    try:
        found = families((await queue_page(cluster.client)).decode())
        pools = {sample.labels["pool"] for sample in found["tokenyard_queue_jobs"].samples}
        assert {cluster.settings.pool, broken.pool} <= pools
    finally:
        await redis.srem(POOLS, broken.pool)
        await redis.delete(*wrong)


async def test_reasons_that_were_written_by_hand(cluster: Cluster) -> None:
    letters = DeadLetterStore(cluster.redis, cluster.settings.pool)
    assert await letters.given_up() == {}
    await cluster.redis.set(cluster.keys.given_up, "no hash")
    assert await letters.given_up() == {}
    await cluster.redis.delete(cluster.keys.given_up)
    forged: dict[str, str | int] = {"a b": 1, "x" * 65: 1, "minus": -1, "words": "many", "sound": 3}
    await cluster.write(cluster.keys.given_up, **forged)
    assert await letters.given_up() == {"sound": 3}
    await cluster.write(cluster.keys.given_up, **{f"reason-{n:04}": 1 for n in range(500)})
    assert len(await letters.given_up()) == 101


async def test_reasons_are_counted_whatever_somebody_wrote_there(cluster: Cluster) -> None:
    engine = ManualEngine()
    await cluster.join("w", engine)
    cluster.schedule()
    letters = DeadLetterStore(cluster.redis, cluster.settings.pool)
    await cluster.redis.set(cluster.keys.given_up, "no hash")
    for forged in ("no hash", "full"):
        batch = await cluster.submit(1)
        await eventually(lambda: engine.running)
        engine.finish(status_code=400)
        assert [result.status_code for result in await cluster.collect(batch)] == [400]
        if forged == "no hash":
            await cluster.redis.delete(cluster.keys.given_up)
            await cluster.write(cluster.keys.given_up, **{f"z{n}": 1 for n in range(100)})
    assert (await letters.given_up())["other"] == 1


async def test_a_port_that_is_taken_stops_nobody(cluster: Cluster, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        scheduler = await start(redis_url, "scheduler", "--pool", cluster.settings.pool, "--metrics-port", port)
        await scheduler.says("no metrics: cannot listen")
        await cluster.register_model()
        await eventually(cluster.monitor.lease_owner)
        scheduler.interrupt()
        assert (await scheduler.end()).code == 0


def test_compose_gives_every_file_to_who_reads_it() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = [mount for name in ("prometheus", "grafana") for mount in services[name]["volumes"] if "./" in mount]
    given = {ROOT / mount.partition(":")[0] for mount in mounted}
    assert given == {path for path in MONITORING.rglob("*") if path.is_file()}
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    targets = {config["job_name"]: config["static_configs"][0]["targets"] for config in scraped}
    words = services["gateway"]["command"]
    assert targets["gateway"] == [f"gateway:{words[words.index('--port') + 1]}"]
    assert targets["scheduler"] == [f"scheduler:{services['scheduler']['environment']['TOKENYARD_METRICS_PORT']}"]
