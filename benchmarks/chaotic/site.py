"""Workers and schedulers as processes, each started again when it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orjson
import psutil

from benchmarks.chaotic.jobs import CONTEXT_TOKENS, MODEL, OUTPUT_TOKENS
from benchmarks.cluster import Process
from broker.profiles import ProfileValues
from broker.throughput import Profile
from tokenyard.local_cluster import demo_workers, usable_cores
from workers.engines.cpu_precision import cpu_dtype

POOL = "chaos"
#: A step of the simulated devices (seconds).
STEP_S = 0.05


#: It began while Redis was away or read its file, or its server failed: whatever runs it tries again.
_TOO_EARLY = ("cannot reach Redis", "still loading", "does not answer: start it", "answers /v1/models with status")


class Kept:
    """A process that is there again some time after it was killed. Each of its lives has a log of its own."""

    def __init__(self, name: str, words: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.lives = 0
        self.kills = 0
        self.died: list[str] = []  # lives that nobody ended, and how they did
        self.stopped = False
        self.away_s = 0.5
        self.process: Process | None = None
        self._words = list(words)
        self._folder = folder
        self._environment = environment
        self._killed = False

    async def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        self._killed = self.stopped = False
        name = f"{self.name}.{self.lives}"
        self.process = Process(name, self._words, log_dir=self._folder, environment=self._environment)
        await self.process.start()

    @property
    def alive(self) -> bool:
        """Whether it runs, and is not stopped."""
        return self.process is not None and not self.process.ended and not self._killed and not self.stopped

    def kill(self, away_s: float = 0.5) -> None:
        """``kill -9``; it is there again so many seconds later."""
        assert self.process is not None, "start() comes first"
        self._killed = True
        self.away_s = away_s
        self.kills += 1
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)
        self.stopped = False

    def look(self) -> bool:
        """Whether it must be started again; notes an end that nobody brought about."""
        if self.process is None or not self.process.ended:
            return False
        how = self.process.how_it_ended()
        if not self._killed and not any(words in how for words in _TOO_EARLY):
            self.died.append(how)
        return True

    def memory_mb(self) -> float:
        """Resident memory of its life."""
        assert self.process is not None, "start() comes first"
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    async def end(self) -> None:
        """End it for good."""
        if self.process is not None:
            self._send(signal.SIGCONT)
            await self.process.stop()

    def _send(self, what: signal.Signals) -> None:
        assert self.process is not None, "start() comes first"
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, what)


class Site:
    """All processes of the pool; ``keep`` starts again what was killed."""

    def __init__(self, folder: Path, redis_url: str, engines: Sequence[Sequence[str]]) -> None:
        self.folder = folder
        self.environment = {"TOKENYARD_REDIS_URL": redis_url, "TOKENYARD_POOL": POOL, "NO_COLOR": "1"}
        words = ["worker", "--pool", POOL, "--context", str(CONTEXT_TOKENS)]
        self.workers = [
            self._kept(f"worker-{n}", [*words, *engine, "--name", f"worker-{n}"]) for n, engine in enumerate(engines)
        ]
        self.schedulers = [self._kept(f"scheduler-{n}", ["scheduler", "--pool", POOL]) for n in range(2)]

    @property
    def kept(self) -> list[Kept]:
        """Workers and schedulers."""
        return [*self.workers, *self.schedulers]

    async def start(self) -> None:
        """Start all."""
        await asyncio.gather(*(one.start() for one in self.kept))

    async def keep(self) -> None:
        """For ever: what was killed is there again after its time."""
        ended: dict[Kept, float] = {}
        while True:
            now = time.monotonic()
            for one in self.kept:
                if one.process is not None and one.process.ended and one not in ended:
                    one.look()
                    ended[one] = now
            for one in [one for one, at in ended.items() if now - at >= one.away_s]:
                del ended[one]
                await one.start()
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """End all for good."""
        await asyncio.gather(*(one.end() for one in self.kept))

    def tracebacks(self) -> list[str]:
        """Logs that hold one."""
        return [path.name for path in sorted(self.folder.glob("*.log")) if b"Traceback" in path.read_bytes()]

    def _kept(self, name: str, words: list[str]) -> Kept:
        return Kept(name, words, self.folder, self.environment)


def device_of(seats: int) -> Profile:
    """A simulated device."""
    return Profile(0, 0, 0, STEP_S, 0, 0, kv_tokens=seats * CONTEXT_TOKENS, seats=seats)


def simulated_engines(folder: Path, workers: int, seats: int) -> list[list[str]]:
    """Options of workers with simulated engines."""
    profile = folder / "profile.json"
    profile.write_bytes(orjson.dumps(ProfileValues.of(device_of(seats)).model_dump()))
    return [["--engine", "simulated", "--model", MODEL, "--profile", str(profile)]] * workers


def attached_engines(urls: Sequence[str], seats: int) -> list[list[str]]:
    """Options of workers that are attached to these servers."""
    words = ["--engine", "openai", "--model", MODEL, "--seats", str(seats), "--kv-tokens", str(seats * CONTEXT_TOKENS)]
    return [[*words, "--url", url] for url in urls]


def vllm_engines() -> list[list[str]]:
    """Options of the demo's two workers, which serve its model under the name that the jobs call."""
    words = ["--model", "demo", "--served-name", MODEL]
    return [[*words, *spec.options] for spec in demo_workers(usable_cores(), cpu_dtype())]


def seats_for(jobs_per_s: float, workers: int) -> int:
    """Seats of each device, for so many jobs a second on all of them."""
    mean_s = sum(OUTPUT_TOKENS) / 2 * STEP_S
    return max(round(jobs_per_s * mean_s / workers), 2)
