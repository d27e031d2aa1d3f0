"""Devices to simulate, from measurements that others published."""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker.throughput import Profile


@dataclass(frozen=True, slots=True)
class Device:
    """A device with a model on it.

    Attributes:
        label: what it is.
        profile: its times by least squares, KV memory, and vLLM's default ``max_num_seqs`` as seats.
        speed: how many times faster than real it runs unless told otherwise: a run then takes about a minute.
    """

    label: str
    profile: Profile
    speed: float


#: By the name that ``--device`` takes.
DEVICES = {
    # Times and KV memory of a real vLLM 0.19.0 at 0.9 memory utilisation, published with LLMServingSim (MIT).
    "rtx4090": Device(
        "RTX 4090, Llama-3.1-8B",
        Profile(0.01171, 6.098e-05, 1.475e-08, 0.01688, 4.019e-05, 1.561e-07, kv_tokens=41_408, seats=256),
        speed=3.5,
    ),
    # Layer times published with Helix (ASPLOS '25, Apache-2.0), scaled to the model; KV memory: 0.9 of the device's
    # less weights and 1.5 GB, at 128 KiB a token.
    "a100-40gb": Device(
        "A100 40 GB, Llama-3.1-8B",
        Profile(0.0008473, 5.693e-05, 0.0, 0.01211, 6.121e-05, 1.058e-07, kv_tokens=140_380, seats=256),
        speed=3,
    ),
}


def slower(profile: Profile, factor: float) -> Profile:
    """A device that takes ``factor`` times as long for everything and has that much less KV memory."""
    return replace(profile.slower(factor), kv_tokens=int(profile.kv_tokens / factor))


def sped_up(profile: Profile, speed: float) -> Profile:
    """What one would measure on a server that runs ``speed`` times faster than the device."""
    return profile.slower(1 / speed)
