from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waxlake.stream.ddl import parse_ddl, to_ddl
from waxlake.stream.errors import SchemaError

UTC = pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("BIGINT", pa.int64()),
        ("long", pa.int64()),
        ("Int", pa.int32()),
        ("INTEGER", pa.int32()),
        ("SHORT", pa.int16()),
        ("BYTE", pa.int8()),
        ("REAL", pa.float32()),
        ("DOUBLE", pa.float64()),
        ("BOOL", pa.bool_()),
        ("VARCHAR(20)", pa.string()),
        ("VARCHAR", pa.string()),
        ("TEXT", pa.string()),
        ("BYTES", pa.binary()),
        ("DATE", pa.date32()),
        ("TIMESTAMP", UTC),
        ("TIMESTAMP_NTZ", pa.timestamp("us")),
        ("DECIMAL(10,2)", pa.decimal128(10, 2)),
        ("NUMERIC(5)", pa.decimal128(5, 0)),
        ("DECIMAL", pa.decimal128(10, 0)),
        ("ARRAY<STRING>", pa.list_(pa.string())),
        ("ARRAY<ARRAY<INT>>", pa.list_(pa.list_(pa.int32()))),
        ("MAP<STRING, INT>", pa.map_(pa.string(), pa.int32())),
        ("STRUCT<a: INT, b STRING>", pa.struct([("a", pa.int32()), ("b", pa.string())])),
    ],
)
def test_a_type_and_its_synonyms(text, kind):
    assert parse_ddl(f"x {text}") == pa.schema([("x", kind)])


def test_names_not_null_and_comments():
    schema = parse_ddl("`a b``c` INT NOT NULL COMMENT 'it''s \\'here\\'',\n  date DATE, größe: DOUBLE")
    assert schema.names == ["a b`c", "date", "größe"]
    assert not schema.field(0).nullable
    assert schema.field(0).metadata == {b"comment": b"it's 'here'"}


def test_a_schema_passes_unchanged():
    schema = pa.schema([("a", pa.uint8())])
    assert parse_ddl(schema) is schema


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("id BIGNT, ts TIMESTAMP", 3, "BIGINT"),
        ("id INT,", 7, "column name"),
        ("", 0, "column name"),
        ("id", 2, "a type"),
        ("id INT ts DATE", 7, "','"),
        ("a-b INT", 1, "a type"),
        ("1a INT", 0, "backquotes"),
        ("id INT, ID STRING", 8, "'id'"),
        ("s STRUCT<a: INT, A: INT>", 17, "'a'"),
        ("d DECIMAL(39,2)", 2, "38"),
        ("d DECIMAL(5,6)", 2, "scale"),
        ("a ARRAY<INT", 11, "'>'"),
        ("a ARRAY", 7, "'<'"),
        ("a INT NOT", 9, "NULL"),
        ("a INT COMMENT x", 14, "single quotes"),
        ("a VARCHAR(x)", 10, "number"),
    ],
)
def test_an_error_shows_where_and_what(text, position, says):
    with pytest.raises(SchemaError) as error:
        parse_ddl(text)
    assert error.value.code == "SCHEMA_DDL"
    assert error.value.facts["position"] == position
    assert says in str(error.value)


def test_the_caret_stands_under_the_error():
    with pytest.raises(SchemaError) as error:
        parse_ddl("".join(f"a{i} INT, " for i in range(20)) + "b STRNG")
    _, shown, caret, *_ = str(error.value).split("\n")
    assert shown[caret.index("^") :].startswith("STRNG")
    assert "STRING" in str(error.value)


def test_to_ddl_refuses_what_delta_lacks():
    with pytest.raises(SchemaError, match="SCHEMA_TYPE"):
        to_ddl(pa.schema([("t", pa.time64("us"))]))


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
numbers = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]
others = [pa.string(), pa.binary(), pa.date32(), UTC, pa.timestamp("us")]
decimals = [pa.decimal128(10, 2), pa.decimal128(38, 38), pa.decimal128(1, 0)]
scalars = st.sampled_from([*numbers, *others, *decimals])


def fields(kinds):
    comments = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    field = st.builds(
        lambda name, kind, nullable, comment: pa.field(
            name, kind, nullable, {"comment": comment} if comment is not None else None
        ),
        names,
        kinds,
        st.booleans(),
        comments,
    )
    return st.lists(field, min_size=1, max_size=4, unique_by=lambda f: f.name.casefold())


kinds = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda k, null: pa.list_(pa.field("element", k, null)), inner, st.booleans()),
        st.builds(lambda k, v, null: pa.map_(k, pa.field("value", v, null)), inner, inner, st.booleans()),
        fields(inner).map(pa.struct),
    ),
    max_leaves=6,
)


@given(fields(kinds))
def test_what_is_written_reads_back(columns):
    schema = pa.schema(columns)
    assert parse_ddl(to_ddl(schema)).equals(schema, check_metadata=True)


@given(st.text(max_size=40))
def test_any_text_is_a_schema_or_a_schema_error(text):
    try:
        assert len(parse_ddl(text)) > 0
    except SchemaError as error:
        assert error.code == "SCHEMA_DDL"  # noqa: PT017 - both outcomes are fine, no third one is
