"""Which options of ``tokenyard worker`` a plan may give: those that size an engine. Pure.

Whoever can write to Redis can write a plan. A plan must not make a host load code or a model of the writer's choice,
nor send an API key somewhere. So which models may run is said where the process is started; how large comes out of
Redis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker

_WITH_VALUE = frozenset(
    {
        "--context",
        "--cores",
        "--dtype",
        "--engine",
        "--engine-arg",
        "--gpu-memory-utilization",
        "--kv-gib",
        "--kv-tokens",
        "--mean-output-tokens",
        "--model",
        "--profile",
        "--seats",
        "--served-name",
        "--speed",
        "--task",
        "--tensor-parallel",
    }
)
_WITHOUT_VALUE = frozenset({"--eager", "--no-eager"})
_ENGINES = frozenset({"vllm", "simulated"})
#: Of vLLM's own options, those that are numbers or choices about size and speed.
_ENGINE_ARGS = frozenset(
    {"block-size", "enable-prefix-caching", "kv-cache-dtype", "max-num-batched-tokens", "num-gpu-blocks-override"}
)


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options among these words with their values (empty where they have none).

    Raises:
        UsageError: a word is no option that a plan may give, or a value is missing.
    """
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in _WITHOUT_VALUE and not equals:
            yield name, ""
            continue
        if name not in _WITH_VALUE:
            raise UsageError(f"{word[:100]!r} is no option that a plan may give a worker")
        if not equals:
            value = next(rest, "")
        if not value:
            raise UsageError(f"the option {name} has no value")
        yield name, value


def check_options(words: Sequence[str], models: Collection[str]) -> None:
    """See that a plan may give a worker these options.

    Args:
        words: options of ``tokenyard worker``.
        models: models that may be run, as this host's operator named them.

    Raises:
        UsageError: it may not; the message names the first that is wrong.
    """
    for name, value in options_of(words):
        if name == "--model" and value not in models:
            raise UsageError(f"the model {value[:200]!r} is none of those that may run here: {', '.join(models)}")
        if name == "--engine" and value not in _ENGINES:
            raise UsageError(f"--engine {value[:100]}: a plan may give {' or '.join(sorted(_ENGINES))}")
        if name == "--engine-arg" and value.partition("=")[0].replace("_", "-") not in _ENGINE_ARGS:
            raise UsageError(f"--engine-arg {value[:100]}: a plan may give {', '.join(sorted(_ENGINE_ARGS))}")


def devices_of(worker: PlannedWorker) -> frozenset[str]:
    """The devices that are a worker's own: cores where its options name some, else GPUs."""
    kind = "core" if names_cores(worker.options) else "gpu"
    return frozenset(f"{kind} {index}" for index in worker.devices)


def names_cores(words: Sequence[str]) -> bool:
    """Whether a worker keeps to cores."""
    return any(word.partition("=")[0] == "--cores" for word in words)


def with_model(words: Sequence[str], models: Sequence[str]) -> tuple[str, ...]:
    """The options with a model: the first that may be run, where they name none."""
    if any(name == "--model" for name, _ in options_of(words)):
        return tuple(words)
    return ("--model", models[0], *words)
