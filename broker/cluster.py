"""What the scheduler knows of the pool: its devices, and what it has dispatched to them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import msgspec
from msgspec import structs

from broker.backlog import Backlog
from broker.drift import Drift
from broker.heartbeat import Heartbeat
from broker.kv_calendar import KvCalendar
from broker.kv_share import FirstFill, KvShare
from broker.profiles import parse_profile
from broker.throughput import DeviceKind, Profile

#: A device's speed follows its measured rate this fast (share of the gap a second), where the device is busy.
_SPEED_GAIN = 0.5
#: A device counts as busy from this share of its seats or KV tokens on: only then its rate tells its speed.
_BUSY_SHARE = 0.6
#: Completion rates are averaged over about this long (seconds).
_RATE_WINDOW_S = 2.0

#: A device's steps are reckoned on from its last heartbeat for no longer than this (seconds).
_LONGEST_GUESS_S = 2.0
#: A device is looked at again at a heartbeat, where it was not for so long (seconds).
_LONGEST_UNSEEN_S = 4.0
#: Jobs that ended lately, which the next heartbeat may still count.
_MOST_GONE = 4096
#: A job has no more tokens than this: what says so is forged.
_MOST_TOKENS = 10**9
#: And no engine makes more steps a second.
_MOST_STEPS_PER_S = 1e6
#: Tokens an engine computes a step where nothing else is known (vLLM's default for most GPUs).
_BATCHED_TOKENS = 8192
#: The shape of an accelerator that nobody has measured: what it costs relative to itself, its slowdown is learned.
#: (About an A100 with a model of 8 billion parameters.)
_TYPICAL = Profile(0.0099, 5.0e-5, 1.9e-9, 0.0115, 4.0e-5, 7.9e-8, kv_tokens=1, seats=1)


def _built(beat: Heartbeat) -> tuple[str, int, int, int]:
    """What of a heartbeat tells how its device is built, not what it does."""
    return beat.profile, beat.kv_tokens_total, beat.seats, beat.max_batched_tokens


class InFlight(msgspec.Struct, frozen=True, gc=False):
    """A job bound to a device.

    Attributes:
        job_id: id of the job.
        prompt_tokens: as predicted at dispatch.
        output_tokens: likewise.
        body_bytes: size of the request's body (0: not known).
        max_tokens: most tokens it may generate, 0 where it does not say.
        dispatched: when, in seconds on the scheduler's clock (0: not known).
        predicted_s: time to its result, as predicted then (0: not known).
        step: step of the device's engine at which its prefill should end.
        cached_tokens: tokens of its prompt that are expected in the device's prefix cache.
        prefix: the marks of its prompt, as its stream entry has them.
        uncorrected_tokens: its output as predicted before the correction of ``broker.calibration`` (0: not known).
        guessed: whether its output is a mere guess: those before were far off.
        deaths: workers that died while they ran it.
        charges: attempts of it that are used up, where one died.
    """

    job_id: str
    prompt_tokens: int
    output_tokens: int
    body_bytes: int = 0
    max_tokens: int = 0
    dispatched: float = 0.0
    predicted_s: float = 0.0
    step: float = 0.0
    cached_tokens: int = 0
    prefix: str = ""
    uncorrected_tokens: int = 0
    guessed: bool = False
    deaths: int = 0
    charges: int = 0

    @property
    def tokens(self) -> int:
        """KV tokens it holds on average while it runs: its output grows from nothing."""
        return self.prompt_tokens + self.output_tokens // 2


@dataclass(slots=True)
class Device:
    """One worker as the scheduler sees it: its last heartbeat, corrected by what was dispatched and ended since."""

    name: str
    heartbeat: Heartbeat
    in_flight: dict[str, InFlight] = field(default_factory=dict[str, InFlight])
    suspects: dict[str, InFlight] = field(default_factory=dict[str, InFlight])  # those of them that lost a worker
    tokens_in_flight: int = 0
    speed: float = 0.0
    jobs_per_s: float = 0.0
    drift: Drift = field(default_factory=Drift)
    kind: DeviceKind | None = None
    changed: set[str] = field(default_factory=set[str])
    backlog: Backlog = field(default_factory=Backlog)
    calendar: KvCalendar = field(default_factory=KvCalendar)
    kv_share: KvShare = field(default_factory=KvShare)
    _fill: FirstFill = field(default_factory=FirstFill)
    overfull: bool = False  # at the last look: its engine held requests back
    look_after: int = 1  # so many of its jobs end before the next look at it is worth the while
    _ended: int = 0  # since the last
    _looked: float = float("-inf")
    _rate_at: float = 0.0
    _steps: float = 0.0
    _steps_per_s: float = 0.0
    _pace: float = 0.0  # the same where it was busy all the time, else 0
    _heard: float = 0.0  # when the engine was as the last heartbeat says
    _gone: deque[tuple[float, int]] = field(default_factory=lambda: deque[tuple[float, int]](maxlen=_MOST_GONE))
    _guessed: int = 0

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self.heartbeat.state == "ready" and self.heartbeat.seats > 0

    @property
    def seconds_a_step(self) -> float:
        """Seconds a step takes: as seen lately, else as the profile says for the batch it has."""
        if self._pace > 0:
            return 1 / self._pace
        if self.kind is None:
            return 0.0
        running = min(len(self.in_flight), self.heartbeat.seats)
        return self.kind.profile.decode_step_seconds(running, self.tokens_in_flight) * self.kind.slowdown

    @property
    def max_batched_tokens(self) -> int:
        """Tokens it computes in a step."""
        return self.kind.max_batched_tokens if self.kind is not None else _BATCHED_TOKENS

    def start(self, prompt_tokens: int) -> float:
        """The step of its engine at which a job that it gets now has its first token: prompts before it come first."""
        return self.calendar.start(self.backlog.prompt_left + prompt_tokens, self.max_batched_tokens)

    def bind(self, job: InFlight) -> None:
        """Count a job as dispatched to this device."""
        if not job.step:  # read back from its device queue: when it began is not known, its lengths are not checked
            prompt, output = (min(max(n, 0), _MOST_TOKENS) for n in (job.prompt_tokens, job.output_tokens))
            job = structs.replace(job, prompt_tokens=prompt, output_tokens=output, step=self.calendar.step)
        if self.in_flight.setdefault(job.job_id, job) is not job:  # counted already
            return
        step, prompt, output = job.step, job.prompt_tokens, job.output_tokens
        if job.deaths:
            self.suspects[job.job_id] = job
        self.tokens_in_flight += prompt + output // 2
        self.changed.add(self.name)
        self.backlog.add(step, prompt - job.cached_tokens, output)
        self.calendar.add(step, prompt, output, guessed=job.guessed)
        self._guessed += job.guessed

    def unbind(
        self, job_id: str, computed_tokens: float | None = None, held_tokens: int = 0, now: float = 0.0
    ) -> InFlight | None:
        """Count a job as gone; None where it was not known here.

        Args:
            job_id: its id.
            computed_tokens: tokens of its prompt that were computed, where it ran.
            held_tokens: KV tokens that it held at its end; 0 where that is not known.
            now: when it ended, on the scheduler's clock.
        """
        job = self.in_flight.pop(job_id, None)
        if job is not None:
            self.suspects.pop(job_id, None)
            self.tokens_in_flight -= job.tokens
            self._ended += 1
            if self._ended >= self.look_after:
                self.changed.add(self.name)
            computed = 0.0 if computed_tokens is None else computed_tokens
            self.backlog.remove(job.step, job.prompt_tokens - job.cached_tokens, job.output_tokens, computed)
            counted = job.step, job.prompt_tokens, job.output_tokens
            if held_tokens > 0:
                self._gone.append((now, held_tokens))
                self.calendar.ended(*counted, held_tokens, guessed=job.guessed)
            else:
                self.calendar.add(*counted, guessed=job.guessed, sign=-1)
            self._guessed -= job.guessed
        return job

    def count_completed(self, jobs: int, now: float) -> None:
        """Follow the rate at which jobs end: an exponential average over some seconds."""
        elapsed = max(now - self._rate_at, 1e-3)
        gain = min(1.0, elapsed / _RATE_WINDOW_S)
        self.jobs_per_s += gain * (jobs / elapsed - self.jobs_per_s)
        self._rate_at = now

    def refresh(self, heartbeat: Heartbeat, now: float = 0.0) -> None:
        """Take over a newer heartbeat, true ``now`` on the scheduler's clock; learn the device's speed from it."""
        before, self.heartbeat = self.heartbeat, heartbeat
        if self._heard and heartbeat == before:  # we look more often than it comes
            return
        if self._worth_a_look(before, now):
            self.changed.add(self.name)
        if self.kind is None or _built(before) != _built(heartbeat):
            self._profile()
        told_before = self._heard and not heartbeat.tells_more_than(before)
        if not told_before:
            self._count_steps(before, now)
        self.backlog.computed(max(0, heartbeat.prompt_tokens_total - before.prompt_tokens_total))
        if told_before:
            return
        self._learn_rate(max(0.0, heartbeat.measured - before.measured))
        if self.kind is not None and heartbeat.measured > before.measured:
            self.drift.observe(self.kind, before, heartbeat, self.backlog.mean_prompt, self._next_prompt())
            kind, slowdown = self.kind, self.drift.calm
            if kind.slowdown != slowdown:
                self.kind = _kind_of(kind.profile, slowdown, kind.max_batched_tokens, kind.context_tokens)
                self.changed.add(self.name)

    def _worth_a_look(self, before: Heartbeat, now: float) -> bool:
        """Whether a heartbeat tells of room: with a thousand devices, looks cost more than placements."""
        beat = self.heartbeat
        if self.look_after <= 1 or not self.in_flight or now - self._looked >= _LONGEST_UNSEEN_S:
            return True
        return self.overfull or beat.state != before.state or _built(before) != _built(beat)

    def _next_prompt(self) -> float:
        """Tokens of the longest prompt that is not computed yet: those of the latest jobs are not."""
        left, longest = self.backlog.prompt_left, 0
        for job in reversed(self.in_flight.values()):
            if left <= 0:
                break
            left -= job.prompt_tokens
            longest = max(longest, job.prompt_tokens)
        return longest

    def looked_at(self, now: float, one_in: int) -> None:
        """Its room is known; the next look is for when one in so many of its jobs has ended (0: any)."""
        self._ended, self._looked = 0, now
        self.look_after = 1 + len(self.in_flight) // one_in if one_in else 1

    def depth(self, round_trip_s: float) -> int:
        """Jobs beyond the seats that hide the dispatch round trip: what ends meanwhile, and before the next look."""
        return min(max(self.heartbeat.seats, 1), int(self.jobs_per_s * round_trip_s * 2) + self.look_after)

    def _profile(self) -> None:
        beat = self.heartbeat
        if not beat.seats or not beat.kv_tokens_total:
            return
        known = parse_profile(beat.profile, beat.kv_tokens_total, beat.seats)
        profile = known or replace(_TYPICAL, kv_tokens=beat.kv_tokens_total, seats=beat.seats)
        self.drift = Drift()
        batched = max(beat.max_batched_tokens or _BATCHED_TOKENS, beat.seats)
        self.kind = _kind_of(profile, 1.0, batched, beat.context_tokens or 2**31)

    def pass_time(self, now: float) -> None:
        """The engine goes on stepping between two heartbeats."""
        if self._heard:
            self.calendar.advance(self._steps + self._steps_per_s * min(now - self._heard, _LONGEST_GUESS_S))

    def _count_steps(self, before: Heartbeat, now: float) -> None:
        """Follow the engine's steps; where it does not count them, from the tokens of the requests that ran."""
        beat = self.heartbeat
        if beat.steps_total:
            steps = float(beat.steps_total)
        else:
            tokens = max(0, beat.output_tokens_total - before.output_tokens_total)
            steps = self._steps + tokens / max((before.running + beat.running) / 2, 1.0)
        elapsed = beat.measured - before.measured
        if elapsed > 0:
            self._steps_per_s = min(max(0.0, steps - self._steps) / elapsed, _MOST_STEPS_PER_S)
            oldest = next(iter(self.in_flight.values()), None)
            busy = before.running and beat.running and oldest is not None and oldest.dispatched <= self._heard
            self._pace = self._steps_per_s if busy else 0.0
        self._steps, self._heard = steps, now
        self.calendar.advance(steps)
        held = beat.kv_tokens_total - beat.kv_tokens_free
        while self._gone and self._gone[0][0] <= now:
            self._gone.popleft()
        still_held = max(0, held - sum(tokens for _, tokens in self._gone))  # some have ended since
        self.calendar.tell(still_held, guessed=self._guessed > len(self.in_flight) / 2)
        total = max(beat.kv_tokens_total, 1)
        to_come = self.backlog.prompt_left / total
        expected = self._fill.expected(self.calendar) / total
        self.kv_share.observe(elapsed, held / total, to_come, beat.running, beat.waiting, expected)

    def _learn_rate(self, elapsed: float) -> None:
        rate = self.heartbeat.prompt_tokens_per_s + self.heartbeat.output_tokens_per_s
        if self._busy():
            gain = min(1.0, _SPEED_GAIN * elapsed) if self.speed else 1.0
            self.speed += gain * (rate - self.speed)
        else:
            self.speed = max(self.speed, rate)

    def _busy(self) -> bool:
        beat = self.heartbeat
        held = beat.kv_tokens_total - beat.kv_tokens_free
        return beat.running >= _BUSY_SHARE * beat.seats or held >= _BUSY_SHARE * beat.kv_tokens_total


