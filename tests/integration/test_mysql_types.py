# ruff: noqa: E501 - a table: one type a line
"""Every type of MariaDB and MySQL: the same value by the first load as by the stream, in the type that the documentation names."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pytest

from tests.integration.mysql_lab import ALL, Lab
from tests.services.mariadb import MySQLServer

UTC = pa.timestamp("us", tz="UTC")
# column definition, Arrow type, (SQL literal, value) ...
TYPES: list[tuple[str, pa.DataType, list[tuple[str, Any]]]] = [
    ("TINYINT", pa.int8(), [("-128", -128), ("127", 127)]),
    ("TINYINT UNSIGNED", pa.int16(), [("255", 255)]),
    ("SMALLINT", pa.int16(), [("-32768", -32768)]),
    ("SMALLINT UNSIGNED", pa.int32(), [("65535", 65535)]),
    ("MEDIUMINT", pa.int32(), [("-8388608", -8388608), ("8388607", 8388607)]),
    ("MEDIUMINT UNSIGNED", pa.int32(), [("16777215", 16777215)]),
    ("INT", pa.int32(), [("-2147483648", -(2**31))]),
    ("INT UNSIGNED", pa.int64(), [("4294967295", 2**32 - 1)]),
    ("BIGINT", pa.int64(), [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)]),
    ("BIGINT UNSIGNED", pa.decimal128(20, 0), [("18446744073709551615", Decimal(2**64 - 1)), ("0", Decimal(0))]),
    ("BOOLEAN", pa.int8(), [("TRUE", 1)]),
    ("FLOAT", pa.float32(), [("0.1", 0.10000000149011612), ("16777217", 16777216.0), ("-3.4e38", -3.3999999521443642e38)]),
    ("DOUBLE", pa.float64(), [("0.1", 0.1), ("1.7976931348623157e308", 1.7976931348623157e308), ("-0.3", -0.3)]),
    ("DECIMAL(5,2)", pa.decimal128(5, 2), [("-999.99", Decimal("-999.99")), ("0.01", Decimal("0.01"))]),
    ("DECIMAL(38,10)", pa.decimal128(38, 10), [("-1234567890123456789012345678.0123456789", Decimal("-1234567890123456789012345678.0123456789"))]),
    ("DECIMAL(18,0)", pa.decimal128(18, 0), [("-999999999999999999", Decimal("-999999999999999999")), ("0", Decimal(0))]),
    ("DECIMAL(9,9)", pa.decimal128(9, 9), [("0.000000001", Decimal("0.000000001"))]),
    ("DECIMAL(65,30)", pa.string(), [("-12345.5", "-12345.500000000000000000000000000000"), ("0", "0.000000000000000000000000000000")]),
    ("BIT(1)", pa.bool_(), [("b'1'", True), ("b'0'", False)]),
    ("BIT(10)", pa.int64(), [("b'1000000001'", 513)]),
    ("BIT(64)", pa.decimal128(20, 0), [("18446744073709551615", Decimal(2**64 - 1))]),
    ("YEAR", pa.int16(), [("1901", 1901), ("2155", 2155), ("0", 0)]),
    ("DATE", pa.date32(), [("'1000-01-01'", date(1000, 1, 1)), ("'9999-12-31'", date(9999, 12, 31)), ("'2024-02-29'", date(2024, 2, 29)), ("'0000-00-00'", None), ("'2024-00-10'", None)]),
    ("DATETIME", pa.timestamp("us"), [("'2024-02-29 23:59:59'", datetime(2024, 2, 29, 23, 59, 59)), ("'0000-00-00'", None)]),
    ("DATETIME(3)", pa.timestamp("us"), [("'1000-01-01 00:00:00.001'", datetime(1000, 1, 1, 0, 0, 0, 1000))]),
    ("DATETIME(6)", pa.timestamp("us"), [("'9999-12-31 23:59:59.999999'", datetime(9999, 12, 31, 23, 59, 59, 999999))]),
    ("TIMESTAMP NULL", UTC, [("'2024-07-01 12:00:00'", datetime(2024, 7, 1, 10, tzinfo=timezone.utc)), ("0", None)]),
    ("TIMESTAMP(6) NULL", UTC, [("'2024-07-01 12:00:00.000001'", datetime(2024, 7, 1, 10, 0, 0, 1, tzinfo=timezone.utc))]),
    ("TIME", pa.string(), [("'-838:59:59'", "-838:59:59"), ("'00:00:00'", "00:00:00"), ("'9:05:01'", "09:05:01")]),
    ("TIME(3)", pa.string(), [("'-12:00:01.5'", "-12:00:01.500"), ("'-00:00:00.001'", "-00:00:00.001")]),
    ("TIME(6)", pa.string(), [("'838:59:58.999999'", "838:59:58.999999"), ("'-00:00:01.000001'", "-00:00:01.000001")]),
    ("CHAR(10)", pa.string(), [("'x  '", "x"), ("'é€😀'", "é€😀"), ("''", "")]),
    ("VARCHAR(300)", pa.string(), [("'x  '", "x  "), ("repeat('ä', 300)", "ä" * 300)]),
    ("VARCHAR(50) CHARACTER SET latin1", pa.string(), [("'Zürich €'", "Zürich €"), ("'ascii'", "ascii")]),
    ("TEXT CHARACTER SET latin1", pa.string(), [("'naïve'", "naïve")]),
    ("VARCHAR(20) CHARACTER SET ucs2", pa.string(), [("'жук'", "жук")]),
    ("VARCHAR(20) CHARACTER SET cp1251", pa.string(), [("'жук'", "жук")]),
    ("VARCHAR(20) CHARACTER SET utf8mb3", pa.string(), [("'жук'", "жук")]),
    ("TINYTEXT", pa.string(), [("'a'", "a")]),
    ("LONGTEXT", pa.string(), [("repeat('ab', 40000)", "ab" * 40000)]),
    ("BINARY(4)", pa.binary(), [("x'6100'", b"a\0\0\0"), ("x'00000000'", b"\0\0\0\0"), ("x'ffffffff'", b"\xff" * 4)]),
    ("VARBINARY(300)", pa.binary(), [("x'00ff00'", b"\0\xff\0"), ("''", b"")]),
    ("BLOB", pa.binary(), [("x'0001'", b"\0\1")]),
    ("MEDIUMBLOB", pa.binary(), [("repeat(x'ff', 70000)", b"\xff" * 70000)]),
    ("ENUM('small','it''s','größe')", pa.string(), [("'it''s'", "it's"), ("'größe'", "größe"), ("'none'", "")]),
    ("ENUM('a','é') CHARACTER SET latin1", pa.string(), [("'é'", "é")]),
    ("SET('x','y','z')", pa.string(), [("'x,z'", "x,z"), ("''", ""), ("'z,y,x'", "x,y,z")]),
    ("JSON", pa.string(), [('\'{"b": [1, 2.5, null], "a": "ü"}\'', '{"b": [1, 2.5, null], "a": "ü"}')]),
    ("UUID", pa.string(), [("'123e4567-e89b-12d3-a456-426655440000'", "123e4567-e89b-12d3-a456-426655440000")]),
    ("INET6", pa.string(), [("'::ffff:1.2.3.4'", "::ffff:1.2.3.4"), ("'2001:db8::'", "2001:db8::")]),
    ("INET4", pa.string(), [("'192.168.0.0'", "192.168.0.0")]),
    ("POINT", pa.binary(), [("ST_PointFromText('POINT(1 2)')", bytes(4) + b"\1\1\0\0\0" + bytes(6) + b"\xf0\x3f" + bytes(7) + b"\x40")]),
    ("INT AS (7) VIRTUAL", pa.int32(), []),
    ("INT AS (8) STORED", pa.int32(), []),
]  # fmt: skip


MARIADB_ONLY = ("UUID", "INET6", "INET4")
# MySQL keeps documents parsed: keys are in an order of its own
MYSQL_JSON = ("JSON", pa.string(), [('\'{"b": [1, 2.5, null], "a": "ü", "c": {"d": true, "e": -7, "f": "2024-01-02"}}\'', '{"a": "ü", "b": [1, 2.5, null], "c": {"d": true, "e": -7, "f": "2024-01-02"}}'), ("'[]'", "[]"), ("CAST(18446744073709551615 AS JSON)", "18446744073709551615"), ("'\"x\"'", '"x"')])  # fmt: skip


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def types(request: pytest.FixtureRequest) -> list[tuple[str, pa.DataType, list[tuple[str, Any]]]]:
    if request.param == "mariadb":
        return TYPES
    return [MYSQL_JSON if kind[0] == "JSON" else kind for kind in TYPES if kind[0] not in MARIADB_ONLY]


@pytest.fixture(scope="module")
def rows(
    types: list[tuple[str, pa.DataType, list[tuple[str, Any]]]],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, pa.Table]:
    """The same rows, by the first load and by the stream: as inserted, as updated, as deleted."""
    server: MySQLServer = request.getfixturevalue("mariadb" if types is TYPES else "mysql")
    lab = Lab(server, tmp_path_factory.mktemp("types"))
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(types))
    deepest = max(len(values) for _, _, values in types)
    insert = "INSERT INTO {} (id, {}) VALUES ({}, {})"
    statements = [f"CREATE TABLE {name} (id INT PRIMARY KEY, u INT, {columns})" for name in ("loaded", "streamed")]
    for name in ("loaded", "streamed"):
        for row in range(deepest):
            picked = [(i, values[row][0]) for i, (_, _, values) in enumerate(types) if row < len(values)]
            names, literals = ", ".join(f"c{i}" for i, _ in picked), ", ".join(v for _, v in picked)
            statements.append(insert.format(name, names, row, literals))
    with server.connect(lab.database, init_command="SET sql_mode = '', time_zone = '+02:00'") as session:
        for statement in [s for s in statements if "streamed (id, c" not in s]:
            session.cursor().execute(statement)
        lab.read(lab.connector())
        for statement in [s for s in statements if "streamed (id, c" in s]:
            session.cursor().execute(statement)
        session.cursor().execute("UPDATE streamed SET u = 1")
        session.cursor().execute("DELETE FROM streamed")
    lab.read(lab.connector())
    found: dict[str, pa.Table] = {}
    for batch in lab.batches:
        for kind in ("read", "insert", "update", "delete"):
            table = batch.table.filter(pa.compute.equal(batch.table.column("_change_type"), kind))
            if table.num_rows and "u" in table.column_names:
                found[kind] = table.drop_columns(sorted(ALL)).sort_by("id")
    return found


@pytest.mark.parametrize("kind", ["read", "insert", "update", "delete"])
def test_every_type_has_its_arrow_type_and_value(
    types: list[tuple[str, pa.DataType, list[tuple[str, Any]]]], rows: dict[str, pa.Table], kind: str
) -> None:
    table = rows[kind]
    wrong = []
    for i, (definition, arrow, values) in enumerate(types):
        column = table.column(f"c{i}")
        expected = [value for _, value in values] + [None] * (table.num_rows - len(values))
        if "AS (" in definition:
            expected = [int(definition.split("(")[1][0])] * table.num_rows
        if column.type != arrow or column.to_pylist() != expected:
            wrong.append(f"{definition}: {column.type} {column.to_pylist()}, expected {arrow} {expected}")
    assert not wrong, "\n".join(wrong)


def test_first_load_and_stream_have_the_same_columns(rows: dict[str, pa.Table]) -> None:
    assert rows["read"].schema.equals(rows["insert"].schema)
    data = [name for name in rows["read"].column_names if name != "u"]
    assert rows["read"].select(data).equals(rows["insert"].select(data))
