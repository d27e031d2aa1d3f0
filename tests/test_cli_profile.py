"""``tokenyard profile`` and ``tokenyard worker --profile``, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import asdict, astuple
from datetime import date
from pathlib import Path

import pytest
from cli_process import start, tokenyard
from cluster_fixtures import Cluster, cluster_of, eventually

from broker.profiles import ProfileRecord, ProfileValues, parse_profile
from broker.store.profiles import ProfileStore
from broker.throughput import Profile
from workers.engines.simulated import SimulatedOptions
from workers.engines.simulated_server import SimulatedServer

QUICK = Profile(0.004, 2e-5, 1e-9, 0.003, 4e-5, 1e-7, kv_tokens=8192, seats=4)
SIMULATED = ("--engine", "simulated", "--model", "m", "--budget-s", "1")


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(asdict(QUICK)))
    return path


async def profile_of(cluster: Cluster, worker: str) -> Profile | None:
    beat = (await cluster.monitor.heartbeats()).get(worker)
    return parse_profile(beat.profile, beat.kv_tokens_total, beat.seats) if beat else None


class TestProfile:
    async def test_table_file_and_record_in_the_pool(self, cluster: Cluster, quick: Path, tmp_path: Path) -> None:
        output, pool = tmp_path / "measured.json", cluster.settings.pool
        words = ("profile", *SIMULATED, "--profile", quick, "--output", output, "--pool", pool)
        ended = await tokenyard(cluster.url, *words)
        assert ended.code == 0, ended.err
        assert "m | simulated | simulated | simulated 1 | tp 1 | batch 2048" in ended.out
        for said in ("whole requests timed", "decode step, fixed", "8,192 tokens", "error of the fit", "tokens/s"):
            assert said in ended.out
        assert f"stored for pool {pool}" in ended.err
        record = ProfileRecord.from_json(output.read_text())
        assert await ProfileStore(cluster.redis, pool).find(record.configuration) == record
        assert (record.profile.kv_tokens, record.profile.seats) == (8192, 4)
        assert record.errors.points > 4

    async def test_json_is_the_record_and_nothing_else(self, quick: Path) -> None:
        ended = await tokenyard("", "profile", *SIMULATED, "--profile", quick, "--json")
        assert ended.code == 0, ended.err
        assert ProfileRecord.from_json(ended.out).model == "m"
        assert "stored" not in ended.err

    async def test_a_server_is_measured_from_outside(self) -> None:
        async with SimulatedServer(SimulatedOptions(profile=QUICK, models=("m",))) as server:
            words = ("--engine", "openai", "--url", server.url, "--model", "m", "--seats", "4", "--budget-s", "1")
            ended = await tokenyard("", "profile", *words, "--json")
        assert ended.code == 0, ended.err
        record = ProfileRecord.from_json(ended.out)
        assert (record.engine, record.device, record.profile.kv_tokens) == ("openai", "remote", 8192)
        assert record.errors.whole is not None
        assert record.variant == server.url

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--task", "embed"), "only engines that generate text can be measured"),
            (("--output", "/nowhere/at/all.json"), "cannot write /nowhere/at/all.json: No such file"),
            (("--profile", "/nowhere.json"), "cannot read the profile /nowhere.json: No such file"),
        ],
        ids=str,
    )
    async def test_what_is_wrong_is_one_line(self, words: tuple[str, ...], said: str) -> None:
        ended = await tokenyard("", "profile", *SIMULATED, *words)
        assert ended.code == 2
        assert said in " ".join(ended.err.split())
        assert ended.out == ""

    async def test_a_redis_that_is_not_there_is_said_before_it_measures(self) -> None:
        ended = await tokenyard("unix:///nowhere/redis.sock", "profile", *SIMULATED)
        assert ended.code == 4
        assert "measuring" not in ended.err


class TestWorker:
    async def test_a_simulated_one_announces_what_it_simulates(self, cluster: Cluster, quick: Path) -> None:
        words = ("--engine", "simulated", "--model", cluster.model, "--profile", quick, "--speed", "2")
        worker = await start(cluster.url, "worker", *words, "--pool", cluster.settings.pool, "--name", "w")
        found = await eventually(lambda: profile_of(cluster, "w"), "the heartbeat has a profile")
        assert found.decode_d == pytest.approx(QUICK.decode_d / 2)
        assert astuple(found)[6:] == (8192, 4)
        worker.interrupt()
        assert (await worker.end()).code == 0

    async def test_any_other_is_given_a_file_or_finds_the_record_of_its_pool(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        async with SimulatedServer(SimulatedOptions(profile=QUICK, models=(cluster.model,))) as server:
            engine = ("--engine", "openai", "--url", server.url, "--model", cluster.model)
            engine = (*engine, "--pool", cluster.settings.pool)
            path = tmp_path / "measured.json"
            measured = await tokenyard(cluster.url, "profile", *engine, "--budget-s", "1", "--output", path)
            assert measured.code == 0, measured.err
            record = ProfileRecord.from_json(path.read_text())
            slower = record.model_copy(update={"values": ProfileValues.of(QUICK), "measured": date(2026, 1, 1)})
            path.write_text(slower.to_json())

            finds = await start(cluster.url, "worker", *engine, "--name", "finds")
            given = await start(cluster.url, "worker", *engine, "--name", "given", "--profile", path)
            found = await eventually(lambda: profile_of(cluster, "finds"), "the record is in the heartbeat")
            assert found.decode_d == pytest.approx(record.profile.decode_d, rel=1e-5)
            told = await eventually(lambda: profile_of(cluster, "given"), "the file is in the heartbeat")
            assert told.decode_d == pytest.approx(QUICK.decode_d)
            for worker in (finds, given):
                worker.interrupt()
                assert (await worker.end()).code == 0

    async def test_a_profile_of_another_model_is_refused_before_it_joins(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        path = tmp_path / "other.json"
        record = ProfileRecord(
            device="d",
            model="other",
            engine="openai",
            version="1",
            measured=date(2026, 1, 1),
            profile=ProfileValues.of(QUICK),
        )
        path.write_text(record.to_json())
        words = ("--engine", "openai", "--url", "http://127.0.0.1:9", "--model", "m", "--profile", path)
        ended = await tokenyard(cluster.url, "worker", *words, "--pool", cluster.settings.pool)
        assert ended.code == 2
        assert "is a profile of other, and this worker runs m: measure it with `tokenyard profile`" in ended.err
        assert await cluster.redis.exists(cluster.keys.workers) == 0
