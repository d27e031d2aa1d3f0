"""The executor: an outcome for every job that it started, whatever comes between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from cluster_fixtures import CHAT, ManualEngine, eventually
from msgspec import structs

from broker.jobs import BATCH_CANCELLED, BATCH_EXPIRED, REQUEST_TIMEOUT, Delivery, JobState, Outcome
from workers.engines.base import EngineRequest, EngineResponse, EngineUnavailableError
from workers.executor import Executor


def delivery(i: int = 0, batch: str = "b", attempt: int = 1) -> Delivery:
    return Delivery(f"{i}-{attempt}", f"{batch}.{i}", batch, str(i), attempt, "1.0", "2.0", CHAT, b"{}")


class Outbox:
    """Takes outcomes as Redis does."""

    def __init__(self) -> None:
        self.calls: list[list[Outcome]] = []

    async def send(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self.calls.append(list(outcomes))
        return [True] * len(outcomes)

    @property
    def sent(self) -> list[Outcome]:
        return [outcome for call in self.calls for outcome in call]


async def test_what_ended_is_sent_once_and_then_it_is_idle() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    for i in range(3):
        executor.start(delivery(i))
    assert executor.running == 3
    await eventually(lambda: len(engine.running) == 3)
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    assert not executor.idle
    await executor.flush(outbox.send)
    await executor.flush(outbox.send)
    assert sorted(o.delivery.job_id for o in outbox.sent) == ["b.0", "b.1", "b.2"]
    assert [(o.status_code, o.prompt_tokens, o.output_tokens) for o in outbox.sent] == [(200, 10, 5)] * 3
    assert executor.idle
    assert executor.jobs_total == 3


async def test_the_engine_is_told_which_attempt_it_is() -> None:
    engine = ManualEngine()
    executor = Executor(engine)
    executor.start(delivery(attempt=2))
    await eventually(lambda: engine.started)
    assert engine.started == ["b.0-0-2"]
    await executor.drop_all()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_batch_ends_as_such_also_where_the_engine_has_not_begun(begun: bool) -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery(0))
    executor.start(delivery(1, batch="other"))
    if begun:
        await eventually(lambda: len(engine.running) == 2)
    executor.cancel_batch("b")
    executor.cancel_batch("b")
    await executor.until(lambda: executor.running == 1)
    await executor.flush(outbox.send)
    assert [(o.delivery.job_id, o.error_code) for o in outbox.sent] == [("b.0", BATCH_CANCELLED)]
    assert engine.aborted == (["b.0-0-1"] if begun else [])
    await executor.drop_all()


async def test_a_job_that_comes_after_the_order_to_cancel_its_batch_ends_as_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.executor._BATCHES_KEPT", 2)
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    for batch in ("long ago", "a", "b"):
        executor.cancel_batch(batch)
    for i, batch in enumerate(("a", "b", "other")):
        executor.start(delivery(i, batch=batch))
    await eventually(lambda: engine.running)
    await executor.flush(outbox.send)
    assert [(o.delivery.batch_id, o.error_code) for o in outbox.sent] == [
        ("a", BATCH_CANCELLED),
        ("b", BATCH_CANCELLED),
    ]
    assert engine.started == ["other.2-2-1"]
    await executor.drop_all()


async def test_one_that_ended_just_before_the_cancellation_keeps_its_response() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery())
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    executor.cancel_batch("b")
    await executor.flush(outbox.send)
    assert [o.status_code for o in outbox.sent] == [200]


async def test_what_is_dropped_is_aborted_and_never_sent() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery(0))
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    executor.start(delivery(1))
    await eventually(lambda: engine.running)
    executor.start(delivery(2))  # has not begun
    await executor.drop_all()
    assert executor.idle
    assert engine.aborted == ["b.1-1-1"]
    await executor.flush(outbox.send)
    assert outbox.sent == []


async def test_a_job_that_came_back_here_is_not_mixed_up_with_its_last_attempt() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery(attempt=1))
    await eventually(lambda: engine.running)
    await executor.drop_all()
    executor.start(delivery(attempt=2))
    await eventually(lambda: engine.running)
    assert executor.running == 1
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    await executor.flush(outbox.send)
    assert [o.delivery.attempt for o in outbox.sent] == [2]


async def test_an_answer_that_comes_after_the_drop_takes_no_newer_outcome_along() -> None:
    engine, answered = ManualEngine(), asyncio.Event()
    executor, outbox = Executor(engine), Outbox()

    async def slow(outcomes: Sequence[Outcome]) -> list[bool]:
        await answered.wait()
        return [True] * len(outcomes)

    executor.start(delivery(0))
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    flushing = asyncio.ensure_future(executor.flush(slow))
    await asyncio.sleep(0)
    await executor.drop_all()
    executor.start(delivery(1))
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)
    answered.set()
    await flushing
    assert executor.done.is_set()
    await executor.flush(outbox.send)
    assert [o.delivery.job_id for o in outbox.sent] == ["b.1"]


async def test_outcomes_stay_until_they_were_taken() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery())
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)

    async def refuse(outcomes: Sequence[Outcome]) -> list[bool]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await executor.flush(refuse)
    assert executor.holds(delivery())
    assert executor.done.is_set()
    await executor.flush(outbox.send)
    assert len(outbox.sent) == 1
    assert not executor.holds(delivery())


async def test_calls_are_bounded_in_number_and_in_bytes() -> None:
    class Talkative(ManualEngine):
        async def run(self, request: EngineRequest) -> EngineResponse:
            size = 3 * 2**20 if request.job_id == "b.0-0-1" else 1000
            return EngineResponse(200, b"x" * size, 1, 1)

    executor, outbox = Executor(Talkative()), Outbox()
    for i in range(600):
        executor.start(delivery(i))
    await executor.until(lambda: executor.running == 0)
    await executor.flush(outbox.send)
    assert len({o.delivery.job_id for o in outbox.sent}) == len(outbox.sent) == 600
    assert [len(call) for call in outbox.calls] == [1, 250, 250, 99]


async def test_what_came_late_is_logged_as_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    engine = ManualEngine()
    executor = Executor(engine)
    executor.start(delivery())
    await eventually(lambda: engine.running)
    engine.finish()
    await executor.until(lambda: executor.running == 0)

    async def too_late(outcomes: Sequence[Outcome]) -> list[bool]:
        return [False] * len(outcomes)

    await executor.flush(too_late)
    assert executor.idle
    assert "1 results came late" in caplog.text


async def test_a_dead_engine_is_told_of_once_and_can_be_renewed() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    for i in range(3):
        executor.start(delivery(i))
    await eventually(lambda: len(engine.running) == 3)
    engine.die()
    with pytest.raises(EngineUnavailableError, match="the test killed it"):
        await executor.until_engine_fails()
    await executor.until(lambda: executor.running == 0)
    await executor.flush(outbox.send)
    assert outbox.sent == []
    executor.renew()
    failing = asyncio.ensure_future(executor.until_engine_fails())
    await asyncio.sleep(0)
    assert not failing.done()
    failing.cancel()


async def test_a_request_that_takes_too_long_is_aborted_and_may_be_tried_again() -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine, retry_first_s=8.0)
    executor.start(structs.replace(delivery(0), timeout_s=0.01))
    executor.start(structs.replace(delivery(1), timeout_s=1000))
    await eventually(lambda: executor.running == 1)
    await executor.flush(outbox.send)
    [outcome] = outbox.sent
    assert (outcome.delivery.job_id, outcome.error_code, outcome.state) == ("b.0", REQUEST_TIMEOUT, JobState.FAILED)
    assert "0.01 s" in outcome.error_message
    assert 4 <= outcome.retry_s <= 8
    assert engine.aborted == ["b.0-0-1"]
    await executor.drop_all()


@pytest.mark.parametrize(("status", "again"), [(500, True), (503, True), (429, True), (400, False), (200, False)])
async def test_only_what_may_pass_is_to_be_tried_again(status: int, again: bool) -> None:
    engine, outbox = ManualEngine(), Outbox()
    executor = Executor(engine)
    executor.start(delivery())
    await eventually(lambda: engine.running)
    engine.finish(status_code=status)
    await executor.until(lambda: executor.running == 0)
    await executor.flush(outbox.send)
    assert [outcome.retry_s > 0 for outcome in outbox.sent] == [again]


async def test_an_expired_batch_ends_as_such_also_what_comes_late() -> None:
    outbox = Outbox()
    executor = Executor(ManualEngine())
    executor.start(delivery(0))
    executor.cancel_batch("b", expired=True)
    executor.start(delivery(1))
    await executor.until(lambda: executor.running == 0)
    await executor.flush(outbox.send)
    assert [(o.error_code, o.state, o.retry_s) for o in outbox.sent] == [(BATCH_EXPIRED, JobState.FAILED, 0)] * 2
