"""Plans as text, and which options of a worker a plan may give: what is forged is refused in one line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.plan_record import parse_plan, plan_text
from broker.pool_plan import MAX_PLAN_BYTES, PlannedWorker, PoolPlan
from broker.worker_options import check_options, with_model

WORKER = PlannedWorker("gpu-0", "h1", ("--seats", "4"), "L4", (0, 1), 2, 100.0)
PLAN = PoolPlan(3, 1e9, (WORKER, PlannedWorker("gpu-1", "h1", devices=(2,))), 100.0, 1.5, "because", 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


def changed(**fields: Any) -> bytes:
    return msgspec.json.encode(msgspec.structs.asdict(PLAN) | fields)


def with_worker(**fields: Any) -> bytes:
    return changed(workers=[msgspec.structs.asdict(WORKER) | fields])


def test_there_and_back() -> None:
    assert parse_plan(plan_text(PLAN)) == PLAN


def test_the_plan_that_the_handbook_writes_by_hand() -> None:
    text = (Path(__file__).parent.parent / "docs" / "supervisor.md").read_text()
    found = re.findall(r"^  '(\{.*\})'$", text, re.MULTILINE)
    assert [parse_plan(plan.encode()).workers[0].name for plan in found] == ["a"]


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert parse_plan(changed(colour="red")) == PLAN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "not a plan"),
        (b"[" * 100_000, "not a plan"),
        (b" " * (MAX_PLAN_BYTES + 1), "longer than"),
        (changed(version=0), "version"),
        (changed(version=2**60), "version"),
        (changed(made=-1.0), "made"),
        (changed(tokens_per_s=-1.0), "tokens_per_s"),
        (with_worker(price_per_hour=-1.0), "worker gpu-0: its price_per_hour"),
        (changed(price_per_hour=-0.5), "price"),
        (changed(reason="two\nlines"), "reason"),
        (changed(min_workers=-1), "min_workers"),
        (changed(idle_hosts=["h\n"]), "idle_hosts"),
        (changed(idle_hosts=["h1"]), "h1 is to run workers, and nothing"),
        (with_worker(name="a b"), "name"),
        (with_worker(name="../x"), "name"),
        (with_worker(host=""), "host"),
        (with_worker(host="a\x1b[2J"), "host"),
        (with_worker(options=["--seats", "\n"]), "option"),
        (with_worker(options=["x"] * 101), "options"),
        (with_worker(devices=[-1]), "device"),
        (with_worker(devices=[0, 0]), "twice"),
        (with_worker(tensor_parallel=0), "tensor_parallel"),
        (with_worker(tokens_per_s="fast"), "tokens_per_s"),
        (changed(workers=[msgspec.structs.asdict(WORKER)] * 2), "two workers are named gpu-0"),
        (
            changed(workers=[msgspec.structs.asdict(WORKER), {"name": "b", "host": "h1", "devices": [1]}]),
            "gpu 1 of h1 is given to both gpu-0 and b",
        ),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text: bytes, said: str) -> None:
    with pytest.raises(UsageError, match="not a plan") as refused:
        parse_plan(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@given(JSON)
def test_whatever_json_it_is_nothing_else_happens(value: Any) -> None:
    with pytest.raises(UsageError):
        parse_plan(msgspec.json.encode(value))


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_a_plan_that_nobody_could_read_is_not_written(rate: float) -> None:
    with pytest.raises(UsageError, match="tokens_per_s"):
        plan_text(msgspec.structs.replace(PLAN, tokens_per_s=rate))


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "http://evil"],
        ["--api-key=x"],
        ["--name", "x"],
        ["--pool", "x"],
        ["--redis-url", "x"],
        ["--help"],
        ["--engine", "openai"],
        ["--engine-arg", "trust-remote-code=true"],
        ["--engine-arg", "worker_cls=os.system"],
        ["--model", "theirs"],
        ["--seats"],
        ["4"],
        ["--seats", "4", "--", "x"],
        ["--eager=x"],
    ],
)
def test_options_that_a_plan_must_not_give(words: list[str]) -> None:
    with pytest.raises(UsageError):
        check_options(words, ["ours"])


def test_options_that_it_may_give() -> None:
    sizes = ["--engine", "vllm", "--seats=8", "--eager", "--engine-arg", "max_num_batched_tokens=512", "--kv-gib", "2"]
    check_options([*sizes, "--model", "ours"], ["ours"])
    assert with_model(sizes, ["ours", "other"]) == ("--model", "ours", *sizes)
    assert with_model(["--model", "other"], ["ours", "other"]) == ("--model", "other")
