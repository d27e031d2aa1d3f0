"""Predicted lengths: learned from what ended, never beyond what a job may take, bounded whatever an event says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placing import device, job, placer_of

from broker.cluster import InFlight
from broker.jobs import WaitingJob
from broker.lengths import LengthModel, Mean

numbers = st.integers(0, 10**9)


def ended(model: LengthModel, waiting: WaitingJob, prompt: int, output: int) -> bool:
    """A job is predicted, runs, and ends with these lengths."""
    predicted = model.predict(waiting)
    running = InFlight(waiting.job_id, *predicted, waiting.body_bytes, waiting.max_tokens)
    return model.observe(running, prompt, output)


def output_of(model: LengthModel, waiting: WaitingJob) -> int:
    return model.predict(waiting)[1]


class TestPredict:
    def test_before_anything_was_seen_four_bytes_are_a_token(self) -> None:
        assert LengthModel().predict(job(0, body_bytes=400)) == (100, 200)

    @given(
        seen=st.lists(st.tuples(st.integers(1, 10**6), numbers, numbers), max_size=20),
        body=st.integers(0, 10**400),
        limit=st.integers(1, 10**400),
    )
    def test_whatever_was_seen_predictions_are_sound(
        self, seen: list[tuple[int, int, int]], body: int, limit: int
    ) -> None:
        """Events may be forged, and so may entries of a stream."""
        model = LengthModel()
        for i, (body_bytes, prompt, output) in enumerate(seen):
            ended(model, job(i, body_bytes=body_bytes), prompt, output)
        for max_tokens in (0, limit):
            prompt, output = model.predict(job(0, body_bytes=body, max_tokens=max_tokens))
            assert 1 <= prompt <= 2**33
            assert 1 <= output <= (min(limit, 10**6) if max_tokens else 10**6)

    @given(limits=st.lists(st.integers(1, 5000), min_size=1, max_size=10), forged=numbers)
    def test_no_answer_counts_as_longer_than_its_job_may_be(self, limits: list[int], forged: int) -> None:
        model = LengthModel()
        for i, limit in enumerate(limits * 5):
            ended(model, job(i, max_tokens=limit), 10, forged)
        assert model.output_tokens.value <= max(200, *limits)


class TestLearning:
    @pytest.mark.parametrize(("body_bytes", "prompt"), [(0, 5), (5, 0), (5, -1)])
    def test_a_job_that_says_nothing_teaches_nothing(self, body_bytes: int, prompt: int) -> None:
        model = LengthModel()
        assert not model.observe(InFlight("b.0", 10, 10, body_bytes), prompt, 3)
        assert model == LengthModel()

    @given(
        body_bytes=st.integers(1, 10**7),
        prompt=st.integers(1, 10**7),
        output=st.integers(0, 10**5),
        n=st.integers(1, 60),
    )
    def test_it_approaches_what_it_sees(self, body_bytes: int, prompt: int, output: int, n: int) -> None:
        model = LengthModel()
        seen = min(prompt / body_bytes, 2.0)
        for i in range(n):
            before = abs(model.tokens_per_byte.value - seen), abs(model.output_tokens.value - output)
            ended(model, job(i, body_bytes=body_bytes), prompt, output)
            assert abs(model.tokens_per_byte.value - seen) <= before[0] + 1e-9
            assert abs(model.output_tokens.value - output) <= before[1] + 1e-6
        assert model.output_tokens.count == n

    def test_it_ends_up_right(self) -> None:
        model, rng = LengthModel(), random.Random(1)
        for i in range(400):
            ended(model, job(i, body_bytes=4000), 800, round(rng.gauss(600, 60)))
        prompt, output = model.predict(job(0, body_bytes=4000))
        assert prompt == pytest.approx(800, rel=0.02)
        assert output == pytest.approx(600, rel=0.05)

    def test_where_answers_are_cut_off_each_is_known_by_its_own_limit(self) -> None:
        model, rng = LengthModel(), random.Random(3)
        for i in range(100):
            limit = rng.randrange(16, 64)
            ended(model, job(i, body_bytes=400, max_tokens=limit), 100, limit)
        for n in (18, 30, 40, 60):
            assert output_of(model, job(0, body_bytes=400, max_tokens=n)) == pytest.approx(n, abs=1)

    def test_where_answers_end_by_themselves_limits_say_nothing(self) -> None:
        model, rng = LengthModel(), random.Random(3)
        for i in range(300):
            limit = rng.randrange(512, 1024)
            ended(model, job(i, body_bytes=400, max_tokens=limit), 100, round(rng.gauss(200, 20)))
        assert output_of(model, job(0, body_bytes=400, max_tokens=520)) == pytest.approx(200, rel=0.1)
        assert output_of(model, job(0, body_bytes=400, max_tokens=1000)) == pytest.approx(200, rel=0.1)

    def test_it_follows_when_answers_become_longer(self) -> None:
        model = LengthModel()
        for i in range(1600):
            ended(model, job(i), 10, 100 if i < 800 else 500)
        assert output_of(model, job(0)) == pytest.approx(500, rel=0.1)


class TestGroups:
    def test_jobs_of_different_sizes_in_one_batch_are_told_apart(self) -> None:
        model = LengthModel()
        for i in range(60):
            ended(model, job(i, body_bytes=100), 25, 50)
            ended(model, job(i, body_bytes=10_000), 2500, 900)
        assert output_of(model, job(0, body_bytes=100)) < 100
        assert output_of(model, job(0, body_bytes=10_000)) == pytest.approx(900, rel=0.2)

    def test_jobs_of_different_limits_are_told_apart(self) -> None:
        model = LengthModel()
        for i in range(60):
            ended(model, job(i, max_tokens=16), 25, 10)
            ended(model, job(i, max_tokens=2000), 25, 1000)
        assert output_of(model, job(0, max_tokens=16)) <= 16
        assert output_of(model, job(0, max_tokens=2000)) == pytest.approx(1000, rel=0.2)

    def test_batches_are_told_apart_and_a_new_one_leans_on_the_pool(self) -> None:
        model = LengthModel()
        for i in range(60):
            ended(model, job(i, batch="short"), 10, 20)
            ended(model, job(i, batch="long"), 10, 800)
        short, new, long = (output_of(model, job(0, batch=name)) for name in ("short", "new", "long"))
        assert short < 100 < new < 700 < long
        assert new == round(model.output_tokens.value)

    @given(output=st.integers(1, 5000))
    def test_a_group_that_has_seen_little_lies_between_its_parent_and_what_it_saw(self, output: int) -> None:
        model = LengthModel()
        for i in range(50):
            ended(model, job(i, batch="other"), 10, 1000)
        ended(model, job(0, batch="new"), 10, output)
        low, high = sorted((round(model.output_tokens.value), output))
        assert low <= output_of(model, job(1, batch="new")) <= high

    def test_it_remembers_a_bounded_number_of_groups(self) -> None:
        model = LengthModel()
        for i in range(5000):
            ended(model, job(i, batch=f"x{i}"), 10, 30)
        for i in range(100):
            ended(model, job(i, batch="last"), 10, 700)
        assert len(model._groups) <= 4096  # pyright: ignore[reportPrivateUsage]
        assert len(model._used) <= 4096  # pyright: ignore[reportPrivateUsage]
        assert output_of(model, job(0, batch="last")) > 600


class TestError:
    def test_before_the_first_job_there_is_none(self) -> None:
        assert LengthModel().error == 0.0

    def test_it_is_the_mean_miss_over_the_mean_length(self) -> None:
        model = LengthModel()
        for i in range(500):
            ended(model, job(i), 10, 100 if i % 2 else 300)
        assert model.error == pytest.approx(0.5, abs=0.1)

    def test_it_falls_as_predictions_get_better(self) -> None:
        model, errors = LengthModel(), list[float]()
        for i in range(300):
            ended(model, job(i), 10, 1000)
            errors.append(model.error)
        assert errors[-1] < 0.05 < 0.2 < errors[2]


class TestMoved:
    def test_the_first_jobs_say_that_predictions_were_off(self) -> None:
        model = LengthModel()
        assert any(ended(model, job(i), 10, 2000) for i in range(3))

    def test_jobs_as_predicted_change_nothing(self) -> None:
        model = LengthModel()
        assert not any(ended(model, job(i), 10, 200) for i in range(50))

    def test_what_waits_is_filed_anew_when_the_mean_moves(self) -> None:
        placer = placer_of(device("a", seats=1))
        for i in range(40):
            placer.add(job(i, body_bytes=100))
        before = {c.output_tokens for c in placer.window}
        for step in range(15):
            placer.decide(float(step))
            running = list(placer.cluster.devices["a"].in_flight)
            placer.completed("a", dict.fromkeys(running, (25, 1500)), float(step))
        assert before == {200}
        assert min(c.output_tokens for c in placer.window) > 800


class TestMean:
    @given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), first=st.floats(-1e6, 1e6))
    def test_it_stays_among_what_it_saw(self, values: list[float], first: float) -> None:
        mean = Mean(first)
        for value in values:
            mean.observe(value)
        assert min(first, *values) - 1e-3 <= mean.value <= max(first, *values) + 1e-3
        assert mean.count == len(values)

    def test_it_is_plain_at_first(self) -> None:
        mean = Mean(10.0)
        for value in (20.0, 30.0):
            mean.observe(value)
        assert mean.value == pytest.approx(20)
