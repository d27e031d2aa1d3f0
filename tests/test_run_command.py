"""``tokenyard run`` as a person meets it: processes, signals, kills, and the same command again."""

from __future__ import annotations

import gzip
import json
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from batch_lines import ids_in
from cli_process import Running
from cluster_fixtures import eventually
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from run_process import Place, is_one_line, last_line, line, lines

from broker.connection import RedisClient, connected
from broker.keys import PoolKeys
from tokenyard.embedded_server import EmbeddedServer

INSTANT = "--engine simulated"
#: Of the heartbeat, which redis-cli shows with HGETALL.
FIELDS = {
    *("state", "device", "engine", "model", "version", "incarnation"),
    *("prompt_tokens_per_s", "output_tokens_per_s", "kv_tokens_total", "kv_tokens_free"),
    *("seats", "running", "waiting", "free_memory_bytes"),
}


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    place = Place(tmp_path)
    yield place
    place.clear()


@pytest.fixture
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[EmbeddedServer]:
    """A server that is there before the run, and that no other test uses."""
    async with EmbeddedServer(tmp_path_factory.mktemp("own")) as server:
        yield server


@asynccontextmanager
async def running(place: Place, *workers: str, written: int = 1) -> AsyncGenerator[Running]:
    """A run in mid-batch: so many responses are written."""
    run = await place.start_run(*workers)
    await eventually(lambda: place.written() >= written, f"{written} responses are written")
    yield run


async def heartbeat(redis: RedisClient, worker: str, pool: str = "m") -> dict[str, str]:
    """The hash as it is; empty where there is none."""
    found = await redis.hgetall(PoolKeys(pool).worker(worker))
    return {name.decode(): value.decode() for name, value in found.items()}


# --- the whole way


async def test_from_file_to_file_and_again(place: Place) -> None:
    packed = place.folder / "in.jsonl.gz"
    others = [
        line("completion", url="/v1/completions", prompt="Hi."),
        line("vector", url="/v1/embeddings", input="Hi."),
    ]
    packed.write_bytes(gzip.compress(b"\n".join([*lines(20), line("other", model="x"), *others]) + b"\n"))
    first = await place.run(f"a: {INSTANT}", f"b: {INSTANT} --seats 2", source=packed)
    assert first.code == 0
    assert f"{packed}:21: no worker serves model 'x'; this run serves m" in first.err
    assert "22/22 jobs, 0 failed" in first.err
    assert "0/0 jobs" not in first.err
    assert Counter(ids_in(place.out)) == Counter(f"r{n}" for n in range(20)) + Counter(["completion", "vector"])
    assert ids_in(place.errors) == ["other"]
    parse(place.out)

    again = await place.run(f"a: {INSTANT}", source=packed)
    assert again.code == 0
    assert "finished before and not run again: 22 requests" in again.err
    assert "0 responses written" in again.err
    assert "embedded server" not in again.err  # nothing was started for nothing
    assert len(ids_in(place.out)) == 22
    assert ids_in(place.errors) == ["other"]


def parse(path: Path) -> None:
    """Read every response with the types of the openai package."""
    types = {"completion": Completion, "vector": CreateEmbeddingResponse}
    for text in path.read_text().splitlines():
        output: dict[str, Any] = json.loads(text)
        assert set(output) == {"id", "custom_id", "response", "error"}
        assert (output["error"], output["response"]["status_code"]) == (None, 200)
        types.get(output["custom_id"], ChatCompletion).model_validate(output["response"]["body"])


# --- Ctrl-C


async def test_ctrl_c_drains_and_the_same_command_goes_on(place: Place) -> None:
    many = 4000  # taking them out of the queue takes a while
    place.write(lines(many, tokens=8))
    async with running(place, f"a: {place.slow}") as run:
        run.interrupt()
        stopped = await place.end(run)
    assert stopped.code == 130
    there = place.written()
    assert 0 < there < many
    assert f"{there} responses written" in stopped.err
    assert last_line(stopped) == f"stopped: {many - there:,} requests left; the same command goes on with the rest"
    assert not place.errors.exists()
    assert list(place.folder.glob(".out*")) == []

    place.write(lines(many + 3))  # some are new
    rest = await place.run(f"a: {INSTANT}")
    assert rest.code == 0
    assert f"finished before and not run again: {there} requests" in rest.err
    assert f"{many + 3 - there:,} responses written" in rest.err
    place.each_once(many + 3)


async def test_its_output_is_its_own_and_a_second_ctrl_c_stops_what_runs(place: Place) -> None:
    place.write([*lines(1), *lines(8, prefix="long", tokens=30_000)])
    async with running(place, f"a: {place.slow}") as run:
        other = await (await place.start_run(f"a: {INSTANT}", words=["--state-dir", str(place.folder / "b")])).end()
        assert (other.code, other.out) == (2, "")
        assert is_one_line(other.err)
        assert f"another run is writing to {place.out}" in other.err

        run.process.send_signal(signal.SIGTERM)  # as good as Ctrl-C
        await run.says("once more stops them")
        run.interrupt()
        stopped = await place.end(run)
    assert stopped.code == 130
    assert last_line(stopped).startswith("stopped: 8 requests left")
    place.each_once(1)


