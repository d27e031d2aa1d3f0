"""What tests start ends with them, also where they fail or are killed themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from child_processes import SETPRIV
from cluster_fixtures import eventually

_FAILS = """
from conftest import no_process_outlives_its_test
from child_processes import start_process
from cluster_fixtures import eventually
from test_child_processes import gone

started = []

async def test_that_fails():
    started.append(await start_process("sleep", "600"))
    assert False

async def test_after_it():
    await eventually(lambda: gone(started[0].pid), "the process is gone")
"""
_IS_KILLED = """
import asyncio, os, signal, subprocess
import psutil
from child_processes import start_process
from cluster_fixtures import eventually

async def start_and_be_killed():
    process = await start_process("sleep", "600", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await eventually(lambda: psutil.Process(process.pid).name() == "sleep", "setpriv has become the program")
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(start_and_be_killed())
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((here, str(Path(here).parent)))}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_test_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_FAILS)
    ended = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "test_it.py")
    assert "1 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.skipif(SETPRIV is None, reason="no setpriv (util-linux) on this machine")
async def test_a_test_run_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "-c", _IS_KILLED)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    await eventually(lambda: gone(int(ended.stdout)), "the process is gone")
