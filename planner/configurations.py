"""The engines that a machine can run: how many devices each, how many seats, which precision, and what fits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from broker.throughput import DeviceKind
from planner.estimate import Basis, Estimate, Estimator
from planner.inventory import DeviceGroup, Machine
from planner.model_shape import ModelShape

_GIB = 1 << 30
#: What an engine takes of a device beside weights, KV cache and logits: its context, graphs, activations (bytes).
OVERHEAD_BYTES = 2 * _GIB
#: Of a machine's memory, engines on its cores take at most this share; beside weights and KV cache each takes about
#: this.
_CPU_SHARE, _CPU_OVERHEAD_BYTES = 0.8, 1 * _GIB
#: A CPU engine gets at least this share of the cores: more, smaller engines read the weights once more each.
_LEAST_CORES_SHARE = 16
#: vLLM's block of KV cache (tokens): with less than one it does not start.
_BLOCK_TOKENS = 16
#: Sizes and times that differ by less than this share count as the same: no prediction tells them apart.
_SAME = 0.01
#: Of a measured overhead: no more than this share of the device is taken for it.
_MOST_OVERHEAD = 0.3


@dataclass(frozen=True, slots=True)
class Space:
    """What may be chosen.

    Attributes:
        shape: the model.
        dtypes: precisions that are allowed.
        seats: values of max_num_seqs to try.
        utilization: share of a GPU's memory that engines use (vLLM's ``gpu_memory_utilization``).
        context_tokens: longest prompt plus output that every engine must take; 0: none is asked for.
        degrees: numbers of GPUs an engine may span; empty: all that the model can be split over.
    """

    shape: ModelShape
    dtypes: tuple[str, ...]
    seats: tuple[int, ...] = (64, 128, 256, 512)
    utilization: float = 0.9
    context_tokens: int = 0
    degrees: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineOption:
    """One way to run an engine on some devices of a machine.

    Attributes:
        device: kind of the devices.
        units: how many devices it spans, or cores.
        cpu: whether these are cores.
        dtype: precision.
        kind: expected times and sizes.
        kv_bytes: bytes of KV cache, over all its devices.
        basis: how sure the times are.
        source: what they rest on.
    """

    device: str
    units: int
    cpu: bool
    dtype: str
    kind: DeviceKind
    kv_bytes: int
    basis: Basis
    source: str

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        if self.cpu:
            return f"{self.device} x{self.units}"
        return self.device if self.units == 1 else f"{self.device} tp {self.units}"


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why an engine cannot run.

    Attributes:
        device: kind of the devices.
        units: devices or cores it would span.
        reason: the constraint that fails, and by how much.
        short_bytes: memory that is missing; 0 where it is something else.
    """

    device: str
    units: int
    reason: str
    short_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.device} x{self.units}: {self.reason}"


def options_of(
    machine: Machine, group: DeviceGroup, space: Space, estimator: Estimator
) -> tuple[list[EngineOption], list[Misfit]]:
    """All engines that some of a machine's devices can run, and why the others cannot.

    Of two with the same devices, one that is nowhere better is left out.

    Raises:
        UsageError: nothing is known of the device.
    """
    options: list[EngineOption] = []
    misfits: list[Misfit] = []
    for units in degrees(group, space):
        of_degree: list[EngineOption] = []
        for dtype in space.dtypes:
            estimate = estimator.estimate(group.kind, units, dtype, machine.interconnect)
            overhead = overhead_bytes(group, space, estimator)
            for seats in space.seats:
                found = _option(group, units, dtype, seats, space, estimate, overhead)
                if isinstance(found, Misfit):
                    misfits.append(found)
                else:
                    of_degree.append(found)
        options += undominated(of_degree)
    return options, misfits


def degrees(group: DeviceGroup, space: Space) -> list[int]:
    """Numbers of devices that an engine may span: what divides the model's heads; of cores, powers of two and all."""
    if group.is_cpu:
        powers = {1 << n for n in range(group.count.bit_length()) if 1 << n <= group.count}
        return sorted(n for n in powers | {group.count} if n * _LEAST_CORES_SHARE >= group.count)
    asked = space.degrees or range(1, group.count + 1)
    return [n for n in sorted(set(asked)) if n <= group.count and space.shape.can_split(n)]