async def test_ctrl_c_does_not_wait_for_a_worker_that_is_starting(place: Place) -> None:
    place.write(lines(3))
    run = await place.start_run(f"a: {INSTANT}")
    worker = await place.process("worker", "a")
    worker.suspend()  # deep in something that knows nothing of signals
    await run.says("0/3 jobs")
    run.interrupt()
    stopped = await place.end(run)
    assert stopped.code == 130
    assert last_line(stopped).startswith("stopped: 3 requests left")
    assert not place.errors.exists()


# --- kills


async def test_after_a_kill_the_same_command_goes_on(place: Place) -> None:
    place.write(lines(30, tokens=8))
    async with running(place, f"a: {place.slow}") as run:
        run.process.kill()
        await run.end()
    await place.nothing_left()
    there = place.written()
    assert 0 < there < 30
    rest = await place.run(f"a: {INSTANT}")
    assert rest.code == 0
    assert "going on with batch batch_" in rest.err
    assert f"{30 - there} responses written" in rest.err
    assert f"{30 - there}/{30 - there} jobs" in rest.err
    place.each_once(30)


async def test_a_worker_that_is_killed(place: Place, own_server: EmbeddedServer) -> None:
    place.url = own_server.url
    place.settings["TOKENYARD_DEAD_AFTER_S"] = "1.5"
    place.write(lines(16, tokens=8))
    async with running(place, f"a: {place.slow}", f"b: {place.slow}") as run:
        (await place.process("worker", "a")).kill()
        await run.says("worker a ended: killed by SIGKILL")
        assert run.said[-1].endswith("going on with b\n")
        ended = await place.end(run)
    assert ended.code == 0
    assert "embedded server" not in ended.err  # there is one already
    assert not (place.folder / "state" / "redis").exists()
    place.each_once(16)


async def test_the_last_worker_is_killed(place: Place) -> None:
    place.write(lines(8, tokens=8))
    async with running(place, f"a: {place.slow}") as run:
        (await place.process("worker", "a")).kill()
        ended = await place.end(run)
    assert ended.code == 1
    assert last_line(ended).startswith("error: worker a ended: killed by SIGKILL (log: ")
    assert last_line(ended).endswith("the same command goes on with what is left")
    assert list(place.folder.glob(".out*")) == [place.folder / ".out.jsonl.batch"]


async def test_the_embedded_server_is_killed(place: Place) -> None:
    place.write(lines(8, tokens=8))
    async with running(place, f"a: {place.slow}") as run:
        place.server().kill()
        ended = await place.end(run)
    assert ended.code == 1
    assert last_line(ended).startswith("error: the embedded server ended (log: ")


async def test_redis_goes_away_and_comes_back(place: Place, own_server: EmbeddedServer) -> None:
    place.url = own_server.url
    place.write(lines(12, tokens=8))
    async with running(place, f"a: {place.slow}") as run:
        await own_server.stop()
        await run.says("lost Redis")
        await own_server.start()
        ended = await place.end(run)
    assert ended.code == 0
    place.each_once(12)


# --- more workers, fewer workers


async def test_workers_come_and_go_in_mid_batch(place: Place) -> None:
    place.write(lines(40, tokens=8))
    workers = [f"a: {place.slow}", "b: --model /no/such/dir --served-name m"]
    third = ["worker", "--pool", "m", "--model", "m", "--name", "third", *place.slow.split()]
    async with running(place, *workers) as run, connected(place.server_url) as redis:
        await run.says("worker b ended: ")
        assert run.said[-1].startswith("worker b ended: model /no/such/dir: no such directory (log: ")
        assert run.said[-1].endswith("; going on with a\n")

        worker = await place.start(*third, url=place.server_url)

        async def has_ended_jobs() -> bool:
            beat = await heartbeat(redis, "third")
            return bool(beat) and int(beat["jobs_total"]) > 0 and int(beat["running"]) > 0

        await eventually(has_ended_jobs, "the third worker has ended jobs and runs more")
        beat = await heartbeat(redis, "third")
        assert beat.keys() >= FIELDS
        assert (beat["engine"], beat["model"], beat["state"], beat["seats"]) == ("simulated", "m", "ready", "4")
        worker.process.terminate()
        left = await worker.end()
        assert left.code == 0
        assert "worker third left after" in left.err
        assert await heartbeat(redis, "third") == {}
        ended = await place.end(run)
    assert ended.code == 0
    assert any(text.startswith("third ") for text in ended.err.splitlines())  # in the closing table
    place.each_once(40)
