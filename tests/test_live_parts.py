"""What the web page is made of, without a server: intervals, time lines, bounds, prices, names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster_fixtures import heartbeat
from hypothesis import given
from hypothesis import strategies as st

from broker.events import EndedTokens
from broker.jobs import BatchCounts, Result
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.recent_mix import MixTally, RecentMix, parse_mix
from tokenyard.cluster_snapshot import ClusterSnapshot, PoolSnapshot
from tokenyard.device_prices import cost_of, missing_of, prices_of
from tokenyard.live.batch_line import MOST_DEVICES, BatchLine
from tokenyard.live.pool_bound import batch_bound, bound_tokens_per_s
from tokenyard.live.pool_past import INTERVAL_S, INTERVALS, PoolPast, past_of
from tokenyard.live.state import MOST_DEVICES as MOST_SHOWN
from tokenyard.live.state import cluster_json, line_json, named
from tokenyard.live.time_bins import TimeBins
from tokenyard.supervision import process_name

PROFILE = '{"prefill_a":0.01,"prefill_b":5e-5,"prefill_c":0,"decode_d":0.01,"decode_e":1e-5,"decode_f":1e-8}'
spans = st.lists(
    st.tuples(st.floats(0, 5000), st.floats(0, 5000), st.floats(0, 100)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    min_size=1,
    max_size=20,
)


def result(custom_id: str = "r", **fields: Any) -> Result:
    given_: dict[str, Any] = {
        "cursor": "1-1",
        "job_id": f"b.{custom_id}",
        "custom_id": custom_id,
        "status_code": 200,
        "body": b"{}",
        "error_code": "",
        "error_message": "",
        "prompt_tokens": 100,
        "output_tokens": 20,
        "worker": "w",
        "attempt": 1,
        "submitted": 1000.0,
        "dispatched": 1001.0,
        "started": 1001.0,
        "ended": 1011.0,
    }
    return Result(**(given_ | fields))


class TestTimeBins:
    @given(st.lists(spans, min_size=1, max_size=4))
    def test_no_amount_is_lost_however_long_it_takes(self, pages: list[list[tuple[float, float, float]]]) -> None:
        bins = TimeBins(0.0, most=16)
        amount = 0.0
        for page in pages:
            start, end, rate = map(np.array, zip(*page, strict=True))
            bins.add("row", start, end, rate)
            amount += float(((end - start) * rate).sum())
        assert bins.length <= 16
        assert float(bins.means("row").sum()) * bins.width_s == pytest.approx(amount, rel=1e-6, abs=1e-6)

    def test_rows_apart_and_what_was_before_the_beginning(self) -> None:
        bins = TimeBins(100.0)
        bins.add("a", np.array([90.0]), np.array([101.0]), np.array([2.0]))
        bins.add("b", np.array([102.0]), np.array([103.0]), np.array([1.0]))
        assert bins.length == 12
        assert list(bins.means("a")) == [2.0] * 4 + [0.0] * 8
        assert list(bins.means("b")) == [0.0] * 8 + [1.0] * 4
        assert list(bins.means("none")) == [0.0] * 12
        assert bins.first() == 0


class TestBatchLine:
    def test_a_batch_over_time(self) -> None:
        line = BatchLine(1000.0)
        line.add([result("a"), result("b", worker="x", started=1006.0), result("c", status_code=400)], now=2000.0)
        found = line.line()
        assert (line.read, line.tokens) == (3, 360)
        assert found.begin == 1001.0  # nothing ran before
        assert sum(found.prompt) * found.width_s == pytest.approx(300, rel=0.01)
        assert sum(found.output) * found.width_s == pytest.approx(60, rel=0.01)
        assert [(d.name, d.jobs, d.tokens) for d in found.devices] == [("w", 2, 240), ("x", 1, 120)]
        assert [d.busy_s for d in found.devices] == pytest.approx([10.0, 5.0])
        assert max(found.devices[0].running) == 2.0
        assert line.mix.jobs == 2

    @pytest.mark.parametrize(
        "fields",
        [
            {"worker": ""},
            {"error_code": "batch_cancelled"},
            {"dispatched": 0.0},
            {"ended": 5e9},
            {"started": 5e9},
        ],
    )
    def test_what_did_not_run_or_cannot_be_is_only_counted(self, fields: dict[str, Any]) -> None:
        line = BatchLine(1000.0)
        line.add([result(**fields)], now=2000.0)
        assert (line.read, line.line().devices, line.line().prompt) == (1, [], [])

    def test_many_devices_are_cut_and_all_count(self) -> None:
        line = BatchLine(1000.0)
        line.add([result(str(n), worker=f"w{n:03}", output_tokens=n + 1) for n in range(100)], now=2000.0)
        found = line.line()
        assert (len(found.devices), found.more, len(found.busy_s)) == (MOST_DEVICES, 100 - MOST_DEVICES, 100)
        assert [d.name for d in found.devices] == [f"w{n:03}" for n in range(100 - MOST_DEVICES, 100)]

    def test_what_is_told_of_it(self) -> None:
        line = BatchLine(1000.0)
        line.add([result("a"), result("b")], now=2000.0)
        told = line_json(line, 48.0, {"w": 7.2}, operator=True)
        assert told["tokens_per_s"] == pytest.approx(24.0)
        assert told["share_of_bound"] == pytest.approx(0.5)
        assert told["cost"] == pytest.approx(7.2 * 10 / 3600)
        assert line_json(line, 48.0, {"w": 7.2}, operator=False)["cost"] is None
        assert line_json(line, None, {}, operator=True)["share_of_bound"] is None


class TestBound:
    def test_it_needs_a_profile_of_every_ready_device(self) -> None:
        mix = parse_mix(["10:1000:200"])
        good, none = heartbeat(profile=PROFILE), heartbeat()
        one = bound_tokens_per_s(mix, [good])
        assert one is not None and one > 0
        assert bound_tokens_per_s(mix, [good, good, None]) == pytest.approx(2 * one)
        assert bound_tokens_per_s(mix, [good, none]) is None
        assert bound_tokens_per_s(mix, [good, heartbeat(state="draining")]) == pytest.approx(one)
        assert bound_tokens_per_s(mix, []) is None
        assert bound_tokens_per_s(RecentMix(), [good]) is None

    def test_what_a_cache_spares_is_no_work(self) -> None:
        tally = MixTally()
        tally.add([EndedTokens(1000, 20, 900)] * 10)
        cached, without = tally.mix(), parse_mix(["10:10000:200"])
        assert parse_mix([tally.take()]) == cached
        assert (cached.tokens, cached.computed_tokens) == (10_200, 1200)
        beats = [heartbeat(profile=PROFILE)]
        bound, plain = batch_bound(cached, beats), batch_bound(without, beats)
        assert bound is not None and plain is not None
        assert bound > plain
        assert plain == pytest.approx(bound_tokens_per_s(without, beats))


class TestPast:
    @given(st.floats(0, 20))
    def test_a_steady_rate_is_flat_whenever_one_looks(self, later: float) -> None:
        """Entries come every five seconds and a bit: as many fall into each interval only on the average."""
        written = [100_000 + 5.02 * n for n in range(240)]
        past = past_of([(at, "10:1000:506") for at in written], written[-1] + later, [])
        inside = [rate for n, rate in enumerate(past.tokens_per_s) if _covered(past, n, written)]
        assert len(inside) > INTERVALS - 4
        assert inside == pytest.approx([1506 / 5.02] * len(inside), rel=0.01)
        assert past.begin + INTERVALS * INTERVAL_S <= written[-1] + later
        assert past.mix.jobs == 2400

    def test_nothing_ended(self) -> None:
        past = past_of([], 1e9, [heartbeat(profile=PROFILE)])
        assert (set(past.tokens_per_s), past.mix.jobs, past.bound_tokens_per_s) == ({0.0}, 0, None)


def _covered(past: PoolPast, n: int, written: list[float]) -> bool:
    begin = past.begin + n * INTERVAL_S
    return written[0] <= begin and begin + INTERVAL_S <= written[-1]


class TestPrices:
    PLAN = PoolPlan(1, 0.0, (PlannedWorker("a", "h", price_per_hour=2.0), PlannedWorker("b", "h")))

    def test_workers_by_hand_and_of_a_supervisor(self) -> None:
        supervised = process_name(self.PLAN.workers[0])
        assert prices_of(self.PLAN, ["a", supervised, "b", "c"]) == {"a": 2.0, supervised: 2.0}
        assert prices_of(None, ["a"]) == {}
        assert missing_of(self.PLAN, [supervised]) == ["b"]
        assert missing_of(self.PLAN, ["a", "b"]) == []

    def test_a_cost_is_known_where_all_prices_are(self) -> None:
        assert cost_of({"a": 1800.0, "b": 3600.0}, {"a": 2.0, "b": 1.0}) == pytest.approx(2.0)
        assert cost_of({"a": 1.0, "b": 1.0}, {"a": 2.0}) is None
        assert cost_of({}, {"a": 2.0}) is None


class TestCluster:
    @staticmethod
    def snapshot(**pool: Any) -> ClusterSnapshot:
        plan = PoolPlan(1, 0.0, (PlannedWorker("w", "h", price_per_hour=2.0),), reason="why")
        fields: dict[str, Any] = {
            "workers": {"w": heartbeat(output_tokens_per_s=50.0)},
            "dead_letters": 3,
            "plan": plan,
        }
        mine = PoolSnapshot("p", ("m",), "host-1", {"normal": 7}, **(fields | pool))
        counts = BatchCounts(total=2, done=1)
        return ClusterSnapshot(10.0, [mine], {"batch_1": counts, "acme:batch_2": counts})

    def test_an_operator_sees_all(self) -> None:
        told = cluster_json(self.snapshot(), {"p": PoolPast(bound_tokens_per_s=200.0)}, {"batch_1": 5.0}, None)
        [pool] = told["pools"]
        assert (pool["scheduler"], pool["dead_letters"], pool["price_per_hour"]) == ("host-1", 3, 2.0)
        assert (pool["plan"]["workers"], pool["plan"]["reason"]) == (1, "why")
        assert (pool["tokens_per_s"], pool["share_of_bound"]) == (50.0, 0.25)
        assert [(b["id"], b["left_s"]) for b in told["batches"]] == [("batch_1", 5.0), ("acme:batch_2", None)]

    @pytest.mark.parametrize(("tenant", "batch"), [("acme", "acme:batch_2"), ("default", "batch_1")])
    def test_a_tenant_sees_devices_and_its_own_batches(self, tenant: str, batch: str) -> None:
        told = cluster_json(self.snapshot(), {}, {}, tenant)
        [pool] = told["pools"]
        assert [b["id"] for b in told["batches"]] == [batch]
        assert [device["name"] for device in pool["devices"]] == ["w"]
        assert pool["scheduler"] == ""  # that somebody leads is told, not who
        assert {pool[name] for name in ("dead_letters", "price_per_hour", "plan")} == {None}
        assert pool["devices"][0]["price_per_hour"] is None

    def test_a_pool_without_anything(self) -> None:
        told = cluster_json(self.snapshot(workers={}, plan=None), {}, {}, None)
        [pool] = told["pools"]
        assert (pool["devices"], pool["price_per_hour"], pool["plan"], pool["share_of_bound"]) == ([], None, None, None)

    def test_many_devices_and_those_without_a_heartbeat(self) -> None:
        told = cluster_json(self.snapshot(workers={f"w{n}": None for n in range(MOST_SHOWN + 2)}), {}, {}, None)
        [pool] = told["pools"]
        assert (len(pool["devices"]), pool["more_devices"]) == (MOST_SHOWN, 2)
        assert pool["devices"][0] == {"name": "w0", "state": None, "queue": 0}

    @given(st.text(st.characters(), max_size=400))
    def test_names_are_short_and_can_be_written(self, text: str) -> None:
        assert len(named(text)) <= 200
        named(text).encode()  # no half of a surrogate pair is left
        assert named(text).isprintable()
