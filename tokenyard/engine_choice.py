"""From the words of the command line to an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from broker.engine_steps import EngineStep
from broker.errors import UsageError
from tokenyard.demo_model import DEMO_MODEL_NAMES, prepare_demo_model
from tokenyard.paths import model_cache
from tokenyard.profile_file import read_profile_file
from workers.engines.base import Engine


class EngineKind(StrEnum):
    """What runs the requests of a worker."""

    VLLM = "vllm"
    OPENAI = "openai"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """One engine as a person asked for it; what is None or empty is left to the engine. See ``tokenyard worker``."""

    kind: EngineKind
    model: str
    served_names: tuple[str, ...] = ()
    seats: int | None = None
    context_tokens: int | None = None
    task: str = "generate"
    dtype: str = "auto"
    kv_gib: float | None = None
    cores: str | None = None
    tensor_parallel: int = 1
    gpu_memory_utilization: float | None = None
    eager: bool = False
    engine_args: tuple[str, ...] = ()
    url: str | None = None
    api_key: str | None = None
    upstream_model: str | None = None
    kv_tokens: int | None = None
    profile: Path | None = None
    speed: float = 1.0
    mean_output_tokens: float = 128.0
    poll_s: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may call the model by."""
        return names_of(self.model, self.served_names)


def names_of(model: str, served_names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names that requests may call a model by: the ones asked for, else its own."""
    if served_names:
        return served_names
    return DEMO_MODEL_NAMES if model == "demo" else (model,)


def build_engine(
    choice: EngineChoice, report: Callable[[str], None], *, observe: Callable[[EngineStep], None] | None = None
) -> Engine:
    """The engine that was asked for, not started.

    Args:
        report: told about long steps (making the demo's model).
        observe: told about every step, by an engine that can.

    Raises:
        TokenyardError: an option is missing or makes no sense.
    """
    match choice.kind:
        case EngineKind.VLLM:
            return _vllm(choice, report, observe)
        case EngineKind.OPENAI:
            return _openai(choice)
        case EngineKind.SIMULATED:
            return _simulated(choice)


def _vllm(choice: EngineChoice, report: Callable[[str], None], observe: Callable[[EngineStep], None] | None) -> Engine:
    from workers.engines.vllm import VllmEngine
    from workers.engines.vllm_options import VllmOptions
    from workers.engines.vllm_process import check_model

    if choice.task not in ("generate", "embed"):
        raise UsageError(f"--task {choice.task}: give generate or embed")
    model = choice.model
    if model == "demo":
        model = str(prepare_demo_model(model_cache(), report))
    options = VllmOptions(
        model=model,
        served_names=choice.names,
        task=choice.task,
        dtype=choice.dtype,
        seats=choice.seats,
        context_tokens=choice.context_tokens,
        kv_gib=choice.kv_gib,
        cores=choice.cores,
        gpu_memory_utilization=choice.gpu_memory_utilization,
        tensor_parallel_size=choice.tensor_parallel,
        enforce_eager=choice.eager,
        engine_args=_engine_args(choice.engine_args, tell_steps=observe is not None),
    )
    check_model(model)  # before the worker joins its pool: a model that is not there is nobody's to serve
    return VllmEngine(options, observe)


def _engine_args(words: tuple[str, ...], *, tell_steps: bool) -> dict[str, Any]:
    given = dict(_pair(text) for text in words)
    return {"enable-logging-iteration-details": True, **given} if tell_steps else given


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--engine-arg {text}: write it as name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _openai(choice: EngineChoice) -> Engine:
    from workers.engines.openai import OpenAIEngine, OpenAIOptions

    if choice.url is None:
        raise UsageError("--engine openai needs --url, the address of the server to attach to")
    options = OpenAIOptions(
        url=choice.url, model=choice.names[0], upstream_model=choice.upstream_model, api_key=choice.api_key
    )
    return OpenAIEngine(
        replace(
            options,
            seats=choice.seats or options.seats,
            kv_tokens=choice.kv_tokens or options.kv_tokens,
            context_tokens=choice.context_tokens or options.context_tokens,
            poll_s=choice.poll_s or options.poll_s,
        )
    )


def _simulated(choice: EngineChoice) -> Engine:
    from workers.engines.simulated import SimulatedEngine
    from workers.engines.simulated_options import INSTANT, SimulatedOptions

    profile = read_profile_file(choice.profile).profile if choice.profile else INSTANT
    profile = replace(profile, seats=choice.seats or profile.seats, kv_tokens=choice.kv_tokens or profile.kv_tokens)
    return SimulatedEngine(
        SimulatedOptions(
            profile=profile,
            models=choice.names,
            context_tokens=choice.context_tokens or 32_768,
            speed=choice.speed,
            mean_output_tokens=choice.mean_output_tokens,
        )
    )
