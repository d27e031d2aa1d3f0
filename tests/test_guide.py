"""docs/guide.md from its first snippet to its last: three folders stand for the hosts, each with a shell of its own."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from child_processes import start_process
from cli_process import ROOT, environment
from cluster_fixtures import PATIENCE_S, eventually
from redis_servers import free_ports
from test_compose import parse_command

from tokenyard.embedded_server import find_binary

#: A tenth of the page's prompts: what is simulated takes its time.
TEXT = (ROOT / "docs" / "guide.md").read_text().replace("range(4000)", "range(400)")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
_ON = re.compile(r"# on (h\d)\n")


@dataclass
class Host:
    """A folder and a shell in it, which goes on from snippet to snippet."""

    folder: Path
    shell: asyncio.subprocess.Process
    ran: int = field(default=0)

    async def run(self, code: str) -> str:
        """Run a snippet; what it printed (and what goes on meanwhile). Fails where one of its commands does."""
        self.ran += 1
        done = self.folder / f"done-{self.ran}"
        before = len(self.said())
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{code}\ntouch {done}\n".encode())
        await self.shell.stdin.drain()

        def ended() -> bool:
            assert self.shell.returncode is None, f"{code}\n{self.said()}"
            return done.exists()

        await self.until(ended, code)
        return self.said()[before:]

    async def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait until that is so; fails with all that was printed here."""
        try:
            await eventually(look, what, 3 * PATIENCE_S)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.said()}") from None

    def said(self) -> str:
        """All that was printed here."""
        return (self.folder / "log").read_text()


@asynccontextmanager
async def host(folder: Path, programs: Path) -> AsyncGenerator[Host]:
    """A host for the length of the block; what was started on it ends with it."""
    folder.mkdir()  # noqa: ASYNC240
    named = environment("") | {"PATH": f"{programs}:{os.environ['PATH']}", "NO_COLOR": "1"}
    named |= {"TOKENYARD_DEAD_AFTER_S": "2", "PYTHONPATH": str(ROOT)}
    del named["TOKENYARD_REDIS_URL"]
    with (folder / "log").open("wb") as log:
        shell = await start_process(
            *("bash", "-eu"),
            cwd=folder,
            env=named,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Host(folder, shell)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        await shell.wait()


def programs(folder: Path) -> Path:
    """What the snippets call: this Python's tokenyard, and a Redis."""
    folder.mkdir()
    called = {
        "tokenyard": [sys.executable, "-m", "tokenyard"],
        "python": [sys.executable],
        "redis-server": [str(find_binary())],
    }
    for name, words in called.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o755)
    return folder


async def test_the_guide_from_one_machine_to_three(tmp_path: Path) -> None:
    redis_port, gateway_port = free_ports(2)
    bin_folder = programs(tmp_path / "bin")
    waits = {"redis-server": "Ready to accept", "tokenyard worker": "is ready", "tokenyard serve": "OPENAI_BASE_URL"}
    said: list[tuple[str, str]] = []
    async with (
        host(tmp_path / "h1", bin_folder) as h1,
        host(tmp_path / "h2", bin_folder) as h2,
        host(tmp_path / "h3", bin_folder) as h3,
    ):
        hosts = {"h1": h1, "h2": h2, "h3": h3}
        for language, code in BLOCKS:
            if language == "python":
                said.append((code, await h1.run(f"python - <<'END'\n{code}END")))
                continue
            place = _ON.match(code)
            if place is None:
                continue
            for old, new in {"h1:": "127.0.0.1:", "0.0.0.0": "127.0.0.1", "6379": str(redis_port)}.items():
                code = code.replace(old, new)
            code = code.replace("8080", str(gateway_port))
            if "PASSWORD" in code:
                code = code.replace("PASSWORD", (h1.folder / "password").read_text().strip())
            there = hosts[place[1]]
            before = len(there.said())
            said.append((code, await there.run(code)))
            for command, sign in waits.items():
                if re.search(rf"^{command} .*&$", code, re.MULTILINE):
                    await there.until(lambda: sign in there.said()[before:], code)  # noqa: B023
        for name in ("answers", "answers-1", "answers-2"):
            assert len((h1.folder / f"{name}.jsonl").read_bytes().splitlines()) == 400
    outputs = {code.splitlines()[-1]: output for code, output in said}
    assert '"custom_id"' in outputs["head -1 answers.jsonl"]
    assert "400 answers-2.jsonl" in outputs["wc -l answers-2.jsonl"]
    assert all(worker in outputs["tokenyard report $batch"] for worker in ("w1", "w2", "w3"))
    assert "chat.completion" in said[-1][1]


def test_the_commands_that_need_real_devices_are_ours() -> None:
    codes = [code for language, code in BLOCKS if language == "sh" and not _ON.match(code)]
    assert len(codes) == 2
    for line in "".join(codes).splitlines():
        parse_command(shlex.split(line.removesuffix("&")))
