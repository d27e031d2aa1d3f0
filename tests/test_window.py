"""The order of the jobs that the scheduler has read, and what is found among them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from placing import candidate, ids, job, window_of

from broker.jobs import Priority
from broker.keys import LEVELS
from broker.policies.base import Candidate
from broker.window import Window, class_of


class TestWindow:
    def test_higher_levels_first_and_in_each_what_came_back_before_what_is_fresh(self) -> None:
        window = window_of(
            [
                candidate(0, level="low"),
                candidate(1, level="normal"),
                candidate(2, level="high"),
                candidate(3, level="returned", priority="low"),
                candidate(4, level="returned", priority="high"),
                candidate(5, level="returned", priority="normal"),
                candidate(6, level="high"),
            ]
        )
        assert ids(window) == ["b.4", "b.2", "b.6", "b.5", "b.1", "b.3", "b.0"]

    def test_each_request_stream_has_its_own_count(self) -> None:
        window = window_of(
            candidate(i, level=level, priority="high" if level == "returned" else "")
            for i, level in enumerate(["high", "normal", "normal", "low", "returned"])
        )
        assert [window.count(level) for level in ("returned", "high", "normal", "low")] == [1, 1, 2, 1]
        assert len(window) == 5

    def test_a_job_taken_out_is_gone_and_taking_it_out_again_does_nothing(self) -> None:
        window = window_of(candidate(i) for i in range(3))
        window.remove(job(1))
        window.remove(job(1))
        assert ids(window) == ["b.0", "b.2"]

    def test_it_finds_the_jobs_of_one_batch(self) -> None:
        window = window_of(
            Candidate(one, 1, 1) for one in (job(0, batch="x"), job(1, batch="y"), job(2, "low", batch="x"))
        )
        assert [one.job_id for one in window.of_batch("x")] == ["x.0", "x.2"]

    def test_jobs_predicted_anew_keep_their_order(self) -> None:
        window = window_of(
            candidate(i, 10 * (i + 1), 5, level, "normal") for i, level in enumerate(["normal", "returned"] * 5)
        )
        before = ids(window)
        window.predict_anew(lambda one: Candidate(one, 7, 900))
        assert ids(window) == before
        assert {c.output_tokens for c in window} == {900}
        assert list(window.lines["normal"].by_class) == [class_of(candidate(0, 7, 900))]

    @given(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["add", "remove", "put_back", "anew"]),
                st.integers(0, 15),
                st.integers(1, 5000),
                st.integers(1, 5000),
                st.sampled_from(LEVELS),
                st.sampled_from(list(Priority)),
            ),
            max_size=60,
        )
    )
    def test_by_class_each_job_is_there_once_and_nothing_else(
        self, steps: list[tuple[str, int, int, int, str, Priority]]
    ) -> None:
        """Also where a job comes a second time with another size: anyone can write to a stream."""
        window = Window()
        for action, i, prompt, output, level, priority in steps:
            one = candidate(i, prompt, output, level, priority.value if level == "returned" else "")
            if action == "add":
                window.add(one)
            elif action == "put_back":
                window.put_back([one])
            elif action == "remove":
                window.remove(one.job)
            else:
                window.predict_anew(lambda job, prompt=prompt, output=output: Candidate(job, prompt, output))
            for line in window.lines.values():
                filed = [(key, c) for key, jobs in line.by_class.items() for c in jobs.values()]
                assert all(class_of(c) == key for key, c in filed)
                assert Counter(ids(c for _, c in filed)) == Counter(ids(line))
                assert all(line.by_class.values())
