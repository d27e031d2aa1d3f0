"""Jobs that begin alike go where that is cached, as long as it costs no device its share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import msgspec
from placing import PROFILE, FixedLengths, device, job, placements, placer_of

from broker.jobs import WaitingJob
from broker.placement import Placer
from broker.policies.base import Placement

DOCUMENT_BYTES = 8192
BODY_BYTES = 10_000
LENGTHS = (2500, 20)


def asked_about(document: int, i: int) -> WaitingJob:
    """A question about a document that takes most of its prompt."""
    return msgspec.structs.replace(job(i, body_bytes=BODY_BYTES), prefix=f"{DOCUMENT_BYTES}:{document:010x}")


def drain(placer: Placer, jobs: int) -> list[Placement]:
    """Decide and complete until all has been placed; a device that holds a document says that it was cached."""
    placed: list[Placement] = []
    seen: set[tuple[str, str]] = set()
    now = 0.0
    while len(placed) < jobs:
        now += 1.0
        groups = placer.decide(now)
        for name, of_device in groups.items():
            ended: dict[str, tuple[int, ...]] = {}
            for placement in of_device:
                there = (name, placement.job.prefix)
                ended[placement.job.job_id] = (*LENGTHS, 2000 if there in seen else 0)
                seen.add(there)
            placer.completed(name, ended, now + 0.5)
        placed += placements(groups)
    return placed


def placer_with(documents: int, questions: int) -> Placer:
    roomy = replace(PROFILE, kv_tokens=200_000)  # nothing is evicted
    placer = placer_of(device("a", roomy), device("b", roomy), policy="throughput")
    placer.lengths = FixedLengths({}, LENGTHS)
    for i in range(documents * questions):
        placer.add(asked_about(i % documents, i))
    return placer


def test_most_questions_about_a_document_meet_it_where_it_is_cached() -> None:
    documents, questions = 12, 20
    placed = drain(placer_with(documents, questions), documents * questions)
    devices: defaultdict[str, set[str]] = defaultdict(set)
    for placement in placed:
        devices[placement.job.prefix].add(placement.device)
    first_meetings = sum(len(names) for names in devices.values())
    # Blind placement brings nearly every document to both devices: 24 meetings, each computed anew.
    assert first_meetings <= 1.5 * documents
    assert sum(placement.reason == "prefix" for placement in placed) >= 0.8 * len(placed)


def test_both_devices_work_all_the_same() -> None:
    placed = drain(placer_with(1, 200), 200)
    shares = [sum(placement.device == name for placement in placed) for name in ("a", "b")]
    assert min(shares) >= 0.35 * len(placed)
