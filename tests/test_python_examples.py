"""The examples and the stages for tables, against a cluster on a server of its own: it serves one model."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import start_process
from cli_process import ROOT, environment
from cluster_fixtures import PATIENCE_S, Cluster, cluster_of, eventually, instant_engine

from tokenyard.client import Client, RequestError
from tokenyard.client.batch_result import RequestFailedError
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.integrations import ColumnStage, answers, map_frame, map_parquet, map_table
from tokenyard.integrations.columns import MissingExtraError

#: Examples and the module that each needs.
EXAMPLES = {
    "map_prompts": "",
    "pipeline_step": "",
    "async_stream": "",
    "pandas_column": "pandas",
    "parquet_file": "pyarrow",
    "hugging_face_dataset": "datasets",
    "ray_data": "ray",
}


def installed(module: str) -> bool:
    return not module or importlib.util.find_spec(module) is not None


@pytest.fixture
async def cluster(tmp_path: Path, pool: str) -> AsyncIterator[Cluster]:
    async with EmbeddedServer(tmp_path / "redis") as server, cluster_of(server.url, pool) as running:
        await running.join("w", instant_engine(running.model))
        running.schedule()
        yield running


async def run_example(name: str, url: str) -> list[str]:
    """The lines that an example prints."""
    return await run_script(ROOT / "examples" / f"{name}.py", url)


async def start_script(path: Path, url: str) -> asyncio.subprocess.Process:
    return await start_process(
        sys.executable,
        str(path),
        cwd=ROOT,
        env=environment(url) | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run_script(path: Path, url: str) -> list[str]:
    """The lines that a program prints."""
    process = await start_script(path, url)
    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


def test_every_example_is_listed() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def example(name: str, module: str) -> Any:
    """Skipped before anything is started for it."""
    return pytest.param(name, marks=pytest.mark.skipif(not installed(module), reason=f"{module} is not installed"))


@pytest.mark.parametrize("name", [example(name, module) for name, module in EXAMPLES.items()])
async def test_an_example_runs(name: str, cluster: Cluster) -> None:
    lines = await run_example(name, cluster.url)
    assert lines
    if name == "pipeline_step":
        again = await run_example(name, cluster.url)
        assert (lines[0], again[0]) == ("3 queued, 0 known already", "0 queued, 3 known already")
        assert sorted(lines[1:]) == sorted(again[1:])
    if name == "async_stream":
        assert lines[0].startswith("1000 answers, ")


class TestColumns:
    async def test_each_value_gets_its_answer(self, cluster: Cluster) -> None:
        def work() -> None:
            with Client(cluster.url, durable=False) as client:
                assert answers(client, []) == []
                found = answers(client, ["a", None, "b"], max_tokens=3)
                assert [text is None for text in found] == [False, True, False]
                assert answers(client, ["a", None], ids=["x", "y"], system="Be short.", batch="k") != [None, None]
                assert answers(client, ["b", "a"], ids=["z", "x"], batch="k")
                assert client.status("k").total == 2  # x was known
                with pytest.raises(RequestError, match="2 values have 1 ids"):
                    answers(client, ["a", "b"], ids=["x"])
                too_long = ["word " * 200_000]
                assert answers(client, too_long) == [None]
                with pytest.raises(RequestFailedError, match="tokenyard explain"):
                    answers(client, too_long, strict=True)

        await asyncio.to_thread(work)

    async def test_a_stage_runs_the_same_rows_once(self, cluster: Cluster) -> None:
        def work() -> None:
            stage = ColumnStage("q", batch="k", url=cluster.url, max_tokens=3)
            rows: dict[str, Any] = {"q": np.array(["a", "b"], dtype=object), "n": np.array([1, 2])}
            first, again = stage(rows), stage(rows)
            assert list(first) == ["q", "n", "answer"]
            assert first["answer"] == again["answer"]
            stage({"q": ["a"]})
            assert stage({"q": np.array([np.nan, np.nan])})["answer"] == [None, None]  # rows without a prompt
            stage.close()
            copy = ColumnStage.__new__(ColumnStage)
            copy.__dict__.update(stage.__getstate__())  # as another process gets it
            assert copy(rows)["answer"] == first["answer"]
            copy.close()

        await asyncio.to_thread(work)
        batches = await cluster.monitor.batches()
        assert len(batches) == 2
        assert [(await cluster.client.counts(batch)).total for batch in sorted(batches)] in ([1, 2], [2, 1])

    async def test_what_is_missing_is_said(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("pandas", "pyarrow"):
            monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed

        def work() -> None:
            with Client(cluster.url) as client:
                with pytest.raises(MissingExtraError, match=r"pandas is not installed: pip install 'tokenyard\[pandas"):
                    map_frame(client, {}, "q")
                for look in (lambda: map_table(client, {}, "q"), lambda: map_parquet(client, "in", tmp_path, "q")):
                    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed: pip install 'tokenyard"):
                        look()

        await asyncio.to_thread(work)


async def test_ctrl_c_ends_a_map_and_its_batch(tmp_path: Path, pool: str) -> None:
    async with EmbeddedServer(tmp_path / "redis") as server, cluster_of(server.url, pool) as cluster:
        await cluster.register_model()
        script = tmp_path / "waits.py"
        script.write_text("from tokenyard import Client\nwith Client() as client:\n    list(client.map(['a', 'b']))\n")
        process = await start_script(script, server.url)
        try:

            async def is_read() -> bool:
                batches = await cluster.monitor.batches()
                return bool(batches) and (await cluster.client.counts(batches[0])).sealed

            await eventually(is_read)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE_S):
                _, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        said = err.decode()
        assert "KeyboardInterrupt" in said
        assert "RuntimeError" not in said
        [batch] = await cluster.monitor.batches()
        assert (await cluster.client.counts(batch)).state == "cancelled"


async def test_the_page_for_authors_runs(cluster: Cluster, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text()
    script = tmp_path / "snippet.py"
    script.write_text(page.partition("```python\n")[2].partition("```")[0])
    assert len(await run_script(script, cluster.url)) == 2
