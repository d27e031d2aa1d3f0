"""Who hears of what first: one's first tokens go ahead of what others have had more of, all else keeps its order."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from broker.jobs import Result
from broker.store.live import LiveNews, LivePosition
from broker.token_news import TokenNews
from tokenyard.gateway.handing_out import HandingOut
from tokenyard.gateway.live_job import LiveJob


class _Desk:
    """Jobs whose callers write down what they hear, in the order in which they hear it."""

    def __init__(self, *names: str) -> None:
        loop = asyncio.get_running_loop()
        self.heard: list[tuple[str, int]] = []
        self.jobs = {name: LiveJob(name, loop.create_future(), lambda: None) for name in names}
        self.out = HandingOut(self._end)
        self._callers = [asyncio.ensure_future(self._listen(job)) for job in self.jobs.values()]

    async def take(self, pieces: list[tuple[str, int]], ended: list[str] | None = None) -> None:
        news = [TokenNews(name, "1-0", number, Raw(b"[]")) for name, number in pieces]
        await self.out.take(self.jobs, LiveNews(LivePosition(), news, [_result(name) for name in ended or []]))

    async def all_heard(self) -> list[tuple[str, int]]:
        await asyncio.gather(*self._callers)
        return self.heard

    def _end(self, result: Result) -> None:
        self.jobs[result.job_id].result.set_result(result)
        self.jobs[result.job_id].wake()

    async def _listen(self, job: LiveJob) -> None:
        ended = False
        while not ended:
            ended = job.result.done()
            self.heard += [(piece.job_id, piece.number) for piece in await job.news()]


def _result(name: str) -> Result:
    return Result("1-0", name, name, 200, b"{}", "", "", 1, 1, "w", 1, 0.0, 0.0, 0.0)


async def test_a_first_token_that_comes_later_goes_ahead_of_what_is_still_being_handed_out() -> None:
    desk = _Desk("old", *(f"old-{n}" for n in range(300)), "new")
    old = [name for name in desk.jobs if name != "new"]
    for number in (0, 1):
        await desk.take([(name, number) for name in old])
    await desk.take([(name, 2) for name in old])
    await asyncio.sleep(0)  # some of them are out
    await desk.take([("new", 0)], ended=["new", *old])
    heard = await desk.all_heard()
    third = [at for at, (_, number) in enumerate(heard) if number == 2]
    assert heard.index(("new", 0)) < third[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=90), min_size=1, max_size=5))
def test_each_hears_all_in_order_and_of_its_end_last(entries: list[list[str]]) -> None:
    async def run() -> None:
        desk = _Desk(*"abc")
        told = dict.fromkeys("abc", 0)
        for entry in entries:
            pieces: list[tuple[str, int]] = []
            for name in entry:
                pieces.append((name, told[name]))
                told[name] += 1
            await desk.take(pieces)
            await asyncio.sleep(0)
        await desk.take([], ended=list("abc"))
        await desk.out.done()
        heard = await desk.all_heard()
        for name, count in told.items():
            assert [number for of, number in heard if of == name] == list(range(count))

    asyncio.run(run())


async def test_closed_it_hands_out_nothing_more() -> None:
    desk = _Desk("a")
    await desk.take([("a", number) for number in range(500)])
    await desk.out.close()
    job = desk.jobs["a"]
    assert not job.result.done()
    job.result.cancel()
    job.wake()
    assert len(await desk.all_heard()) < 500
