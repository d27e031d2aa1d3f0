"""Why a job is where it is: its record, the costs, and the words."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_fixtures import heartbeat
from hypothesis import given
from hypothesis import strategies as st
from job_results import result
from rich.console import Console

from broker.job_record import JobRecord, batch_of, cursor_before, ended_job, parse_job, short_id
from broker.jobs import BATCH_CANCELLED, JobState, job_id
from broker.profiles import profile_text
from broker.throughput import DeviceKind, Profile
from tokenyard.job_explanation import REASONS, Explanation, Lengths, explain, lengths_of, reason_in_words
from tokenyard.known_devices import KnownDevice, known_device, known_devices
from tokenyard.views.explanation import explanation_view, notes, state_in_words

FAST = Profile(0.0, 0.001, 0.0, 0.01, 0.0, 0.0, kv_tokens=10_000, seats=10)
SLOW = Profile(0.5, 0.004, 0.0, 0.04, 0.0, 0.0, kv_tokens=1000, seats=10)


def device(profile: Profile | None, *, context: int = 5000, kv_tokens: int = 1000) -> KnownDevice:
    kind = DeviceKind(profile, context_tokens=context) if profile else None
    return KnownDevice("p", "GPU", "ready", profile.kv_tokens if profile else kv_tokens, context, kind)


def record(**fields: Any) -> JobRecord:
    """A job that ran for 3 s."""
    known: dict[str, Any] = {
        "job_id": "b.j",
        "batch": "b",
        "custom_id": "c",
        "state": JobState.DONE,
        "attempt": 1,
        "worker": "fast",
        "submitted": 100.0,
        "dispatched": 101.0,
        "started": 101.5,
        "ended": 104.0,
        "prompt_tokens": 600,
        "output_tokens": 101,
        "status_code": 200,
    }
    return JobRecord(**(known | fields))


def waiting(**fields: Any) -> JobRecord:
    """A job that has not been dispatched."""
    known: dict[str, Any] = {
        "job_id": "b.j",
        "batch": "b",
        "custom_id": "c",
        "state": JobState.QUEUED,
        "attempt": 1,
    }
    return JobRecord(**(known | fields))


def shown(what: Explanation, width: int = 80) -> str:
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(explanation_view(what), soft_wrap=False)
    return captured.get()


# --- the record


def hash_of(**fields: str) -> dict[bytes, bytes]:
    sound = {"state": "dispatched", "batch": "b", "custom_id": "c", "attempt": "2", "submitted": "100.5"}
    sound |= {"worker": "w", "dispatched": "101.25", "predicted_s": "2.5", "reason": "share", "output_tokens": "40"}
    return {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in (sound | fields).items()}


def test_a_job_from_its_hash() -> None:
    found = parse_job("b.j", hash_of(max_tokens="99", url="ignored"), 1234)
    assert found == JobRecord(
        job_id="b.j",
        batch="b",
        custom_id="c",
        state=JobState.DISPATCHED,
        attempt=2,
        worker="w",
        reason="share",
        submitted=100.5,
        dispatched=101.25,
        predicted_s=2.5,
        predicted_output_tokens=40,
        max_tokens=99,
        body_bytes=1234,
    )


def test_a_field_that_no_job_has_changes_nothing() -> None:
    assert parse_job("b.j", hash_of() | {b"\xff": b"\xff"}, 1) == parse_job("b.j", hash_of(), 1) is not None


def test_a_job_that_runs_twice() -> None:
    found = parse_job("b.j", hash_of(copy="other", copy_dispatched="150.5", copy_predicted_s="3"), 0)
    assert found is not None
    assert (found.worker, found.copy, found.copy_dispatched) == ("w", "other", 150.5)
    assert state_in_words(found) == "on w and other, waiting there or running, attempt 2"
    rows = [" ".join(line.split()) for line in shown(explain(found, {}, now=160), 120).splitlines()]
    assert f"copied 50.0 s after to other, too: {REASONS['copy']}" in rows


def test_a_job_that_waits_again_has_no_device() -> None:
    found = parse_job("b.j", hash_of(state="queued"), 0)
    assert found is not None
    assert (found.worker, found.dispatched, found.reason, found.predicted_s) == ("", 0, "", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "lost"},
        {"attempt": "many"},
        {"attempt": "0"},
        {"submitted": "nan"},
        {"submitted": "-1"},
        {"dispatched": "inf"},
        {"predicted_s": "1e300"},
        {"output_tokens": "-4"},
        {"reason": "x" * 5000},
        {"custom_id": "\udcff"},
    ],
)
def test_what_is_no_job(fields: dict[str, str]) -> None:
    assert parse_job("b.j", hash_of(), 0) is not None
    assert parse_job("b.j", hash_of(**fields), 0) is None


def test_no_hash_is_no_job() -> None:
    assert parse_job("b.j", {}, 0) is None


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, JobState.DONE),
        ({"status_code": 500}, JobState.FAILED),
        ({"status_code": 0, "error_code": "attempts_exhausted"}, JobState.FAILED),
        ({"status_code": 0, "error_code": BATCH_CANCELLED}, JobState.CANCELLED),
    ],
)
def test_a_job_from_its_result(fields: dict[str, Any], state: JobState) -> None:
    ended = result("w", dispatched=5, ended=8, reason="spare", predicted_s=2, cached_tokens=3, **fields)
    found = ended_job(ended)
    assert (found.state, found.batch, found.worker, found.reason) == (state, "b", "w", "spare")
    assert (found.submitted, found.dispatched, found.started, found.ended) == (4, 5, 5, 8)
    assert (found.prompt_tokens, found.output_tokens, found.cached_tokens, found.predicted_s) == (10, 5, 3, 2)


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_job_id_names_its_batch(batch: str, custom_id: str) -> None:
    identity = job_id(batch, custom_id)
    assert (batch_of(identity), f"{batch}.{short_id(identity)}") == (batch, identity)


@pytest.mark.parametrize(
    ("entry", "before"),
    [
        ("1700-4", "1700-3"),
        ("1700-0", f"1699-{2**64 - 1}"),
        ("0-1", "0-0"),
        ("0-0", None),
        ("x-1", None),
        ("17", None),
        ("1-", None),
        ("-5-3", None),
        ("", None),
    ],
)
def test_the_position_before_an_entry(entry: str, before: str | None) -> None:
    assert cursor_before(entry) == before


# --- devices


def test_a_device_by_its_heartbeat() -> None:
    beat = heartbeat(profile=profile_text(FAST), kv_tokens_total=10_000, seats=10, context_tokens=4000, device="H100")
    found = known_device("p", beat)
    assert (found.device, found.kv_tokens, found.context_tokens) == ("H100", 10_000, 4000)
    assert found.kind is not None
    assert (found.kind.profile, found.kind.context_tokens) == (FAST, 4000)


@pytest.mark.parametrize("profile", ["", "rubbish", "{}"])
def test_a_device_without_a_profile(profile: str) -> None:
    assert known_device("p", heartbeat(profile=profile)).kind is None


def test_devices_of_several_pools_are_named_by_both() -> None:
    beat = heartbeat()
    assert list(known_devices({"p": {"w": beat, "gone": None}})) == ["w"]
    assert list(known_devices({"p": {"w": beat}, "q": {"w": beat}})) == ["p/w", "q/w"]


# --- the explanation


def test_costs_on_every_device() -> None:
    found = explain(record(), {"slow": device(SLOW), "fast": device(FAST)}, now=200)
    fast, slow = found.devices
    assert (fast.name, fast.chosen, fast.fits, fast.relative) == ("fast", True, True, 1.0)
    assert (slow.name, slow.chosen, slow.fits) == ("slow", False, True)
    # 600 tokens of prefill and a tenth of 100 steps (seats), or of the context they hold (KV memory).
    assert fast.device_s == pytest.approx(0.6 + 0.01 * 100 / 10)
    assert fast.alone_s == pytest.approx(0.6 + 0.01 * 100)
    assert slow.device_s == pytest.approx(2.4 + 0.04 * 100 * (600 + 99 / 2) / 1000)
    assert slow.relative == pytest.approx((slow.device_s or 0) / (fast.device_s or 1))
    assert slow.alone_s == pytest.approx(0.5 + 2.4 + 0.04 * 100)
    assert found.actual_s == 3
    assert notes(found) == []


@pytest.mark.parametrize(
    ("known", "fits", "why_not"),
    [
        (device(FAST, context=700), True, ""),
        (device(FAST, context=699), False, "context"),
        (device(None, kv_tokens=700), True, ""),
        (device(None, kv_tokens=699), False, "KV memory"),
    ],
)
def test_what_a_device_can_hold(known: KnownDevice, fits: bool, why_not: str) -> None:
    [row] = explain(record(), {"w": known}, now=200).devices
    assert (row.fits, row.why_not) == (fits, why_not)
    assert (row.device_s is None) == (not fits or known.kind is None)


@pytest.mark.parametrize(
    ("job", "lengths"),
    [
        (record(), Lengths(600, 101, known=True)),
        (waiting(body_bytes=400, predicted_output_tokens=30, max_tokens=60), Lengths(100, 30, known=False)),
        (waiting(body_bytes=400, max_tokens=60), Lengths(100, 60, known=False)),
        (waiting(), Lengths(1, None, known=False)),
    ],
)
def test_the_lengths_to_reckon_with(job: JobRecord, lengths: Lengths) -> None:
    assert lengths_of(job) == lengths


@pytest.mark.parametrize(
    ("job", "devices", "said"),
    [
        (waiting(), {"fast": device(FAST)}, "not predicted yet"),
        (waiting(body_bytes=4000, max_tokens=60), {"fast": device(FAST)}, "about 1,000 prompt tokens"),
        (record(), {}, "no device of its pool is known now"),
        (record(worker="gone"), {"fast": device(FAST)}, "gone has left the pool"),
        (record(), {"fast": device(None)}, "no profile known: run `tokenyard profile`"),
    ],
)
def test_what_is_missing_is_said(job: JobRecord, devices: dict[str, KnownDevice], said: str) -> None:
    found = explain(job, devices, now=200)
    assert any(said in note for note in notes(found))
    assert said in shown(found, 200)


def test_reasons_in_words() -> None:
    assert all(len(words.split()) >= 4 for words in REASONS.values())
    assert reason_in_words("spare") == REASONS["spare"]
    assert reason_in_words("something new") == "something new"
    assert reason_in_words("") == ""


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (waiting(), "waits for a device"),
        (waiting(attempt=2), "waits for a device, attempt 2"),
        (record(state=JobState.DISPATCHED, ended=0.0), "on fast, waiting there or running"),
        (record(), "done"),
        (record(state=JobState.FAILED, status_code=500), "failed: status 500"),
        (record(state=JobState.CANCELLED, status_code=0, error="too late"), "cancelled: too late"),
    ],
)
def test_states_in_words(job: JobRecord, words: str) -> None:
    assert state_in_words(job) == words


def test_an_explanation_for_people() -> None:
    job = record(reason="fastest", predicted_s=6.0, predicted_output_tokens=50, cached_tokens=7)
    lines = shown(explain(job, {"slow": device(SLOW), "fast": device(FAST, context=300)}, now=160), 120).splitlines()
    assert lines[0] == "job b.j (custom_id c): done"
    rows = [" ".join(line.split()) for line in lines]
    assert "submitted 1970-01-01 00:01:40 UTC 60.0 s ago" in rows
    assert f"dispatched 1.00 s after to fast, because {REASONS['fastest']}" in rows
    assert "started 1.50 s after" in rows
    assert "ended 4.00 s after status 200" in rows
    assert "dispatch to result 6.00 s 3.00 s +100 %" in rows
    assert "output tokens 50 101 -50 %" in rows
    assert "of them cached 7" in rows
    assert "* fast GPU no: context - - -" in rows
    assert any(row.startswith("slow GPU yes") for row in rows)


def test_names_cannot_steer_the_terminal() -> None:
    job = record(worker="\x1b[2J", custom_id="\x1b]0;", reason="\x07", error="\x1b", state=JobState.FAILED)
    assert not set(shown(explain(job, {"\x1b[2J": device(FAST)}, now=1.0))) & set("\x1b\x07")
