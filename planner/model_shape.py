"""What a model asks of its devices: bytes of weights and of KV cache, and how it may be split. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import UsageError

#: Bytes of one weight, and of one value in the KV cache, by vLLM's names of precisions.
DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer, as far as planning needs it.

    Attributes:
        name: the model's name.
        parameters: how many weights.
        layers: transformer layers.
        hidden_size: width of the residual stream.
        attention_heads: query heads: a tensor-parallel degree must divide them.
        kv_heads: key and value heads.
        head_size: width of a head.
        vocabulary: tokens it knows.
        context_tokens: longest prompt plus output.
        dtype: precision in which it was published.
    """

    name: str
    parameters: int
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    dtype: str = "bfloat16"

    def weight_bytes(self, dtype: str = "") -> int:
        """Bytes of all weights."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]

    def kv_bytes(self, dtype: str = "", tensor_parallel: int = 1) -> float:
        """Bytes that a token of context holds over all devices: keys and values of each layer.

        With more devices than key heads, vLLM keeps a copy of each head on several of them.
        """
        heads = max(self.kv_heads, tensor_parallel)
        return 2.0 * self.layers * heads * self.head_size * DTYPE_BYTES[dtype or self.dtype]

    def can_split(self, degree: int) -> bool:
        """Whether vLLM runs it over so many devices: its query heads, and its key heads or their copies, must share
        out.

        See ``vllm.config.ModelConfig.verify_with_parallel_config`` and ``get_num_kv_heads``.
        """
        return self.attention_heads % degree == 0 and (self.kv_heads % degree == 0 or degree % self.kv_heads == 0)

    @property
    def reduced_bytes(self) -> int:
        """Bytes a token that tensor parallelism adds up over the devices: twice a layer, one vector of 16-bit
        values."""
        return 2 * self.layers * self.hidden_size * 2

    @property
    def reductions(self) -> int:
        """Such sums in one pass through the model: after attention, and after the feed-forward part of each layer."""
        return 2 * self.layers


def parse_config(config: Mapping[str, Any], name: str, weight_file_bytes: int = 0) -> ModelShape:
    """The shape from a ``config.json`` in Hugging Face form.

    Args:
        config: the file's content.
        name: what to call the model.
        weight_file_bytes: bytes of its safetensors files, which tell the number of weights exactly; 0: reckoned from
            the layers, as in Llama (gated feed-forward, no biases).

    Raises:
        UsageError: a field is missing, or is no count.
    """
    text = config.get("text_config")
    fields: Mapping[str, Any] = {**config, **text} if isinstance(text, dict) else config
    layers, hidden, inner, heads, vocabulary = (_count(fields, key, name) for key in _COUNTS)
    kv_heads = _count(fields, "num_key_value_heads", name, heads)
    head_size = _count(fields, "head_dim", name, hidden // heads)
    dtype = str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16")
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"{name}: config.json: dtype {dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    attention = hidden * head_size * (2 * heads + 2 * kv_heads)
    embeddings = vocabulary * hidden * (1 if fields.get("tie_word_embeddings") else 2)
    reckoned = layers * (attention + 3 * hidden * inner + 2 * hidden) + embeddings + hidden
    parameters = weight_file_bytes // DTYPE_BYTES[dtype] or reckoned
    context = _count(fields, "max_position_embeddings", name, 2**31)
    return ModelShape(name, parameters, layers, hidden, heads, kv_heads, head_size, vocabulary, context, dtype)


def _count(fields: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    value = fields.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**40:
        raise UsageError(f"{name}: config.json: {key} is {value!r}, not a count: is this a transformer's config.json?")
    return value


#: Shapes of models that plans are often made for, from their config.json on the Hugging Face hub; weights as counted
#: there.
_KNOWN = (
    ModelShape("Llama-3.1-8B", 8_030_261_248, 32, 4096, 32, 8, 128, 128_256, 131_072),
    ModelShape("Llama-3.1-70B", 70_553_706_496, 80, 8192, 64, 8, 128, 128_256, 131_072),
    ModelShape("Llama-2-7B", 6_738_415_616, 32, 4096, 32, 32, 128, 32_000, 4096, "float16"),
    ModelShape("Llama-2-70B", 68_976_648_192, 80, 8192, 64, 8, 128, 32_000, 4096, "float16"),
    ModelShape("Qwen3-32B", 32_762_123_264, 64, 5120, 64, 8, 128, 151_936, 40_960),
    ModelShape("SmolLM2-135M-Instruct", 134_515_008, 30, 576, 9, 3, 64, 49_152, 8192),
)


def known_shape(name: str) -> ModelShape | None:
    """The shape of a well-known model, by its name with or without its publisher; None where it is not one of them."""
    short = name.rpartition("/")[2].casefold().removesuffix("-instruct").removeprefix("meta-")
    for shape in _KNOWN:
        if shape.name.casefold().removesuffix("-instruct") == short:
            return shape
    return None


def known_models() -> tuple[str, ...]:
    """Names of the models that ``known_shape`` knows."""
    return tuple(shape.name for shape in _KNOWN)
