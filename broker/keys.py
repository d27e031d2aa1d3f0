"""Every key name in one place. Pure.

The keys of one pool share a hash tag, so that a pool lives on one shard of a Redis Cluster. How long each key lives:

=====================================  ==============================================================
``ty:models``                          for ever: which pool serves which model outlives its workers
``ty:pools``                           for ever: the names of the pools
``ty:{pool}:requests:LEVEL``           for ever: accepted work never expires; an entry goes at dispatch
``ty:{pool}:requests:LEVEL:TENANT``    until the tenant has no job there: accepted work never expires
``ty:{pool}:tenants``                  for ever; a member goes when the tenant has no job that waits
``ty:{pool}:terms``                    for ever: what an operator grants tenants
``ty:{pool}:job:ID``, ``…:body:ID``    until the job ends: accepted work never expires
``ty:{pool}:batch:ID``                 result TTL, from the end of its last job
``ty:{pool}:results:BATCH``            result TTL, from the end of its last job
``ty:{pool}:ended:BATCH``              result TTL, from the end of its last job
``ty:{pool}:tokens:BATCH``             ten minutes after the last token; bounded in length
``ty:{pool}:delayed``                  for ever; a member goes when its delay is over
``ty:{pool}:windows``                  for ever; a member goes when its batch's completion window is over
``ty:{pool}:held_bytes``               for ever: one number
``ty:{pool}:dead``                     result TTL, from the last job that failed; bounded in length
``ty:{pool}:letter:ID``                result TTL, from the failure of its job
``ty:{pool}:given_up``                 for ever: a number for each reason, a hundred of them at most
``ty:{pool}:fence``                    a minute after the last durable submission
``ty:{pool}:batches``                  for ever; a member goes when it is among the oldest and its batch expired
``ty:{pool}:device:WORKER``            the worker's lifetime; holds just the jobs bound to it
``ty:{pool}:control:WORKER``           a minute after the last order
``ty:{pool}:losers:WORKER``            the worker's lifetime, at most the result TTL after the last was added
``ty:{pool}:worker:WORKER``            heartbeat TTL
``ty:{pool}:workers``                  the pool's lifetime; a member goes with its worker
``ty:{pool}:profiles``                 for ever: a measurement outlives what it measured; the next one replaces it
``ty:{pool}:plan``                     for ever: what should run outlives who planned it; the next plan replaces it
``ty:{pool}:recent``                   for ever, but bounded in length
``ty:{pool}:starts``                   a day after a worker of a supervisor last became ready
``ty:{pool}:looks``                    an hour after the planner's last look
``ty:{pool}:turn``                     half a minute after its holder last renewed it
``ty:{pool}:host:HOST``                half a minute after its supervisor last looked
``ty:{pool}:arq``                      until the planner has taken what was asked of it; bounded by who asks
``ty:{pool}:events``                   for ever, but bounded in length
``ty:{pool}:lease``                    lease TTL
``ty:{pool}:epoch``                    for ever: the fencing number must only grow
=====================================  ==============================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MODELS = "ty:models"
POOLS = "ty:pools"

#: Consumer group of the request streams; its one consumer is whoever holds the lease.
SCHEDULER_GROUP = "scheduler"
#: Consumer group of a device queue; its consumer is the worker's incarnation.
WORKER_GROUP = "worker"

#: Request streams in the order in which they are served; ``returned`` holds jobs that came back from a worker.
LEVELS = ("returned", "high", "normal", "low")
#: Those that jobs are submitted to. A tenant other than the default one has streams of its own, ``LEVEL:TENANT``.
FRESH_LEVELS = LEVELS[1:]


def tenant_level(level: str, tenant: str) -> str:
    """The request stream of a tenant (not of the default one) for jobs of this priority."""
    return f"{level}:{tenant}"


_POOL = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_pool(name: str) -> bool:
    """Whether a pool may be called so."""
    return _POOL.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """The keys of one pool."""

    pool: str

    @property
    def prefix(self) -> str:
        return f"ty:{{{self.pool}}}:"

    def requests(self, level: str) -> str:
        """Stream of jobs that wait for a device, one of ``LEVELS``."""
        return f"{self.prefix}requests:{level}"

    @property
    def tenants(self) -> str:
        """Set of tenants that may have jobs in request streams of their own."""
        return f"{self.prefix}tenants"

    @property
    def terms(self) -> str:
        """Hash of what an operator grants tenants: tenant -> JSON, see ``broker.tenants.TenantTerms``."""
        return f"{self.prefix}terms"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def body(self, job_id: str) -> str:
        return f"{self.prefix}body:{job_id}"

    def batch(self, batch_id: str) -> str:
        return f"{self.prefix}batch:{batch_id}"

    def results(self, batch_id: str) -> str:
        """Stream of the batch's ended jobs, each exactly once, in the order in which they ended."""
        return f"{self.prefix}results:{batch_id}"

    def tokens(self, batch_id: str) -> str:
        """Stream of what jobs of the batch have generated so far: of those whose client follows them."""
        return f"{self.prefix}tokens:{batch_id}"

    @property
    def delayed(self) -> str:
        """Sorted set of jobs that wait until they are tried again, by that time (seconds, Redis' clock)."""
        return f"{self.prefix}delayed"

    @property
    def windows(self) -> str:
        """Sorted set of batches by the end of their completion window (seconds, Redis' clock)."""
        return f"{self.prefix}windows"

    @property
    def held_bytes(self) -> str:
        """Bytes of the bodies of all jobs that have not ended."""
        return f"{self.prefix}held_bytes"

    @property
    def dead(self) -> str:
        """Sorted set of jobs that failed for good, by the time at which they did (seconds, Redis' clock)."""
        return f"{self.prefix}dead"

    def letter(self, job_id: str) -> str:
        """The dead letter of a job: the job as it was, and how each of its attempts failed."""
        return f"{self.prefix}letter:{job_id}"

    @property
    def given_up(self) -> str:
        """Hash of how many jobs ever failed for good: why, in a word -> number."""
        return f"{self.prefix}given_up"

    @property
    def fence(self) -> str:
        """Written last by a durable submission: once it is on disk, all before it is."""
        return f"{self.prefix}fence"

    @property
    def batches(self) -> str:
        """Sorted set of batch ids by the time they were created (seconds, Redis' clock)."""
        return f"{self.prefix}batches"

    def ended(self, batch_id: str) -> str:
        """Hash of the batch's ended jobs: the job's id without the batch -> entry of the result stream."""
        return f"{self.prefix}ended:{batch_id}"

    def device(self, worker: str) -> str:
        """The worker's device queue."""
        return f"{self.prefix}device:{worker}"

    def control(self, worker: str) -> str:
        """Orders to a worker: cancel a job or a batch."""
        return f"{self.prefix}control:{worker}"

    def losers(self, worker: str) -> str:
        """Hash of running entries whose job another device ended first: entry -> batch, until their worker has said
        what it had computed in vain."""
        return f"{self.prefix}losers:{worker}"

    def worker(self, worker: str) -> str:
        """The worker's heartbeat."""
        return f"{self.prefix}worker:{worker}"

    @property
    def workers(self) -> str:
        """Sorted set of worker names by the time of the last heartbeat (seconds, Redis' clock)."""
        return f"{self.prefix}workers"

    @property
    def profiles(self) -> str:
        """Hash of measured profiles: what was measured, in words -> the record as JSON."""
        return f"{self.prefix}profiles"

    @property
    def plan(self) -> str:
        """Hash of the pool's plan: its ``version``, and the ``plan`` as JSON."""
        return f"{self.prefix}plan"

    @property
    def recent(self) -> str:
        """Stream of the lengths of jobs that ended: an entry each few seconds (``broker.recent_mix``)."""
        return f"{self.prefix}recent"

    @property
    def starts(self) -> str:
        """Hash of how long workers take to start: host -> seconds."""
        return f"{self.prefix}starts"

    @property
    def looks(self) -> str:
        """What the planner noted at its last look, as JSON."""
        return f"{self.prefix}looks"

    @property
    def turn(self) -> str:
        """The host that may leave its last worker now, to replace it."""
        return f"{self.prefix}turn"

    def host(self, host: str) -> str:
        """There while a supervisor carries plans out for this host."""
        return f"{self.prefix}host:{host}"

    @property
    def arq(self) -> str:
        """arq's queue of what is asked of the planner; arq's other keys begin with ``arq:`` and expire."""
        return f"{self.prefix}arq"

    @property
    def events(self) -> str:
        """Stream of what happened: jobs completed, workers changed state, batches cancelled."""
        return f"{self.prefix}events"

    @property
    def lease(self) -> str:
        return f"{self.prefix}lease"

    @property
    def epoch(self) -> str:
        return f"{self.prefix}epoch"
