"""What is known of devices from their last heartbeats, for looking back at what they did. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.heartbeat import Heartbeat
from broker.profiles import parse_profile
from broker.throughput import DeviceKind

#: Tokens an engine computes a step where it does not say; more than it really does only lowers what is predicted.
_BATCHED_TOKENS = 8192
_NO_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device by its last heartbeat.

    Attributes:
        pool: its pool; jobs go to devices of their own pool alone.
        device: kind of device, as its worker says it.
        state: state of its worker.
        kv_tokens: tokens its KV cache holds.
        context_tokens: longest prompt plus output it takes, in tokens.
        kind: its measured times, None where there are none.
    """

    pool: str
    device: str
    state: str
    kv_tokens: int
    context_tokens: int
    kind: DeviceKind | None


def known_device(pool: str, beat: Heartbeat) -> KnownDevice:
    """What a heartbeat says of its device."""
    context = beat.context_tokens or _NO_LIMIT
    profile = parse_profile(beat.profile, beat.kv_tokens_total, beat.seats)
    kind = None
    if profile is not None:
        kind = DeviceKind(profile, max_batched_tokens=max(_BATCHED_TOKENS, beat.seats), context_tokens=context)
    return KnownDevice(pool, beat.device, beat.state, beat.kv_tokens_total, context, kind)


def known_devices(pools: Mapping[str, Mapping[str, Heartbeat | None]]) -> dict[str, KnownDevice]:
    """The devices of some pools, named ``POOL/WORKER`` where there are several pools; those without a heartbeat not."""
    return {
        device_name(name, pool if len(pools) > 1 else ""): known_device(pool, beat)
        for pool, beats in pools.items()
        for name, beat in beats.items()
        if beat is not None
    }


def device_name(worker: str, pool: str) -> str:
    """A device's name in a report; without a pool (empty) where there is just one."""
    return f"{pool}/{worker}" if pool else worker
