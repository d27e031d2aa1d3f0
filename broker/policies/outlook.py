"""What is to come on a device: how long a job would take there, and when all it has will be done. Pure."""

from __future__ import annotations

from dataclasses import replace

from broker.policies.base import Offer
from broker.throughput import DeviceKind, work_of


def busy_seconds(offer: Offer) -> float:
    """Seconds until a device's work is done, what it got in this round included."""
    if offer.kind is None or offer.backlog is None or offer.calendar is None:
        return 0.0
    if offer.busy_s is None:  # an offer lasts until its device changes
        left = offer.backlog.left(offer.calendar.step)
        offer.busy_s = busy_until(replace(offer.kind, backlog=left, backlog_steps=offer.calendar.steps_left))
    more_steps = max(0.0, offer.added_steps - offer.calendar.steps_left)
    return offer.busy_s + offer.added_s + more_steps * offer.kind.profile.decode_d * offer.kind.slowdown


def busy_until(kind: DeviceKind) -> float:
    """Seconds until the kind's work in flight is done."""
    profile, work = kind.profile, kind.backlog
    steps = max(profile.steps_needed(work), kind.backlog_steps * kind.count)
    return (profile.own_seconds(work) + profile.decode_d * steps) * kind.slowdown / kind.count


def own_seconds(offer: Offer, prompt_tokens: float, output_tokens: float) -> float:
    """Seconds of the device that a job takes, with all that is its own: steps are made anyway."""
    if offer.kind is None:
        return 0.0
    return offer.kind.profile.own_seconds(work_of(prompt_tokens, output_tokens)) * offer.kind.slowdown


def predicted_seconds(
    offer: Offer, prompt_tokens: float, output_tokens: float, *, others_follow: bool = False
) -> float:
    """Time from dispatch to result, with the device as full as it is now and this job added; 0 where not known.

    Where ``others_follow``, each seat is taken again while the job runs, and the prompts of those that come are
    computed in between; they are taken to be as long as its own.
    """
    kind = offer.kind
    if kind is None:
        return 0.0
    p = kind.profile
    running, steps = offer.outstanding + 1, output_tokens - 1 if output_tokens > 1 else 0
    if running > p.seats:
        steps += running - p.seats
        running = p.seats
    context = offer.outstanding_tokens + prompt_tokens + output_tokens / 2
    if context > p.kv_tokens:
        context = p.kv_tokens
    # As ``Profile.prefill_seconds`` and ``decode_step_seconds`` say, without two calls for every job that is placed.
    prefill = p.prefill_a + (p.prefill_b + p.prefill_c * prompt_tokens) * prompt_tokens
    step = p.decode_d + p.decode_e * running + p.decode_f * context
    return kind.slowdown * ((1 + running if others_follow else 1) * prefill + steps * step)
