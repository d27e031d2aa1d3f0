"""What surrounds a vLLM engine, without starting one: options, refusals before vLLM is loaded, stderr, orphans."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from workers.engines.base import EngineStartError
from workers.engines.vllm import VllmEngine
from workers.engines.vllm_options import VllmOptions
from workers.engines.vllm_process import StderrRelay, parse_cores, root_cause


def start_error(options: VllmOptions) -> str:
    async def start() -> None:
        engine = VllmEngine(options)
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(EngineStartError) as caught:
        asyncio.run(start())
    return str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/model", "./no-such-model", "a/b/c"])
def test_a_model_that_is_not_there(model: str) -> None:
    assert start_error(VllmOptions(model)) == f"model {model}: no such directory"


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    assert "there is no config.json" in start_error(VllmOptions(str(tmp_path)))


@pytest.mark.parametrize("cores", ["x", "", "1-", "3-1", "999"])
def test_cores_that_are_none(cores: str) -> None:
    with pytest.raises(EngineStartError, match=f"^cores {cores!r}: "):
        parse_cores(cores)


def test_vllm_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "tokenyard[cpu]" in start_error(VllmOptions(str(tmp_path)))


def test_options_in_vllms_words() -> None:
    extra = {"enable_prefix_caching": False, "enforce-eager": True, "hf_overrides": {"a": 1}, "seed": 3}
    words = VllmOptions("m", ("a", "b"), task="embed", kv_gib=0.5, engine_args=extra).flags()
    line = " ".join(words)
    for expected in (
        "--model m --served-model-name a b --runner pooling --convert embed",
        "--kv-cache-memory-bytes 536870912",
        "--no-enable-prefix-caching",
        "--enforce-eager --seed 3",
        '--hf-overrides {"a": 1}',
    ):
        assert expected in line
    assert "None" not in line


def test_what_a_failed_start_printed_is_held_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    said = (
        "(Worker pid=1) ERROR ValueError: too small",
        "not of vLLM",
        "Process EngineCore:",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    )
    relay = StderrRelay()
    with relay:
        subprocess.run([sys.executable, "-c", f"import sys; sys.stderr.write({chr(10).join(said)!r})"], check=True)
    assert root_cause(relay.drain()) == "too small"
    assert capfd.readouterr().err == "not of vLLM\n"
    relay.release()
    assert capfd.readouterr().err == "\n".join([said[0], *said[2:]])


def test_nobody_outlives_a_killed_process() -> None:
    script = (
        "import subprocess, sys; from workers.engines.vllm_process import OrphanGuard\n"
        "guard, child = OrphanGuard(), subprocess.Popen(['sleep', '600'])\n"
        "guard.watch(child.pid); print(child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([child], timeout=60)[1] == []
