"""A measured profile for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.profiles import KindError
from broker.throughput import Profile

if TYPE_CHECKING:
    from tokenyard.engine_profiling import EngineProfile

#: The full batch that is predicted holds this many tokens a request, where the KV cache has room for them.
_CONTEXT = 512


def profile_view(found: EngineProfile) -> RenderableType:
    """The coefficients, how well they fit, and what they promise."""
    record, measurement = found.record, found.measurement
    how = "steps timed by the engine" if measurement.by_steps else "whole requests timed"
    head = f"{record.configuration}\n{measurement.loads} loads in {measurement.seconds:.1f} s, {how}"
    if record.errors.saturated:
        head += f"\nkept full it takes {record.overhead:.2f} times what its single steps promise: that is in the times"
    return Group(Text(head), _coefficients(record.profile), _errors(found), Text(_promise(record.profile)))


def _coefficients(profile: Profile) -> Table:
    table = Table("step-time model", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in (
        ("prefill, fixed", f"{profile.prefill_a * 1e3:.2f} ms"),
        ("prefill, a prompt token", f"{profile.prefill_b * 1e6:.2f} µs"),
        ("prefill, a prompt token squared", f"{profile.prefill_c * 1e9:.3f} ns"),
        ("decode step, fixed", f"{profile.decode_d * 1e3:.2f} ms"),
        ("decode step, a running request", f"{profile.decode_e * 1e6:.2f} µs"),
        ("decode step, a token of context", f"{profile.decode_f * 1e9:.2f} ns"),
        ("KV cache", f"{profile.kv_tokens:,} tokens"),
        ("seats", f"{profile.seats:,}"),
    ):
        table.add_row(name, value)
    return table


def _errors(found: EngineProfile) -> Table:
    errors = found.record.errors
    table = Table("error of the fit", "points", "mean", "worst", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    kinds: dict[str, KindError | None] = {
        "prefill": errors.prefill,
        "decode": errors.decode,
        "prefill and decode": errors.mixed,
        "whole requests": errors.whole,
        "kept full": errors.saturated,
    }
    for name, error in kinds.items():
        if error is not None:
            table.add_row(name, str(error.points), f"{error.mean:.1%}", f"{error.worst:.1%}")
    if errors.left_out:
        table.add_row("left out as disturbed", str(errors.left_out), "", "")
    return table


def _promise(profile: Profile) -> str:
    seats, context = full_batch(profile)
    seconds = profile.decode_step_seconds(seats, seats * context)
    speed = f"{seats / seconds:,.0f} tokens/s" if seconds else "no time at all"
    return f"predicted for a full batch, {seats} requests decoding at {context} tokens each: {speed}"


def full_batch(profile: Profile) -> tuple[int, int]:
    """Requests of a full batch, and the tokens each holds: fewer of both where the KV cache is small."""
    context = min(_CONTEXT, max(1, profile.kv_tokens // profile.seats))
    return profile.seats, context
