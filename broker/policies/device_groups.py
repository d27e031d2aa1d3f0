"""Devices of a kind in groups, so that not all of them have to take the longest jobs. Pure.

Who takes a job of many steps makes these steps, full or not. Where some devices of a kind take all of the longest,
the others are done with fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from broker.fluid import solve
from broker.length_class import LengthClass
from broker.policies.base import Offer
from broker.throughput import NO_WORK, DeviceKind, Work

#: One of so many devices of a kind is in the group with the longest jobs.
_ONE_OF = 4
#: Jobs are long that have more than this share of the steps that a device still makes.
_LONG = 0.3


class DeviceGroup(NamedTuple):
    """Some devices of a kind: the kind with their number and backlog, and their names."""

    kind: DeviceKind
    devices: list[str]


def device_groups(classes: Sequence[LengthClass], offers: Iterable[Offer]) -> list[DeviceGroup]:
    """The devices by kind; a kind in two groups where its longest jobs have more steps than full batches would need.

    In the first of two are those with the longest jobs by now.
    """
    kinds: dict[DeviceKind, list[Offer]] = {}
    for offer in offers:
        if offer.kind is not None:
            kinds.setdefault(offer.kind, []).append(offer)
    groups = [_group(kind, members) for kind, members in kinds.items()]
    plan = solve(classes, [group.kind for group in groups])
    found: list[DeviceGroup] = []
    for k, (kind, members) in enumerate(kinds.items()):
        taken = [c.work.steps for c, jobs in zip(classes, plan.jobs[:, k], strict=True) if jobs > 0]
        longest = max(*taken, groups[k].kind.backlog_steps, 0.0)
        if len(members) > 1 and longest * len(members) > _LONG * plan.steps[k]:
            members.sort(key=_steps_left, reverse=True)
            long = -(-len(members) // _ONE_OF)
            found += [_group(kind, members[:long]), _group(kind, members[long:])]
        else:
            found.append(groups[k])
    return found


def _group(kind: DeviceKind, members: list[Offer]) -> DeviceGroup:
    work = NO_WORK
    for offer in members:
        if offer.backlog is not None and offer.calendar is not None:
            left = offer.backlog.left(offer.calendar.step)
            work = Work(*map(sum, zip(work, left, strict=True)))
    steps = max(map(_steps_left, members))
    return DeviceGroup(
        replace(kind, count=len(members), backlog=work, backlog_steps=steps), [offer.device for offer in members]
    )


def _steps_left(offer: Offer) -> float:
    return offer.calendar.steps_left if offer.calendar is not None else 0.0
