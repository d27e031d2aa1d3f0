"""Whatever is written into Redis or a file by hand: what reads it goes on, or raises one of our errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from cluster_fixtures import HEARTBEAT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.dead_letters import DeadLetter, parse_letter
from broker.errors import TokenyardError, UsageError
from broker.events import parse_event
from broker.heartbeat import Heartbeat, parse_heartbeat
from broker.job_record import parse_job
from broker.jobs import WaitingJob
from broker.openai_batch import LineError, RequestLine, parse_line, read_output_line
from broker.placement import Placer
from broker.plan_record import parse_plan
from broker.policies import POLICIES, make_policy
from broker.prefixes import parse_marks
from broker.profiles import ProfileRecord, parse_profile
from broker.recent_mix import parse_mix
from broker.result_record import parse_counts, parse_result
from broker.settings import load_settings
from broker.stream_jobs import parse_in_flight, parse_waiting_job
from broker.tenant_names import id_of_tenant, tenant_of
from broker.tenants import parse_all_terms
from broker.token_news import parse_news
from planner.inventory_reading import parse_inventory
from planner.resizing import parse_note
from tokenyard.inventory_file import read_inventory
from tokenyard.profile_file import read_profile_file

#: What breaks parsers: numbers that are none or too many, other alphabets' digits, no text, very long, nothing.
ODD = [
    *(b"", b"-1", b"0", b"1", b"nan", b"inf", b"-inf", b"1e308", b"9" * 400, b"9" * 5000, b"1_000", b" 7 ", b"0x10"),
    *("٣".encode(), "²".encode(), b"\xff\xfe", b"\x00", b"a" * 70_000, b"{}", b"[]", b"null", b"true", b"1:2:3:4"),
    *(b"normal", b"ready", b"queued", b"%s%n", b"../../x", b"\r\nDEL x", "ｗ".encode(), b"1-1", b"x:y:z"),
]
values = st.sampled_from(ODD) | st.binary(max_size=30) | st.integers().map(lambda n: str(n).encode())


def hashes(*names: str) -> st.SearchStrategy[dict[bytes, bytes]]:
    """Hashes with these fields, each sound, odd or not there, and some more."""
    known = st.fixed_dictionaries({}, optional={name.encode(): values for name in names})
    more = st.dictionaries(st.binary(max_size=8), values, max_size=2)
    return st.builds(lambda a, b: b | a, known, more)


def texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    """As the stores decode what need not be text."""
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in raw.items()}


SOUND_BEAT = {name.encode(): str(value).encode() for name, value in HEARTBEAT.items()}
beats = hashes(*Heartbeat.model_fields).map(lambda odd: SOUND_BEAT | dict(list(odd.items())[:3]))
WAITING = ("job", "batch", "priority", "body_bytes", "max_tokens", "prefix", "deaths", "charges")
SOUND_JOB = {b"job": b"b.x", b"batch": b"b", b"priority": b"normal", b"body_bytes": b"100", b"max_tokens": b"10"}
entries = hashes(*WAITING).map(lambda odd: SOUND_JOB | dict(list(odd.items())[:2]))


def flat(raw: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in raw.items() for part in pair]


RESULT = (
    *("job", "custom_id", "status_code", "body", "error_code", "error_message", "prompt_tokens", "output_tokens"),
    *("worker", "attempt", "submitted", "started", "dispatched", "predicted_s", "reason", "cached_tokens"),
)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([10**400, "x" * 999]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values))


def as_json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS) if _fits(value) else repr(value).encode()


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


SOUND_LETTER = {b"batch": b"b", b"custom_id": b"x", b"url": b"/v1/x", b"priority": b"low", b"submitted": b"1"} | {
    b"died": b"2",
    b"error_code": b"attempts_exhausted",
}


class TestRedis:
    @given(st.lists(beats, min_size=1, max_size=5), st.lists(entries, max_size=20), st.sampled_from(sorted(POLICIES)))
    @settings(max_examples=200, deadline=None)
    def test_a_scheduler_survives_any_heartbeats_and_jobs(
        self, raw_beats: list[dict[bytes, bytes]], raw_jobs: list[dict[bytes, bytes]], policy: str
    ) -> None:
        placer = Placer(make_policy(policy), random.Random(1), 0.02)
        for number, raw in enumerate(raw_jobs):
            job = parse_waiting_job("normal", b"1-%d" % number, flat(raw))
            if job is not None:
                placer.add(job)
        for now, raw in enumerate(raw_beats, 1):
            beat = parse_heartbeat("w", raw)
            if beat is not None:
                placer.cluster.refresh("w", beat, float(now))
            for device, placements in placer.decide(float(now)).items():
                ended = {p.job.job_id: (10**9, 10**9, 10**9) for p in placements[::2]}
                placer.completed(device, ended, float(now))
            placer.finish_up(float(now))

    @given(hashes(*WAITING), st.sampled_from(["returned", "high", "normal", "low", "normal:acme"]))
    def test_entries_of_request_streams(self, raw: dict[bytes, bytes], level: str) -> None:
        job = parse_waiting_job(level, b"1-1", flat(raw))
        assert job is None or isinstance(job, WaitingJob)

    @given(hashes("job", "prompt_tokens", "output_tokens", "deaths", "charges"))
    def test_entries_of_device_queues(self, raw: dict[bytes, bytes]) -> None:
        parse_in_flight(raw)

    @given(hashes("kind", "worker", "jobs", "batch"), st.sampled_from(["completed", "returned", "cancelled", "worker"]))
    def test_events(self, raw: dict[bytes, bytes], kind: str) -> None:
        parse_event(texts(raw) | {"kind": kind})
        parse_event(texts(raw))

    @given(hashes(*RESULT), st.sampled_from(ODD))
    def test_results(self, raw: dict[bytes, bytes], entry: bytes) -> None:
        parse_result(b"1-1", raw)
        parse_result(entry, raw)

    @given(hashes("total", "done", "failed", "cancelled", "sealed", "state", "copies", "prompt_tokens"))
    def test_counts(self, raw: dict[bytes, bytes]) -> None:
        counts = parse_counts(raw)
        assert counts.ended >= 0
        assert counts.complete in (True, False)
        assert (counts + counts).total == 2 * counts.total

    @given(hashes("state", "batch", "custom_id", "attempt", "submitted", "worker", "predicted_s", "copy"))
    def test_jobs(self, raw: dict[bytes, bytes]) -> None:
        parse_job("b.x", raw, 1)

    @given(hashes(*DeadLetter.__struct_fields__, "history", "body"))
    def test_dead_letters(self, raw: dict[bytes, bytes]) -> None:
        letter = parse_letter("b.x", SOUND_LETTER | dict(list(raw.items())[:2]))
        assert letter is None or letter.why
        parse_letter("b.x", raw)

    @given(st.dictionaries(values, values | st.lists(json_values).map(as_json) | json_values.map(as_json), max_size=3))
    def test_terms_and_news(self, raw: dict[bytes, bytes]) -> None:
        terms, problems = parse_all_terms(raw)
        assert len(terms) + len(problems) == len(raw)
        for text in raw.values():
            assert all(news.number >= 0 for news in parse_news({b"news": text}))

    @given(st.sampled_from(ODD) | st.binary(max_size=200))
    def test_texts(self, raw: bytes) -> None:
        text = raw.decode(errors="replace")
        parse_marks(text)
        parse_mix([text])
        parse_profile(text, 100, 4)
        parse_note(raw)
        tenant_of(text)
        for read in (lambda: parse_plan(raw), lambda: ProfileRecord.from_json(raw), lambda: id_of_tenant(text, text)):
            raises_ours(read)


plans = objects("version", "made", "workers", "tokens_per_s", "price_per_hour", "reason", "min_workers")
lines = objects("custom_id", "method", "url", "body").map(
    lambda odd: {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}} | odd
)
machine = objects("name", "names", "devices", "interconnect", "price_per_hour", "min_workers", "max_workers")


class TestFiles:
    @given(lines.map(as_json) | st.binary(max_size=100) | st.sampled_from(ODD))
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_lines_of_batch_files(self, raw: bytes) -> None:
        found = parse_line(raw, line=1, source="in", max_bytes=10_000)
        assert isinstance(found, RequestLine | LineError)
        read_output_line(raw)

    @given(plans.map(as_json))
    def test_plans(self, raw: bytes) -> None:
        raises_ours(lambda: parse_plan(raw))

    @given(st.fixed_dictionaries({"machine": st.lists(machine, max_size=3)}) | json_values)
    def test_inventories(self, value: Any) -> None:
        raises_ours(lambda: parse_inventory(value, "in"))

    @given(st.binary(max_size=200) | json_values.map(as_json) | st.sampled_from(ODD))
    @settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_files(self, tmp_path: Path, raw: bytes) -> None:
        for name, read in (("m.toml", read_inventory), ("m.json", read_inventory), ("p.json", read_profile_file)):
            path = tmp_path / name
            path.write_bytes(raw)
            raises_ours(lambda read=read, path=path: read(path))

    @given(
        st.dictionaries(
            st.sampled_from(["pool", "policy", "dead_after_s", "window_jobs", "redis_ca_file"]), json_values
        )
    )
    def test_settings(self, flags: dict[str, Any]) -> None:
        raises_ours(lambda: load_settings(**flags))


def raises_ours(read: Callable[[], object]) -> None:
    """It gives a value, or one of our errors: a line that a person can read."""
    try:
        read()
    except TokenyardError as error:
        assert str(error)


def test_the_corpus_reaches_errors_and_values() -> None:
    with pytest.raises(UsageError):
        parse_plan(b"{}")
    assert parse_heartbeat("w", SOUND_BEAT) is not None
    assert parse_letter("b.x", SOUND_LETTER) is not None
    assert parse_waiting_job("normal", b"1-1", flat(SOUND_JOB)) is not None
