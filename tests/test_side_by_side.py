"""Processes that begin together, as profiles of engines that work side by side do."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from child_processes import start_process
from cli_process import start, tokenyard

from broker.errors import UsageError
from tokenyard.side_by_side import AloneError, side_by_side

SIMULATED = ("--engine", "simulated", "--model", "m", "--budget-s", "1")


def silent(_: str) -> None:
    """Say nothing."""


async def meeting(folder: Path, count: int, order: list[str], late: asyncio.Event | None = None) -> None:
    async with side_by_side(folder, count, silent) as all_there:
        if late is not None:
            await late.wait()
        order.append("up")
        async with asyncio.timeout(20):
            await all_there()
        order.append("begun")


async def test_none_begins_before_the_last_is_there(tmp_path: Path) -> None:
    order: list[str] = []
    late = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(meeting(tmp_path, 3, order)) for _ in range(2)]
        last = group.create_task(meeting(tmp_path, 3, order, late))
        done, _ = await asyncio.wait([*waiting, last], timeout=0.3)
        assert not done
        assert order == ["up"] * 2
        late.set()
    assert order[:3] == ["up"] * 3
    assert order[3:] == ["begun"] * 3


async def test_they_can_meet_again(tmp_path: Path) -> None:
    for _ in range(2):
        order: list[str] = []
        await asyncio.gather(*(meeting(tmp_path, 2, order) for _ in range(2)))
        assert order == ["up", "up", "begun", "begun"]


async def test_turns_come_one_after_another(tmp_path: Path) -> None:
    order: list[str] = []
    first_is_done = asyncio.Event()

    async def one(name: str, turn: int, done: asyncio.Event | None = None) -> None:
        async with side_by_side(tmp_path, 3, silent, turn=turn) as its_turn, asyncio.timeout(20):
            await its_turn()
            order.append(name)
            if done is not None:
                await done.wait()
                order.append(f"{name} is done")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one("second", 2)) for _ in range(2)]
        tasks.append(group.create_task(one("first", 1, first_is_done)))
        done, _ = await asyncio.wait(tasks, timeout=0.3)
        assert not done
        assert order == ["first"]
        first_is_done.set()
    assert order == ["first", "first is done", "second", "second"]


_LEAVES_AND_LIVES_ON = """
import asyncio, sys
from pathlib import Path
from tokenyard.side_by_side import side_by_side

async def main():
    async with side_by_side(Path(sys.argv[1]), 2, lambda _: None) as its_turn:
        await its_turn()
    print("left", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


async def test_a_turn_begins_when_the_processes_of_the_last_have_ended(tmp_path: Path) -> None:
    """What they do while they end takes time of the cores that are to be measured."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    first = await start_process(sys.executable, "-c", _LEAVES_AND_LIVES_ON, tmp_path, **pipes)
    assert first.stdin is not None
    assert first.stdout is not None
    async with side_by_side(tmp_path, 2, silent, turn=2) as its_turn, asyncio.timeout(60):
        second = asyncio.ensure_future(its_turn())
        assert await first.stdout.readline() == b"left\n"
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        first.stdin.write(b"\n")
        await second


async def test_who_takes_the_place_of_one_that_left_is_not_waited_for(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(side_by_side(tmp_path, 2, silent, turn=2))
        waiting = asyncio.ensure_future(second())
        async with side_by_side(tmp_path, 2, silent) as first:
            await first()
        late = await stack.enter_async_context(side_by_side(tmp_path, 2, silent))
        taking = asyncio.ensure_future(late())
        async with asyncio.timeout(20):
            await asyncio.gather(waiting, taking)


async def test_one_that_does_not_leave_is_told(tmp_path: Path) -> None:
    async with (
        side_by_side(tmp_path, 2, silent) as first,
        side_by_side(tmp_path, 2, silent, turn=2, patience_s=0.5) as second,
    ):
        waiting = asyncio.ensure_future(second())
        await first()
        with pytest.raises(AloneError, match="engines of lower turns were still up"):
            await waiting


async def test_one_alone_waits_for_nobody(tmp_path: Path) -> None:
    order: list[str] = []
    await meeting(tmp_path / "none", 1, order)
    assert order == ["up", "begun"]
    assert not (tmp_path / "none").exists()


async def test_others_that_do_not_come_are_told(tmp_path: Path) -> None:
    async with side_by_side(tmp_path, 2, silent, patience_s=0.2) as all_there:
        with pytest.raises(AloneError, match="fewer than 2 engines were up"):
            await all_there()


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="set TOKENYARD_STATE_DIR to a folder of yours"):
        async with side_by_side(tmp_path / "file" / "below", 2, silent):
            pass


async def test_a_turn_that_nobody_has() -> None:
    refused = await tokenyard("", "profile", *SIMULATED, "--side-by-side", "2", "--turn", "3")
    assert refused.code == 2
    assert "--turn 3: of 2 engines --side-by-side, none has that turn" in refused.err


async def test_two_profiles_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENYARD_STATE_DIR", str(tmp_path))
    first = await start("", "profile", *SIMULATED, "--side-by-side", "2", "--json")
    second = await tokenyard("", "profile", *SIMULATED, "--side-by-side", "2", "--json")
    ended = await first.end()
    for one in (second, ended):
        assert one.code == 0, one.err
        assert "waiting until 2 engines are up" in one.err
