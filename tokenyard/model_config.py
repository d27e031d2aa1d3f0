"""The shape of a model: from its folder, or from what is known of it by name."""

from __future__ import annotations

from pathlib import Path

import orjson

from broker.errors import InputFileError, UsageError
from planner.model_shape import ModelShape, known_models, known_shape, parse_config
from tokenyard.demo_model import DEMO_MODEL_NAMES


def read_model(model: str) -> ModelShape:
    """The shape of a model.

    Args:
        model: a folder with a config.json, or the name of a well-known model.

    Raises:
        InputFileError: its config.json cannot be read.
        UsageError: it is neither, or its config.json is no transformer's.
    """
    folder = Path(model)
    if folder.is_dir():
        return _of_folder(folder)
    shape = known_shape(DEMO_MODEL_NAMES[0] if model == "demo" else model)
    if shape is None:
        raise UsageError(
            f"--model {model}: no such folder, and the model is not known by name; give the folder with its "
            f"config.json, or one of {', '.join(known_models())}"
        )
    return shape


def _of_folder(folder: Path) -> ModelShape:
    path = folder / "config.json"
    try:
        config = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}: give a folder in Hugging Face form") from None
    except orjson.JSONDecodeError as error:
        raise InputFileError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no object")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return parse_config(config, folder.resolve().name, weights)
