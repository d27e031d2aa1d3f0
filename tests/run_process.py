"""``tokenyard run`` as a process, over files of its own, with workers that simulate."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from batch_lines import ids_in
from child_processes import start_process
from cli_process import ROOT, Ended, Running, environment
from cluster_fixtures import PATIENCE_S

CHAT = "/v1/chat/completions"
#: The environment of every process that belongs to a run of ours names it.
_MARK = "TEST_RUN"
#: Looking at all processes of the machine costs more than most looks (seconds).
_LOOK_S = 0.1
#: Ten steps a second, four requests at once.
_SLOW = dict.fromkeys(["prefill_a", "prefill_b", "prefill_c", "decode_e", "decode_f"], 0.0)
_SLOW.update(decode_d=0.1, kv_tokens=100_000, seats=4)


def line(custom_id: str, *, tokens: int = 3, url: str = CHAT, **body: Any) -> bytes:
    """A request for the model ``m`` that takes that many steps of the simulated engine."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": tokens} | body
    body |= {"ignore_eos": True}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def lines(count: int, *, prefix: str = "r", tokens: int = 3) -> list[bytes]:
    """Requests with the ids ``r0``, ``r1``, …"""
    return [line(f"{prefix}{number}", tokens=tokens) for number in range(count)]


@dataclass
class Place:
    """A folder in which ``tokenyard run`` is started, again and again, over the same files.

    Attributes:
        url: Redis' address; empty: each run brings its own server.
        settings: more of the environment.
    """

    folder: Path
    url: str = ""
    settings: dict[str, str] = field(default_factory=lambda: {"TOKENYARD_LEASE_TTL_S": "1"})
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def source(self) -> Path:
        """The batch file."""
        return self.folder / "in.jsonl"

    @property
    def out(self) -> Path:
        """The output file."""
        return self.folder / "out.jsonl"

    @property
    def errors(self) -> Path:
        """The error file."""
        return self.folder / "out.errors.jsonl"

    @property
    def server_url(self) -> str:
        """The address of the server that runs bring."""
        return self.url or f"unix://{self.folder}/state/redis/server.sock?db=0"

    @property
    def slow(self) -> str:
        """Options of a worker that takes its time."""
        profile = self.folder / "slow.json"
        profile.write_text(json.dumps(_SLOW))
        return f"--engine simulated --profile {profile}"

    def write(self, requests: Sequence[bytes]) -> None:
        """Make the batch file."""
        self.source.write_bytes(b"\n".join(requests) + b"\n")

    async def start(self, *words: str | Path, url: str | None = None) -> Running:
        """Start ``tokenyard`` with these words."""
        process = await start_process(
            *(sys.executable, "-m", "tokenyard", *map(str, words)),
            cwd=ROOT,
            env=environment(self.url if url is None else url) | self.settings | {_MARK: self.mark},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return Running(process)

    async def start_run(self, *workers: str, source: Path | None = None, words: Sequence[str] = ()) -> Running:
        """Start ``tokenyard run`` over the files, with these workers for the model ``m``."""
        options = [word for worker in workers for word in ("--worker", worker)]
        where: list[str | Path] = [source or self.source, "-o", self.out, "--state-dir", self.folder / "state"]
        return await self.start("run", *where, "--model", "m", *options, *words)

    async def run(self, *workers: str, source: Path | None = None, words: Sequence[str] = ()) -> Ended:
        """Run ``tokenyard run`` to its end: no traceback, nothing left behind."""
        return await self.end(await self.start_run(*workers, source=source, words=words))

    async def end(self, running: Running) -> Ended:
        """Wait until a run ends: no traceback, nothing left behind."""
        ended = await running.end()
        assert "Traceback" not in ended.err
        await self.nothing_left()
        return ended

    def written(self) -> int:
        """Responses in the output file so far."""
        return len(ids_in(self.out)) if self.out.exists() else 0

    def each_once(self, count: int, prefix: str = "r") -> None:
        """Every id of ``lines`` has one response, and nothing else is there."""
        assert Counter(ids_in(self.out)) == {f"{prefix}{number}": 1 for number in range(count)}
        assert not self.errors.exists()
        assert sorted(path.name for path in self.folder.glob(".out*")) == []

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of these runs, whose command holds all these words."""
        return [process for process in psutil.process_iter() if self._is_ours(process, words)]

    def _is_ours(self, process: psutil.Process, words: Sequence[str]) -> bool:
        try:
            command = process.cmdline()
            # Shells that watch over the processes go a moment after them; others are about to become one.
            if not command or command[0] in ("sh", "/bin/sh", "sleep"):
                return False
            # The server writes its title, with the path of its socket, over its environment.
            ours = process.environ().get(_MARK) == self.mark or any(str(self.folder) in word for word in command)
            return ours and all(word in command for word in words)
        except psutil.Error:
            return False

    def server(self) -> psutil.Process:
        """The embedded server, which runs."""
        [server] = [process for process in self.processes() if process.name() == "valkey-server"]
        return server

    async def process(self, *words: str) -> psutil.Process:
        """The one process of these runs with these words, once it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := self.processes("tokenyard", *words)):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(_LOOK_S)
        [process] = found
        return process

    async def nothing_left(self) -> None:
        """Wait until every process has ended."""
        async with asyncio.timeout(PATIENCE_S):
            while self.processes():  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(_LOOK_S)

    def clear(self) -> None:
        """Kill what a failed test left; a test that passes leaves nothing."""
        left = self.processes()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        assert left == []


def is_one_line(text: str) -> bool:
    """Whether a command said one thing only: what is wrong."""
    return text.startswith("error: ") and text.count("\n") == 1


def last_line(ended: Ended) -> str:
    """The last that it said."""
    return ended.err.splitlines()[-1]
