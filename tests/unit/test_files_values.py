"""Text to typed values, and the text of rescued data."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files.formats.columns import ColumnFitter
from connectors.files.formats.parquet_rows import ParquetRows
from connectors.files.formats.text_values import convert_text, infer_text_type
from connectors.files.rescued import json_quote, json_texts, objects, with_file_path

_UTC = pa.timestamp("us", tz="UTC")


def _at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            pa.int64(),
            {"1": 1, "-0": 0, "+5": 5, " 6": 6, "9223372036854775807": 2**63 - 1},
            ["1.0", "0x1F", "1e3", "9223372036854775808", "\u0661"],
        ),
        (pa.int8(), {"-128": -128}, ["128", "true"]),
        (
            pa.float64(),
            {"1": 1.0, ".5": 0.5, "1e3": 1000.0, "+2.5": 2.5, "-Infinity": float("-inf")},
            ["1,5", "0x1p3", "1e999", "abc"],
        ),
        (pa.bool_(), {"true": True, "FALSE": False}, ["1", "yes", "t"]),
        (pa.date32(), {"2024-02-29": date(2024, 2, 29)}, ["2023-02-29", "2024-2-9", "20240229", "2024-02-29T00:00:00"]),
        (
            _UTC,
            {
                "2024-01-01": _at(2024, 1, 1),
                "2024-01-01 10:00": _at(2024, 1, 1, 10),
                "2024-01-01T10:00:00Z": _at(2024, 1, 1, 10),
                "2024-01-01T10:00:00.123456+02:00": _at(2024, 1, 1, 8, 0, 0, 123456),
                "2024-01-01T10:00:00.500000000Z": _at(2024, 1, 1, 10, 0, 0, 500000),
            },
            ["2024-01-01T25:00:00", "10:00", "1704103200", "2024-01-01T10:00:00.1234567Z"],
        ),
        (pa.timestamp("us"), {"2024-01-01T10:00:00": datetime(2024, 1, 1, 10)}, ["2024-01-01T10:00:00Z"]),
        (
            pa.decimal128(6, 2),
            {"1.50": Decimal("1.50"), "1": Decimal("1.00"), "1.500": Decimal("1.50"), "-9999.99": Decimal("-9999.99")},
            ["1.505", "10000", "1e2", "x"],
        ),
        (pa.string(), {"": "", " a ": " a "}, []),
        (pa.binary(), {"ä": "ä".encode()}, []),
    ],
    ids=str,
)
def test_values_fit_exactly_or_are_lost(kind: pa.DataType, good: dict[str, Any], bad: list[str]) -> None:
    for texts in ([*good, None], [*good, None, *bad]):  # alone they may go the fast way
        values, lost = convert_text(pa.array(texts, pa.string()), kind)
        assert values.type == kind
        assert values.to_pylist() == [*good.values(), None, *[None] * (len(texts) - len(good) - 1)]
        assert lost.to_pylist() == [False] * (len(good) + 1) + [True] * (len(texts) - len(good) - 1)
    for text, value in good.items():
        assert convert_text(pa.array([text]), kind)[0].to_pylist() == [value]
    for text in bad:
        assert convert_text(pa.array([text]), kind)[1].to_pylist() == [True], text


@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["1", "-7", "x", "1.5", "9" * 30, "0x1", "", " 3 "])), max_size=40)
)
def test_a_value_does_not_depend_on_its_neighbours(texts: list[str | None]) -> None:
    for kind in (pa.int64(), pa.float64(), pa.decimal128(10, 1)):
        together = convert_text(pa.array(texts, pa.string()), kind)[0].to_pylist()
        assert together == [convert_text(pa.array([text], pa.string()), kind)[0][0].as_py() for text in texts]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", None, "22"], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["01234", "99999"], pa.string()),
        (["0", "0.5"], pa.float64()),
        (["true", "False"], pa.bool_()),
        (["2024-01-01"], pa.date32()),
        (["2024-01-01", "2024-01-01T10:00:00Z"], _UTC),
        (["9" * 25], pa.float64()),
        (["a", "1"], pa.string()),
        ([None, ""], pa.string()),
        ([], pa.string()),
    ],
)
def test_inference_takes_the_narrowest_type(texts: list[str | None], kind: pa.DataType) -> None:
    assert infer_text_type(pa.array(texts, pa.string())) == kind


@given(st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=12))
def test_quoted_text_is_json(texts: list[str | None]) -> None:
    quoted = json_quote(pa.array(texts, pa.string())).to_pylist()
    assert [None if text is None else json.loads(text) for text in quoted] == texts


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=5)), st.one_of(st.none(), st.integers(0, 9))), max_size=10)
)
def test_objects_hold_what_is_there(rows: list[tuple[str | None, int | None]]) -> None:
    texts, numbers = [row[0] for row in rows], [row[1] for row in rows]
    members = {'a "b"': json_quote(pa.array(texts, pa.string())), "n": json_texts(pa.array(numbers, pa.int64()))}
    made = objects(members, len(rows))
    expected = [{k: v for k, v in zip(('a "b"', "n"), row, strict=True) if v is not None} or None for row in rows]
    assert [None if text is None else json.loads(text) for text in made.to_pylist()] == expected
    named = with_file_path(made, pa.array(['/a "x"/ü'] * len(rows), pa.string()))
    expected = [item and {**item, "_file_path": '/a "x"/ü'} for item in expected]
    assert [None if text is None else json.loads(text) for text in named.to_pylist()] == expected


def _fitted(schema: pa.Schema, *tables: pa.Table) -> list[dict[str, Any]]:
    return ParquetRows(ColumnFitter(schema)).decode(tables).to_pylist()


def test_parquet_columns_are_cast_exactly_or_rescued() -> None:
    schema = pa.schema([("id", pa.int64()), ("name", pa.string()), ("at", _UTC)])
    rows = _fitted(
        schema,
        pa.table({"id": pa.array([1.0, 1.5, None, float("nan"), 2.0**63]), "more": [[1], None, [2], [], None]}),
        pa.table({"id": pa.array(["x", None]), "NAME": ["a", "b"]}),
        pa.table(
            {
                "at": pa.array([1_000, 1_001], pa.timestamp("ns", tz="UTC")),
                "name": pa.array(["a", "b"], pa.large_string()),
            }
        ),
    )
    rescued = [json.loads(row["_rescued_data"]) if row["_rescued_data"] else None for row in rows]
    assert [row["id"] for row in rows] == [1, None, None, None, None, None, None, None, None]
    assert rescued[0] == {"more": [1]}
    assert rescued[1] == {"id": 1.5}
    assert rescued[2] == {"more": [2]}
    assert set(rescued[3] or {}) == {"id", "more"}
    assert set(rescued[4] or {}) == {"id"}
    assert rescued[5:7] == [{"id": "x", "NAME": "a"}, {"NAME": "b"}]
    assert [row["name"] for row in rows[7:]] == ["a", "b"]
    assert rows[7]["at"] == _at(1970, 1, 1, 0, 0, 0, 1)
    assert rescued[7] is None
    assert rows[8]["at"] is None
    assert set(rescued[8] or {}) == {"at"}
