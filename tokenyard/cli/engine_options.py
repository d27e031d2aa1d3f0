"""The options that choose an engine, shared by the commands that start one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from tokenyard.engine_choice import EngineChoice, EngineKind


def engine_choice(
    model: Annotated[str, typer.Option(help="Directory or hub name of the model; 'demo' for the demo's own.")],
    engine: Annotated[EngineKind, typer.Option(help="What runs the requests.")] = EngineKind.VLLM,
    served_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests call the model by (repeatable).")
    ] = None,
    seats: Annotated[int | None, typer.Option(min=1, help="Most requests at once (max_num_seqs).")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Longest prompt plus output, tokens.")] = None,
    task: Annotated[str, typer.Option(help="vllm: generate or embed.")] = "generate",
    dtype: Annotated[str, typer.Option(help="vllm: auto, bfloat16, float16 or float32.")] = "auto",
    kv_gib: Annotated[float | None, typer.Option(min=0.01, help="vllm: GiB of KV cache.")] = None,
    cores: Annotated[str | None, typer.Option(help="vllm on CPU: cores to keep to, such as 0-3.")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="vllm: devices that share the model.")] = 1,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, help="vllm on GPU: share of the memory to use.")
    ] = None,
    eager: Annotated[bool, typer.Option(help="vllm: do not compile; starts sooner.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="vllm: any other option as name=value (repeatable).")
    ] = None,
    url: Annotated[str | None, typer.Option(help="openai: address of the server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TOKENYARD_API_KEY", help="openai: key of the server.", show_default=False)
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="openai: the server's own name for the model.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=16, help="openai, simulated: KV cache, tokens, where it does not tell.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile of the device, from tokenyard profile; simulated: what to simulate.")
    ] = None,
    speed: Annotated[float, typer.Option(min=1e-6, help="simulated: times faster than the profile.")] = 1.0,
    mean_output_tokens: Annotated[float, typer.Option(min=1, help="simulated: mean length of answers.")] = 128.0,
) -> EngineChoice:
    """The engine that these options ask for."""
    return EngineChoice(
        kind=engine,
        model=model,
        served_names=tuple(served_name or ()),
        seats=seats,
        context_tokens=context,
        task=task,
        dtype=dtype,
        kv_gib=kv_gib,
        cores=cores,
        tensor_parallel=tensor_parallel,
        gpu_memory_utilization=gpu_memory_utilization,
        eager=eager,
        engine_args=tuple(engine_arg or ()),
        url=url,
        api_key=api_key,
        upstream_model=upstream_model,
        kv_tokens=kv_tokens,
        profile=profile,
        speed=speed,
        mean_output_tokens=mean_output_tokens,
    )


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is an ``EngineChoice``, the options of ``engine_choice`` in its place.

    typer reads a command's options from its signature: this one is both signatures joined, without the repetition.
    """
    chosen = inspect.signature(engine_choice, eval_str=True).parameters
    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    del first

    @functools.wraps(command)
    def joined(**options: object) -> None:
        choice = engine_choice(**{name: options.pop(name) for name in chosen})  # type: ignore[arg-type]
        command(choice, **options)

    both = sorted([*chosen.values(), *own], key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in both]
    joined.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    joined.__annotations__ = get_type_hints(engine_choice, include_extras=True) | get_type_hints(
        command, include_extras=True
    )
    return joined
