"""The table of ids: small, and right."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tokenyard.id_table import IdTable


def test_the_table_of_ids_is_small() -> None:
    tracemalloc.start()
    table = IdTable()
    for number in range(100_000):
        table.first_line(f"request-{number}", number + 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 100_000
    assert peak / 100_000 < 55  # bytes an id: 2 million under 110 MB even while the table grows
    assert table.first_line("request-4711", 5) == 4712
    assert "request-100000" not in table


@given(st.lists(st.text(max_size=3), max_size=60))
def test_the_table_of_ids_agrees_with_a_dict(ids: list[str]) -> None:
    table, expected = IdTable(), dict[str, int]()
    for line, custom_id in enumerate(ids, 1):
        assert table.first_line(custom_id, line) == expected.setdefault(custom_id, line)
    assert len(table) == len(expected)
    assert all(custom_id in table for custom_id in expected)
    assert not table.add(ids[0]) if ids else table.add("new")
