"""Which engines fit a machine, why the others do not, and how they share its devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_machines import GIB, SMALL, estimator, machine, measured, space

from broker.length_class import LengthClass
from planner.configurations import EngineOption, degrees, kv_bytes_free, options_of, overhead_bytes
from planner.inventory import DeviceGroup
from planner.layouts import machine_types

MIX = [LengthClass.of(500, 100)]


def options(gib: float = 12.0, count: int = 2, **more: object) -> tuple[list[EngineOption], list[str]]:
    host = machine("m", count=count, gib=gib)
    found, misfits = options_of(host, host.groups[0], space(**more), estimator())
    return found, [str(misfit) for misfit in misfits]


def test_memory_that_is_left_holds_tokens() -> None:
    found, misfits = options()
    assert [option.units for option in found] == [1, 2]
    assert not misfits
    one, two = (option.kind.profile.kv_tokens for option in found)
    # Both devices' memory, and the weights only once: more than twice as many tokens.
    assert two > 2 * one
    assert one * SMALL.kv_bytes() < 12 * 0.9 * GIB - SMALL.weight_bytes()


def test_what_does_not_fit_says_by_how_much() -> None:
    found, misfits = options(gib=4.0)
    assert [option.units for option in found] == [2]
    (said,) = misfits
    assert said.startswith("X1 x1: weights do not fit: 2.0 GiB of weights (bfloat16), ")
    assert said.endswith("GiB short")
    assert "3.6 GiB to use of each" in said


def test_weights_may_fit_and_leave_no_room_for_a_request() -> None:
    _, misfits = options(gib=12.0, context_tokens=32_000, seats=(128,), count=1)
    assert not misfits
    found, misfits = options(gib=6.0, context_tokens=32_000, count=1)
    assert not found
    assert "weights and KV cache do not fit" in misfits[0]
    _, misfits = options(context_tokens=40_000)
    assert "small takes 32,768 tokens of context, and 40,000 are asked for" in misfits[0]


def test_a_model_is_split_only_as_its_heads_allow() -> None:
    group = DeviceGroup("X1", 8, GIB)
    assert degrees(group, space()) == [1, 2, 4, 8]
    three = replace(SMALL, attention_heads=9, kv_heads=3)
    assert degrees(group, space(shape=three)) == [1, 3]
    assert degrees(group, space(degrees=(2, 4, 16))) == [2, 4]
    assert degrees(DeviceGroup("cpu", 12, GIB), space()) == [1, 2, 4, 8, 12]
    assert degrees(DeviceGroup("cpu", 64, GIB), space()) == [4, 8, 16, 32, 64]


def test_engines_on_cores_share_the_memory() -> None:
    host = machine("m", "cpu", 4, 32.0)
    found, misfits = options_of(host, host.groups[0], space(), estimator(measured("cpu", 2)))
    assert [option.units for option in found] == [1, 2, 4]
    assert not misfits
    assert all(4 // option.units * (option.kv_bytes + SMALL.weight_bytes()) < 32 * GIB for option in found)


def test_the_overhead_is_what_a_measured_engine_left() -> None:
    group = machine("m").groups[0]
    known = measured("X1")
    took = 3 * GIB
    free = kv_bytes_free(group, 1, "bfloat16", known.profile.seats, space(), took)
    tokens = int(free / SMALL.kv_bytes())
    exact = replace(known, profile=replace(known.profile, kv_tokens=tokens))
    assert overhead_bytes(group, space(), estimator(exact)) == pytest.approx(took, abs=SMALL.kv_bytes())


def test_seats_that_cost_next_to_no_memory_are_taken() -> None:
    found, _ = options(gib=80.0, count=1, seats=(64, 128, 256))
    assert [option.kind.profile.seats for option in found] == [256]


class TestLayouts:
    def test_all_ways_to_share_four_devices(self) -> None:
        (four,) = machine_types([machine("m", count=4)], space(), estimator())
        units = sorted(sorted(four.options[i].units for i, n in layout for _ in range(n)) for layout in four.layouts)
        assert units == [[1, 1, 1, 1], [1, 1, 2], [2, 2], [4]]

    def test_bounds_on_workers_hold(self) -> None:
        (four,) = machine_types([machine("m", count=4, min_workers=2, max_workers=3)], space(), estimator())
        counts = {sum(n for _, n in layout) for layout in four.layouts}
        assert counts == {2, 3}

    def test_machines_that_are_alike_but_for_the_price_are_one_type(self) -> None:
        hosts = [machine("a"), machine("b"), machine("c", count=3), machine("d", price_per_hour=1.0)]
        types = machine_types(hosts, space(), estimator())
        assert [of.names for of in types] == [("d", "a", "b"), ("c",)]
        assert [of.prices for of in types] == [(1.0, None, None), (None,)]

    def test_what_two_smaller_engines_do_better_is_left_out(self) -> None:
        slow_pair = estimator(measured("X1"), measured("X1", 2, 0.99))
        (all_ways,) = machine_types([machine("m", gib=80.0)], space(), slow_pair)
        (best,) = machine_types([machine("m", gib=80.0)], space(), slow_pair, MIX)
        assert len(all_ways.layouts) == 2
        # Two engines of one device compute twice as much, yet hold less: memory decides, and both may be best.
        assert set(best.layouts) <= set(all_ways.layouts)

    @given(st.integers(1, 8), st.integers(0, 3), st.one_of(st.none(), st.integers(3, 8)))
    def test_no_layout_takes_more_than_there_is(self, count: int, least: int, most: int | None) -> None:
        host = machine("m", count=count, min_workers=least, max_workers=most)
        (of,) = machine_types([host], space(seats=(16, 128)), estimator())
        for layout in of.all_layouts:
            assert sum(of.options[i].units * n for i, n in layout) <= count
            assert least <= sum(n for _, n in layout) <= (most or count)
