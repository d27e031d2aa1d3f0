"""The chaos run: its faults are what the seed says, it sees what is wrong, and a short one finds nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import aiohttp
import orjson
import pytest

from benchmarks.chaotic.clients import BatchClient
from benchmarks.chaotic.faults import KINDS, Fault, between, choose, draw
from benchmarks.chaotic.flaky_server import FlakyServer, Mood
from benchmarks.chaotic.injecting import Injected
from benchmarks.chaotic.invariants import Findings, check_files
from benchmarks.chaotic.jobs import KILLS_THE_ENGINE, MODEL, BatchFile, write_batches
from benchmarks.chaotic.overlaps import alone
from benchmarks.chaotic.run import Terms, run_chaos
from benchmarks.chaotic.site import Site, device_of

BROKEN_OFF = ("ClientOSError", "ServerDisconnectedError", "ClientConnectionResetError")


class TestFaults:
    def test_the_same_seed_draws_the_same_ones_and_every_kind_comes_first(self) -> None:
        kinds = list(KINDS)
        faults = draw(random.Random(7), 60, 100.0, kinds)
        assert faults == draw(random.Random(7), 60, 100.0, kinds)
        assert faults != draw(random.Random(8), 60, 100.0, kinds)
        assert [f.at for f in faults] == sorted(f.at for f in faults)
        assert Counter(f.kind for f in faults[: len(kinds)]) == Counter(kinds)
        assert all(0 <= f.at <= 100 for f in faults)

    def test_often_means_often(self) -> None:
        hand = sum(KINDS.values())
        drawn = Counter(f.kind for f in draw(random.Random(1), len(KINDS) + hand * 20, 1.0, list(KINDS)))
        assert drawn["worker killed"] > 3 * drawn["Redis stutters"]

    def test_extent_and_choice(self) -> None:
        fault = Fault(1, 0.0, "worker killed", 0.5, 0.999)
        assert between(fault, 2.0, 4.0) == 3.0
        assert choose(fault, "abc") == "c"


class TestOverlaps:
    @staticmethod
    def seen(kind: str, target: str, struck: float, recovered: float, lasts_s: float = 0.0) -> Injected:
        return Injected(
            Fault(1, 0.0, kind, 0.0, 0.0), target, recovered - struck, recovered_at=recovered, lasts_s=lasts_s
        )

    def test_what_a_recovery_goes_through_hinders_it(self) -> None:
        worker = self.seen("worker killed", "worker-1", 10, 16)
        redis = self.seen("Redis stutters", "redis", 15, 17)
        other = self.seen("worker killed", "worker-2", 11, 14.5)
        client = self.seen("client killed", "chaos-001", 30, 31)
        same = self.seen("engine answers 500", "worker-3", 40, 42)
        again = self.seen("engine breaks connections off", "worker-3", 41, 43)
        assert alone([worker, other, client]) == [worker, other, client]
        assert alone([worker, other, client, redis]) == [other, client, redis]
        assert alone([same, again]) == []

    def test_a_scheduler_that_is_still_away_hinders_the_next_one(self) -> None:
        standby = self.seen("standby scheduler killed", "scheduler-1", 10, 10.1, lasts_s=4.5)
        leader = self.seen("leading scheduler killed", "scheduler-0", 12, 20)
        later = self.seen("leading scheduler killed", "scheduler-0", 22, 25)
        assert alone([standby, leader, later]) == [standby, later]


class TestFlakyServer:
    async def test_every_mood(self) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
        async with FlakyServer(device_of(4)) as server, aiohttp.ClientSession() as session:
            url = f"{server.url}/v1/chat/completions"

            async def answer(content: str = "Hi.") -> int | str:
                changed = body | {"messages": [{"role": "user", "content": content}]}
                try:
                    async with session.post(url, json=changed) as response:
                        await response.read()
                        return response.status
                except aiohttp.ClientError as error:
                    return type(error).__name__

            assert await answer() == 200
            assert await answer(KILLS_THE_ENGINE) in BROKEN_OFF
            for mood in (Mood.ERROR, Mood.OVERLOADED, Mood.RATE_LIMITED):
                async with server.in_mood(mood):
                    assert await answer() == int(mood.value)
            async with server.in_mood(Mood.RESET):
                assert await answer() in BROKEN_OFF
            async with server.in_mood(Mood.TRUNCATE):
                assert await answer() == "ClientPayloadError"
            async with server.in_mood(Mood.GONE):
                assert await answer() == "ClientConnectorError"
            assert await answer() == 200
            assert server.failed == 6


class TestInvariants:
    @pytest.fixture
    def client(self, tmp_path: Path) -> BatchClient:
        batch = BatchFile("b", tmp_path / "b.jsonl", frozenset({"b-0", "b-1", "b-2"}), frozenset({"b-3"}))
        client = BatchClient(Site(tmp_path, "redis://nowhere", []), batch)
        client.done = True
        return client

    @staticmethod
    def write(path: Path, *ids: str, code: str = "") -> None:
        path.write_bytes(b"".join(orjson.dumps({"custom_id": i, "error": {"code": code}}) + b"\n" for i in ids))

    def test_all_is_well(self, client: BatchClient) -> None:
        self.write(client.out, "b-0", "b-1", "b-2")
        self.write(client.errors_out, "b-3")
        found = Findings()
        assert check_files(client, found) == (set(), Counter())
        assert found == Findings()

    def test_what_is_wrong_is_seen(self, client: BatchClient) -> None:
        self.write(client.out, "b-0", "b-0", "b-3")
        self.write(client.errors_out, "b-1", code="attempts_exhausted")
        found = Findings()
        assert check_files(client, found) == ({"b-2"}, Counter({"b-0": 1}))
        assert (found.wrong, found.given_up, found.stuck) == (1, 1, 0)

    def test_a_client_that_did_not_end_is_stuck(self, client: BatchClient) -> None:
        client.done = False
        self.write(client.out, "b-0")
        found = Findings()
        assert check_files(client, found) == (set(), Counter())
        assert found.stuck == 3


def test_every_job_is_in_one_file(tmp_path: Path) -> None:
    batches = write_batches(tmp_path, random.Random(1), 100, 7)
    assert sum(batch.size for batch in batches) == 100
    for batch in batches:
        ids = [orjson.loads(line)["custom_id"] for line in batch.path.read_bytes().splitlines()]
        assert sorted(ids) == sorted(batch.all)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_a_short_run_finds_nothing(tmp_path: Path, fsync: str) -> None:
    terms = Terms(jobs=300, faults=20, minutes=0.8, seed=1, fsync=fsync, embedded=False)
    outcome = await run_chaos(terms, tmp_path)
    found = outcome.findings
    assert found == Findings(given_up=found.given_up, killers_given_up=found.killers_given_up)
    assert (outcome.died, outcome.tracebacks) == ([], [])
    assert all(injected.recovered for injected in outcome.injected)
