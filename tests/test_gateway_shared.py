"""Two gateways on one folder: each batch is run by one of them, once, and by the other where the first is gone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cluster_fixtures import Cluster, ManualEngine, eventually
from gateway_fixtures import (
    client_fixture,
    cluster_fixture,
    in_status,
    lines_of,
    make_batch,
    openai_of,
    request_line,
    serving,
    upload,
)
from openai import AsyncOpenAI

#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]


async def running_batch(cluster: Cluster, client: AsyncOpenAI, engine: ManualEngine) -> str:
    """A batch of six requests of which some run."""
    file_id = await upload(client, *(request_line(cluster.model, f"r{n}") for n in range(6)))
    made = await make_batch(client, file_id)
    await eventually(lambda: engine.running)
    return made.id


async def ended(client: AsyncOpenAI, engine: ManualEngine, batch_id: str) -> list[str]:
    """Let all requests end; the custom_ids of the output file."""

    async def look() -> str | None:
        engine.finish()
        batch = await client.batches.retrieve(batch_id)
        assert batch.status in ("in_progress", "finalizing", "completed"), batch
        return batch.output_file_id if batch.status == "completed" else None

    rows = await lines_of(client, await eventually(look, "the batch is completed"))
    return sorted(row["custom_id"] for row in rows)


async def test_the_second_finds_what_the_first_ended(cluster: Cluster, client: AsyncOpenAI, tmp_path: Path) -> None:
    engine = ManualEngine(seats=2)
    await cluster.join("w", engine)
    batch_id = await running_batch(cluster, client, engine)
    async with serving(cluster, tmp_path) as url, openai_of(url) as second:
        assert [batch.id async for batch in second.batches.list()] == [batch_id]
        assert await ended(second, engine, batch_id) == [f"r{n}" for n in range(6)]
        assert await second.batches.retrieve(batch_id) == await client.batches.retrieve(batch_id)
        outputs = [file async for file in second.files.list() if file.purpose == "batch_output"]
    assert len(outputs) == 1
    assert set(Counter(engine.started).values()) == {1}


async def test_the_second_goes_on_where_the_first_is_gone(cluster: Cluster, tmp_path: Path) -> None:
    engine = ManualEngine(seats=2)
    await cluster.join("w", engine)
    async with serving(cluster, tmp_path) as url, openai_of(url) as second:
        async with serving(cluster, tmp_path) as other, openai_of(other) as first:
            batch_id = await running_batch(cluster, first, engine)
            assert (await second.batches.retrieve(batch_id)).status == "in_progress"
        assert await ended(second, engine, batch_id) == [f"r{n}" for n in range(6)]
    assert set(Counter(engine.started).values()) == {1}


async def test_either_cancels(cluster: Cluster, client: AsyncOpenAI, tmp_path: Path) -> None:
    engine = ManualEngine(seats=2)
    await cluster.join("w", engine)
    batch_id = await running_batch(cluster, client, engine)
    async with serving(cluster, tmp_path) as url, openai_of(url) as second:
        assert (await second.batches.cancel(batch_id)).status == "cancelling"
        for gateway in (client, second):
            batch = await in_status(gateway, batch_id, "cancelled")
            assert len(await lines_of(gateway, batch.error_file_id)) == 6


async def test_two_that_start_at_once_share_the_work(cluster: Cluster, tmp_path: Path) -> None:
    """Both find the batches of a gateway that is gone."""
    engine = ManualEngine(seats=2)
    await cluster.join("w", engine)
    async with serving(cluster, tmp_path) as url, openai_of(url) as gone:
        batch_id = await running_batch(cluster, gone, engine)
    async with (
        serving(cluster, tmp_path) as one,
        serving(cluster, tmp_path) as other,
        openai_of(one) as first,
        openai_of(other) as second,
    ):
        assert await ended(first, engine, batch_id) == [f"r{n}" for n in range(6)]
        assert (await second.batches.retrieve(batch_id)).output_file_id is not None
    assert set(Counter(engine.started).values()) == {1}
