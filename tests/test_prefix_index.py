"""What the scheduler believes is cached: an LRU by tokens, put right by what engines report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.prefix_index import PrefixIndex
from broker.prefixes import PrefixMark

Marks = tuple[PrefixMark, ...]
BYTES = 4  # a token


def chain(name: str, depth: int) -> Marks:
    """Marks of the text that starts like all whose name starts alike."""
    return tuple(PrefixMark(512 << n, name[: n + 1]) for n in range(depth))


def index_of(*jobs: Marks) -> PrefixIndex:
    """An index that has seen each of these twice."""
    index = PrefixIndex()
    for marks in jobs * 2:
        index.seen(marks)
    return index


def place(index: PrefixIndex, device: str, marks: Marks, own: int = 0, cache_tokens: int = 100_000) -> int:
    prompt = (marks[-1].size if marks else 0) + 400
    return index.placed(
        device,
        marks,
        prompt_tokens=prompt // BYTES,
        prompt_bytes=prompt,
        kv_tokens=(marks[-1].size // BYTES if marks else 0) + own,
        cache_tokens=cache_tokens,
    )


def cached(index: PrefixIndex, device: str, marks: Marks) -> int:
    prompt = (marks[-1].size if marks else 0) + 400
    return index.cached_tokens(device, marks, prompt // BYTES, prompt)


A, B = chain("aaa", 3), chain("aab", 3)

names = st.text(alphabet="ab", min_size=4, max_size=4)
jobs = st.builds(chain, names, st.integers(0, 4))


@given(st.lists(st.tuples(jobs, st.integers(0, 900)), max_size=40), st.integers(0, 4000))
def test_it_is_the_lru_by_tokens(placed: list[tuple[Marks, int]], cache_tokens: int) -> None:
    """Against the definition: a mark is held while all that was used since is no more than the memory."""
    index = index_of(*(chain(name, 4) for name in ("aaaa", "abab", "bbbb", "baba")))
    shared = {mark.digest for name in ("aaaa", "abab", "bbbb", "baba") for mark in chain(name, 4)}
    history: list[tuple[str, int]] = []  # (mark or "", tokens), the latest last
    for marks, own in placed:
        place(index, "d", marks, own, cache_tokens)
        known = [mark for mark in marks if mark.digest in shared]
        last = known[-1].size if known else 0
        history.append(("", own + ((marks[-1].size if marks else 0) - last) // BYTES))
        before = [0, *(mark.size for mark in known)]
        history += [(m.digest, (m.size - b) // BYTES) for m, b in reversed(list(zip(known, before, strict=False)))]
        held: set[str] = set()
        used = tokens = 0
        for digest, size in reversed(history):
            if digest in held:
                continue
            used += size
            if used > cache_tokens:
                break
            if digest:
                held.add(digest)
                tokens += size
        assert index.tokens_held("d") == tokens <= cache_tokens
        assert {d for d in shared if index.holders(PrefixMark(1, d))} == held
        for mark in known:
            assert (cached(index, "d", (mark,)) > 0) == (mark.digest in held)


@given(st.lists(st.tuples(st.sampled_from("xyz"), jobs, st.integers(-5, 5000), st.booleans()), max_size=30))
def test_predictions_are_full_blocks_below_the_prompt(steps: list[tuple[str, Marks, int, bool]]) -> None:
    index = PrefixIndex()
    for device, marks, reported, leaves in steps:
        index.seen(marks)
        predicted = place(index, device, marks)
        index.observe(device, marks, predicted, reported)
        if leaves:
            index.forget(device)
            assert cached(index, device, marks) == index.tokens_held(device) == 0
        for other in "xyz":
            tokens = cached(index, other, marks)
            assert 0 <= tokens < (marks[-1].size if marks else 0) // BYTES + 100
            assert tokens % 16 == 0
            assert (other in index.holders(marks[0]) if marks else False) or tokens == 0
            assert index.cached_tokens(other, marks, 17, 68) <= 16
    assert index.cached_tokens("x", A, 0, 0) == 0


def test_a_job_finds_what_another_left() -> None:
    index = index_of(A, B)
    assert cached(index, "d", A) == 0
    assert place(index, "d", A) == 0
    assert cached(index, "d", A) == 2048 // BYTES
    assert cached(index, "d", B) == 1024 // BYTES
    assert cached(index, "elsewhere", A) == 0
    assert place(index, "d", A) == 2048 // BYTES


def test_what_one_job_alone_has_is_not_kept() -> None:
    index = PrefixIndex()
    index.seen(A)
    place(index, "d", A)
    assert index.tokens_held("d") == cached(index, "d", A) == 0
    assert index.shared(A) is None
    index.seen(B)
    assert index.shared(A) == index.shared(B) == A[1]
    assert (index.jobs_with(A[1]), index.jobs_with(A[2]), index.jobs_with(PrefixMark(512, "?"))) == (2, 1, 0)


def test_running_jobs_push_prefixes_out() -> None:
    index = index_of(A)
    place(index, "d", A, cache_tokens=1000)
    place(index, "d", (), own=400, cache_tokens=1000)
    assert cached(index, "d", A) == 512
    place(index, "d", (), own=200, cache_tokens=1000)  # its end goes first
    assert cached(index, "d", A) == 256
    place(index, "d", A, cache_tokens=1000)
    assert cached(index, "d", A) == 512
    place(index, "d", A, cache_tokens=300)  # the device has less memory than it said
    assert cached(index, "d", A) == 256


def test_a_prefix_that_was_not_there_is_forgotten_and_its_device_trusted_less() -> None:
    index = index_of(A)
    place(index, "d", A)
    for _ in range(50):
        index.observe("d", A, place(index, "d", A), 0)
        assert index.tokens_held("d") == 0
        place(index, "d", A)
    assert cached(index, "d", A) == 0
    for _ in range(50):  # its engine caches after all
        index.observe("d", A, place(index, "d", A), 512)
    assert cached(index, "d", A) >= 496
    index.observe("new", A, 512, 0)  # never heard of


def test_reports_teach_how_many_tokens_a_mark_stands_for() -> None:
    index = index_of(A, B)
    place(index, "d", A)
    for _ in range(12):  # of this text a token takes less than the bytes let expect
        index.observe("d", A, place(index, "d", A), 544)
    assert cached(index, "d", A) == 544
    assert cached(index, "d", B) == 256
    assert cached(index, "d", (*B[:2], PrefixMark(2048, "other"))) == 256
    for _ in range(12):
        index.observe("d", B, place(index, "d", B), 400)
    assert cached(index, "d", B) == 400


def test_a_report_beyond_the_next_mark_counts_up_to_that() -> None:
    index = index_of(A)
    place(index, "d", A)
    for _ in range(12):
        index.observe("d", A, 256, 10_000)
    assert cached(index, "d", A[:2]) == 352  # of the whole prompt, 356 tokens, the last is computed in any case
    assert index.tokens_held("d") == 512


def test_memory_is_bounded_by_the_number_of_marks() -> None:
    index = PrefixIndex(most_marks=6)
    for marks in (A, A):
        index.seen(marks)
    place(index, "d", A)
    for name in ("bcd", "cde"):
        index.seen(chain(name, 3))
        assert index.jobs_with(A[0]) >= index.jobs_with(A[2])
    assert index.jobs_with(A[0]) == index.tokens_held("d") == cached(index, "d", A) == 0
    assert not index.holders(A[0])
    index.forget("d")


@pytest.mark.parametrize("device", ["d", "never seen"])
def test_forgetting_is_whole_and_safe(device: str) -> None:
    index = index_of(A)
    place(index, "d", A)
    place(index, "e", A)
    index.forget(device)
    index.forget(device)
    assert set(index.holders(A[2])) == {"d", "e"} - {device}
