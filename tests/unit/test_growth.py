"""How schemas grow: what is added, what stays, what does not fit."""

from __future__ import annotations

import pyarrow as pa
import pytest

from waxlake.stream.ddl import parse_ddl, to_ddl
from waxlake.stream.growth import added_fields, lost_fields, merge_schemas, merged_type
from waxlake.stream.schema import compare_schemas


def grown(stored: str, new: str) -> str:
    """Return the merged schema as DDL."""
    return to_ddl(merge_schemas(parse_ddl(stored), parse_ddl(new)))


@pytest.mark.parametrize(
    ("stored", "new", "merged", "added"),
    [
        ("a BIGINT", "b STRING", "a BIGINT, b STRING", ["b"]),
        ("a BIGINT", "a STRING", "a BIGINT", []),
        ("a BIGINT", "A STRING, b INT", "a BIGINT, b INT", ["b"]),
        ("s STRUCT<x: INT>", "s STRUCT<y: INT>", "s STRUCT<x: INT, y: INT>", ["s.y"]),
        ("s STRUCT<x: INT>", "s STRUCT<x: STRING, y: INT>", "s STRUCT<x: INT>", []),
        ("l ARRAY<STRUCT<x: INT>>", "l ARRAY<STRUCT<y: INT>>", "l ARRAY<STRUCT<x: INT, y: INT>>", ["l.y"]),
        (
            "m MAP<STRING, STRUCT<x: INT>>",
            "m MAP<STRING, STRUCT<y: INT>>",
            "m MAP<STRING, STRUCT<x: INT, y: INT>>",
            ["m.y"],
        ),
        ("m MAP<STRING, INT>", "m MAP<INT, INT>", "m MAP<STRING, INT>", []),
    ],
)
def test_columns_and_nested_fields_are_added_and_types_stay(
    stored: str, new: str, merged: str, added: list[str]
) -> None:
    assert grown(stored, new) == merged
    assert [field.name for field in added_fields(parse_ddl(stored), parse_ddl(new))] == added
    assert grown(merged, new) == merged


def test_a_comparison_tells_growth_from_a_change() -> None:
    narrow, wide = parse_ddl("a INT, s STRUCT<x: INT>"), parse_ddl("a INT, s STRUCT<x: INT, y: INT>")
    assert compare_schemas(narrow, wide).grown == ("s",)
    assert compare_schemas(wide, narrow).shrunk == ("s.y",)
    assert lost_fields(wide, narrow) == ["s.y"]
    changed = compare_schemas(narrow, parse_ddl("a INT, s STRUCT<x: STRING>"))
    assert [name for name, _, _ in changed.changed] == ["s"]
    assert merged_type(pa.int64(), pa.string()) is None
