"""Late binding: how much a device may be given now. Pure.

A device queue is only as deep as hides the dispatch round trip, bounded by the device's KV tokens and seats;
every other job stays in the request stream, free to go anywhere.
"""

from __future__ import annotations

from broker.cluster import Device
from broker.policies.base import Offer

#: Where far more jobs wait than fit, a device is looked at again when one in so many of its jobs has ended; that many
#: more are queued there. A look costs as much as some placements, and a large batch changes little by one job.
_JOBS_A_LOOK = 32
#: Beyond so many devices it is the scheduler's time that is scarce: twice the devices, half the looks at each; down to
#: one for so many of its jobs.
_LARGE, _LEAST_JOBS_A_LOOK = 256, 8


def jobs_a_look(devices: int, *, many_wait: bool) -> int:
    """A device is looked at again when one in so many of its jobs has ended; 0 where that is at each.

    Args:
        devices: how many there are.
        many_wait: whether far more jobs wait than there is room for.
    """
    if not many_wait:
        return 0
    return max(_JOBS_A_LOOK * _LARGE // max(devices, _LARGE), _LEAST_JOBS_A_LOOK)


def offer_of(device: Device, round_trip_s: float, now: float = 0.0, one_in: int = 0) -> Offer:
    """A device's room: its seats plus the depth that hides the round trip, and KV memory by the peak to come."""
    offer = Offer(device.name, 0, 0, 0.0, slots_left=0, kv_bound=0.0, outstanding=0, outstanding_tokens=0)
    renew_offer(offer, device, round_trip_s, now, one_in)
    return offer


def renew_offer(offer: Offer, device: Device, round_trip_s: float, now: float = 0.0, one_in: int = 0) -> None:
    """The same device's room now; the next look is for when one in so many of its jobs has ended (0: any)."""
    beat = device.heartbeat
    device.looked_at(now, one_in)
    depth = device.depth(round_trip_s)
    offer.seats, offer.kv_tokens, offer.speed = beat.seats, beat.kv_tokens_total, device.speed
    offer.outstanding, offer.outstanding_tokens = len(device.in_flight), device.tokens_in_flight
    device.overfull = _overfull(device, depth)
    offer.slots_left = 0 if device.overfull else beat.seats + depth - offer.outstanding
    offer.kv_bound = beat.kv_tokens_total * device.kv_share.value
    offer.kind, offer.backlog, offer.calendar = device.kind, device.backlog, device.calendar
    offer.queued_tokens, offer.max_batched_tokens = device.backlog.prompt_left, device.max_batched_tokens
    offer.renewed()


def _overfull(device: Device, depth: int) -> bool:
    """Whether the engine holds back more than a queue's worth for want of room: it is full, whatever predictions say.

    Where it has seats and memory for all that wait, it only computes their prompts first.
    """
    beat = device.heartbeat
    if beat.waiting <= max(depth, beat.seats // 4):
        return False
    return beat.running >= beat.seats or beat.kv_tokens_free <= beat.waiting * device.backlog.mean_prompt