def overhead_bytes(group: DeviceGroup, space: Space, estimator: Estimator) -> int:
    """What an engine of this model takes of a device beside weights, logits and KV cache.

    Where the model was measured on such a device, it is what its KV cache left free.
    """
    if group.is_cpu:
        return _CPU_OVERHEAD_BYTES
    for measured in estimator.own(group.kind):
        profile, shape, units = measured.profile, space.shape, measured.units
        if profile.kv_tokens < _BLOCK_TOKENS:
            continue
        held = shape.weight_bytes(measured.dtype) + profile.kv_tokens * shape.kv_bytes(measured.dtype, units)
        free = group.memory_bytes * space.utilization - held / units - _logits(shape, profile.seats)
        if 0 <= free <= _MOST_OVERHEAD * group.memory_bytes:
            return int(free)
    return OVERHEAD_BYTES


def kv_bytes_free(group: DeviceGroup, units: int, dtype: str, seats: int, space: Space, overhead: int) -> int:
    """Bytes left for the KV cache of one engine, over all its devices; below zero where not even the weights fit.

    GPUs: ``n * (memory * utilization - overhead - logits) - weights``: weights divide, the rest does not. Engines on
    cores share the machine's memory by their cores.
    """
    weights = space.shape.weight_bytes(dtype)
    logits = _logits(space.shape, seats)
    if group.is_cpu:
        return int(group.memory_bytes * _CPU_SHARE * units / group.count - overhead - logits - weights)
    return int(units * (group.memory_bytes * space.utilization - overhead - logits) - weights)


def _option(
    group: DeviceGroup, units: int, dtype: str, seats: int, space: Space, estimate: Estimate, overhead: int
) -> EngineOption | Misfit:
    shape = space.shape
    a_token = shape.kv_bytes(dtype, 1 if group.is_cpu else units)
    free = kv_bytes_free(group, units, dtype, seats, space, overhead)
    needed = max(space.context_tokens, _BLOCK_TOKENS)
    if needed > shape.context_tokens:
        text = f"{shape.name} takes {shape.context_tokens:,} tokens of context, and {needed:,} are asked for"
        return Misfit(group.kind, units, text)
    if free < needed * a_token:
        return _too_small(group, units, dtype, seats, space, free, overhead, int(needed * a_token))
    most = seats * shape.context_tokens if group.is_cpu else 10**12
    tokens = min(int(free / a_token) // _BLOCK_TOKENS * _BLOCK_TOKENS, most)
    kind = DeviceKind(
        estimate.times.profile(tokens, seats),
        max_batched_tokens=max(estimate.max_batched_tokens, seats),
        context_tokens=min(shape.context_tokens, tokens),
    )
    return EngineOption(
        group.kind, units, group.is_cpu, dtype, kind, int(tokens * a_token), estimate.basis, estimate.source
    )


def _too_small(
    group: DeviceGroup, units: int, dtype: str, seats: int, space: Space, free: int, overhead: int, kv: int
) -> Misfit:
    """Says what of the memory is missing, of each device."""
    devices = 1 if group.is_cpu else units
    weights = space.shape.weight_bytes(dtype) / devices
    rest = overhead + _logits(space.shape, seats)
    usable = (free + space.shape.weight_bytes(dtype)) / devices + rest
    short = int(weights + rest + kv / devices - usable)
    what = "weights" if free < 0 else "weights and KV cache"
    text = (
        f"{what} do not fit: {_gib(weights)} of weights ({dtype}), {_gib(rest)} of workspace and {_gib(kv / devices)} "
        f"of KV cache for one request, and {_gib(usable)} to use of each: {_gib(short)} short"
    )
    return Misfit(group.kind, units, text, short)


def undominated(options: Sequence[EngineOption]) -> list[EngineOption]:
    """Of options for the same devices, those that no other is at least as good as, up to ``_SAME``, in everything."""
    kept: list[EngineOption] = []
    for option in options:
        if any(_at_least(other, option) for other in kept):
            continue
        kept = [other for other in kept if not _at_least(option, other)]
        kept.append(option)
    return kept


def _at_least(one: EngineOption, other: EngineOption) -> bool:
    return all(x <= y + _SAME * abs(y) for x, y in zip(_costs(one), _costs(other), strict=True))


def _costs(option: EngineOption) -> Iterator[float]:
    p, kind = option.kind.profile, option.kind
    yield from (p.prefill_b, p.prefill_c, p.decode_d, p.decode_e, p.decode_f)
    yield from (-p.kv_tokens, -p.seats, -kind.max_batched_tokens, -kind.context_tokens)


def _logits(shape: ModelShape, seats: int) -> int:
    """Bytes of the logits that the sampler holds: one 32-bit value for each seat and word."""
    return 4 * seats * shape.vocabulary


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB"