@lru_cache(maxsize=4096)
def _kind_of(profile: Profile, slowdown: float, max_batched_tokens: int, context_tokens: int) -> DeviceKind:
    """The kind, one object for all devices of it: kinds are long to compare, and many devices are of one."""
    return DeviceKind(profile, slowdown=slowdown, max_batched_tokens=max_batched_tokens, context_tokens=context_tokens)


@dataclass(slots=True)
class Cluster:
    """The devices of one pool by name. ``changed`` names those that are not as they were at the last look."""

    devices: dict[str, Device] = field(default_factory=dict[str, Device])
    changed: set[str] = field(default_factory=set[str])

    def refresh(self, name: str, heartbeat: Heartbeat, now: float = 0.0) -> bool:
        """Take over a heartbeat, written ``now`` on the scheduler's clock.

        True where this is a new device: what it has in flight is not known yet.
        """
        device = self.devices.get(name)
        new = device is None or device.heartbeat.incarnation != heartbeat.incarnation
        if device is None or new:
            self.devices[name] = device = Device(name, heartbeat, changed=self.changed)
        device.refresh(heartbeat, now)
        return new

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget devices that are not in the pool any more."""
        alive = set(names)
        for name in [n for n in self.devices if n not in alive]:
            del self.devices[name]
            self.changed.add(name)

    def incarnations(self, names: Iterable[str]) -> dict[str, str]:
        """The lives of these workers that we know."""
        known = self.devices
        return {name: known[name].heartbeat.incarnation for name in names if name in known}

    def ready(self) -> list[Device]:
        """Devices that take jobs."""
        return [d for d in self.devices.values() if d.ready]
