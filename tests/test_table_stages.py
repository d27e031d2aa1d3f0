"""The stages for tables with the libraries that they are for; where one is not installed, its tests are skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_fixtures import Cluster, cluster_of, instant_engine

from broker.errors import UsageError
from tokenyard.client import Client, RequestError
from tokenyard.integrations import ColumnStage, map_dataset, map_frame, map_parquet, map_table


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        await running.join("w", instant_engine(running.model))
        running.schedule()
        yield running


def asking(tokens: int | None) -> dict[str, Any] | None:
    """A request whose answer is so many words long; a row without one for None."""
    if tokens is None:
        return None
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "ignore_eos": True}


def answer(tokens: int | None) -> str | None:
    return None if tokens is None else "sim " * tokens


async def with_client(cluster: Cluster, work: Callable[[Client], None]) -> None:
    def run() -> None:
        with Client(cluster.url, model=cluster.model, durable=False) as client:
            work(client)

    await asyncio.to_thread(run)


async def test_a_frame_keeps_its_index_and_rows_without_a_prompt(cluster: Cluster) -> None:
    pandas = pytest.importorskip("pandas")
    asked = [3, None, 1, 2]
    frame = pandas.DataFrame({"ask": [asking(n) for n in asked], "id": [7, 8, 9, 10]}, index=[4, 4, 0, -1])

    def work(client: Client) -> None:
        found = map_frame(client, frame, "ask", ids="id", batch=f"f-{cluster.settings.pool}")
        assert found["answer"].tolist() == [answer(n) for n in asked]
        assert found.index.tolist() == [4, 4, 0, -1]
        assert list(frame.columns) == ["ask", "id"]
        shuffled = map_frame(client, frame.iloc[::-1], "ask", ids="id", batch=f"f-{cluster.settings.pool}", into="new")
        assert shuffled["new"].tolist() == [answer(n) for n in asked[::-1]]
        assert client.status(f"f-{cluster.settings.pool}").total == 3
        texts = pandas.DataFrame({"q": pandas.array(["a", pandas.NA, "b"], dtype="string")})
        assert map_frame(client, texts, "q", max_tokens=2)["answer"].notna().tolist() == [True, False, True]
        assert map_frame(client, texts[:0], "q")["answer"].tolist() == []
        with pytest.raises(RequestError, match="item 0 is of type int"):
            map_frame(client, frame, "id")

    await with_client(cluster, work)


async def test_a_table_of_many_chunks(cluster: Cluster) -> None:
    arrow = pytest.importorskip("pyarrow")
    asked = [2, None, 3, 1]
    parts = [arrow.table({"ask": [asking(n)], "id": [str(n)]}) for n in asked if n is not None]
    table = arrow.concat_tables([parts[0], arrow.table({"ask": arrow.nulls(1, parts[0]["ask"].type), "id": ["-"]})])
    table = arrow.concat_tables([table, *parts[1:]])

    def work(client: Client) -> None:
        for ids in (None, "id"):
            found = map_table(client, table, "ask", ids=ids)
            assert found["answer"].to_pylist() == [answer(n) for n in asked]
            assert found["answer"].type == arrow.string()
        with pytest.raises(UsageError, match="a column 'id' already"):
            map_table(client, table, "ask", into="id")

    await with_client(cluster, work)


async def test_a_parquet_file_of_many_row_groups(cluster: Cluster, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    asked = [None if n % 7 == 0 else 1 + n % 5 for n in range(2600)]
    table = arrow.table({"n": range(len(asked)), "ask": [asking(n) for n in asked]})
    parquet.write_table(table, source, row_group_size=300)
    key = f"p-{cluster.settings.pool}"

    def work(client: Client) -> None:
        assert map_parquet(client, source, target, "ask", batch=key) == len(asked)
        whole = parquet.read_table(target)
        assert whole["answer"].to_pylist() == [answer(n) for n in asked]
        assert whole.drop_columns(["answer"]).equals(table)
        total = client.status(key).total
        assert map_parquet(client, source, target, "ask", batch=key) == len(asked)
        assert client.status(key).total == total == sum(n is not None for n in asked)
        with pytest.raises(UsageError, match="a column 'n' already"):
            map_parquet(client, source, tmp_path / "no.parquet", "ask", into="n")
        with pytest.raises(RequestError, match="item 0 is of type int"):
            map_parquet(client, source, tmp_path / "no.parquet", "n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]

    await with_client(cluster, work)


@pytest.mark.parametrize("processes", [None, 2])
async def test_a_hugging_face_dataset(
    processes: int | None, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stage goes to other processes, and the first rows may have no answer at all."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"q": [None, None, "a", "b", "c"]})
    options = {"batch": f"d-{cluster.settings.pool}", "url": cluster.url, "model": cluster.model}

    def work() -> None:
        for _ in range(2):  # the second time nothing is queued
            found = map_dataset(data, "q", batch_size=2, num_proc=processes, max_tokens=2, ignore_eos=True, **options)
            assert found["answer"][:] == [None, None, *["sim sim "] * 3]
            assert found["q"][:] == data["q"][:]

    await asyncio.to_thread(work)
    totals = [(await cluster.client.counts(batch)).total for batch in await cluster.monitor.batches()]
    assert sum(totals) == 3


@pytest.mark.slow
async def test_a_ray_dataset(cluster: Cluster) -> None:
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")

    def work() -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            arguments = {"column": "q", "batch": f"r-{cluster.settings.pool}", "url": cluster.url}
            arguments |= {"model": cluster.model, "max_tokens": 2, "ignore_eos": True}
            rows = data.from_items([{"n": n, "q": None if n < 25 else f"prompt {n}"} for n in range(60)])
            for _ in range(2):  # the second time nothing is queued
                done = rows.map_batches(ColumnStage, fn_constructor_kwargs=arguments, concurrency=2, batch_size=20)
                found = {row["n"]: row["answer"] for row in done.take_all()}
                assert found == {n: None if n < 25 else "sim sim " for n in range(60)}
        finally:
            ray.shutdown()

    await asyncio.to_thread(work)
    totals = [(await cluster.client.counts(batch)).total for batch in await cluster.monitor.batches()]
    assert sum(totals) == 35
