"""Jobs as entries of request streams and device queues tell of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.cluster import InFlight
from broker.jobs import Priority, WaitingJob
from broker.prefixes import MAX_CHARS
from broker.tenant_names import DEFAULT_TENANT, tenant_of

_PRIORITIES = frozenset(Priority)
#: What says that a job had more attempts is forged.
_MOST_ATTEMPTS = 10**6
#: Of a job in a request stream: what says it is more is none.
_ID_CHARS = 256
_MOST_BYTES = 10**12
_MOST_TOKENS = 10**9


def _count(text: str) -> int:
    """How often something happened to a job; raises ValueError where it is no such number."""
    count = int(text)
    if not 0 <= count <= _MOST_ATTEMPTS:
        raise ValueError(f"not a number of attempts: {count}")
    return count


def parse_waiting_job(level: str, entry: bytes, fields: Sequence[bytes] | None) -> WaitingJob | None:
    """A job from its stream entry; None where it is not one (anyone can write to Redis)."""
    try:
        values = [value.decode() for value in fields or ()]
        field = dict(zip(values[::2], values[1::2], strict=True))
        job = WaitingJob(
            job_id=field["job"],
            level=level,
            entry_id=entry.decode(),
            batch_id=field["batch"],
            priority=field["priority"],
            body_bytes=int(field["body_bytes"]),
            max_tokens=int(field["max_tokens"]),
            prefix=field.get("prefix", "")[:MAX_CHARS],
            deaths=_count(field.get("deaths", "0")),
            charges=_count(field.get("charges", "0")),
        )
    except (KeyError, ValueError):
        return None
    stream, separator, tenant = level.partition(":")
    in_its_place = job.priority in _PRIORITIES and stream in ("returned", job.priority)
    if stream != "returned":  # nobody is served at another's expense
        in_its_place &= tenant_of(job.batch_id) == (tenant if separator else DEFAULT_TENANT)
    short = len(job.job_id) <= _ID_CHARS and len(job.batch_id) <= _ID_CHARS
    sized = 0 <= job.body_bytes <= _MOST_BYTES and 0 <= job.max_tokens <= _MOST_TOKENS
    return job if in_its_place and short and sized else None


def parse_in_flight(fields: Mapping[bytes, bytes]) -> InFlight | None:
    """A job from its device queue's entry; None where it is not one: its worker removes it."""
    try:
        deaths, charges = (_count(fields.get(name, b"0").decode()) for name in (b"deaths", b"charges"))
        prompt, output = int(fields[b"prompt_tokens"]), int(fields[b"output_tokens"])
        return InFlight(fields[b"job"].decode(), prompt, output, deaths=deaths, charges=charges)
    except (KeyError, ValueError):
        return None
