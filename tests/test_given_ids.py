"""What a submission remembers of the ids that it was given: exactly, in little memory."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tokenyard.client.given_ids import GivenIds
from tokenyard.client.items import made_id

#: Ids of one's own may look like those that are made, of this place or of another.
own = st.text(max_size=3) | st.builds(made_id, st.integers(0, 6), st.sampled_from([b"a", b"b"]))


@given(st.lists(st.none() | own, max_size=30), st.lists(own))
def test_it_agrees_with_a_dict(ids: list[str | None], others: list[str]) -> None:
    table, expected = GivenIds(), dict[str, int]()
    for position, custom_id in enumerate(ids):
        name = made_id(position, b"a") if custom_id is None else custom_id
        assert table.first_position(name, position) == expected.setdefault(name, position)
    assert all(name in table for name in expected)
    assert [name in table for name in others] == [name in expected for name in others]


def test_an_id_that_was_made_takes_six_bytes() -> None:
    tracemalloc.start()
    table = GivenIds()
    for position in range(100_000):
        table.first_position(made_id(position, b"x"), position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 100_000 < 20  # while it grows it may be there twice
