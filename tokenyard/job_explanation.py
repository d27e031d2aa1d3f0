"""Why a job went where it went, and what it would have cost elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.job_record import JobRecord
from broker.throughput import Profile
from tokenyard.known_devices import KnownDevice

#: What the placement policies' words mean.
REASONS: Mapping[str, str] = {
    "share": "by the linear program this device takes a share of such jobs",
    "spare": "this device had room and nothing better suited waited",
    "fastest": "the load was light and it would finish soonest here",
    "prefix": "the beginning of its prompt is cached here",
    "copy": "a second run of a straggler",
    "only": "only this device can hold it",
    "unmodelled": "this device has no profile yet",
}
#: English text has about four bytes a token; a request's JSON around it counts as text.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """A job's lengths in tokens.

    Attributes:
        prompt_tokens: of the prompt, at least 1.
        output_tokens: generated; None where nothing tells.
        known: whether these are the true ones; else estimated from the request's size and predicted.
    """

    prompt_tokens: int
    output_tokens: int | None
    known: bool


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What a job costs on one device.

    Attributes:
        name: the worker's name.
        device: kind of device.
        state: state of its worker.
        chosen: whether the job went there.
        fits: whether it can hold the job; None where the lengths are not known.
        why_not: ``KV memory`` or ``context`` where it cannot, else empty.
        device_s: seconds of the device, its fixed costs shared with others (``Profile.device_seconds``); None without
            a profile, and where it does not fit.
        relative: that over the chosen device's; None where either is not known.
        alone_s: seconds from dispatch to result were the device empty (``Profile.alone_seconds``).
    """

    name: str
    device: str
    state: str
    chosen: bool
    fits: bool | None
    why_not: str
    device_s: float | None
    relative: float | None
    alone_s: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A job's way.

    Attributes:
        job: its record.
        now: seconds on Redis' clock, which the record's times are on.
        because: the reason of its dispatch in words; empty where the policy gave none.
        actual_s: seconds from dispatch to result, None before its end.
        lengths: what the costs are reckoned with.
        devices: the devices of its pool that are known now, by name.
    """

    job: JobRecord
    now: float
    because: str
    actual_s: float | None
    lengths: Lengths
    devices: list[DeviceCost]


def explain(job: JobRecord, devices: Mapping[str, KnownDevice], now: float) -> Explanation:
    """Explain a job.

    Args:
        job: its record.
        devices: the devices of its pool by the names of their workers.
        now: seconds on Redis' clock.
    """
    lengths = lengths_of(job)
    chosen = devices.get(job.worker)
    base = _device_seconds(chosen, lengths) if chosen else None
    return Explanation(
        job=job,
        now=now,
        because=reason_in_words(job.reason),
        actual_s=max(0.0, job.ended - job.dispatched) if job.ended and job.dispatched else None,
        lengths=lengths,
        devices=[_cost(name, devices[name], lengths, name == job.worker, base) for name in sorted(devices)],
    )


def reason_in_words(code: str) -> str:
    """What a policy's word means; one that is not known stays as it is."""
    return REASONS.get(code, code)


def lengths_of(job: JobRecord) -> Lengths:
    """The true lengths of a job that was answered; else its predicted output, or the most it may generate."""
    if job.prompt_tokens:
        return Lengths(job.prompt_tokens, max(job.output_tokens, 1), known=True)
    prompt = max(1, round(job.body_bytes / _BYTES_PER_TOKEN))
    return Lengths(prompt, job.predicted_output_tokens or job.max_tokens or None, known=False)


def _cost(name: str, device: KnownDevice, lengths: Lengths, chosen: bool, base: float | None) -> DeviceCost:
    why_not = _why_not(device, lengths)
    device_s = None if why_not else _device_seconds(device, lengths)
    profile = _profile(device)
    alone_s = None
    if profile is not None and device_s is not None and lengths.output_tokens:
        alone_s = profile.alone_seconds(lengths.prompt_tokens, lengths.output_tokens)
    return DeviceCost(
        name=name,
        device=device.device,
        state=device.state,
        chosen=chosen,
        fits=None if lengths.output_tokens is None else not why_not,
        why_not=why_not,
        device_s=device_s,
        relative=device_s / base if device_s is not None and base else None,
        alone_s=alone_s,
    )


def _why_not(device: KnownDevice, lengths: Lengths) -> str:
    # The last token that is generated is never held.
    held = lengths.prompt_tokens + (lengths.output_tokens or 1) - 1
    if held > device.context_tokens:
        return "context"
    return "KV memory" if held > device.kv_tokens else ""


def _device_seconds(device: KnownDevice, lengths: Lengths) -> float | None:
    profile = _profile(device)
    if profile is None or lengths.output_tokens is None:
        return None
    return profile.device_seconds(lengths.prompt_tokens, lengths.output_tokens)


def _profile(device: KnownDevice) -> Profile | None:
    return device.kind.profile if device.kind else None
