"""The simulated engine: real requests, real time, made-up text; timing from a profile through ContinuousBatch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from broker.batching import ContinuousBatch, EventKind, RequestId
from broker.profiles import profile_from_json
from workers.engines.base import Capacity, EngineRequest, EngineResponse, EngineUnavailableError, Load, Tell
from workers.engines.simulated_chunks import new_choices
from workers.engines.simulated_options import INSTANT, SimulatedOptions
from workers.engines.simulated_prefixes import declared_prefixes
from workers.engines.simulated_wire import Limits, RefusedError, Work, read_work, response_body

__all__ = ["INSTANT", "SimulatedEngine", "SimulatedOptions", "profile_from_json"]

VERSION = "simulated 1"
#: So many requests are told of new tokens in one go; vLLM's VLLM_V1_OUTPUT_PROC_CHUNK_SIZE is the same.
_SLICE = 128


class _Pending:
    """A request under way, and the sequences of the batch that still run for it."""

    __slots__ = ("cached", "changed", "done", "firsts", "left", "more")

    def __init__(self) -> None:
        self.left: set[RequestId] = set()
        self.firsts: set[RequestId] = set()  # of each prompt, whatever n is
        self.cached = 0  # tokens of the prompts
        self.done: asyncio.Future[None] | None = None
        self.changed = False  # since its follower looked
        self.more: asyncio.Future[None] | None = None  # what its follower waits for

    def wake(self) -> None:
        """Its follower is to look again."""
        self.changed = True
        if self.more is not None and not self.more.done():
            self.more.set_result(None)


class SimulatedEngine:
    """An Engine without a model. One timer of the event loop drives it: idle, it does nothing at all."""

    def __init__(self, options: SimulatedOptions) -> None:
        self._options = options
        self._instant = options.instant
        self._limits = Limits(
            frozenset(options.models), options.context_tokens, options.mean_output_tokens, options.seed
        )
        self._batch = ContinuousBatch(
            options.profile, max_batched_tokens=options.max_batched_tokens, step_overhead_s=options.step_overhead_s
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._waking = False  # a tick is due
        self._wake_at = 0.0
        self._rate = options.speed
        self._origin = (0.0, 0.0)  # one moment, on the event loop's clock and on the batch's
        self._pending: dict[RequestId, _Pending] = {}  # by sequence
        self._followed: set[_Pending] = set()
        self._told = 0  # steps that their followers know of
        self._sequences = 0

    async def start(self) -> Capacity:
        """Start the clock."""
        options = self._options
        self._loop = asyncio.get_running_loop()
        self._origin = (self._loop.time(), self._origin[1])
        return Capacity(
            device=options.device,
            model=options.models[0],
            kv_tokens=options.profile.kv_tokens,
            seats=options.profile.seats,
            context_tokens=options.context_tokens,
            version=VERSION,
            max_batched_tokens=max(options.max_batched_tokens, options.profile.seats),
            profile=options.effective_profile,
        )

    async def run(self, request: EngineRequest) -> EngineResponse:
        """Run one request. Cancelling the call takes it out of the batch.

        Raises:
            EngineUnavailableError: the engine was stopped, or not started.
        """
        try:
            work = self.accept(request)
        except RefusedError as refusal:
            return EngineResponse(refusal.status, refusal.body())
        return await self.complete(work, request.job_id)

    async def complete(self, work: Work, response_id: str) -> EngineResponse:
        """Run accepted work to its end, as ``run`` does."""
        pending = self._submit(work)
        if pending.left:
            pending.done = asyncio.get_running_loop().create_future()
            try:
                await pending.done
            finally:
                self._abort(pending)
        body = response_body(work, response_id, int(time.time()), pending.cached)
        return EngineResponse(200, body, work.prompt_tokens, work.output_tokens, pending.cached)

    def accept(self, request: EngineRequest, *, stream: bool = False) -> Work:
        """Check a request and fix its lengths, without running it.

        Raises:
            RefusedError: it cannot be run; or it asks for a stream where ``stream`` is false.
        """
        work = read_work(request.url, request.body, self._limits)
        if work.body.get("stream") and not stream:
            raise RefusedError(400, "stream cannot be used here: the response is one JSON object", "stream")
        for prompt, output, _ in work.choices:
            if not self._batch.can_hold(prompt, output):
                text = f"{prompt} prompt and {output} output tokens are more than the KV cache holds"
                raise RefusedError(400, text, code="context_length_exceeded")
        return work

    async def follow(self, work: Work) -> AsyncGenerator[list[int]]:
        """Run accepted work: the tokens of each choice, whenever there are more. Closing it takes it out.

        Raises:
            EngineUnavailableError: the engine was stopped, or not started.
        """
        first = self._sequences
        pending = self._submit(work)
        self._followed.add(pending)
        seen: list[int] = []
        try:
            while True:
                pending.changed, ended = False, not pending.left  # both may change while whoever follows takes its time
                tokens = [
                    self._batch.generated(first + index) if first + index in pending.left else output
                    for index, (_, output, _) in enumerate(work.choices)
                ]
                if tokens != seen:
                    seen = tokens
                    yield tokens
                if ended:
                    break
                if not pending.changed:
                    pending.more = self._check_running().create_future()
                    await pending.more
                self._check_running()
        finally:
            self._followed.discard(pending)
            self._abort(pending)

    async def run_telling(self, request: EngineRequest, tell: Tell) -> EngineResponse:
        """As ``run``, and tell the text as it comes.

        Raises:
            EngineUnavailableError: the engine was stopped, or not started.
        """
        try:
            work = self.accept(request)
        except RefusedError as refusal:
            return EngineResponse(refusal.status, refusal.body())
        if work.kind == "embedding":
            return await self.complete(work, request.job_id)
        sent = [0] * len(work.choices)
        async with aclosing(self.follow(work)) as progress:
            async for tokens in progress:
                for choice in new_choices(work, sent, tokens):
                    tell(orjson.dumps([choice]))
                sent = tokens
        body = response_body(work, request.job_id, int(time.time()))
        return EngineResponse(200, body, work.prompt_tokens, work.output_tokens)

    def load(self) -> Load:
        """What the batch holds now."""
        self._tick()
        batch, options = self._batch, self._options
        return Load(
            running=batch.running,
            waiting=batch.waiting,
            kv_tokens_used=batch.kv_tokens_used,
            prompt_tokens_total=batch.prompt_tokens_total,
            output_tokens_total=batch.output_tokens_total,
            free_memory_bytes=(options.profile.kv_tokens - batch.kv_tokens_used) * options.kv_token_bytes,
            steps_total=batch.steps,
        )

    @property
    def steps(self) -> int:
        """Steps the batch has done."""
        return self._batch.steps

    def slow_down(self, factor: float) -> None:
        """From now on run ``factor`` times slower than the options say (below 1: faster)."""
        self._origin = (self._loop.time() if self._loop else 0.0, self._now())
        self._rate = self._options.speed / factor
        self._wake()

    async def stop(self) -> None:
        """Fail what runs with EngineUnavailableError."""
        self._origin = (0.0, self._now())
        self._loop = None
        self._clear_timer()
        for pending in set(self._pending.values()):
            if pending.done and not pending.done.done():
                pending.done.set_exception(EngineUnavailableError("the simulated engine was stopped"))
            pending.wake()

    def _now(self) -> float:
        """The batch's clock. It stands still while the engine does not run, and while a tick is due."""
        real, simulated = self._origin
        if self._loop is None:
            return simulated
        return simulated + ((self._wake_at if self._waking else self._loop.time()) - real) * self._rate

    def _submit(self, work: Work) -> _Pending:
        self._check_running()
        if not self._instant:
            self._wake()
        now = self._now()
        pending = _Pending()
        caching = self._options.prefix_caching and not self._instant
        prefixes = declared_prefixes(work) if caching else [[] for _ in work.prompts]
        choices_each = len(work.choices) // len(work.prompts)
        for index, (prompt, output, _) in enumerate(work.choices):
            sequence = self._sequences
            self._sequences += 1
            self._batch.add(sequence, prompt, output, now, prefixes[index // choices_each])
            self._pending[sequence] = pending
            pending.left.add(sequence)
            if index % choices_each == 0:
                pending.firsts.add(sequence)
        if self._instant:
            self._tick()
        return pending

    def _tell(self, followed: list[_Pending], start: int) -> None:
        """Wake those who follow, some at a time: what else waits gets its turn in between, as in vLLM's own loop."""
        for pending in followed[start : start + _SLICE]:
            pending.wake()
        if len(followed) > start + _SLICE and self._loop:
            self._loop.call_soon(self._tell, followed, start + _SLICE)

    def _check_running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise EngineUnavailableError("the simulated engine does not run")
        return self._loop

    def _abort(self, pending: _Pending) -> None:
        if not pending.left:
            return
        for sequence in pending.left:
            del self._pending[sequence]
            self._batch.cancel(sequence, self._now())
        pending.left.clear()
        self._wake()

    def _wake(self) -> None:
        """Tick once all that is ready to run has run: requests that come together start together."""
        if self._loop is not None and not self._waking:
            self._clear_timer()
            self._waking, self._wake_at = True, self._loop.time()
            self._timer = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        """Settle what has ended by now, and set the timer for what ends next."""
        self._clear_timer()
        for event in self._batch.advance(self._now()):
            if event.kind is EventKind.FINISHED and (pending := self._pending.pop(event.request_id, None)):
                pending.left.discard(event.request_id)
                if event.request_id in pending.firsts:
                    pending.cached += event.cached_tokens
                if pending.done and not pending.left and not pending.done.done():
                    pending.done.set_result(None)
        if self._followed and self._batch.steps != self._told:  # one that comes or goes tells the others nothing
            self._told = self._batch.steps
            self._tell(list(self._followed), 0)
        ends = self._batch.next_step_at() if self._followed else self._batch.next_event_at()
        if ends is not None and self._loop:
            real, simulated = self._origin
            self._timer = self._loop.call_at(real + (ends - simulated) / self._rate, self._tick)

    def _clear_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._waking = False
