"""Re-planning over an inventory: what the search finds is a plan that a supervisor takes."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import msgspec
import pytest
import typer

from broker.errors import UsageError
from broker.plan_record import parse_plan, plan_text
from broker.pool_plan import PlannedWorker
from broker.profiles import ProfileRecord, ProfileValues
from broker.recent_mix import MixClass, RecentMix
from broker.throughput import Profile
from broker.worker_options import with_model
from tokenyard.cli import app
from tokenyard.cli.worker_words import words_checker
from tokenyard.inventory_planning import InventoryChoice, planning_for
from tokenyard.supervision import own_workers

MODEL = "Llama-3.1-8B"
RECORD = ProfileRecord(
    device="L4",
    model=MODEL,
    engine="vllm",
    version="vllm 0.32.0",
    dtype="bfloat16",
    measured=date(2026, 1, 1),
    max_batched_tokens=2048,
    profile=ProfileValues.of(Profile(0.02, 2.0e-4, 1e-9, 0.06, 1e-4, 3e-7, kv_tokens=40_000, seats=256)),
)
MIX = RecentMix((MixClass(50, 10_000, 5_000), MixClass(10, 20_000, 3_000)))


def inventory(folder: Path, text: str) -> Path:
    path = folder / "machines.toml"
    path.write_text(text)
    return path


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    return inventory(
        tmp_path,
        """
        [[machine]]
        name = "h1"
        devices = [{ kind = "L4", count = 2 }]
        """,
    )


def test_what_it_proposes_a_supervisor_takes(machines: Path) -> None:
    planning = planning_for(InventoryChoice(machines, MODEL))
    plan = msgspec.structs.replace(planning.propose(MIX, [RECORD]), version=1)
    assert parse_plan(plan_text(plan)) == plan
    check = words_checker(typer.main.get_group(app))
    own = own_workers(plan, "h1", [MODEL], 16)
    assert sorted(index for worker in own for index in worker.devices) == [0, 1]
    for worker in own:
        check(with_model(worker.options, [MODEL]))
    assert plan.tokens_per_s > 0
    assert "60 recent requests" in plan.reason


def test_what_it_expects_of_its_own_plan_is_what_it_said(machines: Path) -> None:
    planning = planning_for(InventoryChoice(machines, MODEL))
    plan = planning.propose(MIX, [RECORD])
    assert planning.expected(plan.workers, MIX, [RECORD]) == pytest.approx(plan.tokens_per_s, rel=1e-3)
    slower = planning.expected(plan.workers[:1], MIX, [RECORD])
    assert slower is not None
    assert len(plan.workers) == 1 or slower < plan.tokens_per_s


@pytest.mark.parametrize("options", [("--seats", "many"), ("--url", "http://x"), ()])
def test_of_what_somebody_wrote_by_hand_it_knows_nothing(machines: Path, options: tuple[str, ...]) -> None:
    planning = planning_for(InventoryChoice(machines, MODEL))
    assert planning.expected([PlannedWorker("w", "h1", options, "L4", (0,))], MIX, [RECORD]) is None


def test_nothing_fits(tmp_path: Path) -> None:
    machines = inventory(
        tmp_path,
        """
        [[machine]]
        name = "h1"
        devices = [{ kind = "L4", count = 1, memory_gib = 4 }]
        """,
    )
    with pytest.raises(UsageError):
        planning_for(InventoryChoice(machines, MODEL)).propose(MIX, [RECORD])
