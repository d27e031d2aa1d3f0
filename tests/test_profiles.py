"""Profiles as text: in files, in heartbeats and in Redis, where anyone may have written anything."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import asdict, astuple, replace
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest
from cluster_fixtures import Cluster, cluster_of, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import InputFileError, UsageError
from broker.profiles import (
    TEXT_CHARS,
    FitErrors,
    KindError,
    ProfileRecord,
    ProfileValues,
    parse_profile,
    profile_from_json,
    profile_text,
)
from broker.store.profiles import ProfileStore
from broker.throughput import Profile
from tokenyard.engine_choice import EngineChoice, EngineKind
from tokenyard.engine_profiles import profile_source
from tokenyard.profile_file import read_profile_file
from workers.engines.base import Capacity
from workers.engines.simulated import SimulatedEngine, SimulatedOptions

L4 = Profile(0.02, 1.23456789e-4, 1e-9, 0.018, 2.5e-5, 3.3e-8, kv_tokens=50_000, seats=64)
TEXT = profile_text(L4)

_seconds = st.floats(0, 60, allow_subnormal=False)
profiles = st.builds(Profile, *[_seconds] * 6, kv_tokens=st.integers(16, 10**12), seats=st.integers(1, 10**6)).filter(
    lambda profile: any(astuple(profile)[:6])
)


def record(**changes: Any) -> ProfileRecord:
    fields: dict[str, Any] = {
        "device": "NVIDIA L4",
        "model": "llama",
        "engine": "vllm",
        "version": "vllm 0.32.0",
        "dtype": "bfloat16",
        "max_batched_tokens": 8192,
        "measured": date(2026, 11, 22),
        "profile": ProfileValues.of(L4),
        "errors": FitErrors(decode=KindError(points=12, mean=0.02, worst=0.05)),
    }
    return ProfileRecord(**(fields | changes))


class TestText:
    @settings(deadline=None)
    @given(profiles)
    def test_comes_back_as_it_was(self, profile: Profile) -> None:
        text = profile_text(profile)
        assert len(text) <= TEXT_CHARS
        found = parse_profile(text, profile.kv_tokens, profile.seats)
        assert found is not None
        assert astuple(found) == pytest.approx(astuple(profile), rel=1e-5)

    def test_a_device_that_takes_no_time_has_none(self) -> None:
        assert profile_text(Profile(0, 0, 0, 0, 0, 0, kv_tokens=16, seats=1)) == ""

    @settings(deadline=None)
    @given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(repr))
    def test_whatever_is_written_there_is_survived(self, text: str) -> None:
        assert parse_profile(text, 1000, 4) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"decode_d": -1.0},
            {"decode_d": 4000.0},
            {"prefill_b": 61.0},
            {"decode_d": "0.1"},
            {"decode_d": None},
            {"decode_d": True},
            {"kv_tokens": 5},
            dict.fromkeys(orjson.loads(TEXT), 0.0),
        ],
        ids=str,
    )
    def test_what_is_no_profile_is_none(self, change: dict[str, Any]) -> None:
        assert parse_profile(TEXT, 1000, 4)
        assert parse_profile(orjson.dumps(orjson.loads(TEXT) | change).decode(), 1000, 4) is None

    @pytest.mark.parametrize(
        "text", ["", "{}", TEXT.replace("0.018", "1e999"), TEXT.replace("0.018", "NaN"), TEXT + " " * 400]
    )
    def test_what_is_no_finite_short_object_is_none(self, text: str) -> None:
        assert parse_profile(text, 1000, 4) is None

    def test_sizes_that_cannot_be_are_none(self) -> None:
        assert parse_profile(TEXT, 0, 4) is None
        assert parse_profile(TEXT, 1000, 0) is None


class TestFiles:
    @settings(deadline=None)
    @given(profiles)
    def test_a_record_comes_back_from_its_json(self, profile: Profile) -> None:
        made = record(profile=ProfileValues.of(profile))
        assert made.profile == profile
        assert ProfileRecord.from_json(made.to_json()) == made == ProfileRecord.from_json(made.to_json(indent=2))
        assert profile_from_json(made.to_json()) == profile

    @settings(deadline=None)
    @given(profiles)
    def test_a_bare_profile_is_read_by_the_same_function(self, profile: Profile) -> None:
        assert profile_from_json(orjson.dumps(asdict(profile))) == profile

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"device": None}, "device"),
            ({"colour": "red"}, "colour"),
            ({"measured": "soon"}, "measured"),
            ({"profile": {}}, "profile: prefill_a"),
            ({"tensor_parallel": 0}, "tensor_parallel"),
        ],
        ids=str,
    )
    def test_a_record_that_is_wrong_names_the_field(self, change: dict[str, Any], named: str) -> None:
        text = orjson.dumps(orjson.loads(record().to_json()) | change)
        with pytest.raises(UsageError, match="not a valid profile record") as raised:
            profile_from_json(text)
        assert named.split(": ")[-1] in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_file_that_cannot_be_used_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match=r"gone\.json: No such file"):
            read_profile_file(tmp_path / "gone.json")
        path = tmp_path / "odd.json"
        path.write_text("[1]")
        with pytest.raises(UsageError, match=r"odd\.json: not a valid profile"):
            read_profile_file(path)


@pytest.fixture
async def cluster(redis_url: str, pool: str) -> AsyncGenerator[Cluster]:
    async with cluster_of(redis_url, pool) as running:
        yield running


class TestStore:
    async def test_the_latest_of_a_configuration_is_found(self, cluster: Cluster) -> None:
        store = ProfileStore(cluster.redis, cluster.settings.pool)
        old, new = record(), record(measured=date(2026, 11, 23))
        other = record(variant="eager")
        for made in (old, other, new):
            await store.save(made)
        assert await store.find(new.configuration) == new
        assert await store.find(other.configuration) == other
        assert await store.find(record(device="NVIDIA T4").configuration) is None
        assert sorted(await store.all(), key=lambda r: r.variant) == [new, other]

    async def test_rubbish_is_named_and_skipped(self, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
        store = ProfileStore(cluster.redis, cluster.settings.pool)
        await store.save(record())
        rubbish: dict[str | bytes, str | bytes] = {
            "a": "{}",
            "b": record().to_json(),
            b"\xff": b"\xff",
            "d": "[" * 20_000,
        }
        await cluster.redis.hset(cluster.keys.profiles, mapping=rubbish)  # type: ignore[arg-type]
        caplog.set_level(logging.WARNING)
        assert await store.all() == [record()]
        assert await store.find("b") is None
        assert all(f"profile of '{name}'" in caplog.text for name in "abd")

    async def test_a_key_of_another_kind_is_named(self, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
        await cluster.redis.set(cluster.keys.profiles, "x")
        store = ProfileStore(cluster.redis, cluster.settings.pool)
        assert await store.all() == []
        assert await store.find("b") is None
        assert "is no hash: delete it" in caplog.text


def capacity(**changes: Any) -> Capacity:
    fields: dict[str, Any] = {
        "device": "NVIDIA L4",
        "model": "llama",
        "kv_tokens": 9,
        "seats": 4,
        "context_tokens": 99,
        "version": "vllm 0.32.0",
        "dtype": "bfloat16",
        "max_batched_tokens": 8192,
    }
    return Capacity(**(fields | changes))


def written(folder: Path, made: ProfileRecord) -> Path:
    path = folder / "profile.json"
    path.write_text(made.to_json())
    return path


class TestWhereAWorkerFindsIts:
    async def test_record_of_the_pool_for_just_this_configuration(self, cluster: Cluster) -> None:
        await ProfileStore(cluster.redis, cluster.settings.pool).save(record())
        find = profile_source(cluster.redis, cluster.settings.pool, EngineChoice(kind=EngineKind.VLLM, model="llama"))
        assert await find(capacity()) == L4
        assert await find(capacity(seats=8, kv_tokens=10**6)) == L4
        for other in ("device", "model", "version", "dtype", "variant"):
            assert await find(capacity(**{other: "other"})) is None
        assert await find(capacity(tensor_parallel=2)) is None
        assert await find(capacity(max_batched_tokens=512)) is None
        elsewhere = profile_source(
            cluster.redis, cluster.settings.pool, EngineChoice(kind=EngineKind.OPENAI, model="llama")
        )
        assert await elsewhere(capacity()) is None

    async def test_file_comes_first(self, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        await ProfileStore(cluster.redis, cluster.settings.pool).save(record())
        faster = replace(L4, decode_d=0.001)
        path = written(tmp_path, record(profile=ProfileValues.of(faster), device="NVIDIA L40S"))
        choice = EngineChoice(kind=EngineKind.VLLM, model="/models/llama", served_names=("llama",), profile=path)
        find = profile_source(cluster.redis, cluster.settings.pool, choice)
        assert await find(capacity()) == faster
        assert "measured on NVIDIA L40S, and this worker runs on NVIDIA L4" in caplog.text

    async def test_file_of_another_model_is_refused(self, cluster: Cluster, tmp_path: Path) -> None:
        choice = EngineChoice(kind=EngineKind.VLLM, model="qwen", profile=written(tmp_path, record()))
        with pytest.raises(UsageError, match=r"is a profile of llama, and this worker runs qwen: measure it"):
            profile_source(cluster.redis, cluster.settings.pool, choice)

    async def test_engine_knows_it_itself(self, cluster: Cluster) -> None:
        find = profile_source(cluster.redis, cluster.settings.pool, EngineChoice(kind=EngineKind.SIMULATED, model="m"))
        options = SimulatedOptions(profile=L4, speed=4, step_overhead_s=0.002)
        engine = SimulatedEngine(options)
        found = await find(await engine.start())
        await engine.stop()
        assert found is not None
        assert found.decode_d == pytest.approx((0.018 + 0.002) / 4)
        assert found.prefill_c == pytest.approx(1e-9 / 4)
        assert (found.kv_tokens, found.seats) == (L4.kv_tokens, L4.seats)


async def test_the_heartbeat_carries_it(cluster: Cluster) -> None:
    worker = await cluster.join("w", SimulatedEngine(SimulatedOptions(profile=L4, models=(cluster.model,))))

    async def beat() -> str:
        heartbeat = (await cluster.monitor.heartbeats())["w"]
        return heartbeat.profile if heartbeat else ""

    found = parse_profile(await eventually(beat, "the profile is in the heartbeat"), L4.kv_tokens, L4.seats)
    assert found is not None
    assert astuple(found) == pytest.approx(astuple(L4), rel=1e-5)
    await worker.stop()
