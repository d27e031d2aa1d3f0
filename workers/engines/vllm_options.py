"""How to run one model with vLLM, and what that is called on vLLM's command line. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What to load, and how much of the device to take. What is None is left to vLLM.

    Attributes:
        model: a directory in Hugging Face form, or a name on the hub.
        served_names: names that requests may call the model by (``model`` itself where empty).
        task: ``generate`` (chat and text completions) or ``embed`` (embeddings).
        dtype: precision of weights and KV cache: ``auto``, ``bfloat16``, ``float16``, ``float32``.
        seats: most requests that run at once (``max_num_seqs``).
        context_tokens: longest prompt plus output (``max_model_len``).
        kv_gib: GiB of KV cache, on GPU and CPU alike; may be a fraction.
        cores: the CPUs this worker keeps to, for example ``0-3``; a CPU engine's ranks separated by ``|``.
        gpu_memory_utilization: share of the device's memory to use, where ``kv_gib`` is None.
        tensor_parallel_size: devices that share the model.
        max_num_batched_tokens: most tokens computed in one step.
        enforce_eager: do not compile the model: starts sooner.
        seed: seed of the engine.
        engine_args: any other option of ``vllm serve``, named without dashes in front. True and False are
            flags, lists and objects what they are in JSON.
    """

    model: str
    served_names: tuple[str, ...] = ()
    task: Literal["generate", "embed"] = "generate"
    dtype: str = "auto"
    seats: int | None = None
    context_tokens: int | None = None
    kv_gib: float | None = None
    cores: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    seed: int | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may call the model by; responses carry the first."""
        return self.served_names or (self.model,)

    def flags(self) -> list[str]:
        """Return the options as words of vLLM's command line."""
        embeds = self.task == "embed"
        settings: dict[str, Any] = {
            "model": self.model,
            "served-model-name": list(self.names),
            "runner": "pooling" if embeds else None,
            "convert": "embed" if embeds else None,
            "dtype": self.dtype,
            "max-num-seqs": self.seats,
            "max-model-len": self.context_tokens,
            "kv-cache-memory-bytes": None if self.kv_gib is None else int(self.kv_gib * _GIB),
            "gpu-memory-utilization": self.gpu_memory_utilization,
            "tensor-parallel-size": self.tensor_parallel_size,
            "max-num-batched-tokens": self.max_num_batched_tokens,
            "enforce-eager": self.enforce_eager or None,
            "seed": self.seed,
            # OpenAI's API always tells how much of a prompt was cached; vLLM does so only when asked.
            "enable-prompt-tokens-details": True,
            "use-tqdm-on-load": False,
        }
        settings |= {name.replace("_", "-"): value for name, value in self.engine_args.items()}
        return [word for name, value in settings.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    match value:
        case None:
            return []
        case True | "true" | "True":
            return [f"--{name}"]
        case False | "false" | "False":
            return [f"--no-{name}"]
        case list():
            return [f"--{name}", *(str(item) for item in value)]  # type: ignore[reportUnknownVariableType]
        case dict():
            return [f"--{name}", json.dumps(value)]
        case _:
            return [f"--{name}", str(value)]
