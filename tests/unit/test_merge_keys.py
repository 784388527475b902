"""Keys of a batch are found among the keys of a file, however these lie: close together, far apart, NULL or of another type."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sinks.cdc.keys import KeyIndex

LEAST, GREATEST = -(2**63), 2**63 - 1


@pytest.mark.parametrize(
    ("ours", "stored"),
    [
        ([5, 3, 5, 9], [1, 2, 3, 4, 5, 5]),
        ([5, 3], [100, 101]),
        ([-128, 127], [127, -128, 0]),
        ([LEAST, 0, GREATEST], [GREATEST, 0, LEAST, 1]),
        ([GREATEST, LEAST], [GREATEST - 1, GREATEST]),
        ([LEAST, 7], [LEAST + 1, LEAST, LEAST]),
        ([3], [1, None, 3]),
        ([3], []),
        (["b", "a"], ["a", "c", "b"]),
    ],
)
@pytest.mark.parametrize("has_second", [False, True])
def test_rows_with_our_keys_are_found(ours: list[object], stored: list[object], has_second: bool) -> None:
    kind = pa.array(ours).type
    keys, rows = pa.table({"k": pa.array(ours, kind)}), pa.table({"k": pa.array(stored, kind)})
    if has_second:
        keys, rows = (table.append_column("l", pa.repeat(pa.scalar("x"), len(table))) for table in (keys, rows))
    index = KeyIndex(keys)
    numbers = dict(zip(ours, index.ids.to_pylist(), strict=True))
    found, ids = index.rows_in(rows)
    assert found.to_pylist() == [n for n, key in enumerate(stored) if key in numbers]
    assert ids.to_pylist() == [numbers[stored[n]] for n in found.to_pylist()]
    assert index.count == len(numbers)
